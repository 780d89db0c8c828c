"""Photographs and where text goes in them: turned boxes, drawn masks, pixels that stay. No network takes part."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from anytext_lcm.data.pictures import open_picture

SPECK = 16  # pixels: a smaller region of a mask is a slip of the pen
ORDERS = ("down", "right")
BRIGHT = 127  # of 255: what is darker in a mask is the noise of JPEG, or a soft edge
STEEPEST = 90  # degrees: glyphs of a line that is turned further are those of the line turned by 180 less


def turned_box(left: float, top: float, right: float, bottom: float, angle: float = 0.0) -> np.ndarray:
    """Corners (4, 2) int of a box turned clockwise by `angle` degrees about its middle, from the start of its text on.

    Raises ValueError for an empty box or an angle outside -90..90.
    """
    if left >= right or top >= bottom:
        raise ValueError(f"The box {left:g},{top:g},{right:g},{bottom:g} is empty: give LEFT,TOP,RIGHT,BOTTOM.")
    if not abs(angle) <= STEEPEST:  # also catches nan
        raise ValueError(
            f"The angle must lie in -{STEEPEST}..{STEEPEST} degrees, not {angle:g}: no text stands on its head, and "
            "letters of a line that is almost upright stand below each other."
        )
    middle = np.array([left + right, top + bottom]) / 2
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]]) - middle
    turn = np.deg2rad(angle)  # y points down, so this way round is clockwise on the screen
    turned = corners @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return np.rint(turned + middle).astype(int)


def read_mask(path: str | Path) -> np.ndarray:
    """Brightness of a drawn mask, (H, W) uint8: the strongest channel, over black where the mask is transparent.

    Text goes where it is above `BRIGHT`. Raises FileNotFoundError or ValueError, see `open_picture`.
    """
    return open_picture(path, backing="black").max(axis=2)


def fit_picture(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale (H, W, 3) uint8 until it covers `size`, height and width, and crop to its middle: (*size, 3) uint8."""
    fitted = ImageOps.fit(Image.fromarray(picture), (size[1], size[0]), Image.Resampling.LANCZOS)
    return np.array(fitted)


def boxes_of_mask(mask: np.ndarray, count: int, order: str = "down") -> list[np.ndarray]:
    """One box (4, 2) int for each connected region of mask (H, W), nonzero where text goes, in reading order.

    A box is the smallest rectangle around its region, with the text along the side that is nearest to left-to-right.
    order: "down" from top to bottom, "right" from left to right. Raises ValueError when there are not `count` regions.
    """
    if order not in ORDERS:
        raise ValueError(f"Order {order!r} is unknown: choose {' or '.join(ORDERS)}.")
    if mask.ndim != 2:
        raise ValueError(f"A mask must be (H, W), this one is {mask.shape}.")
    found, labels, stats, middles = cv2.connectedComponentsWithStats((mask > 0).astype(np.uint8), connectivity=8)
    regions = [i for i in range(1, found) if stats[i, cv2.CC_STAT_AREA] >= SPECK]
    if len(regions) != count:
        raise ValueError(f"The mask has {len(regions)} regions for {count} lines of text: draw one for each line.")
    regions.sort(key=lambda i: middles[i][1 if order == "down" else 0])
    height, width = mask.shape
    boxes = []
    for region in regions:
        points = np.argwhere(labels == region)[:, ::-1].astype(np.float32)
        corners = cv2.boxPoints(cv2.minAreaRect(points))  # clockwise on the screen
        along = np.roll(corners, -1, axis=0) - corners
        start = int(np.argmax(along[:, 0] / np.maximum(np.linalg.norm(along, axis=1), 1e-6)))
        corners = np.rint(np.roll(corners, -start, axis=0)).astype(int)
        boxes.append(corners.clip(0, [width, height]))
    return boxes


def paste_back(photo: np.ndarray, drawn: np.ndarray, polygons: Sequence[np.ndarray], feather: int = 3) -> np.ndarray:
    """Put the drawn picture into the photograph, both (H, W, 3) uint8, inside the polygons (n, 2).

    From 3 `feather` pixels outside on, the photograph's own pixels stay exactly; between, one fades into the other. The
    autoencoder alone would change every pixel a little. Raises ValueError when the two differ in size.
    """
    if photo.shape != drawn.shape:
        raise ValueError(f"The photograph is {photo.shape}, the drawn picture {drawn.shape}: they must be alike.")
    share = np.zeros(photo.shape[:2], np.float32)
    for polygon in polygons:
        cv2.fillPoly(share, [np.asarray(polygon, np.int32)], 1.0)
    if feather:
        side = 2 * feather + 1
        share = cv2.dilate(share, np.ones((side, side), np.uint8))
        share = cv2.blur(share, (side, side))
    share = share[..., None]
    return np.rint(share * drawn + (1 - share) * photo).astype(np.uint8)
