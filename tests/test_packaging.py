"""One list of dependencies with one lock, what surrounds the code, and notebooks that were really run."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = ("test", "notebooks", "site")
NOTEBOOKS = [
    ROOT / "notebooks" / f"{name}.ipynb"
    for name in (
        "01_inspect_modules",
        "02_mock_dataset",
        "03_lcm_maths",
        "04_launch_distillation",
        "05_few_step_sampling",
        "06_beyond_lcm",
    )
]
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|Users|tmp|work|mnt|private)/\S+|site-packages|:\\Users")


def requirements(extras=()):
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(line) for lines in lists for line in lines]


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def locked_versions():
    """Canonical name -> exact version of requirements.lock, which holds lines NAME==VERSION and comments alone."""
    versions = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            found = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][0-9a-z.]*)", line)
            assert found, f"requirements.lock: {line!r} is not NAME==VERSION"
            name, version = found.groups()
            assert canonical(name) not in versions, f"requirements.lock names {name} twice"
            versions[canonical(name)] = version
    return versions


def installed_closure(roots):
    """Canonical names of all that the installed distributions of `roots` need here, themselves included."""
    seen, waiting = set(), [(root.name, frozenset(root.extras)) for root in roots]
    while waiting:
        name, extras = waiting.pop()
        if (canonical(name), extras) in seen:
            continue
        seen.add((canonical(name), extras))
        for line in metadata.requires(name) or []:
            need = Requirement(line)
            if not need.marker or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append((need.name, frozenset(need.extras)))
    return {name for name, _ in seen}


def torch_is_for_the_cpu():
    return Version(metadata.version("torch")).local == "cpu"


def read_yaml(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def read_cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def test_environment_makefile_and_pyproject_share_one_list():
    environment = read_yaml("environment.yml")
    conda = [line for line in environment["dependencies"] if isinstance(line, str)]
    [pip] = [line["pip"] for line in environment["dependencies"] if isinstance(line, dict)]
    assert pip == ["-c requirements.lock", "-e .[test,notebooks,site]"]
    assert [re.split("[=<>]", line)[0] for line in conda] == ["python", "pip"]
    assert set(PROJECT["optional-dependencies"]) == set(EXTRAS)

    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "$(STAMP): pyproject.toml requirements.lock\n" in makefile
    installs = [line for line in makefile.splitlines() if "$(INSTALL)" in line]
    from_lock = [line for line in installs if "-c requirements.lock -e $(EXTRAS)" in line]
    assert len(from_lock) == 1
    # The other one makes the lock.
    assert [line.split()[0] for line in installs if line not in from_lock] == ["build/lock/bin/python"]


def test_every_dependency_has_a_lower_bound_and_a_reason():
    lines = re.findall(r'^    "([A-Za-z][^"]*)",(.*)$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    declared = dict(lines)
    for requirement in requirements(EXTRAS):
        [bound] = requirement.specifier
        assert bound.operator == ">=", f"{requirement.name} has no lower bound"
        reason = declared[f"{requirement.name}{bound}"]
        assert re.fullmatch(r" +# \S.{3,}", reason), f"{requirement.name} has no reason beside it"


def test_lock_satisfies_the_ranges_and_is_what_runs():
    locked = locked_versions()
    for requirement in requirements(EXTRAS):
        version = locked[canonical(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} declared, {version} locked"
        installed = metadata.version(requirement.name)
        assert Version(installed).public == version, f"{requirement.name}: {version} locked, {installed} installed"


def test_lock_is_the_closure_of_the_requirements():
    """No version is left to the day, and nothing is locked that nothing needs."""
    made_for = sys.platform == "linux" and sys.version_info[:2] == (3, 11) and torch_is_for_the_cpu()
    if not made_for:
        pytest.skip("other systems, Python versions and CUDA builds need other packages beside the locked ones")
    needed = installed_closure(requirements(EXTRAS))
    locked = set(locked_versions())
    assert sorted(needed - locked) == [], "needed, not in requirements.lock"
    assert sorted(locked - needed) == [], "in requirements.lock, needed by nothing"


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
                    beside = [path.parent] + [ROOT / "tests", ROOT / "notebooks", ROOT / "notebooks" / "measured"] * (
                        folder == "tests"
                    )
                    local = top == "anytext_lcm" or any((place / f"{top}.py").exists() for place in beside)
                    if not local and not {canonical(owner) for owner in owners.get(top, [])} & declared:
                        yield f"{path.relative_to(ROOT)}: {top}"

    package = {canonical(requirement.name) for requirement in requirements(("notebooks",))}
    site = {canonical(requirement.name) for requirement in requirements(("notebooks", "site"))}
    tests = {canonical(requirement.name) for requirement in requirements(EXTRAS)}
    assert list(undeclared("anytext_lcm", package)) == []
    assert list(undeclared("tests", tests)) == []
    assert list(undeclared("docs", site)) == []


def test_versions_agree():
    text = (ROOT / "anytext_lcm" / "__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{PROJECT["version"]}"' in text
    assert str(read_yaml("CITATION.cff")["version"]) == PROJECT["version"]


def test_workflow_runs_the_script_and_may_only_read():
    workflow = read_yaml(".github/workflows/ci.yml")
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads the key `on` as true
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is True
    [job] = workflow["jobs"].values()
    assert job["runs-on"].startswith("ubuntu-")
    assert job["container"]["image"].startswith("python:3.11-")  # root, and Debian's packages, as .ci/run wants them
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111, ".ci/run is not executable"
    for step in job["steps"]:
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])
    [cache] = [step["with"] for step in job["steps"] if step.get("uses", "").startswith("actions/cache")]
    [hashed] = re.findall(r"hashFiles\('(.+?)'\)", cache["key"])
    assert (ROOT / hashed).is_file()


def test_site_is_built_by_make_and_published_from_main_alone():
    workflow = read_yaml(".github/workflows/site.yml")
    assert workflow[True]["push"] == {"branches": ["main"]} and "pull_request" not in workflow[True]
    assert workflow["permissions"] == {"contents": "read"}
    build, publish = workflow["jobs"]["build"], workflow["jobs"]["publish"]
    assert [step["run"] for step in build["steps"] if "run" in step] == ["make site"]
    assert publish["needs"] == "build" and publish["permissions"] == {"pages": "write", "id-token": "write"}
    used = [step["uses"] for job in (build, publish) for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", action) for action in used)
    [upload] = [step["with"] for step in build["steps"] if step.get("uses", "").startswith("actions/upload-pages")]
    assert f" . {upload['path']}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_citation_has_what_its_format_requires():
    """The required fields of Citation File Format 1.2.0, and three papers with persons as authors."""
    citation = read_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["title"] == PROJECT["name"]
    assert citation["license"] == PROJECT["license"]
    assert citation["message"] and citation["authors"] == [{"name": "The anytext_lcm authors"}]
    papers = {paper["url"].rsplit("/", 1)[1]: paper for paper in citation["references"]}
    assert set(papers) == {"2411.15245", "2310.04378", "2311.05556"}
    for number, paper in papers.items():
        assert paper["type"] == "article" and paper["title"]
        assert paper["year"] == 2000 + int(number[:2]), "the first two digits of an arXiv number are the year"
        assert paper["journal"].endswith(number)
        assert all({"given-names", "family-names"} <= set(author) for author in paper["authors"])


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="not a checkout of git")
def test_what_commands_write_by_default_is_ignored():
    written = [
        "outputs/demo/report.json",
        "sample.png",
        "target_modules_list.txt",
        "data.json.index/records.arrow",
        "data.json.index.lock",
    ]
    written += ["models/anytext_v2.0.ckpt", ".venv/bin/python", "build/lock/pyvenv.cfg"]
    # A checkout that belongs to another user, as in a container, is no fault here.
    command = ["git", "-c", "safe.directory=*", "check-ignore", "--no-index", *written]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split() == written
    tracked = ["anytext_lcm/model/unet.py", "notebooks/images/sample.png", "tests/target_modules_list.txt"]
    assert subprocess.run([*command[:5], *tracked], cwd=ROOT, capture_output=True, text=True).stdout == ""


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
