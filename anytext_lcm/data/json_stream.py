"""Read the records of an AnyWord JSON one by one, without holding the file in memory.

The file is one object with a short head and the long array `data_list`. The standard library's decoder reads it through
a window, so that 3 million records take a few MB. It goes on where a record is damaged, so that the caller can decide:

- raw control characters stay in their strings;
- bytes that are no UTF-8 arrive as lone surrogates (Python's "surrogateescape");
- NaN arrives as nan, an integer of any length as int, over 4000 digits as an infinite float;
- a byte order mark at the start is skipped;
- an object with a key given twice arrives as a `DoubledDict`.

ijson is not used because it fails on the first four and says nothing of doubled keys: one bad record would stop a run.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_CHUNK = 1 << 20  # bytes read at a time
_SPACE = " \t\n\r"


class DoubledDict(dict):
    """A JSON object in which keys occur more than once; `doubled` names them, the last value counts."""

    doubled: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    seen: set[str] = set()
    doubled = DoubledDict(plain)
    doubled.doubled = tuple(dict.fromkeys(k for k, _ in pairs if k in seen or seen.add(k)))
    return doubled


def _integer(digits: str) -> int | float:
    """Python refuses to read integers over 4300 digits."""
    return int(digits) if len(digits) <= 4000 else float(digits)


class _Window:
    """Text of a file from `position` on, read as far as needed; name begins its error messages."""

    def __init__(self, file: BinaryIO, name: str):
        self.file, self.name = file, name
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self.json = json.JSONDecoder(object_pairs_hook=_object, strict=False)
        self.patient = json.JSONDecoder(object_pairs_hook=_object, strict=False, parse_int=_integer)  # but slow
        self.text, self.position, self.ended = "", 0, False

    def more(self) -> bool:
        """Read on, at least as much as there is already; False at the end of the file."""
        if self.ended:
            return False
        read = self.file.read(max(_CHUNK, len(self.text) - self.position))
        self.ended = not read
        self.text = self.text[self.position :] + self.decoder.decode(read, final=not read)
        self.position = 0
        return True

    def peek(self) -> str:
        """Return the next character that is not space, without taking it; '' at the end."""
        while True:
            while self.position < len(self.text) and self.text[self.position] in _SPACE:
                self.position += 1
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.more():
                return ""

    def take(self, sign: str, where: str) -> None:
        """Take the next character. Raises ValueError unless it is `sign`."""
        found = self.peek()
        if found != sign:
            raise ValueError(f"{self.name} is no complete JSON: {where} wants {sign!r}, got {found or 'its end'!r}.")
        self.position += 1

    def _decode(self) -> tuple[Any, int]:
        try:
            return self.json.raw_decode(self.text, self.position)
        except json.JSONDecodeError:
            raise
        except ValueError:  # an integer that is too long
            return self.patient.raw_decode(self.text, self.position)

    def value(self, where: str) -> Any:
        """Take the next JSON value. Raises ValueError where the text is no JSON."""
        self.peek()
        while True:
            try:
                value, end = self._decode()
                if end < len(self.text) or self.ended:  # a number may go on in the next chunk
                    self.position = end
                    return value
                self.more()
            except json.JSONDecodeError as error:
                # A mistake near the window's end may be a value that is not all there yet.
                if error.pos < len(self.text) - 64 and "Unterminated" not in error.msg or not self.more():
                    raise ValueError(
                        f"{self.name} is no complete JSON: {where} cannot be read ({error.msg}); mend the file."
                    ) from error
            except RecursionError as error:
                raise ValueError(f"{self.name}: {where} is nested too deeply; mend the file.") from error


def read_records(path: str | Path) -> tuple[dict[str, Any], Iterator[Any]]:
    """Read what stands beside `data_list`, and iterate over the elements of `data_list`.

    The first, {"data_root": ...}, is complete once the elements have been read, because the file may have it at its
    end. Raises FileNotFoundError, and (while reading) ValueError naming the record where the file stops being JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}: name the JSON of a data set.")
    head: dict[str, Any] = {}
    return head, _elements(path, head)


def _elements(path: Path, head: dict[str, Any]) -> Iterator[Any]:
    with path.open("rb") as file:
        window = _Window(file, str(path))
        window.take("{", "the file")
        found, first = False, True
        while window.peek() != "}":
            if not first:
                window.take(",", "the file")
            first = False
            key = window.value("a name")
            if not isinstance(key, str):
                raise ValueError(f"{path} is no complete JSON: a name of its object is not a string.")
            window.take(":", "the file")
            if key != "data_list":
                head[key] = window.value(repr(key))
                continue
            if found:
                raise ValueError(f"{path} has 'data_list' twice; put the records into one list.")
            found, number = True, 0
            window.take("[", "'data_list'")
            while window.peek() != "]":
                if number:
                    window.take(",", f"'data_list' after record {number - 1}")
                yield window.value(f"record {number}")
                number += 1
            window.take("]", "'data_list'")
        window.take("}", "the file")
        if more := window.peek():
            raise ValueError(f"{path} goes on with {more!r} after the end of its JSON; name several files one by one.")
        if not found:
            raise ValueError(f"{path} has no 'data_list': it is not in AnyWord's layout.")
