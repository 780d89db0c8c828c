"""A run's folder: checkpoints that are whole or not there, which one to resume from, and one run at a time.

OUTPUT_DIR/checkpoint-N/adapter_config.json, adapter_model.safetensors    the adapter after N updates
                        ema/                                              its average, an adapter of its own
                        training_state.pt                                 see `resume.py`
                        manifest.json                                     size and SHA-256 of each of these
OUTPUT_DIR/logs/        TensorBoard's files, and run.lock
OUTPUT_DIR/run.yaml     the settings as used, see `run_file.py`
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from torch import nn

from anytext_lcm.files import atomic_folder, check_writable, printable, read_json
from anytext_lcm.training.processes import raise_everywhere
from anytext_lcm.training.settings import TrainSettings
from anytext_lcm.training.state_file import STATE_FILE, read_state

MANIFEST_FILE, EMA_FOLDER = "manifest.json", "ema"
LOCK_SECONDS = 10  # workers of a killed run hold its lock until they notice, within 5 s


def fingerprint(model: nn.Module) -> str:
    """16 hex digits of the base weights: names, shapes and signs of the first 256 numbers of every parameter.

    Signs survive rounding, so the precision of a run does not matter. An adapter is left out.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" not in name:
            signs = torch.signbit(parameter.detach().flatten()[:256]).cpu()
            digest.update(f"{name.replace('.base_layer', '')} {tuple(parameter.shape)}".encode())
            digest.update(np.packbits(signs.numpy()).tobytes())
    return digest.hexdigest()[:16]


# -- what is there ----------------------------------------------------------------------------------------


def _numbered(output_dir: str | Path) -> dict[int, Path]:
    """All `checkpoint-N` paths, complete or not, by N in ascending order."""
    found = {}
    for path in Path(output_dir).glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isascii() and number.isdecimal():
            found[int(number)] = path
    return dict(sorted(found.items()))


def checkpoints(output_dir: str | Path) -> dict[int, Path]:
    """The complete checkpoints of a run by their step, ascending. Compares the sizes of files, not their contents."""
    numbered = _numbered(output_dir).items()
    return {step: path for step, path in numbered if what_is_wrong_with(path, contents=False) is None}


def what_is_wrong_with(directory: Path, contents: bool = True) -> str | None:
    """Why a folder is no complete checkpoint, or None. contents: compare checksums and look into the state, too."""
    try:
        files = read_json(directory / MANIFEST_FILE)["files"]
        for name, expected in files.items():
            path = directory / name
            if not path.is_file():
                return f"{name} is not in it"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
            if contents and _sha256(path) != expected["sha256"]:
                return f"{name} has changed since it was written"
        if STATE_FILE not in files:
            return f"{STATE_FILE} is not in it"
    except FileNotFoundError:
        missing = MANIFEST_FILE if (directory / STATE_FILE).is_file() else STATE_FILE
        return f"{missing} is not in it"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST_FILE} cannot be read ({error!r})"
    if contents:
        try:
            read_state(directory)
        except ValueError as error:
            return str(error).removeprefix(f"{directory}: ").rstrip(".")
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_resume(settings: TrainSettings) -> Path | None:
    """The checkpoint to resume from, None for a fresh start. Changes nothing.

    "latest" passes over damaged checkpoints with a sentence on stderr, and starts anew in a folder whose run was
    stopped before its first checkpoint. Raises FileNotFoundError for a checkpoint that is missing or damaged,
    ValueError when the folder holds checkpoints that this run would write again.
    """
    wanted = settings.resume_from_checkpoint
    if wanted == "latest":
        for path in reversed(_numbered(settings.output_dir).values()):
            problem = what_is_wrong_with(path)
            if problem is None:
                return path
            print(printable(f"{path} is passed over: {problem}."), file=sys.stderr)
        if was_started(settings.output_dir):
            print(f"{settings.output_dir} holds no complete checkpoint; it starts anew.", file=sys.stderr)
            return None
        raise FileNotFoundError(
            f"{settings.output_dir} holds no checkpoint to resume from; leave the flag out to start."
        )
    start = 0
    if wanted is not None:
        if problem := what_is_wrong_with(Path(wanted)):
            raise FileNotFoundError(f"{wanted} is no checkpoint to resume from: {problem}.")
        start = read_state(Path(wanted))["progress"]["step"]
    later = [path for step, path in checkpoints(settings.output_dir).items() if step > start]
    if any(what_is_wrong_with(path) is None for path in reversed(later)):  # the others are put aside in their turn
        names = ", ".join(path.name for path in later)
        raise ValueError(f"{settings.output_dir} holds {names} already; resume from latest or name another output_dir.")
    return None if wanted is None else Path(wanted)


