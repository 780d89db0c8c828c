"""Command: train an LCM-LoRA adapter. `accelerate launch -m anytext_lcm.train`, or `python -m anytext_lcm.train` for
one process.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from anytext_lcm.command import FAILURES, AlreadyReported, add_rate, check_rate, new_parser, run
from anytext_lcm.training.flags import add_flags, collect
from anytext_lcm.training.settings import TrainSettings

FREE = ("--estimate", "--dry_run", "--run")  # flags beside which no other is required


def build_parser(free: bool = False) -> argparse.ArgumentParser:
    """Every setting is a flag. free: as in `add_flags`."""
    parser = new_parser("train", "Trains an LCM-LoRA adapter.")
    parser.add_argument(
        "--run", metavar="FILE", help="settings of a run, as its folder's run.yaml has them; flags win over the file"
    )
    add_flags(parser, [setting.name for setting in fields(TrainSettings)], free)
    parser.add_argument(
        "--estimate", action="store_true", help="print memory, disk and time that it would need, and do not train"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="check all inputs, print the estimate as well, and do not train"
    )
    add_rate(parser)
    return parser


def work(args: argparse.Namespace) -> str | None:
    """Train, or say what that takes. Of several processes the first one alone has something to print."""
    from anytext_lcm.checks.everything import require_inputs

    several, first = int(os.environ.get("WORLD_SIZE", 1)) > 1, os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        settings, asked = split(args)
        if asked["estimate"] or asked["dry_run"]:
            return describe(settings, asked)
        require_inputs(settings)
    except FAILURES as error:
        if several and not first:  # the first process of each machine has found the same
            raise AlreadyReported from error
        raise
    from anytext_lcm.training.loop import run_distillation

    try:
        last = run_distillation(settings)
    except FAILURES as error:
        if several:  # the first of the processes to fail has printed it
            raise AlreadyReported from error
        raise
    return f"The adapter is in {last}" if os.environ.get("RANK", "0") == "0" else None


def split(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of TrainSettings, those of --run below the flags, and the other flags. Raises as `read_run`."""
    given = collect(args)
    names = {setting.name for setting in fields(TrainSettings)}
    settings = {name: value for name, value in given.items() if name in names}
    if args.run is not None:
        from anytext_lcm.training.run_file import read_run

        settings = read_run(args.run) | settings
    return settings, {name: value for name, value in given.items() if name not in names}


def newest(args: argparse.Namespace) -> str:
    """What a training that was stopped has kept, and how to go on."""
    if args.estimate or args.dry_run:
        return "An estimate keeps nothing."
    folder = split(args)[0]["output_dir"]
    # Not imported here: torch may be half imported, and a second import of it ends the process.
    checkpoints = getattr(sys.modules.get("anytext_lcm.training.checkpoints"), "checkpoints", None)
    if checkpoints is None:
        return f"the training had not begun; {folder} is as it was."
    found = list(checkpoints(folder).values())
    if not found:
        return f"{folder} has no checkpoint yet, so no update is kept; --checkpointing_steps says how often one comes."
    return f"{found[-1]} is kept; the same command with --resume_from_checkpoint latest goes on from there."


def describe(settings: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """What these settings need and take. asked: the flags that are no settings. Raises as `report`."""
    if "config" not in settings:
        flag = "--estimate" if asked["estimate"] else "--dry_run"
        raise ValueError(f"{flag} needs --config, the yaml of the network.")
    check_rate(asked["tflops"], asked["price"])
    from anytext_lcm.checks.everything import add_forecast, look_at_run, tell
    from anytext_lcm.checks.found import Findings
    from anytext_lcm.training import memory
    from anytext_lcm.training.fitting import fit_to_machine

    wanted = TrainSettings(**{"output_dir": "outputs/run"} | settings)
    wanted.check_values()
    wanted, decided = fit_to_machine(wanted)
    if asked["dry_run"]:
        found = look_at_run(wanted, asked["tflops"], asked["price"], folder_named="output_dir" in settings)
        return "\n".join([tell(found), *decided])
    sizes, found = memory.estimate(wanted), Findings()
    add_forecast(found, wanted, sizes, asked["tflops"], asked["price"])
    precision = wanted.mixed_precision or "no"
    head = f"Memory of one process, batch {wanted.train_batch_size}, rank {wanted.lora_rank}, {precision}:"
    return "\n".join([head, memory.table(sizes), "", found.table(), *decided])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 or, after Ctrl-C, 130 with one sentence on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    free = any(word.partition("=")[0] in FREE for word in arguments)
    return run(build_parser(free), work, arguments, newest)


if __name__ == "__main__":
    sys.exit(main())
