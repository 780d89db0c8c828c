"""What an export can write, by name. It imports nothing, so that a `--help` can list it."""

LAYOUTS = ("peft", "merged", "kohya", "diffusers")
PRECISIONS = {"fp32": "float32", "fp16": "float16"}  # name: torch's dtype
