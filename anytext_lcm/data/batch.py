"""The batch: the contract between data sets, training and drawing.

FIELDS is the contract. `build_conditioning` makes an item of lines of text, `collate` makes a batch of items, and
`validate` holds a batch to the contract. Items are the same without the leading B, as numpy arrays. PACKED_FIELDS is
the compact form of the same batch that workers send (bytes and bits).

Names are those of AnyText2's t3_dataset.py. The layout is dense where upstream keeps lists, so that a batch moves to a
device in one go. L is the number of line slots (`max_lines`); slots from `n_lines` on are zero and are not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anytext_lcm.data.fonts import PLAIN_FONT
from anytext_lcm.data.glyphs import draw_placed_glyph, draw_position
from anytext_lcm.data.masks import cut_holes, union
from anytext_lcm.data.slots import Slots
from anytext_lcm.data.text import checked

MAX_CHARACTERS = 20
"""Longest text of a line, in characters, as in upstream's training data."""

UNSPECIFIED_COLOR = (500, 500, 500)
"""Upstream's way to leave the colour to the model."""

PLACEHOLDER = "*"
"""Stands for one line in a text caption; its token embedding is replaced by that of the line."""

TEXT_PHRASES = (
    "Text says ",
    "Image with words ",
    "The picture reads ",
    "Captions are ",
    "Texts are ",
    "Text:  ",
)
"""Openings of a text caption. Upstream's list lacks a comma, which joined its last two entries to "Text:  ";
the published weights know that one, so it stays."""


@dataclass(frozen=True)
class Field:
    """One tensor of the batch: its shape in letters, its type, the values allowed, and what it means."""

    shape: str
    dtype: torch.dtype
    low: float
    high: float
    meaning: str


FIELDS: dict[str, Field] = {
    "img": Field("B3HW", torch.float32, -1, 1, "the picture, RGB"),
    "masked_img": Field("B3HW", torch.float32, -1, 1, "all -1: generate; the picture with holes of -1: edit"),
    "hint": Field("B1HW", torch.uint8, 0, 1, "union of the positions"),
    "inv_mask": Field("B1HW", torch.uint8, 0, 1, "1 where the loss must not look"),
    "glyphs": Field("BLHW", torch.uint8, 0, 255, "each line drawn in its polygon"),
    "positions": Field("BLHW", torch.uint8, 0, 1, "each line's filled polygon"),
    "gly_line": Field("BL80,512", torch.uint8, 0, 1, "each line drawn upright, for the recogniser"),
    "font_hint": Field("B1HW", torch.uint8, 0, 255, "the lines in the wanted font; 0 = no wish"),
    "color": Field("BL3", torch.float32, 0, 500, "text colour, RGB 0..255, or 500, 500, 500 = any"),
    "n_lines": Field("B", torch.int64, 1, 1024, "how many of the L slots are used"),
}
"""The tensors of a batch."""

PACKED_FIELDS: dict[str, Field] = {
    "picture": Field("BHW3", torch.uint8, 0, 255, "the picture, RGB; img = picture / 127.5 - 1"),
    "edit": Field("B", torch.bool, 0, 1, "editing: masked_img is the picture with holes; else it is all -1"),
    "positions_packed": Field("BLHw", torch.uint8, 0, 255, "positions, eight pixels per byte, the first highest"),
    "gly_line_packed": Field("BL80,64", torch.uint8, 0, 255, "gly_line likewise"),
    "inv_mask_packed": Field("B1Hw", torch.uint8, 0, 255, "inv_mask likewise"),
    **{name: FIELDS[name] for name in ("glyphs", "font_hint", "color", "n_lines")},
}
"""The tensors of a packed batch, a quarter of the bytes: w = W / 8. `packed.expand` makes FIELDS of them, on the
device. TEXT_FIELDS are the same in both."""

TEXT_FIELDS: dict[str, str] = {
    "img_caption": "list of B strings: what is in the picture, no text in it",
    "text_caption": "list of B strings: a phrase and one '*' per line, 'Text says * , * . '",
    "texts": "B lists of n_lines strings: what is written",
    "language": "B lists of n_lines strings: 'Latin', 'Chinese', ...",
    "polygons": "B lists of n_lines (4, 2) int arrays: where the text is; x, y, clockwise from top left",
}
"""The lists of a batch. Items may carry more (`condition_polygons`, `meta`, `problems`); collate keeps it as lists."""

_STACKED = FIELDS | PACKED_FIELDS


