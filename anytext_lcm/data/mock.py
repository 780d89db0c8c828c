"""A made-up data set: coloured pictures with one or two lines of text, in AnyText2's format.

It is a fair ground for few-step distillation: what a caption leaves open is bold, so a model has to decide, and an
average of the possibilities is a smudge that anybody sees.

    ground   a named colour, plain or with stripes, checks or a gradient of a second named colour; the caption names
             both colours and, half of the time, the pattern; one caption in twelve says nothing about the ground
    objects  none (one picture in ten), one or two circles, squares or triangles, a fifth to a half of the side; kind
             and colour are named, place and size are open
    text     one or two lines of 2 to 7 characters: words, numbers, mixed strings, signs such as 50% and #7
    colour   of the text: named or any; given as numbers in most pictures, named by the caption in at most a third
    font     one of eight, which the glyph image does not show; the font hint shows it in some pictures
    editing  four in ten pictures to edit are scenes, six are varied pictures (`material.py`) with text on them

Text is large and clear: a recogniser reads nearly all of it, so a line that is not read is the model's fault.

`scene.py` puts a picture together from grounds, objects and lines, `scene_captions.py` says what is in it. Every item
depends on (seed, split, index) alone, so it is the same for any number of workers and in any order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from anytext_lcm.data.batch import TEXT_PHRASES, Line, build_conditioning
from anytext_lcm.data.chance import pick
from anytext_lcm.data.fonts import PLAIN_FONT, covers
from anytext_lcm.data.grounds import MATERIAL
from anytext_lcm.data.pictures import check_side
from anytext_lcm.data.scene import Scene, draw_scene, to_float
from anytext_lcm.data.scene_captions import draw_caption
from anytext_lcm.data.words import WORDS_OF

if TYPE_CHECKING:
    from anytext_lcm.data.lettering import TextStyle

MATERIAL_SHARE = 0.6  # of the pictures to edit: a varied picture with text on it instead of a scene
GROUND_SHARE = 0.92  # of scenes: the caption names the ground's colours
PATTERN_SHARE = 0.5  # of these, where they are two: the caption names the pattern
NAMED_SHARE = 0.5  # of pictures whose text colours are all shades of named ones: the caption names them


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
        hint_share: float = 0.4,
        color_share: float = 0.8,
        glyph_font: str = PLAIN_FONT,
        text_style: TextStyle | None = None,
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
        self.glyph_font, self.text_style = glyph_font, text_style

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        # A second stream, so that a picture stays the same when the rules of conditioning change.
        rng = self._generator(index, stream=1)
        kind = self._kind(rng)
        scene = self.scene(index)
        names_colors = scene.named_text and rng.random() < NAMED_SHARE
        names_ground, names_pattern = (rng.random(2) < (GROUND_SHARE, PATTERN_SHARE)).tolist()
        phrase = TEXT_PHRASES[0] if self.split == "test" else pick(rng, TEXT_PHRASES)
        item = self._condition(scene, kind, phrase)
        item["img_caption"] = draw_caption(rng, scene, names_colors, names_ground, names_pattern)
        item["meta"] = {
            "index": index,
            "split": self.split,
            "ground": scene.ground,
            "tones": scene.tones,
            "ground_in_caption": names_ground and scene.ground != MATERIAL,
            "objects": scene.objects,
            "text_colors": [line.color_name for line in scene.lines],
            "text_rgb": [line.color for line in scene.lines],
            "fonts": [line.font for line in scene.lines],
            "font_heights": [line.font_height for line in scene.lines],
            "angles": [line.angle for line in scene.lines],
            "mode": "edit" if kind.edit else "generate",
            "font_hinted": kind.hinted,
            "color_given": kind.colored,
            "color_in_caption": names_colors and "text" in item["img_caption"],
        }
        return item

    def _condition(self, scene: Scene, kind: _Kind, phrase: str) -> dict[str, Any]:
        """The item but for caption and meta; it has fonts and colours only where its kind gives them."""
        image = to_float(scene.image)
        wanted = [
            Line(
                text=line.text,
                polygon=line.condition_quad,
                color=line.color if kind.colored else None,
                hint_font=line.font if kind.hinted else None,
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
            mode="edit" if kind.edit else "generate",
            image=image if kind.edit else None,
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
        material = self._kind(self._generator(index, stream=1)).material
        rng = self._generator(index, stream=0)
        return draw_scene(rng, self.image_size, self.max_lines, self.split, material, self.text_style)

    def _kind(self, rng: np.random.Generator) -> _Kind:
        edit, hinted, colored, material = (
            rng.random(4) < (self.edit_share, self.hint_share, self.color_share, MATERIAL_SHARE)
        ).tolist()
        return _Kind(edit, edit and material, hinted, colored)

    def _generator(self, index: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 0 if self.split == "train" else 1, index, stream])


class _Kind(NamedTuple):
    """Whether an item is edited, is a varied picture, has a font hint, has its colours as numbers."""

    edit: bool
    material: bool
    hinted: bool
    colored: bool
