"""What an export can write, by name, and how large an adapter may be. It imports nothing, for a quick `--help`."""

LAYOUTS = ("peft", "merged", "kohya", "diffusers")
PRECISIONS = {"fp32": "float32", "fp16": "float16"}  # name: torch's dtype

MAX_RANK = 1024
"""Largest rank of an adapter, and of a mixture, whose parts' ranks add up. Every layer gets it: 1.7 GB at full size."""
