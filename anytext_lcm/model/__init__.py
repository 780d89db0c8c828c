"""AnyText2 in its checkpoint's own layout: the module tree is the state dict.

It imports torch, omegaconf and transformers' tokenizer, and the rooms lcm and files.
Read `networks.py` for which networks there are, then `anytext2.py`: `config.py` has their sizes, `conditioning.py` what
they are conditioned on, `unet.py` and `writenet.py` the two denoising networks.
"""

from typing import Any

__all__ = ["AnyText2"]


def __getattr__(name: str) -> Any:
    if name == "AnyText2":  # imported on first use, so that reading a network's defaults loads no torch
        from anytext_lcm.model.anytext2 import AnyText2

        return AnyText2
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
