"""The benchmark's report: JSON, tables, a chart, a sheet of pictures."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from anytext_lcm.data.pictures import open_picture
from anytext_lcm.figures import style
from anytext_lcm.figures.contact_sheet import contact_sheet, prompt_label
from anytext_lcm.figures.text_table import text_table
from anytext_lcm.files import atomic_file, check_writable
from anytext_lcm.judging.benchmark_lines import is_chinese
from anytext_lcm.judging.benchmark_pictures import Scoring
from anytext_lcm.judging.benchmark_score import resize
from anytext_lcm.judging.benchmark_set import Task
from anytext_lcm.judging.defaults import SAMPLES
from anytext_lcm.judging.judge import DISTRIBUTION_FROM
from anytext_lcm.model.networks import is_anytext2

REPORT, TABLE, CHART, SHEET = FILES = ("report.json", "table.md", "chart.png", "grid.png")
SHOWN, ROWS, SHEET_SIDE = 7, 8, 256  # columns and rows of the sheet, and pixels of its pictures at most
SHOWN_LINES = 10  # a range with fewer lines says nothing and is not drawn
WHOLE = 1000  # prompts of laion_word's and of wukong_word's test1k.json
# AnyText2's README, read by ModelScope's recogniser: sentence accuracy and NED of 20 steps.
PUBLISHED = {False: ("AnyText2, English", 0.8175, 0.9193), True: ("AnyText2, Chinese", 0.7250, 0.8529)}  # if Chinese

READ_NOTES = (
    "Lines are read by PP-OCRv6 from rapidocr; the published numbers are by ModelScope's recogniser, so first compare "
    "methods of this report with each other.",
    "FID and CLIPScore are left out: their networks are not part of this package. The pictures are named as "
    "upstream's own scripts expect them.",
    "The grid is what repeats every 8 pixels, in grey levels: about the amplitude of a grid all over the pictures, in "
    "JPEGs too. Without one it may be some tenths below or above 0: compare it with the row of the real pictures. A "
    "grid below one level is not seen. It is measured before pictures are resized, because resizing moves it.",
)
DRAWN_NOTES = (
    "Drawn and measured as AnyText2's eval/anytext2_singleGPU.py and eval/eval_dgocr.py do, but for what follows.",
    "Each picture has its own noise, from its own seed on the CPU; upstream draws four from one generator on the GPU.",
    "Glyphs are drawn by the Pillow that is installed (upstream: 9.5), which chooses another size or offset for some "
    "lines, and in the font that was named (upstream: Arial Unicode); a line that it lacks is not drawn and is wrong.",
    "The first prompt's text caption begins like all others; upstream draws its phrase at random.",
)
CHINESE_NOTE = (
    "NED compares all letters as they are; upstream's counts letters that its Chinese dictionary lacks as one."
)


def notes_on(judged: Mapping[str, Any], scoring: Scoring, drawn: bool) -> list[str]:
    """What a reader of the numbers must know. judged: of `benchmark_score.judge`. drawn: here, not elsewhere."""
    notes = [*(DRAWN_NOTES if drawn else ()), *READ_NOTES]
    if is_chinese([text for task in scoring.tasks for text, _ in task.lines]):
        notes.append(CHINESE_NOTE)
    if scoring.real is not None and not scoring.compared:
        notes.append(f"No distance to real: that needs {DISTRIBUTION_FROM} drawn pictures of two or more prompts.")
    height, width = judged["read_at"]
    for name, row in judged["methods"].items():
        if row["resized"]:
            notes.append(f"{name}: {row['resized']} pictures were resized to {width} x {height} before they were read.")
    for name, count in judged["left_out"].items():
        if count:
            notes.append(f"{name} lacks {count} prompts; the prompts that are whole in every folder were scored.")
    return notes


def published(tasks: Sequence[Task], config: str | Path, samples: int) -> dict[str, Any] | None:
    """AnyText2's own figures: of its network, on a whole set with four pictures a prompt; None for anything else."""
    if len(tasks) != WHOLE or samples != SAMPLES or not is_anytext2(config):
        return None
    found = PUBLISHED[is_chinese([text for task in tasks for text, _ in task.lines])]
    return dict(zip(("name", "accuracy", "ned"), found, strict=True))


def check_report(folder: Path, sources: Iterable[str | Path]) -> None:
    """Raise ValueError for a folder that `write_benchmark` cannot write to. Ask before minutes of work, not after.

    sources: folders of pictures. The report's own would be taken for some of theirs in the next run, so it is refused
    there too.
    """
    for source in sources:
        if folder.exists() and folder.samefile(source):
            raise ValueError(f"{folder} holds pictures to score or to compare with: name another --output.")
    check_writable(folder / REPORT)
    for name in FILES:
        if (folder / name).is_dir():
            raise ValueError(f"{folder / name} is a folder, and a file of this name is to come: name another --output.")


def write_benchmark(folder: Path, report: Mapping[str, Any], scoring: Scoring) -> None:
    """Write report.json, table.md, chart.png and grid.png, the first prompts by each method side by side.

    All of them or none: files of two runs beside each other would contradict each other.
    """
    options = {"dpi": 2 * style.DPI, "metadata": {"Software": None}}  # no version of matplotlib in the file
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    with ExitStack() as stack:  # ends in reverse order, with the report last: with it, all are there
        files = {name: stack.enter_context(atomic_file(folder / name)) for name in FILES}
        files[REPORT].write_text(text + "\n", encoding="utf-8")
        files[TABLE].write_text(markdown(report), encoding="utf-8")
        chart(report).savefig(files[CHART], **options)
        Image.fromarray(sheet(report, scoring)).save(files[SHEET])


