"""Command: train the same student in other ways for equal compute and compare how readable and how real each is.
`python -m anytext_lcm.ablate --output outputs/ablation`
"""

import argparse
import sys
from collections.abc import Sequence

from anytext_lcm.command import named, natural, new_parser, panel_lines, positive, run
from anytext_lcm.model.networks import EMBEDDED_CONFIG
from anytext_lcm.training.recipes import DEFAULTS, RUNS


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("ablate", "Trains variants of the student for equal compute and judges them on one panel.")
    add = parser.add_argument
    add(
        "--output",
        type=named,
        default="outputs/ablation",
        help="gets results.json, table.md and a folder for each run (default: %(default)s)",
    )
    add("--runs", nargs="+", default=RUNS, metavar="RUN", help=f"among {', '.join(map(repr, RUNS))}")
    add(
        "--steps",
        type=positive,
        default=DEFAULTS.steps,
        help="updates of the default; the others cost the same (default: %(default)s)",
    )
    add("--lines", type=panel_lines, default=256, help="lines of text to read (default: %(default)s)")
    add("--seed", type=natural, default=0, help="of training and panel (default: %(default)s)")
    add("--config", default=str(EMBEDDED_CONFIG), help="yaml of the network (default: the embedded one)")
    add("--teacher_ckpt", help="its weights (default: those that come with the yaml)")
    return parser


def work(args: argparse.Namespace) -> str:
    """Train, judge and write; returns the table."""
    from anytext_lcm.checks.network import require_network
    from anytext_lcm.drawing.cores import use_available_cores
    from anytext_lcm.training.ablation import ablate, format_table

    require_network(args.config, args.teacher_ckpt, "--teacher_ckpt")
    use_available_cores()
    network = {"config": args.config, "teacher_ckpt": args.teacher_ckpt}
    return format_table(ablate(args.output, args.runs, args.steps, args.lines, args.seed, **network))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr."""
    return run(build_parser(), work, arguments, kept)


def kept(args: argparse.Namespace) -> str:
    """What is there after Ctrl-C, and how to begin anew."""
    return (
        f"{args.output} keeps the runs that were trained, but no ablation goes on with them: delete their folders or "
        "name another --output."
    )


if __name__ == "__main__":
    sys.exit(main())
