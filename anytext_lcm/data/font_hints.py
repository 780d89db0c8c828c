"""The font hint out of a picture: dark strokes under a line, which show the font without naming it.

For a known font (mock data, a user's choice) the hint is the placed glyph in that font, `glyphs.draw_placed_glyph`. For
AnyWord-3M it is cut out of the picture here, by the rules of `draw_font_hint` of AnyText2's t3_dataset.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from anytext_lcm.data.glyphs import rectangle

_WINDOW, _OFFSET = 11, 2  # of the adaptive threshold, pixels and grey values
# Bytes to 0..1 by way of -1..1, which loses one grey value here and there; the threshold sees it.
_THERE_AND_BACK = (np.arange(256, dtype=np.float32) / 127.5 - 1 + 1) / 2


@dataclass(frozen=True)
class Shake:
    """A small change of a crop: turned by `angle` degrees, shifted by x, y pixels, then scaled.

    Edges are repeated outwards. It keeps a model from copying the strokes where they stand.
    """

    angle: float
    x: float
    y: float
    scale: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Shake:
        """Draw within upstream's ranges: 10 degrees, 10 pixels and a tenth each way."""
        return cls(rng.uniform(-10, 10), rng.uniform(-10, 10), rng.uniform(-10, 10), rng.uniform(0.9, 1.1))


def hint_from_picture(
    picture: np.ndarray,
    polygon: np.ndarray,
    keep: float = 1.0,
    start: float = 0.5,
    shake: Shake | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Find the strokes within a polygon that are darker than their surroundings: (H, W) uint8, 0 or 255.

    Arguments
        picture  (H, W, 3) uint8 RGB
        polygon  (n, 2) int, x and y; what lies outside the picture is cut off. It is not changed (upstream does)
        keep     share of the long side that is kept; the rest is blacked out. Even at 1 a line one pixel wide
                 goes, because of how upstream fills polygons
        start    where the blackened piece starts, 0..1 of the way it can go
        shake    change of the crop before the threshold, None = none
        out      (H, W) uint8, the hints so far, to which this one is added; None: a new array
    """
    height, width = picture.shape[:2]
    polygon = np.clip(np.asarray(polygon), 0, (width - 1, height - 1)).astype(np.int32)
    x, y, w, h = cv2.boundingRect(polygon)
    mask = np.zeros((h, w), np.uint8)
    cv2.fillPoly(mask, [(polygon - (x, y)).reshape(-1, 1, 2)], 255)
    crop = picture[y : y + h, x : x + w]
    if shake is None:
        crop = cv2.LUT(crop, (_THERE_AND_BACK * 255).astype(np.uint8))
    else:
        crop = (_shaken(_THERE_AND_BACK[crop], shake) * 255).astype(np.uint8)
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    light = cv2.adaptiveThreshold(grey, 255, cv2.ADAPTIVE_THRESH_GAUSSIAN_C, cv2.THRESH_BINARY, _WINDOW, _OFFSET)
    cv2.fillPoly(mask, [_blackened(polygon, keep, start) - (x, y)], 0)
    hint = np.zeros((height, width), np.uint8) if out is None else out
    hint[y : y + h, x : x + w] |= mask & ~light
    return hint


def _blackened(polygon: np.ndarray, keep: float, start: float) -> np.ndarray:
    """Corners (4, 2) int32 of the piece of the smallest rectangle that is blacked out."""
    center, (w, h), angle = rectangle(polygon)
    radians = np.radians(angle)
    along = np.array([np.cos(radians), np.sin(radians)])
    if w < h:
        along = np.array([-along[1], along[0]])
    long_side, short_side = max(w, h), min(w, h)
    length = long_side * (1 - keep)
    first = np.asarray(center) - along * (long_side / 2 - start * (long_side - length))
    middle, half = first + along * (length / 2), along * (length / 2)
    across = np.array([-along[1], along[0]]) * (short_side / 2)
    corners = [middle - half - across, middle + half - across, middle + half + across, middle - half + across]
    return np.array(corners).astype(np.int32)


def _shaken(crop: np.ndarray, shake: Shake) -> np.ndarray:
    h, w = crop.shape[:2]
    for matrix in (
        cv2.getRotationMatrix2D((w / 2, h / 2), shake.angle, 1),
        np.float32([[1, 0, shake.x], [0, 1, shake.y]]),
    ):
        crop = cv2.warpAffine(crop, matrix, (w, h), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    # Upstream crops or pads by whole halves, which leaves a crop of an odd size a pixel short: sizes are kept here.
    wide, high = max(int(w * shake.scale), 1), max(int(h * shake.scale), 1)
    scaled = cv2.resize(crop, (wide, high), interpolation=cv2.INTER_LINEAR)
    left, top = max(wide - w, 0) // 2, max(high - h, 0) // 2
    scaled = scaled[top : top + h, left : left + w]
    pad_w, pad_h = w - scaled.shape[1], h - scaled.shape[0]
    return cv2.copyMakeBorder(
        scaled, pad_h // 2, pad_h - pad_h // 2, pad_w // 2, pad_w - pad_w // 2, cv2.BORDER_REPLICATE
    )
