"""
The chart of the speed report.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from anytext_lcm.figures.style import COLORS, HATCHES, finish, legend_beside, new_figure


def speed_chart(report: Mapping[str, Any]) -> Figure:
    """Where the time of a picture goes, before and after: a bar for each training step and each sampler of a report of
    `python -m anytext_lcm.speed`, cut into parts; at its end how much faster it is than the first. A bar is as long as
    the median of the turns that the table shows; the parts, timed for themselves, share it.
    """

    def shared(parts: Mapping[str, float], total: float) -> dict[str, float]:
        return {part: seconds * total / sum(parts.values()) for part, seconds in parts.items()}

    training = {
        name: shared(row["seconds_by_part"], 1 / row["samples_per_second"])
        for name, row in report["training"]["variants"].items()
    }
    sampling = {
        name: shared({phase: s for phase, s in row["seconds"].items() if phase != "total"}, row["seconds"]["total"])
        for name, row in report["sampling"]["methods"].items()
    }
    figure, axes = new_figure(1.6 + 0.42 * (len(training) + len(sampling)), rows=2, columns=1)
    for axis, rows, title in zip(axes[:, 0], (training, sampling), ("One training update", "Sampling"), strict=True):
        parts = list(dict.fromkeys(part for row in rows.values() for part in row))
        left = np.zeros(len(rows))
        for i, part in enumerate(parts):
            width = np.array([1000 * row.get(part, 0.0) for row in rows.values()])
            axis.barh(
                range(len(rows)),
                width,
                left=left,
                label=part,
                color=COLORS[i % len(COLORS)],
                hatch=HATCHES[i % len(HATCHES)],
                edgecolor="white",
                linewidth=0.5,
            )
            left += width
        for i, total in enumerate(left):
            axis.annotate(f" {left[0] / total:.1f}x", (total, i), fontsize=8, va="center")
        axis.set_yticks(range(len(rows)), list(rows), fontsize=9)
        axis.set_xlim(0, 1.12 * left.max())
        axis.invert_yaxis()
        finish(axis, "ms a picture", "", title, False)
        legend_beside(axis)
    return figure
