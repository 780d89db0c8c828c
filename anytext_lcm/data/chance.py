"""A choice from a random generator."""

from __future__ import annotations

from typing import Any

import numpy as np


def pick(rng: np.random.Generator, options: tuple) -> Any:
    """Choose one of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]
