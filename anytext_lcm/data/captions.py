"""The image caption, as AnyText2 makes it out of a record's (t3_dataset.py, `load_data` and `truncate_string`).

The text caption is `batch.text_caption`.

May import: numpy.
"""

from __future__ import annotations

import numpy as np

MAX_CAPTION = 500
"""Characters of a caption that are looked at; Chinese has no spaces, so a limit in words alone would not hold."""

WATERMARK_SCORE = 0.5
"""Above it a picture is said to have watermarks."""


def image_caption(
    caption: str,
    wm_score: float | None,
    max_words: int,
    rng: np.random.Generator,
    name_watermarks: bool = True,
    placeholder: str = "*",
) -> str:
    """A record's caption made ready: watermarks named, no placeholder in it, not too long.

    Arguments
        caption          as in the record
        wm_score         how surely there is a watermark, 0..1, None = not known
        max_words        longest caption in words; 0 leaves caption and its end as they are
        rng              draws the sentences that stay
        name_watermarks  append " with watermarks " or " no watermarks " where the score is known

    A '*' would take the embedding of a text line in the text encoder, so it becomes a space. The record stays as it is
    (upstream writes the result back, so that a caption grows by ". " at every access).
    """
    if name_watermarks and wm_score is not None:
        caption += " with watermarks " if wm_score > WATERMARK_SCORE else " no watermarks "
    caption = caption.replace(placeholder, " ")
    return shorten(caption + ". ", max_words, rng) if max_words > 0 else caption


def shorten(caption: str, max_words: int, rng: np.random.Generator) -> str:
    """At most max_words words: the first sentence, then others in random order, the last one cut.

    A caption that is short enough comes back as it is, but for what exceeds MAX_CAPTION characters.
    """
    caption = caption[:MAX_CAPTION]
    if len(caption.split()) <= max_words:
        return caption
    first, *others = (sentence.split() for sentence in caption.split("."))
    kept, count = " ".join(first[:max_words]), min(len(first), max_words)
    while count < max_words and others:
        words = others.pop(int(rng.integers(0, len(others))))
        if count + len(words) > max_words:
            words = [*words[: max_words - count], "."]
        if words:
            kept += ". " + " ".join(words)
            count += len(words)
    return kept
