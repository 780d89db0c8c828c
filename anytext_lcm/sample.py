"""Command: draw one picture with text in it. `python -m anytext_lcm.sample --help`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from anytext_lcm.data.batch import Line
from anytext_lcm.data.fonts import PLAIN_FONT, font_path
from anytext_lcm.data.mock import COLORS
from anytext_lcm.lora import load_adapter
from anytext_lcm.outputs import check_writable, whole_file
from anytext_lcm.pipeline import (
    EMBEDDED_CONFIG,
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


def parse_line(text: str, hint_font: str | None = None) -> Line:
    """TEXT@LEFT,TOP,RIGHT,BOTTOM or TEXT@X,Y,X,Y,X,Y,..., in pixels, maybe with #COLOUR -> Line.

    TEXT may hold @ and #. Raises ValueError.
    """
    words, at, place = text.rpartition("@")
    place, _, colour = place.partition("#")
    try:
        numbers = [int(number) for number in place.split(",")]
    except ValueError:
        numbers = []
    if not at or (len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2)):
        raise ValueError(
            f"Line {text!r} does not say where it goes: write TEXT@LEFT,TOP,RIGHT,BOTTOM, "
            "as in HELLO@10,40,118,80#yellow."
        )
    if len(numbers) == 4:
        left, top, right, bottom = numbers
        if left >= right or top >= bottom:
            raise ValueError(f"The box of line {text!r} is empty: give LEFT,TOP,RIGHT,BOTTOM in this order.")
        numbers = [left, top, right, top, right, bottom, left, bottom]
    polygon = np.array(numbers).reshape(-1, 2)
    return Line(words, polygon, parse_colour(colour) if colour else None, hint_font)


def read_picture(path: str | Path) -> np.ndarray:
    """A picture file as (H, W, 3) uint8 RGB. Raises FileNotFoundError or ValueError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"Picture {path} does not exist.")
    try:
        with Image.open(path) as picture:
            return np.array(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"Picture {path} cannot be read ({error}).") from error


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anytext_lcm.sample",
        description="Draws one picture with text in it.",
        epilog=f"Example: {EXAMPLE}",
    )
    add = parser.add_argument
    add("--prompt", required=True, help="what is in the picture, without the text")
    add("--line", action="append", metavar="TEXT@BOX#COLOUR",
        help="a line of text, its box LEFT,TOP,RIGHT,BOTTOM (or a polygon's X,Y,X,Y,...) in pixels, and "
        "maybe its colour; once for each line")  # fmt: skip
    add("--adapter", default="shipped", metavar="DIR|shipped|none",
        help="the student's adapter; none draws with the teacher (default: %(default)s)")  # fmt: skip
    add("--steps", type=int, help=f"default: {STUDENT_STEPS}, {TEACHER_STEPS} for the teacher")
    add("--guidance_scale", type=float,
        help="1 is none, the student's default; the teacher's depends on the network")  # fmt: skip
    add("--negative_prompt", help="what guidance steers away from; of no effect without guidance")
    add("--seed", type=int, default=0, help="same seed, same picture (default: %(default)s)")
    add("--image", help="picture to edit: the lines are written into it; without it all is drawn")
    add("--width", type=int, help="in pixels, a multiple of 8; default: what the network was made for")
    add("--height", type=int)
    add("--font", default=PLAIN_FONT, help="file or matplotlib font that tells the letters' shapes")
    add("--font_hint", metavar="FONT", help="font the text should look like; default: any")
    add("--output", default="sample.png", help="default: %(default)s")
    add("--config", default=str(EMBEDDED_CONFIG), help="yaml of the network; default: the embedded one")
    add("--ckpt", help="weights of the teacher; default: the embedded ones")
    add("--device", help="default: the GPU if there is one")
    return parser


def run(args: argparse.Namespace) -> Path:
    """Checks everything that can be checked before the weights are loaded, then draws and writes."""
    defaults = defaults_for(args.config)
    height, width = args.height or defaults.size[0], args.width or defaults.size[1]
    defaults = replace(defaults, size=(height, width))
    adapter = resolve_adapter(args.adapter)
    method = _method(args, adapter, defaults.guidance_scale)
    if args.negative_prompt is not None:
        if not method.guided:
            raise ValueError(
                "Without guidance a negative prompt has no effect: raise --guidance_scale above 1 or drop it."
            )
        defaults = replace(defaults, negative_prompt=args.negative_prompt)
    if args.font_hint is not None:
        font_path(args.font_hint)
    image = None if args.image is None else read_picture(args.image)
    lines = tuple(parse_line(line, args.font_hint) for line in args.line or ())
    prompt = Prompt(args.prompt, lines, image)
    prompts_to_batch([prompt], defaults.size, defaults.max_lines, args.font)
    if args.seed < 0:
        raise ValueError(f"A seed must be an integer from 0 on, not {args.seed}.")
    output = Path(args.output)
    if Image.registered_extensions().get(output.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"{output} has no ending of a picture file; name it like sample.png.")
    check_writable(output)

    use_available_cores()
    model = load_chosen(args.config, args.ckpt, args.device)
    if adapter is not None:
        load_adapter(model, adapter)
    [picture] = draw_prompts(model, [prompt], method, defaults, [args.seed], args.font)
    with whole_file(output) as temporary:
        Image.fromarray(picture).save(temporary)
    return output


def _method(args: argparse.Namespace, adapter: Path | None, teacher_guidance: float) -> Method:
    if adapter is None:
        steps = TEACHER_STEPS if args.steps is None else args.steps
        return teacher_method(steps, teacher_guidance if args.guidance_scale is None else args.guidance_scale)
    steps = STUDENT_STEPS if args.steps is None else args.steps
    return student_method(steps, 1.0 if args.guidance_scale is None else args.guidance_scale)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr for what is asked and cannot be."""
    args = build_parser().parse_args(arguments)
    try:
        print(run(args))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
