"""A picture and everything that is known about it, and what captions are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anytext_lcm.data.background import COLORS, SHAPES
from anytext_lcm.data.batch import TEXT_PHRASES
from anytext_lcm.data.layout import Block


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
    def written(cls, block: Block, color_name: str, color: tuple[int, int, int]) -> TextLine:
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
    """A picture and everything that is known about it."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    coverage: np.ndarray  # (H, W) uint8, how much of a pixel is text
    lines: tuple[TextLine, ...]  # from top to bottom
    background_name: str
    objects: tuple[tuple[str, str], ...]  # (colour name, shape)


def caption_vocabulary() -> tuple[str, ...]:
    """List every word and sign that occurs in the captions of this data set, sorted."""
    signs = {",", ".", "*", ":"}
    grammar = {"a", "an", "and", "on", "with", "background", "text"}
    phrases = {word for phrase in TEXT_PHRASES for word in phrase.lower().replace(":", "").split()}
    return tuple(sorted(signs | grammar | phrases | set(COLORS) | set(SHAPES)))


def article(word: str) -> str:
    """The indefinite article of a word."""
    return "an" if word[0] in "aeiou" else "a"


def to_float(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 to (3, H, W) float32 -1..1."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)
    return planes / np.float32(127.5) - np.float32(1)
