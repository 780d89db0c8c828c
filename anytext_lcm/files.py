"""Files and folders that appear whole or not at all, and text from outside made fit for a terminal."""

import json
import os
import platform
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def printable(text: str) -> str:
    """Escape control characters, newlines and lone surrogates as Python writes them, so that a terminal shows one line.

    Other text stays as it is, backslashes too.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def read_json(path: str | Path) -> Any:
    """The value in a JSON file, which may begin with a byte order mark.

    Raises FileNotFoundError for a missing file, OSError for one that cannot be opened or is no regular file, ValueError
    for anything but JSON.
    """
    path = Path(path)
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is not a regular file")  # reading a pipe would wait for a writer
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def follow_umask(path: Path) -> None:
    """Give a file the access that a new one has; mkstemp and safetensors give it to its owner alone."""
    path.chmod(0o666 & ~_umask())


def _is_running(process: int) -> bool:
    if os.name == "nt":  # os.kill would end the process there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


def _sweep(path: Path) -> None:
    """Delete the temporary folders that killed runs left beside `path`; their names carry machine and process.

    Those of a running process are left alone, and those of another machine, whose processes cannot be seen.
    """
    start = _start_of_name(path)
    for leftover in path.parent.iterdir():
        process, dot, _ = leftover.name.removeprefix(start).partition(".")
        ours = leftover.name.startswith(start) and dot and process.isascii() and process.isdecimal()
        if ours and leftover.is_dir() and not leftover.is_symlink() and not _is_running(int(process)):
            shutil.rmtree(leftover, ignore_errors=True)


def _machine() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"  # short: file names have at most 255 bytes


def _start_of_name(path: Path) -> str:
    return f".{path.name[:50]}.{_machine()}-"


def sweep_files(folder: str | Path) -> None:
    """Delete the temporary files that killed runs of this machine left in a folder; those of live ones stay."""
    for leftover in Path(folder).iterdir():
        _, mark, rest = leftover.name.rpartition(f".{_machine()}-")
        process = rest.partition(".")[0]
        ours = leftover.name.startswith(".") and mark and process.isascii() and process.isdecimal()
        if ours and leftover.is_file() and not leftover.is_symlink() and not _is_running(int(process)):
            leftover.unlink(missing_ok=True)


@contextmanager
def _folder_of(path: Path) -> Iterator[Path]:
    """Inside, the folder of a file to come exists; folders that were made for it go again when the block fails.

    Raises ValueError when nothing can be written there.
    """
    folder = path.parent
    made = [found for found in (folder, *folder.parents) if not found.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ValueError(f"Nothing can be written to {folder} ({error.strerror}); name another output.") from error
        yield folder
    except BaseException:
        for found in made:
            with suppress(OSError):  # it is not empty, or was never made
                found.rmdir()
        raise


def check_writable(path: str | Path) -> Path:
    """Return the folder of a file to come, which need not exist yet. Raises ValueError when nothing can be written
    there.

    Ask before minutes of work, not after. Nothing is left behind.
    """
    path = Path(path)
    made = [found for found in (path.parent, *path.parent.parents) if not found.exists()]
    with _folder_of(path) as folder:
        for found in made:
            with suppress(OSError):  # another process has put something in meanwhile
                found.rmdir()
    return folder


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with its suffix; it takes the place of `path` when the block ends well.

    What killed runs of the same machine left of theirs in the folder is deleted. Raises ValueError when nothing can be
    written there and for a folder.
    """
    path = Path(path)
    with _folder_of(path) as folder:
        if path.is_dir():
            raise ValueError(f"{path} is a folder; name a file to write.")
        sweep_files(folder)
        prefix = f".{path.stem[:50]}.{_machine()}-{os.getpid()}."  # what `sweep_files` looks for
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=path.suffix, dir=folder)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            follow_umask(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def check_replaceable(path: str | Path, mark: str = "report.json") -> Path:
    """The absolute path of a folder that `atomic_folder` may write. Raises ValueError as that does for any other."""
    path = Path(path).absolute()
    if path.exists():
        if not path.is_dir():
            raise ValueError(f"{path} is a file; name a folder to write.")
        if any(path.iterdir()) and not (path / mark).is_file():
            raise ValueError(f"{path} holds other files and will not be replaced; name another folder.")
        if Path.cwd().is_relative_to(path.resolve()):  # its mark may be another program's, and the shell stands there
            raise ValueError(f"{path} holds the current folder and will not be replaced; name another folder.")
    check_writable(path)
    return path


@contextmanager
def atomic_folder(path: str | Path, mark: str = "report.json") -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes the place of `path` when the block ends well, else it vanishes.

    An existing folder is replaced only if it is empty or holds `mark`, that is, if an earlier run wrote it, and does
    not hold the current folder: a mistyped name deletes nothing. What a killed run of the same machine left of its own
    temporary folder is deleted. Raises ValueError for any other folder, before the block runs.
    """
    path = check_replaceable(path, mark)
    with _folder_of(path) as folder, _temporary_folder(path, folder) as temporary:
        yield temporary


@contextmanager
def _temporary_folder(path: Path, folder: Path) -> Iterator[Path]:
    """`atomic_folder` for a path whose place is checked; folder: its parent."""

    def fresh() -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{_start_of_name(path)}{os.getpid()}.", dir=folder))

    _sweep(path)
    temporary, former = fresh(), None
    try:
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        if path.exists():
            former = fresh()
            former.rmdir()  # its name alone is wanted: Windows replaces no folder, not even an empty one
            os.replace(path, former)
        try:
            os.replace(temporary, path)
        except OSError:
            if former is not None:
                os.replace(former, path)
            raise
    finally:
        for leftover in (temporary, former):
            if leftover is not None:
                shutil.rmtree(leftover, ignore_errors=True)
