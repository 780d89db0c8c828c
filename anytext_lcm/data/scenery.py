"""The mock task for the eye: bold shapes, two-tone grounds, text colour by number, editing of varied pictures.

`MockDataset(size, scenery=Scenery())` draws it; without a scenery the data set draws what it always drew. The caption
says what is bold and leaves its place, size and direction open, so that a model has to decide and an average of
the possibilities is a smudge that anybody sees:

    ground   a named colour, plain or with stripes, checks or a gradient of a second named colour; the caption names
             both colours and, half of the time, the pattern; one caption in twelve says nothing about the ground
    objects  none (one picture in ten), one or two circles, squares or triangles, a fifth to a half of the side
    text     one or two lines of 2 to 7 characters: words, numbers, mixed strings, signs such as 50% and #7
    colour   of the text: named or any; told as numbers in most pictures, named by the caption in at most a third
    font     any of mock's, which the glyph image does not show; told by the font hint in some
    editing  half of the pictures to edit are scenes, half are material (`material.draw_material`) with text on it

Lengths are pixels of a 128-pixel picture and scale with it. Every item depends on (seed, split, index) alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from anytext_lcm.data import background, ink, layout
from anytext_lcm.data.batch import TEXT_PHRASES, Line, build_conditioning
from anytext_lcm.data.fonts import ITALIC_FONTS, PLAIN_FONT, covers
from anytext_lcm.data.material import draw_material
from anytext_lcm.data.scene import Scene, TextLine, article, to_float
from anytext_lcm.data.words import WORDS, split_of

GROUNDS = ("plain", "stripes", "checks", "gradient")
GROUND_SHARES = (0.25, 0.3, 0.2, 0.25)
SMALLEST, LARGEST = 14.0, 32.0  # radius of an object: a fifth to a half of the side across
CLEAR = 32.0  # distance in CIELAB between the two tones of a ground
APART = 42.0  # distance in CIELAB of an object's colour from all of the ground
ROOM = 90.0  # a luma that leaves room for text on one side of a ground: 0..255 less this much
SIGNS = tuple("0% 00% $0 $00 0.0 #0 #00 0+0 0/0 0:00 00:00 W! W? A+ A-0 A&A +00".split())
"""Strings with signs: 0 stands for a digit, A for a capital, W for a word."""

MORE_WORDS = tuple(
    """
    ad am as at be by do go he hi if in is it me my no of ok on or so to tv up us we
    bye cafe demo free hello hotel info new news now off open sale salon shop sold taxi thanks
    airport biscuit blanket brother cabinet captain central chapter chicken chimney classic college compass concert
    costume cottage country cricket crystal curtain deliver diamond dolphin evening express factory feather fiction
    fortune freedom furnace general giraffe hallway harvest helpful herbal history holiday journey justice kitchen
    lantern leather library machine meeting message mineral morning mystery network opening orchard organic outdoor
    package partner pasture patient pattern picture pioneer popular pottery present printer problem program quality
    rainbow reading rooster science shelter special speaker station sunrise theater tourist traffic village vintage
    weather welcome whisper windows
    """.split()
)
"""Words of two letters, of seven, and those of shop signs, beside `words.WORDS`."""

SCENERY_SHARES = {"edit_share": 0.3, "hint_share": 0.4, "color_share": 0.8}
"""How many pictures are edited, hint at a font and give their colours as numbers, in training on this task."""

WORDS_OF = {
    split: tuple(word for word in dict.fromkeys((*WORDS, *MORE_WORDS)) if split_of(word) == split)
    for split in ("train", "test")
}


@dataclass(frozen=True)
class Placed:
    """An object where it was drawn: middle and radius in pixels, as `background.draw_shape` takes them."""

    name: str  # of its colour
    shape: str
    color: tuple[float, float, float]  # RGB 0..255
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class BoldScene(Scene):
    """A scene and what its caption may say. `background_name` is the ground's first colour, "photo" for material."""

    ground: str = "plain"  # one of GROUNDS, or "material"
    tones: tuple[str, ...] = ()  # names of the ground's colours
    placed: tuple[Placed, ...] = ()
    named_text: bool = False  # all text colours are named ones


@dataclass(frozen=True)
class Ground:
    """A ground: picture (H, W, 3) float32, kind, names of its tones, and colours (n, 3) that occur in it."""

    image: np.ndarray
    kind: str
    tones: tuple[str, ...]
    colors: np.ndarray


