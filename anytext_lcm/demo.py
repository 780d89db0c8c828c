"""Command: the whole story in a few minutes on a laptop: distil the embedded teacher, draw with both, judge, compare.
`make demo`, or `python -m anytext_lcm.demo`
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from anytext_lcm.command import add_precision, natural, new_parser, positive, run
from anytext_lcm.files import atomic_folder
from anytext_lcm.training.recipes import DEFAULTS

METHODS = ("real", "teacher-50", "teacher-8", "teacher-4", "untrained-4", "student-4", "student-8")
GRID_ROWS = 8


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("demo", "Distils the embedded teacher, draws with teacher and student, and judges both.")
    add = parser.add_argument
    add(
        "--output",
        default="outputs/demo",
        help="gets grid.png, tables, charts, report.json and adapter/; replaced when all went well "
        "(default: %(default)s)",
    )
    add("--steps", type=positive, default=DEFAULTS.steps, help="updates of the adapter (default: %(default)s)")
    add("--prompts", type=positive, default=64, help="prompts to draw and judge, 2 or more (default: %(default)s)")
    add("--seed", type=natural, default=0, help="of training, prompts and noise (default: %(default)s)")
    add_precision(parser)
    return parser


def work(args: argparse.Namespace) -> str:
    """Distil, draw, judge, and write all of --output or nothing."""
    from anytext_lcm.adapter.lora import load_adapter
    from anytext_lcm.drawing.cores import use_available_cores
    from anytext_lcm.judging.compare import compare_methods
    from anytext_lcm.judging.panel import Panel
    from anytext_lcm.judging.report import write_report
    from anytext_lcm.model import loading, networks

    began, output = time.monotonic(), Path(args.output)
    panel = Panel.build(prompts=args.prompts, seed=args.seed)
    precision = loading.chosen_precision(None, args.precision)
    with atomic_folder(output) as folder:
        use_available_cores()
        model = loading.load_embedded_teacher(precision=precision)
        print(f"Distilling the embedded teacher: {args.steps} steps.", flush=True)
        seconds = distil_into(folder, args.steps, args.seed)
        load_adapter(model, folder / "adapter")
        print(f"Drawing and judging {args.prompts} prompts by {len(METHODS) - 1} methods.", flush=True)
        settings = {
            "config": networks.EMBEDDED_CONFIG.name,
            "adapter_steps": args.steps,
            "adapter_seconds": round(seconds, 1),
            "seed": args.seed,
            "precision": precision,
        }
        report, results = compare_methods(model, panel, METHODS, networks.EMBEDDED_GUIDANCE, settings=settings)
        write_report(folder, report, results, panel, GRID_ROWS)
    return (
        f"{output / 'grid.png'} shows the pictures, {output / 'report.json'} holds all measures; the student's adapter "
        f"is in {output / 'adapter'} ({(time.monotonic() - began) / 60:.1f} minutes)."
    )


def distil_into(folder: Path, steps: int, seed: int) -> float:
    """Train an adapter and leave it in folder/adapter and its logs in folder/logs. Returns the seconds it took."""
    from anytext_lcm.adapter.stored import CONFIG_FILE, WEIGHTS_FILE
    from anytext_lcm.training.recipes import distil

    began = time.monotonic()
    checkpoint = distil(folder / "training", steps, seed)
    (folder / "adapter").mkdir()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copy(checkpoint / name, folder / "adapter")
    shutil.move(folder / "training" / "logs", folder / "logs")
    shutil.rmtree(folder / "training")
    return time.monotonic() - began


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr."""
    return run(build_parser(), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
