"""Command: train an LCM-LoRA adapter. `accelerate launch -m anytext_lcm.train`, or `python -m anytext_lcm.train` for
one process.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from anytext_lcm.command import FAILURES, AlreadyReported, new_parser, run
from anytext_lcm.training.settings import TrainSettings, add_flags, collect


def build_parser(estimating: bool = False) -> argparse.ArgumentParser:
    """Every setting is a flag. estimating: config and output_dir may be missing."""
    parser = new_parser("train", "Trains an LCM-LoRA adapter.")
    add_flags(parser, [setting.name for setting in fields(TrainSettings)], needed=not estimating)
    parser.add_argument("--estimate", action="store_true", help="print the memory it would need, and do not train")
    return parser


def work(args: argparse.Namespace) -> str | None:
    """Train, or estimate the memory. Of several processes the first one alone has something to print."""
    settings = collect(args)
    if settings.pop("estimate"):
        return describe_memory(settings)
    from anytext_lcm.training.loop import run_distillation

    try:
        last = run_distillation(settings)
    except FAILURES as error:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # the first of the processes to fail has printed it
            raise AlreadyReported from error
        raise
    return f"The adapter is in {last}" if os.environ.get("RANK", "0") == "0" else None


def newest(args: argparse.Namespace) -> str:
    """What a training that was stopped has kept, and how to go on."""
    if args.estimate:
        return "An estimate keeps nothing."
    from anytext_lcm.training.checkpoints import checkpoints

    found = list(checkpoints(args.output_dir).values())
    if not found:
        return f"{args.output_dir} has no checkpoint yet; start again with --resume_from_checkpoint latest."
    return f"{found[-1]} is kept; the same command with --resume_from_checkpoint latest goes on from there."


def describe_memory(settings: Mapping[str, Any]) -> str:
    """The memory of these settings by part. Raises ValueError or FileNotFoundError."""
    if settings["config"] is None:
        raise ValueError("--estimate needs --config, the yaml of the network.")
    from anytext_lcm.training import memory

    precision = settings["mixed_precision"] or "no"
    wanted = TrainSettings(**settings)
    wanted.check_values()
    sizes = memory.estimate(wanted)
    head = f"Memory of one process, batch {settings['train_batch_size']}, rank {settings['lora_rank']}, {precision}:"
    return f"{head}\n{memory.table(sizes)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 or, after Ctrl-C, 130 with one sentence on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return run(build_parser(estimating="--estimate" in arguments), work, arguments, newest)


if __name__ == "__main__":
    sys.exit(main())
