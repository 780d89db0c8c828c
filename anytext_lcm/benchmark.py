"""Command: AnyText-benchmark, teacher and student in one go. `python -m anytext_lcm.benchmark --data FILE`

Reads the benchmark's own files (`laion_word/test1k.json`, `wukong_word/test1k.json`), draws every prompt as AnyText2's
evaluation does (eval/anytext2_singleGPU.py: 4 pictures, 20 guided DDIM steps, the first 20 lines of 20 characters, its
words behind the caption, its negative prompt and phrase, a font hint in the glyphs' font) and names the pictures as it
does, NAME_0.jpg ... NAME_3.jpg, so that its scripts for FID and CLIPScore run on the folders. Lines are cut out and
compared as eval/eval_dgocr.py does. The report names the differences, the reader and the noise first of all. An
interrupted run continues where it stopped.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anytext_lcm.command import (
    add_adapter,
    add_dry_run,
    add_guidance,
    add_network,
    add_precision,
    natural,
    new_parser,
    positive,
    run,
)
from anytext_lcm.data.fonts import PLAIN_FONT
from anytext_lcm.data.text import checked
from anytext_lcm.judging.defaults import ADDED_WORDS, BENCHMARK_METHODS, EVALUATION_NEGATIVE_PROMPT, SAMPLES, SEED
from anytext_lcm.model.networks import EMBEDDED_CONFIG, FULL_NEGATIVE_PROMPT, defaults_for

if TYPE_CHECKING:
    from anytext_lcm.judging.benchmark_run import Plan


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("benchmark", "Draws AnyText-benchmark by teacher and student and has the lines read.")
    add = parser.add_argument
    add("--data", required=True, help="test1k.json of laion_word or wukong_word")
    add(
        "--output",
        default="outputs/benchmark",
        help="gets a folder of pictures for each method, and report.json; goes on where it stopped "
        "(default: %(default)s)",
    )
    add(
        "--methods",
        nargs="+",
        default=list(BENCHMARK_METHODS),
        metavar="METHOD",
        help="teacher-N, teacher-N-eta1, student-N, student-N-deterministic, "
        f"student-N-gamma0.3, student-N-w0.5 or untrained-N in N steps (default: {' '.join(BENCHMARK_METHODS)})",
    )
    add("--limit", type=positive, help="prompts, the first ones (default: all)")
    add("--samples", type=positive, default=SAMPLES, help="pictures of each prompt (default: %(default)s, upstream's)")
    add(
        "--seed",
        type=natural,
        default=SEED,
        help="of the first picture of each prompt (default: %(default)s, upstream's)",
    )
    add(
        "--font",
        default=PLAIN_FONT,
        help="of glyphs and font hint, file or matplotlib font; upstream's is Arial Unicode, and Chinese needs one "
        "that has it (default: %(default)s)",
    )
    add("--no_font_hint", action="store_true", help="leave the font open")
    add("--words", default=ADDED_WORDS, help="behind every caption (default: %(default)s)")
    add_guidance(parser)
    add_adapter(parser)
    add_network(parser, str(EMBEDDED_CONFIG))
    add_precision(parser)
    add_dry_run(parser)
    return parser


def work(args: argparse.Namespace) -> str:
    """Check what can be checked before the weights are loaded, then draw, read and write."""
    from anytext_lcm.adapter.lora import resolve_adapter
    from anytext_lcm.checks.network import require_network
    from anytext_lcm.drawing.cores import use_available_cores
    from anytext_lcm.drawing.methods import check_negative, parse_method
    from anytext_lcm.judging.benchmark_run import Plan, check_plan, run_benchmark
    from anytext_lcm.judging.benchmark_set import REPORT, format_table
    from anytext_lcm.model.loading import chosen_precision, load_chosen

    defaults = defaults_for(args.config)
    guidance = defaults.guidance_scale if args.guidance_scale is None else args.guidance_scale
    methods = tuple(parse_method(name, guidance) for name in dict.fromkeys(args.methods))
    students = [method for method in methods if method.adapter]
    wanted = {resolve_adapter(args.adapter, method.steps) for method in students} or {resolve_adapter(args.adapter)}
    if len(wanted) > 1:
        names = ", ".join(method.name for method in students)
        raise ValueError(f"{names} take different shipped adapters: measure them in two runs, or name one --adapter.")
    [adapter] = wanted
    if adapter is None and any(method.adapter for method in methods):
        raise ValueError("There is no student without an adapter: name one, or leave its methods out.")
    check_negative(args.negative_prompt, methods)
    precision = chosen_precision(args.device, args.precision)
    negative = args.negative_prompt
    if negative is None:  # the demo's stands for AnyText2 where nothing is said
        own = defaults.negative_prompt
        negative = EVALUATION_NEGATIVE_PROMPT if own == FULL_NEGATIVE_PROMPT else own
    checked(negative, "The negative prompt")
    checked(args.words, "The text of --words")
    plan = Plan(
        data=args.data,
        output=Path(args.output),
        methods=methods,
        config=args.config,
        ckpt=args.ckpt,
        adapter=adapter,
        adapter_name=args.adapter,
        font=str(args.font),
        font_hint=not args.no_font_hint,
        words=args.words,
        samples=args.samples,
        seed=args.seed,
        precision=precision,
        guidance_scale=guidance,
        negative_prompt=negative,
    )
    adapters = [] if adapter is None else [adapter]
    if args.dry_run:
        return describe(plan, adapters, args.limit)
    require_network(args.config, args.ckpt, "--ckpt", adapters)
    ready = check_plan(plan, args.limit)
    use_available_cores()
    report = run_benchmark(load_chosen(args.config, args.ckpt, args.device, precision), ready)
    return f"{format_table(report)}\n{plan.output / REPORT}"


def describe(plan: "Plan", adapters: Sequence[Path], limit: int | None) -> str:
    """Print what is there and what the plan takes. Raises Missing for what is not there."""
    from anytext_lcm.checks.drawing import add_work, look_at_drawing
    from anytext_lcm.checks.everything import tell
    from anytext_lcm.judging.benchmark_run import check_plan

    found = look_at_drawing(plan.config, plan.ckpt, adapters, plan.precision)
    if found.complete:  # the plan's checks read the weights' checksum
        with found.looking_at("benchmark"):
            ready = check_plan(plan, limit)
            lines = sum(len(task.lines) for task in ready.tasks)
            lacking = f", {ready.unwritten} of which {Path(plan.font).name} lacks" if ready.unwritten else ""
            found.ok("benchmark", f"{plan.data}: {len(ready.tasks):,} prompts with {lines:,} lines{lacking}")
            side = defaults_for(plan.config).size[0]
            add_work(found, plan.config, side, plan.methods, len(ready.tasks) * plan.samples)
    return tell(found)


def kept(args: argparse.Namespace) -> str:
    """What a benchmark that was stopped has kept, and how to go on."""
    return f"{args.output} keeps the pictures that were complete; the same command goes on from there."


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr."""
    return run(build_parser(), work, arguments, kept)


if __name__ == "__main__":
    sys.exit(main())
