"""Command: is everything there for a training, where is what is missing published, and what will the run take?
`python -m anytext_lcm.doctor --config models_yaml/anytext2_sd15.yaml --data_list data.json`
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields

from anytext_lcm.command import add_rate, check_rate, new_parser, run
from anytext_lcm.model.networks import FULL_CONFIG, defaults_for
from anytext_lcm.training.flags import add_flags, collect
from anytext_lcm.training.settings import TrainSettings


def build_parser() -> argparse.ArgumentParser:
    """All settings of a training are flags, none is required."""
    parser = new_parser(
        "doctor",
        "Checks all that drawing and training need, says where what is missing is published, and estimates what a "
        "training takes. Loads nothing, writes nothing. --config is by default the full-size network's yaml.",
    )
    add_flags(parser, [setting.name for setting in fields(TrainSettings)], free=True)
    parser.add_argument("--run", metavar="FILE", help="settings of a run, as its folder's run.yaml has them")
    add_rate(parser)
    return parser


def work(args: argparse.Namespace) -> str:
    """Print what is there and what it takes. Raises Missing with a sentence for each thing that is missing."""
    given = collect(args)
    path, tflops, price = (given.pop(name) for name in ("run", "tflops", "price"))
    check_rate(tflops, price)
    from anytext_lcm.checks import published
    from anytext_lcm.checks.everything import look_at_run, tell
    from anytext_lcm.training.fitting import fit_to_machine
    from anytext_lcm.training.run_file import read_run

    if path is not None:
        given = read_run(path) | given
    settings = {"config": str(FULL_CONFIG), "output_dir": "outputs/run"} | given
    if settings.get("teacher_ckpt") is None and defaults_for(settings["config"]).checkpoint is None:
        settings["teacher_ckpt"] = published.CHECKPOINT
    wanted = TrainSettings(**settings)
    wanted.check_values()
    fitted, decided = fit_to_machine(wanted)
    found = look_at_run(fitted, tflops, price, data_needed=False, folder_named="output_dir" in given)
    return "\n".join([tell(found), *decided])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr for each thing that is missing."""
    return run(build_parser(), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
