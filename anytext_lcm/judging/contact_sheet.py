"""One picture out of many: prompts below each other, methods side by side. Imports numpy, Pillow and data."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from anytext_lcm.data.fonts import load_font

_GAP, _HEAD, _LABEL = 6, 34, 150  # pixels: between pictures, above them, left of them


def _fit(pen: ImageDraw.ImageDraw, text: str, width: int, font) -> str:
    """The text, cut with dots to what fits the width."""
    if pen.textlength(text, font=font) <= width:
        return text
    while text and pen.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text + "..."


def contact_sheet(columns: Mapping[str, np.ndarray], labels: Sequence[Sequence[str]], scale: int = 1) -> np.ndarray:
    """(H, W, 3) uint8: columns by their caption (B, h, w, 3) uint8, of which the first rows are shown, one for
    each label; a label is a few lines of text beside its row. A caption may have a second line.

    Raises ValueError when a column has fewer pictures than there are labels.
    """
    for name, images in columns.items():
        if len(images) < len(labels):
            raise ValueError(f"{name!r} has {len(images)} pictures for {len(labels)} rows.")
    height, width = (scale * side for side in next(iter(columns.values())).shape[1:3])
    sheet = Image.new(
        "RGB",
        (_LABEL + len(columns) * (width + _GAP) + _GAP, _HEAD + len(labels) * (height + _GAP) + _GAP),
        "white",
    )
    pen, bold, plain = ImageDraw.Draw(sheet), load_font("DejaVuSans-Bold.ttf", 12), load_font("DejaVuSans.ttf", 11)
    for column, (name, images) in enumerate(columns.items()):
        left = _LABEL + _GAP + column * (width + _GAP)
        for line, text in enumerate(name.split("\n")[:2]):
            font = plain if line else bold
            pen.text((left, 3 + 15 * line), _fit(pen, text, width, font), font=font, fill="black")
        for row in range(len(labels)):
            picture = Image.fromarray(images[row]).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, _HEAD + row * (height + _GAP)))
    for row, texts in enumerate(labels):
        for line, text in enumerate(texts):
            place = (_GAP, _HEAD + row * (height + _GAP) + 4 + 16 * line)
            pen.text(place, _fit(pen, text, _LABEL - _GAP, plain), font=plain, fill="black")
    return np.asarray(sheet)
