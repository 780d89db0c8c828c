"""The command that stores the family of notebook 06 over seeds: it runs the notebook's own cells."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[1] / "notebooks" / "measure_family.py"


def notebook(*cells):
    """A notebook of code cells, each (tag, source)."""
    return json.dumps({"cells": [{"metadata": {"tags": [tag]}, "source": [text]} for tag, text in cells]})


@pytest.fixture
def script(tmp_path):
    """The script's names, over a small notebook and another place to write."""
    names = runpy.run_path(str(SCRIPT))
    book, measured = tmp_path / "book.ipynb", tmp_path / "family.json"
    family = 'SEED, FAMILY_UPDATES = 0, UPDATES[PRESET]\nmeasured = {"A": {"data": [SEED + twice(FAMILY_UPDATES)]}}'
    book.write_text(
        notebook(("setup", "def twice(x):\n    return 2 * x"), ("other", "raise ValueError"), ("family", family))
    )
    names["main"].__globals__.update(NOTEBOOK=book, MEASURED=measured)
    return SimpleNamespace(main=names["main"], cells=names["family_cells"], book=book, measured=measured)


def test_each_seed_runs_the_notebook_s_cells(script):
    assert script.main(["--seeds", "3", "1", "--updates", "10"]) == 0
    report = json.loads(script.measured.read_text())
    assert report["updates"] == 10 and report["seeds"] == {"1": {"A": {"data": [21]}}, "3": {"A": {"data": [23]}}}
    script.main(["--seeds", "2", "--updates", "10"])  # seeds of the same training stay, of another go
    assert list(json.loads(script.measured.read_text())["seeds"]) == ["1", "2", "3"]
    script.main(["--seeds", "0", "--updates", "5"])
    assert json.loads(script.measured.read_text())["seeds"] == {"0": {"A": {"data": [10]}}}


def test_what_does_not_fit_is_refused(script, capsys):
    assert script.main(["--updates", "0"]) == 2 and "--updates must be 1 or more, not 0" in capsys.readouterr().err
    script.book.write_text(notebook(("family", "SEED = 0")))
    with pytest.raises(ValueError, match="must set SEED and FAMILY_UPDATES in one line"):
        script.cells(0, 1)
    assert not script.measured.exists()


def test_the_real_notebook_has_the_cells():
    names = runpy.run_path(str(SCRIPT))
    sources = "\n".join(names["family_cells"](7, 11))
    assert "SEED, FAMILY_UPDATES = 7, 11" in sources and "measured[name] = {" in sources
    methods = ("LCM", "PCM", "TCD", "CTM", "MeanFlow", "path", "DMD")
    assert all(f'students["{method}"] = ' in sources for method in methods)
