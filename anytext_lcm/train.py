"""Command: train an LCM-LoRA adapter. `accelerate launch -m anytext_lcm.train`, or `python -m
anytext_lcm.train` for one process.
"""

import argparse
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, get_args, get_type_hints

from anytext_lcm import memory
from anytext_lcm.distill import run_distillation
from anytext_lcm.lcm.objectives import OBJECTIVES
from anytext_lcm.pipeline import defaults_for
from anytext_lcm.settings import LOSSES, OPTIMIZERS, PRECISIONS, TrainSettings

LISTS = ("lora_targets", "data_list", "fonts")
CHOICES = {
    "objective": tuple(OBJECTIVES), "mixed_precision": tuple(PRECISIONS), "loss": LOSSES, "optimizer": OPTIMIZERS
}  # fmt: skip


def add_flags(parser: argparse.ArgumentParser, names: Collection[str], needed: bool = True) -> None:
    """One flag for each of these fields of TrainSettings, with its default and the reason for it."""
    hints = get_type_hints(TrainSettings)
    for setting in fields(TrainSettings):
        if setting.name not in names:
            continue
        options: dict[str, Any] = {"help": setting.metadata["help"].replace("%", "%%")}
        if setting.default is MISSING:
            options["required"] = needed
        else:
            options["default"] = setting.default
            if setting.default is not None and not isinstance(setting.default, bool):
                options["help"] += f" (default: {setting.default!r})"
        kinds = [
            kind
            for kind in (get_args(hints[setting.name]) or [hints[setting.name]])
            if kind is not type(None)
        ]
        if hints[setting.name] is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif setting.name in LISTS:
            options["nargs"] = "+"
        else:
            options["type"] = kinds[0]
        if setting.name in CHOICES:
            options["choices"] = CHOICES[setting.name]
        parser.add_argument(f"--{setting.name}", **options)


def build_parser(estimating: bool = False) -> argparse.ArgumentParser:
    """Every setting is a flag; only an estimate does without an output_dir."""
    parser = argparse.ArgumentParser(prog="python -m anytext_lcm.train", description=__doc__.splitlines()[0])
    add_flags(parser, [setting.name for setting in fields(TrainSettings)], needed=not estimating)
    parser.add_argument("--estimate", action="store_true", help="print the memory it would need, and do not train")
    return parser


def collect(parsed: argparse.Namespace) -> dict[str, Any]:
    """Parsed flags as fields of TrainSettings."""
    return {k: tuple(v) if k in LISTS and v is not None else v for k, v in vars(parsed).items()}


def show_estimate(settings: Mapping[str, Any]) -> None:
    """Prints the memory of these settings. Raises ValueError or FileNotFoundError."""
    if settings["config"] is None:
        raise ValueError("--estimate needs --config, the yaml of the network.")
    defaults_for(settings["config"])  # says in words what is wrong with the file
    precision = settings["mixed_precision"] or "no"
    sizes = memory.estimate(
        settings["config"], settings["train_batch_size"], settings["lora_rank"], settings["lora_targets"], precision,
        settings["gradient_checkpointing"], settings["image_size"], bool(settings["latents"]),
        bool(settings["ema_decay"]), settings["optimizer"],
    )  # fmt: skip
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
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:  # of several processes one has said it already
            print(f"error: {error}", file=sys.stderr)
        return 2
    if os.environ.get("RANK", "0") == "0":  # one line, however many processes were launched
        print(f"The adapter is in {last}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
