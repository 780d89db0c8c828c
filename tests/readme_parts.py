"""Tables and numbers of the documents are made here: `python tests/readme_parts.py [FOLDER ...]`.

A FOLDER is what an evaluation, ablations or the speed benchmark wrote. Its numbers are stored in notebooks/measured,
its pictures in notebooks/images; NAME=FOLDER stores the numbers alone, as NAME.json. Then all documents are made anew
from the stored numbers. A document marks what is made, and a mark says from what. A number has a path, in which
%20 is a space, and may have a format:

    <!-- = comparison/methods/student-4/accuracy -->0.923 [0.90, 0.94]<!-- / -->
    <!-- = comparison/panel/lines d -->512<!-- / -->

A table of an evaluation names rows and columns, or has all of them:

    <!-- methods comparison | teacher-50, student-4 | method, lines right -->
    <!-- /methods -->

So does a table of ablations. The other blocks are `all_methods REPORT`, `speed REPORT`, `exports REPORT`,
`objectives REPORT | MEASURE | ROW; ROW` (all rows by default), `all_objectives REPORT` and `styled REPORT`. A column
whose heading has a comma is named in a list with semicolons. No line begins with the mark of a number: Markdown would
take the line for HTML.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from anytext_lcm.judging import tables
from anytext_lcm.model.networks import FULL_CONFIG
from anytext_lcm.timing.report import format_report
from anytext_lcm.training.ablation import format_table

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "notebooks"), str(ROOT / "notebooks" / "measured")]

import exports  # noqa: E402
import objectives  # noqa: E402
import styled  # noqa: E402

READMES = {"en": ROOT / "README.md", "zh": ROOT / "README.zh-CN.md"}
CARD = ROOT / "anytext_lcm" / "assets" / "README.md"
IMAGES = ROOT / "notebooks" / "images"
STORED = ROOT / "notebooks" / "measured"  # comparison.json is read by notebook 05, too
LISTS = ("read", "texts", "noise_seeds")  # of a report: what no table or chart needs
FILES = {  # what a folder of measurements holds, by the name that it is stored by
    "comparison": "report.json",
    "ablations": "results.json",
    "speed": "speed.json",
    "exports": "exports.json",
    "objectives": "objectives.json",
    "styled": "styled.json",
}
PICTURES = ("grid", "zoom", "chart")

FIGURE = re.compile(r"(<!-- = (\S+)(?: (\S+))? -->)(.*?)(<!-- / -->)", re.S)
BLOCK = re.compile(r"(<!-- ([a-z_]+)(?: ([^>]*?))? -->\n)(.*?)(<!-- /\2 -->)", re.S)


def documents() -> list[Path]:
    """The documents that may hold marks: READMEs, card, and what lies beside the stored numbers."""
    return [*READMES.values(), CARD, *sorted(STORED.glob("*.md"))]


def stored(name: str) -> Any:
    """A stored report. Raises ValueError when there is none of this name."""
    path = STORED / f"{name}.json"
    if not path.exists():
        raise ValueError(f"{path.relative_to(ROOT)} is missing: run `make readme FOLDERS={name}=FOLDER`.")
    return json.loads(path.read_text(encoding="utf-8"))


# -- numbers in a sentence ------------------------------------------------------------------------------


def number(path: str, form: str | None = None) -> str:
    """The number at REPORT/KEY/KEY..., in `form` (default .3f); with its interval when it has one.

    A dash stands for a measure of obedience that the report does not have: no prompt of its panel asked for it. Raises
    ValueError when the path leads to no number.
    """
    report, *keys = map(unquote, path.split("/"))
    found = stored(report)
    if keys[:1] == ["methods"] and len(keys) > 2 and keys[2] in tables.OBEDIENCE:
        if keys[2] not in found["methods"].get(keys[1], {keys[2]}):
            return "–"
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


def compared(report: str, measure: str, rows: str = "") -> str:
    """One table of the comparison of objectives: chosen rows, all by default."""
    found = stored(report)
    return objectives.table(found, measure, [name.strip() for name in rows.split(";") if name.strip()])


def ablations(report: str, rows: str = "", columns: str = "") -> str:
    """The table of ablations with chosen rows and columns, all by default; what is below it stays."""
    found, chosen = stored(report), [name.strip() for name in rows.split(",") if name.strip()]
    if unknown := set(chosen) - set(found["runs"]):
        raise ValueError(f"{report}.json has no run {', '.join(sorted(unknown))}.")
    kept = {name: run for name, run in found["runs"].items() if name in chosen or not chosen}
    table, _, below = format_table({**found, "runs": kept}).strip().partition("\n\n")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    wanted = [name.strip() for name in columns.split(";") if name.strip()] or cells[0]
    if unknown := [name for name in wanted if name not in cells[0]]:
        raise ValueError(f"The table has no column {', '.join(unknown)}.")
    places = [cells[0].index(name) for name in wanted]
    return "\n".join("| " + " | ".join(line[i] for i in places) + " |" for line in cells) + f"\n\n{below}"


MADE: dict[str, Callable[..., str]] = {
    "methods": methods,
    "all_methods": all_methods,
    "speed": lambda report: format_report(stored(report)).strip(),
    "ablations": ablations,
    "exports": lambda report: exports.format_table(stored(report)).strip(),
    "objectives": compared,
    "all_objectives": lambda report: objectives.tables(stored(report)).strip(),
    "styled": lambda report: styled.table(stored(report)).strip(),
}


def block(path: Path, name: str, arguments: str) -> str:
    """What stands between a pair of marks in the document at `path`. Raises ValueError where nothing can."""
    if name not in MADE:
        raise ValueError(f"{path.name}: nothing is made between marks of the name {name}.")
    try:
        return MADE[name](*(part.strip() for part in arguments.split("|")))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def check_pairs(path: Path, text: str) -> None:
    """Raise ValueError when a mark lacks its partner, or when a number's mark begins a line."""
    for name in {*MADE, *re.findall(r"<!-- /([a-z_]+) -->", text), ""}:
        if len(re.findall(f"<!-- {name or '='} ", text)) != text.count(f"<!-- /{name or ''} -->"):
            raise ValueError(f"{path.name}: the marks of {name or 'a number'} are not in pairs.")
    if re.search(r"^[ >]*<!-- = ", text, re.M):  # in a list or a quotation, too
        raise ValueError(f"{path.name}: a line begins with the mark of a number, so Markdown takes it for HTML.")


