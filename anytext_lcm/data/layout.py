"""The lines of a mock picture: in which font, size and angle, and where they are. `strings.py` has what they say.

Constants are pixels of a 128-pixel picture and scale with the picture. Angles are degrees, clockwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from anytext_lcm.data.fonts import ITALIC_FONTS, PLAIN_FONT, covers
from anytext_lcm.data.ink import SUPERSAMPLING, draw_ink, find_place, ink_frame, place_ink, proportions, rotation
from anytext_lcm.data.strings import draw_text

MIN_HEIGHT, MAX_HEIGHT = 30.0, 46.0  # of the font's box, ascender to descender
MAX_HEIGHT_OF_TWO = 34.0  # where a picture has two lines
MIN_ADVANCE = 16.0  # a character's width on average; narrower ones do not survive an 8 x 8 autoencoder
MAX_SLACK = 2.0  # how far the condition polygon may exceed the text on each side
MAX_ANGLE, MAX_SLANT = 18.0, 6.0  # of a turned line, and of upright fonts
MIN_ASPECT = 1.3  # width to height of a line; squarer polygons are taken for vertical text
MARGIN = 1.0  # of the text quad around the ink
GAP = 3.0  # between lines, and between text and objects
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSans-BoldOblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "cmss10.ttf",
    "STIXGeneralBol.ttf",
)
"""Two weights, serifs or none, upright or oblique: enough to leave open, few enough for a network of 7 million weights.
Left out: monospaced letters, which stand far from the plain font's, and the thin and cursive ones."""


@dataclass(frozen=True)
class Block:
    """A line that has its place in a picture of size x size pixels."""

    text: str
    font: str
    font_height: float  # of the font's box, pixels
    angle: float  # degrees, clockwise
    coverage: np.ndarray  # (size, size) uint8, how much of a pixel is text
    quad: np.ndarray  # (4, 2) int32, around the ink, clockwise from top left
    condition_quad: np.ndarray  # (4, 2) int32, the same with slack
    language: str = "Latin"


def place_lines(
    rng: np.random.Generator, size: int, max_lines: int, split: str
) -> tuple[list[Block], np.ndarray] | None:
    """Draw one or two lines of a picture of size x size and place them, as `place_all`."""
    n_lines = 2 if max_lines > 1 and rng.random() < 0.35 else 1
    return place_all(n_lines, size, lambda taken: place_line(rng, size, split, taken, n_lines))


def place_all(
    n_lines: int, size: int, place: Callable[[np.ndarray], Block | None]
) -> tuple[list[Block], np.ndarray] | None:
    """Place n_lines lines so that they do not overlap: from top to bottom, with the mask of what they take.

    place gets the mask (size, size) uint8 of what is taken, marks in it what its line takes, and returns None if the
    line has no place; then the whole is None.
    """
    blocks: list[Block] = []
    taken = np.zeros((size, size), np.uint8)
    for _ in range(n_lines):
        block = place(taken)
        if block is None:
            return None
        blocks.append(block)
    return sorted(blocks, key=lambda block: float(block.quad[:, 1].mean())), taken


def place_line(rng: np.random.Generator, size: int, split: str, taken: np.ndarray, n_lines: int) -> Block | None:
    """Draw text, font, size, angle and place; None if it cannot be placed. Marks what it takes in `taken`.

    taken (size, size) uint8, nonzero where nothing may be; n_lines: how many lines the picture has in all.
    """
    scale = size / 128.0
    text = draw_text(rng, split)
    fonts = [font for font in FONTS if covers(font, text)]
    font = fonts[int(rng.integers(len(fonts)))]
    slant = 0.0 if font in ITALIC_FONTS else rng.uniform(-MAX_SLANT, MAX_SLANT)
    angle = rng.uniform(-MAX_ANGLE, MAX_ANGLE) if rng.random() < 0.3 else 0.0
    slack = rng.uniform(0, MAX_SLACK * scale, 4)  # left, top, right, bottom

    box, ink_width, ink_height, _ = proportions(font, text)
    # About as wide for its height as in the plain font, so that the placed glyph's letters are near the picture's.
    _, plain_width, plain_height, _ = proportions(PLAIN_FONT, text)
    width_factor = rng.uniform(0.92, 1.08) * (plain_width / plain_height) / (ink_width / ink_height)
    if ink_width * width_factor < MIN_ASPECT * ink_height:
        return None
    sizes = _font_sizes(text, font, width_factor, slant, angle, size, MAX_HEIGHT if n_lines == 1 else MAX_HEIGHT_OF_TWO)
    if not sizes:
        return None
    layer_em = int(rng.integers(sizes.start, sizes.stop, size=2).max())  # rather large than small

    mask = draw_ink(text, font, layer_em)
    transform, width, height = ink_frame(mask, width_factor, slant)
    width, height = width + 2 * MARGIN * scale, height + 2 * MARGIN * scale
    if width + slack[0] + slack[2] < MIN_ASPECT * (height + slack[1] + slack[3]):
        return None

    turn = rotation(angle)
    placed = find_place(rng, size, taken, width, height, slack, turn, GAP * scale)
    if placed is None:
        return None
    middle, quad, condition_quad = placed
    return Block(
        text=text,
        font=font,
        font_height=round(layer_em / SUPERSAMPLING * box, 2),
        angle=round(float(angle), 2),
        coverage=place_ink(mask, transform, turn, middle, size),
        quad=quad,
        condition_quad=condition_quad,
    )


def _font_sizes(
    text: str, font: str, width_factor: float, slant: float, angle: float, size: int, max_height: float
) -> range:
    """Font sizes, of the enlarged layer, that font's box, advance of a character and picture allow; maybe none."""
    scale = size / 128.0
    box, ink_width, ink_height, advance = proportions(font, text)
    cos, sin = abs(np.cos(np.radians(angle))), abs(np.sin(np.radians(angle)))
    room = size - 2.0 * (MARGIN + MAX_SLACK + 1) * scale
    lean = np.tan(np.radians(abs(slant))) * ink_height
    widest = room / ((ink_width * width_factor + lean) * cos + ink_height * sin)
    low = max(MIN_HEIGHT * scale / box, MIN_ADVANCE * scale * len(text) / (advance * width_factor))
    high = min(max_height * scale / box, widest)
    return range(int(np.ceil(low * SUPERSAMPLING)), int(high * SUPERSAMPLING) + 1)
