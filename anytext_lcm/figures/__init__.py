"""Figures that know nothing of the project: style, plain plots, pictures side by side, tables as text.

It imports numpy, matplotlib and the room files. Read `style.py` first.
"""
