"""Pictures and their lines from disk, in the layout of AnyWord-3M.

One or several JSONs, each {"data_root": folder, "data_list": [{"img_name", "caption", "wm_score", "annotations":
[{"polygon", "text", "language", "valid", "color"}]}]}; see `records` for the fields and for what happens to bad ones.
`make_item` follows `T3DataSet.__getitem__` of AnyText2's t3_dataset.py, with its numbers in bytes and bits
(`light`), and with these differences, each on purpose:

- nothing is written back into a record, so every epoch sees the same record (upstream's grow);
- a line that no font can draw, or that has no room, is left to the ignored region (upstream draws black);
- polygons follow their picture when it is resized (upstream leaves them where they were);
- every random draw comes from (seed, index), so an item is the same in any worker.

May import: numpy, cv2, Pillow, torch, anytext_lcm.data.*.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from anytext_lcm.data.batch import MAX_CHARACTERS, TEXT_PHRASES, UNSPECIFIED_COLOR, text_caption
from anytext_lcm.data.captions import image_caption
from anytext_lcm.data.font_hints import Shake, hint_from_picture
from anytext_lcm.data.fonts import PLAIN_FONT, DrawingError, covering_fonts, font_path
from anytext_lcm.data.glyphs import GLYPH_LINE_SIZE, draw_packed_glyph_line, draw_placed_glyph, draw_position
from anytext_lcm.data.index import BadRecord, open_index, problem_sentence
from anytext_lcm.data.masks import ignore_mask, jitter_position
from anytext_lcm.data.records import Annotation, Problem, Record

NO_TEXT = Annotation((10, 10, 100, 10, 100, 100, 10, 100), " ", "Latin", True, None)
"""The line of a picture without text: a blank at upstream's place, so that every item has one."""

MAX_SKIPS = 100
"""Records in a row whose pictures cannot be read before it is taken for a wrong data_root."""


@dataclass(frozen=True)
class ReadingRules:
    """How a record becomes an item; the defaults are those of AnyText2's training (train.py).

    image_size       side of the pictures; others are resized without regard to their aspect
    max_lines        line slots; of more lines, so many are drawn at random and the others ignored
    max_characters   of a line's text; what is longer is cut
    edit_share       share of items in editing mode (mask_img_prob)
    hint_share       share of lines with a font hint out of the picture (font_hint_prob)
    hint_area        least and largest share of a line that its hint keeps (font_hint_area)
    hint_shake       shift, turn and scale the hint's crop a little (font_hint_randaug)
    color_share      share of lines that tell their colour, if the record has one (color_prob)
    jitter           grow or shrink position masks a little
    fonts            fonts of glyph lines and placed glyphs, files or names; those that hold a text are used
    random_font      draw among them; otherwise the first (rand_font)
    caption_words    longest caption (trunc_cap); 0 leaves captions alone
    name_watermarks  tell in the caption whether there is a watermark, where that is known (cap_watermark)
    phrases          openings of text captions, one is drawn
    """

    image_size: int = 512
    max_lines: int = 5
    max_characters: int = MAX_CHARACTERS
    edit_share: float = 0.0
    hint_share: float = 0.8
    hint_area: tuple[float, float] = (0.7, 1.0)
    hint_shake: bool = True
    color_share: float = 1.0
    jitter: bool = True
    fonts: tuple[str | Path, ...] = (PLAIN_FONT,)
    random_font: bool = True
    caption_words: int = 128
    name_watermarks: bool = True
    phrases: tuple[str, ...] = TEXT_PHRASES

    def __post_init__(self) -> None:
        if self.image_size < 64 or self.image_size % 8:
            raise ValueError(f"image_size {self.image_size} must be a multiple of 8 and at least 64.")
        if self.max_lines < 1:
            raise ValueError(f"max_lines is {self.max_lines}, at least one line slot is needed.")
        if not 1 <= self.max_characters <= MAX_CHARACTERS:
            raise ValueError(f"max_characters {self.max_characters} must be 1..{MAX_CHARACTERS}.")
        for name in ("edit_share", "hint_share", "color_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be 0..1.")
        if not 0 < self.hint_area[0] <= self.hint_area[1] <= 1:
            raise ValueError(f"hint_area {self.hint_area} must be two rising shares over 0 and up to 1.")
        if not self.fonts:
            raise ValueError("There is no font to draw glyphs in: name at least one.")
        for font in self.fonts:
            font_path(font)  # FileNotFoundError for one that is not there


