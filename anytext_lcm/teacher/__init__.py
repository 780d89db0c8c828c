"""How the embedded teacher was made, stage by stage; `python -m anytext_lcm.build_teacher` runs the stages.

It imports torch, and the rooms lcm, model, data and files.
Read `recipe.py` first, then `stages.py` and `fitting.py`.
"""
