"""Charts of an evaluation: a measure against what a picture takes, and the text enlarged."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from anytext_lcm.data.fonts import PLAIN_FONT, characters
from anytext_lcm.figures.pictures import picture_grid
from anytext_lcm.figures.style import COLORS, DASHES, finish, legend_beside, new_figure
from anytext_lcm.judging.reading import normalise, rectify

_FAMILIES = {
    "teacher": "teacher, DDIM",
    "teacher-eta1": "teacher, DDIM with fresh noise",
    "teacher-dpm++": "teacher, DPM-Solver++",
    "teacher-unipc": "teacher, UniPC",
    "student": "student",
    "untrained": "untrained, LCM sampler",
}
MEASURES = {
    "accuracy": "lines read right",
    "ned": "NED",
    "objects_obeyed": "objects obeyed",
    "ink_obeyed": "colours by number obeyed",
    "distance": "kernel distance to real pictures",
}
_EMPHASISED = ("teacher, DDIM", "student")  # intervals drawn as bands; those of more families would hide each other


def report_curves(
    report: Mapping[str, Any], x: str = "evaluations", measure: str = "accuracy"
) -> dict[str, list[dict[str, float]]]:
    """Methods of a report (of `evaluate`) by family, each a row of points with steps, x, value, low, high, rising in x.

    x: "evaluations" of the UNet, or "time" of a whole picture with its condition and decoding, in core seconds on a
    CPU and in seconds on a GPU. measure: one of MEASURES. Pictures that were not drawn (real ones, reconstructions)
    have no point, nor has what was not measured. Raises ValueError for another x or measure.
    """
    if x not in ("evaluations", "time"):
        raise ValueError(f"x must be evaluations or time, not {x!r}.")
    if measure not in MEASURES:
        raise ValueError(f"The measure must be {', '.join(MEASURES)}, not {measure!r}.")
    on_cpu = report["hardware"]["device"] == "cpu"
    times = "core_seconds_a_picture" if on_cpu else "seconds_a_picture"
    prepare = report["prepare_seconds_a_picture"]["cores" if on_cpu else "wall"]
    families: dict[str, list[dict[str, float]]] = {}
    for name, row in report["methods"].items():
        found = re.fullmatch(r"(teacher|student|untrained)-(\d+)(?:-([^@]+))?(?:@(.+))?", name)
        values = (row.get("distribution") or {}).get("kernel") if measure == "distance" else row.get(measure)
        if found is None or values is None:
            continue
        kind = found[1] if found[3] is None else f"{found[1]}-{found[3]}"
        family = _FAMILIES.get(kind, kind.replace("-", ", ", 1))
        if label := found[4]:
            family += f", seed {label}" if label.isdecimal() else f", {label}"
        place = row["evaluations"] if x == "evaluations" else prepare + sum(row[times].values())
        point = {"steps": int(found[2]), "x": place} | {k: values[k] for k in ("value", "low", "high")}
        families.setdefault(family, []).append(point)
    return {family: sorted(points, key=lambda p: p["x"]) for family, points in families.items()}


def report_chart(
    report: Mapping[str, Any], x: str = "evaluations", measure: str = "accuracy", title: str = ""
) -> Figure:
    """A measure against what a picture takes, a curve for each family of methods.

    Bands are the 95 % intervals of the student and of the teacher's DDIM, and thin bars those of the others; a number
    beside a point is its steps. A dotted line is the best any method can do: what the autoencoder leaves of real
    pictures, and for the distance what real pictures are apart. Raises ValueError as `report_curves`.
    """
    figure, axes = new_figure(3.8)
    if _report_panel(axes[0, 0], report, x, measure, title) > 1:
        legend_beside(axes[0, 0])
    return figure


def report_charts(report: Mapping[str, Any]) -> Figure:
    """`report_chart` of accuracy, and below it of objects and distance where measured, against evaluations."""
    measures = [key for key in ("accuracy", "objects_obeyed", "distance") if report_curves(report, "evaluations", key)]
    figure, axes = new_figure(3.8 * len(measures), rows=len(measures))
    for axis, measure in zip(axes[:, 0], measures, strict=True):
        if _report_panel(axis, report, "evaluations", measure, "") > 1:
            legend_beside(axis)
    return figure


def _report_panel(axis: Axes, report: Mapping[str, Any], x: str, measure: str, title: str) -> int:
    """Draw one chart of `report_chart`; returns the number of families."""
    families = report_curves(report, x, measure)
    order = sorted(families, key=lambda family: (family not in _EMPHASISED, list(families).index(family)))
    for i, family in enumerate(order):
        _draw_family(axis, i, family, families[family])
    _draw_best(axis, report, measure)
    axis.set_xscale("log", base=2 if x == "evaluations" else 10)
    if x == "evaluations":
        ticks = sorted({p["x"] for points in families.values() for p in points})
        axis.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=8)
        label = "evaluations of the UNet for a picture (guided steps count twice)"
    else:
        unit = "core seconds" if report["hardware"]["device"] == "cpu" else "seconds"
        label = f"{unit} per whole picture"
        axis.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    if measure != "distance":
        axis.set_ylim(-0.02, 1.05)
    finish(axis, label, MEASURES[measure], title, False)
    return len(families)


def _draw_family(axis: Axes, i: int, family: str, points: Sequence[Mapping[str, float]]) -> None:
    """The i-th curve with its intervals: a band and numbers of steps, or thin bars."""
    strong = family in _EMPHASISED
    places, values, low, high = (np.array([p[key] for p in points]) for key in ("x", "value", "low", "high"))
    color, again = COLORS[i % len(COLORS)], i // len(COLORS)  # a second round of colours has hollow, other marks
    axis.plot(
        places,
        values,
        label=family,
        marker="osD^vP*X"[(i + again) % 8],
        markersize=6 if strong else 4.5,
        color=color,
        markerfacecolor="white" if again else color,
        linewidth=2 if strong else 1.1,
        linestyle=DASHES[(i + again) % len(DASHES)],
        zorder=3 if strong else 2,
    )
    if not strong:
        axis.vlines(places, low, high, color=color, linewidth=0.7, alpha=0.6)
        return
    axis.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
    style = {"fontsize": 8, "color": color, "ha": "center", "textcoords": "offset points"}
    away = (0, 7) if i else (0, -14)  # the first curve's numbers below it, so that those of two curves stay apart
    for point in points:
        axis.annotate(f"{point['steps']}", (point["x"], point["value"]), away, **style)


def _draw_best(axis: Axes, report: Mapping[str, Any], measure: str) -> None:
    """A dotted line at the best any method can do, where the report has it."""
    first = next(iter(report["methods"].values()))
    if measure == "distance":
        best, words = (first.get("distribution") or {}).get("kernel_floor"), "real pictures"
    else:
        best, words = report["methods"].get("reconstruction", {}).get(measure), "autoencoder"
    if best:
        axis.axhline(best["value"], color="0.4", linestyle=":", linewidth=1)
        style = {"fontsize": 8, "color": "0.4", "xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axis.annotate(words, (0.005, best["value"]), (0, 2), **style)


def _plain(text: str) -> str:
    """Text for a figure: a dollar sign would begin mathematics, and matplotlib warns of a letter its font lacks."""
    known = characters(PLAIN_FONT)
    return "".join(letter if ord(letter) in known else "\u25a1" for letter in text).replace("$", r"\$")


def _caption(read: str, wanted: str) -> tuple[str, str]:
    """What was read, with a tick where it is right, and its colour."""
    right = normalise(read) == normalise(wanted)
    mark, color = ("\u2713", COLORS[2]) if right else ("\u2717", COLORS[3])
    return f"{_plain(read) or '(nothing)'} {mark}", color


def text_zoom(
    report: Mapping[str, Any],
    images: Mapping[str, np.ndarray],
    polygons: Sequence[Sequence[np.ndarray]],
    texts: Sequence[Sequence[str]],
    count: int = 6,
) -> Figure:
    """The text of the first pictures enlarged: a row per line, a column per method, below each crop what was read, with
    a tick where it is right.

    images: (B, H, W, 3) uint8 by method. polygons, texts: of each picture's lines. report: of `evaluate`, whose `read`
    is in the order of the lines; a method that it lacks has no words below. count: rows at most.
    """
    places = [(picture, line) for picture, words in enumerate(texts) for line in range(len(words))][:count]
    wanted = [texts[picture][line] for picture, line in places]
    read = {name: report["methods"].get(name, {}).get("read") for name in images}
    figure = picture_grid(
        [[rectify(drawn[picture], polygons[picture][line]) for drawn in images.values()] for picture, line in places],
        [_plain(text) for text in wanted],
        list(images),
        size=0.62,
        captions=[
            [("", "black") if read[name] is None else _caption(read[name][row], text) for name in images]
            for row, text in enumerate(wanted)
        ],
    )
    for axis in figure.axes:
        axis.set_ylabel(axis.get_ylabel(), fontsize=8, rotation=0, ha="right", va="center")
    return figure
