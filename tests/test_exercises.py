"""Exercises of the notebooks: each check accepts its solution and refuses the stub and wrong answers, in words.

Nothing runs but the notebook's cells tagged "setup" (names that answers may use), a stub, and a solution.
"""

import json
import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from anytext_lcm.teaching import checks

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
CALL = re.compile(r'^check\("(\w+)", (\w+)\)$', re.M)
SOLUTION = re.compile(r"<details>\s*<summary>Solution</summary>\n\n```python\n(.*?)\n```\n", re.S)
HINT = re.compile(r"<details>\s*<summary>Hint</summary>\n")


@cache
def exercises(path):
    """{name: (stub, its output, name of the answer, task above, solution below)} of a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    found = {}
    for number, cell in enumerate(cells):
        if "exercise" not in cell["metadata"].get("tags", ()):
            continue
        source, printed = "".join(cell["source"]), "".join("".join(out.get("text", "")) for out in cell["outputs"])
        [(name, answer)] = CALL.findall(source)
        above, below = ("".join(cells[number + k]["source"]) for k in (-1, 1))
        found[name] = source, printed, answer, above, below
    return found


@cache
def setup(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if "setup" in cell["metadata"].get("tags", ())]
    return "\n".join(re.sub(r"^[%!].*$", "", source, flags=re.M) for source in sources)


def answer(path, code, name):
    """The function or value that `code` binds to `name`, in a namespace where the notebook's setup has run."""
    namespace = {}
    exec(setup(path), namespace)
    exec(code, namespace)
    return namespace[name]


def lesson(path):
    return f"{path.stem[:2]}"


FOUND = [(path, name) for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")) for name in exercises(path)]
each_exercise = pytest.mark.parametrize("path, name", FOUND, ids=[f"{lesson(path)}-{name}" for path, name in FOUND])


@each_exercise
def test_a_check_refuses_the_stub_and_accepts_the_solution(path, name, monkeypatch):
    monkeypatch.chdir(NOTEBOOKS)
    stub, printed, bound, above, below = exercises(path)[name]
    known = import_module(f"anytext_lcm.teaching.checks_{lesson(path)}").CHECKS
    unfinished = answer(path, CALL.sub("", stub), bound)
    assert checks.verdict(known, name, unfinished) == (False, f"{name}: {checks.WAITING}")
    assert printed == f"{name}: {checks.WAITING}\n", "the notebook is stored with its stubs"
    assert "**Exercise" in above and HINT.search(above), "a task and a hint stand above the stub"
    [solution] = SOLUTION.findall(below)
    right, line = checks.verdict(known, name, answer(path, solution, bound))
    assert right and line.startswith(f"{name}: right. "), line


@each_exercise
def test_a_check_says_what_is_wrong(path, name, monkeypatch):
    monkeypatch.chdir(NOTEBOOKS)
    _, _, bound, _, below = exercises(path)[name]
    known = import_module(f"anytext_lcm.teaching.checks_{lesson(path)}").CHECKS
    [solution] = SOLUTION.findall(below)
    wrong = import_module(f"wrong_answers_{lesson(path)}").WRONG[name]
    assert len(wrong) >= 2
    for text, replacement, words in wrong:
        assert text in solution, f"{text!r} is not in the solution"
        right, line = checks.verdict(known, name, answer(path, solution.replace(text, replacement), bound))
        assert not right and line.startswith(f"{name}: not yet: ") and words in line, line


@pytest.mark.parametrize("path", sorted({path for path, _ in FOUND}), ids=lambda path: path.stem)
def test_every_check_has_its_exercise(path):
    known = import_module(f"anytext_lcm.teaching.checks_{lesson(path)}").CHECKS
    wrong = import_module(f"wrong_answers_{lesson(path)}").WRONG
    assert set(known) == set(exercises(path)) == set(wrong)


def test_any_answer_gets_a_sentence(capsys):
    def double(value):
        checks.require(checks.same(value(2.0), 4.0), "twice two is not four")
        return "It doubles."

    check = checks.checker({"double": double})
    for attempt in (lambda x: 2 * x, lambda x: x, lambda x: None, lambda x: x / 0, lambda x: [1, 2], lambda x: "four"):
        check("double", attempt)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "double: right. It doubles." and all("not yet: " in line for line in lines[1:])
    said = ["twice two is not four.", "returns None", "ZeroDivisionError", "the shape (2,)", "returns str"]
    assert all(words in line for words, line in zip(said, lines[1:], strict=True))
    with pytest.raises(KeyError, match="There is no exercise 'half'; there are double"):
        check("half", double)
