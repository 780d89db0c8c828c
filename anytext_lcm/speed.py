"""Command: training step and sampler against the way public scripts write them. `python -m anytext_lcm.speed`

On a CPU the embedded network, on a GPU the full-size one with random weights. Variants of the step come in pairs: both
sides have the same weights, pictures, LoRA targets, noise and timesteps, the same gradient checkpointing and the same
stored latents, and no other two are divided by each other. First the losses and gradients of each pair are compared.
Then each variant runs in a process of its own, which gives its time, peak memory, FLOPs by part and profile. Samplers
are compared with upstream's in its default of 20 steps and in 50. Writes speed.json, speed.md and speed.png.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytext_lcm.command import named, new_parser, positive, run
from anytext_lcm.files import atomic_file, check_writable
from anytext_lcm.model.networks import EMBEDDED_CONFIG, FULL_CONFIG, defaults_for
from anytext_lcm.timing import PARTS
from anytext_lcm.training.settings import PRECISIONS

if TYPE_CHECKING:
    from anytext_lcm.timing.variants import Options


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("speed", "Training step and sampler against the way public scripts write them.")
    add = parser.add_argument
    add("--config", help="network (default: the embedded one, on a GPU the full-size one)")
    add("--ckpt", help="its weights (default: random ones, but for the embedded network)")
    add("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
    add("--precision", choices=tuple(PRECISIONS), help="default: no on a CPU, bf16 on a GPU")
    add("--batch", type=positive, help="pictures at once (default: 4, on a GPU 12)")
    add("--rank", type=positive, default=64, help="of the adapter (default: %(default)s)")
    add(
        "--repeats",
        type=positive,
        default=7,
        help="timed turns of each step; half as many of the samplers (default: %(default)s)",
    )
    add(
        "--steps",
        type=positive,
        nargs="+",
        default=[20, 50],
        help="of upstream's and the teacher's samplers (default: 20, upstream's own, and 50)",
    )
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="of the report (default: both)")
    add(
        "--out",
        type=named,
        default="outputs/speed",
        help="folder of speed.json, speed.md and speed.png (default: %(default)s)",
    )
    return parser


def work(args: argparse.Namespace) -> str:
    """Measure, then write the three files; returns the tables."""
    from anytext_lcm.drawing.cores import use_available_cores
    from anytext_lcm.timing.measure import measure

    use_available_cores()
    options = read_options(args)
    folder = check_writable(Path(args.out) / "speed.json")
    try:
        report = measure(options)
    except (ArithmeticError, RuntimeError) as error:  # the two sides differ, or a process was killed
        raise ValueError(str(error)) from error
    return write_report(folder, report)


def read_options(args: argparse.Namespace) -> "Options":
    """What the flags ask for on this machine. Raises ValueError or FileNotFoundError."""
    import torch

    from anytext_lcm.model.loading import default_device
    from anytext_lcm.timing.variants import Options

    device = args.device or default_device().type
    cuda = device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise ValueError("There is no GPU here; nothing was measured.")
    precision = args.precision or ("bf16" if cuda else "no")
    if precision == "fp16" and not cuda:
        raise ValueError("--precision fp16 needs a GPU; use bf16 or no on a CPU.")
    config = args.config or str(FULL_CONFIG if cuda else EMBEDDED_CONFIG)
    return Options(
        config=config,
        ckpt=args.ckpt,
        device=device,
        precision=precision,
        batch=args.batch or (12 if cuda else 4),
        rank=args.rank,
        repeats=args.repeats,
        steps=tuple(dict.fromkeys(args.steps)),
        side=defaults_for(config).size[0],
        parts=tuple(part for part in PARTS if part in args.parts),
    )


def write_report(folder: Path, report: Mapping[str, Any]) -> str:
    """Write numbers, tables and chart into a folder. Returns the tables."""
    from anytext_lcm.timing.chart import speed_chart
    from anytext_lcm.timing.report import format_report

    table = format_report(report)
    for name, text in (("speed.json", json.dumps(report, indent=2) + "\n"), ("speed.md", table)):
        with atomic_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    with atomic_file(folder / "speed.png") as temporary:
        speed_chart(without_misfits(report)).savefig(temporary)
    return table


def without_misfits(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report without the steps that did not fit into memory, for the chart."""
    if "training" not in report:
        return dict(report)
    variants = {name: row for name, row in report["training"]["variants"].items() if row["samples_per_second"]}
    return {**report, "training": {**report["training"], "variants": variants}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr, also when the two sides differ."""
    return run(build_parser(), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
