"""The pictures that one condition leaves open: one text on one ground, in every font, width, slant and place.

A mock picture is drawn once and never again, so nobody can say which others its condition would have allowed. Here
they are all drawn, and with all of them known the best possible teacher is a formula (anytext_lcm/ideal.py).

May import: numpy, anytext_lcm.data.*.
"""

from dataclasses import dataclass

import numpy as np

from anytext_lcm.data import mock
from anytext_lcm.data.fonts import ITALIC_FONTS, PLAIN_FONT

SIZE = 128  # pixels
_WIDTHS = (0.95, 1.05)  # times the width for its height that the plain font's letters have
_SLANTS = (-4.0, 4.0)  # degrees; italic fonts stay as they are
_LAYER_EM = 80  # letters are drawn at this size and then scaled


@dataclass(frozen=True)
class Opening:
    """What a condition tells of a picture with one upright line in its middle, and how much of it stays open."""

    background: np.ndarray  # (SIZE, SIZE, 3) float32
    color: tuple[int, int, int]  # of the text
    text: str
    ink: tuple[float, float]  # width and height of the ink in the plain font, pixels
    reach: float  # how far the text's middle may lie from the picture's, pixels each way

    @property
    def polygon(self) -> np.ndarray:
        """(4, 2) int, around everything that the text may cover."""
        across, down = _widest(*self.ink) / 2 + self.reach + 3, self.ink[1] / 2 + self.reach + 3
        middle = SIZE / 2
        return np.rint(mock._corners(middle - across, middle - down, middle + across, middle + down)).astype(int)

    def pictures(self, spacing: float = 1.0) -> np.ndarray:
        """Every picture that fits, (K, SIZE, SIZE, 3) uint8: each font, width and slant in places `spacing` pixels
        apart. Raises ValueError for a spacing that is not positive.
        """
        if spacing <= 0:
            raise ValueError(f"Places {spacing} pixels apart cannot be drawn, give more than 0.")
        count = int(self.reach / spacing)
        offsets = spacing * np.arange(-count, count + 1)
        drawn = [
            coverage
            for font in mock._FONTS
            for width in _WIDTHS
            for slant in ((0.0,) if font in ITALIC_FONTS else _SLANTS)
            for coverage in self._coverages(font, width, slant, offsets)
        ]
        share = np.stack(drawn)[..., None].astype(np.float32) / 255
        return np.rint(self.background + share * (np.float32(self.color) - self.background)).astype(np.uint8)

    def _coverages(self, font: str, width: float, slant: float, offsets: np.ndarray) -> list[np.ndarray]:
        """The text in one shape, in every place: (SIZE, SIZE) uint8 each."""
        mask = mock._draw_ink(self.text, font, _LAYER_EM)
        _, own_width, own_height, _ = mock._proportions(font, self.text)
        factor = width * (self.ink[0] / self.ink[1]) / (own_width / own_height)
        transform, _, height = mock._ink_frame(mask, factor, slant)
        transform, turn, middle = transform * (self.ink[1] / height), mock._turn(0.0), SIZE / 2
        places = [np.array([middle + across, middle + down]) for down in offsets for across in offsets]
        return [mock._place_ink(mask, transform, turn, place, SIZE) for place in places]


def draw_opening(
    rng: np.random.Generator, reach: float = 1.0, heights: tuple[float, float] = (mock.MIN_HEIGHT, mock.MAX_HEIGHT)
) -> Opening:
    """An opening by the rules of the mock task, with a held-out text. heights: of the font's box, pixels, least and
    largest. Raises ValueError for a reach or heights with which no line fits.
    """
    if not 0 <= reach <= 16 or not 8 <= heights[0] <= heights[1] <= mock.MAX_HEIGHT:
        least, largest = heights
        raise ValueError(
            f"The reach must be 0..16 pixels, not {reach:g}, and heights rise within 8..{mock.MAX_HEIGHT:g} pixels, "
            f"not {least:g} to {largest:g}."
        )
    room = SIZE - 2 * (reach + 4)
    while True:
        name = mock._pick(rng, tuple(mock.COLORS))
        background, darkest, lightest = mock._background(rng, name, SIZE)
        _, color = mock._text_color(rng, name, darkest, lightest, None)
        text = mock._draw_text(rng, "test")
        box, width, height, advance = mock._proportions(PLAIN_FONT, text)
        # Letters as narrow for their height as the task allows, no wider than the picture.
        narrowest = mock.MIN_ADVANCE * (heights[0] / mock.MIN_HEIGHT) * len(text) / advance
        low, high = max(heights[0] / box, narrowest), min(heights[1] / box, room / _widest(width, height))
        if low < high:
            em = rng.uniform(low, high)
            return Opening(background, color, text, (width * em, height * em), reach)


def _widest(width: float, height: float) -> float:
    """Of ink of this width and height in the plain font, in the widest of its shapes."""
    return max(_WIDTHS) * width + np.tan(np.radians(max(_SLANTS))) * height
