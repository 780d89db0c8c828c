"""A made-up data set: coloured pictures with one or two lines of text, in AnyText2's format.

It is a fair ground for few-step distillation. The condition holds what is written, roughly where, and (mostly) in which
colour. It leaves open the font, its weight, width and slant, the place within the polygon, the pattern of the
background and where the objects are. So a model has something to decide, and the average of the possibilities is
blurred. Text is large and clear: a recogniser reads nearly all of it, so a line that is not read is the model's fault.

`layout.py` places the lines, `background.py` draws what is behind them. Every item depends on (seed, split, index)
alone, so it is the same for any number of workers and in any order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from anytext_lcm.data.background import (
    COLORS,
    draw_background,
    draw_objects,
    pick_text_color,
)
from anytext_lcm.data.batch import TEXT_PHRASES, Line, build_conditioning
from anytext_lcm.data.fonts import PLAIN_FONT, covers
from anytext_lcm.data.layout import (
    pick,
    place_lines,
)
from anytext_lcm.data.pictures import check_side
from anytext_lcm.data.scene import Scene, TextLine, article, to_float
from anytext_lcm.data.words import WORDS_OF

if TYPE_CHECKING:
    from anytext_lcm.data.lettering import TextStyle
    from anytext_lcm.data.scenery import Scenery


class MockDataset(torch.utils.data.Dataset):
    """Items of the batch contract (see anytext_lcm/data/batch.py), drawn when they are read.

    Arguments
        size         number of items
        seed         another seed is another data set
        image_size   height and width in pixels, a multiple of 8 from 64 on
        max_lines    line slots of an item; pictures have one or two lines, one if there is but one slot
        split        "train" or "test"; no string of one, in any casing, occurs in the other
        edit_share   share of items in editing mode
        hint_share   share of items with a font hint
        color_share  share of items that give the text colours as numbers
        glyph_font   font of glyph lines and placed glyphs, where it holds the text; else the line's own
        text_style   kinds of lines, see `lettering`; None: one or two lines of large Latin text, as described above
        scenery      another task, see `scenery`; None: the one described above

    Raises ValueError for an argument outside its range, IndexError for an item beyond the size.
    """

    def __init__(
        self,
        size: int,
        seed: int = 0,
        image_size: int = 128,
        max_lines: int = 2,
        split: str = "train",
        edit_share: float = 0.3,
        hint_share: float = 0.3,
        color_share: float = 0.7,
        glyph_font: str = PLAIN_FONT,
        text_style: TextStyle | None = None,
        scenery: Scenery | None = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"A data set needs at least one item, size is {size}.")
        if split not in WORDS_OF:
            raise ValueError(f"Split {split!r} is unknown: choose 'train' or 'test'.")
        check_side(image_size)
        if max_lines < 1:
            raise ValueError(f"max_lines is {max_lines}, at least one line slot is needed.")
        self.size, self.seed, self.split = size, seed, split
        self.image_size, self.max_lines = image_size, max_lines
        self.edit_share, self.hint_share, self.color_share = edit_share, hint_share, color_share
        self.glyph_font, self.text_style, self.scenery = glyph_font, text_style, scenery

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.scenery is not None:
            return self.scenery.item(self, index)
        scene = self.scene(index)
        # A second stream, so that a picture stays the same when the rules of conditioning change.
        rng = self._generator(index, stream=1)
        edit, hinted, colored = (rng.random(3) < (self.edit_share, self.hint_share, self.color_share)).tolist()
        phrase = TEXT_PHRASES[0] if self.split == "test" else pick(rng, TEXT_PHRASES)
        names_colors = not (colored and rng.random() < 0.15)
        item = self._condition(scene, edit, hinted, colored, phrase)
        item["img_caption"] = _caption(rng, scene, names_colors)
        item["meta"] = {
            "index": index,
            "split": self.split,
            "background": scene.background_name,
            "objects": scene.objects,
            "text_colors": [line.color_name for line in scene.lines],
            "text_rgb": [line.color for line in scene.lines],
            "fonts": [line.font for line in scene.lines],
            "font_heights": [line.font_height for line in scene.lines],
            "angles": [line.angle for line in scene.lines],
            "mode": "edit" if edit else "generate",
            "font_hinted": hinted,
            "color_given": colored,
            "color_in_caption": names_colors,
        }
        return item

    def _condition(self, scene: Scene, edit: bool, hinted: bool, colored: bool, phrase: str) -> dict[str, Any]:
        """The item but for caption and meta; it gives fonts and colours only if hinted and colored."""
        image = to_float(scene.image)
        wanted = [
            Line(
                text=line.text,
                polygon=line.condition_quad,
                color=line.color if colored else None,
                hint_font=line.font if hinted else None,
                language=line.language,
                font=None if covers(self.glyph_font, line.text) else line.font,
            )
            for line in scene.lines
        ]
        item = build_conditioning(
            wanted,
            size=(self.image_size, self.image_size),
            max_lines=self.max_lines,
            font=self.glyph_font,
            mode="edit" if edit else "generate",
            image=image if edit else None,
            phrase=phrase,
        )
        return item | {"img": image, "polygons": [line.quad for line in scene.lines]}

    def picture(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw the picture (3, H, W) float32 -1..1 and its text coverage (1, H, W) uint8 0..255."""
        scene = self.scene(index)
        return to_float(scene.image), scene.coverage[None]

    def scene(self, index: int) -> Scene:
        """Draw the picture, with everything that is known about it."""
        if not 0 <= index < self.size:
            raise IndexError(f"Index {index} is outside the data set of {self.size} items.")
        if self.scenery is not None:
            return self.scenery.scene(self, index)
        rng = self._generator(index, stream=0)
        return _draw_scene(rng, self.image_size, self.max_lines, self.split, self.text_style)

    def _generator(self, index: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 0 if self.split == "train" else 1, index, stream])


