"""
Pictures in and out of files; a PNG carries the settings that drew it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from anytext_lcm import __version__
from anytext_lcm.drawing.editing import mask_levels, upright
from anytext_lcm.drawing.methods import Method
from anytext_lcm.drawing.prompts import Prompt
from anytext_lcm.files import atomic_file


def _read(path: str | Path, take: Callable[[Image.Image], Any]) -> np.ndarray:
    """What `take` makes of a picture file, turned as its EXIF says. Raises FileNotFoundError or ValueError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"Picture {path} does not exist.")
    try:
        with Image.open(path) as picture:
            return np.array(take(upright(picture)))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"Picture {path} cannot be read ({error}).") from error


def read_picture(path: str | Path) -> np.ndarray:
    """A picture file as (H, W, 3) uint8 RGB, turned as its EXIF says. Raises FileNotFoundError or ValueError."""
    return _read(path, lambda picture: picture.convert("RGB"))


def read_mask(path: str | Path) -> np.ndarray:
    """The file of a mask as (H, W) uint8, see `mask_levels`. Raises FileNotFoundError or ValueError."""
    return _read(path, mask_levels)


KEY = "anytext_lcm"  # of the text chunk


def describe(
    prompt: Prompt, method: Method, seed: int, size: tuple[int, int], negative_prompt: str, **more: Any
) -> dict[str, Any]:
    """Everything a picture was drawn from, ready for JSON; more: what else a reader should know."""
    return {
        "anytext_lcm": __version__,
        "prompt": prompt.caption,
        "lines": [
            {
                "text": line.text,
                "polygon": np.asarray(line.polygon).tolist(),
                "color": None if line.color is None else list(line.color),
                "hint_font": None if line.hint_font is None else Path(line.hint_font).name,
            }
            for line in prompt.lines
        ],
        "mode": "generate" if prompt.image is None else "edit",
        "method": asdict(method),
        "negative_prompt": negative_prompt if method.guided else None,
        "seed": seed,
        "size": list(size),
        **more,
    }


def save_picture(path: str | Path, picture: np.ndarray, settings: Mapping[str, Any]) -> Path:
    """(H, W, 3) uint8 -> a file, whole or not at all; a PNG carries the settings as JSON in a text chunk."""
    path, options = Path(path), {}
    if path.suffix.lower() == ".png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt(KEY, json.dumps(settings, ensure_ascii=False, sort_keys=True))
    with atomic_file(path) as temporary:
        Image.fromarray(picture).save(temporary, **options)
    return path


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a PNG of `save_picture`. Raises FileNotFoundError, or ValueError when it has none."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"Picture {path} does not exist.")
    try:
        with Image.open(path) as picture:
            return json.loads(picture.text[KEY])
    except (OSError, ValueError, KeyError, AttributeError, SyntaxError) as error:
        raise ValueError(f"{path} carries no settings of this program ({error!r}).") from error
