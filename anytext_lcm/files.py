"""Files and folders that appear whole or not at all, and names of them that a terminal can show."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def printable(text: str) -> str:
    """Escape control characters, newlines and lone surrogates as Python writes them, so that a terminal shows one line.

    Other text stays as it is, backslashes too.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_writable(path: str | Path) -> Path:
    """Make the folder of a file to come and return it. Raises ValueError when nothing can be written there.

    Ask before minutes of work, not after.
    """
    folder = Path(path).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"Nothing can be written to {folder} ({error.strerror}); name another output.") from error
    return folder


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with its suffix; it takes the place of `path` when the block ends well.

    Raises ValueError when nothing can be written there and for a folder.
    """
    path = Path(path)
    folder = check_writable(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file to write.")
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=folder)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp gives access to its owner alone
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, mark: str = "report.json") -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes the place of `path` when the block ends well, else it vanishes.

    An existing folder is replaced only if it is empty or holds `mark`, that is, if an earlier run wrote it: a mistyped
    name deletes nothing. Raises ValueError for any other folder, before the block runs.
    """
    path = Path(path).absolute()
    folder = check_writable(path)
    if path.exists():
        if not path.is_dir():
            raise ValueError(f"{path} is a file; name a folder to write.")
        if any(path.iterdir()) and not (path / mark).is_file():
            raise ValueError(f"{path} holds other files and will not be replaced; name another folder.")

    def fresh() -> Path:
        return Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=folder))

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
