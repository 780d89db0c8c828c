"""What is behind the text of a mock picture: named colours, patterns and objects; and a text colour that stands out.

Colours are RGB 0..255, lumas 0..255, lengths pixels. A picture is size x size; scale is size / 128.
"""

from __future__ import annotations

import cv2
import numpy as np

from anytext_lcm.data.layout import GAP, pick

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

SHAPES = ("circle", "square", "triangle")
PATTERNS = ("plain", "gradient", "stripes", "checker", "blotches")
MIN_CONTRAST = 80.0  # luma between a text and anything of the background behind it


def draw_background(rng: np.random.Generator, name: str, size: int) -> tuple[np.ndarray, float, float]:
    """Draw a named colour with a faint pattern, (size, size, 3) float32; also returns its darkest and lightest luma."""
    base = jitter(rng, name, 12)
    kind = pick(rng, PATTERNS)
    if kind == "plain":
        image = np.empty((size, size, 3), np.float32)
        image[:] = base
        return image, luma(base), luma(base)
    # One amplitude for all channels and a little of its own for each: lighter or darker, hardly another hue.
    delta = rng.choice((-1.0, 1.0)) * rng.uniform(7, 15) + rng.uniform(-2, 2, 3)
    pattern = _pattern(rng, kind, size)
    image = np.clip(base + pattern[..., None] * delta.astype(np.float32), 0, 255)
    ends = luma(np.clip(base - delta, 0, 255)), luma(np.clip(base + delta, 0, 255))
    return image, min(ends), max(ends)


def _pattern(rng: np.random.Generator, kind: str, size: int) -> np.ndarray:
    """(size, size) float32 within -1..1."""
    if kind == "blotches":
        coarse = rng.uniform(-1, 1, (5, 5)).astype(np.float32)
        return np.clip(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), -1, 1)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    angle = rng.uniform(0, 2 * np.pi)
    if kind == "checker":
        period, shift = rng.uniform(0.25, 0.5), rng.uniform(0, 1, 2)
        across, down = (soft_square(axis / period + offset, size * period) for offset in shift)
        return down[:, None] * across[None, :]
    ramp = np.cos(angle) * (axis[None, :] - 0.5) + np.sin(angle) * (axis[:, None] - 0.5)
    if kind == "gradient":
        return (ramp / np.abs(ramp).max()).astype(np.float32)
    period = rng.uniform(0.14, 0.35)
    return soft_square(ramp / period + rng.uniform(), size * period)


def soft_square(phase: np.ndarray, period_pixels: float) -> np.ndarray:
    """Compute a square wave within -1..1 of `phase` (period 1), float32, whose edges are about 2 pixels wide."""
    steepness = max(period_pixels / 4.0, 1.0)
    triangle = 4 * np.abs(phase - np.floor(phase + 0.5)) - 1
    return np.clip(triangle * steepness, -1, 1).astype(np.float32)


def draw_objects(
    rng: np.random.Generator, background: np.ndarray, taken: np.ndarray, background_name: str, scale: float
) -> tuple[np.ndarray, tuple[tuple[str, str], ...]]:
    """Draw up to two objects beside the text, partly outside the picture at times.

    taken (size, size) uint8, 1 where text is. Returns the picture (size, size, 3) uint8, and colour name and shape of
    each object.
    """
    size = len(taken)
    canvas = np.rint(background).astype(np.uint8)
    reach = int(np.ceil(2 * GAP * scale)) | 1
    taken = cv2.dilate(taken, np.ones((reach, reach), np.uint8))
    objects = []
    for _ in range(int(rng.choice(3, p=(0.3, 0.4, 0.3)))):
        name = pick(rng, tuple(color for color in COLORS if _distance(color, background_name) > 90))
        shape = pick(rng, SHAPES)
        for _attempt in range(12):
            radius = rng.uniform(9, 24) * scale
            x, y = rng.uniform(0.2 * radius, size - 0.2 * radius, 2)
            left, top = max(int(x - radius), 0), max(int(y - radius), 0)
            right, bottom = int(x + radius) + 2, int(y + radius) + 2
            if not taken[top:bottom, left:right].any():
                color = jitter(rng, name, 12)
                draw_shape(canvas, shape, x, y, radius, tuple(float(channel) for channel in color))
                taken[top:bottom, left:right] = 1
                objects.append((name, shape))
                break
    return canvas, tuple(objects)


def draw_shape(
    canvas: np.ndarray, shape: str, x: float, y: float, radius: float, color: tuple[float, float, float]
) -> None:
    """Draw one of SHAPES with its middle at x, y into canvas (H, W, 3) uint8, with smooth edges."""
    fixed = 16  # cv2 takes fixed-point coordinates, here 1/16 pixel, for smooth edges
    if shape == "circle":
        center = (round(x * fixed), round(y * fixed))
        cv2.circle(canvas, center, round(radius * fixed), color, -1, cv2.LINE_AA, 4)
        return
    half = 0.87 * radius
    corners = {
        "square": ((-half, -half), (half, -half), (half, half), (-half, half)),
        "triangle": ((0.0, -radius), (0.95 * radius, 0.75 * radius), (-0.95 * radius, 0.75 * radius)),
    }[shape]
    points = np.rint((np.asarray(corners) + (x, y)) * fixed).astype(np.int32)
    cv2.fillPoly(canvas, [points.reshape(-1, 1, 2)], color, cv2.LINE_AA, 4)


def pick_text_color(
    rng: np.random.Generator,
    background_name: str,
    darkest: float,
    lightest: float,
    previous: tuple[str, tuple[int, int, int]] | None,
) -> tuple[str, tuple[int, int, int]]:
    """Choose a named colour that is MIN_CONTRAST away from darkest..lightest luma: its name and RGB.

    previous: name and RGB of the line before, which are often taken again.
    """
    if previous is not None and rng.random() < 0.4:
        return previous
    names = [name for name in COLORS if name != background_name]
    rng.shuffle(names)
    for _ in range(8):
        for name in names:
            color = np.rint(jitter(rng, name, 14))
            if not darkest - MIN_CONTRAST <= luma(color) <= lightest + MIN_CONTRAST:
                return name, (int(color[0]), int(color[1]), int(color[2]))
    # Black or white is 80 away from everything, so this is not reached with the colours above.
    raise RuntimeError(f"No text colour stands out from luma {darkest:.0f}..{lightest:.0f}.")


def jitter(rng: np.random.Generator, name: str, amount: float) -> np.ndarray:
    """Choose a shade of a named colour, at most `amount` away: (3,) float. Greys vary in lightness, hardly in hue."""
    own = 4.0 if name in ("white", "gray", "black") else amount
    shift = rng.uniform(-amount, amount) * (1 - own / amount) + rng.uniform(-own, own, 3)
    return np.clip(np.asarray(COLORS[name]) + shift, 0, 255)


def luma(color: np.ndarray) -> float:
    """Compute the luma of an RGB colour (ITU-R BT.601)."""
    return float(0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2])


def _distance(first: str, second: str) -> float:
    return float(np.linalg.norm(np.subtract(COLORS[first], COLORS[second])))
