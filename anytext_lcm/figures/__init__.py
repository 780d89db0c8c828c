"""Figures that know nothing of the project: style, plain plots, pictures side by side.

It imports numpy and matplotlib. Read `style.py` first.
"""
