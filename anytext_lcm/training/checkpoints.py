"""A run on disk: checkpoints that are whole or not there, and going on from them exactly.

Imports torch, Accelerate, filelock and the rooms lora, model, outputs, settings. Noise, timesteps and the order of the
data need no state: seed, process and step decide them (`anytext_lcm/distill.py`).
"""

import hashlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from anytext_lcm.adapter.lora import adapter_state, load_adapter, read_adapter, save_adapter
from anytext_lcm.files import check_writable, whole_directory
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.training.settings import REMOVED, TrainSettings

STATE_FILE, MANIFEST_FILE = "training_state.pt", "manifest.json"


EMA_FOLDER = "ema"


LOCK_SECONDS = 10  # workers of a killed run hold its lock until they notice, within 5 s


@dataclass
class Progress:
    """What a run remembers besides its weights; plain numbers, written into every checkpoint."""

    step: int = 0  # updates, skipped ones included
    skipped: int = 0  # updates whose loss or gradient was not finite
    skipped_in_row: int = 0
    best_score: float | None = None  # of the panel so far, 0..1
    best_step: int = 0
    panels_since_best: int = 0

    def judge(self, score: float) -> None:
        """Takes note of the panel's score at this step; a tie is no better."""
        if self.best_score is None or score > self.best_score:
            self.best_score, self.best_step, self.panels_since_best = score, self.step, 0
        else:
            self.panels_since_best += 1


class Ema:
    """Exponential moving average of an adapter, fp32, for export; the student that trains is not touched.

    The decay starts low, min(decay, (1 + n) / (10 + n)) at update n (as in TensorFlow's
    ExponentialMovingAverage), so that the first updates are not averaged with the untrained adapter for ever.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float):
        self.parameters = dict(parameters)
        self.keys = list(self.parameters)

        def average(mean: Tensor, own: Tensor, updates: Tensor | int) -> Tensor:
            return torch.lerp(mean, own, 1 - min(decay, (1 + int(updates)) / (10 + int(updates))))

        # a list, since the keys' dots cannot be names of parameters; the first update copies the weights
        self.own = nn.ParameterList(self.parameters.values())
        self.averaged = AveragedModel(self.own, avg_fn=average)
        self.averaged.update_parameters(self.own)

    @property
    def updates(self) -> int:
        """Updates so far; the copy at the start is none."""
        return int(self.averaged.n_averaged) - 1

    @property
    def values(self) -> dict[str, Tensor]:
        return dict(zip(self.keys, self.averaged.module, strict=True))

    def update(self) -> None:
        self.averaged.update_parameters(self.own)

    @torch.no_grad()
    def restore(self, values: Mapping[str, Tensor], updates: int) -> None:
        """Puts a stored average back."""
        for key, value in self.values.items():
            value.copy_(values[key])
        self.averaged.n_averaged.fill_(updates + 1)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model carries the average."""
        own = {key: p.detach().clone() for key, p in self.parameters.items()}
        try:
            self._put(self.values)
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for key, parameter in self.parameters.items():
            parameter.copy_(values[key])
        torch.clear_autocast_cache()  # it holds half-precision copies of what was there before


def seed_random_state(seed: int) -> None:
    """Starts the global generators of Python, numpy, torch and the GPU anew. The run's own noise comes from none of
    them, but a user's data set may draw from them: seeded before every micro-batch by its place in the run, they need
    not be saved.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # of the GPU too


def fingerprint(model: nn.Module) -> str:
    """16 hex digits that tell one set of base weights from another: names, shapes and the signs of the first 256
    numbers of every parameter. Signs survive any rounding, so the precision of a run does not matter.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" not in name:
            signs = torch.signbit(parameter.detach().flatten()[:256]).cpu()
            digest.update(f"{name.replace('.base_layer', '')} {tuple(parameter.shape)}".encode())
            digest.update(np.packbits(signs.numpy()).tobytes())
    return digest.hexdigest()[:16]


def _numbered(output_dir: str | Path) -> dict[int, Path]:
    """Whatever bears the name of a checkpoint, by its step, rising."""
    found = {}
    for path in Path(output_dir).glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isdigit():
            found[int(number)] = path
    return dict(sorted(found.items()))


