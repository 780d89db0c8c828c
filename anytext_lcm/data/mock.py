"""A data set made up on the spot: coloured pictures with one or two lines of text, in AnyText2's format.

It is meant to be a fair ground for few-step distillation. The condition says what is written, roughly where,
and (mostly) in which colour; it leaves open the font, its weight, width and slant, the place within the
polygon, the pattern of the background and where the objects are, so that a model has something to decide, and
averaging the possibilities blurs the picture. Text is large and clear enough that a recogniser reads nearly
all of it, so what a model loses is the model's loss.

All lengths below are pixels of a 128-pixel picture and scale with the picture. Every item depends on (seed,
split, index) alone, so it is the same whatever the number of workers and the order.

May import: numpy, cv2, Pillow, torch, anytext_lcm.data.*.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from anytext_lcm.data.batch import TEXT_PHRASES, Line, build_conditioning
from anytext_lcm.data.fonts import ITALIC_FONTS, PLAIN_FONT, covers
from anytext_lcm.data.ink import SUPERSAMPLING, draw_ink, find_place, ink_frame, place_ink, proportions, rotation
from anytext_lcm.data.words import WORDS_OF, split_of

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (208, 40, 40),
    "green": (40, 150, 62),
    "blue": (40, 72, 200),
    "yellow": (246, 218, 60),
    "orange": (245, 138, 28),
    "purple": (130, 50, 160),
    "pink": (250, 162, 190),
    "brown": (122, 76, 40),
    "cyan": (60, 200, 220),
    "white": (248, 248, 248),
    "black": (20, 20, 20),
    "gray": (130, 130, 130),
}
"""Colour names of the captions and the RGB they stand for, before jitter."""

SHAPES = ("circle", "square", "triangle")
PATTERNS = ("plain", "gradient", "stripes", "checker", "blotches")

LETTERS_AND_DIGITS = "abcdefghjkmnpqrstuvwxyzABCDEFGHJKMNPQRSTUVWXYZ23456789"
"""Random strings avoid what a reader confuses: 0 O o, 1 I l i, L."""

MIN_CONTRAST = 80.0  # luma between a text and anything of the background behind it
MIN_HEIGHT, MAX_HEIGHT = 30.0, 46.0  # of the font's box, ascender to descender
MIN_ADVANCE = 16.0  # a character's width on average; narrower ones do not survive an 8 x 8 autoencoder
MAX_SLACK = 2.0  # how far the condition polygon may exceed the text on each side
MIN_ASPECT = 1.3  # width to height of a line; squarer polygons are taken for vertical text
MARGIN = 1.0  # of the text quad around the ink
GAP = 3.0  # between lines, and between text and objects
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSans-BoldOblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "cmss10.ttf",
    "STIXGeneralBol.ttf",
)
"""Two weights, serifs or none, upright or oblique: enough to leave open, few enough for a network of 7 million weights.
Left out: monospaced letters, which stand far from the plain font's, and the thin and cursive ones."""


@dataclass(frozen=True)
class TextLine:
    """A line as it stands in the picture: the truth that a condition only tells in part."""

    text: str
    font: str
    color_name: str
    color: tuple[int, int, int]
    font_height: float  # of the font's box, pixels
    angle: float  # degrees, clockwise
    quad: np.ndarray  # (4, 2) int, around the ink, clockwise from top left
    condition_quad: np.ndarray  # (4, 2) int, the same with slack
    language: str = "Latin"


