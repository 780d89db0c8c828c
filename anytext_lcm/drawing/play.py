"""One picture and all that is worth knowing about it: what the playground of notebook 05 draws, without the widgets.

Imports numpy, cv2, Pillow, the rooms data, model and pipeline, editing; the reader comes in as an argument.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Protocol

import cv2
import numpy as np
from PIL import Image

from anytext_lcm.data.batch import Line
from anytext_lcm.data.fonts import PLAIN_FONT
from anytext_lcm.data.mock import COLORS
from anytext_lcm.drawing.draw import draw_prepared, prepare
from anytext_lcm.drawing.editing import fit_picture, paste_back, turned_box, upright
from anytext_lcm.drawing.methods import Method
from anytext_lcm.drawing.prompts import Prompt, prompts_to_batch
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.networks import Defaults

LINES = 5  # of the playground, as AnyText2's own demo


ANY = "any"


class Reader(Protocol):
    """What the judge's readers can do."""

    def read(self, images, polygons: Sequence[Sequence[np.ndarray]]) -> list[list[str]]: ...


@dataclass(frozen=True)
class Wish:
    """A line of text, its box in pixels, how far it is turned (-90..90 degrees clockwise) and its colour: "any", a name
    of `data.mock.COLORS`, or #rrggbb.
    """

    text: str
    left: int
    top: int
    right: int
    bottom: int
    angle: float = 0.0
    color: str = ANY

    def line(self) -> Line:
        """Raises ValueError for an empty box, an angle beyond 90 degrees and an unknown colour."""
        return Line(self.text, turned_box(self.left, self.top, self.right, self.bottom, self.angle), self.rgb())

    def rgb(self) -> tuple[int, int, int] | None:
        """The colour as numbers, None for any. Raises ValueError."""
        if self.color == ANY:
            return None
        if self.color in COLORS:
            return COLORS[self.color]
        try:
            red, green, blue = bytes.fromhex(self.color.removeprefix("#"))
            return red, green, blue
        except ValueError:
            raise ValueError(f"Colour {self.color!r} is unknown: say any, a name or #rrggbb.") from None


def default_wishes(size: tuple[int, int], lines: int = LINES) -> list[Wish]:
    """A box for each line, below each other, in a picture of this height and width; only the first has a text."""
    height, width = size
    margin, step = width // 16, height // (lines + 1)
    tops = [height // 12 + i * step for i in range(lines)]
    words = ["maple", *[""] * (lines - 1)]
    return [
        Wish(word, margin, top, width - margin, min(height, top + max(step, height // 4) if i == 0 else top + step - 2))
        for i, (word, top) in enumerate(zip(words, tops, strict=True))
    ]


@dataclass(frozen=True)
class Played:
    """A picture (H, W, 3) uint8, what was wanted and read, and what it took."""

    image: np.ndarray
    method: Method
    seconds: dict[str, float]  # "prepare", "denoise", "decode"
    wanted: tuple[str, ...]
    read: tuple[str, ...] | None  # None: nobody read it

    @property
    def total(self) -> float:
        """Seconds for the whole picture, reading excluded."""
        return sum(self.seconds.values())

    def report(self) -> str:
        """Two sentences for below the picture."""
        parts = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in self.seconds.items())
        took = f"{self.method.name}: {self.method.evaluations} evaluations, {self.total:.2f} s ({parts})."
        if self.read is None:
            return took
        words = ", ".join(f'"{text}"' if text else "nothing" for text in self.read)
        right = sum(a.casefold() == b.casefold() for a, b in zip(self.wanted, self.read, strict=True))
        return f"{took} Read: {words}; {right} of {len(self.wanted)} right."


def draw_scene(
    model: AnyText2,
    wishes: Sequence[Wish],
    caption: str,
    method: Method,
    seed: int,
    defaults: Defaults,
    reader: Reader | None = None,
    photo: np.ndarray | None = None,
    keep_outside: bool = True,
    font: str = PLAIN_FONT,
) -> Played:
    """Draws one picture. Wishes without text are passed over, so a form may have empty rows.

    photo: a picture to write into, (H, W, 3) uint8 of any size, scaled and cropped to the size of `defaults`; outside
    the boxes its own pixels are kept unless keep_outside is False. Raises ValueError for what cannot be drawn, in words
    that can be shown.
    """
    lines = tuple(wish.line() for wish in wishes if wish.text.strip())
    if photo is not None:
        photo = fit_picture(photo, defaults.size)
    began = time.perf_counter()
    batch = prompts_to_batch([Prompt(caption, lines, photo)], defaults.size, max(len(lines), 1), font)
    prepared = prepare(model, batch, [seed], defaults.negative_prompt)
    seconds = {"prepare": time.perf_counter() - began}
    drawing = draw_prepared(model, prepared, method)
    [image] = drawing.images
    polygons = [line.polygon for line in lines]
    if photo is not None and keep_outside:
        image = paste_back(photo, image, polygons)
    read = None if reader is None else tuple(reader.read(image[None], [polygons])[0])
    return Played(image, method, seconds | drawing.clock.wall, tuple(line.text for line in lines), read)


def layout(
    wishes: Sequence[Wish], size: tuple[int, int], photo: np.ndarray | None = None, scale: int = 2
) -> np.ndarray:
    """Where the boxes are, over the photograph or over grey: (scale H, scale W, 3) uint8. An arrow shows which way each
    text runs; boxes that leave the picture are red. Raises ValueError for a box that is empty.
    """
    height, width = size
    sheet = np.full((height, width, 3), 236, np.uint8) if photo is None else fit_picture(photo, size)
    sheet = cv2.resize(sheet, (scale * width, scale * height), interpolation=cv2.INTER_NEAREST)
    for wish in wishes:
        if not wish.text.strip():
            continue
        box = turned_box(wish.left, wish.top, wish.right, wish.bottom, wish.angle)
        inside = box.min() >= 0 and box[:, 0].max() <= width and box[:, 1].max() <= height
        color = (wish.rgb() or (70, 70, 70)) if inside else (220, 0, 0)
        places = scale * box
        cv2.polylines(sheet, [places.astype(np.int32)], True, color, scale)
        start, end = (places[[0, 3]].mean(axis=0), places[[1, 2]].mean(axis=0))
        to_point = [tuple(map(int, np.rint(point))) for point in (start, end)]
        cv2.arrowedLine(sheet, *to_point, color, max(1, scale // 2), tipLength=0.08)
    return sheet


def png(image: np.ndarray, scale: int = 1) -> bytes:
    """(H, W, 3) uint8 as a PNG file, each pixel `scale` times as large."""
    picture = Image.fromarray(image)
    if scale > 1:
        picture = picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST)
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def read_upload(content: bytes) -> np.ndarray:
    """The bytes of a picture file as (H, W, 3) uint8, turned as its EXIF says. Raises ValueError when they are none."""
    try:
        with Image.open(BytesIO(bytes(content))) as picture:
            return np.asarray(upright(picture).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"The file is no picture that can be read ({error}).") from error


def with_lines(defaults: Defaults, lines: int = LINES) -> Defaults:
    """The defaults of a network with room for so many lines; the embedded one was trained with two."""
    return replace(defaults, max_lines=max(lines, defaults.max_lines))
