"""Figures of notebooks 01 and 02: the network's parts, the UNet's blocks, one line of text on its way in."""

from collections.abc import Mapping

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import nn

from anytext_lcm.data.batch import Line, build_conditioning
from anytext_lcm.data.colours import COLORS as TEXT_COLORS
from anytext_lcm.figures.pictures import as_picture
from anytext_lcm.figures.style import DPI, WIDTH, as_array, new_figure
from anytext_lcm.model.layers import SpatialTransformer
from anytext_lcm.model.unet import UNetModel

GREY, BLUE, ORANGE = "#d7d7d7", "#8fb8de", "#f2a65a"
_PLACES = {  # x and y of each part
    "recogniser": (1.75, 3.0),
    "embedding manager": (4.4, 3.0),
    "text tower": (7.15, 3.0),
    "WriteNet": (4.4, 1.35),
    "UNet": (7.15, 1.35),
    "VAE": (9.55, 1.35),
}
_FLOWS = (  # from, to, what flows, where that is written
    ((0.55, 3.0), (1.17, 3.0), "glyph\nline", (0.2, 3.0)),
    ((2.33, 3.0), (3.37, 3.0), "features", (2.85, 3.17)),
    ((4.4, 3.75), (4.4, 3.3), "position, font, colour", (4.4, 3.9)),
    ((5.43, 3.0), (6.58, 3.0), "a token\nper line", (6.0, 3.27)),
    ((7.15, 3.75), (7.15, 3.3), "two captions", (7.15, 3.9)),
    ((6.8, 2.7), (4.75, 1.65), "context with *", (5.8, 2.2)),
    ((7.15, 2.7), (7.15, 1.65), "context", (7.15, 2.2)),
    ((2.2, 1.35), (3.9, 1.35), "placed glyphs,\npositions", (1.6, 1.35)),
    ((4.9, 1.35), (6.67, 1.35), "residuals", (5.85, 1.5)),
    ((7.15, 0.66), (7.15, 1.06), "$x_t$, $t$", (7.15, 0.53)),
    ((7.63, 1.35), (9.12, 1.35), "latents", (8.4, 1.5)),
    ((9.55, 2.1), (9.55, 1.65), "masked picture", (9.55, 2.25)),
    ((9.98, 1.35), (10.5, 1.35), "picture", (10.95, 1.35)),
    ((4.4, 0.2), (4.4, 1.06), "", (0, 0)),
)
_MASKED = ([9.55, 9.55, 4.4], [1.08, 0.2, 0.2])  # from the VAE's encoder, below the UNet, to WriteNet


def network_map(parameters: Mapping[str, int], title: str = "") -> Figure:
    """AnyText2's six networks as boxes, and arrows for what flows between them.

    parameters: their number by the name of each part, as `census.part_parameters` counts them. Orange parts are those
    that an adapter changes.
    """
    figure, axes = new_figure(3.6)
    axis: Axes = axes[0, 0]
    for name, (x, y) in _PLACES.items():
        color = ORANGE if name in ("UNet", "WriteNet") else GREY
        _box(axis, x, y, f"{name}\n{parameters[name] / 1e6:.1f} M", color, pad=0.45, fontsize=9, ha="center")
    axis.plot(*_MASKED, color="0.35", linewidth=1)
    _label(axis, 8.2, 0.2, "masked latents", color="0.2", fontsize=7.5)
    for start, end, label, (x, y) in _FLOWS:
        axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "0.35", "shrinkA": 0, "shrinkB": 0})
        _label(axis, x, y, label, color="0.2", fontsize=7.5)
    _frame(axis, (-0.2, 11.4), (0, 4.1), title)
    return figure


