"""The first cell of a notebook: another preset and a missing file are refused before anything is loaded."""

from pathlib import Path

import pytest

from anytext_lcm.teaching import page


def test_a_notebook_runs_in_its_own_folder_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page.start("tiny", needed=("none.ckpt",))
    assert Path.cwd() == Path(__file__).parents[1] / "notebooks"


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="'small' is unknown: choose 'tiny' or 'full'"):
        page.start("small")
    with pytest.raises(FileNotFoundError, match="needs none.ckpt: put it there"):
        page.start("full", needed=("conftest.py", "none.ckpt"))
