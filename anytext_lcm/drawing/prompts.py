"""What is to be drawn: prompts, lines of text, and the batch made of them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anytext_lcm.data.batch import PLACEHOLDER, Line, build_conditioning, collate
from anytext_lcm.data.colours import COLORS
from anytext_lcm.data.fonts import PLAIN_FONT
from anytext_lcm.data.records import MAX_COORDINATE
from anytext_lcm.data.text import checked, is_visible
from anytext_lcm.drawing.editing import turned_box

_BOX = re.compile(r"@-?\d+(,-?\d+){3,}(/[^#]*)?(#.*)?$")


@dataclass(frozen=True)
class Prompt:
    """What is wanted: a caption without the text, the lines of text, and for editing the picture to change.

    image: (H, W, 3) uint8 RGB, kept outside the lines' polygons; None = draw all of it. source: the place in a file
    that it was read from, which begins what is said about it.
    """

    caption: str
    lines: tuple[Line, ...]
    image: np.ndarray | None = None
    source: str = field(default="", compare=False)


def prompts_to_batch(
    prompts: Sequence[Prompt], size: tuple[int, int], max_lines: int, font: str | Path = PLAIN_FONT
) -> dict[str, Any]:
    """Build the batch (see data/batch.py) for `prepare`; it lacks `img`, which drawing does not read.

    size: height and width in pixels, multiples of 8. A * in a caption becomes a space, as in the data: it would take a
    line's embedding. Raises ValueError for no prompt, too many or too long lines, characters that the font lacks,
    polygons outside, a picture of another size.
    """
    return collate(prompts_to_items(prompts, size, max_lines, font))


def prompts_to_items(
    prompts: Sequence[Prompt], size: tuple[int, int], max_lines: int, font: str | Path = PLAIN_FONT
) -> list[dict[str, Any]]:
    """The items that `prompts_to_batch` makes a batch of. Raises as it does."""
    if any(side % 8 or side < 8 for side in size):
        raise ValueError(f"The size {size[1]} x {size[0]} must be a multiple of 8 pixels each way.")
    return [prompt_item(prompt, size, max_lines, font) for prompt in prompts]


def prompt_item(prompt: Prompt, size: tuple[int, int], max_lines: int, font: str | Path = PLAIN_FONT) -> dict[str, Any]:
    """One item of `prompts_to_batch`. Raises as it does."""
    try:
        return _item(prompt, size, max_lines, font)
    except ValueError as error:
        if not prompt.source:
            raise
        raise ValueError(f"{prompt.source} cannot be drawn: {error}") from error


def _item(prompt: Prompt, size: tuple[int, int], max_lines: int, font: str | Path) -> dict[str, Any]:
    caption = checked(prompt.caption, "The prompt")
    for line in prompt.lines:
        if line.text and not is_visible(line.text):
            raise ValueError(f"The text of line {ascii(line.text)} is invisible: give a character that leaves ink.")
    image = None
    if prompt.image is not None:
        if prompt.image.shape != (*size, 3) or prompt.image.dtype != np.uint8:
            raise ValueError(
                f"The picture to edit must be ({size[0]}, {size[1]}, 3) uint8, "
                f"this one is {prompt.image.shape} {prompt.image.dtype}."
            )
        # Clipped as in upstream's demo, so that black is no hole: holes are -1.
        image = prompt.image.clip(1, 255).transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
    mode = "generate" if image is None else "edit"
    item = build_conditioning(prompt.lines, size, max_lines, font=font, mode=mode, image=image)
    return {**item, "img_caption": caption.replace(PLACEHOLDER, " ")}


def parse_colour(text: str) -> tuple[int, int, int]:
    """Name of a colour of the mock data set, or six hexadecimal digits -> RGB 0..255. Raises ValueError."""
    if text in COLORS:
        return COLORS[text]
    digits = text.removeprefix("#")
    if re.fullmatch("[0-9a-fA-F]{6}", digits):
        return tuple(bytes.fromhex(digits))
    raise ValueError(f"Colour {text!r} is unknown: say {', '.join(COLORS)}, or six digits like ff8000.")


def parse_line(text: str, hint_font: str | None = None, polygon: np.ndarray | None = None) -> Line:
    """Read TEXT@LEFT,TOP,RIGHT,BOTTOM or TEXT@X,Y,X,Y,X,Y,..., in pixels, with an optional /ANGLE (-90..90 degrees
    clockwise, of a box) and #COLOUR.

    TEXT may hold @, / and #. With a polygon (4, 2), from a mask, TEXT or TEXT#COLOUR is enough; there a # belongs to
    the text unless a colour follows it, and a box is refused. Raises ValueError.
    """
    if polygon is not None:
        if _BOX.search(text):
            raise ValueError(f"Line {text!r} says a box, and the mask gives it another: drop the box, or the mask.")
        words, mark, colour = text.rpartition("#")
        try:
            ink = parse_colour(colour) if mark else None
        except ValueError:
            mark = ""
        return Line(words, polygon, ink, hint_font) if mark else Line(text, polygon, None, hint_font)
    words, at, place = text.rpartition("@")
    place, mark, colour = place.partition("#")
    place, slash, turn = place.partition("/")
    try:
        numbers = [int(number) for number in place.split(",")]
        angle = float(turn) if slash else 0.0
    except ValueError:
        numbers, angle = [], 0.0
    if not at or (len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2 or slash)):
        raise ValueError(
            f"Line {text!r} does not say where it goes: write TEXT@LEFT,TOP,RIGHT,BOTTOM, "
            "as in HELLO@10,40,118,80#yellow."
        )
    if max(map(abs, numbers)) > MAX_COORDINATE:
        raise ValueError(f"The place of line {text[:40]!r} lies beyond {MAX_COORDINATE} pixels: move it inside.")
    if len(numbers) == 4:
        left, top, right, bottom = numbers
        if left >= right or top >= bottom:
            raise ValueError(f"The box of line {text!r} is empty: give LEFT,TOP,RIGHT,BOTTOM in this order.")
        box = turned_box(left, top, right, bottom, angle)
    else:
        box = np.array(numbers).reshape(-1, 2)
    return Line(words, box, parse_colour(colour) if mark else None, hint_font)