def unet_map(unet: UNetModel, title: str = "") -> Figure:
    """The UNet's blocks by name, coloured by whether they hold attention and AttnX.

    The left leg goes from the latents down to the middle block, the right one up to the predicted noise. A dashed line
    is a skip connection, to which one of WriteNet's residuals is added.
    """
    left, right = list(unet.input_blocks), list(unet.output_blocks)[::-1]
    bottom = -len(left)
    figure, axes = new_figure(0.34 * len(left) + 1.3)
    axis: Axes = axes[0, 0]
    red = {"color": "#b00040", "fontsize": 8}
    for i, (down, up) in enumerate(zip(left, right, strict=True)):
        _block(axis, 0, -i, f"input_blocks.{i}", down)
        _block(axis, 4, -i, f"output_blocks.{len(right) - 1 - i}", up)
        axis.plot([0.75, 3.2], [-i, -i], color="0.6", linestyle="--", linewidth=1)
        _label(axis, 2, -i, f"+ residual {i}", **red)
    _block(axis, 0, bottom, "middle_block", unet.middle_block)
    axis.text(2, bottom, f"+ residual {len(left)}", ha="center", va="center", **red)
    arrow = {"arrowstyle": "->", "color": "0.4"}
    axis.annotate("", (1.35, bottom), (0.75, bottom), arrowprops=arrow)
    axis.annotate("", (3.6, bottom + 0.55), (2.65, bottom), arrowprops=arrow)
    axis.text(0, 0.9, "$x_t$", ha="center")
    axis.text(4, 0.9, r"$\hat\epsilon$", ha="center")
    legend = ((-0.6, GREY, "convolutions"), (1.3, BLUE, "+ attention"), (3.1, ORANGE, "+ attention + AttnX"))
    for x, color, name in legend:
        _box(axis, x, bottom - 1.2, name, color)
    _frame(axis, (-1, 5), (bottom - 1.7, 1.4), title)
    return figure


def _block(axis: Axes, x: float, y: float, name: str, block: nn.Module) -> None:
    """One block of the UNet, coloured by its layers."""
    attention = [m for m in block.modules() if isinstance(m, SpatialTransformer)]
    attnx = any(hasattr(b, "attn1x") for a in attention for b in a.transformer_blocks)
    color = GREY if not attention else ORANGE if attnx else BLUE
    _box(axis, x, y, name, color, ha="center", family="monospace")


def _box(axis: Axes, x: float, y: float, text: str, color: str, pad: float = 0.25, **options) -> Text:
    box = {"boxstyle": f"round,pad={pad}", "facecolor": color, "edgecolor": "none"}
    return axis.text(x, y, text, **{"va": "center", "fontsize": 8, "bbox": box, **options})


def _label(axis: Axes, x: float, y: float, text: str, **options) -> Text:
    """Text on white, above the lines it stands on."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    return axis.text(x, y, text, ha="center", va="center", bbox=box, **options)


def _frame(axis: Axes, across: tuple[float, float], up: tuple[float, float], title: str) -> None:
    axis.set_xlim(*across)
    axis.set_ylim(*up)
    axis.axis("off")
    if title:
        axis.set_title(title, fontsize=11)


def text_line(
    text: str,
    angle: float = 0.0,
    width: int = 100,
    height: int = 30,
    color: str = "any",
    font: str = "STIXGeneralBolIta.ttf",
    side: int = 128,
) -> Figure:
    """The pictures through which one line reaches the network.

    Above placed glyph, position and font hint, (side, side) each; below the glyph line (80, 512). The outlined box of
    width x height pixels lies in the middle of the picture, turned clockwise by `angle` degrees. color: a name of
    `colours.COLORS`, or "any". Raises ValueError for what cannot be drawn.
    """
    corners = cv2.boxPoints(((side / 2, side / 2), (width, height), angle))
    box = np.clip(np.rint(corners), 0, side - 1).astype(int)
    line = Line(text, box, None if color == "any" else TEXT_COLORS[color], hint_font=font)
    item = build_conditioning([line], (side, side), max_lines=1)
    ink = np.asarray(TEXT_COLORS.get(color, (255, 255, 255))) / 255
    shown = {
        "glyph": (item["glyphs"][0][..., None] / 255 * ink).clip(0, 1),
        "position": item["positions"][0],
        "font hint": item["font_hint"][0],
        "glyph line": item["gly_line"][0],
    }
    figure = Figure(figsize=(WIDTH, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplot_mosaic([["glyph", "position", "font hint"], ["glyph line"] * 3], height_ratios=[2.2, 1])
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
    """A picture (H, W, 3) uint8 with a mask (H, W) laid over it in a colour.

    image: what `as_picture` takes. The mask's largest value covers three quarters of the picture, 0 nothing.
    """
    picture, mask = as_picture(image), as_array(mask).astype(float)
    picture = picture * 255 if picture.dtype.kind == "f" else picture
    share = 0.75 * (mask / max(mask.max(), 1))[..., None]
    return np.rint(picture * (1 - share) + share * np.asarray(color)).astype(np.uint8)
