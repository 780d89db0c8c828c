"""A report of `evaluate` as Markdown tables, those of the README: `python -m anytext_lcm.tables REPORT`.

Numbers come from the report alone, so no picture is drawn for it. Imports nothing of the package.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

HEIGHT_LINES = 10  # a range of heights with fewer lines says nothing and has no column


# What the student of the embedded network was to reach: (method, lowest end of its retention's interval).
RETENTION_TARGETS = (("student-4", 0.97), ("student-8", 0.99), ("student-16", 0.99))


SPEED_TARGETS = (("denoise", 20.0), ("end_to_end", 11.0))  # student-4 over the reference


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table: the first column to the left, the others to the right."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] + ["---:"] * (len(head) - 1), *rows)]


def _interval(values: Mapping[str, float] | None, digits: int = 3) -> str:
    if values is None:
        return "–"
    return f"{values['value']:.{digits}f} [{values['low']:.2f}, {values['high']:.2f}]"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _names(report: Mapping[str, Any]) -> dict[str, str]:
    """Method -> how it stands in a table; the reference and its four-step student in bold."""
    loud = (report["reference"], "student-4")
    return {name: f"**{name}**" if name in loud else name for name in report["methods"]}


def times_of(report: Mapping[str, Any]) -> tuple[str, str, str]:
    """Keys of the times and of the speed-ups that this hardware is judged by, and their unit."""
    if report["hardware"]["device"] == "cpu":
        return "core_seconds_a_picture", "speedup_cores", "core s"
    return "seconds_a_picture", "speedup_wall", "s"


def cost_and_reading(report: Mapping[str, Any], methods: Sequence[str] = (), columns: Sequence[str] = ()) -> list[str]:
    """The first table: what a picture takes, how its text reads, how far the pictures are from real ones.

    methods: which of the report's; columns: which of the table's, by their headings; all of them by default.
    """
    times, speed, unit = times_of(report)
    prepare = report["prepare_seconds_a_picture"]["cores" if times.startswith("core") else "wall"]
    head = [
        "method",
        "evaluations",
        f"denoising, {unit}",
        f"whole picture, {unit}",
        "faster, denoising / whole",
        "lines right",
        "NED",
        "retention",
        "distance to real",
    ]
    rows = []
    for name, shown in _names(report).items():
        if methods and name not in methods:
            continue
        row = report["methods"][name]
        parts, faster = row[times], row.get(speed)
        whole = prepare + sum(parts.values()) if "denoise" in parts else None
        rows.append(
            [
                shown,
                str(row["evaluations"] or "–"),
                _number(parts.get("denoise"), ".3f"),
                _number(whole, ".3f"),
                "–" if faster is None else f"{faster['denoise']:.1f} / {faster['end_to_end']:.1f}",
                _interval(row["accuracy"]),
                f"{row['ned']['value']:.3f}",
                _interval(row.get("retention")),
                _interval(row["distribution"] and row["distribution"]["kernel"], 2),
            ]
        )
    kept = [place for place, name in enumerate(head) if not columns or name in columns]
    return table([head[i] for i in kept], ([row[i] for i in kept] for row in rows))


def line_count(bucket: Mapping[str, Any]) -> int:
    """Lines in a range of heights; reports before this field counted them in `n`, with Wilson's intervals."""
    return bucket.get("lines", bucket["n"])


def by_height(report: Mapping[str, Any]) -> list[str]:
    """Lines right by the height of their box in pixels; ranges of few lines are left out. Empty when none is left."""

    def words(bucket: Mapping[str, Any]) -> str:
        low, high = bucket["from"], bucket["to"]
        span = f"from {low:g}" if high is None else f"under {high:g}" if not low else f"{low:g} to {high:g}"
        return f"{span} px ({line_count(bucket)} lines)"

    first = next(iter(report["methods"].values()))["by_height"]
    kept = [bucket["from"] for bucket in first if line_count(bucket) >= HEIGHT_LINES]
    if not kept:
        return []
    rows = [
        [shown, *(_interval(b) for b in report["methods"][name]["by_height"] if b["from"] in kept)]
        for name, shown in _names(report).items()
    ]
    return table(["method", *(words(b) for b in first if b["from"] in kept)], rows)


def by_kind(report: Mapping[str, Any]) -> list[str]:
    """Lines right by what they say; empty for a report of an earlier version, which did not ask."""
    kinds = next(iter(report["methods"].values())).get("by_kind", ())
    if not kinds:
        return []
    rows = [[shown, *map(_interval, report["methods"][name]["by_kind"])] for name, shown in _names(report).items()]
    return table(["method", *(f"{found['kind']} ({found['lines']} lines)" for found in kinds)], rows)


def likeness(report: Mapping[str, Any]) -> list[str]:
    """What reading does not see: sharpness, distance from the same noise, diversity, colours."""
    several = report["panel"].get("sampling_seeds", 1) > 1
    head = [
        "method",
        "sharpness",
        "same-noise distance",
        "background obeyed",
        "text colour obeyed",
        *(["diversity"] if several else []),
    ]
    rows = []
    for name, shown in _names(report).items():
        row = report["methods"][name]
        colour = row.get("text_colour_obeyed")
        rows.append(
            [
                shown,
                f"{row['sharpness']['gradient_energy_to_real']:.2f}",
                _number(row.get("same_noise", {}).get("rmse"), ".0f"),
                f"{row['background_obeyed']['value']:.2f}",
                _number(colour and colour["value"], ".2f"),
                *([f"{row['diversity']['value']:.2f}"] if several else []),
            ]
        )
    return table(head, rows)


