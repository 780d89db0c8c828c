"""The figures of the notebooks: each function returns a matplotlib Figure and leaves no state behind.

Imports matplotlib without pyplot, numpy, torch, cv2 and the rooms model and data. Nothing imports this.
"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anytext_lcm.data.batch import Line, build_conditioning
from anytext_lcm.data.mock import COLORS
from anytext_lcm.model.layers import SpatialTransformer
from anytext_lcm.model.unet import UNetModel

WIDTH, DPI = 8.0, 72  # inches; a notebook's column


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
        axis.plot(x, y, label=name, marker="o" if marks else None, markersize=4)
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
            axis.plot(_array(x), _array(y), label=name)
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
        axis.barh(list(groups), values, left=left, label=name, color=f"C{i}" if i < 10 else str(0.1 * (i - 9)))
        left += values
    axis.invert_yaxis()
    _finish(axis, x_label, "", title, False)
    if len(names) > 1:
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
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
            axis.hist(_array(row[column]).ravel(), bins=bins, density=True, color="C0", alpha=0.75)
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
            x, y, name, ha="center", va="center", fontsize=8, family="monospace",
            bbox={"boxstyle": "round,pad=0.25", "facecolor": color, "edgecolor": "none"},
        )  # fmt: skip

    for i, (down, up) in enumerate(zip(left, right, strict=True)):
        box(0, -i, f"input_blocks.{i}", down)
        box(4, -i, f"output_blocks.{len(right) - 1 - i}", up)
        axis.plot([0.75, 3.2], [-i, -i], color="0.6", linestyle="--", linewidth=1)
        axis.text(2, -i, f"+ residual {i}", ha="center", va="center", fontsize=8, color="#b00040",
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
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
        axis.text(x, -len(left) - 1.2, name, fontsize=8, va="center",
                  bbox={"boxstyle": "round,pad=0.25", "facecolor": color, "edgecolor": "none"})  # fmt: skip
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
        axis.plot([row.low, row.high], [i, i], color="C0", linewidth=2)
        axis.plot(row.value, i, "o", color="C0")
        axis.annotate(f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]", (1.02, i), fontsize=8, va="center",
                      xycoords=("axes fraction", "data"))  # fmt: skip
    axis.set_yticks(range(len(rows)), list(rows), fontsize=9)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    _finish(axis, x_label, "", title, False)
    return figure


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
    line = Line(text, box, None if color == "any" else COLORS[color], hint_font=font)
    item = build_conditioning([line], (side, side), max_lines=1)
    figure = Figure(figsize=(WIDTH, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplot_mosaic([["glyph", "position", "font hint"], ["glyph line"] * 3], height_ratios=[2.2, 1])
    ink = np.asarray(COLORS.get(color, (255, 255, 255))) / 255
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
