"""Command: draw a picture with text in it, or write text into a photograph. `python -m anytext_lcm.sample --help`."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from anytext_lcm import __version__
from anytext_lcm.data.batch import Line
from anytext_lcm.data.fonts import PLAIN_FONT, font_path
from anytext_lcm.data.mock import COLORS
from anytext_lcm.editing import (
    BRIGHT,
    ORDERS,
    STEEPEST,
    boxes_of_mask,
    fit_picture,
    mask_levels,
    paste_back,
    turned_box,
    upright,
)
from anytext_lcm.exchange import Part, load_parts, parse_part
from anytext_lcm.outputs import check_writable, whole_file
from anytext_lcm.pipeline import (
    EMBEDDED_CONFIG,
    Defaults,
    Method,
    Prompt,
    defaults_for,
    draw_prompts,
    load_chosen,
    prompts_to_batch,
    resolve_adapter,
    student_method,
    teacher_method,
    use_available_cores,
)

EXAMPLE = 'python -m anytext_lcm.sample --prompt "a red background" --line "HELLO@10,40,118,80#yellow"'
STUDENT_STEPS, TEACHER_STEPS = 4, 20
STUDENT_SAMPLERS, TEACHER_SAMPLERS = ("lcm", "deterministic", "gamma"), ("ddim",)


def parse_colour(text: str) -> tuple[int, int, int]:
    """A name of the mock data set's colours or six hexadecimal digits -> RGB. Raises ValueError."""
    if text in COLORS:
        return COLORS[text]
    digits = text.removeprefix("#")
    try:
        if len(digits) == 6:
            return tuple(bytes.fromhex(digits))
    except ValueError:
        pass
    raise ValueError(f"Colour {text!r} is unknown: say {', '.join(COLORS)}, or six digits like ff8000.")


def parse_line(text: str, hint_font: str | None = None, polygon: np.ndarray | None = None) -> Line:
    """TEXT@LEFT,TOP,RIGHT,BOTTOM or TEXT@X,Y,X,Y,X,Y,..., in pixels, maybe with /ANGLE (-90..90 degrees clockwise,
    of a box) and #COLOUR -> Line.

    TEXT may hold @, / and #. With a polygon (4, 2), from a mask, TEXT or TEXT#COLOUR is enough; there a # belongs to
    the text unless a colour follows it. Raises ValueError.
    """
    if polygon is not None:
        words, mark, colour = text.rpartition("#")
        try:
            ink = parse_colour(colour) if mark else None
        except ValueError:
            mark = ""
        return Line(words, polygon, ink, hint_font) if mark else Line(text, polygon, None, hint_font)
    words, at, place = text.rpartition("@")
    place, _, colour = place.partition("#")
    place, slash, turn = place.partition("/")
    try:
        numbers = [int(number) for number in place.split(",")]
        angle = float(turn) if slash else 0.0
    except ValueError:
        numbers, angle = [], 0.0
    if not at or (len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2 or slash)):
        raise ValueError(
            f"Line {text!r} does not say where it goes: write TEXT@LEFT,TOP,RIGHT,BOTTOM, "
            "as in HELLO@10,40,118,80#yellow."
        )
    if len(numbers) == 4:
        left, top, right, bottom = numbers
        if left >= right or top >= bottom:
            raise ValueError(f"The box of line {text!r} is empty: give LEFT,TOP,RIGHT,BOTTOM in this order.")
        box = turned_box(left, top, right, bottom, angle)
    else:
        box = np.array(numbers).reshape(-1, 2)
    return Line(words, box, parse_colour(colour) if colour else None, hint_font)


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


# -- settings in a picture ------------------------------------------------------------------------------

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
    with whole_file(path) as temporary:
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


