"""The parts of both READMEs that are made, not written: `python tests/readme_parts.py [FOLDER ...]`.

Between a pair of marks <!-- NAME --> and <!-- /NAME --> stands what this file makes: the training settings from
TrainSettings, and the tables of what was measured. A folder is that of an evaluation, of ablations, or of the
speed benchmark; its pictures come along. Without one only the settings and the workflow are made anew. The Chinese
settings keep their own reasons, line by line.
"""

import json
import re
import shutil
import sys
from dataclasses import MISSING, fields
from pathlib import Path

from anytext_lcm import plots, tables
from anytext_lcm.settings import TrainSettings

ROOT = Path(__file__).parents[1]
READMES = {"en": ROOT / "README.md", "zh": ROOT / "README.zh-CN.md"}
IMAGES = ROOT / "notebooks" / "images"
FIRST_PAGE = (
    "real", "reconstruction", "teacher-50", "teacher-50-eta1", "teacher-20", "teacher-8", "teacher-4",
    "teacher-4-dpm++", "teacher-4-unipc", "teacher-2", "untrained-4", "student-1", "student-2", "student-4",
    "student-4-deterministic", "student-8", "student-16", "student-4@seed1", "student-8@seed1", "student-4@x0",
    "student-8@x0",
)  # fmt: skip
PICTURES = ("grid", "zoom", "accuracy_evaluations", "distance_evaluations", "speed")


def default_of(setting) -> str:
    """A field's default as the table shows it."""
    if setting.default is MISSING:
        return "needed"
    return "–" if setting.default is None else f"`{setting.default}`"


def settings_rows(reasons: dict[str, str] | None = None) -> list[str]:
    """A row for each training setting: flag, default, reason. reasons: others than those of the package, by name."""
    return [
        f"| `--{s.name}` | {default_of(s)} | {(reasons or {}).get(s.name, s.metadata['help']).replace('|', '/')} |"
        for s in fields(TrainSettings)
    ]


def part(text: str, name: str) -> str:
    """What stands between the marks of this name. Raises ValueError when they are missing."""
    found = re.search(f"<!-- {name} -->\n(.*?)\n?<!-- /{name} -->", text, re.S)
    if found is None:
        raise ValueError(f"The marks <!-- {name} --> and <!-- /{name} --> are missing.")
    return found[1]


def reasons_of(text: str) -> dict[str, str]:
    """The reasons of a README's settings, by name."""
    return dict(re.findall(r"^\| `--(\w+)` \| [^|]* \| ([^|]*) \|$", part(text, "settings"), re.M))


def put(text: str, name: str, lines: list[str]) -> str:
    """The text with other lines between the marks of this name. Raises ValueError when the marks are missing."""
    part(text, name)
    before, rest = text.split(f"<!-- {name} -->\n")
    after = rest.split(f"<!-- /{name} -->")[1]
    return f"{before}<!-- {name} -->\n" + "".join(f"{line}\n" for line in lines) + f"<!-- /{name} -->{after}"


def results(report: dict) -> list[str]:
    """The README's tables: the methods that the first page is about, what was to be reached, and the rest folded."""
    folded = {
        "Every method": tables.cost_and_reading(report),
        "The student against every rival at equal evaluations": tables.equal_evaluations(report),
        "By height of the letters' box": tables.by_height(report),
        "What reading does not see": tables.likeness(report),
    }
    lines = [tables.legend(report), "", *tables.cost_and_reading(report, FIRST_PAGE), "", *tables.targets(report)]
    for title, table in folded.items():
        if table:
            lines += ["", f"<details><summary>{title}</summary>", "", *table, "", "</details>"]
    return lines


def measured(folder: Path) -> tuple[str, list[str]]:
    """The name of the part that a folder is for, and its lines. Raises OSError or ValueError."""
    if (folder / "report.json").exists():
        return "results", results(json.loads((folder / "report.json").read_text(encoding="utf-8")))
    name, file = ("speed", "speed.md") if (folder / "speed.md").exists() else ("ablations", "table.md")
    lines = (folder / file).read_text(encoding="utf-8").strip().splitlines()
    if name == "speed":
        lines = ["![Where the time of a picture goes](notebooks/images/speed.png)", "", *lines]
    return name, lines


def main(folders: list[str]) -> None:
    """Writes the pictures and both READMEs."""
    plots.workflow().savefig(IMAGES / "workflow.png", dpi=2 * plots.DPI, metadata={"Software": None})
    parts = {}
    for folder in map(Path, folders):
        try:
            name, parts[name] = measured(folder)
        except (OSError, ValueError) as error:
            sys.exit(f"error: {folder} holds nothing measured: neither evaluation, ablations nor speed ({error}).")
        for picture in PICTURES:
            if (folder / f"{picture}.png").exists():
                shutil.copyfile(folder / f"{picture}.png", IMAGES / f"{picture}.png")
    for language, path in READMES.items():
        text = path.read_text(encoding="utf-8")
        head = part(text, "settings").splitlines()[:2]
        text = put(text, "settings", head + settings_rows(reasons_of(text) if language == "zh" else None))
        for name, lines in parts.items():
            text = put(text, name, lines)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
