"""What `python -m anytext_lcm.sample` draws: prompts from flags or from a JSON, each with its seed and its file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anytext_lcm.data.fonts import PLAIN_FONT
from anytext_lcm.data.pictures import open_picture
from anytext_lcm.drawing.draw import draw_prompts
from anytext_lcm.drawing.editing import BRIGHT, boxes_of_mask, fit_picture, paste_back, read_mask
from anytext_lcm.drawing.methods import Method
from anytext_lcm.drawing.png import describe, save_picture
from anytext_lcm.drawing.prompts import Prompt, parse_line
from anytext_lcm.files import read_json
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.networks import Defaults


@dataclass(frozen=True)
class Job:
    """One picture to draw, and the file it goes to."""

    prompt: Prompt
    seed: int
    path: Path


def read_photo(path: str, size: tuple[int, int], fit: bool) -> np.ndarray:
    """The picture to edit (H, W, 3) uint8, scaled and cropped to `size` (height, width) if asked.

    Raises FileNotFoundError or ValueError, also for a picture of another size unless it is to be fitted.
    """
    image = open_picture(path)
    if fit:
        return fit_picture(image, size)
    if image.shape[:2] != size:
        raise ValueError(
            f"The picture to edit is {image.shape[1]} x {image.shape[0]} pixels, not {size[1]} x {size[0]}: "
            "say --fit, which scales and crops it, or --width and --height."
        )
    return image


def boxes_from_mask(path: str, size: tuple[int, int], fit: bool, count: int, order: str) -> list[np.ndarray]:
    """A box (4, 2) int for each of `count` bright regions of a mask, see `boxes_of_mask`.

    Raises FileNotFoundError or ValueError, also for a mask of another size unless it is to be fitted.
    """
    mask = read_mask(path)
    if fit:
        mask = fit_picture(np.repeat(mask[..., None], 3, axis=2), size)[..., 0]
    if mask.shape != size:
        raise ValueError(
            f"The mask is {mask.shape[1]} x {mask.shape[0]} pixels and the picture {size[1]} x {size[0]}: "
            "make them alike or say --fit."
        )
    return boxes_of_mask(mask > BRIGHT, count, order)


def read_batch(path: str, seed: int, hint_font: str | None) -> list[tuple[Prompt, int]]:
    """Prompts and seeds of a JSON `[{"prompt": ..., "lines": [...], "seed": ...}, ...]`; an entry without a seed gets
    `seed` plus its place. Raises ValueError, also for keys that an entry does not have and seeds that are no integers
    from 0 on.
    """
    try:
        entries = read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"The batch {path} cannot be read ({error}).") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"The batch {path} must be a list of at least one picture.")
    wishes = []
    for place, entry in enumerate(entries):
        try:
            prompt, own_seed = _read_entry(entry, seed + place, hint_font)
        except (TypeError, ValueError) as error:
            raise ValueError(f"Entry {place} of {path} is wrong: {error}") from error
        wishes.append((replace(prompt, source=f"Entry {place} of {path}"), own_seed))
    return wishes


def _read_entry(entry: Mapping[str, Any], seed: int, hint_font: str | None) -> tuple[Prompt, int]:
    if not isinstance(entry, dict):
        raise TypeError('it must be an object like {"prompt": ..., "lines": [...], "seed": ...}')
    known = ("prompt", "lines", "seed")
    if unknown := [key for key in entry if key not in known]:
        raise ValueError(f"{unknown[0]!a} is unknown, an entry has {', '.join(known)}")
    if missing := [key for key in known[:2] if key not in entry]:
        raise ValueError(f"{missing[0]} is missing")
    caption, lines, seed = entry["prompt"], entry["lines"], entry.get("seed", seed)
    if not isinstance(caption, str) or not isinstance(lines, list) or any(not isinstance(line, str) for line in lines):
        raise TypeError("prompt must be a text and lines a list of texts")
    if type(seed) is not int or seed < 0:
        raise TypeError(f"seed must be an integer from 0 on, not {seed!a}")
    return Prompt(caption, tuple(parse_line(line, hint_font) for line in lines)), seed


def make_jobs(wishes: Sequence[tuple[Prompt, int]], output: Path, marks: Sequence[int] | None = None) -> list[Job]:
    """Jobs with files named like `output`, with a mark of each in the name unless None. Raises ValueError for a
    negative seed and for a name that Pillow cannot write.
    """
    if bad := [seed for _, seed in wishes if seed < 0]:
        raise ValueError(f"A seed must be an integer from 0 on, not {bad[0]}.")
    if Image.registered_extensions().get(output.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"{output} has no ending of a picture file; name it like sample.png.")
    names = [output] * len(wishes) if marks is None else [output.with_stem(f"{output.stem}_{mark}") for mark in marks]
    return [Job(prompt, seed, path) for (prompt, seed), path in zip(wishes, names, strict=True)]


def draw_jobs(
    model: AnyText2,
    jobs: Sequence[Job],
    method: Method,
    defaults: Defaults,
    font: str | Path = PLAIN_FONT,
    keep_photo: bool = False,
    about: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Draw all jobs together and write their files, each with its settings and `about`. Returns the files.

    keep_photo: paste the drawn lines back into the prompt's own picture. Raises ValueError as `draw_prompts`.
    """
    pictures = draw_prompts(model, [job.prompt for job in jobs], method, defaults, [job.seed for job in jobs], font)
    for job, picture in zip(jobs, pictures, strict=True):
        if keep_photo:
            picture = paste_back(job.prompt.image, picture, [line.polygon for line in job.prompt.lines])
        more = {**(about or {}), "pasted_back": keep_photo}
        settings = describe(job.prompt, method, job.seed, defaults.size, defaults.negative_prompt, **more)
        save_picture(job.path, picture, settings)
    return [job.path for job in jobs]
