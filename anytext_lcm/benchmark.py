"""Command: AnyText-benchmark, teacher and student in one go. `python -m anytext_lcm.benchmark --data FILE`

Reads the benchmark's own files (`laion_word/test1k.json`, `wukong_word/test1k.json`), draws every prompt as AnyText2's
evaluation does (eval/anytext2_singleGPU.py: 4 pictures, 20 guided DDIM steps, the first 20 lines of 20 characters, its
words behind the caption, its negative prompt and phrase, a font hint in the glyphs' font) and names the pictures as it
does, NAME_0.jpg ... NAME_3.jpg, so that its scripts for FID and CLIPScore run on the folders. Lines are cut out and
compared as eval/eval_dgocr.py does. The report names the differences, the reader and the noise first of all. An
interrupted run continues where it stopped.

`--pictures NAME=FOLDER ...` scores what any model drew for the same prompts, by the same measures, and loads no network
but the reader.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anytext_lcm.command import (
    add_adapter,
    add_dry_run,
    add_guidance,
    add_network,
    add_precision,
    named,
    natural,
    new_parser,
    positive,
    run,
)
from anytext_lcm.data.fonts import PLAIN_FONT
from anytext_lcm.data.text import checked
from anytext_lcm.judging.defaults import (
    ADDED_WORDS,
    BENCHMARK_METHODS,
    EVALUATION_NEGATIVE_PROMPT,
    PANEL,
    SAMPLES,
    SEED,
)
from anytext_lcm.model.networks import EMBEDDED_CONFIG, FULL_NEGATIVE_PROMPT, defaults_for

if TYPE_CHECKING:
    from anytext_lcm.judging.benchmark_run import Plan

# Flags of drawing, which say nothing about pictures that are there already.
DRAWING = "methods seed font no_font_hint words adapter guidance_scale negative_prompt config ckpt device precision"
DRAWN, SCORED = "outputs/benchmark", "outputs/yardstick"  # defaults of --output


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "benchmark",
        "Draws AnyText-benchmark by teacher and student, or takes pictures of any model, and has the lines read.",
        "python -m anytext_lcm.benchmark --data laion_word/test1k.json --pictures teacher=DIR mine=DIR --real DIR",
    )
    add = parser.add_argument
    add(
        "--data",
        type=named,
        default=PANEL,
        metavar=f"FILE|{PANEL}",
        help="test1k.json of laion_word or wukong_word, or the embedded network's own prompts (default: %(default)s)",
    )
    add(
        "--pictures",
        nargs="+",
        metavar="NAME=FOLDER",
        help="score these instead of drawing: folders with NAME_0.jpg ... NAME_3.jpg for each prompt, NAME being its "
        "img_name up to the first dot; also .png and .webp",
    )
    add(
        "--reference",
        type=named,
        metavar="NAME",
        help="the method or pictures that all are compared with, prompt by prompt, and at whose size lines are read "
        "(default: the teacher with most steps, or the first of --pictures)",
    )
    add(
        "--real",
        type=named,
        metavar="FOLDER",
        help=f"real pictures, to measure the distance to ({PANEL} has its own)",
    )
    add(
        "--partial",
        action="store_true",
        help="with --pictures: score the prompts that every folder has whole, instead of refusing when one is missing",
    )
    add(
        "--write_prompts",
        type=named,
        metavar="FILE",
        help="write the prompts in the layout of test1k.json, for another model to draw, and do nothing else",
    )
    add(
        "--output",
        type=named,
        help="gets report.json, table.md, chart.png, grid.png and a folder of pictures for each method that is drawn; "
        f"drawing goes on where it stopped (default: {DRAWN}, with --pictures {SCORED})",
    )
    add(
        "--methods",
        nargs="+",
        default=list(BENCHMARK_METHODS),
        metavar="METHOD",
        help="teacher-N, teacher-N-eta1, student-N, student-N-deterministic, "
        f"student-N-gamma0.3, student-N-w0.5 or untrained-N in N steps (default: {' '.join(BENCHMARK_METHODS)})",
    )
    add("--limit", type=positive, help=f"prompts, the first ones (default: all; of the {PANEL} 64)")
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
    add("--words", help=f"behind every caption (default: {ADDED_WORDS}; of the {PANEL} none)")
    add_guidance(parser)
    add_adapter(parser)
    add_network(parser, str(EMBEDDED_CONFIG))
    add_precision(parser)
    add_dry_run(parser)
    return parser


def work(args: argparse.Namespace) -> str:
    """Check what can be checked before anything is loaded, then draw or take, read and write."""
    if args.write_prompts is not None:
        return write(args)
    if args.pictures is not None:
        return score(args)
    if args.partial:
        raise ValueError("--partial is of --pictures: what is drawn here is whole.")
    return draw(args)


def given_of(args: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """Those of the named flags that were given, with another value than the default."""
    usual = build_parser()
    return [f"--{name}" for name in names if getattr(args, name) != usual.get_default(name)]


def write(args: argparse.Namespace) -> str:
    """Write the prompts. Raises ValueError for flags that do not choose them, and for the file that they are from."""
    from anytext_lcm.judging.benchmark_set import read_tasks, write_prompts

    if given := given_of(args, vars(args).keys() - {"write_prompts", "data", "limit"}):
        raise ValueError(f"{', '.join(sorted(given))} says nothing to --write_prompts, which only writes: drop it.")
    tasks, path = read_tasks(args.data, args.limit), Path(args.write_prompts)
    if args.data != PANEL and path.exists() and path.samefile(args.data):
        raise ValueError(f"{path} is the file of --data, which would be overwritten: name another.")
    write_prompts(path, tasks)
    return args.write_prompts


def score(args: argparse.Namespace) -> str:
    """Score the folders of --pictures."""
    if given := given_of(args, DRAWING.split()):
        raise ValueError(f"{', '.join(given)} is of drawing, and --pictures are drawn already: drop it.")
    folders = read_pictures(args.pictures)

    from anytext_lcm.drawing.cores import use_available_cores
    from anytext_lcm.judging.benchmark_pictures import check_scoring
    from anytext_lcm.judging.benchmark_report import REPORT, check_report, format_table
    from anytext_lcm.judging.benchmark_run import score_folders
    from anytext_lcm.judging.benchmark_set import read_tasks

    output, reference = output_of(args), args.reference or next(iter(folders))
    tasks = read_tasks(args.data, args.limit)
    scoring = check_scoring(tasks, folders, args.samples, reference, args.real, args.partial, args.data == PANEL)
    check_report(output, [*folders.values(), *([args.real] if args.real is not None else [])])
    if args.dry_run:
        return f"{len(scoring.tasks) * args.samples} pictures in each of {', '.join(folders)}: all are there."
    use_available_cores()
    report = score_folders(scoring, args.data, output)
    return f"{format_table(report)}\n{output / REPORT}"


def read_pictures(words: Sequence[str]) -> dict[str, Path]:
    """Folders by name, in their order. Raises ValueError for a word that is not NAME=FOLDER and for a name twice."""
    folders: dict[str, Path] = {}
    for word in words:
        name, _, folder = word.partition("=")
        if not folder or not re.fullmatch(r"[\w.@+-]+", name):
            raise ValueError(
                f"{word!r} is not NAME=FOLDER, as in mine=outputs/pictures: give each folder a name of letters, digits "
                "and _ . @ + - alone."
            )
        if name in folders:
            raise ValueError(f"Two folders of --pictures are named {name!r}: give each a name of its own.")
        folders[name] = Path(folder)
    return folders


def draw(args: argparse.Namespace) -> str:
    """Draw the prompts by --methods, and score what was drawn."""
    from anytext_lcm.checks.network import require_network
    from anytext_lcm.drawing.cores import use_available_cores
    from anytext_lcm.judging.benchmark_report import REPORT, format_table
    from anytext_lcm.judging.benchmark_run import check_plan, run_benchmark
    from anytext_lcm.model.loading import load_chosen

    plan = plan_of(args)
    adapters = [] if plan.adapter is None else [plan.adapter]
    if args.dry_run:
        return describe(plan, adapters, args.limit)
    require_network(args.config, args.ckpt, "--ckpt", adapters)
    ready = check_plan(plan, args.limit)
    use_available_cores()
    report = run_benchmark(load_chosen(args.config, args.ckpt, args.device, plan.precision), ready)
    return f"{format_table(report)}\n{plan.output / REPORT}"


def plan_of(args: argparse.Namespace) -> "Plan":
    """What to draw, from the flags. Raises ValueError or FileNotFoundError."""
    from anytext_lcm.adapter.lora import resolve_adapter
    from anytext_lcm.drawing.methods import check_negative, parse_method
    from anytext_lcm.judging.benchmark_run import Plan
    from anytext_lcm.model.loading import chosen_precision

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
    negative, words = args.negative_prompt, args.words
    if negative is None:  # the demo's stands for AnyText2 where nothing is said
        own = defaults.negative_prompt
        negative = EVALUATION_NEGATIVE_PROMPT if own == FULL_NEGATIVE_PROMPT else own
    if words is None:
        words = "" if args.data == PANEL else ADDED_WORDS
    checked(negative, "The negative prompt")
    checked(words, "The text of --words")
    return Plan(
        data=args.data,
        output=output_of(args),
        methods=methods,
        config=args.config,
        ckpt=args.ckpt,
        adapter=adapter,
        adapter_name=args.adapter,
        font=str(args.font),
        font_hint=not args.no_font_hint,
        words=words,
        samples=args.samples,
        seed=args.seed,
        precision=precision,
        guidance_scale=guidance,
        negative_prompt=negative,
        reference=args.reference,
        real=args.real,
    )


def output_of(args: argparse.Namespace) -> Path:
    """--output or its default."""
    return Path(args.output or (DRAWN if args.pictures is None else SCORED))


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
    if args.pictures is not None or args.write_prompts is not None:
        return "nothing was written; the same command begins anew."
    return f"{output_of(args)} keeps the pictures that were complete; the same command goes on from there."


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr."""
    return run(build_parser(), work, arguments, kept)


if __name__ == "__main__":
    sys.exit(main())
