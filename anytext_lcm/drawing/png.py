"""Pictures into files; a PNG carries the settings that drew it. `data/pictures.py` reads them."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from anytext_lcm import __version__
from anytext_lcm.drawing.methods import Method
from anytext_lcm.drawing.prompts import Prompt
from anytext_lcm.files import atomic_file

KEY = "anytext_lcm"  # of the text chunk


def describe(
    prompt: Prompt, method: Method, seed: int, size: tuple[int, int], negative_prompt: str, **more: Any
) -> dict[str, Any]:
    """Everything a picture was drawn from, ready for JSON; more: further settings."""
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
    """Write (H, W, 3) uint8, whole or not at all; a PNG carries the settings as JSON in a text chunk."""
    path, options = Path(path), {}
    if path.suffix.lower() == ".png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt(KEY, json.dumps(settings, ensure_ascii=False, sort_keys=True))
    with atomic_file(path) as temporary:
        Image.fromarray(picture).save(temporary, **options)
    return path


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a PNG of `save_picture`. Raises FileNotFoundError, or ValueError when it has none."""
    try:
        if not Path(path).is_file():
            raise FileNotFoundError(f"Picture {path} does not exist.")
        with Image.open(path, formats=["PNG"]) as picture:
            return json.loads(picture.text[KEY])
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, SyntaxError, RecursionError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} carries no settings of this program ({error!r}).") from error


def png_bytes(image: np.ndarray, scale: int = 1) -> bytes:
    """(H, W, 3) uint8 as a PNG file, each pixel `scale` times as large."""
    picture = Image.fromarray(image)
    if scale > 1:
        picture = picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST)
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
