"""The line slots of an item while they are filled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anytext_lcm.data.glyphs import GLYPH_LINE_SIZE, draw_glyph_line, draw_packed_glyph_line, draw_placed_glyph


class Slots:
    """Lines drawn one after the other into L slots of a picture; slots that no line fills stay zero.

    Arguments
        max_lines  number of slots L
        size       height H and width W of the picture, in pixels
        packed     hold positions and gly_line as bits, eight pixels per byte (`batch.PACKED_FIELDS`); W % 8 must be 0

    First `draw` a line into the next slot, then `keep` it. A line that is not kept leaves the slot to the next one.
    """

    def __init__(self, max_lines: int, size: tuple[int, int], packed: bool = False) -> None:
        self.size, self.packed = size, packed
        bits = 8 if packed else 1
        self.glyphs = np.zeros((max_lines, *size), np.uint8)
        self.positions = np.zeros((max_lines, size[0], size[1] // bits), np.uint8)
        self.gly_line = np.zeros((max_lines, GLYPH_LINE_SIZE[0], GLYPH_LINE_SIZE[1] // bits), np.uint8)
        self.color = np.zeros((max_lines, 3), np.float32)
        self.font_hint = np.zeros((1, *size), np.uint8)  # of all lines; the caller draws into it
        self.texts: list[str] = []
        self.languages: list[str] = []
        self.polygons: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.texts)

    def draw(self, text: str, polygon: np.ndarray, font: str | Path, color: tuple[int, int, int] | None = None) -> None:
        """Draw the text upright and in its polygon, into the next slot. Arguments of `glyphs.draw_placed_glyph`.

        Raises DrawingError if the text cannot be drawn; the slot is empty then.
        """
        upright = (draw_packed_glyph_line if self.packed else draw_glyph_line)(text, font)
        draw_placed_glyph(text, polygon, font, self.size, out=self.glyphs[len(self)], color=color)
        self.gly_line[len(self)] = upright

    def keep(self, text: str, language: str, polygon: np.ndarray, position: np.ndarray, color: Sequence[float]) -> None:
        """Fill the slot that was drawn into: position (H, W) uint8, 0 or 1; color RGB 0..255 or UNSPECIFIED_COLOR."""
        slot = len(self)
        self.positions[slot] = np.packbits(position, axis=-1) if self.packed else position
        self.color[slot] = color
        self.texts.append(text)
        self.languages.append(language)
        self.polygons.append(polygon)

    def fields(self) -> dict[str, Any]:
        """The fields of the item that stem from its lines, of `batch.FIELDS` or `batch.PACKED_FIELDS`."""
        suffix = "_packed" if self.packed else ""
        return {
            "glyphs": self.glyphs,
            f"positions{suffix}": self.positions,
            f"gly_line{suffix}": self.gly_line,
            "font_hint": self.font_hint,
            "color": self.color,
            "n_lines": len(self),
            "texts": self.texts,
            "language": self.languages,
            "polygons": self.polygons,
        }
