"""The fonts every machine with matplotlib has, and the check that a font can write a text.

Nothing is downloaded: matplotlib ships DejaVu, STIX and Computer Modern as TrueType files. Its folder is
found without importing matplotlib, because that import takes longer than drawing many pictures.

May import: the standard library, Pillow, fontTools.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

PLAIN_FONT = "DejaVuSans.ttf"
"""The font of glyph lines and placed glyphs when nobody asks for another."""

UPRIGHT_FONTS = (
    "DejaVuSans.ttf", "DejaVuSans-Bold.ttf",
    "DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf",
    "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf",
    "STIXGeneral.ttf", "STIXGeneralBol.ttf",
    "cmss10.ttf", "cmb10.ttf",
)  # fmt: skip
ITALIC_FONTS = (
    "DejaVuSans-Oblique.ttf", "DejaVuSans-BoldOblique.ttf",
    "DejaVuSansMono-Oblique.ttf", "DejaVuSansMono-BoldOblique.ttf",
    "DejaVuSerif-Italic.ttf", "DejaVuSerif-BoldItalic.ttf",
    "STIXGeneralItalic.ttf", "STIXGeneralBolIta.ttf",
)  # fmt: skip
TEXT_FONTS = UPRIGHT_FONTS + ITALIC_FONTS
"""File names of those of matplotlib's fonts that hold all of a-z, A-Z, 0-9 and the space. (Its others hold symbols;
Computer Modern's roman, italic and typewriter have strokes of less than two pixels at the mock pictures' sizes.)"""


@lru_cache(maxsize=1)
def font_directory() -> Path:
    """The folder of matplotlib's TrueType files; FileNotFoundError when matplotlib is not installed."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("matplotlib is not installed, so its fonts are missing: install matplotlib.")
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"matplotlib has no font folder at {folder}: reinstall matplotlib or give a font file."
        )
    return folder


@lru_cache(maxsize=256)
def font_path(font: str | Path) -> Path:
    """Path of a font given as a file path or as the name of one of matplotlib's fonts ("DejaVuSans.ttf").

    Raises FileNotFoundError when there is no such file. (Upstream takes a missing font for "no glyph" and
    draws black.)
    """
    path = Path(font)
    if path.is_file():
        return path
    if path.parent == Path("."):
        own = font_directory() / path.name
        if own.is_file():
            return own
    raise FileNotFoundError(
        f"Font {str(font)!r} is neither a file nor one of matplotlib's fonts: give a .ttf or .otf file."
    )


@lru_cache(maxsize=512)
def load_font(font: str | Path, size: int) -> ImageFont.FreeTypeFont:
    """The font at `size` pixels an em, with Pillow's own choice of layout engine (libraqm, as upstream).

    Cached; an open font takes about 0.1 MB, so the cache is bounded.
    """
    if size < 1:
        raise ValueError(f"Font size {size} is below 1 pixel: give a larger polygon or size.")
    return ImageFont.truetype(str(font_path(font)), size)


@lru_cache(maxsize=64)
def characters(font: str | Path) -> frozenset[int]:
    """Code points the font has a glyph for, read from its character map."""
    from fontTools.ttLib import TTFont  # slow to import, wanted once a font

    path = font_path(font)
    with TTFont(path, lazy=True, fontNumber=0) as file:
        return frozenset(file.getBestCmap() or ())


def require_glyphs(font: str | Path, text: str) -> None:
    """Raise ValueError naming the font and the characters of `text` it cannot draw."""
    known = characters(font)
    missing = sorted({c for c in text if ord(c) not in known})
    if missing:
        listing = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in missing)
        name = font_path(font).name
        raise ValueError(f"Font {name} has no glyph for {listing}: choose a font that covers {text!r}.")
