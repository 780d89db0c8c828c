"""The whole story in a few minutes on a laptop: distil the embedded teacher, draw with both, judge, compare.
`make demo`, or `python -m anytext_lcm.demo --help`.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from anytext_lcm.adapter.lora import CONFIG_FILE, WEIGHTS_FILE, load_adapter
from anytext_lcm.drawing import cores
from anytext_lcm.files import whole_directory
from anytext_lcm.judging.compare import compare_methods
from anytext_lcm.judging.panel import Panel
from anytext_lcm.judging.report import write_report
from anytext_lcm.model import loading, networks
from anytext_lcm.training.recipes import DEFAULTS, distil

METHODS = ("real", "teacher-50", "teacher-8", "teacher-4", "untrained-4", "student-4", "student-8")


GRID_ROWS = 8


def _positive(text: str) -> int:
    """An integer from 1 on, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 1 on")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anytext_lcm.demo",
        description="Distils the embedded teacher, draws with teacher and student, and judges both.",
    )
    add = parser.add_argument
    add(
        "--output",
        default="outputs/demo",
        help="gets grid.png, tables, charts, report.json and adapter/; replaced when all went well "
        "(default: %(default)s)",
    )
    add("--steps", type=_positive, default=DEFAULTS.steps, help="updates of the adapter (default: %(default)s)")
    add("--prompts", type=_positive, default=64, help="prompts to draw and judge, 2 or more (default: %(default)s)")
    add("--seed", type=int, default=0, help="of training, prompts and noise (default: %(default)s)")
    return parser


def run(args: argparse.Namespace) -> Path:
    """Writes into a folder beside --output and renames it at the end."""
    panel = Panel.build(prompts=args.prompts, seed=args.seed)
    output = Path(args.output)
    with whole_directory(output) as folder:
        cores.use_available_cores()
        model = loading.load_embedded_teacher()
        began = time.monotonic()
        print(f"Distilling the embedded teacher: {args.steps} steps.", flush=True)
        checkpoint = distil(folder / "training", args.steps, args.seed)
        (folder / "adapter").mkdir()
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copy(checkpoint / name, folder / "adapter")
        shutil.move(folder / "training" / "logs", folder / "logs")
        shutil.rmtree(folder / "training")
        seconds = time.monotonic() - began
        load_adapter(model, folder / "adapter")

        print(f"Drawing and judging {args.prompts} prompts by {len(METHODS) - 1} methods.", flush=True)
        settings = {
            "config": networks.EMBEDDED_CONFIG.name,
            "adapter_steps": args.steps,
            "adapter_seconds": round(seconds, 1),
            "seed": args.seed,
        }
        report, results = compare_methods(model, panel, METHODS, networks.EMBEDDED_GUIDANCE, settings=settings)
        write_report(folder, report, results, panel, GRID_ROWS)
    return output


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr for what is asked and cannot be."""
    args = build_parser().parse_args(arguments)
    began = time.monotonic()
    try:
        output = run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    minutes = (time.monotonic() - began) / 60
    print(
        f"{output / 'grid.png'} shows the pictures, {output / 'report.json'} holds all measures; "
        f"the student's adapter is in {output / 'adapter'} ({minutes:.1f} minutes)."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