@dataclass(frozen=True)
class Scene:
    """A picture and everything that is known about it."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    coverage: np.ndarray  # (H, W) uint8, how much of a pixel is text
    lines: tuple[TextLine, ...]  # from top to bottom
    background_name: str
    objects: tuple[tuple[str, str], ...]  # (colour name, shape)


class MockDataset(torch.utils.data.Dataset):
    """Items of the batch contract (see anytext_lcm/data/batch.py), drawn when they are asked for.

    Arguments
        size         number of items
        seed         another seed is another data set
        image_size   height and width, a multiple of 8
        max_lines    line slots of an item; pictures have one or two lines, one if there is but one slot
        split        "train" or "test"; no string of one, in any casing, occurs in the other
        edit_share   share of items in editing mode
        hint_share   share of items with a font hint
        color_share  share of items that tell the text colours as numbers
        glyph_font   font of glyph lines and placed glyphs, where it holds the text; else the line's own
        lettering    kinds of lines, see `lettering`; None: one or two lines of large Latin text, as described above
        scenery      another task altogether, see `scenery`; None: the one described above
    """

    def __init__(
        self,
        size: int,
        seed: int = 0,
        image_size: int = 128,
        max_lines: int = 2,
        split: str = "train",
        edit_share: float = 0.3,
        hint_share: float = 0.3,
        color_share: float = 0.7,
        glyph_font: str = PLAIN_FONT,
        lettering: Any = None,
        scenery: Any = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"A data set needs at least one item, size is {size}.")
        if split not in WORDS_OF:
            raise ValueError(f"Split {split!r} is unknown: choose 'train' or 'test'.")
        if image_size < 64 or image_size % 8:
            raise ValueError(f"image_size {image_size} must be a multiple of 8 and at least 64.")
        if max_lines < 1:
            raise ValueError(f"max_lines is {max_lines}, at least one line slot is needed.")
        self.size, self.seed, self.split = size, seed, split
        self.image_size, self.max_lines = image_size, max_lines
        self.edit_share, self.hint_share, self.color_share = edit_share, hint_share, color_share
        self.glyph_font, self.lettering, self.scenery = glyph_font, lettering, scenery

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.scenery is not None:
            return self.scenery.item(self, index)
        scene = self.scene(index)
        # A second stream, so that a picture stays the same when the rules of conditioning change.
        rng = self._generator(index, stream=1)
        edit, hinted, colored = rng.random(3) < (self.edit_share, self.hint_share, self.color_share)
        phrase = TEXT_PHRASES[0] if self.split == "test" else _pick(rng, TEXT_PHRASES)
        names_colors = not (colored and rng.random() < 0.15)
        image = _to_float(scene.image)
        wanted = [
            Line(
                text=line.text,
                polygon=line.condition_quad,
                color=line.color if colored else None,
                hint_font=line.font if hinted else None,
                language=line.language,
                font=None if covers(self.glyph_font, line.text) else line.font,
            )
            for line in scene.lines
        ]
        item = build_conditioning(
            wanted,
            size=(self.image_size, self.image_size),
            max_lines=self.max_lines,
            font=self.glyph_font,
            mode="edit" if edit else "generate",
            image=image if edit else None,
            phrase=phrase,
        )
        item["img"] = image
        item["img_caption"] = _caption(rng, scene, names_colors)
        item["polygons"] = [line.quad for line in scene.lines]
        item["meta"] = {
            "index": index,
            "split": self.split,
            "background": scene.background_name,
            "objects": scene.objects,
            "text_colors": [line.color_name for line in scene.lines],
            "text_rgb": [line.color for line in scene.lines],
            "fonts": [line.font for line in scene.lines],
            "font_heights": [line.font_height for line in scene.lines],
            "angles": [line.angle for line in scene.lines],
            "mode": "edit" if edit else "generate",
            "font_hinted": bool(hinted),
            "color_given": bool(colored),
            "color_in_caption": bool(names_colors),
        }
        return item

    def picture(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The picture (3, H, W) float32 -1..1 and its text coverage (1, H, W) uint8 0..255."""
        scene = self.scene(index)
        return _to_float(scene.image), scene.coverage[None]

    def scene(self, index: int) -> Scene:
        """The picture and the truth about it."""
        if not 0 <= index < self.size:
            raise IndexError(f"Index {index} is outside the data set of {self.size} items.")
        if self.scenery is not None:
            return self.scenery.scene(self, index)
        rng = self._generator(index, stream=0)
        return _draw_scene(rng, self.image_size, self.max_lines, self.split, self.lettering)

    def _generator(self, index: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 0 if self.split == "train" else 1, index, stream])


# -- the scene ------------------------------------------------------------------------------------------


