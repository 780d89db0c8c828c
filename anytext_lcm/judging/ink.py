"""Is text in the colour that was given as numbers?"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

CORE = 0.07  # share of a polygon that the inner parts of letters cover at least; thin upright letters have 0.1
OBEYED = 18.0  # distance in CIELAB; real pictures have 1 at most, letters of another colour mostly 40 and more


def ink_distance(image: np.ndarray, polygon: np.ndarray, wanted: Sequence[float]) -> float:
    """Distance in CIELAB (CIE 1976) of the letters in a polygon from the wanted RGB 0..255.

    Which pixels are letters is not known in a drawn picture, and what is behind them may have two colours. So it is
    asked how near the nearest pixels are: the distance below which a share CORE of the polygon lies. Without letters of
    that colour it is the distance of what is behind, which has to be another colour for the text to be seen.

    image (H, W, 3) uint8 RGB, polygon (n, 2) x and y. Raises ValueError for a polygon without a pixel of the picture.
    """
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.rint(np.asarray(polygon)).astype(np.int32).reshape(-1, 1, 2)], 1)
    if not mask.any():
        raise ValueError(f"The polygon {np.asarray(polygon).tolist()} has no pixel of the picture.")
    pixels = np.concatenate([image[mask == 1], np.asarray(wanted)[None]]).astype(np.float32)
    lab = cv2.cvtColor(pixels[None] / 255, cv2.COLOR_RGB2LAB)[0]
    return float(np.quantile(np.linalg.norm(lab[:-1] - lab[-1], axis=1), CORE))


def ink_obeyed(
    images: Sequence[np.ndarray], polygons: Sequence[Sequence[np.ndarray]], colors: Sequence[Sequence[Sequence[float]]]
) -> np.ndarray:
    """Of each picture, the share of its lines in the wanted colour: (pictures,) float, nan where no line has a wish.

    colors: RGB of each line; with a value above 255 (500, 500, 500) any colour will do, and the line does not count.
    Raises ValueError where the sequences differ in length.
    """
    shares = []
    for image, lines, wishes in zip(images, polygons, colors, strict=True):
        wanted = [(line, wish) for line, wish in zip(lines, wishes, strict=True) if max(wish) <= 255]
        shares.append(np.mean([ink_distance(image, *pair) <= OBEYED for pair in wanted]) if wanted else np.nan)
    return np.array(shares)
