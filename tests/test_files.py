"""Folders that are replaced whole, where the operating system is stricter."""

import os
from pathlib import Path

import pytest

from anytext_lcm import files


@pytest.fixture
def windows(monkeypatch):
    """os.replace as on Windows: no folder is replaced, not even an empty one by a folder."""
    replace = os.replace

    def strict(source, target):
        if Path(target).is_dir():
            raise PermissionError(13, "Access is denied", str(source), 5, str(target))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", strict)
    return strict


def test_a_second_run_replaces_the_first_on_windows(windows, tmp_path):
    target = tmp_path / "out"
    for text in ("one", "two"):
        with files.atomic_folder(target) as folder:
            (folder / "report.json").write_text(text)
        assert (target / "report.json").read_text() == text and list(tmp_path.iterdir()) == [target]


def test_what_was_there_comes_back_when_the_new_cannot_take_its_place(windows, tmp_path, monkeypatch):
    target = tmp_path / "out"
    with files.atomic_folder(target) as folder:
        (folder / "report.json").write_text("one")
        new = folder

    def refuse(source, to):
        if (Path(source) / "second").is_file():
            raise PermissionError(13, "Access is denied")
        windows(source, to)

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(PermissionError), files.atomic_folder(target) as folder:
        (folder / "report.json").write_text("two")
        (folder / "second").touch()
    assert not new.exists() and list(tmp_path.iterdir()) == [target] and (target / "report.json").read_text() == "one"
