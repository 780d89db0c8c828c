"""The speed report as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from anytext_lcm.figures.text_table import text_table
from anytext_lcm.timing.variants import ADDED, other_side


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return text_table(head, rows, markdown=True, align="lr") + "\n"


STEP_HEAD = (
    "step",
    "samples/s",
    "slowest to fastest",
    "core s",
    "peak GiB",
    "GFLOP",
    "of matmul rate",
    "GFLOP, full size",
    "GiB, full size",
)
PAIR_HEAD = ("step", "faster", "fewer core s", "fewer FLOP", "memory", "fewer FLOP, full size", "memory, full size")


def _step_row(name: str, report: Mapping[str, Any]) -> list[str]:
    """One line of the table of steps."""
    row = report["training"]["variants"][name]
    full = [f"{sum(report['full_size_flops'][name].values()) / 1e9:.0f}", f"{report['full_size_gib'][name]:.1f}"]
    if row["samples_per_second"] is None:
        return [name, *["does not fit"] * 6, *full]
    low, high = row["slowest_and_fastest"]
    return [
        name,
        f"{row['samples_per_second']:.3g}",
        f"{low:.3g} to {high:.3g}",
        f"{row['core_seconds']:.3f}",
        f"{row['peak_gib']:.2f}",
        f"{sum(row['flops'].values()) / 1e9:.2f}",
        f"{row['share_of_matmul_rate']:.0%}",
        *full,
    ]


def _pair_row(name: str, other: str, ratios: Mapping[str, float | None]) -> list[str]:
    """One line of a table of ratios."""
    return [f"{name} : {other}", *("–" if ratio is None else f"{ratio:.2f}x" for ratio in ratios.values())]


def _sampling(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the table of samplers."""
    methods = report["sampling"]["methods"]
    against = list(next(iter(methods.values()))["faster"]) if methods else []
    rows = [
        [
            name,
            *(f"{row['seconds'][phase]:.3f}" for phase in ("prepare", "denoise", "decode")),
            *(f"{row['faster'][one]['denoise']:.1f}x / {row['faster'][one]['end_to_end']:.1f}x" for one in against),
        ]
        for name, row in methods.items()
    ]
    head = ["method", "prepare", "denoise", "decode"]
    return head + [f"faster than {one}, denoising / whole" for one in against], rows


def format_report(report: Mapping[str, Any]) -> str:
    """The report of `measure.measure` in Markdown, with the parts that it has."""
    hardware, load = report["hardware"], report["load_before"]
    machine = hardware.get("gpu") or f"{hardware['cpu']}, {hardware['threads']} threads"
    text = [
        f"{report['config']}, {report['side']} px, batch {report['batch']}, rank {report['rank']}, precision "
        f"{report['precision']}, torch {report['torch']}, on {machine}"
        + (f"; load average before {load:.1f}.\n" if load is not None else ".\n")
    ]
    if "training" in report:
        text += _training(report)
    if "sampling" in report:
        text += ["Sampling, seconds per picture; upstream's own default is 20 steps:\n", _table(*_sampling(report))]
    if "training" in report:
        text += _where(report)
    return "\n".join(text)


def _training(report: Mapping[str, Any]) -> list[str]:
    """Sentences and tables of the training step, ratios first."""
    training = report["training"]
    return [
        "Training, ours against the way public scripts write it, with the same checkpointing and the same stored "
        "latents on both sides. Memory is ours over theirs. Full size is counted on shapes, its memory in fp16 at "
        "batch 12:\n",
        _table(PAIR_HEAD, [_pair_row(name, other_side(name), row) for name, row in training["pairs"].items()]),
        "What a switch adds to our own step:\n",
        _table(PAIR_HEAD, [_pair_row(name, ADDED[name], row) for name, row in training["added"].items()]),
        f"Each step for one picture, in a process of its own, median of {report['repeats']} updates:\n",
        _table(STEP_HEAD, [_step_row(name, report) for name in training["variants"]]),
    ]


def _where(report: Mapping[str, Any]) -> list[str]:
    """Sentences and tables of where FLOPs and time of the training step go."""
    training, full = report["training"], report["full_size_flops"]
    parts = dict.fromkeys(part for flops in full.values() for part in flops)
    text = [
        "GFLOP for one picture at full size, by part:\n",
        _table(
            ["part", *full],
            [[part, *(f"{flops.get(part, 0) / 1e9:.0f}" for flops in full.values())] for part in parts],
        ),
    ]
    for name in ("reference", "ours"):
        rows = [
            [row["name"], f"{row['share']:.1%}", str(row["calls"])]
            for row in training["variants"][name]["profile"] or ()
        ]
        text += [f"Where the time goes in one update, {name}:\n", _table(["kernel", "share", "calls"], rows)]
    return text
