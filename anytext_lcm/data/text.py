"""Text from outside: one form for what looks alike, and nothing that cannot be drawn."""

from __future__ import annotations

import re
import unicodedata

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
# Letters, symbols and marks without ink: joiners, fillers of Hangul, the empty Braille cell, variation selectors.
_WITHOUT_INK = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def composed(text: str) -> str:
    """The text in Unicode's form NFC, in which an accent is part of its letter: drawn, counted and tokenised alike."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def is_unicode(text: str) -> bool:
    """False if there are lone surrogates, which stand for bytes that were no UTF-8."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def has_control(text: str) -> bool:
    """Whether there are control characters or line ends, which no font draws."""
    return not text.isprintable() and _CONTROL.search(text) is not None


def without_control(text: str) -> str:
    """The text with a space in place of control characters and line ends."""
    return _CONTROL.sub(" ", text)


def is_visible(text: str) -> bool:
    """Whether a character of the text leaves ink: not blanks, format characters and fillers alone."""
    if text.isascii():
        return not (text.isspace() or not text)
    return any(unicodedata.category(c)[0] not in "ZC" for c in _WITHOUT_INK.sub("", text))


def checked(text: str, what: str) -> str:
    """The text composed, as it is drawn. Raises ValueError, which calls it `what`, for bytes that are not UTF-8 and for
    control characters.
    """
    if not is_unicode(text):
        raise ValueError(f"{what} {ascii(text)} is not UTF-8: write it in UTF-8.")
    if has_control(text):
        raise ValueError(f"{what} {text!r} holds control characters or line ends: leave them out.")
    return composed(text)
