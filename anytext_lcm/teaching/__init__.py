"""What only notebooks import: the exact toy and its figures, maps of the network, explorers, checks of exercises.

It imports matplotlib, IPython and ipywidgets, and the rooms lcm, model, data, figures and drawing.
Read `toy.py` first.
"""