# -- command --------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anytext_lcm.sample",
        description="Draws a picture with text in it, or writes text into a photograph.",
        epilog=f"Example: {EXAMPLE}",
    )
    add = parser.add_argument
    add("--prompt", help="what is in the picture, without the text")
    add(
        "--batch",
        metavar="FILE",
        help='JSON of many pictures, drawn together: [{"prompt": ..., "lines": ["TEXT@BOX", ...], "seed": ...}, ...]; '
        "instead of --prompt and --line; files get the entry's number",
    )
    add(
        "--line",
        action="append",
        metavar="TEXT@BOX/ANGLE#COLOUR",
        help="a line of text, its box LEFT,TOP,RIGHT,BOTTOM (or a polygon's X,Y,X,Y,...) in pixels, maybe the degrees "
        f"it is turned clockwise (-{STEEPEST} to {STEEPEST}; letters of steep lines stand below each other) and its "
        "colour; once for each line",
    )
    add("--max_lines", type=int, help="lines at most; default: what the network was trained with")
    add(
        "--adapter",
        default="shipped",
        metavar="DIR|shipped|none",
        help="the student's adapter; none draws with the teacher (default: %(default)s)",
    )
    add("--adapter_scale", type=float, default=1.0, help="weight of the adapter (default: %(default)s)")
    add(
        "--mix",
        action="append",
        metavar="PATH[@SCALE]",
        help="another adapter on top: a PEFT folder, a kohya or a diffusers file; may be repeated",
    )
    add("--steps", type=int, help=f"default: {STUDENT_STEPS}, {TEACHER_STEPS} for the teacher")
    add(
        "--sampler",
        choices=STUDENT_SAMPLERS + TEACHER_SAMPLERS,
        help="lcm, deterministic or gamma for the student, ddim for the teacher; default: lcm or ddim",
    )
    add(
        "--gamma",
        type=float,
        default=0.3,
        help="of --sampler gamma: share of fresh noise, 0 none, 1 almost lcm (default: %(default)s)",
    )
    add(
        "--eta",
        type=float,
        default=0.0,
        help="of the teacher's ddim: share of fresh noise, 0 none, 1 as much as DDPM; default: 0",
    )
    add("--guidance_scale", type=float, help="1 is none, the student's default; the teacher's depends on the network")
    add("--w", type=float, help="the same in the form of LCM's paper: guidance_scale - 1")
    add("--negative_prompt", help="what guidance steers away from; of no effect without guidance")
    add("--seed", type=int, default=0, help="same seed, same picture (default: %(default)s)")
    add(
        "--count",
        type=int,
        default=1,
        help="pictures, from this seed and the following ones, in files with the seed in their names "
        "(default: %(default)s)",
    )
    add("--image", help="picture to edit: the lines are written into it; without it all is drawn")
    add("--fit", action="store_true", help="scale and crop the picture to edit, and the mask, to the size asked for")
    add(
        "--mask",
        help=f"picture that is bright where the lines go (a channel above {BRIGHT} of 255; transparent counts as "
        "black), one region a line; lines are TEXT or TEXT#COLOUR",
    )
    add("--mask_order", choices=ORDERS, default=ORDERS[0], help="in which lines take regions (default: %(default)s)")
    add("--paste_back", action="store_true", help="keep the edited picture's own pixels away from the lines")
    add("--width", type=int, help="in pixels, at full size a multiple of 64; default: what the network was made for")
    add("--height", type=int, help="likewise")
    add("--font", default=PLAIN_FONT, help="file or matplotlib font that tells the letters' shapes")
    add("--font_hint", metavar="FONT", help="font the text should look like; default: any")
    add("--output", default="sample.png", help="a PNG carries all settings in its text (default: %(default)s)")
    add("--config", default=str(EMBEDDED_CONFIG), help="yaml of the network; default: the embedded one")
    add("--ckpt", help="weights of the teacher; default: the embedded ones")
    add("--device", help="default: the GPU if there is one")
    return parser


def _prompt(args: argparse.Namespace, size: tuple[int, int]) -> Prompt:
    """The wish in the arguments, checked as far as it can be without a network."""
    image = None if args.image is None else read_picture(args.image)
    mask = None if args.mask is None else read_mask(args.mask)
    if image is None and args.paste_back:
        raise ValueError("There is nothing to paste back into: name the picture to edit with --image.")
    if image is not None and args.fit:
        image = fit_picture(image, size)
    if mask is not None and args.fit:
        mask = fit_picture(np.repeat(mask[..., None], 3, axis=2), size)[..., 0]
    if mask is not None and mask.shape != size:
        raise ValueError(
            f"The mask is {mask.shape[1]} x {mask.shape[0]} pixels and the picture {size[1]} x {size[0]}: "
            "make them alike or say --fit."
        )
    texts = args.line or ()
    boxes = [None] * len(texts) if mask is None else boxes_of_mask(mask > BRIGHT, len(texts), args.mask_order)
    lines = [parse_line(text, args.font_hint, box) for text, box in zip(texts, boxes, strict=True)]
    return Prompt(args.prompt, tuple(lines), image)


def _read_batch(args: argparse.Namespace) -> list[tuple[Prompt, int]]:
    """Wishes and seeds in a --batch file; an entry without a seed gets --seed plus its place."""
    if args.prompt or args.line or args.image or args.mask or args.paste_back or args.count != 1:
        raise ValueError("--batch holds the prompts: drop --prompt, --line, --image, --mask, --paste_back and --count.")
    try:
        entries = json.loads(Path(args.batch).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"The batch {args.batch} cannot be read ({error}).") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"The batch {args.batch} must be a list of at least one picture.")
    jobs = []
    for place, entry in enumerate(entries):
        try:
            caption, lines, seed = entry["prompt"], entry["lines"], entry.get("seed", args.seed + place)
            if not isinstance(caption, str) or not isinstance(lines, list) or isinstance(seed, bool):
                raise TypeError("prompt is a text, lines a list, seed a number")
            prompt = Prompt(caption, tuple(parse_line(line, args.font_hint) for line in lines))
            jobs.append((prompt, int(seed)))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"Entry {place} of {args.batch} is wrong: {error}") from error
    return jobs


