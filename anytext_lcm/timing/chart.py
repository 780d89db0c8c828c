"""The chart of the speed report."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anytext_lcm.figures.style import COLORS, HATCHES, finish, legend_beside, new_figure


def speed_chart(report: Mapping[str, Any]) -> Figure:
    """Milliseconds per picture by part: above a bar per training step, below one per sampler.

    report: of `measure.measure`, with the parts that it has, without steps that did not fit. A bar is as long as the
    median in the table; its parts, which were timed apart, share it. The number at its end is the speed-up over the
    other side of its pair, or over upstream's sampler in its own 20 steps.
    """
    charts, faster = {}, {}
    if "training" in report:
        charts["One training update"] = {
            name: _shared(row["seconds_by_part"], 1 / row["samples_per_second"])
            for name, row in report["training"]["variants"].items()
        }
        pairs = report["training"]["pairs"]
        faster |= {name: row["faster"] for name, row in pairs.items() if row["faster"] is not None}
    if "sampling" in report:
        methods = report["sampling"]["methods"]
        charts["Sampling"] = {
            name: _shared(
                {phase: s for phase, s in row["seconds"].items() if phase != "total"}, row["seconds"]["total"]
            )
            for name, row in methods.items()
        }
        faster |= {name: next(iter(row["faster"].values()))["end_to_end"] for name, row in methods.items()}
    figure, axes = new_figure(1.6 + 0.42 * sum(map(len, charts.values())), rows=len(charts), columns=1)
    for axis, (title, rows) in zip(axes[:, 0], charts.items(), strict=True):
        _bars(axis, rows, faster)
        finish(axis, "ms per picture", "", title, False)
        legend_beside(axis)
    return figure


def _shared(parts: Mapping[str, float], total: float) -> dict[str, float]:
    return {part: seconds * total / sum(parts.values()) for part, seconds in parts.items()}


def _bars(axis: Axes, rows: Mapping[str, Mapping[str, float]], faster: Mapping[str, float]) -> None:
    """Stacked bars of {name: {part: seconds}}, in milliseconds, with the speed-up of some at their ends."""
    left = np.zeros(len(rows))
    for i, part in enumerate(dict.fromkeys(part for row in rows.values() for part in row)):
        width = np.array([1000 * row.get(part, 0.0) for row in rows.values()])
        look = {"color": COLORS[i % len(COLORS)], "hatch": HATCHES[i % len(HATCHES)]}
        axis.barh(range(len(rows)), width, left=left, label=part, edgecolor="white", linewidth=0.5, **look)
        left += width
    for i, (name, total) in enumerate(zip(rows, left, strict=True)):
        if name in faster:
            axis.annotate(f" {faster[name]:.2g}x", (total, i), fontsize=8, va="center")
    axis.set_yticks(range(len(rows)), list(rows), fontsize=9)
    axis.set_xlim(0, 1.12 * left.max())
    axis.invert_yaxis()
