"""Picture files from outside: the one place where the package opens them."""

from __future__ import annotations

import contextlib
import stat
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""What a picture may be, whatever its name. Pillow's other readers stay shut: that of EPS starts Ghostscript."""

MAX_PIXELS = 40_000_000
"""A larger picture is refused before it is decoded. At this size the worst kind stays below 500 MB of memory."""

MAX_SIDE = 4096
"""Pixels of a side of the pictures that a data set makes; eight times what AnyText2 was trained at."""

_STRIP = 2**20  # pixels converted at a time, so that a large picture is not held three times


def open_picture(source: str | Path | bytes, turned: bool = True, backing: str = "white") -> np.ndarray:
    """Read a picture file, or its bytes, as (H, W, 3) uint8 RGB; of several frames the first.

    Arguments
        source   a regular file in one of FORMATS with at most MAX_PIXELS, or its content
        turned   turn it as its EXIF says, as viewers do. Records of AnyWord-3M are read with False, because AnyText2
                 reads them so and their polygons refer to the stored pixels
        backing  colour that shows where the picture is transparent. (AnyText2 shows what lies under the transparency;
                 AnyWord-3M has JPEGs alone, which have none)

    Grey levels of 16 bits, also if stored as 32-bit integers, lose their lower 8 bits. Floats are 0..1 if none is
    larger, else 0..255 if none is larger, else 0..65535. Raises FileNotFoundError, or ValueError for what cannot be
    read.
    """
    name = "that was uploaded" if isinstance(source, bytes) else source
    try:
        if not isinstance(source, bytes):
            if not stat.S_ISREG(Path(source).stat().st_mode):  # opening a pipe would wait for a writer
                raise ValueError("it is not a regular file")
            source = Path(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes below MAX_PIXELS, and of a broken EXIF, which spoils no pixels
            return _read(BytesIO(source) if isinstance(source, bytes) else source, turned, backing)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Picture {name} does not exist.") from error
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"Picture {name} cannot be read (it is none of {', '.join(FORMATS)}).") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"Picture {name} cannot be read ({_too_large()}).") from error
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise ValueError(f"Picture {name} cannot be read ({error}).") from error


def check_side(side: int) -> None:
    """Raise ValueError for a side of a data set's pictures, in pixels, that is no multiple of 8 in 64..MAX_SIDE."""
    if not 64 <= side <= MAX_SIDE or side % 8:
        raise ValueError(f"image_size {side} must be a multiple of 8, at least 64 and at most {MAX_SIDE}.")


def picture_size(path: str | Path, turned: bool = False) -> tuple[int, int]:
    """Width and height of a picture without reading its pixels, turned as in `open_picture`. Raises as it does."""
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise ValueError("it is not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as picture:
                width, height = picture.size
                with contextlib.suppress(Exception):  # a broken EXIF
                    if turned and picture.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8):  # on its side
                        width, height = height, width
                return width, height
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Picture {path} does not exist.") from error
    except Exception as error:
        raise ValueError(f"Picture {path} cannot be read ({error}).") from error


def _read(file: Path | BytesIO, turned: bool, backing: str) -> np.ndarray:
    with Image.open(file, formats=FORMATS) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(_too_large(f"{picture.width} x {picture.height} pixels are "))
        picture.load()
        if turned:
            with contextlib.suppress(Exception):  # a broken EXIF
                ImageOps.exif_transpose(picture, in_place=True)
        image = np.empty((picture.height, picture.width, 3), np.uint8)
        if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
            highest = _highest(picture)
            for rows, strip in _strips(picture):
                image[rows] = _grey_levels(np.asarray(strip), highest)[..., None]
        else:
            for rows, strip in _strips(picture):
                image[rows] = np.asarray(_opaque(strip, backing))
    return image


def _strips(picture: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """The picture from top to bottom, cut into strips of at most `_STRIP` pixels or one row, and their rows."""
    height = max(1, _STRIP // picture.width)
    if height >= picture.height:
        yield slice(None), picture
        return
    for top in range(0, picture.height, height):
        bottom = min(top + height, picture.height)
        yield slice(top, bottom), picture.crop((0, top, picture.width, bottom))


def _opaque(picture: Image.Image, backing: str) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    drawn = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", drawn.size, backing), drawn).convert("RGB")


def _highest(picture: Image.Image) -> float:
    """The value that becomes 255 or 256. Raises ValueError for values that are no grey levels."""
    ends = [(values.min(), values.max()) for values in (np.asarray(strip) for _, strip in _strips(picture))]
    low, high = np.min(ends), np.max(ends)
    if not (low >= 0 and high <= 65535):  # also nan
        raise ValueError(f"its grey levels reach from {low} to {high}, not 0 to 65535")
    if picture.mode == "F":
        return 1.0 if high <= 1 else 255.0 if high <= 255 else 65536.0
    return 65536.0


def _grey_levels(values: np.ndarray, highest: float) -> np.ndarray:
    if highest == 65536.0:
        return (values.astype(np.int64) >> 8).astype(np.uint8)
    return np.rint(values * (255 / highest)).astype(np.uint8)


def _too_large(size: str = "") -> str:
    return f"{size}more than {MAX_PIXELS // 1_000_000} megapixels: scale it down"
