"""Write an evaluation's report into a folder: numbers, tables, pictures and charts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from anytext_lcm.figures import style
from anytext_lcm.figures.contact_sheet import contact_sheet
from anytext_lcm.judging import charts, tables
from anytext_lcm.judging.defaults import REAL
from anytext_lcm.judging.panel import MethodResult, Panel

SHOWN_METHODS, ZOOM_LINES = 7, 8  # columns and rows that can still be read


def write_report(
    folder: Path, report: Mapping[str, Any], results: Mapping[str, MethodResult], panel: Panel, rows: int = 8
) -> None:
    """Write report.json; table.md; grid.png, the first prompts by the best known methods; chart.png, accuracy and
    distance to real pictures against evaluations, unless no method evaluates the UNet; zoom.png, the text enlarged with
    what was read.
    """
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    (folder / "table.md").write_text(tables.markdown(report), encoding="utf-8")
    options = {"dpi": 2 * style.DPI, "metadata": {"Software": None}}  # no version of matplotlib in the file
    if charts.report_curves(report, "evaluations"):
        charts.report_charts(report).savefig(folder / "chart.png", **options)
    first = [REAL, report["reference"], "teacher-8", "teacher-4", "student-8", "student-4", "student-2", "student-1"]
    chosen = sorted(results, key=lambda name: first.index(name) if name in first else len(first))[:SHOWN_METHODS]
    shown = {name: results[name].images for name in results if name in chosen}
    right = {name: f"{report['methods'][name]['accuracy']['value']:.0%} of lines right" for name in shown}
    columns = {f"{name}\n{right[name]}": images for name, images in shown.items()}
    labels = panel.labels(min(rows, len(panel) // panel.repeats))
    scale = max(1, 128 // panel.size[1])  # smaller pictures leave no room for their captions
    Image.fromarray(contact_sheet(columns, labels, scale)).save(folder / "grid.png")
    zoom = charts.text_zoom(report, shown, panel.polygons, panel.texts, ZOOM_LINES)
    zoom.savefig(folder / "zoom.png", **options)
