"""Pictures side by side."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anytext_lcm.figures.style import WIDTH, as_array, new_figure


def as_picture(image) -> np.ndarray:
    """Array for `imshow`: (3, H, W) float -1..1 or (H, W, 3) uint8 -> (H, W, 3); (1, H, W) -> (H, W)."""
    image = as_array(image)
    if image.dtype.kind == "f" and image.ndim == 3 and image.shape[0] == 3:
        return ((image.transpose(1, 2, 0) + 1) / 2).clip(0, 1)
    return image[0] if image.ndim == 3 and image.shape[0] == 1 else image


def picture_grid(
    rows: Sequence[Sequence],
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    title: str = "",
    size: float | None = None,
    outlines: Sequence[Sequence] | None = None,
    captions: Sequence[Sequence[tuple[str, str]]] | None = None,
) -> Figure:
    """Pictures in rows and columns; a row's rest stays empty, and so does a place that holds None.

    Pictures are as for `as_picture`; two-dimensional ones are shown in gray, black = 0. size: inches per row. For each
    row and column, outlines: polygons (n, 2) to draw on top; captions: a text below the picture and its colour.
    """
    columns = max(len(row) for row in rows)
    height = size or min(2.2, (WIDTH - 0.6) / columns + 0.15)
    figure, axes = new_figure(height * len(rows) + (0.35 if title else 0.1), len(rows), columns)
    for i, row in enumerate(rows):
        for j in range(columns):
            axis: Axes = axes[i, j]
            axis.set_xticks([])
            axis.set_yticks([])
            if j >= len(row) or row[j] is None:
                axis.axis("off")
                continue
            picture = as_picture(row[j])
            limit = {"vmin": 0, "vmax": max(picture.max(), 1)} if picture.ndim == 2 else {}
            axis.imshow(picture, cmap="gray", interpolation="nearest", **limit)
            for polygon in outlines[i][j] if outlines else ():
                closed = np.concatenate([polygon, polygon[:1]])
                axis.plot(closed[:, 0], closed[:, 1], color="#e6007e", linewidth=1.2)
            if captions:
                text, color = captions[i][j]
                axis.set_xlabel(text, fontsize=8, color=color, labelpad=2)
            if i == 0 and j < len(column_names):
                axis.set_title(column_names[j], fontsize=9)
            if j == 0 and i < len(row_names):
                axis.set_ylabel(row_names[i], fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