# -- the scene ------------------------------------------------------------------------------------------


def _draw_scene(rng: np.random.Generator, size: int, max_lines: int, split: str, text_style: TextStyle | None) -> Scene:
    background_name = pick(rng, tuple(COLORS))
    background, darkest, lightest = draw_background(rng, background_name, size)
    if text_style is None:
        blocks = place_lines(rng, 2 if max_lines > 1 and rng.random() < 0.35 else 1, size, split)
    else:
        blocks = text_style.place_lines(rng, size, max_lines, split)
    taken = np.zeros((size, size), np.uint8)
    for block in blocks:
        cv2.fillPoly(taken, [block.condition_quad.reshape(-1, 1, 2)], 1)
    canvas, objects = draw_objects(rng, background, taken, background_name, size / 128.0)

    image, coverage = canvas.astype(np.float32), np.zeros((size, size), np.uint8)
    lines, previous = [], None
    for block in blocks:
        previous = pick_text_color(rng, background_name, darkest, lightest, previous)
        alpha = block.coverage[..., None] * np.float32(1 / 255)
        image += alpha * (np.asarray(previous[1], np.float32) - image)
        np.maximum(coverage, block.coverage, out=coverage)
        lines.append(TextLine.written(block, *previous))
    return Scene(np.rint(image).astype(np.uint8), coverage, tuple(lines), background_name, objects)


# -- caption --------------------------------------------------------------------------------------------


def _caption(rng: np.random.Generator, scene: Scene, names_colors: bool) -> str:
    """One of a few ways to say: background, objects, and text colours unless they are left to the numbers."""
    things = " and ".join(f"{article(name)} {name} {shape}" for name, shape in scene.objects)
    names = list(dict.fromkeys(line.color_name for line in scene.lines))
    text = f"{' and '.join(names)} text" if names_colors else "text"
    ground = f"{article(scene.background_name)} {scene.background_name} background"
    form = int(rng.integers(3))
    if form == 0:
        return f"{ground} with {things}, {text}" if things else f"{ground}, {text}"
    if form == 1:
        return f"{text} on {ground} with {things}" if things else f"{text} on {ground}"
    return f"{things} on {ground} with {text}" if things else f"{ground} with {text}"