# -- one run at a time ------------------------------------------------------------------------------------


def _lock_file(output_dir: str | Path) -> Path:
    return Path(output_dir) / "logs" / "run.lock"


def was_started(output_dir: str | Path) -> bool:
    """Whether a run was ever started there: it makes its lock before anything else, and leaves it behind."""
    return _lock_file(output_dir).exists()


@contextmanager
def exclusive(output_dir: str | Path) -> Iterator[None]:
    """Inside, no other run can use the folder; what a killed run left half-written is deleted first.

    Raises ValueError when another run is using it or nothing can be written.
    """
    folder = Path(output_dir)
    check_writable(_lock_file(folder))
    lock = FileLock(_lock_file(folder))
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise ValueError(
            f"Another run is writing to {folder}; wait for it, stop it, or name another output_dir."
        ) from None
    try:
        for leftover in folder.glob(".checkpoint-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        lock.release()


@contextmanager
def claimed(settings: TrainSettings, accelerator: Accelerator) -> Iterator[Path | None]:
    """Inside, the folder is this run's alone; yields the checkpoint to resume from. Collective.

    Raises as `exclusive` and `find_resume`, on every process.
    """
    with ExitStack() as held:
        resume, problem = None, None
        if accelerator.is_main_process:  # one process looks, so that all see the same
            try:
                if not was_started(settings.output_dir):
                    find_resume(settings)  # refuses a mistyped folder before anything is made in it
                held.enter_context(exclusive(settings.output_dir))
                resume = find_resume(settings)
            except (ValueError, OSError) as error:
                problem = error
        raise_everywhere(problem)
        [resume] = broadcast_object_list([resume])
        yield resume


# -- write and delete -------------------------------------------------------------------------------------


@contextmanager
def new_checkpoint(directory: Path) -> Iterator[Path]:
    """Yields a folder to fill; it appears as `directory` with its manifest, flushed to disk, or not at all.

    What stands there damaged is renamed to `checkpoint-N.damaged-` and a number, and kept.
    """
    if directory.exists() and (problem := what_is_wrong_with(directory)) is not None:
        aside = directory.with_name(f"{directory.name}.damaged-{time.time_ns()}")
        os.replace(directory, aside)
        print(printable(f"{directory} is now {aside.name}: {problem}."), file=sys.stderr)
    with atomic_folder(directory, mark=STATE_FILE) as temporary:
        yield temporary
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        listed = {
            path.relative_to(temporary).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in files
        }
        (temporary / MANIFEST_FILE).write_text(json.dumps({"files": listed}, indent=2) + "\n", encoding="utf-8")
        for path in (*files, temporary / MANIFEST_FILE):  # so that a power cut leaves all of it or nothing
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def prune(output_dir: str | Path, limit: int, best: int, last: int) -> None:
    """Delete all checkpoints up to step `last` but the latest `limit` and the one of step `best`.

    Later ones were damaged when the run was resumed, and wait to be put aside.
    """
    found = [(step, path) for step, path in checkpoints(output_dir).items() if step <= last]
    for step, path in found[:-limit]:
        if step == best:
            continue
        doomed = path.with_name(f".{path.name}.old")  # renamed first, so that none is ever half there
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
