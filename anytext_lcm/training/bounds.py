"""A setting of a run as a dataclass field with bounds, and the check of a value against them."""

import math
import operator
from dataclasses import Field, field
from typing import Any


def setting(
    default: Any,
    reason: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
    path: bool = False,
    identity: bool = True,
) -> Any:
    """A field with its bounds and its reason.

    path: it names a file or folder, or several. identity: a resumed run must have the same value.
    """
    bounds = {"at least": at_least, "at most": at_most, "above": above, "below": below}
    bounds = {words: bound for words, bound in bounds.items() if bound is not None}
    about = {"help": reason, "bounds": bounds, "choices": choices, "path": path, "identity": identity}
    return field(default=default, metadata=about)


_WITHIN = {"at least": operator.ge, "at most": operator.le, "above": operator.gt, "below": operator.lt}


def _wrong_text(text: str, path: bool) -> str | None:
    """What no file's name and no prompt can be, as the rest of a sentence; None for what can be."""
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError:
        return f"is not UTF-8: {ascii(text)[:60]}"
    if not path:
        return None
    if not text.strip():
        return "is empty: name a file or folder"
    if "\0" in text:
        return f"has a NUL character in it: {ascii(text)[:60]}"
    if len(encoded) > 4000 or any(len(part) > 255 for part in encoded.split(b"/")):
        return f"is longer than a file system allows: {text[:20]}... has {len(text)} characters"
    return None


def _is_finite(value: int | float) -> bool:
    return isinstance(value, int) or math.isfinite(value)  # math.isfinite fails for an integer beyond float


def check_value(known: Field, value: Any, kind: type) -> None:
    """Raises ValueError for a number or a choice that is out of bounds, and for a name that no file can have."""
    choices, bounds = known.metadata["choices"], known.metadata["bounds"]
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and (problem := _wrong_text(text, known.metadata["path"])):
            raise ValueError(f"--{known.name} {problem}.")
    if choices and value not in choices:
        raise ValueError(f"--{known.name} {value!r} is unknown; choose {' or '.join(choices)}.")
    if kind not in (int, float):
        return
    numeric = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not (numeric and _is_finite(value) and all(_WITHIN[w](value, bound) for w, bound in bounds.items())):
        limits = " and ".join(
            f"{words} {bound:{'' if isinstance(bound, int) else 'g'}}" for words, bound in bounds.items()
        )
        what = ("an integer" if kind is int else "a number") + (f", {limits}" if limits else "")
        raise ValueError(f"--{known.name} must be {what}: {value!r} is not.")