@dataclass(frozen=True)
class Scenery:
    """How often a picture has what. Shares are 0..1; those of editing and hints are the data set's.

    material_share  of the pictures to edit: a material with text on it instead of a scene
    ground_share    of scenes: the caption names the ground
    pattern_share   of two-tone grounds: the caption names the pattern
    any_color_share of text lines: any colour instead of a shade of a named one
    named_share     of pictures whose text colours are all named ones: the caption names them
    """

    material_share: float = 0.6
    ground_share: float = 0.92
    pattern_share: float = 0.5
    any_color_share: float = 0.5
    named_share: float = 0.5

    def item(self, data: Any, index: int) -> dict[str, Any]:
        """The item of the batch contract; the parameters of `data` say how often it edits, hints and gives numbers."""
        rng = data._generator(index, stream=1)
        edit, material, hinted, colored = self._flags(rng, data)
        scene = data.scene(index)
        names_colors = scene.named_text and rng.random() < self.named_share
        names_ground, names_pattern = rng.random(2) < (self.ground_share, self.pattern_share)
        phrase = TEXT_PHRASES[0] if data.split == "test" else layout.pick(rng, TEXT_PHRASES)
        image = to_float(scene.image)
        wanted = [
            Line(
                text=line.text,
                polygon=line.condition_quad,
                color=line.color if colored else None,
                hint_font=line.font if hinted else None,
                language=line.language,
                font=None if covers(data.glyph_font, line.text) else line.font,
            )
            for line in scene.lines
        ]
        item = build_conditioning(
            wanted,
            size=(data.image_size, data.image_size),
            max_lines=data.max_lines,
            font=data.glyph_font,
            mode="edit" if edit else "generate",
            image=image if edit else None,
            phrase=phrase,
        )
        item["img"] = image
        item["img_caption"] = _caption(rng, scene, names_colors, names_ground, names_pattern)
        item["polygons"] = [line.quad for line in scene.lines]
        item["meta"] = {
            "index": index,
            "split": data.split,
            "background": scene.background_name,
            "ground": scene.ground,
            "tones": scene.tones,
            "ground_in_caption": bool(names_ground) and scene.ground != "material",
            "objects": scene.objects,
            "text_colors": [line.color_name for line in scene.lines],
            "text_rgb": [line.color for line in scene.lines],
            "fonts": [line.font for line in scene.lines],
            "font_heights": [line.font_height for line in scene.lines],
            "angles": [line.angle for line in scene.lines],
            "mode": "edit" if edit else "generate",
            "font_hinted": bool(hinted),
            "color_given": bool(colored),
            "color_in_caption": bool(names_colors) and "text" in item["img_caption"],
        }
        return item

    def scene(self, data: Any, index: int) -> BoldScene:
        """The picture and the truth about it."""
        _, material, _, _ = self._flags(data._generator(index, stream=1), data)
        rng = data._generator(index, stream=0)
        while True:
            scene = _draw(rng, data.image_size, data.max_lines, data.split, material, self.any_color_share)
            if scene is not None:
                return scene

    def _flags(self, rng: np.random.Generator, data: Any) -> tuple[bool, bool, bool, bool]:
        """Whether the item is edited, is a material, has a font hint, has its colours as numbers."""
        draws = rng.random(4)
        edit, hinted, colored = (draws[:3] < (data.edit_share, data.hint_share, data.color_share)).tolist()
        return edit, edit and bool(draws[3] < self.material_share), hinted, colored


# -- the scene ------------------------------------------------------------------------------------------


