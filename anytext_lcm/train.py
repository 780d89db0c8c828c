"""Command: train an LCM-LoRA adapter. `accelerate launch -m anytext_lcm.train`, or `python -m
anytext_lcm.train` for one process.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any, get_args, get_type_hints

from anytext_lcm.distill import run_distillation
from anytext_lcm.lcm.objectives import OBJECTIVES
from anytext_lcm.settings import PRECISIONS, TrainSettings

LISTS = ("lora_targets", "data_list", "fonts")
CHOICES = {"objective": tuple(OBJECTIVES), "mixed_precision": tuple(PRECISIONS)}


def build_parser() -> argparse.ArgumentParser:
    """One flag for each field of TrainSettings, with its default and the reason for it."""
    parser = argparse.ArgumentParser(prog="python -m anytext_lcm.train", description=__doc__.splitlines()[0])
    hints = get_type_hints(TrainSettings)
    for setting in fields(TrainSettings):
        options: dict[str, Any] = {"help": setting.metadata["help"].replace("%", "%%")}
        if setting.default is MISSING:
            options["required"] = True
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
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr for what the flags ask and cannot be."""
    settings = vars(build_parser().parse_args(arguments))
    for name in LISTS:
        if settings[name] is not None:
            settings[name] = tuple(settings[name])
    try:
        last = run_distillation(settings)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if os.environ.get("RANK", "0") == "0":  # one line, however many processes were launched
        print(f"The adapter is in {last}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