def checkpoints(output_dir: str | Path) -> dict[int, Path]:
    """The complete checkpoints of a run by their step, rising. Sizes are compared, contents not: `defect` does."""
    return {step: path for step, path in _numbered(output_dir).items() if defect(path, contents=False) is None}


def defect(directory: Path, contents: bool = True) -> str | None:
    """What is wrong with a checkpoint's files, None when they are as they were written."""
    try:
        files = json.loads((directory / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
        for name, about in files.items():
            path = directory / name
            if not path.is_file():
                return f"{name} is not in it"
            if path.stat().st_size != about["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {about['bytes']}"
            if contents and _sha256(path) != about["sha256"]:
                return f"{name} has changed since it was written"
        return None if STATE_FILE in files else f"{STATE_FILE} is not in it"
    except FileNotFoundError:
        missing = MANIFEST_FILE if (directory / STATE_FILE).is_file() else STATE_FILE
        return f"{missing} is not in it"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST_FILE} cannot be read ({error!r})"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_resume(settings: TrainSettings) -> Path | None:
    """The checkpoint to go on from, None for a fresh start. Looks only, changes nothing.

    With "latest" a damaged checkpoint is passed over, with a sentence on stderr, and a run that was stopped before its
    first one starts anew. Raises FileNotFoundError when there
    is none or the named one is damaged, ValueError when the output directory holds steps this run would write again.
    """
    existing = checkpoints(settings.output_dir)
    wanted = settings.resume_from_checkpoint
    if wanted == "latest":
        for path in reversed(_numbered(settings.output_dir).values()):
            problem = defect(path)
            if problem is None:
                return path
            print(f"{path} is passed over: {problem}.", file=sys.stderr)
        if not existing and begun(settings.output_dir):
            print(f"{settings.output_dir} holds no complete checkpoint; it starts anew.", file=sys.stderr)
            return None
        raise FileNotFoundError(
            f"{settings.output_dir} holds no checkpoint to resume from; leave the flag out to start."
        )
    start = 0
    if wanted is not None:
        if problem := defect(Path(wanted)):
            raise FileNotFoundError(f"{wanted} is no checkpoint to resume from: {problem}.")
        start = _read_state(Path(wanted))["progress"]["step"]
    if later := [path.name for step, path in existing.items() if step > start]:
        raise ValueError(
            f"{settings.output_dir} holds {', '.join(later)} already; resume from latest or name another output_dir."
        )
    return None if wanted is None else Path(wanted)


def _read_state(directory: Path) -> dict[str, Any]:
    return torch.load(directory / STATE_FILE, map_location="cpu", weights_only=True, mmap=True)


def _lock_file(output_dir: str | Path) -> Path:
    return Path(output_dir) / "logs" / "run.lock"


def begun(output_dir: str | Path) -> bool:
    """Whether a run was ever at work there: it makes its lock before anything else, and leaves it behind."""
    return _lock_file(output_dir).exists()


@contextmanager
def owned(output_dir: str | Path) -> Iterator[None]:
    """Inside, the output directory is this run's alone, and swept of what a killed run left half-written.

    Raises ValueError when another run is at work there, or nothing can be written.
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


def agree(accelerator: Accelerator, problem: str | None) -> None:
    """The first process's problem becomes everybody's: ValueError on all of them or on none. Collective."""
    [shared] = broadcast_object_list([problem])
    if shared is not None:
        raise ValueError(shared)


def save_checkpoint(
    directory: Path,
    model: AnyText2,
    optimizer: Any,
    accelerator: Accelerator,
    settings: TrainSettings,
    progress: Progress,
    ema: Ema | None = None,
) -> None:
    """Adapter and training state, complete or not at all; then older checkpoints beyond
    `settings.checkpoints_total_limit` go. Collective: every process has to call it.

    The average, if there is one, is an adapter of its own in ema/. A damaged checkpoint of the same step is renamed, to
    `checkpoint-N.damaged-` and a number. Raises ValueError on every process when it
    cannot be written; the checkpoints that were there stay.
    """
    problem = None
    if accelerator.is_main_process:
        try:
            _write(directory, model, optimizer, accelerator, settings, progress, ema)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            last = list(checkpoints(settings.output_dir).values())
            kept = f"the last good one is {last[-1].name}" if last else "there is no earlier one"
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            problem = (
                f"{directory} could not be written ({reason}); {kept}. "
                "Make room and run again with --resume_from_checkpoint latest."
            )
    agree(accelerator, problem)
    if accelerator.is_main_process and settings.checkpoints_total_limit:
        _prune(settings.output_dir, settings.checkpoints_total_limit, progress.best_step)


def _write(
    directory: Path,
    model: AnyText2,
    optimizer: Any,
    accelerator: Accelerator,
    settings: TrainSettings,
    progress: Progress,
    ema: Ema | None,
) -> None:
    base = fingerprint(model)
    about = {"step": progress.step, "network": Path(settings.config).name, "base": base, **settings.identity()}
    metadata = {"anytext_lcm": json.dumps(about)}
    state = {
        "progress": asdict(progress),
        "processes": accelerator.num_processes,
        "settings": settings.identity(),
        "base": base,
        "optimizer": optimizer.state_dict(),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else {},
        "ema_updates": ema.updates if ema is not None else None,
    }
    if directory.exists() and (problem := defect(directory)) is not None:
        # One that was passed over, or something else by that name: it is kept, and not in the way.
        aside = directory.with_name(f"{directory.name}.damaged-{time.time_ns()}")
        os.replace(directory, aside)
        print(f"{directory} is now {aside.name}: {problem}.", file=sys.stderr)
    with whole_directory(directory, mark=STATE_FILE) as temporary:
        save_adapter(model, temporary, metadata)
        if ema is not None:
            with ema.applied():
                save_adapter(model, temporary / EMA_FOLDER, metadata)
        with (temporary / STATE_FILE).open("wb") as file:
            torch.save(state, file)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        listed = {
            path.relative_to(temporary).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in files
        }
        (temporary / MANIFEST_FILE).write_text(json.dumps({"files": listed}, indent=2) + "\n", encoding="utf-8")
        for path in (*files, temporary / MANIFEST_FILE):  # also a power cut shall find all of it or nothing
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def _prune(output_dir: str | Path, limit: int, best: int) -> None:
    """All but the latest `limit` checkpoints and the best one go; renamed first, so that none is ever half there."""
    for step, path in list(checkpoints(output_dir).items())[:-limit]:
        if step == best:
            continue
        doomed = path.with_name(f".{path.name}.old")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def restore(
    directory: Path,
    model: AnyText2,
    optimizer: Any,
    accelerator: Accelerator,
    settings: TrainSettings,
    ema: Ema | None = None,
) -> Progress:
    """Puts a checkpoint back and returns its progress. Earlier versions' random states, if it holds any, are not used.

    Raises ValueError when it belongs to another run: other settings, number of processes or base weights.
    """
    state = _read_state(directory)
    if gone := [f"{k} {then!r}" for k, then in state["settings"].items() if REMOVED.get(k, then) != then]:
        raise ValueError(
            f"{directory} was trained with {', '.join(gone)}, which this version no longer has; start a new run, "
            "or resume with the version that made it."
        )
    now = settings.identity() | {"processes": accelerator.num_processes}
    defaults = {f.name: f.default for f in fields(TrainSettings)}  # of settings younger than the checkpoint
    then = defaults | state["settings"] | {"processes": state["processes"]}
    if differing := [f"{k} {then.get(k)!r}, now {v!r}" for k, v in now.items() if then.get(k) != v]:
        raise ValueError(
            f"{directory} was trained with other settings: {'; '.join(differing)}; use the same to resume."
        )
    if state["base"] != (base := fingerprint(model)):
        raise ValueError(
            f"{directory} was trained on other base weights ({state['base']}, these are {base}); "
            "name the same --config and --teacher_ckpt to resume."
        )
    load_adapter(model, directory, trainable=True)
    optimizer.load_state_dict(state["optimizer"])
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    if ema is not None:
        ema.restore(read_adapter(directory / EMA_FOLDER)[1], state["ema_updates"])
    return Progress(**state["progress"])


def adapter_norm(model: AnyText2) -> float:
    """Length of all adapter weights as one vector."""
    return float(torch.stack([p.detach().norm() for p in adapter_state(model).values()]).norm())
