"""What a command needs, looked at before anything large is loaded, and what a run will take.

It imports the rooms timing, training and what stands above them.
Read `found.py`, then `everything.py`, which puts the subjects of its neighbours together.
"""
