"""Drawing a text line twice, as AnyText2 wants it: upright in a fixed frame, and placed in its polygon.

The glyph line says what is written (it goes through the recogniser into the line's embedding); the placed
glyph says where and how large (it goes into the WriteNet). The same placed glyph, in a font of the user's
choice, is the font hint. Geometry follows `draw_glyph` and `draw_glyph2` of AnyText2's t3_dataset.py; two
things differ on purpose: a text that cannot be drawn is an error here and a black image there, and the angle
of cv2.minAreaRect is brought to one convention (see `rectangle`).

May import: numpy, cv2, Pillow, anytext_lcm.data.fonts.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from anytext_lcm.data.fonts import PLAIN_FONT, DrawingError, load_font, require_glyphs

GLYPH_LINE_SIZE = (80, 512)
"""Height and width of a glyph line; the recogniser's input is made from it, so it is not free."""

_MEASURE = 50  # font size at which a glyph line is measured before it is scaled to fit
_STEEP = 10.0  # degrees: a rectangle this upright, and not wider than high, gets its letters below each other
_MAX_GAP = 100  # spaces between two letters at most


def draw_glyph_line(text: str, font: str | Path = PLAIN_FONT) -> np.ndarray:
    """The text drawn as large as fits and centred: (80, 512) uint8, 0 or 1, without anti-aliasing."""
    return np.asarray(_glyph_line(text, font), dtype=np.uint8)


def draw_packed_glyph_line(text: str, font: str | Path = PLAIN_FONT) -> np.ndarray:
    """The same as bits, (80, 64) uint8, as numpy.packbits makes them: how Pillow keeps such a picture anyway."""
    height, width = GLYPH_LINE_SIZE
    return np.frombuffer(_glyph_line(text, font).tobytes(), np.uint8).reshape(height, width // 8)


def _glyph_line(text: str, font: str | Path) -> Image.Image:
    _require_text(text, font)
    height, width = GLYPH_LINE_SIZE
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
    """The filled polygon (n, 2) of x, y on a canvas of `size` = (height, width): uint8, 0 or 1."""
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
    """The text in white, as large as the polygon lets it, turned as the polygon is.

    Arguments
        text      1 character or more, all of which the font must hold
        quad      (n, 2) x, y; what counts is the smallest rectangle around it
        font      file or name of one of matplotlib's fonts
        size      height and width of the canvas
        add_space spread the letters over the long side by spaces between them
        out       zeros (height, width) uint8 to draw into, instead of a new array
        color     leave out the faint pixels that upstream loses in this colour, see `colored_support`

    Returns (height, width) uint8, 0..255. Raises DrawingError if the font lacks a character or the polygon is
    too small for a letter of one pixel, FileNotFoundError if there is no such font.
    """
    _require_text(text, font)
    quad = _integer_polygon(quad)
    (cx, cy), (w, h), degrees = rectangle(quad)
    long_side, short_side = max(w, h), min(w, h)
    angle = -degrees + (90.0 if w < h else 0.0)  # Pillow turns counter-clockwise, OpenCV clockwise

    corners = cv2.boxPoints(((cx, cy), (w, h), degrees)).astype(np.int64)
    box_x, box_y = int(corners[:, 0].min()), int(corners[:, 1].min())
    box_w, box_h = int(corners[:, 0].max()) - box_x, int(corners[:, 1].max()) - box_y
    from_axis = abs(angle) % 90.0
    vertical = min(from_axis, 90.0 - from_axis) < _STEEP and box_h >= box_w

    fitted = load_font(font, _fitting_size(text, font, long_side, short_side))
    canvas = Image.new("L", (size[1], size[0]), 0)
    pen = ImageDraw.Draw(canvas)
    if vertical:
        angle = 0.0
        _draw_letters_below_each_other(pen, text, fitted, box_x, box_y, box_w, long_side)
    else:
        if add_space and len(text) > 1:
            text = _spread(text, fitted, long_side)
        left, top, right, bottom = fitted.getbbox(text)
        # The left bearing stays in, as upstream leaves it.
        pen.text((cx - (right - left) / 2, cy - (bottom - top) / 2 - top), text, font=fitted, fill=255)

    if angle != 0.0:
        turned = canvas.rotate(angle, expand=True, center=(cx, cy))
        canvas = Image.new("L", canvas.size, 0)
        x, y = int((canvas.width - turned.width) / 2), int((canvas.height - turned.height) / 2)
        canvas.paste(turned, (x, y))
    if out is None:
        return colored_support(np.array(canvas), color)
    if (box := canvas.getbbox()) is not None:  # most of the canvas is empty
        left, top, right, bottom = box
        out[top:bottom, left:right] = colored_support(np.asarray(canvas.crop(box)), color)
    return out


def colored_support(placed: np.ndarray, color: tuple[int, int, int] | None) -> np.ndarray:
    """A placed glyph without the faint pixels that upstream loses when it draws in colour: (H, W) uint8.

    Upstream multiplies the coverage with the colour (each channel at least 10) in 8 bits, and what becomes 0 is no
    glyph for the network, which asks for pixels other than 0. None: white, which loses nothing.
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
    """cv2.minAreaRect with the angle in (0, 90], clockwise.

    OpenCV 5 gives [-90, 0) instead, with which upstream's rules turn horizontal text upright.
    """
    (cx, cy), (w, h), degrees = cv2.minAreaRect(polygon)
    while degrees <= 0:
        degrees, w, h = degrees + 90.0, h, w
    return (cx, cy), (w, h), degrees


def _fitting_size(text: str, font: str | Path, long_side: float, short_side: float) -> int:
    """Upstream's bisection, with its float upper end; it ends a pixel or so below the largest fit."""
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
    """As many spaces between the letters as the long side takes.

    Each space more adds the same to the width, so two measurements tell about how many go in; then they are counted
    from there. (Upstream counts from one.)
    """

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


def _draw_letters_below_each_other(
    pen: ImageDraw.ImageDraw, text: str, font, box_x: int, box_y: int, box_w: int, long_side: float
) -> None:
    heights = [bottom - top for _, top, _, bottom in map(font.getbbox, text)]
    gap = 0.0
    if len(text) > 1 and sum(heights) < long_side:
        gap = (long_side - sum(heights)) // (len(text) - 1)
    _, top, _, bottom = font.getbbox(text)
    x, y = box_x + box_w // 2 - (bottom - top) // 2, float(box_y)
    for letter, height in zip(text, heights, strict=True):
        pen.text((x, y), letter, font=font, fill=255)
        y += height + gap
