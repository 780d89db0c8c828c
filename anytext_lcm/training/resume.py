"""What a run remembers: saved in every checkpoint, put back by a resumed run, which is then the unbroken run exactly.

Noise, timesteps and the order of the data are not saved: seed, process and step decide them (`data_order.py`).
"""

import json
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from safetensors import SafetensorError
from torch import Tensor, nn

from anytext_lcm.adapter.choices import made_for
from anytext_lcm.adapter.lora import adapter_state, load_adapter, save_adapter
from anytext_lcm.adapter.stored import read_adapter
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.training.average import Ema
from anytext_lcm.training.checkpoints import (
    EMA_FOLDER,
    checkpoints,
    fingerprint,
    new_checkpoint,
    prune,
)
from anytext_lcm.training.processes import raise_everywhere, worker_death
from anytext_lcm.training.settings import REMOVED, TrainSettings
from anytext_lcm.training.state_file import MOMENTS, STATE_FILE, Progress, read_state

FIXED = {"lora_rank", "lora_alpha", "lora_targets", "ema_decay"}
"""Settings that no resumed run can change: they make the adapter and its average."""


@dataclass
class TrainingState:
    """What changes while a student trains."""

    model: AnyText2  # with its adapter
    optimizer: AcceleratedOptimizer
    accelerator: Accelerator  # holds the loss scaler of fp16
    ema: Ema | None = None
    progress: Progress = field(default_factory=Progress)
    paths: str | None = None  # of a run on stored paths: which ones

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
            if worker_death(error):  # torch raises it wherever the signal comes
                raise
            last = list(checkpoints(settings.output_dir).values())
            kept = f"the last good one is {last[-1].name}" if last else "there is no earlier one"
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            problem = ValueError(
                f"{directory} could not be written ({reason}); {kept}. "
                "Make room and run again with --resume_from_checkpoint latest."
            )
    raise_everywhere(problem)
    if state.accelerator.is_main_process and settings.checkpoints_total_limit:
        progress = state.progress
        prune(settings.output_dir, settings.checkpoints_total_limit, progress.best_step, progress.step)
    return directory


def _write(directory: Path, state: TrainingState, settings: TrainSettings) -> None:
    base, scaler, ema = fingerprint(state.model), state.accelerator.scaler, state.ema
    header = {"step": state.progress.step, "network": Path(settings.config).name, "base": base, **settings.identity()}
    header["made_for"] = made_for(settings.objective, settings.phases).to_json()
    metadata = {"anytext_lcm": json.dumps(header)}
    remembered = {
        "progress": asdict(state.progress),
        "processes": state.accelerator.num_processes,
        "settings": settings.identity(),
        "paths": state.paths,
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

    Raises ValueError for a checkpoint of another run: other settings, number of processes or base weights; nothing is
    restored then.
    """
    stored = read_state(directory)
    check_same_run(directory, stored, state, settings)
    groups = state.optimizer.state_dict()["param_groups"]  # their values are the settings', not the checkpoint's
    check_moments(directory, stored, state, [group["params"] for group in groups])
    average = stored_average(directory, stored, state)
    load_adapter(state.model, directory, trainable=True)
    state.optimizer.load_state_dict({"state": stored["optimizer"]["state"], "param_groups": groups})
    if state.accelerator.scaler is not None and stored["scaler"]:
        state.accelerator.scaler.load_state_dict(stored["scaler"])
    if state.ema is not None:
        state.ema.restore(average, stored["ema_updates"])
    state.progress = Progress(**stored["progress"])


def check_moments(directory: Path, stored: dict, state: TrainingState, numbers: list[list[int]]) -> None:
    """Raise ValueError unless the stored moments have the shapes of the run's parameters, `numbers` of each group."""
    optimizer = stored["optimizer"]
    fits = [group["params"] for group in optimizer["param_groups"]] == numbers
    shapes = [parameter.shape for parameter in state.parameters]
    if not fits or any(
        not 0 <= number < len(shapes) or any(entry[name].shape != shapes[number] for name in MOMENTS)
        for number, entry in optimizer["state"].items()
    ):
        raise ValueError(
            f"{directory / STATE_FILE} does not fit its adapter: the optimizer's state is of other parameters; "
            "resume from another checkpoint."
        )


def stored_average(directory: Path, stored: dict, state: TrainingState) -> dict[str, Tensor]:
    """The stored average of the adapter, empty for a run without one. Raises ValueError for one that does not fit."""
    if state.ema is None:
        return {}
    average = read_adapter(directory / EMA_FOLDER)[1]
    shapes = [{key: value.shape for key, value in found.items()} for found in (average, state.ema.parameters)]
    if stored["ema_updates"] is None or shapes[0] != shapes[1]:
        raise ValueError(f"{directory / EMA_FOLDER} is not the average of this run's adapter; use another checkpoint.")
    return average


def check_same_run(directory: Path, stored: dict, state: TrainingState, settings: TrainSettings) -> None:
    """Raise ValueError unless the stored state belongs to a run of these settings, processes and base weights.

    The learning rate may change, and with `resume_changed` all but FIXED; what has changed is printed.
    """
    removed = dict(REMOVED)
    if not stored["settings"].get("use_mock_dataset"):
        del removed["scenery"]
    if gone := [f"{k} {then!r}" for k, then in stored["settings"].items() if removed.get(k, then) != then]:
        raise ValueError(
            f"{directory} was trained with {', '.join(gone)}, which this version no longer has; start a new run, "
            "or resume with the version that made it."
        )
    now = settings.identity() | {"processes": state.accelerator.num_processes, "stored paths": state.paths}
    defaults = {f.name: f.default for f in fields(TrainSettings)}  # of settings younger than the checkpoint
    drawn = stored.get("paths", state.paths)  # earlier versions did not store it
    then = defaults | stored["settings"] | {"processes": stored["processes"], "stored paths": drawn}
    changed = {k: f"{k} {then.get(k)!r}, now {v!r}" for k, v in now.items() if then.get(k) != v}
    bound = FIXED if settings.resume_changed else now.keys() - {"learning_rate"}
    if differing := [words for name, words in changed.items() if name in bound]:
        free = not settings.resume_changed and FIXED.isdisjoint(changed)
        hint = ", or say --resume_changed, which makes it another run" if free else ""
        raise ValueError(
            f"{directory} was trained with other settings: {'; '.join(differing)}; use the same to resume{hint}."
        )
    if stored["base"] != (base := fingerprint(state.model)):
        raise ValueError(
            f"{directory} was trained on other base weights ({stored['base']}, these are {base}); "
            "name the same --config and --teacher_ckpt to resume."
        )
    if state.accelerator.is_main_process:
        first = stored["progress"]["step"] + 1
        if changed.pop("learning_rate", None):
            print(
                f"The learning rate is {now['learning_rate']:g} from update {first} on, before it was "
                f"{then['learning_rate']}: another run from here on.",
                file=sys.stderr,
            )
        if changed:
            print(f"Another run from update {first} on: {'; '.join(changed.values())}.", file=sys.stderr)
