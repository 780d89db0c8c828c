"""Command: draw a picture with text in it, or write text into a photograph. `python -m anytext_lcm.sample --help`"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from anytext_lcm.command import (
    add_adapter,
    add_network,
    add_precision,
    finite,
    named,
    natural,
    new_parser,
    positive,
    run,
)
from anytext_lcm.data.fonts import PLAIN_FONT, check_fonts
from anytext_lcm.data.text import checked
from anytext_lcm.drawing.editing import BRIGHT, ORDERS, STEEPEST
from anytext_lcm.drawing.methods import STUDENT_SAMPLERS, TEACHER_SAMPLERS, check_negative
from anytext_lcm.files import check_writable
from anytext_lcm.model.networks import EMBEDDED_CONFIG, Defaults, defaults_for

if TYPE_CHECKING:
    from anytext_lcm.adapter.choices import MadeFor
    from anytext_lcm.drawing.jobs import Job
    from anytext_lcm.drawing.methods import Method

EXAMPLE = 'python -m anytext_lcm.sample --prompt "a red background with text" --line "HELLO@10,40,118,80#yellow"'
STUDENT_STEPS, TEACHER_STEPS, GAMMA = 4, 20, 0.3
MOST_LINES, MOST_PICTURES = 100, 1000
MOST_PIXELS = 2048  # of a side; four times what AnyText2 was trained at


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("sample", "Draws a picture with text in it, or writes text into a photograph.", EXAMPLE)
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
    add("--max_lines", type=positive, help="lines at most; default: what the network was trained with")
    add_adapter(
        parser, "the student's; shipped is the one for --steps, none draws with the teacher (default: %(default)s)"
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
        help="lcm, deterministic or gamma for the student, ddim for the teacher; default: what suits the adapter",
    )
    add(
        "--gamma",
        type=finite,
        help=f"of --sampler gamma: share of fresh noise, 0 none, 1 almost lcm (default: {GAMMA})",
    )
    add(
        "--eta",
        type=float,
        default=0.0,
        help="of the teacher's ddim: share of fresh noise, 0 none, 1 as much as DDPM; default: 0",
    )
    add("--guidance_scale", type=float, help="1 is none, the student's default; the teacher's depends on the network")
    add("--w", type=float, help="the same in the form of LCM's paper: guidance_scale - 1")
    add("--attnx_scale", type=float, default=1.0, help="weight of the extra attention, 0 to 2 (default: %(default)s)")
    add(
        "--strength",
        type=float,
        default=1.0,
        help="weight of WriteNet's residuals, 0 to 2 (default: %(default)s)",
    )
    add("--negative_prompt", help="what guidance steers away from; of no effect without guidance")
    add(
        "--seed",
        type=natural,
        default=0,
        help="same seed, same picture; drawn with others a few of its values may differ by one level of 255, which is "
        "rounding (default: %(default)s)",
    )
    add(
        "--count",
        type=positive,
        default=1,
        help="pictures, from this seed and the following ones, in files with the seed in their names "
        "(default: %(default)s)",
    )
    add("--image", help="picture to edit, of at most 40 megapixels: the lines are written into it")
    add("--fit", action="store_true", help="scale and crop the picture to edit, and the mask, to the size asked for")
    add(
        "--mask",
        help=f"picture that is bright where the lines go (a channel above {BRIGHT} of 255; transparent counts as "
        "black), one region a line; lines are TEXT or TEXT#COLOUR",
    )
    add("--mask_order", choices=ORDERS, help=f"in which lines take the mask's regions (default: {ORDERS[0]})")
    add("--paste_back", action="store_true", help="keep the edited picture's own pixels away from the lines")
    add("--width", type=int, help="in pixels, at full size a multiple of 64; default: what the network was made for")
    add("--height", type=int, help="likewise")
    add("--font", default=PLAIN_FONT, help="file or matplotlib font that gives the letters' shapes")
    add("--font_hint", metavar="FONT", help="font the text should look like; default: any")
    add(
        "--output",
        type=named,
        default="sample.png",
        help="a PNG carries all settings in its text (default: %(default)s)",
    )
    add_network(parser, str(EMBEDDED_CONFIG))
    add_precision(parser)
    return parser


def work(args: argparse.Namespace) -> str:
    """Check everything that can be checked before the weights are loaded, then draw and write."""
    from anytext_lcm.adapter.choices import read_made_for
    from anytext_lcm.adapter.lora import resolve_adapter
    from anytext_lcm.adapter.mix import WeightedAdapter, load_adapters
    from anytext_lcm.adapter.stored import training_header
    from anytext_lcm.checks.network import require_network
    from anytext_lcm.drawing.cores import use_available_cores
    from anytext_lcm.drawing.jobs import draw_jobs
    from anytext_lcm.drawing.prompts import prompts_to_batch
    from anytext_lcm.model.loading import chosen_precision, load_chosen

    defaults = asked_size(args, defaults_for(args.config))
    adapter = resolve_adapter(args.adapter, STUDENT_STEPS if args.steps is None else args.steps)
    if adapter is None and (args.mix or args.adapter_scale != 1.0):
        raise ValueError("The teacher is drawn without adapters: name one, or drop --mix and --adapter_scale.")
    mixed = map(WeightedAdapter.parse, args.mix or ())
    adapters = [] if adapter is None else [WeightedAdapter(adapter, args.adapter_scale), *mixed]
    suits = None if adapter is None else read_made_for(training_header(adapter))
    method = choose_method(args, suits, defaults.guidance_scale)
    method = replace(method, attnx_scale=args.attnx_scale, strength=args.strength)
    if args.negative_prompt is not None:
        check_negative(args.negative_prompt, [method])
        defaults = replace(defaults, negative_prompt=checked(args.negative_prompt, "The negative prompt"))
    if args.font_hint is not None:
        check_fonts([args.font_hint])
    jobs = batch_jobs(args) if args.batch is not None else prompt_jobs(args, defaults.size)
    prompts = [job.prompt for job in (jobs[:1] if args.batch is None else jobs)]
    prompts_to_batch(prompts, defaults.size, defaults.max_lines, args.font)
    check_writable(args.output)
    precision = chosen_precision(args.device, args.precision)

    require_network(args.config, args.ckpt, "--ckpt", [] if adapter is None else [adapter])
    use_available_cores()
    model = load_chosen(args.config, args.ckpt, args.device, precision)
    if adapters:
        load_adapters(model, adapters)
    about = {
        "config": Path(args.config).name,
        "ckpt": Path(args.ckpt).name if args.ckpt else "embedded",
        "precision": precision,
        "adapters": [{"name": found.source.name, "scale": found.scale} for found in adapters],
        "font": Path(args.font).name,
        "image": Path(args.image).name if args.image else None,
    }
    return "\n".join(map(str, draw_jobs(model, jobs, method, defaults, args.font, args.paste_back, about)))


def prompt_jobs(args: argparse.Namespace, size: tuple[int, int]) -> "list[Job]":
    """The prompt of the flags from --count seeds. Raises FileNotFoundError or ValueError."""
    from anytext_lcm.drawing import jobs
    from anytext_lcm.drawing.prompts import Prompt, parse_line

    if args.prompt is None:
        raise ValueError("There is nothing to draw: say --prompt and --line, or --batch.")
    if args.fit and args.image is None and args.mask is None:
        raise ValueError("There is nothing to fit: name the picture to edit with --image, or a --mask.")
    if args.count > MOST_PICTURES:
        raise ValueError(f"--count must be at most {MOST_PICTURES}, not {args.count}: draw the others in further runs.")
    image = None if args.image is None else jobs.read_photo(args.image, size, args.fit)
    if image is None and args.paste_back:
        raise ValueError("There is nothing to paste back into: name the picture to edit with --image.")
    texts = args.line or ()
    boxes = [None] * len(texts)
    if args.mask is not None:
        boxes = jobs.boxes_from_mask(args.mask, size, args.fit, len(texts), args.mask_order or ORDERS[0])
    elif args.mask_order is not None:
        raise ValueError("--mask_order is of a mask's regions: name the --mask, or drop it.")
    lines = tuple(parse_line(text, args.font_hint, box) for text, box in zip(texts, boxes, strict=True))
    seeds = range(args.seed, args.seed + args.count)
    wishes = [(Prompt(args.prompt, lines, image), seed) for seed in seeds]
    return jobs.make_jobs(wishes, Path(args.output), seeds if args.count > 1 else None)


def batch_jobs(args: argparse.Namespace) -> "list[Job]":
    """The pictures of a --batch file. Raises ValueError."""
    from anytext_lcm.drawing import jobs

    if (
        args.prompt
        or args.line
        or args.image
        or args.mask
        or args.fit
        or args.paste_back
        or args.count != 1
        or args.mask_order
    ):
        raise ValueError(
            "--batch holds the prompts: drop --prompt, --line, --image, --mask, --mask_order, --fit, --paste_back and "
            "--count."
        )
    wishes = jobs.read_batch(args.batch, args.seed, args.font_hint)
    return jobs.make_jobs(wishes, Path(args.output), range(len(wishes)))


def asked_size(args: argparse.Namespace, defaults: Defaults) -> Defaults:
    """The defaults with size and lines that were asked for. Raises ValueError for what the network cannot draw."""
    height, width = defaults.size
    for name, side in (("width", args.width), ("height", args.height)):
        if side is not None and (side < 1 or side % defaults.multiple):
            raise ValueError(f"--{name} must be a multiple of {defaults.multiple} pixels for this network, not {side}.")
        if side is not None and side > MOST_PIXELS:
            raise ValueError(f"--{name} must be at most {MOST_PIXELS} pixels, not {side}.")
    if args.max_lines is not None and args.max_lines > MOST_LINES:
        raise ValueError(f"--max_lines must be at most {MOST_LINES}, not {args.max_lines}.")
    return replace(
        defaults,
        size=(height if args.height is None else args.height, width if args.width is None else args.width),
        max_lines=defaults.max_lines if args.max_lines is None else args.max_lines,
    )


def choose_method(args: argparse.Namespace, suits: "MadeFor | None", teacher_guidance: float) -> "Method":
    """Sampler, steps and guidance. suits: the student's adapter, None for the teacher. A sampling that the adapter was
    not made for is said on stderr. Raises ValueError for flags that contradict each other.
    """
    from anytext_lcm.drawing.methods import student_method, teacher_method

    if args.w is not None and args.guidance_scale is not None:
        raise ValueError("--w and --guidance_scale say the same (w is the scale less 1): give one of them.")
    guidance = args.guidance_scale if args.w is None else 1.0 + args.w
    wrong, kind = (STUDENT_SAMPLERS, "teacher") if suits is None else (TEACHER_SAMPLERS, "student")
    if args.sampler in wrong:
        raise ValueError(f"The {kind} cannot be sampled by {args.sampler}: choose another sampler or --adapter.")
    if args.gamma is not None and args.sampler != "gamma":
        raise ValueError("--gamma is of --sampler gamma alone: choose that sampler, or drop it.")
    if suits is None:
        steps = TEACHER_STEPS if args.steps is None else args.steps
        guidance = teacher_guidance if guidance is None else guidance
        return teacher_method(steps, guidance, eta=args.eta)
    if args.eta:
        raise ValueError("--eta is of the teacher's ddim: for the student choose --sampler gamma, or --adapter none.")
    steps = STUDENT_STEPS if args.steps is None else args.steps
    sampler = suits.samplers[0] if args.sampler is None else args.sampler
    gamma = {"deterministic": 0.0, "gamma": GAMMA if args.gamma is None else args.gamma}.get(sampler)
    method = student_method(steps, 1.0 if guidance is None else guidance, gamma)
    if complaint := suits.complaint(sampler, steps):
        print(f"warning: {complaint}", file=sys.stderr)
    return method


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr."""
    return run(build_parser(), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
