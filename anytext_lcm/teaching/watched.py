"""What notebook 04 looks at while a student trains: curves above, the student's pictures below."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anytext_lcm.figures.style import DPI, WIDTH, curve_style, finish

Strips = Mapping[int, np.ndarray]  # by update: pictures side by side, (H, B W, 3) uint8


def sharpness(pictures: np.ndarray) -> float:
    """Mean absolute difference of horizontal neighbours of pictures (H, W, 3) uint8, in levels of 255."""
    return float(np.abs(np.diff(pictures.astype(float), axis=1)).mean())


def training_figure(
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    students: Mapping[str, Strips],
    teacher: np.ndarray | None,
    updates: Sequence[int],
    count: int = 2,
) -> Figure:
    """Curves of a run over its updates, and below them the first `count` pictures of each student, column by update.

    curves: {tag: (updates, values)} with "loss" and "panel/ned", as `training.logs.read_curves` returns them; both may
    be missing. students: strips by name. teacher: the strip of the last column; the sharpness of the students is drawn
    in units of its own. updates: the columns. What is not there yet leaves its place empty, so that the figure keeps
    its size.
    """
    rows = len(students) * count
    figure = Figure(figsize=(WIDTH, 2.3 + 0.86 * rows), dpi=DPI, layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[2.3, 0.86 * rows])
    loss, read, sharp = upper.subplots(1, 3)
    # Names stand above: beside so low a plot a longer one would be cut.
    for axis, tag, label in ((loss, "loss", "loss"), (read, "panel/ned", "reading (NED)")):
        axis.plot(*curves.get(tag, ((), ())), linewidth=1)
        finish(axis, "update", "", label, False)
    read.set_ylim(0, 1.03)
    for name, strips in students.items() if teacher is not None else ():
        relative = [sharpness(strip) / sharpness(teacher) for strip in strips.values()]
        sharp.plot(list(strips), relative, label=name, marker="o", markersize=3, **curve_style(sharp, len(students)))
    finish(sharp, "update", "", "sharpness, teacher = 1", bool(sharp.lines))
    for axis in (loss, read, sharp):
        axis.set_xlim(0, updates[-1])
    axes = lower.subplots(rows, len(updates) + 1, squeeze=False)
    for row, places in enumerate(axes):
        name, number = list(students)[row // count], row % count
        strips = [students[name].get(update) for update in updates]
        titles = [f"{update}" for update in updates] if row == 0 else [""] * len(updates)
        for axis, strip, title in zip(places, [*strips, teacher], [*titles, "" if row else "teacher"], strict=True):
            _place(axis, None if strip is None else strip[:, number * len(strip) : (number + 1) * len(strip)], title)
        places[0].set_ylabel(name, fontsize=8)
    return figure


def _place(axis: Axes, picture: np.ndarray | None, title: str) -> None:
    """One picture of a column, or the grey place for it."""
    axis.imshow(np.full((8, 8, 3), 240, np.uint8) if picture is None else picture, interpolation="nearest")
    axis.set_title(title, fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)
