"""Are the pictures right? Reading, intervals, likeness, colours, and the comparison of methods.

It imports rapidocr, onnxruntime and numpy, and the rooms drawing, data, figures and what stands above them.
Read `reading.py`, `judge.py`, `panel.py`, then `compare.py`.
"""
