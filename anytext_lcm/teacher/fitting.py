"""The training loop of all stages, and the file from which an interrupted one goes on."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from anytext_lcm.files import atomic_file
from anytext_lcm.model.checkpoint import failures_of_writing
from anytext_lcm.teacher.processes import Rank

LOG_EVERY = 50  # steps
SAVE_EVERY = 600  # seconds: what an interruption costs at most

# loss_of(step) -> the loss (), and further numbers by name (floats, or small tensors without gradient) for the log.
LossOfStep = Callable[[int], tuple[Tensor, dict[str, Any]]]


@dataclass(frozen=True)
class Plan:
    """How one stage is trained: `steps` updates, learning rate `peak`, gradients clipped to norm `clip`."""

    name: str  # of the progress bar and the log
    steps: int
    peak: float
    decay: float  # share of the steps over which the rate falls to zero
    warmup: int = 200  # steps over which it rises
    clip: float = 1.0

    def rate(self, step: int) -> float:
        """Learning rate: linear warm-up, constant, linear fall. A longer run begins as a shorter one does."""
        return self.peak * min(1.0, (step + 1) / self.warmup, (self.steps - step) / max(1, self.decay * self.steps))


@dataclass
class TrainingState:
    """What is trained, and the file that keeps it.

    Saved as {raw, average, optimisers, step}: state dicts of the module, of its exponential average and of the
    optimisers, and the number of updates done. A stage that cannot be interrupted has neither average nor path.
    """

    module: nn.Module
    optimisers: list[torch.optim.Optimizer]
    average: AveragedModel | None = None
    path: Path | None = None
    step: int = 0

    def restore(self) -> int:
        """Load the file where there is one, and return how many updates it has behind it."""
        if self.path.exists():
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            self.module.load_state_dict(saved["raw"])
            self.average.load_state_dict(saved["average"])
            # Weights that `stages.start_from` put there have no optimisers.
            for optimiser, state in zip(self.optimisers, saved.get("optimisers", ()), strict=False):
                optimiser.load_state_dict(state)
            self.step = saved["step"]
        return self.step

    def save(self) -> None:
        """Write the file, whole or not at all."""
        optimisers = [optimiser.state_dict() for optimiser in self.optimisers]
        content = dict(raw=self.module.state_dict(), average=self.average.state_dict(), optimisers=optimisers)
        save(self.path, content | dict(step=self.step))


def moving_average(module: nn.Module, decay: float) -> AveragedModel:
    """A copy of the module that follows it: average = d * average + (1 - d) * weights after each update.

    d = min(decay, (1 + count) / (10 + count)), so that the first weights do not stay half of a short run's average.
    """

    @torch.no_grad()
    def follow(averages: list[Tensor], weights: list[Tensor], count: Tensor) -> None:
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + int(count)) / (10 + int(count))))

    return AveragedModel(module, multi_avg_fn=follow)


def save(path: Path, content: object) -> None:
    """torch.save, whole or not at all. Raises OSError when it cannot be written, as on a full disk."""
    with atomic_file(path) as temporary, failures_of_writing(path):
        torch.save(content, temporary)


def averaged(path: Path) -> dict[str, Tensor]:
    """The averaged weights of a training state, under the module's own names."""
    saved = torch.load(path, map_location="cpu", weights_only=True)["average"]
    return {k.removeprefix("module."): v for k, v in saved.items() if k != "n_averaged"}


def fit(rank: Rank, state: TrainingState, plan: Plan, loss_of: LossOfStep) -> None:
    """Do the updates of `plan` that `state` has not done yet; keep its file, and log numbers beside that.

    loss_of draws its own batch: which one must depend on the step and the process alone, so that a stage goes on with
    the batches it would have seen.
    """
    parameters = [p for p in state.module.parameters() if p.requires_grad]
    todo = range(state.step, plan.steps)
    bar = tqdm(todo, plan.name, plan.steps, initial=state.step, disable=not rank.main, mininterval=10)
    log, saved = _Log(plan.name, state.path), time.monotonic()
    for step in bar:
        for group in (group for optimiser in state.optimisers for group in optimiser.param_groups):
            group["lr"] = plan.rate(step)
        loss, numbers = loss_of(step)
        for optimiser in state.optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, plan.clip)
        for optimiser in state.optimisers:
            optimiser.step()
        if state.average is not None:
            state.average.update_parameters(state.module)
        state.step = step + 1
        if rank.main and (row := log.add(state.step, {"loss": loss.detach()} | numbers)):
            bar.set_postfix(loss=row["loss"])
        last = state.step == plan.steps
        if rank.main and state.path is not None and (last or time.monotonic() - saved > SAVE_EVERY):
            state.save()
            saved = time.monotonic()


@dataclass
class _Log:
    """Means of LOG_EVERY steps, appended to `<name>.jsonl` beside the state's file; without a file only shown."""

    name: str
    state: Path | None
    began: float = field(default_factory=time.monotonic)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, step: int, numbers: dict[str, Any]) -> dict[str, Any] | None:
        """Note the numbers of a step; return the row of means when it is complete."""
        self.rows.append({k: np.asarray(v.tolist() if isinstance(v, Tensor) else v) for k, v in numbers.items()})
        if step % LOG_EVERY:
            return None
        row = {k: np.mean([found[k] for found in self.rows], axis=0).round(5).tolist() for k in numbers}
        self.rows.clear()
        if self.state is not None:
            with self.state.with_name(f"{self.name}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **row, "seconds": round(time.monotonic() - self.began, 1)}) + "\n")
        return row
