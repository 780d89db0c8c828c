"""`make help`: complete, and without an environment."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_rooms import COMMANDS

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What `make help` prints in a copy of the repository's first level that has no .venv."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    folder = tmp_path_factory.mktemp("checkout")
    for path in [
        ROOT / "Makefile",
        *(ROOT / "anytext_lcm").glob("*.py"),
        *(ROOT / "anytext_lcm").glob("*/__main__.py"),
    ]:
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    # `make test` runs this, and its MAKEFLAGS would have the inner make print "Entering directory".
    fresh = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(["make", "help"], cwd=folder, env=fresh, capture_output=True, text=True, check=True)
    assert not done.stderr and not (folder / ".venv").exists()
    return done.stdout


def test_every_target_is_listed_with_what_it_does(said):
    [targets] = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.M)
    assert set(targets.split()) == set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))
    for target in targets.split():
        assert re.search(rf"^  make {target} +\w.{{10,}}$", said, re.M), target


def test_every_setting_and_every_command_is_listed(said):
    settings = set(re.findall(r"^([A-Z_]+) \?=", MAKEFILE, re.M)) | {"FOLDERS"}
    assert settings == set(re.findall(r"^  ([A-Z_]+)=", said, re.M))
    listed = said.split("-m anytext_lcm.NAME --help")[1].split("\n", 1)[1].split()
    assert listed == sorted([*COMMANDS, "data"])


def test_it_fits_a_terminal_and_begins_with_the_demo(said):
    lines = said.splitlines()
    assert "make demo" in lines[0] and max(map(len, lines)) <= 110 and len(lines) <= 45