# -- tables ----------------------------------------------------------------------------------------------


def _interval(found: Mapping[str, float] | None, form: str = ".4f", end: str = ".3f") -> str:
    return "-" if found is None else f"{found['value']:{form}} [{found['low']:{end}}, {found['high']:{end}}]"


def summary(report: Mapping[str, Any], markdown: bool = False) -> str:
    """The first table: a row for each method, one for the real pictures, one for what upstream published."""
    reference, real = report["reference"], report["real"]
    head = ["method", "sentence accuracy", "NED", "letters and digits alone"]
    head += [f"accuracy less {reference}"] * (reference is not None)
    head += ["grid, grey levels"] + ["distance to real"] * (real is not None)
    rows = []
    for name, row in report["methods"].items():
        cells = [name, *(_interval(row[key]) for key in ("exact", "ned", "correct"))]
        if reference is not None:
            cells.append(_interval(row["difference"]["exact"], "+z.4f", "+z.3f"))
        cells.append(_interval(row["grid"], "z.2f", "z.2f"))
        rows.append(cells + [_interval(row["distance"], "z.3f", "z.2f")] * (real is not None))
    blank = ["-"] * (reference is not None)
    if real is not None:
        grid, distance = _interval(real["grid"], "z.2f", "z.2f"), _interval(real["distance"], "z.3f", "z.2f")
        rows.append(["real pictures", "-", "-", "-", *blank, grid, distance])
    if found := report["published"]:
        published = [found["name"], f"{found['accuracy']:.4f}", f"{found['ned']:.4f}", "-", *blank, "-"]
        rows.append(published + ["-"] * (real is not None))
    return text_table(head, rows, markdown=markdown, align="l")


def counts(report: Mapping[str, Any]) -> str:
    """What was scored, in a sentence."""
    return (
        f"{report['prompts']} prompts, {report['lines']} lines, {report['samples']} pictures a prompt; 95 % intervals "
        "over prompts."
    )


def format_table(report: Mapping[str, Any]) -> str:
    """The report as a table for a terminal."""
    return "\n".join([counts(report), summary(report), *report["notes"]])


def markdown(report: Mapping[str, Any]) -> str:
    """All tables, for table.md."""
    blocks = [counts(report), summary(report, markdown=True)]
    titles = {
        "height": "height of the box in a picture of 512 pixels",
        "length": "characters",
        "script": "script",
    }
    for kind, title in titles.items():
        ranges = next(iter(report["methods"].values()))[f"by_{kind}"]
        head = ["method", *(f"{found['kind']} ({found['lines']} lines)" for found in ranges)]
        rows = [[name, *map(_interval, row[f"by_{kind}"])] for name, row in report["methods"].items()]
        blocks += [f"### Sentence accuracy by {title}", text_table(head, rows, markdown=True, align="l")]
    return "\n\n".join([*blocks, "\n".join(f"- {note}" for note in report["notes"])]) + "\n"


# -- pictures --------------------------------------------------------------------------------------------


def chart(report: Mapping[str, Any]) -> Figure:
    """Sentence accuracy by height, length and script of the lines, a colour for each method, with intervals."""
    methods = report["methods"]
    figure, axes = style.new_figure(3.4, columns=3, sharey=True)
    labels = {"height": "height of the box, pixels of 512", "length": "characters", "script": "script"}
    for axis, (kind, label) in zip(axes[0], labels.items(), strict=True):
        first = next(iter(methods.values()))[f"by_{kind}"]
        kept = [i for i, found in enumerate(first) if found["lines"] >= SHOWN_LINES] or range(len(first))
        for place, row in enumerate(methods.values()):
            shown = [row[f"by_{kind}"][i] for i in kept]
            values, low, high = (np.array([found[key] for found in shown]) for key in ("value", "low", "high"))
            offset = 0.6 * ((place + 0.5) / len(methods) - 0.5)  # beside each other, not over each other
            axis.errorbar(
                np.arange(len(shown)) + offset,
                values,
                yerr=np.maximum([values - low, high - values], 0),
                fmt="osD^vP*X"[place % 8],
                color=style.COLORS[place % len(style.COLORS)],
                markersize=4,
                linewidth=1,
                label=str(place),
            )
        axis.set_xticks(range(len(kept)), [first[i]["kind"] for i in kept], rotation=30, ha="right", fontsize=8)
        axis.set_xlim(-0.6, len(kept) - 0.4)
        axis.set_ylim(-0.02, 1.05)
        style.finish(axis, label, "sentence accuracy" if kind == "height" else "", "", False)
    handles, places = axes[0, 0].get_legend_handles_labels()
    legend = figure.legend(handles, places, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    for text, name in zip(legend.get_texts(), methods, strict=True):  # as labels, names that begin with _ are left out
        text.set_text(name)
    return figure


def sheet(report: Mapping[str, Any], scoring: Scoring) -> np.ndarray:
    """The first sample of the first prompts with text by the first methods, side by side (H, W, 3) uint8."""
    shrink = min(1.0, SHEET_SIDE / max(scoring.size))
    size = tuple(max(1, round(side * shrink)) for side in scoring.size)
    tasks = [task for task in scoring.tasks if task.lines][:ROWS]
    columns = {}
    for name, found in list(scoring.found.items())[:SHOWN]:
        pictures = [resize(open_picture(found.paths[task.name][0]), size) for task in tasks]
        columns[f"{name}\n{report['methods'][name]['exact']['value']:.0%} of lines right"] = np.stack(pictures)
    labels = [prompt_label([text for text, _ in task.lines], task.caption) for task in tasks]
    return contact_sheet(columns, labels, max(1, 128 // size[1]))
