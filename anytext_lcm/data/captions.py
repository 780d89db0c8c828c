"""The image caption, as AnyText2 makes it of a record's (t3_dataset.py, `load_data` and `truncate_string`).

The text caption is `batch.text_caption`.
"""

from __future__ import annotations

import numpy as np

MAX_CAPTION = 500
"""Characters of a caption that are read; Chinese has no spaces, so a limit in words alone would not hold."""

WATERMARK_SCORE = 0.5
"""Above it the caption says that there are watermarks."""


def image_caption(
    caption: str,
    wm_score: float | None,
    max_words: int,
    rng: np.random.Generator,
    name_watermarks: bool = True,
    placeholder: str = "*",
) -> str:
    """Prepare a record's caption: watermarks named, no placeholder in it, not too long.

    Arguments
        caption          as in the record
        wm_score         probability of a watermark, 0..1, None = not known
        max_words        longest caption in words; 0 leaves caption and its end as they are
        rng              chooses the sentences that stay
        name_watermarks  append " with watermarks " or " no watermarks " where the score is known

    A '*' becomes a space, because it would take the embedding of a text line in the text encoder.
    """
    # Upstream writes the result back into the record, so that a caption grows by ". " at every access.
    if name_watermarks and wm_score is not None:
        caption += " with watermarks " if wm_score > WATERMARK_SCORE else " no watermarks "
    caption = caption.replace(placeholder, " ")
    return shorten(caption + ". ", max_words, rng) if max_words > 0 else caption


def shorten(caption: str, max_words: int, rng: np.random.Generator) -> str:
    """Shorten to max_words words: the first sentence, then others in random order, the last one cut.

    Of a caption that is short enough only what exceeds MAX_CAPTION characters is cut.
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
