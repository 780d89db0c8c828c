"""A grid in the pictures: what repeats every 8 pixels, the side of one latent.

Users of few-step adapters complain of such a grid: it has the same phase all over the picture. A real picture has
about as much that repeats every 8 pixels as every 7 or 9. JPEG does work on blocks of 8 pixels, but its steps between
blocks go up as often as down, so most of them cancel here. What is left of both is measured in the tests.
"""

import cv2
import numpy as np

from anytext_lcm.judging.reading import as_uint8

PERIOD = 8  # pixels of a latent
CONTROLS = (7, 9)  # what a picture's content has at these periods it has at 8 too, and the grid adds nothing to them
LEAST_SIDE = 2 * max(CONTROLS)  # pixels: two cells, as halves are compared
QUIET = 16.0  # grey levels squared: windows whose content varies less count alike
WINDOW = 8  # cells along the side of a window, about; a grid in a part of the picture counts too


def grid_energy(images) -> np.ndarray:
    """Energy of what repeats every 8 pixels of luma, in grey levels squared (0..255): (B,) float64.

    images: as for `as_uint8`, as they were drawn: resizing moves the grid. Of a grid of amplitude a (its root mean
    square) it is about a squared. Without one it is not 0 on average: our real pictures have less energy at 8 pixels
    than at 7 and 9. So compare with theirs; a grid below one level is not seen. Raises ValueError for a side below 18
    pixels.
    """
    return np.array([_above_controls(image) for image in as_uint8(images)])


def _above_controls(image: np.ndarray) -> float:
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return repeating(luma, PERIOD) - float(np.mean([repeating(luma, period) for period in CONTROLS]))


def repeating(luma: np.ndarray, period: int) -> float:
    """Energy of the pattern of period x period pixels that repeats over each window, averaged over windows.

    luma (H, W) float32. A window's cells fall into two halves like the fields of a chessboard. Each half's pattern is
    the median over its cells, which neither a line of text nor an edge moves much. The product of both is the energy:
    what does not repeat is independent in both and cancels on average. A window counts by the inverse square of the
    variance of what does not repeat, as the product varies with that: plain ground says more of a grid than letters do.
    """
    cells = [length // period for length in luma.shape]
    if min(cells) < 2:
        raise ValueError(f"A picture of {luma.shape[1]} x {luma.shape[0]} pixels is too small to hold a grid.")
    (rows, down), (columns, across) = map(_divided, cells)
    # The mean over one period, with half a weight at both ends: it removes slopes, and nothing of what repeats.
    kernel = np.ones(period + 1, np.float32)
    kernel[[0, -1]] = 0.5
    kernel /= period
    residual = luma - cv2.sepFilter2D(luma, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
    whole = residual[: rows * down * period, : columns * across * period]
    windows = whole.reshape(rows, down, period, columns, across, period).transpose(0, 3, 1, 4, 2, 5)
    windows = windows.reshape(rows * columns, down * across, period, period)
    black = np.indices((down, across)).sum(axis=0).ravel() % 2 == 0
    one, other = (np.median(windows[:, field], axis=1) for field in (black, ~black))
    varying = windows.var(axis=1).mean(axis=(1, 2))
    return float(np.average((one * other).mean(axis=(1, 2)), weights=(varying + QUIET) ** -2.0))


def _divided(cells: int) -> tuple[int, int]:
    """How many windows a row of cells is divided into, and how many cells each has: about WINDOW."""
    windows = max(1, round(cells / WINDOW))
    return windows, cells // windows
