"""A mock picture and everything that is known about it: ground, objects and text in one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from anytext_lcm.data import layout
from anytext_lcm.data.colours import draw_text_colors
from anytext_lcm.data.grounds import draw_ground, draw_material_ground
from anytext_lcm.data.objects import Placed, draw_shape, place_objects

if TYPE_CHECKING:
    from anytext_lcm.data.lettering import TextStyle


@dataclass(frozen=True)
class TextLine:
    """A line as it stands in the picture; a condition holds only a part of it."""

    text: str
    font: str
    color_name: str
    color: tuple[int, int, int]
    font_height: float  # of the font's box, pixels
    angle: float  # degrees, clockwise
    quad: np.ndarray  # (4, 2) int, around the ink, clockwise from top left
    condition_quad: np.ndarray  # (4, 2) int, the same with slack
    language: str = "Latin"

    @classmethod
    def written(cls, block: layout.Block, color_name: str, color: tuple[int, int, int]) -> TextLine:
        """The line of a block, in a colour."""
        return cls(
            text=block.text,
            font=block.font,
            color_name=color_name,
            color=color,
            font_height=block.font_height,
            angle=block.angle,
            quad=block.quad,
            condition_quad=block.condition_quad,
            language=block.language,
        )


@dataclass(frozen=True)
class Scene:
    """A picture and everything that is known about it; its caption says a part of that."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    coverage: np.ndarray  # (H, W) uint8, how much of a pixel is text
    lines: tuple[TextLine, ...]  # from top to bottom
    ground: str  # one of grounds.GROUNDS, or grounds.MATERIAL
    tones: tuple[str, ...]  # names of the ground's colours
    placed: tuple[Placed, ...]
    named_text: bool  # all text colours are shades of named ones

    @property
    def objects(self) -> tuple[tuple[str, str], ...]:
        """Colour name and shape of each object."""
        return tuple((thing.name, thing.shape) for thing in self.placed)


def draw_scene(
    rng: np.random.Generator, size: int, max_lines: int, split: str, material: bool, text_style: TextStyle | None
) -> Scene:
    """Draw a picture of size x size, again until text, ground and colours go together.

    material: the ground is a varied picture without objects, to be edited. text_style: kinds of lines, None for one or
    two large ones in Latin letters.
    """
    while True:
        scene = _try_scene(rng, size, max_lines, split, material, text_style)
        if scene is not None:
            return scene


def _try_scene(
    rng: np.random.Generator, size: int, max_lines: int, split: str, material: bool, text_style: TextStyle | None
) -> Scene | None:
    """None where the lines have no place, or no colour stands out."""
    found = (layout if text_style is None else text_style).place_lines(rng, size, max_lines, split)
    if found is None:
        return None
    blocks, taken = found
    if material:
        text = np.zeros((size, size), np.uint8)
        for block in blocks:
            cv2.fillPoly(text, [block.condition_quad.reshape(-1, 1, 2)], 1)
        ground, placed = draw_material_ground(rng, size, text), []
    else:
        ground = draw_ground(rng, size)
        placed = place_objects(rng, ground, taken)
    colors = draw_text_colors(rng, ground.colors, ground.tones, len(blocks))
    if colors is None:
        return None

    image = np.clip(np.rint(ground.image), 0, 255).astype(np.uint8)
    for thing in placed:
        draw_shape(image, thing.shape, thing.x, thing.y, thing.radius, thing.color)
    coverage, picture = np.zeros((size, size), np.uint8), image.astype(np.float32)
    for block, (_, _, color) in zip(blocks, colors, strict=True):
        alpha = block.coverage[..., None] * np.float32(1 / 255)
        picture += alpha * (np.asarray(color, np.float32) - picture)
        np.maximum(coverage, block.coverage, out=coverage)
    return Scene(
        image=np.rint(picture).astype(np.uint8),
        coverage=coverage,
        lines=tuple(TextLine.written(block, name, rgb) for block, (_, name, rgb) in zip(blocks, colors, strict=True)),
        ground=ground.kind,
        tones=ground.tones,
        placed=tuple(placed),
        named_text=all(named for named, _, _ in colors),
    )


def to_float(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 to (3, H, W) float32 -1..1."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)
    return planes / np.float32(127.5) - np.float32(1)
