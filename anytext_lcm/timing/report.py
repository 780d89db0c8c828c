"""The speed report as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from anytext_lcm.figures.text_table import text_table


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return text_table(head, rows, markdown=True, align="lr") + "\n"


def _step_row(name: str, report: Mapping[str, Any]) -> list[str]:
    """One line of the table of steps."""
    variants = report["training"]["variants"]
    row, first = variants[name], next(iter(variants.values()))["samples_per_second"]
    full = [f"{sum(report['full_size_flops'][name].values()) / 1e9:.0f}", f"{report['full_size_gib'][name]:.1f}"]
    if row["samples_per_second"] is None:
        return [name, *["does not fit"] * 7, *full]
    low, high = row["slowest_and_fastest"]
    return [
        name,
        f"{row['samples_per_second']:.3g}",
        f"{low:.3g} to {high:.3g}",
        f"{row['samples_per_second'] / first:.2f}x" if first else "",
        f"{row['core_seconds']:.3f}",
        f"{row['peak_gib']:.2f}",
        f"{sum(row['flops'].values()) / 1e9:.2f}",
        f"{row['share_of_matmul_rate']:.0%}",
        *full,
    ]


STEP_HEAD = (
    "step",
    "samples/s",
    "slowest to fastest",
    "faster",
    "core s",
    "peak GiB",
    "GFLOP",
    "of matmul rate",
    "GFLOP, full size",
    "GiB, full size",
)


def format_report(report: Mapping[str, Any]) -> str:
    """The report of `measure.measure` in Markdown."""
    variants, full = report["training"]["variants"], report["full_size_flops"]
    hardware, load = report["hardware"], report["load_before"]
    machine = hardware.get("gpu") or f"{hardware['cpu']}, {hardware['threads']} threads"
    sampling = [
        [
            name,
            *(f"{row['seconds'][phase]:.3f}" for phase in ("prepare", "denoise", "decode")),
            f"{row['speedup_denoise']:.1f}x",
            f"{row['speedup_end_to_end']:.1f}x",
        ]
        for name, row in report["sampling"]["methods"].items()
    ]
    parts = dict.fromkeys(part for flops in full.values() for part in flops)
    text = [
        f"{report['config']}, {report['side']} px, batch {report['batch']}, rank {report['rank']}, precision "
        f"{report['precision']}, torch {report['torch']}, on {machine}"
        + (f"; load average before {load:.1f}.\n" if load is not None else ".\n"),
        f"Training, for one picture, each step in a process of its own, median of {report['repeats']} updates; faster "
        "than the first line. Full size is counted on shapes, its memory in fp16 at batch 12:\n",
        _table(STEP_HEAD, [_step_row(name, report) for name in variants]),
        "Sampling, seconds per picture:\n",
        _table(["method", "prepare", "denoise", "decode", "faster, denoise", "faster, end to end"], sampling),
        "GFLOP for one picture at full size, by part:\n",
        _table(
            ["part", *full],
            [[part, *(f"{flops.get(part, 0) / 1e9:.0f}" for flops in full.values())] for part in parts],
        ),
    ]
    for name in ("reference, checkpointed", "ours"):
        rows = [[row["name"], f"{row['share']:.1%}", str(row["calls"])] for row in variants[name]["profile"] or ()]
        text += [f"Where the time goes in one update, {name}:\n", _table(["kernel", "share", "calls"], rows)]
    return "\n".join(text)
