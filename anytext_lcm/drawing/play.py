"""The playground of notebook 05 without its widgets: a scene of boxes, one picture of it, what it took and says."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np

from anytext_lcm.data.batch import Line
from anytext_lcm.data.fonts import PLAIN_FONT
from anytext_lcm.drawing.draw import draw_prepared, prepare
from anytext_lcm.drawing.editing import fit_picture, paste_back, turned_box
from anytext_lcm.drawing.methods import Method
from anytext_lcm.drawing.prompts import Prompt, parse_colour, prompts_to_batch
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.networks import Defaults

LINES = 5  # of the playground, as in AnyText2's own demo
ANY = "any"  # colour left open


class Reader(Protocol):
    """The part of `judging.reading.LineReader` that is used here."""

    def read(self, images, polygons: Sequence[Sequence[np.ndarray]]) -> list[list[str]]: ...


@dataclass(frozen=True)
class LineBox:
    """A line of text, its box in pixels, how far it is turned (-90..90 degrees clockwise) and its colour: "any", a name
    of `data.colours.COLORS`, or #rrggbb.
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
        """The colour as RGB 0..255, None for any. Raises ValueError."""
        return None if self.color == ANY else parse_colour(self.color)


def default_boxes(size: tuple[int, int], lines: int = LINES) -> tuple[LineBox, ...]:
    """One box per line, below each other, in a picture of this height and width; only the first has a text."""
    height, width = size
    margin, step = width // 16, height // (lines + 1)
    tops = [height // 12 + i * step for i in range(lines)]
    ends = [min(height, tops[0] + max(step, height // 4)), *(top + step - 2 for top in tops[1:])]
    words = ["maple", *[""] * (lines - 1)]
    places = zip(words, tops, ends, strict=True)
    return tuple(LineBox(word, margin, top, width - margin, end) for word, top, end in places)


@dataclass(frozen=True)
class Scene:
    """What to draw. Boxes without text do not count, so a form may have empty rows.

    photo: a picture to write into, (H, W, 3) uint8 of any size, scaled and cropped to the network's; its own pixels
    outside the boxes stay unless keep_outside is False.
    """

    caption: str
    boxes: Sequence[LineBox]
    photo: np.ndarray | None = None
    keep_outside: bool = True
    font: str = PLAIN_FONT


@dataclass(frozen=True)
class Drawn:
    """A picture (H, W, 3) uint8, the texts wanted and read, and what it took."""

    image: np.ndarray
    method: Method
    seconds: dict[str, float]  # "prepare", "denoise", "decode"
    wanted: tuple[str, ...]
    read: tuple[str, ...] | None  # None without a reader

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
    model: AnyText2, scene: Scene, method: Method, seed: int, defaults: Defaults, reader: Reader | None = None
) -> Drawn:
    """Draw one picture and read it. Raises ValueError for what cannot be drawn, in a sentence that can be shown."""
    lines = tuple(box.line() for box in scene.boxes if box.text.strip())
    photo = None if scene.photo is None else fit_picture(scene.photo, defaults.size)
    began = time.perf_counter()
    prompt = Prompt(scene.caption, lines, photo)
    batch = prompts_to_batch([prompt], defaults.size, max(len(lines), 1), scene.font)
    prepared = prepare(model, batch, [seed], defaults.negative_prompt)
    seconds = {"prepare": time.perf_counter() - began}
    drawing = draw_prepared(model, prepared, method)
    [image] = drawing.images
    polygons = [line.polygon for line in lines]
    if photo is not None and scene.keep_outside:
        image = paste_back(photo, image, polygons)
    read = None if reader is None else tuple(reader.read(image[None], [polygons])[0])
    return Drawn(image, method, seconds | drawing.clock.wall, tuple(line.text for line in lines), read)


def layout(
    boxes: Sequence[LineBox], size: tuple[int, int], photo: np.ndarray | None = None, scale: int = 2
) -> np.ndarray:
    """Sketch the boxes over the photograph or over grey: (scale H, scale W, 3) uint8. An arrow shows which way each
    text runs; boxes that leave the picture are red. Raises ValueError for an empty box.
    """
    height, width = size
    sketch = np.full((height, width, 3), 236, np.uint8) if photo is None else fit_picture(photo, size)
    sketch = cv2.resize(sketch, (scale * width, scale * height), interpolation=cv2.INTER_NEAREST)
    for box in boxes:
        if not box.text.strip():
            continue
        corners = turned_box(box.left, box.top, box.right, box.bottom, box.angle)
        inside = corners.min() >= 0 and corners[:, 0].max() <= width and corners[:, 1].max() <= height
        color = (box.rgb() or (70, 70, 70)) if inside else (220, 0, 0)
        corners = scale * corners
        cv2.polylines(sketch, [corners.astype(np.int32)], True, color, scale)
        start, end = corners[[0, 3]].mean(axis=0), corners[[1, 2]].mean(axis=0)
        points = [tuple(map(int, np.rint(point))) for point in (start, end)]
        cv2.arrowedLine(sketch, *points, color, max(1, scale // 2), tipLength=0.08)
    return sketch


def with_lines(defaults: Defaults, lines: int = LINES) -> Defaults:
    """The defaults of a network with at least so many lines; the embedded one was trained with two."""
    return replace(defaults, max_lines=max(lines, defaults.max_lines))
