"""Draw a text line twice, as AnyText2 needs it: upright in a fixed frame, and placed in its polygon.

The glyph line carries what is written: it goes through the recogniser into the line's embedding. The placed glyph
carries where and how large: it goes into the WriteNet. In a font of the user's choice it is also the font hint.
Geometry follows `draw_glyph` and `draw_glyph2` of AnyText2's t3_dataset.py, but for two things: a text that cannot be
drawn is an error here and a black picture there, and the angle of cv2.minAreaRect is brought to one convention (see
`rectangle`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from anytext_lcm.data.fonts import PLAIN_FONT, DrawingError, drawing_in, load_font, require_glyphs

GLYPH_LINE_SIZE = (80, 512)
"""Height and width of a glyph line in pixels, fixed because the recogniser's input is made of it."""

_MEASURE = 50  # font size at which a glyph line is measured before it is scaled to fit
_STEEP = 10.0  # degrees: a rectangle this upright, and not wider than high, gets its letters below each other
_MAX_GAP = 100  # spaces between two letters at most


def draw_glyph_line(text: str, font: str | Path = PLAIN_FONT) -> np.ndarray:
    """Draw the text centred and as large as fits: (80, 512) uint8, 0 or 1, without anti-aliasing.

    Raises DrawingError if the text is empty or the font lacks a character, FileNotFoundError if there is no such font.
    """
    return np.asarray(_glyph_line(text, font), dtype=np.uint8)


