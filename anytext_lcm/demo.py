"""Command: the whole story in a few minutes on a laptop: distil the embedded teacher, draw with both, judge, compare.
`make demo`, or `python -m anytext_lcm.demo`
"""

import argparse
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anytext_lcm.command import add_precision, named, natural, new_parser, positive, run
from anytext_lcm.files import atomic_folder
from anytext_lcm.training.recipes import DEFAULTS, SHIPPED_STEPS

METHODS = ("real", "teacher-50", "teacher-8", "teacher-4", "untrained-4", "student-4", "student-8")


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("demo", "Distils the embedded teacher, draws with teacher and student, and judges both.")
    add = parser.add_argument
    add(
        "--output",
        type=named,
        default="outputs/demo",
        help="gets grid.png, table.md, charts, report.json and adapter/; replaced when all went well "
        "(default: %(default)s)",
    )
    shipped = f"updates of the adapter; the shipped one has {SHIPPED_STEPS} (default: %(default)s)"
    add("--steps", type=positive, default=DEFAULTS.steps, help=shipped)
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
        print(f"1 of 2. Distil the small teacher into an adapter: {args.steps} updates.", flush=True)
        seconds = distil_into(folder, args.steps, args.seed)
        load_adapter(model, folder / "adapter")
        print(f"2 of 2. Draw {args.prompts} prompts with teacher and student, and read the text.", flush=True)
        settings = {
            "config": networks.EMBEDDED_CONFIG.name,
            "adapter_steps": args.steps,
            "adapter_seconds": round(seconds, 1),
            "seed": args.seed,
            "precision": precision,
        }
        guidance = networks.EMBEDDED_GUIDANCE
        report, results = compare_methods(model, panel, METHODS, guidance, settings=settings, table=False)
        write_report(folder, report, results, panel)
    return closing(report, output, (time.monotonic() - began) / 60)


def closing(report: Mapping[str, Any], output: Path, minutes: float) -> str:
    """What the demo ends with: four numbers of teacher, untrained network and student, a picture, what to do next."""
    from anytext_lcm.figures.text_table import text_table
    from anytext_lcm.judging.tables import times_of

    _, speed, _ = times_of(report)
    rows = []
    shown = [next((name for name in METHODS if name.startswith(kind)), None) for kind in ("untrained", "student")]
    for name in filter(None, (report["reference"], *shown)):
        row = report["methods"][name]
        read, real, things = row["accuracy"], row["distribution"], row.get("objects_obeyed")
        cells = [f"{row[speed]['denoise']:.1f}", "{value:.2f} [{low:.2f}, {high:.2f}]".format(**read)]
        cells += [f"{things['value']:.2f}" if things else "-", f"{real['kernel']['value']:.2f}" if real else "-"]
        rows.append([name, *cells])
    head = ["", "denoising, times as fast", "lines read", "objects obeyed", "distance to real pictures"]
    table = text_table(head, rows, align="lr")
    draw = '--prompt "a blue background with a red circle, text" --line "OPEN@10,12,118,52#yellow"'
    python = Path(sys.executable)
    python = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    return f"""
{table}
The number after a dash counts the steps; "untrained" is the student before its training. Brackets are 95 % intervals
over {report["panel"]["prompts"]} prompts. A lower distance is nearer.

The pictures side by side: {output / "grid.png"}
All methods and measures:  {output / "table.md"}

Next, draw a text of your own, then read how it works in the repository's notebooks/03_lcm_maths.ipynb:
  {python} -m anytext_lcm.sample --adapter {output / "adapter"} {draw}
Done in {minutes:.1f} minutes."""


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
