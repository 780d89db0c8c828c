"""Seconds, memory and FLOPs of the training step and of the samplers, beside the way public scripts write them.

It imports torch, and the rooms training, drawing and what stands above them.
Read `public_script.py`, then `variants.py` and `measure.py`.
"""

PARTS = ("training", "sampling")
"""What the report has."""
