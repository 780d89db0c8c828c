"""Objects of a mock picture: bold circles, squares and triangles beside the text, of colours that the ground lacks.

Lengths are pixels of a 128-pixel picture and scale with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from anytext_lcm.data.chance import pick
from anytext_lcm.data.colours import COLORS, jitter, lab_distance
from anytext_lcm.data.grounds import Ground
from anytext_lcm.data.layout import GAP

SHAPES = ("circle", "square", "triangle")
COUNT_SHARES = (0.1, 0.5, 0.4)  # of pictures with no, one and two objects
SMALLEST, LARGEST = 14.0, 32.0  # radius of an object: a fifth to a half of the side across
APART = 42.0  # distance in CIELAB of an object's colour from all of the ground


@dataclass(frozen=True)
class Placed:
    """An object where it was drawn: middle and radius in pixels, as `draw_shape` takes them."""

    name: str  # of its colour
    shape: str
    color: tuple[float, float, float]  # RGB 0..255
    x: float
    y: float
    radius: float


def place_objects(rng: np.random.Generator, ground: Ground, taken: np.ndarray) -> list[Placed]:
    """Choose up to two objects and places for them; fewer where there is no place or no colour that stands out.

    taken: (size, size) uint8, 1 where nothing may be; it gets 1 where the objects are.
    """
    placed: list[Placed] = []
    for _ in range(int(rng.choice(len(COUNT_SHARES), p=COUNT_SHARES))):
        thing = _place_object(rng, ground, taken, placed)
        if thing is None:
            break
        placed.append(thing)
    return placed


def _place_object(rng: np.random.Generator, ground: Ground, taken: np.ndarray, others: list[Placed]) -> Placed | None:
    """A shape of another colour than all that is there, whole and beside the text; it marks its place in `taken`."""
    scale = len(taken) / 128.0
    names = [name for name in COLORS if name not in {thing.name for thing in others}]
    rng.shuffle(names)
    for name in names:
        color = jitter(rng, name, 12)
        if min(lab_distance(color, other) for other in (*ground.colors, *(thing.color for thing in others))) > APART:
            break
    else:
        return None
    shape = pick(rng, SHAPES)
    radius, size = rng.uniform(SMALLEST, LARGEST, 2).max() * scale, len(taken)
    while radius > SMALLEST * scale * 0.95:
        reach = int(np.ceil(radius + GAP * scale))
        if 2 * reach + 1 < size:
            window = cv2.boxFilter(taken.astype(np.float32), -1, (2 * reach + 1,) * 2, normalize=False)
            free = window[reach : size - reach, reach : size - reach] < 0.5
            ys, xs = np.nonzero(free)
            if len(ys):
                at = int(rng.integers(len(ys)))
                x, y = float(xs[at] + reach), float(ys[at] + reach)
                taken[int(y) - reach : int(y) + reach + 1, int(x) - reach : int(x) + reach + 1] = 1
                return Placed(name, shape, tuple(float(c) for c in color), x, y, float(radius))
        radius *= 0.87
    return None


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