@dataclass(frozen=True)
class Line:
    """One line of text that is wanted in a picture.

    text      1..20 characters, kept in Unicode's form NFC
    polygon   (n, 2), x and y in pixels, n >= 3; where the text is to be
    color     RGB 0..255, None = any
    hint_font font (file or name) in which the line is drawn into the font hint, None = no wish
    language  as in AnyWord-3M
    font      font of its glyphs, None = that of the call

    Raises ValueError for too long a text, one with control characters or lone surrogates, a polygon of another shape, a
    colour outside.
    """

    text: str
    polygon: np.ndarray
    color: tuple[int, int, int] | None = None
    hint_font: str | Path | None = None
    language: str = "Latin"
    font: str | Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", checked(self.text, "The text of a line"))
        if len(self.text) > MAX_CHARACTERS:
            raise ValueError(
                f"A line has {len(self.text)} characters, the limit is {MAX_CHARACTERS}: "
                f"shorten or split {self.text!r}."
            )
        shape = np.shape(self.polygon)
        if len(shape) != 2 or shape[1] != 2 or shape[0] < 3:
            raise ValueError(f"The polygon of line {self.text!r} needs 3 or more (x, y) points, its shape is {shape}.")
        if self.color is not None:
            color = np.asarray(self.color, np.float32)
            if color.shape != (3,) or not ((color >= 0) & (color <= 255)).all():
                raise ValueError(
                    f"The colour of line {self.text!r} must be three numbers 0..255, got {color.tolist()}."
                )

    def pixels(self, size: tuple[int, int]) -> np.ndarray:
        """The polygon as (n, 2) int32; ValueError where it leaves a picture of `size` = (height, width)."""
        (height, width), given = size, np.asarray(self.polygon)
        fits = (abs(given) < 2**31).all()  # false for nan; larger numbers would come round as small ones
        polygon = given.astype(np.int32) if fits else np.full((1, 2), -1)
        right, bottom = polygon.max(axis=0)
        if polygon.min() < 0 or right > width or bottom > height:
            raise ValueError(
                f"The polygon of line {self.text!r} leaves the picture of {width} x {height}: move it inside."
            )
        return polygon


def build_conditioning(
    lines: Sequence[Line],
    size: tuple[int, int],
    max_lines: int,
    font: str | Path = PLAIN_FONT,
    mode: str = "generate",
    image: np.ndarray | None = None,
    phrase: str = TEXT_PHRASES[0],
) -> dict[str, Any]:
    """Turn lines of text into the fields of an item that need no picture, or only a picture to edit.

    Arguments
        lines     1..max_lines lines
        size      height H and width W of the picture, in pixels
        max_lines number of slots L
        font      font of glyph lines and placed glyphs
        mode      "generate" (masked_img is -1 throughout) or "edit" (image with holes where the text goes)
        image     (3, H, W) float32 -1..1, needed by "edit"
        phrase    opening of the text caption

    Returns every field of FIELDS and TEXT_FIELDS but `img` and `img_caption`, and `condition_polygons`.
    Raises ValueError for too many lines, characters the font lacks, polygons outside, no room for a letter.
    """
    height, width = size
    if not lines:
        raise ValueError("There is no line of text: give at least one.")
    if len(lines) > max_lines:
        raise ValueError(f"{len(lines)} lines do not fit {max_lines} slots: drop lines or raise max_lines.")
    if mode not in ("generate", "edit"):
        raise ValueError(f"Mode {mode!r} is unknown: choose 'generate' or 'edit'.")
    if mode == "edit" and (image is None or image.shape != (3, height, width)):
        found = "none" if image is None else f"shape {image.shape}"
        raise ValueError(f"Mode 'edit' needs an image of shape (3, {height}, {width}), got {found}.")

    slots = Slots(max_lines, size)
    for line in lines:
        polygon = line.pixels(size)
        slots.draw(line.text, polygon, font if line.font is None else line.font, line.color)
        if line.hint_font is not None:
            wish = draw_placed_glyph(line.text, polygon, line.hint_font, size)
            np.maximum(slots.font_hint[0], wish, out=slots.font_hint[0])
        color = UNSPECIFIED_COLOR if line.color is None else line.color
        slots.keep(line.text, line.language, polygon, draw_position(polygon, size), color)
    hint = union(slots.positions)
    masked = cut_holes(image, hint) if mode == "edit" else np.full((3, height, width), -1.0, np.float32)
    return slots.fields() | {
        "masked_img": masked,
        "hint": hint,
        "inv_mask": np.zeros((1, height, width), np.uint8),
        "text_caption": text_caption(len(lines), phrase),
        "condition_polygons": slots.polygons,
    }