def equal_evaluations(report: Mapping[str, Any]) -> list[str]:
    """The student against everything that needs no training and asks the UNet as often; empty without such a pair."""
    rows = []
    for pair in report.get("equal_evaluations", ()):
        difference, distances = pair["accuracy_difference"], pair["kernel"]
        reads = "more" if difference["low"] > 0 else "fewer" if difference["high"] < 0 else "not told apart"
        nearer = "–" if None in distances else "nearer" if distances[0] < distances[1] else "farther"
        rows.append(
            [
                pair["student"],
                pair["rival"],
                str(pair["evaluations"]),
                "{value:+.3f} [{low:+.2f}, {high:+.2f}]".format(**difference),
                reads,
                " to ".join(_number(d, ".2f") for d in distances),
                nearer,
            ]
        )
    head = ["student", "rival", "evaluations", "lines right, student less rival", "reads", "distance to real", "is"]
    return table(head, rows) if rows else []


def targets(report: Mapping[str, Any]) -> list[str]:
    """What was to be reached, and whether it was, a sentence each; only of methods in the report."""
    lines, methods = [], report["methods"]

    def say(what: str, value: float, form: str, target: float) -> None:
        lines.append(f"- {what}: {value:{form}} (target {target:g}): {'met' if value >= target else '**not met**'}.")

    for name, target in RETENTION_TARGETS:
        if found := methods.get(name, {}).get("retention"):
            say(f"Retention of {name}, lower end of its interval", found["low"], ".3f", target)
    _, speed, _ = times_of(report)
    for phase, target in SPEED_TARGETS:
        if found := methods.get("student-4", {}).get(speed):
            words = "denoising" if phase == "denoise" else "end to end"
            say(f"student-4 faster than {report['reference']}, {words}", found[phase], ".1f", target)
    if pairs := [p for p in report.get("equal_evaluations", ()) if re.fullmatch(r"student-\d+", p["student"])]:
        reads = sum(p["accuracy_difference"]["low"] > 0 for p in pairs)
        near = sum(None not in p["kernel"] and p["kernel"][0] < p["kernel"][1] for p in pairs)
        verdict = "met" if reads == near == len(pairs) else "**not met**"
        lines.append(
            f"- Of {len(pairs)} rivals at equal evaluations the student reads more than {reads}, beyond the interval, "
            f"and is nearer to real pictures than {near} (target: all): {verdict}."
        )
    return lines


def legend(report: Mapping[str, Any]) -> str:
    """Under which conditions the numbers were measured, in a few sentences."""
    panel, hardware, settings = report["panel"], report["hardware"], report["settings"]
    seeds = panel.get("sampling_seeds", 1)
    distribution = next(iter(report["methods"].values()))["distribution"]
    floor = (
        ""
        if distribution is None
        else (
            f" Distance to real is the kernel distance to unseen real pictures; two sets of those are "
            f"{distribution['kernel_floor']['value']:.3f} apart."
        )
    )
    cores = hardware.get("cores")
    device = hardware.get("gpu") or f"{hardware.get('cpu') or 'CPU'}, {cores} core{'s' * (cores != 1)}"
    date = f", {settings['date']}" if settings.get("date") else ""
    # Reports of before have no "lines" in a range of heights, and Wilson's intervals there.
    buckets = [bucket for row in report["methods"].values() for bucket in row["by_height"]]
    by_height_too = "" if all("lines" in bucket for bucket in buckets) else ", by height Wilson's"
    return (
        f"{panel['prompts']} prompts, {panel['lines']} lines, {seeds} sampling seed{'s' * (seeds > 1)} each, panel "
        f"{panel['seed']}; 95 % bootstrap intervals over prompts{by_height_too}; the same noise for every method; "
        f"guidance {settings['guidance_scale']:g}, batch {settings['batch_size']}; {device}; torch "
        f"{report['versions']['torch']}{date}. Retention and speed are relative to {report['reference']}.{floor} "
        "Sharpness is gradient energy at the text over that of real pictures, the same-noise distance is in levels of "
        "255."
        + (
            " Diversity is the distance of a prompt's pictures from different noise, in deviations of real pictures."
            if seeds > 1
            else ""
        )
    )


def markdown(report: Mapping[str, Any]) -> str:
    """All tables with their headings, for `table.md`. Raises KeyError for a report of another form."""
    parts = {
        "What it takes and how it reads": cost_and_reading(report),
        "At equal evaluations": equal_evaluations(report),
        "Lines right by height of the box": by_height(report),
        "Lines right by what they say": by_kind(report),
        "What reading does not see": likeness(report),
        "Targets": targets(report),
    }
    blocks = [legend(report)]
    blocks += [f"### {title}\n\n" + "\n".join(lines) for title, lines in parts.items() if lines]
    return "\n\n".join(blocks) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables of a report. Exit code 0, or 2 with one sentence on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m anytext_lcm.tables", description="Prints the Markdown tables of an evaluation once more."
    )
    parser.add_argument("report", help="report.json of python -m anytext_lcm.evaluate")
    path = parser.parse_args(arguments).report
    try:
        print(markdown(json.loads(Path(path).read_text(encoding="utf-8"))), end="")
    except (OSError, ValueError) as error:
        print(f"error: The report {path} cannot be read ({error}).", file=sys.stderr)
        return 2
    except (KeyError, TypeError, AttributeError) as error:
        print(f"error: {path} has another form than `evaluate` writes ({error!r}).", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
