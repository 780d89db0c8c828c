"""The notebooks keep the rules that nbval does not check, and say the same as the package."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
MAX_LINES, MAX_DEFINITION_LINES, MAX_KB = 12, 25, 800
STEP = re.compile(r"# (\d+)\. ([a-z ]+):")


def read(path, kind):
    """(source, outputs) of the cells of a kind."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [("".join(c["source"]), c.get("outputs", [])) for c in cells if c["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_opening(path):
    head = read(path, "markdown")[0][0]
    assert head.startswith(f"# {int(path.stem[:2])}. ")
    assert all(f"**{said}**" in head for said in ("You will learn", "You need", "Runs in"))
    assert read(path, "code")[0][0].startswith('PRESET = "tiny"')
    assert path.stat().st_size < MAX_KB * 1024, "fewer or smaller figures"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_short_and_show_or_check_something(path):
    cells = read(path, "code")
    for number, (source, outputs) in enumerate(cells, 1):
        lines = [s for s in source.splitlines() if s.strip() and not s.strip().startswith("#")]
        limit = MAX_DEFINITION_LINES if re.search(r"^(def|class) ", source, re.M) else MAX_LINES
        assert len(lines) <= limit, f"cell {number}: {len(lines)} lines, at most {limit}"
        kinds = {kind for out in outputs for kind in out.get("data", {})}
        assert not kinds & {"text/html", "application/vnd.jupyter.widget-view+json"}, f"cell {number}: {kinds}"
        if "image/png" in kinds:  # a figure is followed by a check of the numbers it shows
            later = "\n".join(text for text, _ in cells[number : number + 2])
            assert "assert" in later, f"cell {number}: a figure without a check"
    assert any("assert" in text for text, _ in cells[-2:]), "the notebook ends without checks"


def test_explorers_are_stored_with_their_picture():
    """And without the view of a kernel that is gone."""
    shown = [
        outputs
        for path in NOTEBOOKS
        for source, outputs in read(path, "code")
        if source.startswith("widgets.explore(") or "\nwidgets.explore(" in source
    ]
    assert len(shown) >= 6
    for outputs in shown:
        [data] = [output["data"] for output in outputs if "data" in output]
        assert set(data) == {"text/plain", "image/png"} and "".join(data["text/plain"]).startswith("Explorer(")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_solutions_are_collapsed_and_run(path):
    """From the heading on; the reader opens them, CI runs them."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    hidden = [cell for cell in cells if cell["metadata"].get("jupyter", {}).get("source_hidden")]
    assert all(cell["cell_type"] == "code" and cell["execution_count"] for cell in hidden)
    if path.stem[:2] in ("01", "03"):
        assert len(hidden) >= 2 and all("assert" in "".join(cell["source"]) for cell in hidden)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    for source, _ in read(path, "markdown"):
        for target in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", source):
            assert (path.parent / target).exists(), target


def test_the_open_step_has_the_numbers_of_the_real_one():
    """Notebook 03 shows the training step; a step added to or dropped from the package shall be so there."""
    package = "\n".join(
        (ROOT / "anytext_lcm" / name).read_text(encoding="utf-8") for name in ("distill.py", "lcm/objectives.py")
    )
    real = dict(STEP.findall(package.replace("def teacher_x0(", "\0").split("\0")[0]))
    real |= dict(STEP.findall((ROOT / "anytext_lcm" / "distill.py").read_text(encoding="utf-8")))
    shown = [
        STEP.findall(source)
        for source, _ in read(ROOT / "notebooks" / "03_lcm_maths.ipynb", "code")
        if "def open_step" in source
    ]
    assert len(shown) == 1 and [number for number, _ in shown[0]] == [str(n) for n in range(1, 12)]
    assert dict(shown[0]) == real
