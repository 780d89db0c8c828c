"""Varied pictures without text: what the mock data edit, so that a network learns to copy what it must not change.

Nearly all of it is made up: noise of several spectra, overlapping leaves, textures, gradients and collages, and
mixtures of two of them. A few are crops of what matplotlib installs with itself (relief maps, a scan, two drawings).
Its one photograph is kept for measuring: `photographs` gives crops of it, `draw_material` never does.
"""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from anytext_lcm.data.fonts import TEXT_FONTS, load_font

Rng = np.random.Generator

PHOTOGRAPH = "grace_hopper.jpg"  # of matplotlib's sample data; never trained on


def draw_material(rng: Rng, size: int) -> np.ndarray:
    """One picture, (size, size, 3) uint8 RGB. Everything about it is drawn from `rng`."""
    image = _one(rng, size)
    if rng.random() < 0.3:
        mask = _soft_mask(rng, size)[..., None]
        image = image + mask * (_one(rng, size) - image)
    if rng.random() < 0.4:  # light falls unevenly
        image = image * (1 + rng.uniform(0.1, 0.5) * _smooth(rng, size, 3))[..., None]
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.5) * size / 128)
    if rng.random() < 0.5:  # contrast and tint
        middle = image.mean((0, 1))
        image = middle + rng.uniform(0.5, 1.3) * (image - middle) + rng.uniform(-25, 25, 3)
    if rng.random() < 0.15:
        image = np.repeat(image.mean(2, keepdims=True), 3, axis=2)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def photographs(count: int, size: int, seed: int = 0) -> list[np.ndarray]:
    """Crops of a photograph that no training sees, at several scales, (size, size, 3) uint8 RGB each.

    Raises FileNotFoundError when matplotlib was installed without its sample data.
    """
    picture = np.asarray(Image.open(_sample_folder() / PHOTOGRAPH).convert("RGB"))
    rng = np.random.default_rng([seed, 7])
    return [_crop(rng, picture, size, least=0.35) for _ in range(count)]


# -- kinds ----------------------------------------------------------------------------------------------


def _one(rng: Rng, size: int) -> np.ndarray:
    """A picture of one kind, (size, size, 3) float32, about 0..255."""
    kind = _KINDS[int(rng.choice(len(_KINDS), p=_SHARES))]
    return kind(rng, size).astype(np.float32)


def _spectrum(rng: Rng, size: int) -> np.ndarray:
    """Noise whose amplitude falls with a power of the frequency: clouds, rocks, grain."""
    if rng.random() < 0.4:
        return _coloured(rng, _noise(rng, size, rng.uniform(0.6, 2.2)))
    power = rng.uniform(0.6, 2.0)
    light, *tints = (_noise(rng, size, power) for _ in range(3))
    weight = rng.uniform(0.05, 0.5)
    axes = rng.normal(size=(2, 3)) * weight
    field = light[..., None] + tints[0][..., None] * axes[0] + tints[1][..., None] * axes[1]
    return rng.uniform(60, 195, 3) + rng.uniform(15, 55) * field


def _leaves(rng: Rng, size: int) -> np.ndarray:
    """Overlapping discs, boxes and polygons of all sizes, each of one colour: edges as photographs have them."""
    palette = _palette(rng, int(rng.integers(3, 9)))
    canvas = np.full((size, size, 3), palette[0], np.float32)
    count = int(rng.integers(40, 250))
    least, most = rng.uniform(0.015, 0.05) * size, rng.uniform(0.15, 0.45) * size
    # Radii fall as the third power, so that every scale covers as much of the picture.
    radii = (least**-2 + rng.random(count) * (most**-2 - least**-2)) ** -0.5
    centres, turns = rng.uniform(-0.1, 1.1, (count, 2)) * size, rng.uniform(0, 360, count)
    colours = palette[rng.integers(len(palette), size=count)] + rng.normal(0, 12, (count, 3))
    shapes, sides = rng.integers(3, size=count), rng.uniform(0.35, 1, count)
    for radius, centre, turn, colour, shape, side in zip(radii, centres, turns, colours, shapes, sides, strict=True):
        box = (tuple(centre), (2 * radius, 2 * radius * side), turn)
        colour = tuple(np.clip(colour, 0, 255))
        if shape == 0:
            cv2.ellipse(canvas, (tuple(map(float, box[0])), box[1], float(turn)), colour, -1, cv2.LINE_AA)
        else:
            points = cv2.boxPoints(box)
            points = points[:3] if shape == 1 else points
            cv2.fillPoly(canvas, [np.rint(points * 16).astype(np.int32)], colour, cv2.LINE_AA, 4)
    grain = rng.uniform(0, 0.25)
    return canvas * (1 + grain * _noise(rng, size, rng.uniform(0.3, 1.5)))[..., None]


