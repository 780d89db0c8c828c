"""Command: train an LCM-LoRA adapter. `accelerate launch -m anytext_lcm.train`, or `python -m
anytext_lcm.train` for one process.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from anytext_lcm.training import memory
from anytext_lcm.training.loop import run_distillation
from anytext_lcm.training.processes import in_words
from anytext_lcm.training.settings import TrainSettings, add_flags, collect


def build_parser(estimating: bool = False) -> argparse.ArgumentParser:
    """Every setting is a flag; only an estimate does without an output_dir."""
    parser = argparse.ArgumentParser(prog="python -m anytext_lcm.train", description=__doc__.splitlines()[0])
    add_flags(parser, [setting.name for setting in fields(TrainSettings)], needed=not estimating)
    parser.add_argument("--estimate", action="store_true", help="print the memory it would need, and do not train")
    return parser


def show_estimate(settings: Mapping[str, Any]) -> None:
    """Prints the memory of these settings. Raises ValueError or FileNotFoundError."""
    if settings["config"] is None:
        raise ValueError("--estimate needs --config, the yaml of the network.")
    precision = settings["mixed_precision"] or "no"
    sizes = memory.estimate(TrainSettings(**settings))
    print(f"Memory of one process, batch {settings['train_batch_size']}, rank {settings['lora_rank']}, {precision}:")
    print(memory.table(sizes))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr for what the flags ask and cannot be."""
    arguments = sys.argv[1:] if arguments is None else arguments
    settings = collect(build_parser(estimating="--estimate" in arguments).parse_args(arguments))
    estimating = settings.pop("estimate")
    try:
        if estimating:
            show_estimate(settings)
            return 0
        last = run_distillation(settings)
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        if estimating or int(os.environ.get("WORLD_SIZE", 1)) == 1:  # of several processes one has said it already
            print(f"error: {in_words(error)}", file=sys.stderr)
        return 2
    if os.environ.get("RANK", "0") == "0":  # one line, however many processes were launched
        print(f"The adapter is in {last}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
