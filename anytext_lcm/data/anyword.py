"""Pictures and their lines from disk, in the layout of AnyWord-3M.

A JSON is {"data_root": folder, "data_list": [{"img_name", "caption", "wm_score", "annotations": [{"polygon", "text",
"language", "valid", "color"}]}]}; `records` has the fields and what happens to bad ones. `make_item` follows
`T3DataSet.__getitem__` of AnyText2's t3_dataset.py, with its numbers in bytes and bits (`packed`), but for these
differences:

- nothing is written back into a record, so every epoch sees the same record (upstream's grow);
- a line that no font can draw, or that has no room, is left to the ignored region (upstream draws black);
- polygons follow their picture when it is resized (upstream leaves them where they were);
- every random draw comes from (seed, index), so an item is the same in any worker.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anytext_lcm.data.batch import MAX_CHARACTERS, TEXT_PHRASES, UNSPECIFIED_COLOR, text_caption
from anytext_lcm.data.captions import image_caption
from anytext_lcm.data.font_hints import Shake, hint_from_picture
from anytext_lcm.data.fonts import PLAIN_FONT, DrawingError, check_fonts, covering_fonts
from anytext_lcm.data.glyphs import draw_position
from anytext_lcm.data.index import BadRecord, open_index, problem_sentence
from anytext_lcm.data.masks import ignore_mask, jitter_position
from anytext_lcm.data.pictures import check_side, open_picture
from anytext_lcm.data.placing import FITS, Placing, place_picture
from anytext_lcm.data.records import Annotation, Problem, Record
from anytext_lcm.data.slots import Slots

NO_TEXT = Annotation((10, 10, 100, 10, 100, 100, 10, 100), " ", "Latin", True, None)
"""The line of a picture without text: a blank, where upstream has it, so that every item has a line."""

MAX_SKIPS = 100
"""So many records in a row without a readable picture are taken for a wrong data_root."""


@dataclass(frozen=True)
class ReadingRules:
    """How a record becomes an item; the defaults are those of AnyText2's training (train.py).

    image_size       side of the pictures in pixels
    fit              what becomes of pictures that are not square, one of `placing.FITS`
    max_lines        line slots; of more lines, so many are chosen at random and the others ignored
    max_characters   of a line's text; what is longer is cut
    edit_share       share of items in editing mode (mask_img_prob)
    hint_share       share of lines with a font hint out of the picture (font_hint_prob)
    hint_area        least and largest share of a line that its hint keeps (font_hint_area)
    hint_shake       shift, turn and scale the hint's crop a little (font_hint_randaug)
    color_share      share of lines whose colour is given, if the record has one (color_prob)
    jitter           grow or shrink position masks a little
    fonts            fonts of glyph lines and placed glyphs, files or names; those that hold a text are used
    random_font      draw among them; otherwise the first (rand_font)
    caption_words    longest caption (trunc_cap); 0 leaves captions alone
    name_watermarks  say in the caption whether there is a watermark, where that is known (cap_watermark)
    phrases          openings of text captions, one is drawn

    Raises ValueError for values outside their range and a damaged font, FileNotFoundError for one that is not there.
    """

    image_size: int = 512
    fit: str = "stretch"
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
        check_side(self.image_size)
        if self.fit not in FITS:
            raise ValueError(f"fit must be one of {', '.join(FITS)}, not {self.fit!r}.")
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
        check_fonts(self.fonts)


class AnyWordDataset(torch.utils.data.Dataset):
    """Packed items (`batch.PACKED_FIELDS`, TEXT_FIELDS, `problems`) of one or several JSONs in AnyWord's layout.

    Arguments
        data_list   path of a JSON, or several
        data_root   folder of the pictures, instead of the one the JSON names; a relative one that the JSON names
                    is looked for beside the JSON
        rules       how a record becomes an item
        seed        another seed is another jitter, choice of lines, font, hint, phrase
        wm_thresh   records with a higher wm_score are left out
        strict      the first problem is an error (BadRecord)
        index_dir   where indices are kept, if not beside the JSONs
        share       of the pictures, 0..1, chosen by a checksum of their names, that is held out
        held_out    read these instead of the others
        progress    called with the number of records read while an index is built

    An index may exceed the length: the record is that of the index modulo the length, with other draws. The training
    counts on from epoch to epoch like this (`draws_anew_each_epoch`).

    Raises FileNotFoundError or ValueError for a JSON that is missing, damaged or without records; reading an item
    raises BadRecord if strict, and FileNotFoundError after MAX_SKIPS records without a picture.
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
        share: float = 0.0,
        held_out: bool = False,
    ) -> None:
        self.sources = [Path(path) for path in ([data_list] if isinstance(data_list, str | Path) else data_list)]
        if not self.sources:
            raise ValueError("There is no JSON of records: name at least one.")
        self.rules, self.seed, self.strict = rules or ReadingRules(), seed, strict
        self.indices = [open_index(source, index_dir, strict, progress) for source in self.sources]
        self.roots = [self._root(i, data_root) for i in range(len(self.sources))]
        self._chosen = [_chosen(index, wm_thresh, share, held_out) for index in self.indices]
        self._ends = list(accumulate(len(chosen) for chosen in self._chosen))
        if not len(self):
            raise ValueError(self._why_none(wm_thresh, share, held_out))

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
                picture = open_picture(path, turned=False)
            except (OSError, ValueError) as error:
                reason = f"Picture {path} is missing." if isinstance(error, FileNotFoundError) else str(error)
                self._report(source, [Problem(record.number, "picture", reason)], problems)
                continue
            rng = np.random.default_rng([self.seed, index])
            item, found = make_item(record, picture, self.rules, rng)
            self._report(source, found, problems)
            return item | {"img_name": record.img_name, "problems": problems}
        raise FileNotFoundError(
            f"{min(MAX_SKIPS, len(self))} records in a row have no picture that can be read; of the last: {reason} "
            "Check data_root and the pictures."
        )

    def record(self, place: int) -> tuple[int, Record]:
        """Read the record at 0 <= place < len: the number of its JSON, and the record."""
        source = bisect_right(self._ends, place)
        if source == len(self._ends):
            raise IndexError(f"Index {place} is outside the data set of {len(self)} items.")
        chosen = self._chosen[source]
        return source, self.indices[source][int(chosen[place - self._ends[source] + len(chosen)])]

    def picture_path(self, source: int, record: Record) -> Path:
        """The path of a record's picture; source is the number of its JSON."""
        return self.roots[source] / record.img_name

    def _root(self, number: int, data_root: str | Path | None) -> Path:
        if data_root is not None:
            return Path(data_root)
        named = self.indices[number].about.data_root
        if named is None:
            raise ValueError(f"{self.sources[number]} names no data_root: give one.")
        return self.sources[number].parent / named  # an absolute one stays as it is

    def _why_none(self, wm_thresh: float, share: float, held_out: bool) -> str:
        """What is wrong with the records, or which setting leaves out how many of them, when none is left."""
        names, total = ", ".join(map(str, self.sources)), sum(map(len, self.indices))
        if not total:
            of = zip(self.sources, self.indices, strict=True)
            first = [problem_sentence(source, problem) for source, index in of for problem in index.problems(1)]
            return f"No record of {names} can be used" + (f"; the first problem: {first[0]}" if first else ".")
        unmarked = sum(len(_chosen(index, wm_thresh)) for index in self.indices)
        reasons = []
        if unmarked < total:
            reasons.append(f"wm_thresh {wm_thresh:g} leaves out {total - unmarked} for their watermarks")
        if unmarked:
            reasons.append(f"a held-out share of {share:g} {'has none' if held_out else 'takes all'} of {unmarked}")
        return f"No record of {names} is left of {total}: {' and '.join(reasons)}; change that."

    def _report(self, source: int, found: Sequence[Problem], problems: list[str]) -> None:
        sentences = [problem_sentence(self.sources[source], problem) for problem in found]
        if self.strict and sentences:
            raise BadRecord(sentences[0])
        problems += sentences


