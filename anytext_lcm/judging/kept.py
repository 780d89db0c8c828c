"""Is a picture kept where it must not be changed?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def kept_outside(
    drawn: Sequence[np.ndarray], originals: Sequence[np.ndarray], holes: Sequence[np.ndarray]
) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of each drawn picture outside its holes: (pictures,) float, inf where equal.

    drawn and originals (H, W, 3) uint8 RGB; holes (H, W), other than 0 where the picture may change. Raises ValueError
    where the sequences differ in length or sizes, or where a hole is the whole picture.
    """
    values = []
    for picture, original, hole in zip(drawn, originals, holes, strict=True):
        if picture.shape != original.shape or picture.shape[:2] != np.shape(hole):
            raise ValueError(f"Picture {picture.shape}, original {original.shape} and hole {np.shape(hole)} differ.")
        kept = np.asarray(hole) == 0
        if not kept.any():
            raise ValueError("The hole is the whole picture: there is nothing to keep.")
        error = np.square(picture[kept].astype(np.float64) - original[kept]).mean()
        values.append(np.inf if error == 0 else 10 * np.log10(255**2 / error))
    return np.array(values)
