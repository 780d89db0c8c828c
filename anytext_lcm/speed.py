"""Command: training step and sampler against the way public scripts write them. `python -m anytext_lcm.speed`

On a CPU the embedded network, on a GPU the full-size one with random weights. Both sides work on the same weights,
pictures, LoRA targets, noise and timesteps. First the losses and gradients of both sides are compared. Then each
variant of the step runs in a process of its own, which gives its time, peak memory, FLOPs by part and profile. Writes
speed.json, speed.md and speed.png.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from anytext_lcm.drawing.cores import use_available_cores
from anytext_lcm.files import check_writable, whole_file
from anytext_lcm.model.loading import default_device
from anytext_lcm.model.networks import EMBEDDED_CONFIG, defaults_for
from anytext_lcm.timing.measure import measure
from anytext_lcm.timing.report import format_report
from anytext_lcm.timing.variants import FULL_CONFIG, Options
from anytext_lcm.training.settings import PRECISIONS


def _fitting(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report without the steps that did not fit, for the chart."""
    variants = {name: row for name, row in report["training"]["variants"].items() if row["samples_per_second"]}
    return {**report, "training": {**report["training"], "variants": variants}}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anytext_lcm.speed", description=__doc__.splitlines()[0].removeprefix("Command: ")
    )
    parser.add_argument("--config", help="network; by default the embedded one, on a GPU the full-size one")
    parser.add_argument("--ckpt", help="its weights; without them random ones, but for the embedded network")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="by default a GPU where there is one")
    parser.add_argument("--precision", choices=PRECISIONS, help="by default no on a CPU, bf16 on a GPU")
    parser.add_argument("--batch", type=int, help="pictures at once; by default 4, on a GPU 12")
    parser.add_argument("--rank", type=int, default=64, help="of the adapter")
    parser.add_argument("--repeats", type=int, default=7, help="timed turns of each step; half as many of the samplers")
    parser.add_argument("--steps", type=int, default=50, help="of the teacher's sampler")
    parser.add_argument("--out", default="outputs/speed", help="folder of speed.json, speed.md and speed.png")
    return parser


def read_options(arguments: argparse.Namespace) -> Options:
    """Raises ValueError or FileNotFoundError for what the flags ask and cannot be."""
    device = arguments.device or default_device().type
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("There is no GPU here; nothing was measured.")
    cuda = device == "cuda"
    config = arguments.config or str(FULL_CONFIG if cuda else EMBEDDED_CONFIG)
    batch = (12 if cuda else 4) if arguments.batch is None else arguments.batch
    given = vars(arguments) | {"batch": batch}
    for name in ("batch", "rank", "repeats", "steps"):
        if given[name] < 1:
            raise ValueError(f"--{name} must be a positive integer, not {given[name]}.")
    precision = arguments.precision or ("bf16" if cuda else "no")
    if precision == "fp16" and not cuda:
        raise ValueError("--precision fp16 needs a GPU; use bf16 or no on a CPU.")
    side = defaults_for(config).size[0]
    return Options(
        config, arguments.ckpt, device, precision, batch, arguments.rank, arguments.repeats, arguments.steps, side
    )


def main(words: Sequence[str] | None = None) -> int:
    """Exit code 0; 2 with one sentence on stderr for what the flags ask and cannot be, 1 when the two sides differ."""
    arguments = build_parser().parse_args(words)
    use_available_cores()
    try:
        options = read_options(arguments)
        folder = check_writable(Path(arguments.out) / "speed.json")
        report = measure(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (ArithmeticError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    from anytext_lcm.timing.chart import speed_chart  # matplotlib, for this alone

    table = format_report(report)
    for name, text in (("speed.json", json.dumps(report, indent=2) + "\n"), ("speed.md", table)):
        with whole_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    with whole_file(folder / "speed.png") as temporary:
        speed_chart(_fitting(report)).savefig(temporary)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
