"""One picture out of many, pixel by pixel: rows below each other, columns side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP, HEAD, LABEL = 6, 34, 150  # between pictures, above them, left of them, beside pictures of SIDE pixels or less
SIDE = 170  # larger pictures get larger writing


def contact_sheet(columns: Mapping[str, np.ndarray], labels: Sequence[Sequence[str]], scale: int = 1) -> np.ndarray:
    """Lay out columns of pictures (B, h, w, 3) uint8 under their captions: one sheet (H, W, 3) uint8.

    labels: a few lines of text per row; as many rows are shown. A caption may have a second line. scale: each pixel so
    many times as large. Raises ValueError for a column with fewer pictures than there are labels.
    """
    for name, images in columns.items():
        if len(images) < len(labels):
            raise ValueError(f"{name!r} has {len(images)} pictures for {len(labels)} rows.")
    height, width = (scale * side for side in next(iter(columns.values())).shape[1:3])
    unit = max(1.0, height / SIDE)
    gap, head, label = (round(unit * pixels) for pixels in (GAP, HEAD, LABEL))
    size = label + len(columns) * (width + gap) + gap, head + len(labels) * (height + gap) + gap
    sheet = Image.new("RGB", size, "white")
    pen, bold, plain = (
        ImageDraw.Draw(sheet),
        _font("DejaVuSans-Bold.ttf", 12 * unit),
        _font("DejaVuSans.ttf", 11 * unit),
    )
    for column, (name, images) in enumerate(columns.items()):
        left = label + gap + column * (width + gap)
        for line, text in enumerate(name.split("\n")[:2]):
            font = plain if line else bold
            pen.text((left, (3 + 15 * line) * unit), _fit(pen, text, width, font), font=font, fill="black")
        for row in range(len(labels)):
            picture = Image.fromarray(images[row]).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, head + row * (height + gap)))
    for row, texts in enumerate(labels):
        for line, text in enumerate(texts):
            place = (gap, head + row * (height + gap) + (4 + 16 * line) * unit)
            pen.text(place, _fit(pen, text, label - gap, plain), font=plain, fill="black")
    return np.asarray(sheet)


def prompt_label(texts: Sequence[str], caption: str) -> list[str]:
    """A prompt as the lines of a label: its texts in quotes, and the beginning of its caption."""
    return [*(f'"{text}"' for text in texts), *wrap(caption, 22, break_long_words=False, break_on_hyphens=False)[:4]]


def _font(name: str, size: float) -> ImageFont.FreeTypeFont:
    """One of the fonts that come with matplotlib, the same on every machine."""
    import matplotlib  # here, so that `data --help` stays light

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def _fit(pen: ImageDraw.ImageDraw, text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """The text, cut with dots to what fits the width."""
    if pen.textlength(text, font=font) <= width:
        return text
    while text and pen.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text + "..."