def _jobs(args: argparse.Namespace, size: tuple[int, int]) -> list[tuple[Prompt, int, Path]]:
    """What to draw, from which seed, into which file."""
    if args.count < 1:
        raise ValueError(f"--count must be 1 or more, not {args.count}.")
    if args.batch is not None:
        wishes = _read_batch(args)
        marks = range(len(wishes))
    elif args.prompt is None:
        raise ValueError("There is nothing to draw: say --prompt and --line, or --batch.")
    else:
        prompt, marks = _prompt(args, size), range(args.seed, args.seed + args.count)
        wishes = [(prompt, seed) for seed in marks]
    if bad := [seed for _, seed in wishes if seed < 0]:
        raise ValueError(f"A seed must be an integer from 0 on, not {bad[0]}.")
    output = Path(args.output)
    if Image.registered_extensions().get(output.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"{output} has no ending of a picture file; name it like sample.png.")
    single = args.batch is None and args.count == 1
    paths = [output if single else output.with_stem(f"{output.stem}_{mark}") for mark in marks]
    return [(prompt, seed, path) for (prompt, seed), path in zip(wishes, paths, strict=True)]


def run(args: argparse.Namespace) -> list[Path]:
    """Checks everything that can be checked before the weights are loaded, then draws and writes."""
    defaults = _asked(args, defaults_for(args.config))
    adapter = resolve_adapter(args.adapter)
    if adapter is None and (args.mix or args.adapter_scale != 1.0):
        raise ValueError("The teacher is drawn without adapters: name one, or drop --mix and --adapter_scale.")
    parts = [] if adapter is None else [Part(adapter, args.adapter_scale), *map(parse_part, args.mix or ())]
    method = _method(args, adapter, defaults.guidance_scale)
    if args.negative_prompt is not None:
        if not method.guided:
            raise ValueError(
                "Without guidance a negative prompt has no effect: raise --guidance_scale above 1 or drop it."
            )
        defaults = replace(defaults, negative_prompt=args.negative_prompt)
    if args.font_hint is not None:
        font_path(args.font_hint)
    jobs = _jobs(args, defaults.size)
    prompts = [prompt for prompt, _, _ in jobs]
    prompts_to_batch(prompts if args.batch else prompts[:1], defaults.size, defaults.max_lines, args.font)
    check_writable(args.output)

    use_available_cores()
    model = load_chosen(args.config, args.ckpt, args.device)
    if parts:
        load_parts(model, parts)
    pictures = draw_prompts(model, prompts, method, defaults, [seed for _, seed, _ in jobs], args.font)
    more = {
        "config": Path(args.config).name,
        "ckpt": Path(args.ckpt).name if args.ckpt else "embedded",
        "adapters": [{"name": part.source.name, "scale": part.scale} for part in parts],
        "font": Path(args.font).name,
        "image": Path(args.image).name if args.image else None,
        "pasted_back": args.paste_back,
    }
    for (prompt, seed, path), picture in zip(jobs, pictures, strict=True):
        if args.paste_back:
            picture = paste_back(prompt.image, picture, [line.polygon for line in prompt.lines])
        settings = describe(prompt, method, seed, defaults.size, defaults.negative_prompt, **more)
        save_picture(path, picture, settings)
    return [path for _, _, path in jobs]


def _asked(args: argparse.Namespace, defaults: Defaults) -> Defaults:
    """The defaults with size and lines as they were asked for. Raises ValueError for what the network cannot draw."""
    height, width = defaults.size
    for name, side in (("width", args.width), ("height", args.height)):
        if side is not None and (side < 1 or side % defaults.multiple):
            raise ValueError(f"--{name} must be a multiple of {defaults.multiple} pixels for this network, not {side}.")
    if args.max_lines is not None and args.max_lines < 1:
        raise ValueError(f"--max_lines must be 1 or more, not {args.max_lines}.")
    return replace(
        defaults,
        size=(height if args.height is None else args.height, width if args.width is None else args.width),
        max_lines=defaults.max_lines if args.max_lines is None else args.max_lines,
    )


def _method(args: argparse.Namespace, adapter: Path | None, teacher_guidance: float) -> Method:
    if args.w is not None and args.guidance_scale is not None:
        raise ValueError("--w and --guidance_scale say the same (w is the scale less 1): give one of them.")
    guidance = args.guidance_scale if args.w is None else 1.0 + args.w
    wrong, kind = (STUDENT_SAMPLERS, "teacher") if adapter is None else (TEACHER_SAMPLERS, "student")
    if args.sampler in wrong:
        raise ValueError(f"The {kind} cannot be sampled by {args.sampler}: choose another sampler or --adapter.")
    if adapter is None:
        steps = TEACHER_STEPS if args.steps is None else args.steps
        guidance = teacher_guidance if guidance is None else guidance
        return teacher_method(steps, guidance, eta=args.eta)
    if args.eta:
        raise ValueError("--eta is of the teacher's ddim: for the student choose --sampler gamma, or --adapter none.")
    steps = STUDENT_STEPS if args.steps is None else args.steps
    gamma = {"deterministic": 0.0, "gamma": args.gamma}.get(args.sampler)
    return student_method(steps, 1.0 if guidance is None else guidance, gamma)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr for what is asked and cannot be."""
    args = build_parser().parse_args(arguments)
    try:
        print(*run(args), sep="\n")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
