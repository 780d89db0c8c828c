"""Text as ink: how large a font draws it, its shape stretched and slanted, and its place in a picture.

A line is drawn once at `SUPERSAMPLING` times its size, cut to its ink, and mapped into the picture. Lengths are pixels,
x to the right and y down; angles are degrees.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw

from anytext_lcm.data.fonts import load_font

SUPERSAMPLING = 2  # text is drawn at this many times its size, then averaged
_BOX_TEXT = "bdfghjklpqyABCQ0"  # spans a font's box
_PLACES = 12  # random places that are tried for a line


@lru_cache(maxsize=8192)
def proportions(font: str, text: str) -> tuple[float, float, float, float]:
    """Height of the font's box, width and height of the text's ink, and advance of the text, each in em."""
    reference = 64
    drawn = load_font(font, reference)
    _, box_top, _, box_bottom = drawn.getbbox(_BOX_TEXT)
    left, top, right, bottom = drawn.getbbox(text)
    sizes = (box_bottom - box_top, right - left, bottom - top, drawn.getlength(text))
    return tuple(size / reference for size in sizes)


def draw_ink(text: str, font: str, size: int) -> np.ndarray:
    """The text at a font size of `size` pixels, cut to its ink: (h, w) uint8 coverage 0..255."""
    drawn = load_font(font, size)
    left, top, right, bottom = drawn.getbbox(text)
    layer = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4), 0)
    ImageDraw.Draw(layer).text((2 - left, 2 - top), text, font=drawn, fill=255)
    mask = np.asarray(layer)
    x, y, w, h = cv2.boundingRect(mask)
    return mask[y : y + h, x : x + w]


def ink_frame(mask: np.ndarray, width_factor: float, slant: float) -> tuple[np.ndarray, float, float]:
    """Stretch ink by `width_factor` and slant it by `slant` degrees, to the right if positive.

    mask: (h, w) uint8 of `draw_ink`. Returns the (2, 3) float map from its pixels to picture pixels around the middle
    of the ink, and the width and height of the ink in picture pixels.
    """
    lean = -np.tan(np.radians(slant))
    linear = np.array([[width_factor, lean], [0.0, 1.0]]) / SUPERSAMPLING
    rows = np.arange(len(mask))
    ink = mask > 64
    has_ink = ink.any(axis=1)
    first = ink.argmax(axis=1)[has_ink]
    last = mask.shape[1] - ink[:, ::-1].argmax(axis=1)[has_ink]
    rows = rows[has_ink] + 0.5
    left = (linear[0, 0] * first + linear[0, 1] * rows).min()
    right = (linear[0, 0] * last + linear[0, 1] * rows).max()
    width, height = right - left, len(mask) / SUPERSAMPLING
    offset = np.array([-(left + right) / 2, -height / 2])
    return np.column_stack([linear, offset]), float(width), float(height)


def place_ink(mask: np.ndarray, transform: np.ndarray, turn: np.ndarray, middle: np.ndarray, size: int) -> np.ndarray:
    """Draw ink into a picture: coverage (size, size) uint8 0..255, with smooth edges.

    mask (h, w) and transform (2, 3) of `ink_frame`; turn (2, 2) of `rotation`; middle (2,): x and y of the ink's
    middle.
    """
    linear = turn @ transform[:, :2]
    offset = turn @ transform[:, 2] + middle
    # Pixel i covers i..i+1, so centres are at +0.5 on both sides.
    linear, offset = linear * SUPERSAMPLING, offset * SUPERSAMPLING
    offset = offset + linear @ np.array([0.5, 0.5]) - 0.5
    large = cv2.warpAffine(mask, np.column_stack([linear, offset]), (size * SUPERSAMPLING, size * SUPERSAMPLING))
    return cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA)


def find_place(
    rng: np.random.Generator,
    size: int,
    taken: np.ndarray,
    width: float,
    height: float,
    slack: np.ndarray,
    turn: np.ndarray,
    gap: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Find a free place for a line in a picture of size x size, and mark it with a margin of `gap` pixels in `taken`.

    taken (size, size) uint8, nonzero where nothing may be; width and height of the line; slack (4,): how far its
    condition exceeds it left, top, right, bottom; turn (2, 2). Returns the middle of the ink (2,) float, the quad and
    the condition quad (4, 2) int32, clockwise from top left, or None if no place is found.
    """
    # Corners of text and condition around the middle of the ink, turned; then a place for the condition.
    left, top, right, bottom = -width / 2, -height / 2, width / 2, height / 2
    inner = corners(left, top, right, bottom)
    outer = corners(left - slack[0], top - slack[1], right + slack[2], bottom + slack[3])
    inner, outer = inner @ turn.T, outer @ turn.T
    free_low, free_high = 1 - outer.min(axis=0), size - 2 - outer.max(axis=0)
    if (free_low > free_high).any():
        return None
    for _ in range(_PLACES):
        middle = rng.uniform(free_low, free_high)
        condition_quad = np.rint(outer + middle).astype(np.int32)
        here = np.zeros_like(taken)
        cv2.fillPoly(here, [condition_quad.reshape(-1, 1, 2)], 1)
        if not (here & taken).any():
            break
    else:
        return None
    reach = int(np.ceil(gap)) * 2 + 1
    np.maximum(taken, cv2.dilate(here, np.ones((reach, reach), np.uint8)), out=taken)
    return middle, np.rint(inner + middle).astype(np.int32), condition_quad


def corners(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Corners (4, 2) of an upright box, clockwise from top left."""
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def rotation(degrees: float) -> np.ndarray:
    """Matrix (2, 2) of a rotation, clockwise on a picture, whose y points down."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, -sin], [sin, cos]])
