"""The caption of a mock picture: ground, objects, and the colours of the text unless they are left to the numbers."""

from __future__ import annotations

import numpy as np

from anytext_lcm.data.batch import TEXT_PHRASES
from anytext_lcm.data.chance import pick
from anytext_lcm.data.colours import COLORS
from anytext_lcm.data.grounds import GROUNDS, MATERIAL
from anytext_lcm.data.objects import SHAPES
from anytext_lcm.data.scene import Scene

_MATERIAL_CAPTIONS = ("a photo", "a picture", "a photo with {}", "{} on a photo", "{} on a picture", "{}")


def draw_caption(
    rng: np.random.Generator, scene: Scene, names_colors: bool, names_ground: bool, names_pattern: bool
) -> str:
    """Choose one of a few ways to say what is in a scene.

    names_colors: of the text; names_ground: the colours of the ground; names_pattern: whether they are stripes, checks
    or a gradient, too.
    """
    names = list(dict.fromkeys(line.color_name for line in scene.lines))
    text = f"{' and '.join(names)} text" if names_colors else "text"
    if scene.ground == MATERIAL:
        return pick(rng, _MATERIAL_CAPTIONS).format(text)
    things = " and ".join(f"{_article(name)} {name} {shape}" for name, shape in scene.objects)
    if not names_ground:
        return f"{things} with {text}" if things else text
    ground = _ground_words(scene, names_pattern)
    form = int(rng.integers(3))
    if form == 0:
        return f"{ground} with {things}, {text}" if things else f"{ground}, {text}"
    if form == 1:
        return f"{text} on {ground} with {things}" if things else f"{text} on {ground}"
    return f"{things} on {ground} with {text}" if things else f"{ground} with {text}"


def caption_vocabulary() -> tuple[str, ...]:
    """List every word and sign that occurs in the captions of this data set, sorted."""
    signs = {",", ".", "*", ":"}
    grammar = {"a", "an", "and", "on", "with", "background", "photo", "picture", "text"}
    phrases = {word for phrase in TEXT_PHRASES for word in phrase.lower().replace(":", "").split()}
    patterns = {kind for kind in GROUNDS if kind != "plain"}
    return tuple(sorted(signs | grammar | phrases | patterns | set(COLORS) | set(SHAPES)))


def _ground_words(scene: Scene, names_pattern: bool) -> str:
    """'a green background', 'a green and red background', 'green and red stripes', 'a green and red gradient'."""
    colors = " and ".join(scene.tones)
    if len(scene.tones) > 1 and names_pattern:
        return f"{colors} {scene.ground}" if scene.ground != "gradient" else f"{_article(colors)} {colors} gradient"
    return f"{_article(colors)} {colors} background"


def _article(word: str) -> str:
    """The indefinite article of a word."""
    return "an" if word[0] in "aeiou" else "a"
