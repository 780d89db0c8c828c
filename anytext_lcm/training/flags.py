"""The settings of a training as flags of a command. It imports no torch."""

import argparse
from collections.abc import Collection
from dataclasses import MISSING
from typing import Any

from anytext_lcm.training.settings import setting_kinds


def add_flags(parser: argparse.ArgumentParser, names: Collection[str], free: bool = False) -> None:
    """Add one flag for each named field of TrainSettings, with its default and reason.

    free: none is required, and what is not given is absent from the parsed flags, so that a file's settings can stand
    below them.
    """
    # Not transformers.HfArgumentParser: its import takes most of a second, it has no flags for tuples, and it makes
    # a flag of every field where `cache_latents` wants some.
    for known, kind in setting_kinds():
        if known.name not in names:
            continue
        options: dict[str, Any] = {"help": known.metadata["help"].replace("%", "%%")}
        if known.default is MISSING:
            options["required"] = not free
        else:
            options["default"] = known.default
            if known.default is not None and kind is not bool:
                options["help"] += f" (default: {known.default!r})"
        if free:
            options["default"] = argparse.SUPPRESS
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif kind is tuple:
            options["nargs"] = "+"
        else:
            options["type"] = kind
        if known.metadata["choices"]:
            options["choices"] = known.metadata["choices"]
        parser.add_argument(f"--{known.name}", **options)


def collect(parsed: argparse.Namespace) -> dict[str, Any]:
    """Parsed flags as fields of TrainSettings: lists become tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in vars(parsed).items()}
