"""Colours of a mock picture: named ones and their shades, how far two are apart, and text colours that stand out.

Colours are RGB 0..255, lumas 0..255.
"""

from __future__ import annotations

from collections.abc import Collection

import cv2
import numpy as np

from anytext_lcm.data.chance import pick

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (208, 40, 40),
    "green": (40, 150, 62),
    "blue": (40, 72, 200),
    "yellow": (246, 218, 60),
    "orange": (245, 138, 28),
    "purple": (130, 50, 160),
    "pink": (250, 162, 190),
    "brown": (122, 76, 40),
    "cyan": (60, 200, 220),
    "white": (248, 248, 248),
    "black": (20, 20, 20),
    "gray": (130, 130, 130),
}
"""Colour names of the captions and the RGB they stand for, before jitter."""

MIN_CONTRAST = 80.0  # luma between a text and anything of the ground behind it
ANY_COLOR = 0.5  # share of text lines of any colour; the others have a shade of a named one

TextColor = tuple[bool, str, tuple[int, int, int]]
"""Of a line: whether its colour is a shade of a named one, the (nearest) name, RGB."""


def draw_text_colors(
    rng: np.random.Generator, behind: np.ndarray, excluded: Collection[str], n_lines: int
) -> list[TextColor] | None:
    """Choose a colour for each of n_lines lines, at least MIN_CONTRAST in luma from all that is behind them.

    behind (n, 3): colours of the ground; excluded: names that may not be taken. Returns None where nothing stands out.
    """
    lumas = [luma(color) for color in behind]
    darkest, lightest = min(lumas) - MIN_CONTRAST, max(lumas) + MIN_CONTRAST
    found: list[TextColor] = []
    for _ in range(n_lines):
        if found and rng.random() < 0.4:
            found.append(found[0])
            continue
        named = rng.random() >= ANY_COLOR
        for _ in range(60):
            name = pick(rng, tuple(COLORS)) if named else ""
            color = np.rint(jitter(rng, name, 14) if named else rng.uniform(0, 255, 3))
            if name not in excluded and not darkest < luma(color) < lightest:
                break
        else:
            return None
        found.append((named, name or nearest_name(color), tuple(int(c) for c in color)))
    return found


def jitter(rng: np.random.Generator, name: str, amount: float) -> np.ndarray:
    """Choose a shade of a named colour, at most `amount` away: (3,) float. Greys vary in lightness, hardly in hue."""
    own = 4.0 if name in ("white", "gray", "black") else amount
    shift = rng.uniform(-amount, amount) * (1 - own / amount) + rng.uniform(-own, own, 3)
    return np.clip(np.asarray(COLORS[name]) + shift, 0, 255)


def luma(color: np.ndarray) -> float:
    """Compute the luma of an RGB colour (ITU-R BT.601)."""
    return float(0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2])


def lab_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Distance of two RGB colours (0..255) in CIELAB (CIE 1976)."""
    both = np.stack([np.asarray(first), np.asarray(second)]).astype(np.float32)[None] / 255
    lab = cv2.cvtColor(both, cv2.COLOR_RGB2LAB)[0]
    return float(np.linalg.norm(lab[0] - lab[1]))


def nearest_name(color: np.ndarray) -> str:
    """The name of COLORS that is nearest to an RGB colour in CIELAB."""
    return min(COLORS, key=lambda name: lab_distance(COLORS[name], color))
