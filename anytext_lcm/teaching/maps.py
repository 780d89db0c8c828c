"""
Figures of the network and of one line of text on its way in.
"""

from collections.abc import Mapping

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anytext_lcm.data.batch import Line, build_conditioning
from anytext_lcm.data.mock import COLORS as TEXT_COLORS
from anytext_lcm.figures.pictures import as_picture
from anytext_lcm.figures.style import DPI, WIDTH, as_array, new_figure
from anytext_lcm.model.layers import SpatialTransformer
from anytext_lcm.model.unet import UNetModel


def network_map(parameters: Mapping[str, int], title: str = "") -> Figure:
    """AnyText2's six networks, what flows between them, and the parameters of each by the name of its part.

    parameters: as `inspect_modules.part_parameters` gives them.
    """
    figure, axes = new_figure(3.4)
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
    figure, axes = new_figure(0.34 * len(left) + 1.3)
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
    picture, mask = as_picture(image), as_array(mask).astype(float)
    picture = picture * 255 if picture.dtype.kind == "f" else picture
    share = 0.75 * (mask / max(mask.max(), 1))[..., None]
    return np.rint(picture * (1 - share) + share * np.asarray(color)).astype(np.uint8)