def renew(path: Path, text: str) -> str:
    """The text of the document at `path` with everything between marks made anew. Raises ValueError."""
    check_pairs(path, text)

    def of_block(found: re.Match) -> str:
        return f"{found[1]}{block(path, found[2], found[3] or '')}\n{found[5]}"

    text = BLOCK.sub(of_block, text)
    return FIGURE.sub(lambda found: f"{found[1]}{number(found[2], found[3])}{found[5]}", text)


# -- storing --------------------------------------------------------------------------------------------


def without_lists(part: Any) -> Any:
    """A report without what was read, letter by letter, which is most of it."""
    if isinstance(part, dict):
        kept = {key: value for key, value in part.items() if key not in LISTS or not isinstance(value, list)}
        return {key: without_lists(value) for key, value in kept.items()}
    return [without_lists(value) for value in part] if isinstance(part, list) else part


def measured(folder: Path) -> tuple[str, Any]:
    """(name to store it by, report) of what was measured in a folder. Raises OSError or ValueError."""
    for name, file in FILES.items():
        if (folder / file).exists():
            report = json.loads((folder / file).read_text(encoding="utf-8"))
            full = name == "speed" and report["config"] == FULL_CONFIG.name
            return "full_size" if full else name, without_lists(report)
    raise ValueError(f"{folder} holds nothing measured: no {', '.join(FILES.values())}.")


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
