"""Write an evaluation's report into a folder: numbers, tables, pictures and charts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anytext_lcm.figures import style
from anytext_lcm.figures.contact_sheet import contact_sheet
from anytext_lcm.judging import charts, tables
from anytext_lcm.judging.defaults import REAL
from anytext_lcm.judging.panel import MethodResult, Panel

GRID_METHODS, GRID_ROWS, GRID_SIDE = 4, 6, 256  # columns, rows and pixels of a picture that fill a page
ZOOM_METHODS, ZOOM_LINES = 7, 8  # columns and rows that can still be read


def write_report(folder: Path, report: Mapping[str, Any], results: Mapping[str, MethodResult], panel: Panel) -> None:
    """Write report.json; table.md; grid.png, the first prompts drawn by teacher and student; chart.png, accuracy and
    distance to real pictures against evaluations, unless no method evaluates the UNet; zoom.png, the text enlarged with
    what was read.
    """
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    (folder / "table.md").write_text(tables.markdown(report), encoding="utf-8")
    options = {"dpi": 2 * style.DPI, "metadata": {"Software": None}}  # no version of matplotlib in the file
    if charts.report_curves(report, "evaluations"):
        charts.report_charts(report).savefig(folder / "chart.png", **options)
    shown = _first(results, (report["reference"], "teacher-4", "untrained-4", "student-4", "student-8"), GRID_METHODS)
    right = {name: f"{report['methods'][name]['accuracy']['value']:.0%} of lines read" for name in shown}
    columns = {f"{name}\n{right[name]}": images for name, images in shown.items()}
    labels = panel.labels(min(GRID_ROWS, len(panel) // panel.repeats))
    scale = max(1, GRID_SIDE // panel.size[1])
    Image.fromarray(contact_sheet(columns, labels, scale)).save(folder / "grid.png")
    best = (REAL, report["reference"], "teacher-8", "teacher-4", "student-8", "student-4", "student-2", "student-1")
    zoom = charts.text_zoom(report, _first(results, best, ZOOM_METHODS), panel.polygons, panel.texts, ZOOM_LINES)
    zoom.savefig(folder / "zoom.png", **options)


def _first(results: Mapping[str, MethodResult], order: Sequence[str], count: int) -> dict[str, np.ndarray]:
    """Pictures of at most `count` methods: those of `order` first, in its order, then the others in theirs."""
    known = [name for name in order if name in results]
    return {name: results[name].images for name in [*known, *(n for n in results if n not in known)][:count]}
