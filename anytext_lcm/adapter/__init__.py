"""LoRA adapters: which layers they change, attaching and switching them off, mixing, merging, foreign formats.

It imports peft and safetensors, and the rooms model, lcm and files.
Read `targets.py`, then `lora.py`.
"""
