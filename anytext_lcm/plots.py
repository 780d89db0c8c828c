"""The figures of the notebooks: each function returns a matplotlib Figure and leaves no state behind.

Imports matplotlib without pyplot, numpy, torch, cv2, the rooms lcm, model and data, the judge and the toy. Notebooks,
the evaluation, the speed command and the script of the READMEs' tables import this.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from anytext_lcm.data.batch import Line, build_conditioning
from anytext_lcm.data.fonts import PLAIN_FONT, characters
from anytext_lcm.data.mock import COLORS as TEXT_COLORS
from anytext_lcm.lcm.samplers import sample_ddim
from anytext_lcm.lcm.solver import DDIMSolver
from anytext_lcm.model.layers import SpatialTransformer
from anytext_lcm.model.unet import UNetModel
from anytext_lcm.toy import Mixture, guided, perfect_student

WIDTH, DPI = 8.0, 72  # inches; a notebook's column
# Okabe and Ito's colours, told apart with any colour vision; a few curves also differ in their dashes, for grey.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#000000", "#f0e442")
DASHES = ("-", "--", "-.", ":")
HATCHES = ("", "//", "..", "\\\\", "xx", "--", "", "oo")  # the same for bars


def _figure(height: float, rows: int = 1, columns: int = 1, **options) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _array(values) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def as_picture(image) -> np.ndarray:
    """A picture for `imshow`: (3, H, W) float -1..1 or (H, W, 3) uint8 -> (H, W, 3); (1, H, W) -> (H, W)."""
    image = _array(image)
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
) -> Figure:
    """Pictures in rows and columns; a row's rest stays empty, and so does a place that holds None.

    Pictures are what `as_picture` takes; two-dimensional ones are shown in gray, black = 0.
    outlines: for each row, for each column, a list of (n, 2) polygons to draw on top. size: inches of a row.
    """
    columns = max(len(row) for row in rows)
    height = size or min(2.2, (WIDTH - 0.6) / columns + 0.15)
    figure, axes = _figure(height * len(rows) + (0.35 if title else 0.1), len(rows), columns)
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
            if i == 0 and j < len(column_names):
                axis.set_title(column_names[j], fontsize=9)
            if j == 0 and i < len(row_names):
                axis.set_ylabel(row_names[i], fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _style(axis: Axes, curves: int) -> dict[str, str]:
    """Colour and dashes of the next curve; many curves are a bundle and stay solid."""
    i = len(axis.lines)
    return {"color": COLORS[i % len(COLORS)], "linestyle": DASHES[i] if curves <= len(DASHES) else "-"}


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
    """Curves by name, each (x, y); a None for x counts from 1."""
    figure, axes = _figure(height)
    axis: Axes = axes[0, 0]
    for name, (x, y) in curves.items():
        y = _array(y)
        x = np.arange(1, len(y) + 1) if x is None else _array(x)
        axis.plot(x, y, label=name, marker="o" if marks else None, markersize=4, **_style(axis, len(curves)))
    _finish(axis, x_label, y_label, title, len(curves) > 1)
    axis.set_xscale(x_scale)
    axis.set_yscale(y_scale)
    return figure


def panels(
    figures: Mapping[str, Mapping[str, tuple]],
    x_label: str,
    title: str = "",
    height: float = 2.6,
    legend: bool = True,
) -> Figure:
    """Several small plots side by side, sharing what x means: {y label: {name: (x, y)}}."""
    figure, axes = _figure(height, 1, len(figures))
    for axis, (y_label, curves) in zip(axes[0], figures.items(), strict=True):
        for name, (x, y) in curves.items():
            axis.plot(_array(x), _array(y), label=name, **_style(axis, len(curves)))
        _finish(axis, x_label, y_label, "", legend and len(curves) > 1)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def bars(groups: Mapping[str, Mapping[str, float]], x_label: str, title: str = "") -> Figure:
    """Stacked horizontal bars: one for each group, one colour for each name in it."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    figure, axes = _figure(max(0.9 + 0.36 * len(groups), 0.3 + 0.19 * len(names)))
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
    _finish(axis, x_label, "", title, False)
    if len(names) > 1:
        _legend_beside(axis)
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
    figure, axes = _figure(1.5 * len(samples) + 0.4, len(samples), len(columns), sharex=True)
    middles = (bins[1:] + bins[:-1]) / 2
    for i, row in enumerate(samples):
        for axis, column in zip(axes[i], columns, strict=True):
            axis.hist(_array(row[column]).ravel(), bins=bins, density=True, color=COLORS[4])
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


