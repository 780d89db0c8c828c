"""What is behind text and objects of a mock picture: one or two tones of named colours, or a varied picture.

Two tones make stripes, checks or a gradient with a clear contrast. A caption names the tones and leaves width, angle
and place of the pattern open, so a model has to decide on them. Lengths are shares of the picture's side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anytext_lcm.data.chance import pick
from anytext_lcm.data.colours import COLORS, jitter, lab_distance, luma
from anytext_lcm.data.material import draw_material

GROUNDS = ("plain", "stripes", "checks", "gradient")
GROUND_SHARES = (0.25, 0.3, 0.2, 0.25)
MATERIAL = "material"
CLEAR = 32.0  # distance in CIELAB between the two tones of a ground
TEXT_RANGE = 90.0  # luma between both tones and black, or white, so that text can be darker, or lighter, than both


@dataclass(frozen=True)
class Ground:
    """What is behind text and objects.

    image   (H, W, 3) float32, 0..255
    kind    one of GROUNDS, or MATERIAL
    tones   names of its colours; none of material
    colors  (n, 3) colours that occur in it, of material those behind the text
    """

    image: np.ndarray
    kind: str
    tones: tuple[str, ...]
    colors: np.ndarray


def draw_ground(rng: np.random.Generator, size: int) -> Ground:
    """Draw a ground of size x size: one or two named tones that both contrast with black text, or with white."""
    kind = GROUNDS[int(rng.choice(len(GROUNDS), p=GROUND_SHARES))]
    while True:
        first, second = (pick(rng, tuple(COLORS)) for _ in range(2))
        ends = np.stack([jitter(rng, name, 12) for name in (first, second)])
        if kind == "plain":
            image = np.empty((size, size, 3), np.float32)
            image[:] = ends[0]
            return Ground(image, kind, (first,), ends[:1])
        lumas = [luma(end) for end in ends]
        contrast = max(lumas) < 255 - TEXT_RANGE or min(lumas) > TEXT_RANGE
        if first != second and lab_distance(*ends) > CLEAR and contrast:
            break
    pattern = _pattern(rng, kind, size)[..., None]
    image = (1 - pattern) * ends[0].astype(np.float32) + pattern * ends[1].astype(np.float32)
    steps = np.linspace(0, 1, 9)[:, None]  # a caption need not name the pattern, and a gradient has all of these
    return Ground(image, kind, (first, second), (1 - steps) * ends[0] + steps * ends[1])


def draw_material_ground(rng: np.random.Generator, size: int, text: np.ndarray) -> Ground:
    """Draw a varied picture of size x size; its `colors` are two greys, the darkest and lightest tenth behind text.

    text: (size, size) uint8, 1 where text will be.
    """
    image = draw_material(rng, size)
    lumas = image[text == 1].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    greys = np.quantile(lumas, (0.1, 0.9))[:, None].repeat(3, axis=1)
    return Ground(image.astype(np.float32), MATERIAL, (), greys)


def _pattern(rng: np.random.Generator, kind: str, size: int) -> np.ndarray:
    """(size, size) float32 within 0..1: how much of the second tone there is."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    if kind == "checks":
        period, shift = rng.uniform(0.28, 0.6), rng.uniform(0, 1, 2)
        across, down = (_soft_square(axis / period + offset, size * period) for offset in shift)
        return (down[:, None] * across[None] + 1) / 2
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.cos(angle) * (axis[None] - 0.5) + np.sin(angle) * (axis[:, None] - 0.5)
    if kind == "gradient":
        return (ramp / np.abs(ramp).max() + 1) / 2
    period, share = rng.uniform(0.2, 0.45), rng.uniform(0.35, 0.55)
    phase = ramp / period + rng.uniform()
    triangle = 2 * np.abs(phase - np.floor(phase + 0.5))  # 0..1, evenly often
    return np.clip((triangle - (1 - share)) * size * period / 4 + 0.5, 0, 1).astype(np.float32)


def _soft_square(phase: np.ndarray, period_pixels: float) -> np.ndarray:
    """Compute a square wave within -1..1 of `phase` (period 1), float32, whose edges are about 2 pixels wide."""
    steepness = max(period_pixels / 4.0, 1.0)
    triangle = 4 * np.abs(phase - np.floor(phase + 0.5)) - 1
    return np.clip(triangle * steepness, -1, 1).astype(np.float32)
