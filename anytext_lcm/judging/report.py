"""
Write an evaluation's report: JSON, tables, grid and charts.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from anytext_lcm.figures import style
from anytext_lcm.judging import charts, tables
from anytext_lcm.judging.contact_sheet import contact_sheet
from anytext_lcm.judging.defaults import REAL
from anytext_lcm.judging.panel import MethodResult, Panel

SHOWN_METHODS, ZOOM_LINES = 7, 8  # columns and rows that can still be read


def format_table(report: Mapping[str, Any]) -> str:
    """The report as one table, for a terminal."""
    on_cpu = report["hardware"]["device"] == "cpu"
    times, speed = ("core_seconds_a_picture", "speedup_cores") if on_cpu else ("seconds_a_picture", "speedup_wall")

    def interval(values: Mapping[str, float] | None) -> str:
        return "-" if values is None else f"{values['value']:.3f} [{values['low']:.2f}, {values['high']:.2f}]"

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    head = [
        "method",
        "evals",
        "s",
        "faster",
        "lines right",
        "retention",
        "NED",
        "kernel",
        "RMSE",
        "sharp",
        "background",
        "text colour",
    ]
    several = report["panel"].get("sampling_seeds", 1) > 1
    head += ["diversity"] if several else []
    table = [head]
    for name, row in report["methods"].items():
        colour = row.get("text_colour_obeyed")
        table.append(
            [
                name,
                str(row["evaluations"] or "-"),
                number(row[times].get("denoise"), ".3f"),
                number(row.get(speed, {}).get("denoise"), ".1f"),
                interval(row["accuracy"]),
                interval(row.get("retention")),
                f"{row['ned']['value']:.3f}",
                number(row["distribution"] and row["distribution"]["kernel"]["value"], ".3f"),
                number(row.get("same_noise", {}).get("rmse"), ".1f"),
                f"{row['sharpness']['gradient_energy_to_real']:.2f}",
                f"{row['background_obeyed']['value']:.2f}",
                number(colour and colour["value"], ".2f"),
                *([f"{row['diversity']['value']:.2f}"] if several else []),
            ]
        )
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in table
    ]
    panel, distribution = report["panel"], next(iter(report["methods"].values()))["distribution"]
    floor = number(distribution and distribution["kernel_floor"]["value"], ".3f")
    legend = (
        f"{panel['prompts']} prompts, {panel['lines']} lines, 95 % intervals over prompts; the same noise for "
        f"all; s: {'seconds of one core' if on_cpu else 'seconds'} a picture without decoding;\n"
        f"retention, faster and RMSE (levels of 255) against {report['reference']}; kernel distance to "
        f"unseen real pictures, which are {floor} apart themselves;\n"
        "sharp: gradient energy at the text over that of the real pictures."
    )
    if several:
        legend += (
            f"\n{panel['sampling_seeds']} sampling seeds a prompt; diversity: distance of a prompt's pictures from "
            "different noise, in deviations of real pictures."
        )
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], legend])


def write_report(
    folder: Path, report: Mapping[str, Any], results: Mapping[str, MethodResult], panel: Panel, rows: int = 8
) -> None:
    """Write report.json; table.md; grid.png, the first prompts by the best known methods; chart.png, accuracy and the
    distance to real pictures against evaluations, unless no method asks the UNet; zoom.png, the text enlarged with what
    was read.
    """
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    (folder / "table.md").write_text(tables.markdown(report), encoding="utf-8")
    if charts.report_curves(report, "evaluations"):
        chart = charts.report_charts(report)
        chart.savefig(folder / "chart.png", dpi=2 * style.DPI, metadata={"Software": None})
    first = [REAL, report["reference"], "teacher-8", "teacher-4", "student-8", "student-4", "student-2", "student-1"]
    chosen = sorted(results, key=lambda name: first.index(name) if name in first else len(first))[:SHOWN_METHODS]
    rows = min(rows, len(panel) // panel.repeats)
    scale = max(1, 128 // panel.images.shape[2])  # smaller pictures leave no room for their captions
    shown = {name: results[name].images for name in results if name in chosen}
    right = {name: f"{report['methods'][name]['accuracy']['value']:.0%} of lines right" for name in shown}
    columns = {f"{name}\n{right[name]}": images for name, images in shown.items()}
    Image.fromarray(contact_sheet(columns, panel.labels(rows), scale)).save(folder / "grid.png")
    charts.text_zoom(report, shown, panel.polygons, panel.texts, ZOOM_LINES).savefig(
        folder / "zoom.png", dpi=2 * style.DPI, metadata={"Software": None}
    )
