"""One list of dependencies, and notebooks that were really run."""

import ast
import json
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOTEBOOKS = [
    ROOT / "notebooks" / f"{name}.ipynb"
    for name in (
        "01_inspect_modules",
        "02_mock_dataset",
        "03_lcm_maths",
        "04_launch_distillation",
        "05_few_step_sampling",
    )
]
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|Users|tmp|work|mnt|private)/\S+|site-packages|:\\Users")


def requirements(extras=()):
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(line) for lines in lists for line in lines]


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def read_cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def test_environment_and_pyproject_share_one_list():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [line for line in environment["dependencies"] if isinstance(line, str)]
    [pip] = [line["pip"] for line in environment["dependencies"] if isinstance(line, dict)]
    assert pip == ["-e .[test,notebooks]"]
    assert [re.split("[=<>]", line)[0] for line in conda] == ["python", "pip"]
    assert set(PROJECT["optional-dependencies"]) == {"test", "notebooks"}


def test_every_requirement_is_pinned_and_agrees_with_what_runs():
    for requirement in requirements(("test", "notebooks")):
        [pin] = requirement.specifier
        assert pin.operator == "==", f"{requirement.name} is not pinned"
        installed = metadata.version(requirement.name)
        assert requirement.specifier.contains(installed), f"{requirement} declared, {installed} installed"


def test_every_import_is_declared():
    owners = metadata.packages_distributions()

    def undeclared(folder, declared):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module]
                else:
                    continue
                for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names):
                    beside = [path.parent] + [ROOT / "notebooks"] * (folder == "tests")
                    local = top == "anytext_lcm" or any((place / f"{top}.py").exists() for place in beside)
                    if not local and not {canonical(owner) for owner in owners.get(top, [])} & declared:
                        yield f"{path.relative_to(ROOT)}: {top}"

    package = {canonical(requirement.name) for requirement in requirements(("notebooks",))}
    tests = {canonical(requirement.name) for requirement in requirements(("test", "notebooks"))}
    assert list(undeclared("anytext_lcm", package)) == []
    assert list(undeclared("tests", tests)) == []


def test_versions_agree():
    text = (ROOT / "anytext_lcm" / "__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{PROJECT["version"]}"' in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_was_run_top_to_bottom(path):
    """nbval runs a cell without a count but compares nothing, so a stripped notebook would pass it."""
    cells = [cell for cell in read_cells(path) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell["outputs"] for cell in cells), "the outputs were stripped"
    for count, cell in enumerate(cells, 1):
        for output in cell["outputs"]:
            assert output.get("name") != "stderr", f"cell {count} stores stderr"
            assert output["output_type"] != "error" or "raises-exception" in cell["metadata"].get("tags", [])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_names_no_machine(path):
    for cell in read_cells(path):
        texts = ["".join(cell["source"])]
        for output in cell.get("outputs", []):
            texts.append("".join(output.get("text", [])))
            data = output.get("data", {})
            texts += ["".join(lines) for kind, lines in data.items() if kind.startswith("text/")]
        for text in texts:
            found = MACHINE_PATH.search(text)
            assert not found, f"a path of one machine: {found.group()}"
