"""What the lines of mock pictures say: words, numbers, letters and digits mixed, and strings with signs."""

from __future__ import annotations

import numpy as np

from anytext_lcm.data.chance import pick
from anytext_lcm.data.words import WORDS_OF, split_of

LETTERS_AND_DIGITS = "abcdefghjkmnpqrstuvwxyzABCDEFGHJKMNPQRSTUVWXYZ23456789"
"""Random strings avoid what a reader confuses: 0 O o, 1 I l i, L."""

SIGNS = tuple("0% 00% $0 $00 0.0 #0 #00 0+0 0/0 0:00 00:00 W! W? A+ A-0 A&A +00".split())
"""Strings with signs: 0 stands for a digit, A for a capital, W for a word."""

SHORTEST, LONGEST = 2, 7  # characters


def draw_text(rng: np.random.Generator, split: str) -> str:
    """Draw a string of SHORTEST to LONGEST characters of this split.

    Words are 45 %, numbers 20 %, letters and digits mixed 20 %, strings with signs 15 %.
    """
    while True:
        kind = rng.random()
        if kind < 0.45:
            text = _cased(rng, pick(rng, WORDS_OF[split]))
        elif kind < 0.85:
            alphabet = "0123456789" if kind < 0.65 else LETTERS_AND_DIGITS
            length = int(rng.integers(SHORTEST, LONGEST + 1))
            text = "".join(alphabet[i] for i in rng.integers(len(alphabet), size=length))
        else:
            text = _filled(rng, pick(rng, SIGNS), split)
        if SHORTEST <= len(text) <= LONGEST and split_of(text) == split:
            return text


def _filled(rng: np.random.Generator, template: str, split: str) -> str:
    """One of SIGNS with a digit, a capital or a word for each stand-in."""
    letters = {
        "0": lambda: "0123456789"[rng.integers(10)],
        "A": lambda: "ABCDEFGHJKLMNPQRSTUVWXYZ"[rng.integers(24)],
        "W": lambda: _cased(rng, pick(rng, WORDS_OF[split])),
    }
    return "".join(letters[sign]() if sign in letters else sign for sign in template)


def _cased(rng: np.random.Generator, word: str) -> str:
    return (word, word.title(), word.upper())[rng.integers(3)]
