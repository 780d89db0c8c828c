"""Position masks and what follows from them: jitter, ignored regions, the picture with holes.

All masks are uint8, 0 or 1, and nothing is changed in place. The rules are those of AnyText2's t3_dataset.py
(`draw_pos`, `draw_inv_mask`, `get_hint`), which works in float64 and returns (H, W, 1).
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from anytext_lcm.data.glyphs import draw_position, rectangle

SMALL_SIDE = 20 / 512
"""A polygon with a side shorter than this share of the picture is not eroded: nothing might be left."""

_KERNEL = np.ones((3, 3), np.uint8)


def jitter_position(mask: np.ndarray, polygon: np.ndarray, draw: float) -> np.ndarray:
    """Grow or shrink a position mask a little, so that a model does not rely on exact polygons.

    Arguments
        mask     (H, W) uint8 0/1, the filled polygon
        polygon  (n, 2) int, x and y, whose smallest rectangle decides whether the line is small
        draw     uniform in 0..1: below 0.7 nothing changes, then dilate, erode (each 0.1), dilate twice,
                 erode twice (each 0.05), by 3 x 3

    A small line is not eroded. As in upstream, its draws of "erode" fall through to "dilate twice".
    """
    if draw < 0.7:
        return mask
    (_, (w, h), _) = rectangle(polygon)
    small = min(w, h) < SMALL_SIDE * mask.shape[0]
    if draw < 0.8:
        return cv2.dilate(mask, _KERNEL)
    if draw < 0.9 and not small:
        return cv2.erode(mask, _KERNEL)
    if draw < 0.95:
        return cv2.dilate(mask, _KERNEL, iterations=2)
    return mask if small else cv2.erode(mask, _KERNEL, iterations=2)


def union(masks: np.ndarray) -> np.ndarray:
    """Join masks (n, H, W): (1, H, W), 1 where any of them is. (Upstream sums and clips to 0..1.)"""
    return masks.max(axis=0, keepdims=True)


def ignore_mask(polygons: Iterable[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Draw the mask of what the loss must not count: (1, H, W), 1 inside the polygons; size = (H, W)."""
    # Upstream appends to the record's own list, so each epoch ignores more than the one before.
    mask = np.zeros(size, np.uint8)
    for polygon in polygons:
        np.maximum(mask, draw_position(polygon, size), out=mask)
    return mask[None]


def cut_holes(image: np.ndarray, hint: np.ndarray) -> np.ndarray:
    """Make the picture of editing mode: (3, H, W) float32 -1..1 with -1 where hint (1, H, W) is 1."""
    return np.where(hint == 1, np.float32(-1), np.clip(image, -1, 1)).astype(np.float32)
