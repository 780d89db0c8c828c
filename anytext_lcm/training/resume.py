"""What a run remembers: saved in every checkpoint, put back by a resumed run, which is then the unbroken run exactly.

Noise, timesteps and the order of the data are not saved: seed, process and step decide them (`data_order.py`).
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from safetensors import SafetensorError
from torch import nn

from anytext_lcm.adapter.lora import adapter_state, load_adapter, save_adapter
from anytext_lcm.adapter.stored import read_adapter
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.training.average import Ema
from anytext_lcm.training.checkpoints import (
    EMA_FOLDER,
    STATE_FILE,
    checkpoints,
    fingerprint,
    new_checkpoint,
    prune,
    read_state,
)
from anytext_lcm.training.processes import raise_everywhere
from anytext_lcm.training.settings import REMOVED, TrainSettings


@dataclass
class Progress:
    """Where a run stands; plain numbers."""

    step: int = 0  # updates, skipped ones included
    skipped: int = 0  # updates whose loss or gradient was not finite
    skipped_in_row: int = 0
    best_score: float | None = None  # of the panel so far, 0..1
    best_step: int = 0
    panels_since_best: int = 0

    def note_score(self, score: float) -> None:
        """Note the panel's score at this step; a tie is no better."""
        if self.best_score is None or score > self.best_score:
            self.best_score, self.best_step, self.panels_since_best = score, self.step, 0
        else:
            self.panels_since_best += 1


@dataclass
class TrainingState:
    """What changes while a student trains."""

    model: AnyText2  # with its adapter
    optimizer: AcceleratedOptimizer
    accelerator: Accelerator  # holds the loss scaler of fp16
    ema: Ema | None = None
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.parameters: list[nn.Parameter] = list(adapter_state(self.model).values())

    def adapter_norm(self) -> float:
        """Length of all adapter weights as one vector."""
        return float(torch.stack([p.detach().norm() for p in self.parameters]).norm())

    def loss_scale(self) -> float:
        """What fp16 multiplies the loss by; 1 otherwise."""
        scaler = self.accelerator.scaler
        return scaler.get_scale() if scaler is not None else 1.0


def save_checkpoint(state: TrainingState, settings: TrainSettings) -> Path:
    """Write `checkpoint-N` of the present step, delete those beyond `checkpoints_total_limit`. Collective.

    Raises ValueError on every process when it cannot be written; earlier checkpoints stay.
    """
    directory, problem = Path(settings.output_dir) / f"checkpoint-{state.progress.step}", None
    if state.accelerator.is_main_process:
        try:
            _write(directory, state, settings)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            last = list(checkpoints(settings.output_dir).values())
            kept = f"the last good one is {last[-1].name}" if last else "there is no earlier one"
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            problem = ValueError(
                f"{directory} could not be written ({reason}); {kept}. "
                "Make room and run again with --resume_from_checkpoint latest."
            )
    raise_everywhere(problem)
    if state.accelerator.is_main_process and settings.checkpoints_total_limit:
        prune(settings.output_dir, settings.checkpoints_total_limit, state.progress.best_step)
    return directory


def _write(directory: Path, state: TrainingState, settings: TrainSettings) -> None:
    base, scaler, ema = fingerprint(state.model), state.accelerator.scaler, state.ema
    header = {"step": state.progress.step, "network": Path(settings.config).name, "base": base, **settings.identity()}
    metadata = {"anytext_lcm": json.dumps(header)}
    remembered = {
        "progress": asdict(state.progress),
        "processes": state.accelerator.num_processes,
        "settings": settings.identity(),
        "base": base,
        "optimizer": state.optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else {},
        "ema_updates": ema.updates if ema is not None else None,
    }
    with new_checkpoint(directory) as temporary:
        save_adapter(state.model, temporary, metadata)
        if ema is not None:
            with ema.applied():
                save_adapter(state.model, temporary / EMA_FOLDER, metadata)
        with (temporary / STATE_FILE).open("wb") as file:
            torch.save(remembered, file)


def restore(directory: Path, state: TrainingState, settings: TrainSettings) -> None:
    """Put a checkpoint back into `state`. The random states that earlier versions saved are not read.

    Raises ValueError for a checkpoint of another run: other settings, number of processes or base weights.
    """
    stored = read_state(directory)
    check_same_run(directory, stored, state, settings)
    load_adapter(state.model, directory, trainable=True)
    state.optimizer.load_state_dict(stored["optimizer"])
    if state.accelerator.scaler is not None and stored["scaler"]:
        state.accelerator.scaler.load_state_dict(stored["scaler"])
    if state.ema is not None:
        state.ema.restore(read_adapter(directory / EMA_FOLDER)[1], stored["ema_updates"])
    state.progress = Progress(**stored["progress"])


def check_same_run(directory: Path, stored: dict, state: TrainingState, settings: TrainSettings) -> None:
    """Raise ValueError unless the stored state belongs to a run of these settings, processes and base weights."""
    if gone := [f"{k} {then!r}" for k, then in stored["settings"].items() if REMOVED.get(k, then) != then]:
        raise ValueError(
            f"{directory} was trained with {', '.join(gone)}, which this version no longer has; start a new run, "
            "or resume with the version that made it."
        )
    now = settings.identity() | {"processes": state.accelerator.num_processes}
    defaults = {f.name: f.default for f in fields(TrainSettings)}  # of settings younger than the checkpoint
    then = defaults | stored["settings"] | {"processes": stored["processes"]}
    if differing := [f"{k} {then.get(k)!r}, now {v!r}" for k, v in now.items() if then.get(k) != v]:
        raise ValueError(
            f"{directory} was trained with other settings: {'; '.join(differing)}; use the same to resume."
        )
    if stored["base"] != (base := fingerprint(state.model)):
        raise ValueError(
            f"{directory} was trained on other base weights ({stored['base']}, these are {base}); "
            "name the same --config and --teacher_ckpt to resume."
        )
