"""`training_state.pt` of a checkpoint: what it has to hold, and that it does.

A state that lacks something is found before anything is restored, so that "latest" can pass over it.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_type_hints

import torch
from torch import Tensor

from anytext_lcm.model.checkpoint import DAMAGE

STATE_FILE = "training_state.pt"
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, one pair a parameter


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


REQUIRED: Mapping[str, type | tuple[type, ...]] = {
    "progress": dict,
    "processes": int,
    "settings": dict,
    "base": str,
    "optimizer": dict,
    "scaler": dict,
    "ema_updates": (int, NoneType),
}
"""Keys of the state and their types."""

SCALER = {
    "scale": float,
    "growth_factor": float,
    "backoff_factor": float,
    "growth_interval": int,
    "_growth_tracker": int,
}
"""Keys of torch's GradScaler, whose state is empty without fp16."""


def read_state(directory: Path) -> dict[str, Any]:
    """The training state of a checkpoint, on the CPU. Raises ValueError for one that `problem_of_state` refuses."""
    try:
        state = torch.load(directory / STATE_FILE, map_location="cpu", weights_only=True, mmap=True)
    except (*DAMAGE, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(f"{directory / STATE_FILE} is no training state ({reason}).") from error
    if problem := problem_of_state(state):
        raise ValueError(f"{directory}: {problem}.")
    return state


def problem_of_state(state: object) -> str | None:
    """What a training state lacks or has of another type, with its key, or None."""
    return (
        _problem_of_table(state, REQUIRED, "")
        or _problem_of_progress(state["progress"])
        or _problem_of_settings(state["settings"])
        or (_problem_of_table(state["scaler"], SCALER, "scaler.") if state["scaler"] else None)
        or _problem_of_optimizer(state["optimizer"], state["progress"])
    )


def _problem_of_table(found: object, wanted: Mapping[str, Any], path: str) -> str | None:
    if not isinstance(found, dict):
        return f"{STATE_FILE} holds no table {path}".rstrip(" .")
    for key, kind in wanted.items():
        if key not in found:
            return f"{path}{key} is missing from {STATE_FILE}"
        kinds = kind if isinstance(kind, tuple) else (kind,)
        kinds += (int,) if float in kinds else ()
        if not isinstance(found[key], kinds) or isinstance(found[key], bool):
            return f"{path}{key} in {STATE_FILE} is a {type(found[key]).__name__}"
    return None


def _problem_of_progress(found: dict) -> str | None:
    hints = get_type_hints(Progress)
    kinds = {f.name: hints[f.name] if isinstance(hints[f.name], type) else (float, NoneType) for f in fields(Progress)}
    if problem := _problem_of_table(found, kinds, "progress."):
        return problem
    if unknown := sorted(map(str, found.keys() - kinds.keys())):
        return f"progress.{unknown[0]} in {STATE_FILE} is not known"
    below = [key for key, value in found.items() if value is not None and value < 0]
    return f"progress.{below[0]} in {STATE_FILE} is below 0" if below else None


def _problem_of_settings(found: dict) -> str | None:
    plain = NoneType | bool | int | float | str | list
    odd = [f"settings.{key}" for key, value in found.items() if not (isinstance(key, str) and isinstance(value, plain))]
    return f"{odd[0]} in {STATE_FILE} is no plain value" if odd else None


def _problem_of_optimizer(found: dict, progress: Mapping[str, Any]) -> str | None:
    if problem := _problem_of_table(found, {"state": dict, "param_groups": list}, "optimizer."):
        return problem
    groups, state = found["param_groups"], found["state"]
    if not all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups):
        return f"optimizer.param_groups in {STATE_FILE} lists no parameters"
    numbers = [number for group in groups for number in group["params"]]
    if not all(isinstance(number, int) for number in numbers):
        return f"optimizer.param_groups in {STATE_FILE} lists no numbers of parameters"
    if not state and progress["step"] == progress["skipped"]:
        return None  # nothing was updated yet
    if foreign := sorted(map(str, state.keys() - set(numbers))):
        return f"optimizer.state in {STATE_FILE} holds {foreign[0]}, which is no parameter of it"
    for number in numbers:
        entry = state.get(number)
        moments = [entry.get(name) for name in MOMENTS] if isinstance(entry, dict) else []
        if not moments or not all(isinstance(m, Tensor) and m.is_floating_point() for m in moments):
            return f"the Adam moments of parameter {number} are missing from {STATE_FILE}"
        if not isinstance(entry.get("step"), Tensor | int | float) or isinstance(entry["step"], bool):
            return f"optimizer.state[{number}].step is missing from {STATE_FILE}"
    return None
