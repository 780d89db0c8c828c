"""Weights and inputs behind the reference outputs of upstream AnyText2 (github tyxsspa/AnyText2 b06c583).

The reference files in `tests/reference/` hold outputs. The weights and most inputs follow from their own
names: a name is hashed with CRC-32, the hash seeds a PCG64 generator, the generator draws standard normals.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

REFERENCE = Path(__file__).parent / "reference"


def _normals(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normals in float64, decided by `name` alone."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode("utf-8")))).standard_normal(shape)


def weights_for(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The rule's value of state-dict entry `key` (the full key, prefix included)."""
    shape = tuple(shape)
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    n = _normals(key, shape)
    if key.endswith("running_mean"):
        value = 0.1 * n
    elif key.endswith("running_var"):
        value = 0.6 + 0.2 * np.abs(n)
    elif len(shape) >= 3:
        value = n * math.sqrt(2 / math.prod(shape[1:]))
    elif len(shape) == 2:
        value = n / math.sqrt(shape[1])
    elif key.endswith("bias"):
        value = 0.05 * n
    else:
        value = 1 + 0.1 * n
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def fill(module: nn.Module, prefix: str = "") -> nn.Module:
    """Give every parameter and buffer of `module` the rule's value, put it in eval mode and return it.

    `prefix` ends with a dot and is prepended to the module's own keys, e.g. "control_model.". Full keys
    without a dot are the schedule buffers of a whole model; they stay as they are.
    """
    state = module.state_dict()
    for key, value in state.items():
        if "." in prefix + key:
            state[key] = weights_for(prefix + key, tuple(value.shape))
    module.load_state_dict(state, strict=True)
    return module.eval()


def X(name: str, shape: tuple[int, ...], scale: float = 1.0) -> torch.Tensor:
    """The rule's input `name`: float32 normals times `scale`."""
    return torch.from_numpy((scale * _normals("main." + name, tuple(shape))).astype(np.float32))


def blocky(name: str, c: int, h: int, w: int) -> torch.Tensor:
    """A (c, h, w) image of 8x8 blocks with values in 0..255."""
    small = X(name, (1, c, math.ceil(h / 8), math.ceil(w / 8)), 80) + 127.5
    return small.repeat_interleave(8, -2).repeat_interleave(8, -1)[0, :, :h, :w].clamp(0, 255)


def load_reference(name: str) -> dict[str, np.ndarray]:
    """All arrays of `tests/reference/<name>.npz`."""
    with np.load(REFERENCE / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def relative_error(mine: torch.Tensor | np.ndarray, reference: torch.Tensor | np.ndarray) -> float:
    """max|mine - reference| / max|reference|; shapes must agree."""
    mine = torch.as_tensor(mine).detach().double()
    reference = torch.as_tensor(reference).double()
    assert mine.shape == reference.shape, f"shape {tuple(mine.shape)}, reference has {tuple(reference.shape)}"
    return ((mine - reference).abs().max() / reference.abs().max()).item()
