"""From a prompt to a picture: prompts, methods, the drawing itself, editing, the playground's logic.

It imports torch, and the rooms lcm, model, adapter, data and files.
Read `prompts.py`, `methods.py`, then `draw.py`.
"""
