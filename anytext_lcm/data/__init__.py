"""From lines of text to conditioning: glyphs, masks, hints, made-up pictures, records of AnyWord-3M.

It imports numpy, opencv, pillow and torch, and the room files.
Read `batch.py`, the contract of an item and a batch, then `mock.py`; for records on disk `anyword.py`, `records.py` and
`index.py`.
"""