def make_item(
    record: Record, picture: np.ndarray, rules: ReadingRules, rng: np.random.Generator
) -> tuple[dict[str, Any], list[Problem]]:
    """Make a packed item of a record and its picture (H, W, 3) uint8 RGB; also returns what was wrong with its lines.

    rng draws everything that is left to chance. Neither record nor picture is changed.
    """
    side = rules.image_size
    focus = [annotation.points for annotation in record.annotations if annotation.valid]
    picture, placing, padding = place_picture(picture, side, rules.fit, focus)
    edit = bool(rng.random() < rules.edit_share)
    lines, ignored, problems = _choose_lines(record, placing, rules, rng)
    ignored += padding

    slots = Slots(rules.max_lines, (side, side), packed=True)
    for annotation, points in lines:
        try:
            _add_line(slots, annotation, points, picture, rules, rng)
        except DrawingError as error:
            problems.append(Problem(record.number, "glyph", str(error)))
            ignored.append(points)
    if not len(slots):
        _add_line(slots, NO_TEXT, NO_TEXT.points, picture, rules, rng)
    # Editing paints the holes alone, so there is nothing to ignore.
    inv_mask = ignore_mask([] if edit else ignored, (side, side))
    phrase = rules.phrases[int(rng.integers(0, len(rules.phrases)))]
    caption = image_caption(record.caption, record.wm_score, rules.caption_words, rng, rules.name_watermarks)
    return slots.fields() | {
        "picture": picture,
        "edit": edit,
        "inv_mask_packed": np.packbits(inv_mask, axis=-1),
        "img_caption": caption,
        "text_caption": text_caption(len(slots), phrase),
    }, problems