def _draw_scene(rng: np.random.Generator, size: int, max_lines: int, split: str, lettering: Any = None) -> Scene:
    scale = size / 128.0
    background_name = _pick(rng, tuple(COLORS))
    background, darkest, lightest = draw_background(rng, background_name, size)
    if lettering is None:
        n_lines = 2 if max_lines > 1 and rng.random() < 0.35 else 1
        blocks = _layout(rng, n_lines, size, scale, split)
    else:
        blocks = lettering.layout(rng, size, max_lines, split)

    taken = np.zeros((size, size), np.uint8)
    for block in blocks:
        cv2.fillPoly(taken, [block.condition_quad.reshape(-1, 1, 2)], 1)
    canvas, objects = _draw_objects(rng, background, taken, background_name, scale)

    coverage = np.zeros((size, size), np.uint8)
    lines, previous = [], None
    image = canvas.astype(np.float32)
    for block in blocks:
        color_name, color = pick_text_color(rng, background_name, darkest, lightest, previous)
        previous = (color_name, color)
        alpha = block.coverage[..., None] * np.float32(1 / 255)
        image += alpha * (np.asarray(color, np.float32) - image)
        np.maximum(coverage, block.coverage, out=coverage)
        lines.append(
            TextLine(
                text=block.text,
                font=block.font,
                color_name=color_name,
                color=color,
                font_height=block.font_height,
                angle=block.angle,
                quad=block.quad,
                condition_quad=block.condition_quad,
                language=block.language,
            )
        )
    return Scene(np.rint(image).astype(np.uint8), coverage, tuple(lines), background_name, objects)


def draw_background(rng: np.random.Generator, name: str, size: int) -> tuple[np.ndarray, float, float]:
    """One colour with a faint pattern, (size, size, 3) float32, and its darkest and lightest luma."""
    base = _jitter(rng, name, 12)
    kind = _pick(rng, PATTERNS)
    if kind == "plain":
        image = np.empty((size, size, 3), np.float32)
        image[:] = base
        return image, _luma(base), _luma(base)
    # One amplitude for all channels and a little of its own for each: lighter or darker, hardly another hue.
    delta = rng.choice((-1.0, 1.0)) * rng.uniform(7, 15) + rng.uniform(-2, 2, 3)
    pattern = _pattern(rng, kind, size)
    image = np.clip(base + pattern[..., None] * delta.astype(np.float32), 0, 255)
    ends = _luma(np.clip(base - delta, 0, 255)), _luma(np.clip(base + delta, 0, 255))
    return image, min(ends), max(ends)


def _pattern(rng: np.random.Generator, kind: str, size: int) -> np.ndarray:
    """(size, size) float32 within -1..1."""
    if kind == "blotches":
        coarse = rng.uniform(-1, 1, (5, 5)).astype(np.float32)
        return np.clip(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), -1, 1)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    angle = rng.uniform(0, 2 * np.pi)
    if kind == "checker":
        period, shift = rng.uniform(0.25, 0.5), rng.uniform(0, 1, 2)
        across, down = (_soft_square(axis / period + offset, size * period) for offset in shift)
        return down[:, None] * across[None, :]
    ramp = np.cos(angle) * (axis[None, :] - 0.5) + np.sin(angle) * (axis[:, None] - 0.5)
    if kind == "gradient":
        return (ramp / np.abs(ramp).max()).astype(np.float32)
    period = rng.uniform(0.14, 0.35)
    return _soft_square(ramp / period + rng.uniform(), size * period)


def _soft_square(phase: np.ndarray, period_pixels: float) -> np.ndarray:
    """A square wave within -1..1 whose edges are about 2 pixels wide."""
    steepness = max(period_pixels / 4.0, 1.0)
    triangle = 4 * np.abs(phase - np.floor(phase + 0.5)) - 1
    return np.clip(triangle * steepness, -1, 1).astype(np.float32)


def _draw_objects(
    rng: np.random.Generator, background: np.ndarray, taken: np.ndarray, background_name: str, scale: float
) -> tuple[np.ndarray, tuple[tuple[str, str], ...]]:
    """Up to two objects beside the text, partly outside the picture at times."""
    size = len(taken)
    canvas = np.rint(background).astype(np.uint8)
    reach = int(np.ceil(2 * GAP * scale)) | 1
    taken = cv2.dilate(taken, np.ones((reach, reach), np.uint8))
    objects = []
    for _ in range(int(rng.choice(3, p=(0.3, 0.4, 0.3)))):
        name = _pick(rng, tuple(color for color in COLORS if _distance(color, background_name) > 90))
        shape = _pick(rng, SHAPES)
        for _attempt in range(12):
            radius = rng.uniform(9, 24) * scale
            x, y = rng.uniform(0.2 * radius, size - 0.2 * radius, 2)
            left, top = max(int(x - radius), 0), max(int(y - radius), 0)
            right, bottom = int(x + radius) + 2, int(y + radius) + 2
            if not taken[top:bottom, left:right].any():
                color = _jitter(rng, name, 12)
                _draw_shape(canvas, shape, x, y, radius, tuple(float(channel) for channel in color))
                taken[top:bottom, left:right] = 1
                objects.append((name, shape))
                break
    return canvas, tuple(objects)


