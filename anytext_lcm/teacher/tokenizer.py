"""Stage `tokenizer`: the embedded teacher's tokenizer in the file format of CLIP's.

Its tokens are the 256 byte symbols, the same with CLIP's end-of-word mark, merges that make each word of the mock
captions one token, and two special tokens. The bytes come first and in CLIP's order, so that '*' is token 265 in both.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from anytext_lcm.data.batch import TEXT_PHRASES
from anytext_lcm.data.scene_captions import caption_vocabulary

VOCABULARY_SIZE = 1024
LATER_WORDS = ("checks", "gradient", "photo", "stripes")  # come last, so that the ids of all others stay
WORD_END = "</w>"


def byte_symbols() -> list[str]:
    """The printable stand-ins of the 256 bytes in the order of GPT-2 and CLIP: visible ones first."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    rest = [b for b in range(256) if b not in visible]
    return [chr(b) for b in visible] + [chr(256 + i) for i in range(len(rest))]


def merges_of(words: list[str], before: Sequence[tuple[str, str]] = ()) -> list[tuple[str, str]]:
    """`before`, and the merges that build each word from left to right; its last letter carries the end mark."""
    merges = list(before)
    for word in sorted({w.lower() for w in words if len(w) > 1}, key=lambda w: (len(w), w)):
        pieces = [*word[:-1], word[-1] + WORD_END]
        for pair in merges:  # earlier merges may have joined parts of it
            pieces = _apply(pieces, pair)
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            merges.append(pair)
            pieces = _apply(pieces, pair)
    return merges


def _apply(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    out, i = [], 0
    while i < len(pieces):
        joined = tuple(pieces[i : i + 2]) == pair
        out.append("".join(pair) if joined else pieces[i])
        i += 2 if joined else 1
    return out


def write_tokenizer(folder: Path) -> None:
    """Write vocab.json and merges.txt into `folder`. Raises ValueError if VOCABULARY_SIZE tokens are not enough."""
    words = [word for word in caption_vocabulary() if word not in LATER_WORDS]
    phrases = [*words, *re.findall(r"[A-Za-z]+", " ".join(TEXT_PHRASES))]
    merges = merges_of([w for phrase in phrases for w in re.findall(r"[A-Za-z]+", phrase)])
    merges = merges_of(list(LATER_WORDS), merges)
    symbols = byte_symbols()
    tokens = [*symbols, *(s + WORD_END for s in symbols), *dict.fromkeys("".join(pair) for pair in merges)]
    spare = VOCABULARY_SIZE - 2 - len(tokens)
    if spare < 0:
        raise ValueError(f"The captions need {len(tokens) + 2} tokens, the vocabulary has {VOCABULARY_SIZE}.")
    tokens += [f"<|unused{i}|>" for i in range(spare)] + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False), encoding="utf-8"
    )
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
