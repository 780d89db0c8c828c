"""A record of AnyWord-3M, and the rules that make a record of any JSON value.

A record that cannot be used is left out, a wrong part of it is mended or left out, and a `Problem` names record, field
and what is wrong. So no record stops a run. RULES is the list. A record as published is read as upstream reads it
(AnyText2's t3_dataset.py, `load_data`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import cv2
import numpy as np

from anytext_lcm.data.json_stream import DoubledDict
from anytext_lcm.data.text import composed, has_control, is_unicode, is_visible, without_control

LANGUAGES = (
    "Latin",
    "Chinese_sim",
    "Chinese_tra",
    "Japanese",
    "Korean",
    "Arabic",
    "Bangla",
    "Hindi",
)
"""Languages of a line; the file's "Chinese" is one of the two kinds by whether simplifying changes the text."""

RULES = {
    "record": "not an object: left out",
    "duplicate key": "the last value counts",
    "img_name": "missing, empty, not text, or with bytes that no file name can have: the record is left out",
    "path": "img_name is absolute or leads out of data_root by `..`: read all the same, as upstream does",
    "caption": "not text: empty; control characters become spaces, bytes that are not UTF-8 are dropped",
    "wm_score": "not a finite number: unknown",
    "annotations": "not a list: the record is left out, as what is written in the picture is not known",
    "annotation": "not an object: left out",
    "polygon": "missing, fewer than 3 points, not finite numbers, beyond 30000 or without area: the line is left out; "
    "self-crossing, or more than 200 points: its convex hull. (AnyWord has an empty list for no place: left out, "
    "and no problem)",
    "text": "missing, not text, empty, invisible or not UTF-8: the loss does not look there; control characters become "
    "spaces; over 200 characters: cut",
    "language": "missing or unknown: by the script of the text",
    "valid": "neither true nor false: the loss does not look there",
    "color": "not three numbers 0..255 (or 500, 500, 500): unspecified",
    "picture": "missing, broken or of more than 40 megapixels: the next record that has one is taken",
    "outside": "a polygon wholly outside the picture: the line is left out",
    "glyph": "no font holds the text, or it has no room: the loss does not look there",
}
"""What is done about a problem, by its kind. The last three show when the picture is read."""

