"""Are colours obeyed: the background's and the text's?"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from anytext_lcm.data.colours import COLORS
from anytext_lcm.judging.reading import rectify

Palette = Mapping[str, tuple[int, int, int]]


def _lab(rgb: np.ndarray) -> np.ndarray:
    """RGB 0..255 (..., 3) to CIELAB, where distances are roughly as seen."""
    flat = np.asarray(rgb, dtype=np.float32).reshape(1, -1, 3) / 255
    return cv2.cvtColor(flat, cv2.COLOR_RGB2LAB).reshape(*np.shape(rgb))


def nearest_colour(rgb: Sequence[float], palette: Palette = COLORS) -> str:
    """Name of the palette's colour nearest to RGB 0..255, in CIELAB."""
    names = list(palette)
    distance = np.linalg.norm(_lab(np.array([palette[name] for name in names])) - _lab(np.array(rgb)), axis=1)
    return names[int(distance.argmin())]


def text_mask(polygons: Sequence[np.ndarray], size: tuple[int, int], grow: int = 3) -> np.ndarray:
    """Mask of the lines, `grow` pixels more on each side: bool of size (H, W)."""
    mask = np.zeros(size, dtype=np.uint8)
    for polygon in polygons:
        cv2.fillPoly(mask, [np.asarray(polygon, dtype=np.int32).reshape(-1, 1, 2)], 1)
    return cv2.dilate(mask, np.ones((2 * grow + 1, 2 * grow + 1), dtype=np.uint8)).astype(bool)


def background_colour(image: np.ndarray, exclude: np.ndarray | None = None) -> np.ndarray:
    """Median colour (3,) of a picture (H, W, 3) uint8 outside the mask `exclude` (H, W). Raises ValueError."""
    keep = np.ones(image.shape[:2], dtype=bool) if exclude is None else ~np.asarray(exclude, dtype=bool)
    if not keep.any():
        raise ValueError("The mask of text and objects leaves no background to look at.")
    return np.median(image[keep], axis=0)


def background_obeyed(
    image: np.ndarray, name: str, exclude: np.ndarray | None = None, palette: Palette = COLORS
) -> bool:
    """Whether the background is nearer to the named colour than to the palette's others. Raises ValueError."""
    if name not in palette:
        raise ValueError(f"No colour is called {name!r}; there are {', '.join(palette)}.")
    return nearest_colour(background_colour(image, exclude), palette) == name


def stroke_colour(image: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Colour (3,) of the letters in a polygon of a picture (H, W, 3) uint8.

    The crop is split in two by 2-means; the letters are the part less like the crop's rim, and of it the half
    farthest from the rim counts, because the edges of thin letters are mixed with what is behind them.
    """
    crop = rectify(image, polygon, height=32, margin=0.15)
    pixels, rim = crop.reshape(-1, 3), np.zeros(crop.shape[:2], dtype=bool)
    rim[[0, 1, -2, -1]] = rim[:, [0, 1, -2, -1]] = True
    lab = _lab(pixels)
    behind = np.median(lab[rim.ravel()], axis=0)
    away = np.linalg.norm(lab - behind, axis=1)
    centres = np.stack([behind, lab[away.argmax()]])
    for _ in range(10):
        letters = np.linalg.norm(lab - centres[1], axis=1) < np.linalg.norm(lab - centres[0], axis=1)
        if letters.all() or not letters.any():  # one colour only: there are no letters to see
            return np.median(pixels, axis=0)
        centres = np.stack([lab[~letters].mean(axis=0), lab[letters].mean(axis=0)])
    core = letters & (away >= np.median(away[letters]))
    return np.median(pixels[core], axis=0)


def text_colour_obeyed(
    image: np.ndarray, polygon: np.ndarray, colour: str | Sequence[float], palette: Palette = COLORS
) -> bool:
    """Whether the letters' nearest named colour is the wanted one, a name or RGB 0..255. Raises ValueError."""
    if isinstance(colour, str) and colour not in palette:
        raise ValueError(f"No colour is called {colour!r}; there are {', '.join(palette)}.")
    wanted = colour if isinstance(colour, str) else nearest_colour(colour, palette)
    return nearest_colour(stroke_colour(image, polygon), palette) == wanted