def _draw(
    rng: np.random.Generator, size: int, max_lines: int, split: str, material: bool, any_color: float
) -> BoldScene | None:
    """None where text, objects and colours do not go together; draw again."""
    scale = size / 128.0
    n_lines = 2 if max_lines > 1 and rng.random() < 0.35 else 1
    taken = np.zeros((size, size), np.uint8)
    blocks = []
    for _ in range(n_lines):
        block = place_line(rng, size, scale, split, taken, n_lines)
        if block is None:
            return None
        blocks.append(block)
    blocks.sort(key=lambda block: float(block.quad[:, 1].mean()))
    placed: list[Placed] = []
    if material:
        image = draw_material(rng, size)
        ground = Ground(image.astype(np.float32), "material", (), _behind(image, blocks))
    else:
        ground = _ground(rng, size)
        for _ in range(int(rng.choice(3, p=(0.1, 0.5, 0.4)))):
            thing = _find_object(rng, ground, taken, placed, scale)
            if thing is None:
                break
            placed.append(thing)
        image = np.clip(np.rint(ground.image), 0, 255).astype(np.uint8)
        for thing in placed:
            background.draw_shape(image, thing.shape, thing.x, thing.y, thing.radius, thing.color)
    colors = _text_colors(rng, ground, n_lines, any_color)
    if colors is None:
        return None

    coverage = np.zeros((size, size), np.uint8)
    picture, lines = image.astype(np.float32), []
    for block, (_, name, color) in zip(blocks, colors, strict=True):
        alpha = block.coverage[..., None] * np.float32(1 / 255)
        picture += alpha * (np.asarray(color, np.float32) - picture)
        np.maximum(coverage, block.coverage, out=coverage)
        lines.append(
            TextLine(
                text=block.text,
                font=block.font,
                color_name=name,
                color=color,
                font_height=block.font_height,
                angle=block.angle,
                quad=block.quad,
                condition_quad=block.condition_quad,
            )
        )
    return BoldScene(
        image=np.rint(picture).astype(np.uint8),
        coverage=coverage,
        lines=tuple(lines),
        background_name=ground.tones[0] if ground.tones else "photo",
        objects=tuple((thing.name, thing.shape) for thing in placed),
        ground=ground.kind,
        tones=ground.tones,
        placed=tuple(placed),
        named_text=all(named for named, _, _ in colors),
    )


def _ground(rng: np.random.Generator, size: int) -> Ground:
    """One or two tones of named colours that leave room for text lighter or darker than both."""
    kind = GROUNDS[int(rng.choice(len(GROUNDS), p=GROUND_SHARES))]
    while True:
        first, second = (layout.pick(rng, tuple(background.COLORS)) for _ in range(2))
        ends = np.stack([background.jitter(rng, name, 12) for name in (first, second)])
        if kind == "plain":
            image = np.empty((size, size, 3), np.float32)
            image[:] = ends[0]
            return Ground(image, kind, (first,), ends[:1])
        lumas = [background.luma(end) for end in ends]
        if first != second and lab_distance(*ends) > CLEAR and (max(lumas) < 255 - ROOM or min(lumas) > ROOM):
            break
    pattern = _pattern(rng, kind, size)[..., None]
    image = (1 - pattern) * ends[0].astype(np.float32) + pattern * ends[1].astype(np.float32)
    steps = np.linspace(0, 1, 9)[:, None]  # a caption need not name the pattern, and a gradient has all of these
    return Ground(image, kind, (first, second), (1 - steps) * ends[0] + steps * ends[1])