def _draw_shape(
    canvas: np.ndarray, shape: str, x: float, y: float, radius: float, color: tuple[float, float, float]
) -> None:
    fixed = 16  # cv2 takes fixed-point coordinates, here 1/16 pixel, for smooth edges
    if shape == "circle":
        center = (round(x * fixed), round(y * fixed))
        cv2.circle(canvas, center, round(radius * fixed), color, -1, cv2.LINE_AA, 4)
        return
    half = 0.87 * radius
    corners = {
        "square": ((-half, -half), (half, -half), (half, half), (-half, half)),
        "triangle": ((0.0, -radius), (0.95 * radius, 0.75 * radius), (-0.95 * radius, 0.75 * radius)),
    }[shape]
    points = np.rint((np.asarray(corners) + (x, y)) * fixed).astype(np.int32)
    cv2.fillPoly(canvas, [points.reshape(-1, 1, 2)], color, cv2.LINE_AA, 4)


def pick_text_color(
    rng: np.random.Generator,
    background_name: str,
    darkest: float,
    lightest: float,
    previous: tuple[str, tuple[int, int, int]] | None,
) -> tuple[str, tuple[int, int, int]]:
    """A named colour that stands out from everything behind it; the second line often has the first one's."""
    if previous is not None and rng.random() < 0.4:
        return previous
    names = [name for name in COLORS if name != background_name]
    rng.shuffle(names)
    for _ in range(8):
        for name in names:
            color = np.rint(_jitter(rng, name, 14))
            luma = _luma(color)
            if luma > lightest + MIN_CONTRAST or luma < darkest - MIN_CONTRAST:
                return name, (int(color[0]), int(color[1]), int(color[2]))
    # Black or white is 80 away from everything, so this is not reached with the colours above.
    raise RuntimeError(f"No text colour stands out from luma {darkest:.0f}..{lightest:.0f}.")


# -- text -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A line that has its place: coverage of the picture, text quad, condition quad."""

    text: str
    font: str
    font_height: float
    angle: float
    coverage: np.ndarray
    quad: np.ndarray
    condition_quad: np.ndarray
    language: str = "Latin"


def _layout(rng: np.random.Generator, n_lines: int, size: int, scale: float, split: str) -> list[Block]:
    """Place the lines; they do not overlap and stay inside. A crowded draw is drawn again."""
    while True:
        blocks: list[Block] = []
        taken = np.zeros((size, size), np.uint8)
        for _ in range(n_lines):
            block = _place_line(rng, size, scale, split, taken, n_lines)
            if block is None:
                break
            blocks.append(block)
        if len(blocks) == n_lines:
            return sorted(blocks, key=lambda block: float(block.quad[:, 1].mean()))


