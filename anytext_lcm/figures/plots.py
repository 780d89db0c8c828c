"""Plain plots: lines, panels, bars, histograms, intervals."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from anytext_lcm.figures.style import COLORS, HATCHES, as_array, curve_style, finish, legend_beside, new_figure


def lines(
    curves: Mapping[str, tuple],
    x_label: str,
    y_label: str,
    title: str = "",
    x_scale: str = "linear",
    y_scale: str = "linear",
    marks: bool = False,
    height: float = 3.0,
) -> Figure:
    """Curves by name, each (x, y); a None for x counts from 1. A log axis is marked at the x there are, if few."""
    figure, axes = new_figure(height)
    axis: Axes = axes[0, 0]
    for name, (x, y) in curves.items():
        y = as_array(y)
        x = np.arange(1, len(y) + 1) if x is None else as_array(x)
        axis.plot(x, y, label=name, marker="o" if marks else None, markersize=4, **curve_style(axis, len(curves)))
    finish(axis, x_label, y_label, title, 1 < len(curves) <= 6)
    if len(curves) > 6:
        legend_beside(axis)
    axis.set_xscale(x_scale)
    axis.set_yscale(y_scale)
    places = sorted({float(place) for line in axis.lines for place in line.get_xdata()})
    if x_scale == "log" and len(places) <= 12:
        axis.set_xticks(places, [f"{place:g}" for place in places])
        axis.xaxis.set_minor_locator(NullLocator())
    if y_scale == "log":
        low, high = axis.get_ylim()
        if high < 300 * low:  # few powers of ten: mark their halves and fifths, too
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    return figure


def panels(
    figures: Mapping[str, Mapping[str, tuple]],
    x_label: str,
    title: str = "",
    height: float = 2.6,
    legend: bool = True,
) -> Figure:
    """Several small plots side by side, sharing what x means: {y label: {name: (x, y)}}."""
    figure, axes = new_figure(height, 1, len(figures))
    for axis, (y_label, curves) in zip(axes[0], figures.items(), strict=True):
        for name, (x, y) in curves.items():
            axis.plot(as_array(x), as_array(y), label=name, **curve_style(axis, len(curves)))
        finish(axis, x_label, y_label, "", legend and len(curves) > 1)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def bars(groups: Mapping[str, Mapping[str, float]], x_label: str, title: str = "") -> Figure:
    """Stacked horizontal bars: one for each group, one colour for each name in it."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    figure, axes = new_figure(max(0.9 + 0.36 * len(groups), 0.3 + 0.19 * len(names)))
    axis: Axes = axes[0, 0]
    left = np.zeros(len(groups))
    for i, name in enumerate(names):
        values = np.array([group.get(name, 0) for group in groups.values()], float)
        color = COLORS[i] if i < len(COLORS) else str(0.1 * (i - len(COLORS) + 2))
        axis.barh(
            list(groups),
            values,
            left=left,
            label=name,
            color=color,
            edgecolor="white",
            linewidth=0.6,
            hatch=HATCHES[i % len(HATCHES)],
        )
        left += values
    axis.invert_yaxis()
    finish(axis, x_label, "", title, False)
    if len(names) > 1:
        legend_beside(axis)
    return figure


def histograms(
    samples: Sequence[Mapping[str, object]],
    names: Sequence[str],
    bins: np.ndarray,
    density: np.ndarray | None = None,
    title: str = "",
) -> Figure:
    """Histograms in columns of methods: samples[i] is a row, {column name: values}; names are the rows'.

    density: at the bins' middles, drawn thin over each; what the samples should follow.
    """
    columns = list(samples[0])
    figure, axes = new_figure(1.5 * len(samples) + 0.4, len(samples), len(columns), sharex=True)
    middles = (bins[1:] + bins[:-1]) / 2
    for i, row in enumerate(samples):
        for axis, column in zip(axes[i], columns, strict=True):
            axis.hist(as_array(row[column]).ravel(), bins=bins, density=True, color=COLORS[4])
            if density is not None:
                axis.plot(middles, density, color="black", linewidth=0.9)
                axis.set_ylim(0, 1.25 * density.max())
            axis.set_yticks([])
            if i == 0:
                axis.set_title(column, fontsize=9)
        axes[i, 0].set_ylabel(names[i], fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("$x_0$", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def error_bars(rows: Mapping[str, object], x_label: str, title: str = "") -> Figure:
    """Estimates with their intervals (anything with value, low and high), one under the other."""
    figure, axes = new_figure(0.9 + 0.34 * len(rows))
    axis: Axes = axes[0, 0]
    for i, row in enumerate(rows.values()):
        axis.plot([row.low, row.high], [i, i], color=COLORS[0], linewidth=2)
        axis.plot(row.value, i, "o", color=COLORS[0])
        axis.annotate(
            f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]",  # two digits would hide whether 0 is inside
            (1.02, i),
            fontsize=8,
            va="center",
            xycoords=("axes fraction", "data"),
        )
    axis.set_yticks(range(len(rows)), list(rows), fontsize=9)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    finish(axis, x_label, "", title, False)
    return figure
