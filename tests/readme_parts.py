"""Tables, numbers and settings of the documents are made here: `python tests/readme_parts.py [FOLDER ...]`.

A FOLDER is what an evaluation, ablations or the speed benchmark wrote. Its numbers are stored in notebooks/measured,
its pictures in notebooks/images; NAME=FOLDER stores the numbers alone, as NAME.json. Then all documents are made anew
from the stored numbers. A document marks what is made, and a mark says from what. A number has a path and may have a
format:

    <!-- = comparison/methods/student-4/accuracy -->0.923 [0.90, 0.94]<!-- / -->
    <!-- = comparison/panel/lines d -->512<!-- / -->

A table of an evaluation names rows and columns, or has all of them:

    <!-- methods comparison | teacher-50, student-4 | method, lines right -->
    <!-- /methods -->

The other blocks are `all_methods REPORT`, `legend REPORT`, `speed REPORT`, `ablations REPORT` and `settings`. A column
whose heading has a comma is named in a list with semicolons.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from anytext_lcm.judging import tables
from anytext_lcm.model.networks import FULL_CONFIG
from anytext_lcm.timing.report import format_report
from anytext_lcm.training.ablation import format_table
from anytext_lcm.training.settings import TrainSettings

ROOT = Path(__file__).parents[1]
READMES = {"en": ROOT / "README.md", "zh": ROOT / "README.zh-CN.md"}
CARD = ROOT / "anytext_lcm" / "assets" / "README.md"
IMAGES = ROOT / "notebooks" / "images"
STORED = ROOT / "notebooks" / "measured"  # comparison.json is read by notebook 05, too
LISTS = ("read", "texts", "noise_seeds")  # of a report: what no table or chart needs
PICTURES = ("grid", "zoom", "chart", "speed")

FIGURE = re.compile(r"(<!-- = (\S+)(?: (\S+))? -->)(.*?)(<!-- / -->)", re.S)
BLOCK = re.compile(r"(<!-- ([a-z_]+)(?: ([^>]*?))? -->\n)(.*?)(<!-- /\2 -->)", re.S)

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


def documents() -> list[Path]:
    """The documents that may hold marks: READMEs, card, and what lies beside the stored numbers."""
    return [*READMES.values(), CARD, *ROOT.glob("RESULTS.md"), *sorted(STORED.glob("*.md"))]


def stored(name: str) -> Any:
    """A stored report. Raises ValueError when there is none of this name."""
    path = STORED / f"{name}.json"
    if not path.exists():
        raise ValueError(f"{path.relative_to(ROOT)} is missing: run `make readme FOLDERS={name}=FOLDER`.")
    return json.loads(path.read_text(encoding="utf-8"))


# -- numbers in a sentence ------------------------------------------------------------------------------


def number(path: str, form: str | None = None) -> str:
    """The number at REPORT/KEY/KEY..., in `form` (default .3f); with its interval when it has one.

    Raises ValueError when the path leads to no number.
    """
    report, *keys = path.split("/")
    found = stored(report)
    try:
        for key in keys:
            found = found[int(key) if isinstance(found, list) else key]
        if isinstance(found, dict):
            return f"{found['value']:{form or '.3f'}} [{found['low']:.2f}, {found['high']:.2f}]"
        return found if isinstance(found, str) else format(found, form or ".3f")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a number of {report}.json ({error!r}).") from error


# -- blocks ---------------------------------------------------------------------------------------------


def methods(report: str, rows: str = "", columns: str = "") -> str:
    """The first table of an evaluation: chosen rows and columns, all by default. Raises ValueError for others."""
    found, chosen = stored(report), [name.strip() for name in rows.split(",") if name.strip()]
    if unknown := set(chosen) - set(found["methods"]):
        raise ValueError(f"{report}.json has no method {', '.join(sorted(unknown))}.")
    kept = [name.strip() for name in columns.split(";" if ";" in columns else ",") if name.strip()]
    table = tables.cost_and_reading(found, chosen, kept)
    if unknown := [name for name in kept if f" {name} |" not in table.splitlines()[0]]:
        raise ValueError(f"The table has no column {', '.join(unknown)}.")
    return table


def all_methods(report: str) -> str:
    """Every table of an evaluation, each but the first folded."""
    found = stored(report)
    folded = {
        "The student against every rival at equal evaluations": tables.equal_evaluations(found),
        "By what the line says": tables.by_kind(found),
        "By height of the letters' box": tables.by_height(found),
        "What reading does not see": tables.likeness(found),
    }
    blocks = [tables.legend(found), tables.cost_and_reading(found)]
    for title, table in folded.items():
        if table:
            blocks += [f"<details><summary>{title}</summary>", table, "</details>"]
    return "\n\n".join(blocks)


def first_page(report: str) -> str:
    """Conditions, the methods that matter most, and what was to be reached."""
    found = stored(report)
    table = tables.cost_and_reading(found, FIRST_PAGE, FIRST_COLUMNS)
    return "\n\n".join([tables.legend(found), table, tables.targets(found)])


def settings(path: Path, old: str) -> str:
    """A row for each training setting. The Chinese reasons are kept, line by line."""
    head = old.splitlines()[:2]
    return "\n".join(head + settings_rows(reasons_of(old) if path == READMES["zh"] else None))


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


def reasons_of(table: str) -> dict[str, str]:
    """The reasons in a table of settings, by name."""
    return dict(re.findall(r"^\| `--(\w+)` \| [^|]* \| ([^|]*) \|$", table, re.M))


MADE: dict[str, Callable[..., str]] = {
    "methods": methods,
    "all_methods": all_methods,
    "legend": lambda report: tables.legend(stored(report)),
    "speed": lambda report: format_report(stored(report)).strip(),
    "ablations": lambda report: format_table(stored(report)).strip(),
}


def block(path: Path, name: str, arguments: str, old: str) -> str:
    """What stands between a pair of marks in the document at `path`. Raises ValueError where nothing can."""
    if name == "settings":
        return settings(path, old)
    if name == "results":
        return first_page("comparison") if path in READMES.values() else all_methods("comparison")
    if name in ("speed", "ablations", "full_size") and not arguments:
        return old  # of before their numbers were stored
    if name not in MADE:
        raise ValueError(f"{path.name}: nothing is made between marks of the name {name}.")
    try:
        return MADE[name](*(part.strip() for part in arguments.split("|")))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def check_pairs(path: Path, text: str) -> None:
    """Raise ValueError when a mark lacks its partner."""
    for name in {"settings", "results", *MADE, *re.findall(r"<!-- /([a-z_]+) -->", text), ""}:
        if len(re.findall(f"<!-- {name or '='} ", text)) != text.count(f"<!-- /{name or ''} -->"):
            raise ValueError(f"{path.name}: the marks of {name or 'a number'} are not in pairs.")


def renew(path: Path, text: str) -> str:
    """The text of the document at `path` with everything between marks made anew. Raises ValueError."""
    check_pairs(path, text)

    def of_block(found: re.Match) -> str:
        new = block(path, found[2], found[3] or "", found[4].rstrip("\n"))
        return f"{found[1]}{new}\n{found[5]}"

    text = BLOCK.sub(of_block, text)
    return FIGURE.sub(lambda found: f"{found[1]}{number(found[2], found[3])}{found[5]}", text)


# -- storing --------------------------------------------------------------------------------------------


def without_lists(part: Any) -> Any:
    """A report without what was read, letter by letter, which is most of it."""
    if isinstance(part, dict):
        return {key: without_lists(value) for key, value in part.items() if key not in LISTS}
    return [without_lists(value) for value in part] if isinstance(part, list) else part


def measured(folder: Path) -> tuple[str, Any]:
    """(name to store it by, report) of what was measured in a folder. Raises OSError or ValueError."""
    for file, name in (("report.json", "comparison"), ("results.json", "ablations"), ("speed.json", "speed")):
        if (folder / file).exists():
            report = json.loads((folder / file).read_text(encoding="utf-8"))
            full = name == "speed" and report["config"] == FULL_CONFIG.name
            return "full_size" if full else name, without_lists(report)
    raise ValueError(f"{folder} holds nothing measured: no report.json, results.json or speed.json.")


def main(arguments: list[str]) -> None:
    """Store what the folders hold and their pictures; write all documents anew."""
    for argument in arguments:
        name, _, folder = argument.rpartition("=")
        try:
            own_name, report = measured(Path(folder))
        except (OSError, ValueError) as error:
            sys.exit(f"error: {error}")
        text = json.dumps(report, indent=1) + "\n"
        (STORED / f"{name or own_name}.json").write_text(text, encoding="utf-8")
        for picture in PICTURES if not name else ():
            if (Path(folder) / f"{picture}.png").exists():
                shutil.copyfile(Path(folder) / f"{picture}.png", IMAGES / f"{picture}.png")
    try:
        made = {path: renew(path, path.read_text(encoding="utf-8")) for path in documents()}
    except ValueError as error:
        sys.exit(f"error: {error}")
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
