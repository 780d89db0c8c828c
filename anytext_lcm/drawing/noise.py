"""Random numbers of a picture: streams of its own seed."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

INITIAL, MASKED, FRESH = range(3)  # streams of a picture's seed


def picture_generator(seed: int, stream: int) -> torch.Generator:
    """The generator of one stream of a picture. Raises ValueError for a seed that is no integer from 0 on."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"A seed must be an integer from 0 on, not {seed!r}.")
    [state] = np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state))


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Pure noise (B, C, h, w) fp32 on the CPU, each picture's from its own seed."""
    return torch.stack([torch.randn(shape, generator=picture_generator(seed, INITIAL)) for seed in seeds])