def _pattern(rng: np.random.Generator, kind: str, size: int) -> np.ndarray:
    """(size, size) float32 within 0..1: how much of the second tone there is."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    if kind == "checks":
        period, shift = rng.uniform(0.28, 0.6), rng.uniform(0, 1, 2)
        across, down = (background.soft_square(axis / period + offset, size * period) for offset in shift)
        return (down[:, None] * across[None] + 1) / 2
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.cos(angle) * (axis[None] - 0.5) + np.sin(angle) * (axis[:, None] - 0.5)
    if kind == "gradient":
        return (ramp / np.abs(ramp).max() + 1) / 2
    period, share = rng.uniform(0.2, 0.45), rng.uniform(0.35, 0.55)
    phase = ramp / period + rng.uniform()
    triangle = 2 * np.abs(phase - np.floor(phase + 0.5))  # 0..1, evenly often
    return np.clip((triangle - (1 - share)) * size * period / 4 + 0.5, 0, 1).astype(np.float32)


def _find_object(
    rng: np.random.Generator, ground: Ground, taken: np.ndarray, others: list[Placed], scale: float
) -> Placed | None:
    """A shape of another colour than all that is there, whole and beside the text; it marks its place in `taken`."""
    names = [name for name in background.COLORS if name not in {thing.name for thing in others}]
    rng.shuffle(names)
    for name in names:
        color = background.jitter(rng, name, 12)
        if min(lab_distance(color, other) for other in (*ground.colors, *(thing.color for thing in others))) > APART:
            break
    else:
        return None
    shape = layout.pick(rng, background.SHAPES)
    radius, size = rng.uniform(SMALLEST, LARGEST, 2).max() * scale, len(taken)
    while radius > SMALLEST * scale * 0.95:
        reach = int(np.ceil(radius + layout.GAP * scale))
        if 2 * reach + 1 < size:
            window = cv2.boxFilter(taken.astype(np.float32), -1, (2 * reach + 1,) * 2, normalize=False)
            free = window[reach : size - reach, reach : size - reach] < 0.5
            ys, xs = np.nonzero(free)
            if len(ys):
                at = int(rng.integers(len(ys)))
                x, y = float(xs[at] + reach), float(ys[at] + reach)
                taken[int(y) - reach : int(y) + reach + 1, int(x) - reach : int(x) + reach + 1] = 1
                return Placed(name, shape, tuple(float(c) for c in color), x, y, float(radius))
        radius *= 0.87
    return None


def _behind(image: np.ndarray, blocks: list[layout.Block]) -> np.ndarray:
    """The darkest and the lightest tenth of what is behind the text, as greys (2, 3)."""
    mask = np.zeros(image.shape[:2], np.uint8)
    for block in blocks:
        cv2.fillPoly(mask, [block.condition_quad.reshape(-1, 1, 2)], 1)
    luma = image[mask == 1].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.quantile(luma, (0.1, 0.9))[:, None].repeat(3, axis=1)


def _text_colors(
    rng: np.random.Generator, ground: Ground, n_lines: int, any_color: float
) -> list[tuple[bool, str, tuple[int, int, int]]] | None:
    """For each line whether its colour is a named one, the (nearest) name, RGB; None where nothing stands out."""
    lumas = [background.luma(color) for color in ground.colors]
    darkest, lightest = min(lumas) - background.MIN_CONTRAST, max(lumas) + background.MIN_CONTRAST
    found: list[tuple[bool, str, tuple[int, int, int]]] = []
    for _ in range(n_lines):
        if found and rng.random() < 0.4:
            found.append(found[0])
            continue
        named = rng.random() >= any_color
        for _ in range(60):
            name = layout.pick(rng, tuple(background.COLORS)) if named else ""
            color = np.rint(background.jitter(rng, name, 14) if named else rng.uniform(0, 255, 3))
            if name not in ground.tones and not darkest < background.luma(color) < lightest:
                break
        else:
            return None
        found.append((named, name or _nearest(color), tuple(int(c) for c in color)))
    return found


# -- text -----------------------------------------------------------------------------------------------


def place_line(
    rng: np.random.Generator, size: int, scale: float, split: str, taken: np.ndarray, n_lines: int
) -> layout.Block | None:
    """Draw text, font, size, angle and place; None if it cannot be placed. Marks what it takes in `taken`."""
    text = _draw_text(rng, split)
    fonts = [font for font in layout.FONTS if covers(font, text)]
    font = fonts[int(rng.integers(len(fonts)))]
    slant = 0.0 if font in ITALIC_FONTS else rng.uniform(-6, 6)
    angle = rng.uniform(-18, 18) if rng.random() < 0.3 else 0.0
    slack = rng.uniform(0, layout.MAX_SLACK * scale, 4)  # left, top, right, bottom

    box, ink_width, ink_height, advance = ink.proportions(font, text)
    # About as wide for its height as in the plain font, so that the placed glyph's letters are near the picture's.
    _, plain_width, plain_height, _ = ink.proportions(PLAIN_FONT, text)
    width_factor = rng.uniform(0.92, 1.08) * (plain_width / plain_height) / (ink_width / ink_height)
    if ink_width * width_factor < layout.MIN_ASPECT * ink_height:
        return None
    cos, sin = abs(np.cos(np.radians(angle))), abs(np.sin(np.radians(angle)))
    room = size - 2.0 * (layout.MARGIN + layout.MAX_SLACK + 1) * scale
    lean = np.tan(np.radians(abs(slant))) * ink_height
    widest = room / ((ink_width * width_factor + lean) * cos + ink_height * sin)
    low = max(layout.MIN_HEIGHT * scale / box, layout.MIN_ADVANCE * scale * len(text) / (advance * width_factor))
    high = min((34.0 if n_lines > 1 else layout.MAX_HEIGHT) * scale / box, widest)
    smallest, largest = int(np.ceil(low * ink.SUPERSAMPLING)), int(high * ink.SUPERSAMPLING)
    if smallest > largest:
        return None
    layer_em = int(rng.integers(smallest, largest + 1, size=2).max())  # rather large than small

    mask = ink.draw_ink(text, font, layer_em)
    transform, width, height = ink.ink_frame(mask, width_factor, slant)
    width, height = width + 2 * layout.MARGIN * scale, height + 2 * layout.MARGIN * scale
    if width + slack[0] + slack[2] < layout.MIN_ASPECT * (height + slack[1] + slack[3]):
        return None
    turn = ink.rotation(angle)
    found = ink.find_place(rng, size, taken, width, height, slack, turn, layout.GAP * scale)
    if found is None:
        return None
    middle, quad, condition_quad = found
    return layout.Block(
        text=text,
        font=font,
        font_height=round(layer_em / ink.SUPERSAMPLING * box, 2),
        angle=round(float(angle), 2),
        coverage=ink.place_ink(mask, transform, turn, middle, size),
        quad=quad,
        condition_quad=condition_quad,
    )


def _draw_text(rng: np.random.Generator, split: str) -> str:
    """Words 45 %, numbers 20 %, letters and digits mixed 20 %, strings with signs 15 %; of this split only."""
    while True:
        kind = rng.random()
        if kind < 0.45:
            text = _cased(rng, layout.pick(rng, WORDS_OF[split]))
        elif kind < 0.85:
            alphabet = "0123456789" if kind < 0.65 else layout.LETTERS_AND_DIGITS
            text = "".join(alphabet[i] for i in rng.integers(len(alphabet), size=int(rng.integers(2, 8))))
        else:
            text = _filled(rng, layout.pick(rng, SIGNS), split)
        if 2 <= len(text) <= 7 and split_of(text) == split:
            return text


def _filled(rng: np.random.Generator, template: str, split: str) -> str:
    letters = {
        "0": lambda: "0123456789"[rng.integers(10)],
        "A": lambda: "ABCDEFGHJKLMNPQRSTUVWXYZ"[rng.integers(24)],
        "W": lambda: _cased(rng, layout.pick(rng, WORDS_OF[split])),
    }
    return "".join(letters[sign]() if sign in letters else sign for sign in template)


def _cased(rng: np.random.Generator, word: str) -> str:
    return (word, word.title(), word.upper())[rng.integers(3)]


# -- caption --------------------------------------------------------------------------------------------

_MATERIAL_CAPTIONS = ("a photo", "a picture", "a photo with {}", "{} on a photo", "{} on a picture", "{}")


def _caption(
    rng: np.random.Generator, scene: BoldScene, names_colors: bool, names_ground: bool, names_pattern: bool
) -> str:
    """One of a few ways to say ground, objects, and text colours unless they are left to the numbers."""
    names = list(dict.fromkeys(line.color_name for line in scene.lines))
    text = f"{' and '.join(names)} text" if names_colors else "text"
    if scene.ground == "material":
        return layout.pick(rng, _MATERIAL_CAPTIONS).format(text)
    things = " and ".join(f"{article(name)} {name} {shape}" for name, shape in scene.objects)
    if not names_ground:
        return f"{things} with {text}" if things else text
    ground = _ground_words(scene, names_pattern)
    form = int(rng.integers(3))
    if form == 0:
        return f"{ground} with {things}, {text}" if things else f"{ground}, {text}"
    if form == 1:
        return f"{text} on {ground} with {things}" if things else f"{text} on {ground}"
    return f"{things} on {ground} with {text}" if things else f"{ground} with {text}"


def _ground_words(scene: BoldScene, names_pattern: bool) -> str:
    """'a green background', 'a green and red background', 'green and red stripes', 'a green and red gradient'."""
    colors = " and ".join(scene.tones)
    if len(scene.tones) > 1 and names_pattern:
        return f"{colors} {scene.ground}" if scene.ground != "gradient" else f"{article(colors)} {colors} gradient"
    return f"{article(colors)} {colors} background"


def caption_words() -> tuple[str, ...]:
    """The words of these captions that `caption_vocabulary` lacks, sorted."""
    return ("checks", "gradient", "photo", "stripes")


# -- helpers --------------------------------------------------------------------------------------------


def lab_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Distance of two RGB colours (0..255) in CIELAB (CIE 1976)."""
    both = np.stack([np.asarray(first), np.asarray(second)]).astype(np.float32)[None] / 255
    lab = cv2.cvtColor(both, cv2.COLOR_RGB2LAB)[0]
    return float(np.linalg.norm(lab[0] - lab[1]))


def _nearest(color: np.ndarray) -> str:
    return min(background.COLORS, key=lambda name: lab_distance(background.COLORS[name], color))