MAX_TEXT = 200  # characters
MAX_POINTS = 200  # of a polygon; looking for sides that cross takes time with the square of it
MAX_COORDINATE = 30_000  # pixels; the index stores 16 bits
_SCRIPTS = (
    ("Japanese", re.compile(r"[\u3040-\u30ff]")),
    ("Korean", re.compile(r"[\u1100-\u11ff\uac00-\ud7af]")),
    ("Arabic", re.compile(r"[\u0600-\u06ff\u0750-\u077f]")),
    ("Bangla", re.compile(r"[\u0980-\u09ff]")),
    ("Hindi", re.compile(r"[\u0900-\u097f]")),
    ("Chinese", re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")),
)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a record: which one (its place in data_list), which kind of RULES, what exactly."""

    number: int
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class Annotation:
    """A line of text in a picture.

    polygon   x0, y0, x1, y1, ... integers, in pixels of the picture's file
    text      as written, in Unicode's form NFC, or "" where it is not known
    language  one of LANGUAGES
    valid     False: the loss does not look there
    color     RGB 0..255, None = not specified
    """

    polygon: tuple[int, ...]
    text: str
    language: str
    valid: bool
    color: tuple[int, int, int] | None

    @property
    def points(self) -> np.ndarray:
        """The polygon as (n, 2) int32, x and y."""
        return np.array(self.polygon, np.int32).reshape(-1, 2)


@dataclass(frozen=True, slots=True)
class Record:
    """A picture with its caption and lines; `number` is its place in the file's data_list."""

    number: int
    img_name: str
    caption: str
    wm_score: float | None
    annotations: tuple[Annotation, ...]


def clean(raw: Any, number: int) -> tuple[Record | None, list[Problem]]:
    """Make a Record (None: it is left out) of a value of data_list; also returns what was wrong with it.

    number: its place in data_list.
    """
    problems: list[Problem] = []

    def note(kind: str, detail: str) -> None:
        problems.append(Problem(number, kind, detail))

    if not isinstance(raw, dict):
        note("record", f"it is {_name(raw)}")
        return None, problems
    _note_doubled(raw, "", note)
    name = raw.get("img_name")
    if not isinstance(name, str) or not name.strip():
        note("img_name", f"it is {_name(name)}")
        return None, problems
    if "\0" in name or not is_unicode(name):
        note("img_name", "bytes that no file name can have")
        return None, problems
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts:
        note("path", _name(name))
    listed = raw.get("annotations")
    if listed is None:
        listed = []
    if not isinstance(listed, list):
        note("annotations", f"they are {_name(listed)}")
        return None, problems
    annotations = []
    for place, entry in enumerate(listed):
        annotation = _annotation(entry, f"annotation {place}", note)
        if annotation is not None:
            annotations.append(annotation)
    record = Record(
        number, name, _caption(raw.get("caption"), note), _score(raw.get("wm_score"), note), tuple(annotations)
    )
    return record, problems


def script_language(text: str) -> str:
    """Name one of LANGUAGES by the script of the characters; "Latin" where none is known."""
    for language, pattern in _SCRIPTS:
        if pattern.search(text):
            return chinese_kind(text) if language == "Chinese" else language
    return "Latin"


def chinese_kind(text: str) -> str:
    """Name the kind of Chinese: "Chinese_tra" if simplifying changes the text, else "Chinese_sim"."""
    return "Chinese_tra" if _simplifier().convert(text) != text else "Chinese_sim"


@lru_cache(maxsize=1)
def _simplifier():
    from opencc import OpenCC  # loads its dictionaries, wanted only where there is Chinese

    return OpenCC("t2s")


# -- fields ---------------------------------------------------------------------------------------------


def _annotation(entry: Any, where: str, note) -> Annotation | None:
    if not isinstance(entry, dict):
        note("annotation", f"{where} is {_name(entry)}")
        return None
    _note_doubled(entry, where, note)
    polygon = _polygon(entry.get("polygon"), where, note)
    if polygon is None:
        return None
    valid = entry.get("valid", True)
    if not isinstance(valid, bool):
        note("valid", f"{where}: {_name(valid)}")
        valid = False
    if not valid:
        return Annotation(polygon, "", "Latin", False, None)  # nothing else of it is used
    text = _text(entry.get("text"), where, note)
    if text is None:
        return Annotation(polygon, "", "Latin", False, None)
    return Annotation(
        polygon, text, _language(entry.get("language"), text, where, note), True, _color(entry, where, note)
    )


def _polygon(value: Any, where: str, note) -> tuple[int, ...] | None:
    if value == []:
        return None  # upstream: no place, no line
    if not isinstance(value, list):
        note("polygon", f"{where}: {_name(value)}")
        return None
    if len(value) < 3:
        note("polygon", f"{where}: {len(value)} points")
        return None
    flat = []
    for point in value:
        if not isinstance(point, list) or len(point) != 2:
            note("polygon", f"{where}: a point is {_name(point)}")
            return None
        for coordinate in point:
            if type(coordinate) is float and math.isfinite(coordinate):
                coordinate = round(coordinate) if abs(coordinate) <= MAX_COORDINATE else MAX_COORDINATE + 1
            if type(coordinate) is not int:
                note("polygon", f"{where}: a coordinate is {_name(coordinate)}")
                return None
            if not -MAX_COORDINATE <= coordinate <= MAX_COORDINATE:
                note("polygon", f"{where}: a coordinate is beyond {MAX_COORDINATE}")
                return None
            flat.append(coordinate)
    points = list(zip(flat[::2], flat[1::2], strict=True))
    if _is_convex(points):
        return tuple(flat)
    hull = cv2.convexHull(np.array(points, np.int32)).reshape(-1, 2)
    if len(hull) < 3:
        note("polygon", f"{where}: no area")
        return None
    if len(points) > MAX_POINTS:
        note("polygon", f"{where}: {len(points)} points")
        return tuple(hull.ravel().tolist())
    if _crosses_itself(points):
        note("polygon", f"{where}: crosses itself")
        return tuple(hull.ravel().tolist())
    return tuple(flat)


def _text(value: Any, where: str, note) -> str | None:
    if not isinstance(value, str):
        note("text", f"{where}: {_name(value)}")
        return None
    if not is_unicode(value):
        note("text", f"{where}: not UTF-8")
        return None
    if has_control(value):
        note("text", f"{where}: control characters")
        value = without_control(value).strip()
    value = composed(value)
    if not is_visible(value):
        note("text", f"{where}: empty" if not value.strip() else f"{where}: {_name(value)} is invisible")
        return None
    if len(value) > MAX_TEXT:
        note("text", f"{where}: {len(value)} characters")
        value = value[:MAX_TEXT]
    return value


def _language(value: Any, text: str, where: str, note) -> str:
    if value == "Chinese":
        return chinese_kind(text)
    if isinstance(value, str) and value in LANGUAGES:
        return value
    note("language", f"{where}: {_name(value)}")
    return script_language(text)


def _color(entry: dict, where: str, note) -> tuple[int, int, int] | None:
    value = entry.get("color")
    if value is None or value == [500, 500, 500]:
        return None
    if isinstance(value, list) and len(value) == 3:
        if all(type(c) in (int, float) and 0 <= c <= 255 for c in value):  # nan compares false
            return tuple(round(c) for c in value)
    note("color", f"{where}: {_name(value)}")
    return None


def _caption(value: Any, note) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        note("caption", f"it is {_name(value)}")
        return ""
    if not is_unicode(value):
        note("caption", "not UTF-8")
        value = value.encode("utf-8", "ignore").decode("utf-8")
    if has_control(value):
        note("caption", "control characters")
        value = without_control(value)
    return composed(value)


def _score(value: Any, note) -> float | None:
    if value is None:
        return None
    try:
        number = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:  # an integer beyond float
        number = math.inf
    if not math.isfinite(number):
        note("wm_score", f"it is {_name(value)}")
        return None
    return number


# -- helpers --------------------------------------------------------------------------------------------


def _note_doubled(value: dict, where: str, note) -> None:
    if isinstance(value, DoubledDict):
        note("duplicate key", f"{where + ': ' if where else ''}{', '.join(map(_name, value.doubled))}")


def _name(value: Any) -> str:
    """A short printable form for a message."""
    if value is None:
        return "missing"
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _turn(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int:
    """Twice the area of a triangle, its sign the way round."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _is_convex(points: list[tuple[int, int]]) -> bool:
    """A quadrilateral or triangle that turns one way only; other polygons are looked at more closely."""
    if len(points) > 4:
        return False
    turns = [_turn(points[i - 2], points[i - 1], points[i]) for i in range(len(points))]
    return all(turn > 0 for turn in turns) or all(turn < 0 for turn in turns)


def _crosses_itself(points: list[tuple[int, int]]) -> bool:
    """Whether two sides that are not neighbours cross each other properly."""
    n = len(points)
    sides = [(points[i], points[(i + 1) % n]) for i in range(n)]
    for i in range(n):
        for j in range(i + 2, n):
            if i == 0 and j == n - 1:
                continue
            (a, b), (c, d) = sides[i], sides[j]
            if _turn(a, b, c) * _turn(a, b, d) < 0 and _turn(c, d, a) * _turn(c, d, b) < 0:
                return True
    return False