def _place_line(
    rng: np.random.Generator, size: int, scale: float, split: str, taken: np.ndarray, n_lines: int
) -> Block | None:
    """Draw text, font, size, angle and place; None if it cannot be placed. Marks what it takes in `taken`."""
    text, font = draw_text(rng, split), _pick(rng, FONTS)
    slant = 0.0 if font in ITALIC_FONTS else rng.uniform(-6, 6)
    angle = rng.uniform(-15, 15) if rng.random() < 0.3 else 0.0
    slack = rng.uniform(0, MAX_SLACK * scale, 4)  # left, top, right, bottom

    # Sizes in em: what the font's box, the advance of a character and the picture allow.
    box, ink_width, ink_height, advance = proportions(font, text)
    # About as wide for its height as in the plain font, so that the placed glyph's letters are near the picture's.
    _, plain_width, plain_height, _ = proportions(PLAIN_FONT, text)
    width_factor = rng.uniform(0.92, 1.08) * (plain_width / plain_height) / (ink_width / ink_height)
    if ink_width * width_factor < MIN_ASPECT * ink_height:
        return None
    cos, sin = abs(np.cos(np.radians(angle))), abs(np.sin(np.radians(angle)))
    room = size - 2.0 * (MARGIN + MAX_SLACK + 1) * scale
    lean = np.tan(np.radians(abs(slant))) * ink_height
    widest = room / ((ink_width * width_factor + lean) * cos + ink_height * sin)
    low = max(MIN_HEIGHT * scale / box, MIN_ADVANCE * scale * len(text) / (advance * width_factor))
    high = min(MAX_HEIGHT * scale / box, widest)
    if n_lines > 1:
        high = min(high, 34.0 * scale / box)
    smallest, largest = int(np.ceil(low * SUPERSAMPLING)), int(high * SUPERSAMPLING)  # font sizes of the enlarged layer
    if smallest > largest:
        return None
    layer_em = int(rng.integers(smallest, largest + 1, size=2).max())  # rather large than small

    mask = draw_ink(text, font, layer_em)
    transform, width, height = ink_frame(mask, width_factor, slant)
    width, height = width + 2 * MARGIN * scale, height + 2 * MARGIN * scale
    if width + slack[0] + slack[2] < MIN_ASPECT * (height + slack[1] + slack[3]):
        return None

    turn = rotation(angle)
    placed = find_place(rng, size, taken, width, height, slack, turn, GAP * scale)
    if placed is None:
        return None
    middle, quad, condition_quad = placed
    return Block(
        text=text,
        font=font,
        font_height=round(layer_em / SUPERSAMPLING * box, 2),
        angle=round(float(angle), 2),
        coverage=place_ink(mask, transform, turn, middle, size),
        quad=quad,
        condition_quad=condition_quad,
    )


def draw_text(rng: np.random.Generator, split: str) -> str:
    """Half words, a quarter digits, a quarter letters and digits; of the strings of this split only."""
    kind = rng.random()
    if kind < 0.5:
        word = _pick(rng, WORDS_OF[split])
        return (word, word.title(), word.upper())[rng.integers(3)]
    alphabet = "0123456789" if kind < 0.75 else LETTERS_AND_DIGITS
    length = int(rng.integers(3, 7))
    while True:
        text = "".join(alphabet[i] for i in rng.integers(len(alphabet), size=length))
        if split_of(text) == split:
            return text


# -- caption --------------------------------------------------------------------------------------------


def _caption(rng: np.random.Generator, scene: Scene, names_colors: bool) -> str:
    """One of a few ways to say: background, objects, and text colours unless they are left to the numbers."""
    things = " and ".join(f"{_article(name)} {name} {shape}" for name, shape in scene.objects)
    names = list(dict.fromkeys(line.color_name for line in scene.lines))
    text = f"{' and '.join(names)} text" if names_colors else "text"
    ground = f"{_article(scene.background_name)} {scene.background_name} background"
    form = int(rng.integers(3))
    if form == 0:
        return f"{ground} with {things}, {text}" if things else f"{ground}, {text}"
    if form == 1:
        return f"{text} on {ground} with {things}" if things else f"{text} on {ground}"
    return f"{things} on {ground} with {text}" if things else f"{ground} with {text}"


def caption_vocabulary() -> tuple[str, ...]:
    """Every word and sign that occurs in the captions of this data set, sorted."""
    signs = {",", ".", "*", ":"}
    grammar = {"a", "an", "and", "on", "with", "background", "text"}
    phrases = {word for phrase in TEXT_PHRASES for word in phrase.lower().replace(":", "").split()}
    return tuple(sorted(signs | grammar | phrases | set(COLORS) | set(SHAPES)))


# -- helpers --------------------------------------------------------------------------------------------


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _pick(rng: np.random.Generator, options: tuple) -> Any:
    return options[int(rng.integers(len(options)))]


def _jitter(rng: np.random.Generator, name: str, amount: float) -> np.ndarray:
    """A shade of a named colour, RGB float; greys vary in lightness and hardly in hue."""
    own = 4.0 if name in ("white", "gray", "black") else amount
    shift = rng.uniform(-amount, amount) * (1 - own / amount) + rng.uniform(-own, own, 3)
    return np.clip(np.asarray(COLORS[name]) + shift, 0, 255)


def _luma(color: np.ndarray) -> float:
    return float(0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2])


def _distance(first: str, second: str) -> float:
    return float(np.linalg.norm(np.subtract(COLORS[first], COLORS[second])))


def _to_float(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 to (3, H, W) float32 -1..1."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)
    return planes / np.float32(127.5) - np.float32(1)