def draw_packed_glyph_line(text: str, font: str | Path = PLAIN_FONT) -> np.ndarray:
    """Draw the same as bits, (80, 64) uint8, as numpy.packbits makes them; Pillow keeps such a picture as bits."""
    height, width = GLYPH_LINE_SIZE
    return np.frombuffer(_glyph_line(text, font).tobytes(), np.uint8).reshape(height, width // 8)


def _glyph_line(text: str, font: str | Path) -> Image.Image:
    _require_text(text, font)
    height, width = GLYPH_LINE_SIZE
    with drawing_in(font, text):
        left, top, right, bottom = load_font(font, _MEASURE).getbbox(text)
        scale = min(0.9 * width / max(right - left, 5), 0.9 * height / max(bottom - top, 5))
        scaled = load_font(font, int(_MEASURE * scale))
        left, top, right, bottom = scaled.getbbox(text)
        canvas = Image.new("1", (width, height), 0)
        # Upstream centres with Pillow's former getsize, whose height counts from the drawing origin.
        x, y = (width - int(right - left)) // 2, (height - int(bottom)) // 2 - int(top) // 2
        ImageDraw.Draw(canvas).text((x, y), text, font=scaled, fill=1)
    return canvas


def draw_position(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Fill the polygon (n, 2) of x, y on a canvas of `size` = (height, width): (height, width) uint8, 0 or 1."""
    mask = np.zeros(size, dtype=np.uint8)
    cv2.fillPoly(mask, [np.asarray(polygon, dtype=np.int32).reshape(-1, 1, 2)], 1)
    return mask


def draw_placed_glyph(
    text: str,
    quad: np.ndarray,
    font: str | Path = PLAIN_FONT,
    size: tuple[int, int] = (512, 512),
    add_space: bool = True,
    out: np.ndarray | None = None,
    color: tuple[int, int, int] | None = None,
) -> np.ndarray:
    """Draw the text in white, as large as the polygon lets it, turned as the polygon is.

    Arguments
        text      1 character or more, all of which the font must hold
        quad      (n, 2), x and y in pixels; the smallest rectangle around it counts
        font      file or name of one of matplotlib's fonts
        size      height and width of the canvas in pixels
        add_space spread the letters over the long side by spaces between them
        out       zeros (height, width) uint8 to draw into, instead of a new array
        color     leave out the faint pixels that upstream loses in this colour, see `colored_support`

    Returns (height, width) uint8, 0..255. Raises DrawingError if the font lacks a character or the polygon is too small
    for a letter of one pixel, FileNotFoundError if there is no such font.
    """
    _require_text(text, font)
    frame = _Frame.around(_integer_polygon(quad))
    with drawing_in(font, text):
        fitted = load_font(font, _fitting_size(text, font, frame.long_side, frame.short_side))
        canvas = Image.new("L", (size[1], size[0]), 0)
        pen = ImageDraw.Draw(canvas)
        if frame.vertical:
            _draw_letters_below_each_other(pen, text, fitted, frame)
        else:
            if add_space and len(text) > 1:
                text = _spread(text, fitted, frame.long_side)
            left, top, right, bottom = fitted.getbbox(text)
            (cx, cy) = frame.center
            # The left bearing stays in, as upstream leaves it.
            pen.text((cx - (right - left) / 2, cy - (bottom - top) / 2 - top), text, font=fitted, fill=255)
            canvas = _turned(canvas, frame)
    if out is None:
        return colored_support(np.array(canvas), color)
    if (box := canvas.getbbox()) is not None:  # most of the canvas is empty
        left, top, right, bottom = box
        out[top:bottom, left:right] = colored_support(np.asarray(canvas.crop(box)), color)
    return out


@dataclass(frozen=True)
class _Frame:
    """Where a text goes: the smallest rectangle around its polygon, in pixels, and how it lies."""

    center: tuple[float, float]
    long_side: float
    short_side: float
    angle: float  # degrees, counter-clockwise as Pillow turns; OpenCV's are clockwise
    corner: tuple[int, int]  # top left of the upright box around the rectangle
    width: int  # of that box
    vertical: bool  # the letters stand below each other

    @classmethod
    def around(cls, polygon: np.ndarray) -> _Frame:
        """Frame a polygon (n, 2) int32."""
        center, (w, h), degrees = rectangle(polygon)
        angle = -degrees + (90.0 if w < h else 0.0)
        corners = cv2.boxPoints((center, (w, h), degrees)).astype(np.int64)
        low, high = corners.min(axis=0), corners.max(axis=0)
        box_w, box_h = (high - low).tolist()
        from_axis = abs(angle) % 90.0
        vertical = min(from_axis, 90.0 - from_axis) < _STEEP and box_h >= box_w
        return cls(center, max(w, h), min(w, h), angle, tuple(low.tolist()), box_w, vertical)


def _turned(canvas: Image.Image, frame: _Frame) -> Image.Image:
    """The canvas turned around the middle of the frame, cut to its own size."""
    if frame.angle == 0.0:
        return canvas
    turned = canvas.rotate(frame.angle, expand=True, center=frame.center)
    cut = Image.new("L", canvas.size, 0)
    cut.paste(turned, (int((canvas.width - turned.width) / 2), int((canvas.height - turned.height) / 2)))
    return cut


def colored_support(placed: np.ndarray, color: tuple[int, int, int] | None) -> np.ndarray:
    """Remove the faint pixels of a placed glyph (H, W) uint8 that upstream loses when it draws in colour.

    Upstream multiplies the coverage by the colour (each channel at least 10) in 8 bits, and the network takes what
    becomes 0 for no glyph. None: white, which loses nothing.
    """
    if color is None:
        return placed
    strongest = min(max(max(color), 10), 255)
    return cv2.threshold(placed, 127 // strongest, 0, cv2.THRESH_TOZERO)[1]


def _require_text(text: str, font: str | Path) -> None:
    if not text:
        raise DrawingError("The text of a line is empty: give at least one character (a space draws nothing).")
    require_glyphs(font, text)


def _integer_polygon(polygon: np.ndarray) -> np.ndarray:
    polygon = np.asarray(polygon)
    if polygon.ndim != 2 or polygon.shape[1] != 2 or len(polygon) < 3:
        raise ValueError(f"A polygon needs 3 or more (x, y) points, this one has shape {polygon.shape}.")
    return polygon.astype(np.int32)


def rectangle(polygon: np.ndarray) -> tuple[tuple[float, float], tuple[float, float], float]:
    """Find the smallest rectangle around a polygon: centre, (width, height), angle in (0, 90] degrees, clockwise.

    As cv2.minAreaRect of OpenCV 4; OpenCV 5 returns angles in [-90, 0), with which upstream's rules turn horizontal
    text upright.
    """
    (cx, cy), (w, h), degrees = cv2.minAreaRect(polygon)
    while degrees <= 0:
        degrees, w, h = degrees + 90.0, h, w
    return (cx, cy), (w, h), degrees


def _fitting_size(text: str, font: str | Path, long_side: float, short_side: float) -> int:
    """Font size in pixels: upstream's bisection with its float upper end, which stops about a pixel early."""
    low, high = 1.0, short_side
    while low < high:
        middle = (low + high) // 2
        left, top, right, bottom = load_font(font, max(int(middle), 1)).getbbox(text)
        if right - left <= long_side and bottom - top <= short_side:
            low = middle + 1
        else:
            high = middle
    size = int(high - 1)
    if size < 1:
        raise DrawingError(
            f"The polygon of {text!r} is {long_side:.0f} x {short_side:.0f} pixels, too small for a letter: "
            "enlarge it or shorten the text."
        )
    return size


def _spread(text: str, font, long_side: float) -> str:
    """Put as many spaces between the letters as the long side takes."""
    # Each space adds the same to the width, so two measurements estimate how many fit, and the count goes on from
    # there. (Upstream counts from one.)

    def width(count: int) -> float:
        left, _, right, _ = font.getbbox((" " * count).join(text))
        return right - left

    one = width(1)
    if one > long_side:
        return text
    step = max(width(2) - one, 1)
    count = min(1 + int((long_side - one) // step), _MAX_GAP)
    while count > 1 and width(count) > long_side:
        count -= 1
    while count < _MAX_GAP and width(count + 1) <= long_side:
        count += 1
    return (" " * count).join(text)


def _draw_letters_below_each_other(pen: ImageDraw.ImageDraw, text: str, font, frame: _Frame) -> None:
    heights = [bottom - top for _, top, _, bottom in map(font.getbbox, text)]
    gap = 0.0
    if len(text) > 1 and sum(heights) < frame.long_side:
        gap = (frame.long_side - sum(heights)) // (len(text) - 1)
    _, top, _, bottom = font.getbbox(text)
    x, y = frame.corner[0] + frame.width // 2 - (bottom - top) // 2, float(frame.corner[1])
    for letter, height in zip(text, heights, strict=True):
        pen.text((x, y), letter, font=font, fill=255)
        y += height + gap
