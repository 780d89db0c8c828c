"""The fonts every machine with matplotlib has, and the check that a font can write a text.

Nothing is downloaded: matplotlib ships DejaVu, STIX and Computer Modern as TrueType files. Its folder is found without
importing matplotlib, because that import takes longer than drawing many pictures.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont


class DrawingError(ValueError):
    """A text cannot be drawn: a missing glyph, no room, no text. The message says which, and what to do."""


PLAIN_FONT = "DejaVuSans.ttf"
"""The default font of glyph lines and placed glyphs."""

UPRIGHT_FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "cmss10.ttf",
    "cmb10.ttf",
)
ITALIC_FONTS = (
    "DejaVuSans-Oblique.ttf",
    "DejaVuSans-BoldOblique.ttf",
    "DejaVuSansMono-Oblique.ttf",
    "DejaVuSansMono-BoldOblique.ttf",
    "DejaVuSerif-Italic.ttf",
    "DejaVuSerif-BoldItalic.ttf",
    "STIXGeneralItalic.ttf",
    "STIXGeneralBolIta.ttf",
)
TEXT_FONTS = UPRIGHT_FONTS + ITALIC_FONTS
"""File names of those of matplotlib's fonts that hold all of a-z, A-Z, 0-9 and the space. (Its others hold symbols;
Computer Modern's roman, italic and typewriter have strokes of less than two pixels at the mock pictures' sizes.)"""


@lru_cache(maxsize=1)
def font_directory() -> Path:
    """Find the folder of matplotlib's TrueType files; FileNotFoundError when matplotlib is not installed."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("matplotlib is not installed, so its fonts are missing: install matplotlib.")
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    if not folder.is_dir():
        raise FileNotFoundError(f"matplotlib has no font folder at {folder}: reinstall matplotlib or give a font file.")
    return folder


@lru_cache(maxsize=256)
def font_path(font: str | Path) -> Path:
    """Find a font given as a file path or as the name of one of matplotlib's fonts ("DejaVuSans.ttf").

    Raises FileNotFoundError when there is no such file. (Upstream takes a missing font for "no glyph" and draws black.)
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
    """Open a font at `size` pixels per em, with Pillow's own choice of layout engine (libraqm, as in upstream).

    Raises DrawingError below 1 pixel, FileNotFoundError if there is no such font, ValueError for a file that is none.
    """
    # Cached; an open font takes about 0.1 MB, so the cache is bounded.
    if size < 1:
        raise DrawingError(f"Font size {size} is below 1 pixel: give a larger polygon or size.")
    path = font_path(font)
    try:
        return ImageFont.truetype(str(path), size)
    except (OSError, ValueError) as error:
        raise ValueError(_broken(path, error)) from error


@lru_cache(maxsize=64)
def characters(font: str | Path) -> frozenset[int]:
    """Read the code points that the font has a glyph for from its character map.

    Raises FileNotFoundError if there is no such font, ValueError for a file that is none or is cut off.
    """
    from fontTools.ttLib import TTFont  # slow to import, needed once per font

    path = font_path(font)
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # its warnings are of damage, which is said below
    try:
        with TTFont(path, lazy=True, fontNumber=0) as file:
            known = frozenset(file.getBestCmap() or ())
            tables = [] if file.flavor else file.reader.tables.values()  # a flavor is a compressed file
            if any(table.offset + table.length > path.stat().st_size for table in tables):
                raise ValueError("it is cut off")
    except Exception as error:  # damaged files make fontTools raise nearly anything
        raise ValueError(_broken(path, error)) from error
    return known


def check_fonts(fonts: Iterable[str | Path]) -> None:
    """Open each font as drawing does. Raises FileNotFoundError or ValueError for the first that cannot be used."""
    for font in fonts:
        characters(font)
        load_font(font, 40)


@contextmanager
def drawing_in(font: str | Path, text: str) -> Iterator[None]:
    """Raise DrawingError in the block where FreeType finds a damaged glyph."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        name = font_path(font).name
        raise DrawingError(
            f"Font {name} is damaged and cannot draw {text!r} ({error}): choose another font."
        ) from error


def _broken(path: Path, error: Exception) -> str:
    reason = str(error) or type(error).__name__
    return f"Font {path} cannot be read ({reason}): give a whole .ttf, .otf or .ttc file."


def require_glyphs(font: str | Path, text: str) -> None:
    """Raise DrawingError naming the font and the characters of `text` that it lacks, if any."""
    if font_path(font).name.startswith("LastResort"):
        raise DrawingError(f"Font {font_path(font).name} draws a box for any character: choose another font.")
    known = characters(font)
    missing = sorted({c for c in text if ord(c) not in known})
    if missing:
        listing = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in missing)
        name = font_path(font).name
        raise DrawingError(
            f"Font {name} has no glyph for {listing}: choose a font that covers {text!r}, or change the text."
        )


def covers(font: str | Path, text: str) -> bool:
    """Whether the font holds every character of the text."""
    known = characters(font)
    return all(ord(c) in known for c in text) and not font_path(font).name.startswith("LastResort")


def covering_fonts(text: str, fonts: Sequence[str | Path]) -> list[str | Path]:
    """Choose those of `fonts` that can write the text, in their order; DrawingError when there is none."""
    able = [font for font in fonts if covers(font, text)]
    if not able:
        known = frozenset().union(*(characters(font) for font in fonts))
        missing = sorted({c for c in text if ord(c) not in known})
        listing = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in missing) or "all characters at once"
        names = ", ".join(font_path(font).name for font in fonts)
        raise DrawingError(f"No font of {names} has {listing}: name one that covers {text!r}.")
    return able


@lru_cache(maxsize=1)
def system_fonts() -> tuple[Path, ...]:
    """List the scalable fonts of this machine by name."""
    from matplotlib.font_manager import findSystemFonts  # slow to import, needed once

    return tuple(sorted((Path(path) for path in findSystemFonts()), key=lambda path: (path.name, path)))


def find_fonts(text: str) -> list[Path]:
    """List the system's fonts that hold every character of the text, maybe none."""
    able = []
    for path in system_fonts():
        try:
            if covers(path, text):
                load_font(path, 40)  # bitmap fonts have few sizes
                able.append(path)
        except Exception:  # a font file that cannot be read is no candidate, whatever is wrong with it
            continue
    return able
