"""How a picture of any shape becomes a square one, and where its lines go.

Upstream resizes without regard to the aspect ("stretch"): letters of a picture of 3:2 become 1.5 times as narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

FITS = ("stretch", "crop", "pad")
KEPT_SHARE = 0.9
"""A line that is cut by more than the rest of its bounding box is no longer what its text says."""

PADDING = 127  # grey level; the loss does not look there


@dataclass(frozen=True)
class Placing:
    """A point (x, y) of the file goes to scale * point + shift, in pixels of the square of `side`."""

    scale: np.ndarray  # (2,)
    shift: np.ndarray  # (2,)
    side: int

    def points(self, points: np.ndarray) -> np.ndarray:
        """(n, 2) int32 of the file -> of the square."""
        if (self.scale == 1).all() and not self.shift.any():
            return points
        return np.rint(points * self.scale + self.shift).astype(np.int32)

    def cuts(self, points: np.ndarray) -> bool:
        """Whether more than 1 - KEPT_SHARE of the bounding box of points in the square lies outside of it."""
        low, high = points.min(axis=0), points.max(axis=0)
        inside = np.clip(high, 0, self.side) - np.clip(low, 0, self.side)
        return bool(inside.prod() < KEPT_SHARE * (high - low).prod())


def place_picture(
    picture: np.ndarray, side: int, fit: str = "stretch", focus: Sequence[np.ndarray] = ()
) -> tuple[np.ndarray, Placing, list[np.ndarray]]:
    """Make a square picture (side, side, 3) of one (H, W, 3) uint8; also returns where points go, and what is padding.

    fit    "stretch": each side for itself; "crop": the longer side is cut; "pad": grey bars beside the shorter side
    focus  polygons (n, 2) that a crop keeps in its middle as far as it can; without any it keeps the picture's middle

    The padding is polygons (4, 2) int32 in the square. Raises ValueError for another fit.
    """
    if fit not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, not {fit!r}.")
    height, width = picture.shape[:2]
    if height == width or fit == "stretch":
        scale = np.array([side / width, side / height])
        return _resize(picture, (side, side)), Placing(scale, np.zeros(2), side), []
    if fit == "crop":
        short = min(height, width)
        points = np.concatenate(focus) if len(focus) else np.array([[0, 0], [width, height]])
        middle = (points.min(axis=0) + points.max(axis=0)) / 2
        left, top = np.clip(np.rint(middle - short / 2), 0, [width - short, height - short]).astype(int)
        cropped = picture[top : top + short, left : left + short]
        scale = side / short
        shift = -scale * np.array([left, top])
        return _resize(cropped, (side, side)), Placing(np.full(2, scale), shift, side), []
    scale = side / max(height, width)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (side - inner[0]) // 2, (side - inner[1]) // 2
    right, bottom = left + inner[0], top + inner[1]
    square = np.full((side, side, 3), PADDING, np.uint8)
    square[top:bottom, left:right] = _resize(picture, inner)
    last = side - 1
    bars = [(0, 0, left - 1, last), (right, 0, last, last), (0, 0, last, top - 1), (0, bottom, last, last)]
    padding = [np.array([[a, b], [c, b], [c, d], [a, d]], np.int32) for a, b, c, d in bars if a <= c and b <= d]
    exact = np.array([inner[0] / width, inner[1] / height])
    return square, Placing(exact, np.array([left, top], float), side), padding


def _resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if picture.shape[1::-1] == size:
        return picture
    return cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
