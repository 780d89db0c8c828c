"""A grid in the pictures: what repeats every 8 pixels, the side of one latent.

Users of few-step adapters complain of such a grid: it has the same phase all over the picture. A real picture has
nothing that repeats every 8 pixels more than every 7 or 9. JPEG does work on blocks of 8 pixels, but its steps between
blocks go up as often as down, so most of them cancel here. What is left of it is measured in the tests.
"""

import cv2
import numpy as np

from anytext_lcm.judging.reading import as_uint8

PERIOD = 8  # pixels of a latent
CONTROLS = (7, 9)  # periods at which a drawn picture has no more than a real one
WINDOW = 8  # periods: the side of a window, so that a grid in a part of the picture counts too


def grid_energy(images) -> np.ndarray:
    """Energy of what repeats every 8 pixels of luma, in grey levels squared (0..255): (B,) float64.

    images: as for `as_uint8`, as they were drawn: resizing moves the grid. Of a grid of amplitude a (its root mean
    square) it is a squared; without one it is 0 on average, hence at times below 0. Raises ValueError for a side below
    18 pixels.
    """
    return np.array([_above_controls(image) for image in as_uint8(images)])


def _above_controls(image: np.ndarray) -> float:
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return repeating(luma, PERIOD) - float(np.mean([repeating(luma, period) for period in CONTROLS]))


def repeating(luma: np.ndarray, period: int) -> float:
    """Energy of the pattern of period x period pixels that repeats over each window, averaged over windows.

    luma (H, W) float32. A window's cells fall into two halves like the fields of a chessboard. Each half's pattern is
    the median over its cells, which neither a line of text nor an edge moves much. The product of both is the energy:
    what does not repeat is independent in both and cancels on average.
    """
    height, width = (length // period for length in luma.shape)  # in cells
    across = min(WINDOW, height, width)  # cells of a window
    if across < 2:
        raise ValueError(f"A picture of {luma.shape[1]} x {luma.shape[0]} pixels is too small to hold a grid.")
    # The mean over one period, with half a weight at both ends: it removes slopes, and nothing of what repeats.
    kernel = np.ones(period + 1, np.float32)
    kernel[[0, -1]] = 0.5
    kernel /= period
    residual = luma - cv2.sepFilter2D(luma, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
    rows, columns = height // across, width // across  # of windows
    whole = residual[: rows * across * period, : columns * across * period]
    cells = whole.reshape(rows, across, period, columns, across, period).transpose(0, 3, 1, 4, 2, 5)
    cells = cells.reshape(rows * columns, across * across, period, period)
    black = np.indices((across, across)).sum(axis=0).ravel() % 2 == 0
    one, other = (np.median(cells[:, field], axis=1) for field in (black, ~black))
    return float((one * other).mean())
