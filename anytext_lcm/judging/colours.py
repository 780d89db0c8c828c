"""Are colours obeyed: the background's and the text's?"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from anytext_lcm.data.colours import COLORS
from anytext_lcm.judging.ink import CORE

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


def text_colour_obeyed(image: np.ndarray, polygon: np.ndarray, name: str, palette: Palette = COLORS) -> bool:
    """Whether the polygon (n, 2) has as many pixels of the named colour as letters cover at least.

    A pixel has the palette's nearest colour. Behind the letters there may be two tones, so no pixel is known to be a
    letter's. Raises ValueError for an unknown name.
    """
    if name not in palette:
        raise ValueError(f"No colour is called {name!r}; there are {', '.join(palette)}.")
    inside = np.zeros(image.shape[:2], dtype=np.uint8)
    cv2.fillPoly(inside, [np.rint(np.asarray(polygon)).astype(np.int32).reshape(-1, 1, 2)], 1)
    named = _lab(np.array(list(palette.values())))
    distance = np.linalg.norm(_lab(image[inside == 1])[:, None] - named, axis=-1)
    return bool((distance.argmin(axis=1) == list(palette).index(name)).mean() >= CORE)