def text_caption(n_lines: int, phrase: str = TEXT_PHRASES[0]) -> str:
    """Make the text caption, 'Text says * , * . ' for two lines."""
    return phrase + " , ".join([PLACEHOLDER] * n_lines) + " . "


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stack items to a batch: FIELDS and PACKED_FIELDS become tensors, everything else a list with one entry per item.

    Raises ValueError for no items and for items that differ in size or number of line slots.
    """
    if not items:
        raise ValueError("A batch needs at least one item, got none.")
    batch: dict[str, Any] = {}
    for name in items[0]:
        values = [item[name] for item in items]
        if name not in _STACKED:
            batch[name] = values
            continue
        shapes = {np.shape(value) for value in values}
        if len(shapes) > 1:
            raise ValueError(
                f"Items differ in the shape of {name!r}: {sorted(shapes)}; "
                "give all items of a batch one picture size and one max_lines."
            )
        stacked = np.stack([np.asarray(value) for value in values])
        batch[name] = torch.from_numpy(stacked).to(_STACKED[name].dtype)
    return batch


def validate(batch: Mapping[str, Any]) -> str:
    """Hold a batch to FIELDS and TEXT_FIELDS. Raises ValueError naming the first field that breaks it, and how.

    Returns the contract as a table, with the shapes and ranges of this batch beside what is allowed.
    """
    _validate_types(batch)
    image, positions = batch["img"], batch["positions"]
    sizes = {"B": image.shape[0], "L": positions.shape[1], "H": image.shape[2], "W": image.shape[3]}
    for name, field in FIELDS.items():
        value, wanted = batch[name], _expected_shape(field.shape, sizes)
        if tuple(value.shape) != wanted:
            raise ValueError(f"{name!r} must have shape {wanted}, got {tuple(value.shape)}.")
        low, high = value.min().item(), value.max().item()
        if not (field.low <= low and high <= field.high):  # also catches nan
            raise ValueError(f"{name!r} must lie in {field.low}..{field.high}, it spans {low}..{high}.")
    for name in TEXT_FIELDS:
        if len(batch[name]) != sizes["B"]:
            raise ValueError(f"{name!r} has {len(batch[name])} entries for a batch of {sizes['B']}.")
    _validate_lines(batch, sizes["B"], sizes["L"])
    return _table(batch)


def _validate_types(batch: Mapping[str, Any]) -> None:
    """Every field is there and has its type; picture and positions have four dimensions, which name the sizes."""
    for name in (*FIELDS, *TEXT_FIELDS):
        if name not in batch:
            raise ValueError(f"The batch lacks the field {name!r}: see FIELDS in anytext_lcm/data/batch.py.")
    for name, field in FIELDS.items():
        value = batch[name]
        if not isinstance(value, torch.Tensor) or value.dtype != field.dtype:
            found = str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(f"{name!r} must be a tensor of {field.dtype}, got {found}.")
    for name in ("img", "positions"):
        if batch[name].ndim != 4:
            letters = ", ".join(FIELDS[name].shape)
            raise ValueError(f"{name!r} must have shape ({letters}), got {tuple(batch[name].shape)}.")


def _table(batch: Mapping[str, Any]) -> str:
    rows = [("field", "shape", "dtype", "found", "allowed", "meaning")]
    for name, field in FIELDS.items():
        value = batch[name]
        found = f"{value.min().item():.4g}..{value.max().item():.4g}"
        kind = str(field.dtype).removeprefix("torch.")
        allowed = f"{field.low:g}..{field.high:g}"
        rows.append((name, str(tuple(value.shape)), kind, found, allowed, field.meaning))
    rows += [(name, f"list of {len(batch[name])}", "", "", "", says) for name, says in TEXT_FIELDS.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[5]]).rstrip() for row in rows
    )


def _validate_lines(batch: Mapping[str, Any], n_items: int, n_slots: int) -> None:
    for index in range(n_items):
        n_lines = int(batch["n_lines"][index])
        if n_lines > n_slots:
            raise ValueError(f"Item {index} has n_lines {n_lines} but only {n_slots} slots: raise max_lines.")
        for name in ("texts", "language", "polygons"):
            if len(batch[name][index]) != n_lines:
                raise ValueError(f"Item {index} has {len(batch[name][index])} {name} for n_lines {n_lines}.")
        for text in batch["texts"][index]:
            if not 1 <= len(text) <= MAX_CHARACTERS:
                raise ValueError(f"Item {index}: text {text!r} has {len(text)} characters, not 1..{MAX_CHARACTERS}.")
        stars = batch["text_caption"][index].count(PLACEHOLDER)
        if stars != n_lines and batch["text_caption"][index] != "":
            raise ValueError(f"Item {index}: the text caption has {stars} '{PLACEHOLDER}' for {n_lines} lines.")
        for name in ("glyphs", "positions", "gly_line", "color"):
            if batch[name][index, n_lines:].any():
                raise ValueError(f"Item {index}: {name!r} is not zero in the slots beyond n_lines {n_lines}.")


def _expected_shape(letters: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    if letters == "BL80,512":
        return sizes["B"], sizes["L"], 80, 512
    return tuple(sizes[letter] if letter in sizes else int(letter) for letter in letters)