def _choose_lines(
    record: Record, placing: Placing, rules: ReadingRules, rng: np.random.Generator
) -> tuple[list[tuple[Annotation, np.ndarray]], list[np.ndarray], list[Problem]]:
    """The lines to draw, at most max_lines, with polygons in the square; polygons to ignore; problems.

    A line that a crop cuts is ignored, and one outside of it is no problem.
    """
    lines, ignored, problems = [], [], []
    for annotation in record.annotations:
        points = placing.points(annotation.points)
        if rules.fit == "crop" and placing.cuts(points):
            ignored.append(points)
        elif not _reaches_inside(points, rules.image_size):
            problems.append(Problem(record.number, "outside", f"{annotation.text!a} at {annotation.polygon[:2]}"))
        elif annotation.valid:
            lines.append((annotation, points))
        else:
            ignored.append(points)
    if len(lines) > rules.max_lines:
        order = rng.permutation(len(lines))
        ignored += [lines[i][1] for i in order[rules.max_lines :]]
        lines = [lines[i] for i in order[: rules.max_lines]]
    return lines, ignored, problems


def _add_line(
    slots: Slots,
    annotation: Annotation,
    points: np.ndarray,
    picture: np.ndarray,
    rules: ReadingRules,
    rng: np.random.Generator,
) -> None:
    """Fill the next slot. Raises DrawingError if the text cannot be drawn; the slot is left to the next line then."""
    text, size = annotation.text[: rules.max_characters], picture.shape[:2]
    fonts = covering_fonts(text, rules.fonts)
    font = fonts[int(rng.integers(0, len(fonts)))] if rules.random_font else fonts[0]
    slots.draw(text, points, font, annotation.color)
    position = draw_position(points, size)
    if rules.jitter:
        position = jitter_position(position, points, rng.random())
    given = annotation.color is not None and not (rng.random() < 1 - rules.color_share)
    if rules.hint_share and not (rng.random() < 1 - rules.hint_share):
        keep, start = rng.uniform(*rules.hint_area), rng.uniform(0, 1)
        shake = Shake.draw(rng) if rules.hint_shake else None
        hint_from_picture(picture, points, keep, start, shake, out=slots.font_hint[0])
    slots.keep(text, annotation.language, points, position, annotation.color if given else UNSPECIFIED_COLOR)


def _reaches_inside(points: np.ndarray, side: int) -> bool:
    """Whether the polygon covers a pixel of the picture; it is drawn only if its bounding box leaves a doubt."""
    low, high = points.min(axis=0), points.max(axis=0)
    if low.min() >= 0 and high.max() < side:
        return True
    return bool(draw_position(points, (side, side)).any())


def _chosen(index, wm_thresh: float, share: float = 0.0, held_out: bool = False) -> np.ndarray | range:
    """Places of the records to use: those whose wm_score is not above wm_thresh, of the part that is wanted."""
    wanted = np.ones(len(index), bool)
    scores = index.column("wm_score")
    if scores.null_count < len(scores):
        wanted &= ~(np.nan_to_num(scores.to_numpy(), nan=-np.inf) > wm_thresh)
    if share:  # by name, so that records of one picture stay together and others keep their part when some are added
        names = index.column("img_name").to_pylist()
        drawn = np.fromiter(
            (zlib.crc32(name.encode("utf-8", "surrogatepass")) for name in names), np.uint32, len(names)
        )
        wanted &= (drawn < share * 2**32) == held_out
    return range(len(index)) if wanted.all() else np.flatnonzero(wanted).astype(np.uint32)
