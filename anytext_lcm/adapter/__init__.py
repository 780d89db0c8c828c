"""LoRA adapters: which layers they change, attaching and switching them off, mixing, merging, files of other tools.

It imports peft, diffusers and safetensors, and the rooms lcm, model, figures and files.
Read `targets.py`, then `stored.py` and `lora.py`.
"""
