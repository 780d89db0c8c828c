"""The parts of READMEs and RESULTS.md that are made, not written: `python tests/readme_parts.py [FOLDER ...]`.

Between a pair of marks <!-- NAME --> and <!-- /NAME --> stands what this file makes: the training settings from
TrainSettings, and the tables of what was measured, whole in RESULTS.md, the rows that matter most in the READMEs. A
folder is that of an evaluation, of ablations, or of the speed benchmark (embedded or full size). Its pictures come
along, and the numbers that notebook 05 draws. Without one only the settings are made anew. The Chinese settings keep
their own reasons, line by line.
"""

import json
import re
import shutil
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from anytext_lcm.judging import tables
from anytext_lcm.model.networks import FULL_CONFIG
from anytext_lcm.training.settings import TrainSettings

ROOT = Path(__file__).parents[1]
READMES = {"en": ROOT / "README.md", "zh": ROOT / "README.zh-CN.md"}
RESULTS = ROOT / "RESULTS.md"
IMAGES = ROOT / "notebooks" / "images"
MEASURED = ROOT / "notebooks" / "measured" / "comparison.json"  # for notebook 05
FIRST_PAGE = (
    "real",
    "reconstruction",
    "teacher-50",
    "teacher-50-eta1",
    "teacher-8",
    "teacher-4",
    "teacher-2",
    "teacher-2-dpm++",
    "teacher-2-unipc",
    "untrained-4",
    "student-1",
    "student-2",
    "student-4",
    "student-8",
    "student-4-deterministic",
    "student-4@seed1",
    "student-4@x0",
)
FIRST_COLUMNS = ("method", "evaluations", "faster, denoising / whole", "lines right", "retention", "distance to real")
LISTS = ("read", "texts", "noise_seeds")  # of a report: what no table or chart needs
PICTURES = ("grid", "zoom", "chart", "speed")


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


def put_all(text: str, parts: dict[str, list[str]]) -> str:
    for name, lines in parts.items():
        text = put(text, name, lines)
    return text


def first_page(report: dict) -> list[str]:
    """What the READMEs begin with: conditions, the methods that matter most, and what was to be reached."""
    table = tables.cost_and_reading(report, FIRST_PAGE, FIRST_COLUMNS)
    return "\n\n".join([tables.legend(report), table, tables.targets(report)]).splitlines()


def results(report: dict) -> list[str]:
    """Every table of a report, each but the first folded."""
    folded = {
        "The student against every rival at equal evaluations": tables.equal_evaluations(report),
        "By what the line says": tables.by_kind(report),
        "By height of the letters' box": tables.by_height(report),
        "What reading does not see": tables.likeness(report),
    }
    blocks = [tables.legend(report), tables.cost_and_reading(report)]
    for title, table in folded.items():
        if table:
            blocks += [f"<details><summary>{title}</summary>", table, "</details>"]
    return "\n\n".join(blocks).splitlines()


def without_lists(part: Any) -> Any:
    """A report without what was read, letter by letter, which is most of it."""
    if isinstance(part, dict):
        return {key: without_lists(value) for key, value in part.items() if key not in LISTS}
    return [without_lists(value) for value in part] if isinstance(part, list) else part


def measured(folder: Path) -> dict[str, dict[str, list[str]]]:
    """{"first page" or "whole": {name of a part: its lines}} that a folder is for. Raises OSError or ValueError."""
    if (folder / "report.json").exists():
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        MEASURED.parent.mkdir(exist_ok=True)
        MEASURED.write_text(json.dumps(without_lists(report), indent=1) + "\n", encoding="utf-8")
        return {"first page": {"results": first_page(report)}, "whole": {"results": results(report)}}
    name, file = ("speed", "speed.md") if (folder / "speed.md").exists() else ("ablations", "table.md")
    lines = (folder / file).read_text(encoding="utf-8").strip().splitlines()
    if name == "ablations":
        return {"first page": {}, "whole": {name: lines}}
    if json.loads((folder / "speed.json").read_text(encoding="utf-8"))["config"] == FULL_CONFIG.name:
        return {"first page": {}, "whole": {"full_size": lines}}
    picture = ["![Where the time of a picture goes](notebooks/images/speed.png)", ""]
    most = lines[: next(i for i, line in enumerate(lines) if line.startswith("GFLOP for one picture"))]
    return {"first page": {name: picture + most[:-1]}, "whole": {name: picture + lines}}


def main(folders: list[str]) -> None:
    """Copies the pictures; writes both READMEs and RESULTS.md."""
    parts: dict[str, dict[str, list[str]]] = {"first page": {}, "whole": {}}
    for folder in map(Path, folders):
        try:
            for place, found in measured(folder).items():
                parts[place] |= found
        except (OSError, ValueError) as error:
            kinds = "evaluation, ablations, speed nor full size"
            sys.exit(f"error: {folder} holds nothing measured: neither {kinds} ({error}).")
        for picture in PICTURES:
            if (folder / f"{picture}.png").exists():
                shutil.copyfile(folder / f"{picture}.png", IMAGES / f"{picture}.png")
    for language, path in READMES.items():
        text = path.read_text(encoding="utf-8")
        head = part(text, "settings").splitlines()[:2]
        text = put(text, "settings", head + settings_rows(reasons_of(text) if language == "zh" else None))
        path.write_text(put_all(text, parts["first page"]), encoding="utf-8")
    RESULTS.write_text(put_all(RESULTS.read_text(encoding="utf-8"), parts["whole"]), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