def _texture(rng: Rng, size: int) -> np.ndarray:
    """A repeated pattern, bent a little: stripes, bricks, cells, grain of wood."""
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    bend = rng.uniform(0, 0.15)
    x, y = x + bend * _smooth(rng, size, 4), y + bend * _smooth(rng, size, 4)
    angle, often = rng.uniform(0, np.pi), rng.uniform(2, 22)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    kind = int(rng.integers(4))
    if kind == 0:
        field = np.sin(2 * np.pi * often * along)
        field = field if rng.random() < 0.5 else np.tanh(4 * field)
    elif kind == 1:
        often_across = often * rng.uniform(0.5, 2)
        field = np.tanh(3 * np.sin(2 * np.pi * often * along) * np.sin(2 * np.pi * often_across * across))
    elif kind == 2:  # bricks: every second row is shifted by half a brick
        row = np.floor(often * across)
        column = 0.5 * often * along + 0.5 * (row % 2)
        joint = np.minimum(np.abs(often * across % 1 - 0.5), np.abs(column % 1 - 0.5) * 2)
        shade = np.sin(12.9898 * row + 78.233 * np.floor(column))
        field = np.where(joint > 0.42, -1.5, 0.5 * shade)
    else:  # cells: distance to the nearest of some points
        points = rng.uniform(0, 1, (int(rng.integers(8, 60)), 2)).astype(np.float32)
        distance = np.sqrt((x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2).min(-1)
        field = 2 * distance / distance.max() - 1
    field = field + rng.uniform(0, 0.6) * _noise(rng, size, rng.uniform(0.3, 1.2))
    return _coloured(rng, field)


def _gradient(rng: Rng, size: int) -> np.ndarray:
    """A smooth passage through a few colours, straight, round or irregular."""
    y, x = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    kind, angle = int(rng.integers(3)), rng.uniform(0, 2 * np.pi)
    if kind == 0:
        field = np.cos(angle) * x + np.sin(angle) * y
    elif kind == 1:
        field = np.hypot(x - rng.uniform(-0.5, 0.5), y - rng.uniform(-0.5, 0.5))
    else:
        field = _smooth(rng, size, int(rng.integers(2, 6)))
    return _coloured(rng, 3 * (field - field.mean()) / (field.std() + 1e-6) / 1.7)


def _collage(rng: Rng, size: int) -> np.ndarray:
    """Flat shapes, bars and words on a plain ground, as on posters and signs."""
    palette = _palette(rng, 6)
    canvas = np.full((size, size, 3), palette[0], np.uint8)
    for _ in range(int(rng.integers(2, 9))):
        colour = tuple(map(float, palette[rng.integers(1, 6)]))
        x, y = map(int, rng.uniform(-0.1, 1.1, 2) * size)
        w, h = map(int, rng.uniform(0.05, 0.6, 2) * size)
        kind = int(rng.integers(4))
        if kind == 0:
            cv2.rectangle(canvas, (x, y), (x + w, y + h), colour, -1 if rng.random() < 0.7 else 2, cv2.LINE_AA)
        elif kind == 1:
            cv2.circle(canvas, (x, y), w // 2 + 2, colour, -1 if rng.random() < 0.7 else 2, cv2.LINE_AA)
        elif kind == 2:
            cv2.line(canvas, (x, y), (x + 2 * w - size // 2, y + h), colour, int(rng.integers(1, 5)), cv2.LINE_AA)
        else:
            _write(rng, canvas, (x, y), colour)
    return canvas


def _write(rng: Rng, canvas: np.ndarray, place: tuple[int, int], colour: tuple[float, ...]) -> None:
    from PIL import ImageDraw

    letters = "".join(chr(c) for c in rng.integers(ord("A"), ord("z"), int(rng.integers(2, 8))) if chr(c).isalpha())
    layer = Image.fromarray(canvas)
    font = load_font(TEXT_FONTS[int(rng.integers(len(TEXT_FONTS)))], int(rng.integers(8, 40) * len(canvas) / 128) + 1)
    ImageDraw.Draw(layer).text(place, letters, font=font, fill=tuple(int(c) for c in colour))
    canvas[:] = np.asarray(layer)


def _installed(rng: Rng, size: int) -> np.ndarray:
    """A crop of one of matplotlib's sample pictures, in its own colours or in others."""
    pictures = _sample_pictures()
    if not pictures:
        return _leaves(rng, size)
    crop = _crop(rng, pictures[int(rng.integers(len(pictures)))], size, least=0.15).astype(np.float32)
    if rng.random() < 0.6:
        field = crop.mean(2)
        return _coloured(rng, (field - field.mean()) / (field.std() + 1e-3))
    return crop[:, :, rng.permutation(3)]


_KINDS: tuple[Callable[[Rng, int], np.ndarray], ...] = (_spectrum, _leaves, _texture, _gradient, _collage, _installed)
_SHARES = (0.25, 0.3, 0.13, 0.09, 0.13, 0.1)


# -- parts ----------------------------------------------------------------------------------------------


def _noise(rng: Rng, size: int, power: float) -> np.ndarray:
    """(size, size) float32 of mean 0 and deviation 1 whose amplitude at frequency f is f ** -power."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * frequency**-power
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, (size, size))
    return (field / (field.std() + 1e-6)).astype(np.float32)


def _smooth(rng: Rng, size: int, cells: int) -> np.ndarray:
    """(size, size) float32 within about -1..1, changing over size / cells pixels."""
    coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def _soft_mask(rng: Rng, size: int) -> np.ndarray:
    """(size, size) float32 within 0..1: two regions with a border that is sharp or soft."""
    return 1 / (1 + np.exp(-rng.uniform(3, 60) * _smooth(rng, size, int(rng.integers(2, 5)))))


def _palette(rng: Rng, count: int) -> np.ndarray:
    """(count, 3) float32 colours, all over the cube or close together."""
    if rng.random() < 0.4:
        return rng.uniform(0, 255, (count, 3)).astype(np.float32)
    spread = rng.uniform(20, 70)
    light = rng.normal(0, spread, (count, 1))
    return np.clip(rng.uniform(50, 205, 3) + light + rng.normal(0, spread / 3, (count, 3)), 0, 255).astype(np.float32)


def _coloured(rng: Rng, field: np.ndarray) -> np.ndarray:
    """A field of deviation about 1 through a passage of two to five colours: (size, size, 3) float32."""
    palette = _palette(rng, int(rng.integers(2, 6)))
    place = np.clip((field / 2.2 + 1) / 2, 0, 1) * (len(palette) - 1)
    return np.stack([np.interp(place, np.arange(len(palette)), channel) for channel in palette.T], axis=-1)


def _crop(rng: Rng, picture: np.ndarray, size: int, least: float) -> np.ndarray:
    """A square of `least` of the shorter side or more, mirrored at times, resized to (size, size, 3)."""
    height, width = picture.shape[:2]
    side = max(int(min(height, width) * rng.uniform(least, 1)), 2)
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    square = picture[top : top + side, left : left + side]
    square = square[:, ::-1] if rng.random() < 0.5 else square
    how = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(square), (size, size), interpolation=how)


def _sample_folder() -> Path:
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("matplotlib is not installed, so its sample pictures are missing: install it.")
    return Path(spec.origin).parent / "mpl-data" / "sample_data"


@lru_cache(maxsize=1)
def _sample_pictures() -> tuple[np.ndarray, ...]:
    """Those of matplotlib's sample pictures that are there, but the photograph; (H, W, 3) uint8 each."""
    folder, pictures = _sample_folder(), []
    for name in ("Minduka_Present_Blue_Pack.png", "logo2.png"):
        if (folder / name).exists():
            drawing = Image.open(folder / name).convert("RGBA")
            white = Image.new("RGBA", drawing.size, "white")
            pictures.append(np.asarray(Image.alpha_composite(white, drawing))[..., :3])
    for name, key in (("jacksboro_fault_dem.npz", "elevation"), ("topobathy.npz", "topo")):
        if (folder / name).exists():
            with np.load(folder / name) as arrays:
                height = arrays[key].astype(np.float32)
            pictures += [_grey(height), _grey(np.gradient(height)[0] - np.gradient(height)[1])]
    if (folder / "s1045.ima.gz").exists():
        with gzip.open(folder / "s1045.ima.gz") as file:
            pictures.append(_grey(np.frombuffer(file.read(), np.uint16).reshape(256, 256).astype(np.float32)))
    return tuple(pictures)


def _grey(field: np.ndarray) -> np.ndarray:
    low, high = np.quantile(field, (0.01, 0.99))
    return np.repeat(np.uint8(np.clip((field - low) / (high - low), 0, 1) * 255)[..., None], 3, axis=2)
