"""Training the student: settings, the step, the loop around it, checkpoints, processes.

It imports torch and accelerate, and the rooms judging, drawing and what stands above them.
Read `step.py`, the eleven numbered comments of the method, then `loop.py`; its neighbours are one subject each.
"""