class AnyWordDataset(torch.utils.data.Dataset):
    """Light items (`batch.LIGHT_FIELDS`, TEXT_FIELDS, `problems`) of one or several JSONs in AnyWord's layout.

    Arguments
        data_list   path of a JSON, or several
        data_root   folder of the pictures, instead of the one the JSON names; a relative one that the JSON names
                    is looked for beside the JSON
        rules       how a record becomes an item
        seed        another seed is another jitter, choice of lines, font, hint, phrase
        wm_thresh   records with a higher wm_score are left out
        strict      the first problem is an error (BadRecord)
        index_dir   where indices are kept, if not beside the JSONs
        progress    called with the number of records read while an index is built

    `dataset[i]` may be asked for i beyond its length: the record is that of i modulo the length, with other draws.
    The training does so from epoch to epoch (`draws_anew_each_epoch`).
    """

    draws_anew_each_epoch = True

    def __init__(
        self,
        data_list: str | Path | Sequence[str | Path],
        data_root: str | Path | None = None,
        rules: ReadingRules | None = None,
        seed: int = 0,
        wm_thresh: float = 1.0,
        strict: bool = False,
        index_dir: str | Path | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.sources = [Path(path) for path in ([data_list] if isinstance(data_list, str | Path) else data_list)]
        if not self.sources:
            raise ValueError("There is no JSON of records: name at least one.")
        self.rules, self.seed, self.strict = rules or ReadingRules(), seed, strict
        self.indices = [open_index(source, index_dir, strict, progress) for source in self.sources]
        self.roots = [self._root(i, data_root) for i in range(len(self.sources))]
        self._chosen = [_chosen(index, wm_thresh) for index in self.indices]
        self._ends = list(accumulate(len(chosen) for chosen in self._chosen))
        if not len(self):
            raise ValueError(f"No record of {', '.join(map(str, self.sources))} can be used: see the problems.")

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < 0:
            raise IndexError(f"Index {index} is outside the data set of {len(self)} items.")
        problems: list[str] = []
        for skip in range(min(MAX_SKIPS, len(self))):
            source, record = self.record((index + skip) % len(self))
            path = self.picture_path(source, record)
            try:
                picture = read_picture(path)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                self._report(source, [Problem(record.number, "picture", _reason(error, path))], problems)
                continue
            rng = np.random.default_rng([self.seed, index])
            item, found = make_item(record, picture, self.rules, rng)
            self._report(source, found, problems)
            return item | {"img_name": record.img_name, "problems": problems}
        raise FileNotFoundError(
            f"{min(MAX_SKIPS, len(self))} records in a row have no picture that can be read, the last is {path}: "
            "check data_root."
        )

    def record(self, place: int) -> tuple[int, Record]:
        """The number of the JSON and the record, for 0 <= place < len."""
        source = bisect_right(self._ends, place)
        if source == len(self._ends):
            raise IndexError(f"Index {place} is outside the data set of {len(self)} items.")
        chosen = self._chosen[source]
        return source, self.indices[source][int(chosen[place - self._ends[source] + len(chosen)])]

    def picture_path(self, source: int, record: Record) -> Path:
        """Where the picture of a record is."""
        return self.roots[source] / record.img_name

    def _root(self, number: int, data_root: str | Path | None) -> Path:
        if data_root is not None:
            return Path(data_root)
        named = self.indices[number].about.data_root
        if named is None:
            raise ValueError(f"{self.sources[number]} names no data_root: give one.")
        return self.sources[number].parent / named  # an absolute one stays as it is

    def _report(self, source: int, found: Sequence[Problem], problems: list[str]) -> None:
        sentences = [problem_sentence(self.sources[source], problem) for problem in found]
        if self.strict and sentences:
            raise BadRecord(sentences[0])
        problems += sentences


def make_item(
    record: Record, picture: np.ndarray, rules: ReadingRules, rng: np.random.Generator
) -> tuple[dict[str, Any], list[Problem]]:
    """A record and its picture (H, W, 3) uint8 RGB as a light item, and what was wrong with its lines.

    rng draws everything that is left to chance. Neither record nor picture is changed.
    """
    side = rules.image_size
    stretch = np.array([side / picture.shape[1], side / picture.shape[0]])
    if picture.shape[:2] != (side, side):
        picture = cv2.resize(picture, (side, side), interpolation=cv2.INTER_LINEAR)
    edit = bool(rng.random() < rules.edit_share)

    lines, ignored, problems = [], [], []
    for annotation in record.annotations:
        points = annotation.points
        if (stretch != 1).any():
            points = np.rint(points * stretch).astype(np.int32)
        if not _reaches_inside(points, side):
            problems.append(Problem(record.number, "outside", f"{annotation.text!a} at {annotation.polygon[:2]}"))
        elif annotation.valid:
            lines.append((annotation, points))
        else:
            ignored.append(points)
    if len(lines) > rules.max_lines:
        order = rng.permutation(len(lines))
        ignored += [lines[i][1] for i in order[rules.max_lines :]]
        lines = [lines[i] for i in order[: rules.max_lines]]

    slots = _Slots(rules)
    for annotation, points in lines:
        try:
            slots.add(annotation, points, picture, rng)
        except DrawingError as error:
            problems.append(Problem(record.number, "glyph", str(error)))
            ignored.append(points)
    if not slots.texts:
        slots.add(NO_TEXT, NO_TEXT.points, picture, rng)
    # Editing paints the holes alone, so there is nothing to ignore.
    inv_mask = ignore_mask([] if edit else ignored, (side, side))
    phrase = rules.phrases[int(rng.integers(0, len(rules.phrases)))]
    caption = image_caption(record.caption, record.wm_score, rules.caption_words, rng, rules.name_watermarks)
    return slots.fields() | {
        "picture": picture,
        "edit": edit,
        "inv_mask_packed": np.packbits(inv_mask, axis=-1),
        "img_caption": caption,
        "text_caption": text_caption(len(slots.texts), phrase),
    }, problems


class _Slots:
    """The lines of an item as they are drawn, one slot after the other."""

    def __init__(self, rules: ReadingRules) -> None:
        self.rules, side, slots = rules, rules.image_size, rules.max_lines
        self.glyphs = np.zeros((slots, side, side), np.uint8)
        self.positions = np.zeros((slots, side, side // 8), np.uint8)
        self.gly_line = np.zeros((slots, GLYPH_LINE_SIZE[0], GLYPH_LINE_SIZE[1] // 8), np.uint8)
        self.color = np.zeros((slots, 3), np.float32)
        self.font_hint = np.zeros((1, side, side), np.uint8)
        self.texts: list[str] = []
        self.languages: list[str] = []
        self.polygons: list[np.ndarray] = []

    def add(self, annotation: Annotation, points: np.ndarray, picture: np.ndarray, rng: np.random.Generator) -> None:
        """Fill the next slot; raises DrawingError if the text cannot be drawn, and the slot goes to the next line."""
        rules, slot, size = self.rules, len(self.texts), picture.shape[:2]
        text = annotation.text[: rules.max_characters]
        fonts = covering_fonts(text, rules.fonts)
        font = fonts[int(rng.integers(0, len(fonts)))] if rules.random_font else fonts[0]
        upright = draw_packed_glyph_line(text, font)  # kept below: a line without room must leave its slot empty
        draw_placed_glyph(text, points, font, size, out=self.glyphs[slot], color=annotation.color)
        self.gly_line[slot] = upright

        position = draw_position(points, size)
        if rules.jitter:
            position = jitter_position(position, points, rng.random())
        self.positions[slot] = np.packbits(position, axis=-1)

        told = annotation.color is not None and not (rng.random() < 1 - rules.color_share)
        self.color[slot] = annotation.color if told else UNSPECIFIED_COLOR
        if rules.hint_share and not (rng.random() < 1 - rules.hint_share):
            keep, start = rng.uniform(*rules.hint_area), rng.uniform(0, 1)
            shake = Shake.draw(rng) if rules.hint_shake else None
            hint_from_picture(picture, points, keep, start, shake, out=self.font_hint[0])
        self.texts.append(text)
        self.languages.append(annotation.language)
        self.polygons.append(points)

    def fields(self) -> dict[str, Any]:
        """The fields of the item that stem from its lines."""
        return {
            "glyphs": self.glyphs,
            "positions_packed": self.positions,
            "gly_line_packed": self.gly_line,
            "font_hint": self.font_hint,
            "color": self.color,
            "n_lines": len(self.texts),
            "texts": self.texts,
            "language": self.languages,
            "polygons": self.polygons,
        }


def _reaches_inside(points: np.ndarray, side: int) -> bool:
    """Whether the polygon covers a pixel of the picture; drawn only where its bounding box leaves a doubt."""
    low, high = points.min(axis=0), points.max(axis=0)
    if low.min() >= 0 and high.max() < side:
        return True
    return bool(draw_position(points, (side, side)).any())


def read_picture(path: str | Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB. Raises OSError for a missing or a truncated file."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _chosen(index, wm_thresh: float) -> np.ndarray | range:
    """Places of the records to use: those without too sure a watermark."""
    places: np.ndarray | range = range(len(index))
    scores = index.column("wm_score")
    if scores.null_count < len(scores):
        sure = np.nan_to_num(scores.to_numpy(), nan=-np.inf) > wm_thresh
        if sure.any():
            places = np.flatnonzero(~sure).astype(np.uint32)
    return places


def _reason(error: Exception, path: Path) -> str:
    return f"{path} is missing" if isinstance(error, FileNotFoundError) else f"{path} cannot be read ({error})"