def network_map(parameters: Mapping[str, int], title: str = "") -> Figure:
    """AnyText2's six networks, what flows between them, and the parameters of each by the name of its part.

    parameters: as `inspect_modules.part_parameters` gives them.
    """
    figure, axes = _figure(3.4)
    axis: Axes = axes[0, 0]
    places = {
        "recogniser": (0.9, 2.6),
        "embedding manager": (3.2, 2.6),
        "text tower": (5.5, 2.6),
        "WriteNet": (3.2, 0.9),
        "UNet": (5.5, 0.9),
        "VAE": (7.8, 0.9),
    }
    for name, (x, y) in places.items():
        color = "#f2a65a" if name in ("UNet", "WriteNet") else "#d7d7d7"
        label = f"{name}\n{parameters[name] / 1e6:.1f} M"
        axis.text(
            x,
            y,
            label,
            ha="center",
            va="center",
            fontsize=9,
            bbox={"boxstyle": "round,pad=0.45", "facecolor": color, "edgecolor": "none"},
        )
    flows = (
        ((-0.9, 2.6), (0.35, 2.6), "glyph\nlines"),
        ((1.5, 2.6), (2.3, 2.6), "what it\nreads"),
        ((4.1, 2.6), (4.95, 2.6), "one token\na line"),
        ((5.5, 2.15), (5.5, 1.35), "context"),
        ((1.2, 0.9), (2.65, 0.9), "placed glyphs, positions,\nmasked latents"),
        ((3.75, 0.9), (5.0, 0.9), "residuals"),
        ((6.0, 0.9), (7.35, 0.9), "latents"),
        ((8.25, 0.9), (9.3, 0.9), "picture"),
        ((4.95, 2.35), (3.75, 1.3), "text context"),
    )
    for start, end, label in flows:
        axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "0.35"})
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        shift = 0.42 if start[1] == end[1] else 0
        axis.text(
            x,
            y + shift,
            label,
            ha="center",
            va="center",
            fontsize=7.5,
            color="0.2",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    axis.set_xlim(-1.1, 9.5)
    axis.set_ylim(0.2, 3.4)
    axis.axis("off")
    if title:
        axis.set_title(title, fontsize=11)
    return figure


def unet_map(unet: UNetModel, title: str = "") -> Figure:
    """A UNet as two legs and a floor: where attention and AttnX sit, where WriteNet's residuals are added.

    The left leg falls from the latents to the middle block, the right one rises to the predicted noise; a
    dashed line is a skip connection, to which a residual is added on its way.
    """
    left, right = list(unet.input_blocks), list(unet.output_blocks)[::-1]
    figure, axes = _figure(0.34 * len(left) + 1.3)
    axis: Axes = axes[0, 0]

    def box(x: float, y: float, name: str, block) -> None:
        attention = [m for layer in block for m in layer.modules() if isinstance(m, SpatialTransformer)]
        extra = any(hasattr(b, "attn1x") for a in attention for b in a.transformer_blocks)
        color = "#d7d7d7" if not attention else "#f2a65a" if extra else "#8fb8de"
        axis.text(
            x,
            y,
            name,
            ha="center",
            va="center",
            fontsize=8,
            family="monospace",
            bbox={"boxstyle": "round,pad=0.25", "facecolor": color, "edgecolor": "none"},
        )

    for i, (down, up) in enumerate(zip(left, right, strict=True)):
        box(0, -i, f"input_blocks.{i}", down)
        box(4, -i, f"output_blocks.{len(right) - 1 - i}", up)
        axis.plot([0.75, 3.2], [-i, -i], color="0.6", linestyle="--", linewidth=1)
        axis.text(
            2,
            -i,
            f"+ residual {i}",
            ha="center",
            va="center",
            fontsize=8,
            color="#b00040",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    box(0, -len(left), "middle_block", unet.middle_block)
    axis.text(2, -len(left), f"+ residual {len(left)}", ha="center", va="center", fontsize=8, color="#b00040")
    arrow = {"arrowstyle": "->", "color": "0.4"}
    axis.annotate("", (1.35, -len(left)), (0.75, -len(left)), arrowprops=arrow)
    axis.annotate("", (3.6, -len(left) + 0.55), (2.65, -len(left)), arrowprops=arrow)
    axis.text(0, 0.9, "$x_t$", ha="center")
    axis.text(4, 0.9, r"$\hat\epsilon$", ha="center")
    for x, (color, name) in zip(
        (-0.6, 1.3, 3.1),
        (("#d7d7d7", "convolutions"), ("#8fb8de", "+ attention"), ("#f2a65a", "+ attention + AttnX")),
        strict=True,
    ):
        axis.text(
            x,
            -len(left) - 1.2,
            name,
            fontsize=8,
            va="center",
            bbox={"boxstyle": "round,pad=0.25", "facecolor": color, "edgecolor": "none"},
        )
    axis.set_xlim(-1, 5)
    axis.set_ylim(-len(left) - 1.7, 1.4)
    axis.axis("off")
    if title:
        axis.set_title(title, fontsize=11)
    return figure


def intervals(rows: Mapping[str, object], x_label: str, title: str = "") -> Figure:
    """Estimates with their intervals (anything with value, low and high), one under the other."""
    figure, axes = _figure(0.9 + 0.34 * len(rows))
    axis: Axes = axes[0, 0]
    for i, row in enumerate(rows.values()):
        axis.plot([row.low, row.high], [i, i], color=COLORS[0], linewidth=2)
        axis.plot(row.value, i, "o", color=COLORS[0])
        axis.annotate(
            f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]",
            (1.02, i),
            fontsize=8,
            va="center",
            xycoords=("axes fraction", "data"),
        )
    axis.set_yticks(range(len(rows)), list(rows), fontsize=9)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    _finish(axis, x_label, "", title, False)
    return figure


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
    figure, axes = _figure(1.6 + 0.42 * (len(training) + len(sampling)), rows=2, columns=1)
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
        _finish(axis, "ms a picture", "", title, False)
        _legend_beside(axis)
    return figure


# -- the comparison (notebook 05) ------------------------------------------------------------------------

_FAMILIES = {
    "teacher": "teacher, DDIM",
    "teacher-eta1": "teacher, DDIM with fresh noise",
    "teacher-dpm++": "teacher, DPM-Solver++",
    "teacher-unipc": "teacher, UniPC",
    "student": "student",
    "untrained": "untrained, LCM sampler",
}


def report_curves(
    report: Mapping[str, Any], x: str = "evaluations", measure: str = "accuracy"
) -> dict[str, list[dict[str, float]]]:
    """Methods of a report (of `evaluate`) by family, each a row of points with steps, x, value, low, high, rising in x.

    x: "evaluations" of the UNet, or "time" of a whole picture with its condition and decoding, in core seconds on a
    CPU and in seconds on a GPU. measure: "accuracy", the share of lines right, "ned", or "distance", the kernel
    distance to real pictures. Pictures that were not drawn (real ones, reconstructions) have no point, nor has what
    was not measured. Raises ValueError for another x or measure.
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
        values = (row.get("distribution") or {}).get("kernel") if measure == "distance" else row[measure]
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


MEASURES = {"accuracy": "lines read right", "ned": "NED", "distance": "kernel distance to real pictures"}
_LOUD = ("teacher, DDIM", "student")  # whose intervals are drawn as bands; of the others they would hide each other


def report_chart(
    report: Mapping[str, Any], x: str = "evaluations", measure: str = "accuracy", title: str = ""
) -> Figure:
    """A measure against what a picture takes, a curve for each family of methods.

    Bands are the 95 % intervals of the student and of the teacher's DDIM, and thin bars those of the others; a number
    beside a point is its steps. A dotted line is the best any method can do: what the autoencoder leaves of real
    pictures, and for the distance what real pictures are apart. Raises ValueError as `report_curves`.
    """
    figure, axes = _figure(3.8)
    if _report_panel(axes[0, 0], report, x, measure, title) > 1:
        _legend_beside(axes[0, 0])
    return figure


def report_charts(report: Mapping[str, Any]) -> Figure:
    """`report_chart` of accuracy, and below it of the distance where it was measured, against evaluations."""
    measures = [key for key in ("accuracy", "distance") if report_curves(report, "evaluations", key)]
    figure, axes = _figure(3.8 * len(measures), rows=len(measures))
    for axis, measure in zip(axes[:, 0], measures, strict=True):
        if _report_panel(axis, report, "evaluations", measure, "") > 1:
            _legend_beside(axis)
    return figure


def _report_panel(axis: Axes, report: Mapping[str, Any], x: str, measure: str, title: str) -> int:
    """Draws the curves of `report_chart`; returns the number of families."""
    families = report_curves(report, x, measure)
    order = sorted(families, key=lambda family: (family not in _LOUD, list(families).index(family)))
    for i, family in enumerate(order):
        points, loud = families[family], family in _LOUD
        places, values, low, high = (np.array([p[key] for p in points]) for key in ("x", "value", "low", "high"))
        color, again = COLORS[i % len(COLORS)], i // len(COLORS)  # a second round of colours has hollow, other marks
        axis.plot(
            places,
            values,
            label=family,
            marker="osD^vP*X"[(i + again) % 8],
            markersize=6 if loud else 4.5,
            color=color,
            markerfacecolor="white" if again else color,
            linewidth=2 if loud else 1.1,
            linestyle=DASHES[(i + again) % len(DASHES)],
            zorder=3 if loud else 2,
        )
        if loud:
            axis.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
            for point in points:
                axis.annotate(
                    f"{point['steps']}",
                    (point["x"], point["value"]),
                    (0, 7),
                    fontsize=8,
                    color=color,
                    ha="center",
                    textcoords="offset points",
                )
        else:
            axis.vlines(places, low, high, color=color, linewidth=0.7, alpha=0.6)
    first = next(iter(report["methods"].values()))
    if measure == "distance":
        best, words = (first.get("distribution") or {}).get("kernel_floor"), "real pictures"
    else:
        best, words = report["methods"].get("reconstruction", {}).get(measure), "autoencoder"
    if best:
        axis.axhline(best["value"], color="0.4", linestyle=":", linewidth=1)
        axis.annotate(
            words,
            (0.005, best["value"]),
            (0, 2),
            fontsize=8,
            color="0.4",
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
        )
    axis.set_xscale("log", base=2 if x == "evaluations" else 10)
    if x == "evaluations":
        ticks = sorted({p["x"] for points in families.values() for p in points})
        axis.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=8)
        label = "evaluations of the UNet for a picture (guided steps count twice)"
    else:
        unit = "core seconds" if report["hardware"]["device"] == "cpu" else "seconds"
        label = f"{unit} a whole picture"
        axis.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    if measure != "distance":
        axis.set_ylim(-0.02, 1.05)
    _finish(axis, label, MEASURES[measure], title, False)
    return len(families)


def _plain(text: str) -> str:
    """Text for a figure: a dollar sign would begin mathematics, and a letter that the font lacks would be warned of."""
    known = characters(PLAIN_FONT)
    return "".join(letter if ord(letter) in known else "\u25a1" for letter in text).replace("$", r"\$")


def text_zoom(
    report: Mapping[str, Any],
    images: Mapping[str, np.ndarray],
    polygons: Sequence[Sequence[np.ndarray]],
    texts: Sequence[Sequence[str]],
    count: int = 6,
) -> Figure:
    """The text of the first pictures enlarged: a row for each line, a column for each method, below each crop what was
    read, with a tick where it is right.

    images: (B, H, W, 3) uint8 by method. polygons, texts: of each picture's lines. report: of `evaluate`, whose `read`
    is in the order of the lines; a method that it lacks has no words below. count: rows at most.
    """
    from anytext_lcm.judge import normalise, rectify  # onnxruntime takes a second to import, for this figure alone

    places = [(picture, line) for picture, words in enumerate(texts) for line in range(len(words))][:count]
    figure, axes = _figure(0.62 * len(places) + 0.45, len(places), len(images))
    for column, (name, pictures) in enumerate(images.items()):
        read = report["methods"].get(name, {}).get("read")
        for row, (picture, line) in enumerate(places):
            axis: Axes = axes[row, column]
            axis.imshow(rectify(pictures[picture], polygons[picture][line]), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            wanted = texts[picture][line]
            if read is not None:
                right = normalise(read[row]) == normalise(wanted)
                mark = "\u2713" if right else "\u2717"
                words = f"{_plain(read[row]) or '(nothing)'} {mark}"
                axis.set_xlabel(words, fontsize=8, color=COLORS[2] if right else COLORS[3], labelpad=2)
            if row == 0:
                axis.set_title(name, fontsize=8)
            if column == 0:
                axis.set_ylabel(_plain(wanted), fontsize=8, rotation=0, ha="right", va="center")
    return figure


# -- the exact toy (notebook 03) -------------------------------------------------------------------------


def _times(timestep: int, x: torch.Tensor) -> torch.Tensor:
    return torch.full((len(x),), int(timestep))


def toy_targets(data: Mixture, timestep: int, students: Mapping[str, object] | None = None) -> Figure:
    """On a line, at one timestep: below the density of x_t, above the posterior mean and the end of the path.

    students: functions (x, t) -> answer, drawn over them.
    """
    figure, (upper, lower) = _figure(4.0, 2, 1, sharex=True, height_ratios=(3, 1))
    x = torch.linspace(-2.5, 2.5, 301)[:, None]
    t = _times(timestep, x)
    for mean in data.means[:, 0]:
        upper[0].axhspan(mean - 2 * data.spread, mean + 2 * data.spread, color="0.9")
    curves = {"posterior mean": data.posterior_mean(x, t), "end of the path": data.consistency(x, t)}
    for name, answer in (students or {}).items():
        curves[name] = answer(x, t)
    for name, y in curves.items():
        upper[0].plot(x[:, 0], _array(y)[:, 0], label=name, **_style(upper[0], len(curves)))
    lower[0].fill_between(x[:, 0], _array(data.log_density(x, t).exp()), color="0.7")
    title = f"What $x_t$ at $t = {timestep}$ says about the clean data (grey: where data are)"
    _finish(upper[0], "", "answer $x_0$", title, True)
    _finish(lower[0], "$x_t$", "$p_t(x_t)$", "", False)
    return figure


def toy_paths(data: Mixture, steps: int, count: int = 9) -> Figure:
    """On a line: DDIM's polygons in `steps` steps over the exact paths, from evenly spread starts."""
    figure, axes = _figure(3.2)
    axis: Axes = axes[0, 0]
    starts = torch.special.ndtri((torch.arange(count) + 0.5) / count)[:, None].float()
    fine = [999, *range(979, 0, -40), 0]
    exact = [starts.double()]
    for start, end in zip(fine[:-1], fine[1:], strict=True):
        exact.append(data.flow(exact[-1], start, end, steps=16))
    times, seen = [999], [starts]

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if int(t[0]) < 999:
            times.append(int(t[0])), seen.append(x)
        return data.predict(x, t)

    seen.append(sample_ddim(predict, starts, data.schedule, steps, spacing="trailing"))
    axis.plot(fine, torch.cat(exact, 1).T, color=COLORS[1], linewidth=3, alpha=0.5)
    axis.plot([*times, 0], torch.cat(seen, 1).T, color=COLORS[0], marker="o", markersize=3, linewidth=1)
    axis.plot([], [], color=COLORS[1], linewidth=3, alpha=0.5, label="exact")
    axis.plot([], [], color=COLORS[0], marker="o", markersize=3, linewidth=1, label=f"DDIM, {steps} steps")
    axis.invert_xaxis()
    _finish(axis, "$t$, from noise to data", "$x_t$", "Paths of the probability-flow ODE, and DDIM along them", False)
    _legend_beside(axis)  # to look for a free place among all these paths takes seconds
    return figure


def toy_skip(data: Mixture, skip: int, timestep: int = 999) -> Figure:
    """On a line: what a perfect student of the `lcm` objective answers at a grid timestep, for one skip."""
    figure, axes = _figure(3.0)
    axis: Axes = axes[0, 0]
    x = torch.linspace(-2.5, 2.5, 301)[:, None]
    solver = DDIMSolver(data.schedule, skip=skip)
    index = int(solver.index_of(torch.tensor([timestep])))
    answers = {
        "end of the path": data.consistency(x, _times(timestep, x)),
        f"perfect student, skip {skip}": perfect_student(data.predict, x, solver, index),
        "posterior mean": data.posterior_mean(x, _times(timestep, x)),
    }
    for name, y in answers.items():
        axis.plot(x[:, 0], _array(y)[:, 0], label=name, **_style(axis, len(answers)))
    _finish(axis, f"$x_t$ at $t = {timestep}$", "answer $x_0$", "The skip decides what is learnt, even perfectly", True)
    return figure


def toy_guidance(data: Mixture, cond: Mixture, timestep: int, guidance_scale: float) -> Figure:
    """In the plane: the guided probability-flow field at one timestep, and where 200 starts end."""
    figure, axes = _figure(3.9, 1, 2)
    left, right = axes[0]
    line = torch.linspace(-1.8, 1.8, 17)
    at = torch.cartesian_prod(line, line)
    t = _times(timestep, at)
    downhill = -guided(data, cond, guidance_scale)(at, t)  # the sampler walks against eps
    left.quiver(*at.T, *downhill.T, color=COLORS[0], angles="xy")
    noise = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    ends = data.flow(noise, 999, 0, given=cond, guidance_scale=guidance_scale)
    right.plot(*ends.T, "o", color=COLORS[3], markersize=3, alpha=0.6, label="ends of 200 paths")
    for axis, title in ((left, f"direction at $t = {timestep}$"), (right, "where the paths end")):
        axis.plot(*data.means.T, "o", color="0.6", markersize=11, fillstyle="none", label="modes")
        axis.plot(*cond.means.T, "o", color="black", markersize=11, fillstyle="none", label="wanted modes")
        axis.set_aspect("equal")
        axis.set_xlim(-2, 2)
        axis.set_ylim(-2, 2)
        _finish(axis, "first coordinate", "second coordinate", title, axis is right)
    figure.suptitle(f"Guidance scale s = {guidance_scale:g} (w = {guidance_scale - 1:g})", fontsize=11)
    return figure


def toy_clouds(data: Mixture, clouds: Mapping[str, object], title: str = "") -> Figure:
    """In the plane: samples side by side, (N, 2) by name, over the modes of the data."""
    figure, axes = _figure(WIDTH / len(clouds) + 0.9, 1, len(clouds), sharex=True, sharey=True)
    for axis, (name, points) in zip(axes[0], clouds.items(), strict=True):
        axis.plot(*_array(points).T, ".", color=COLORS[0], markersize=2)
        axis.plot(*data.means.T, "o", color="black", markersize=9, fillstyle="none")
        axis.set_aspect("equal")
        axis.set_xlim(-1.6, 1.6)
        axis.set_ylim(-1.6, 1.6)
        narrow = name.replace(", ", ",\n")  # a panel is too narrow for one line
        _finish(axis, "first coordinate", "second coordinate" if axis is axes[0, 0] else "", narrow, False)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _legend_beside(axis: Axes) -> None:
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def _finish(axis: Axes, x_label: str, y_label: str, title: str, legend: bool) -> None:
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    if title:
        axis.set_title(title, fontsize=11)
    if legend:
        axis.legend(fontsize=9, frameon=False)
    axis.grid(alpha=0.25)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def text_line(
    text: str,
    angle: float = 0.0,
    width: int = 100,
    height: int = 30,
    color: str = "any",
    font: str = "STIXGeneralBolIta.ttf",
    side: int = 128,
) -> Figure:
    """How one line is told to the network: placed glyph, position, font hint, and the glyph line below.

    The box of width x height pixels lies in the middle of a picture of `side`, turned by `angle` degrees clockwise;
    color is a name of `mock.COLORS`, or "any". Raises ValueError for what cannot be drawn.
    """
    corners = cv2.boxPoints(((side / 2, side / 2), (width, height), angle))
    box = np.clip(np.rint(corners), 0, side - 1).astype(int)
    line = Line(text, box, None if color == "any" else TEXT_COLORS[color], hint_font=font)
    item = build_conditioning([line], (side, side), max_lines=1)
    figure = Figure(figsize=(WIDTH, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplot_mosaic([["glyph", "position", "font hint"], ["glyph line"] * 3], height_ratios=[2.2, 1])
    ink = np.asarray(TEXT_COLORS.get(color, (255, 255, 255))) / 255
    shown = {
        "glyph": (item["glyphs"][0][..., None] / 255 * ink).clip(0, 1),
        "position": item["positions"][0],
        "font hint": item["font_hint"][0],
        "glyph line": item["gly_line"][0],
    }
    closed = np.concatenate([box, box[:1]])
    for name, picture in shown.items():
        axes[name].imshow(picture, cmap="gray", interpolation="nearest", vmin=0)
        axes[name].set_title(name, fontsize=9)
        axes[name].set_xticks([])
        axes[name].set_yticks([])
        if name != "glyph line":
            axes[name].plot(closed[:, 0], closed[:, 1], color="#e6007e", linewidth=1.2)
    return figure


def overlay(image, mask, color: tuple[int, int, int] = (230, 0, 126)) -> np.ndarray:
    """A picture with a mask laid over it in a colour: what `as_picture` takes and (H, W) -> (H, W, 3) uint8.

    The mask's largest value covers three quarters of the picture, 0 nothing.
    """
    picture, mask = as_picture(image), _array(mask).astype(float)
    picture = picture * 255 if picture.dtype.kind == "f" else picture
    share = 0.75 * (mask / max(mask.max(), 1))[..., None]
    return np.rint(picture * (1 - share) + share * np.asarray(color)).astype(np.uint8)
