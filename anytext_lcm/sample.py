"""Command: draw a picture with text in it, or write text into a photograph. `python -m anytext_lcm.sample --help`."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from anytext_lcm.adapter.lora import resolve_adapter
from anytext_lcm.adapter.mix import Part, load_parts, parse_part
from anytext_lcm.data.fonts import PLAIN_FONT, font_path
from anytext_lcm.drawing.cores import use_available_cores
from anytext_lcm.drawing.draw import draw_prompts
from anytext_lcm.drawing.editing import BRIGHT, ORDERS, STEEPEST, boxes_of_mask, fit_picture, paste_back
from anytext_lcm.drawing.methods import STUDENT_SAMPLERS, TEACHER_SAMPLERS, Method, student_method, teacher_method
from anytext_lcm.drawing.png import describe, read_mask, read_picture, save_picture
from anytext_lcm.drawing.prompts import Prompt, parse_line, prompts_to_batch
from anytext_lcm.files import check_writable
from anytext_lcm.model.loading import load_chosen
from anytext_lcm.model.networks import EMBEDDED_CONFIG, Defaults, defaults_for

EXAMPLE = 'python -m anytext_lcm.sample --prompt "a red background" --line "HELLO@10,40,118,80#yellow"'


STUDENT_STEPS, TEACHER_STEPS = 4, 20


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
