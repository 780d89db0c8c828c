"""Folders that are replaced whole, where the operating system is stricter."""

import os
import signal
import time
from pathlib import Path

import pytest
from processes import start

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


def killed_inside(target):
    with files.atomic_folder(target) as folder:
        (folder / "half").write_text("half of it")
        os.kill(os.getpid(), signal.SIGKILL)


def live_inside(target, ready):
    with files.atomic_folder(target) as folder:
        os.write(ready, folder.name.encode())
        time.sleep(600)


def test_what_a_killed_run_left_is_swept_and_a_live_one_is_not(tmp_path):
    target = tmp_path / "data.index"
    process = start(killed_inside, target)
    process.join()
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".data.index.") and (left / "half").is_file()
    bystanders = [tmp_path / ".data.index.mine", tmp_path / ".other.index.host-1.x", tmp_path / ".data.index.far-1.x"]
    for folder in bystanders:
        folder.mkdir()
    read, write = os.pipe()
    live = start(live_inside, target, write)
    try:
        name = os.read(read, 200).decode()
        with files.atomic_folder(target) as folder:
            assert not left.exists() and (tmp_path / name).is_dir()
            (folder / "report.json").write_text("{}")
        assert {path.name for path in tmp_path.iterdir()} == {name, target.name, *(path.name for path in bystanders)}
    finally:
        live.kill()
        live.join()
    with files.atomic_folder(target):
        assert not (tmp_path / name).exists()


def killed_writing(target):
    with files.atomic_file(target) as file:
        file.write_text("half of it")
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("name", ["sample.png", 110 * "é" + ".png"])
def test_the_file_of_a_killed_run_is_swept_by_the_next(tmp_path, name):
    target = tmp_path / name
    start(killed_writing, target).join()
    [left] = tmp_path.iterdir()
    assert left != target and left.suffix == ".png"
    bystanders = [tmp_path / ".sample.png.mine", tmp_path / ".sample.far-1.x.png"]
    for file in bystanders:
        file.touch()
    with files.atomic_file(target) as file:
        assert not left.exists()
        file.write_text("whole")
    assert target.read_text() == "whole" and set(tmp_path.iterdir()) == {target, *bystanders}


def test_a_refusal_leaves_no_folders(tmp_path):
    target = tmp_path / "a" / "b" / "c"
    assert files.check_writable(target) == target.parent and list(tmp_path.iterdir()) == []
    for atomic in (files.atomic_file, files.atomic_folder):
        with pytest.raises(ValueError, match="refused"), atomic(target):
            raise ValueError("refused")
        assert list(tmp_path.iterdir()) == []
        with atomic(target) as temporary:
            assert temporary.exists()
        assert target.exists() and [path.name for path in target.parent.iterdir()] == ["c"]
        target.rmdir() if target.is_dir() else target.unlink()
        target.parent.rmdir()
        target.parent.parent.rmdir()


@pytest.mark.parametrize("name", ["", ".", "..", "../here", "link"])
def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch, name):
    here = tmp_path / "here"
    here.mkdir()
    (here / "link").symlink_to(here)
    for file in (tmp_path / "report.json", here / "report.json", here / "notes.txt"):
        file.touch()
    monkeypatch.chdir(here)
    with pytest.raises(ValueError, match="holds the current folder"), files.atomic_folder(name):
        pytest.fail("it would be replaced")
    assert {path.name for path in here.iterdir()} == {"link", "report.json", "notes.txt"}


def test_printable_text_is_one_line():
    assert files.printable("a b é 文 |") == "a b é 文 |"
    assert files.printable("x\n\x1b[2J\t\u202e\ud800\x7f") == r"x\n\x1b[2J\t\u202e\ud800\x7f"
