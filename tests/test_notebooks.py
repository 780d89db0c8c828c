"""The notebooks keep the rules that nbval does not check, and say the same as the package."""

import ast
import base64
import dis
import importlib
import io
import json
import re
from pathlib import Path
from types import CodeType

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
MAX_LINES, MAX_DEFINITION_LINES, MAX_COLUMNS, MAX_KB = 12, 25, 92, 800
PICTURES_KB = {"05_few_step_sampling": 1800}  # it compares pictures, in colour and at full size
STEP = re.compile(r"# (\d+)\. ([a-z ]+): (.+)")


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
    assert path.stat().st_size < PICTURES_KB.get(path.stem, MAX_KB) * 1024, "fewer or smaller figures"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_short_and_show_or_check_something(path):
    cells = read(path, "code")
    for number, (source, outputs) in enumerate(cells, 1):
        lines = [s for s in source.splitlines() if s.strip() and not s.strip().startswith("#")]
        limit = MAX_DEFINITION_LINES if re.search(r"^(def|class) ", source, re.M) else MAX_LINES
        assert len(lines) <= limit, f"cell {number}: {len(lines)} lines, at most {limit}"
        kinds = {kind for out in outputs for kind in out.get("data", {})}
        assert not kinds & {"text/html", "application/vnd.jupyter.widget-view+json"}, f"cell {number}: {kinds}"
        # An explorer's function is called elsewhere, too, and a drawing shows no numbers.
        exempt = "explorers.explore(" in source or "training_step()" in source
        if "image/png" in kinds and not exempt:  # a figure is followed by a check of the numbers it shows
            near = cells[number - 1 : number + 2]
            printed = any(out.get("name") == "stdout" for _, outs in near for out in outs)
            checked = re.search(r"assert |check\(", "\n".join(text for text, _ in near))
            assert printed or checked, f"cell {number}: a figure without a check"
    last = [text for text, _ in cells if "NotImplementedError" not in text][-2:]  # exercises aside
    assert any("assert" in text for text in last), "the notebook ends without checks"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_speak(path):
    """Lines fit a narrow page; an assert says what it means, in a cell that also shows something."""
    for number, (source, outputs) in enumerate(read(path, "code"), 1):
        long = [line for line in source.splitlines() if len(line) > MAX_COLUMNS]
        assert not long, f"cell {number}: over {MAX_COLUMNS} columns: {long}"
        asserts = [node for node in ast.walk(ast.parse(plain(source))) if isinstance(node, ast.Assert)]
        assert all(node.msg for node in asserts), f"cell {number}: an assert without a message"
        assert outputs or not asserts, f"cell {number} asserts and shows nothing"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_any_cell_may_run_again(path):
    """What a cell takes from others is bound in one cell alone, so that the order of later runs does not matter."""
    codes = [compile(plain(source), path.name, "exec") for source, _ in read(path, "code")]
    bound = [names(code, "STORE_NAME") for code in codes]
    for number, code in enumerate(codes):
        taken = names(code, "LOAD_NAME").union(*(names(inner, "LOAD_GLOBAL") for inner in nested(code)))
        for name in taken - bound[number]:
            cells = [k + 1 for k, found in enumerate(bound) if name in found]
            assert len(cells) <= 1, f"cell {number + 1} reads {name!r}, which cells {cells} bind"


def test_explorers_are_stored_with_their_picture():
    """And without the view of a kernel that is gone."""
    shown = [
        outputs
        for path in NOTEBOOKS
        for source, outputs in read(path, "code")
        if source.startswith("explorers.explore(") or "\nexplorers.explore(" in source
    ]
    assert len(shown) >= 6
    for outputs in shown:
        [data] = [output["data"] for output in outputs if "data" in output]
        assert set(data) == {"text/plain", "image/png"} and "".join(data["text/plain"]).startswith("Explorer(")


def plain(source):
    """A cell without its magics."""
    return re.sub(r"^[%!].*$", "", source, flags=re.M)


def nested(code):
    """The code of the functions, lambdas and classes within."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from nested(constant)


def names(code, instruction):
    return {found.argval for found in dis.get_instructions(code) if found.opname == instruction}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_an_explorer_reads_keeps_its_meaning(path):
    """A slider is moved after all cells have run: a name that a later cell binds anew would change its picture."""
    cells = [plain(source) for source, _ in read(path, "code")]
    codes = [compile(source, path.name, "exec") for source in cells]
    reads = {}  # by function: what it takes from the notebook, through other functions too
    for number, code in enumerate(codes):
        for inner in nested(code):
            needed = names(inner, "LOAD_GLOBAL")
            reads[inner.co_name] = needed.union(*(reads.get(name, set()) for name in needed))
        if "explorers.explore(" not in cells[number]:
            continue
        # Lambdas share a name, so what stands in the cell itself is asked directly.
        needed = set().union(*(names(inner, "LOAD_GLOBAL") for inner in nested(code)))
        needed |= set().union(*(reads.get(name, set()) for name in needed | names(code, "LOAD_NAME")))
        for later, other in enumerate(codes[number + 1 :], number + 2):
            bound = needed & names(other, "STORE_NAME")
            assert not bound, f"cell {later} binds {sorted(bound)}, which the explorer of cell {number + 1} reads"


def test_the_open_step_has_the_comments_of_the_real_one():
    """Notebook 03 shows the training step; what happens on plain numbers, 4 to 10, is said in the same words."""
    real = STEP.findall((ROOT / "anytext_lcm" / "training" / "step.py").read_text(encoding="utf-8"))
    cells = [source for source, _ in read(ROOT / "notebooks" / "03_lcm_maths.ipynb", "code")]
    [shown] = [STEP.findall(source) for source in cells if "def open_step" in source]
    for steps in (real, shown):
        assert [number for number, *_ in steps] == [str(number) for number in range(1, 12)]
    assert [name for _, name, _ in shown] == [name for _, name, _ in real]
    assert shown[3:10] == real[3:10]


def test_a_picture_with_a_palette_stays(monkeypatch):
    """A second palette would lose colours and change every stored picture of a notebook that is run again."""
    monkeypatch.syspath_prepend(ROOT / "notebooks")
    tidy = importlib.import_module("tidy")
    noise = Image.merge("RGB", [Image.effect_noise((200, 200), 20 * k) for k in (1, 2, 3)])
    for picture, changed in ((noise, 1), (noise.quantize(256), 0)):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", compress_level=0)  # so that a new file would be smaller
        data = {"image/png": base64.b64encode(buffer.getvalue()).decode()}
        outputs = [tidy.nbformat.v4.new_output("display_data", data)]
        notebook = tidy.nbformat.v4.new_notebook(cells=[tidy.nbformat.v4.new_code_cell(outputs=outputs)])
        assert tidy.shrink_pictures(notebook) == changed
