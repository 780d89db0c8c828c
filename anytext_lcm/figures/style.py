"""Size, palette and finish of every figure, made without pyplot, so that no state is left in matplotlib."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH, DPI = 8.0, 72  # inches; a notebook's column
# Okabe and Ito's colours, distinct with any colour vision; a few curves also differ in their dashes, for grey.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#000000", "#f0e442")
DASHES = ("-", "--", "-.", ":")
HATCHES = ("", "//", "..", "\\\\", "xx", "--", "", "oo")  # the same for bars


def new_figure(height: float, rows: int = 1, columns: int = 1, **options) -> tuple[Figure, np.ndarray]:
    """A figure `height` inches high and its axes (rows, columns). options: of `Figure.subplots`."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def as_array(values) -> np.ndarray:
    """A tensor or anything like an array as numpy."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def curve_style(axis: Axes, curves: int) -> dict[str, str]:
    """Colour and dashes of the next curve; many curves are a bundle and stay solid until the colours are used up."""
    i = len(axis.lines)
    dashes = i if curves <= len(DASHES) else i // len(COLORS)
    return {"color": COLORS[i % len(COLORS)], "linestyle": DASHES[dashes % len(DASHES)]}


def legend_beside(axis: Axes) -> None:
    """A legend to the right of the plot."""
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def finish(axis: Axes, x_label: str, y_label: str, title: str, legend: bool) -> None:
    """Label the axes, and take away what only frames them."""
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    if title:
        axis.set_title(title, fontsize=11)
    if legend:
        axis.legend(fontsize=9, frameon=False)
    axis.grid(alpha=0.25)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
