"""The notebooks keep the rules that nbval does not check, and say the same as the package."""

import ast
import dis
import json
import re
import symtable
from pathlib import Path
from types import CodeType

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
REWRITTEN = [path for path in NOTEBOOKS if path.stem[:2] in ("01", "02", "04", "05")]
MAX_LINES, MAX_DEFINITION_LINES, MAX_COLUMNS, MAX_KB = 12, 25, 92, 1200
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
    assert path.stat().st_size < MAX_KB * 1024, "fewer or smaller figures"


@pytest.mark.parametrize("path", REWRITTEN, ids=lambda path: path.stem)
def test_cells_are_short(path):
    """Imports count: a reader has to get past them as well."""
    for number, (source, _) in enumerate(read(path, "code"), 1):
        lines = [line for line in source.splitlines() if line.strip() and not line.strip().startswith("#")]
        limit = MAX_DEFINITION_LINES if re.search(r"^(def|class) ", source, re.M) else MAX_LINES
        assert len(lines) <= limit, f"cell {number}: {len(lines)} lines, at most {limit}"
        assert max(map(len, source.splitlines())) <= MAX_COLUMNS, f"cell {number}: a line is cut off at 1280 pixels"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_figures_have_their_numbers(path):
    cells = read(path, "code")
    for number, (_, outputs) in enumerate(cells, 1):
        kinds = {kind for out in outputs for kind in out.get("data", {})}
        assert not kinds & {"text/html", "application/vnd.jupyter.widget-view+json"}, f"cell {number}: {kinds}"
        if "image/png" in kinds:  # a figure is followed by the numbers it shows, or by an exercise
            later = "\n".join(text for text, _ in cells[number - 1 : number + 2])
            assert re.search(r"assert |print\(|check\(", later), f"cell {number}: a figure without numbers"
    assert any("assert" in text for text, _ in cells[-2:]), "the notebook ends without checks"


@pytest.mark.parametrize("path", REWRITTEN, ids=lambda path: path.stem)
def test_no_cell_is_silent_and_each_assert_has_words(path):
    for number, (source, outputs) in enumerate(read(path, "code"), 1):
        checks = [node for node in ast.walk(ast.parse(plain(source))) if isinstance(node, ast.Assert)]
        assert all(node.msg is not None for node in checks), f"cell {number}: an assert without words"
        assert outputs or not checks, f"cell {number}: it checks and shows nothing"


@pytest.mark.parametrize("path", REWRITTEN, ids=lambda path: path.stem)
def test_a_cell_can_be_run_again(path):
    """A name that a cell reads from another cell is bound by one cell alone, so that it means the same later."""
    uses = [free_and_bound(plain(source)) for source, _ in read(path, "code")]
    for name in set().union(*(bound for _, bound in uses)):
        binding = [number for number, (_, bound) in enumerate(uses, 1) if name in bound]
        reading = [number for number, (free, _) in enumerate(uses, 1) if name in free]
        assert len(binding) == 1 or not reading, f"{name} is bound in the cells {binding} and read in {reading}"


def plain(source):
    """A cell without its magics."""
    return re.sub(r"^[%!].*$", "", source, flags=re.M)


def free_and_bound(source):
    """Names that a cell takes from the notebook, and those that it binds at its top level."""
    free, bound, now = set(), set(), set()
    for statement in ast.parse(source).body:
        table = symtable.symtable(ast.unparse(statement), "cell", "exec")
        tables = [table]
        for inner in tables:
            tables += inner.get_children()
        read = {s.get_name() for s in table.get_symbols() if s.is_referenced()}
        read |= {s.get_name() for inner in tables[1:] for s in inner.get_symbols() if s.is_global()}
        stored = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
        if not isinstance(statement, ast.AugAssign):
            read -= stored & loop_names(statement)
        free |= read - now
        now |= stored
        bound |= stored
    return free, bound


def loop_names(statement):
    """Names that a for loop or a with block binds before its body reads them."""
    targets = [node.target for node in ast.walk(statement) if isinstance(node, ast.For)]
    targets += [item.optional_vars for node in ast.walk(statement) if isinstance(node, ast.With) for item in node.items]
    targets += [
        target
        for node in ast.walk(statement)
        if isinstance(node, ast.Assign) and not isinstance(statement, ast.Assign)
        for target in node.targets
    ]
    named = [node for target in targets if target is not None for node in ast.walk(target)]
    handlers = {node.name for node in ast.walk(statement) if isinstance(node, ast.ExceptHandler) and node.name}
    return {node.id for node in named if isinstance(node, ast.Name)} | handlers


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
    cells = [re.sub(r"^[%!].*$", "", source, flags=re.M) for source, _ in read(path, "code")]
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    for source, _ in read(path, "markdown"):
        for target in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", source):
            assert (path.parent / target).exists(), target


def test_the_open_step_has_the_comments_of_the_real_one():
    """Notebook 03 shows the training step; what happens on plain numbers, 4 to 10, is said in the same words."""
    real = STEP.findall((ROOT / "anytext_lcm" / "training" / "step.py").read_text(encoding="utf-8"))
    cells = [source for source, _ in read(ROOT / "notebooks" / "03_lcm_maths.ipynb", "code")]
    [shown] = [STEP.findall(source) for source in cells if "def open_step" in source]
    for steps in (real, shown):
        assert [number for number, *_ in steps] == [str(number) for number in range(1, 12)]
    assert [name for _, name, _ in shown] == [name for _, name, _ in real]
    assert shown[3:10] == real[3:10]
