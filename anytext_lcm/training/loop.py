"""The distillation loop: `updates` trains and yields what each update did, `run_distillation` wires it to data, logs
and checkpoints.

There is one copy of the weights: the teacher is the model with its adapter off, the target the model with it on. The
step itself is in `step.py`. Next: `drawing/draw.py`, where the trained adapter draws. Notebook 04 launches this loop.
"""

import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import Dataset

from anytext_lcm.adapter.lora import adapter_state, attach
from anytext_lcm.data.packed import expand
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.training.average import Ema
from anytext_lcm.training.checkpoints import claimed
from anytext_lcm.training.data_order import batch_generator, build_dataset, build_loader, held_out_records
from anytext_lcm.training.encoded_once import encoded_once
from anytext_lcm.training.fitting import fit_to_machine
from anytext_lcm.training.path_store import PathDataset
from anytext_lcm.training.processes import (
    fresh_accelerate_state,
    one_voice,
    raise_everywhere,
    settle,
    share_first_weights,
    start_accelerator,
    worker_deaths_in_words,
)
from anytext_lcm.training.resume import TrainingState, restore, save_checkpoint
from anytext_lcm.training.run_file import write_run
from anytext_lcm.training.settings import PRECISIONS, TrainSettings
from anytext_lcm.training.state_file import Progress
from anytext_lcm.training.step import DistillStep, LossParts, new_optimizer, update
from anytext_lcm.training.watching import HeldOut, OnSample, Watcher, sample_pictures

BUCKETS = 5  # of timesteps, 200 wide: the x0 gap differs in meaning from one to the next


@dataclass(frozen=True)
class Update:
    """What one update did: numbers by TensorBoard tag, and sentences about records that were mended or left out."""

    step: int  # counted from 1
    values: dict[str, float]
    problems: tuple[str, ...] = ()


class UpdateSums:
    """Loss and squared x0 gap of an update, the gap by bucket of timesteps, over batches and processes."""

    def __init__(self, device: torch.device, train_timesteps: int):
        self.values = torch.zeros(1 + 2 * BUCKETS, device=device)
        self.width = train_timesteps // BUCKETS

    @torch.no_grad()
    def add(self, parts: LossParts) -> None:
        """Add a micro-batch."""
        gap = (parts.x0 - parts.teacher_x0).square().flatten(1).mean(1)
        bucket = (parts.start_timesteps // self.width).clamp(max=BUCKETS - 1)
        self.values[0] += parts.loss.detach()
        self.values[1 : 1 + BUCKETS].index_add_(0, bucket, gap)
        self.values[1 + BUCKETS :].index_add_(0, bucket, torch.ones_like(gap))

    def take(self, accelerator: Accelerator, batches: int) -> dict[str, float]:
        """Return loss, x0_gap (RMS) and x0_gap_by_timestep/LOW-HIGH of the drawn buckets; start anew. Collective."""
        totals = accelerator.reduce(self.values, "sum")
        self.values = torch.zeros_like(self.values)
        loss = float(totals[0]) / (accelerator.num_processes * batches)
        squares, counts = totals[1:].cpu().double().split(BUCKETS)
        values = {"loss": loss, "x0_gap": math.sqrt(float(squares.sum() / counts.sum()))}
        for i, (square, count) in enumerate(zip(squares.tolist(), counts.tolist(), strict=True)):
            if count:
                name = f"{i * self.width:03d}-{(i + 1) * self.width - 1}"
                values[f"x0_gap_by_timestep/{name}"] = math.sqrt(square / count)
        return values


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Rate of update `step`, counted from 0: a linear rise, then constant."""
    return settings.learning_rate * min(1.0, (step + 1) / max(1, settings.lr_warmup_steps))


def take_update(state: TrainingState, settings: TrainSettings, loss: float) -> dict[str, float]:
    """Update the adapter, its average and `state.progress`. loss: the mean of the update's micro-batches. Collective.

    Returns lr, grad_norm (before clipping), adapter_norm and skipped_updates.
    """
    optimizer, progress = state.optimizer, state.progress
    rate = learning_rate(settings, progress.step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    batches = settings.gradient_accumulation_steps
    norm, moved = update(state.accelerator, optimizer, state.parameters, loss, batches, settings.max_grad_norm)
    progress.step += 1
    progress.skipped += not moved
    progress.skipped_in_row = 0 if moved else progress.skipped_in_row + 1
    if moved and state.ema is not None:
        state.ema.update()
    norms = {"grad_norm": norm, "adapter_norm": state.adapter_norm()}
    return {"lr": rate, **norms, "skipped_updates": progress.skipped}


def updates(
    step: DistillStep, batches: Iterable[Mapping[str, Any]], state: TrainingState, settings: TrainSettings
) -> Iterator[Update]:
    """Train on micro-batches, `gradient_accumulation_steps` to an update; yield each update after it is done.

    batches: the collated micro-batches of this process from `state.progress` on. Collective.
    """
    accelerator, accumulation = state.accelerator, settings.gradient_accumulation_steps
    rank, world = accelerator.process_index, accelerator.num_processes
    pictures = settings.train_batch_size * accumulation * world
    sums, problems = UpdateSums(accelerator.device, len(step.schedule)), []
    began = time.perf_counter()
    for micro, batch in enumerate(batches, state.progress.step * accumulation):
        for of_item in batch.get("problems", ()):
            problems.extend(of_item)
        batch = expand(batch, accelerator.device)
        with accelerator.autocast():
            parts: LossParts = step(batch, batch_generator(settings.seed, rank, world, micro))
        sums.add(parts)
        accelerator.backward(parts.loss)
        if (micro + 1) % accumulation:
            continue
        values = sums.take(accelerator, accumulation)
        values |= take_update(state, settings, values["loss"])
        values["samples_per_second"] = pictures / (time.perf_counter() - began)
        yield Update(state.progress.step, values, tuple(problems))
        problems, began = [], time.perf_counter()  # what the caller did meanwhile is not counted


def why_it_stopped(values: Mapping[str, float], scale: float, progress: Progress) -> str:
    """Why a run stops that skipped too many updates in a row. values: of the last one; scale: of the loss."""
    bad = [name.rpartition("/")[2] for name, v in values.items() if "/" in name and not math.isfinite(v)]
    where = f"at timesteps {', '.join(bad)}" if bad else "though no timestep's prediction is to blame"
    first = progress.step - progress.skipped_in_row + 1
    return (
        f"Updates {first} to {progress.step} were skipped because loss or gradient was not finite: at the last one "
        f"the loss was {values['loss']:g}, the gradient {values['grad_norm']:g}, {where}, at loss scale {scale:g}. "
        "Resume from the last checkpoint with bf16 or a lower learning rate."
    )


def load_teacher(settings: TrainSettings, dtype: torch.dtype = torch.float32) -> AnyText2:
    """The frozen teacher; its networks in dtype, its schedule in fp32."""
    model = AnyText2.from_config(settings.config, device="meta").to(dtype)
    _ = model.tokenizer  # one that is missing shows before the weights are read
    model.load_checkpoint(settings.teacher_ckpt)
    for trunk in (model.model.diffusion_model, model.control_model):
        trunk.gradient_checkpointing = bool(settings.gradient_checkpointing)
    return model.requires_grad_(False).eval()


def new_student(settings: TrainSettings, accelerator: Accelerator) -> TrainingState:
    """The teacher with a fresh adapter, its optimiser and, if asked for, its average. Collective."""
    model = load_teacher(settings, getattr(torch, PRECISIONS[accelerator.mixed_precision]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        attach(model, settings.lora_rank, settings.lora_alpha, settings.lora_targets)
    model.to(accelerator.device)
    parameters = list(adapter_state(model).values())
    optimizer = accelerator.prepare(new_optimizer(parameters, settings.learning_rate))
    share_first_weights(accelerator, parameters)
    ema = Ema(adapter_state(model), settings.ema_decay) if settings.ema_decay else None
    return TrainingState(model, optimizer, accelerator, ema)


def leave_settings(accelerator: Accelerator, settings: TrainSettings) -> None:
    """Write `run.yaml`, once it is sure that the run goes on. Collective; raises on every process or on none."""
    problem = None
    if accelerator.is_main_process:
        try:
            write_run(settings)
        except (OSError, ValueError) as error:
            problem = error
    raise_everywhere(problem)


def distill(
    accelerator: Accelerator,
    dataset: Dataset,
    settings: TrainSettings,
    resume: Path | None,
    on_sample: OnSample | None,
    held_out: HeldOut | None = None,
) -> Path:
    """Train on `dataset` from the checkpoint `resume`, or anew; return the last checkpoint. Collective."""
    state = new_student(settings, accelerator)
    step = DistillStep(
        state.model,
        objective=settings.objective,
        phases=settings.phases,
        guidance_scale=settings.guidance_scale,
        negative_prompt=settings.negative_prompt,
        loss=settings.loss,
        huber_c=settings.huber_c,
        text_factor=settings.text_factor,
    ).eval()  # nothing in the network may drop out or move its statistics
    if isinstance(dataset, PathDataset):
        dataset.check(settings, state.model)
        state.paths = dataset.name
    else:
        dataset = encoded_once(dataset, settings, state.model, accelerator, resumed=resume is not None)
    if resume:
        restore(resume, state, settings)
    leave_settings(accelerator, settings)
    progress = state.progress
    if progress.step >= settings.max_train_steps:
        raise ValueError(f"{resume} has trained {progress.step} steps already; raise --max_train_steps to go on.")
    rank, world, on_gpu = accelerator.process_index, accelerator.num_processes, accelerator.device.type == "cuda"
    loader = build_loader(dataset, settings, progress.step, rank, world, on_gpu)
    watcher = Watcher(state, settings, dataset, on_sample, held_out)
    watcher.start(resumed=resume is not None)
    for done in updates(step, loader, state, settings):
        watcher.log_update(done.values, done.problems)
        if progress.skipped_in_row >= settings.max_skipped:
            raise FloatingPointError(why_it_stopped(done.values, state.loss_scale(), progress))
        ends = done.step == settings.max_train_steps
        if settings.sample_steps and done.step % settings.sample_steps == 0:
            watcher.log_samples()
            ends |= 0 < settings.patience <= progress.panels_since_best
        if ends or done.step % settings.checkpointing_steps == 0 or done.step == progress.best_step:
            last = save_checkpoint(state, settings)
        if ends:
            break
    watcher.close()
    return last  # the last update always saves


def run_distillation(
    settings: Mapping[str, Any], on_sample: OnSample | None = sample_pictures, dataset: Dataset | None = None
) -> Path:
    """Train an adapter and return the last checkpoint, alone, under `accelerate launch` or under notebook_launcher
    (see `launch.py`).

    settings: fields of TrainSettings. dataset: items as in `data/batch.py`, instead of the data set that the settings
    name. on_sample(model, batch, settings, step) returns pictures and numbers for TensorBoard; the settings' panel is
    read besides. Several nodes need an output_dir that all of them see.

    Raises ValueError or FileNotFoundError for settings that are wrong, FloatingPointError when too many updates in a
    row are not finite, OSError when a process that prepares batches dies. With several processes only the first one to
    fail prints the reason.
    """
    settle()
    with fresh_accelerate_state(), one_voice(), worker_deaths_in_words():
        checked, decided = fit_to_machine(TrainSettings.from_dict(settings))
        if decided and os.environ.get("RANK", "0") == "0":
            print("\n".join(decided), file=sys.stderr)
        if checked.paths is None:
            dataset = build_dataset(checked) if dataset is None else dataset
            held_out = held_out_records(checked)
        else:
            dataset = PathDataset(checked) if dataset is None else dataset
            held_out = getattr(dataset, "held_out", None)
        accelerator = start_accelerator(checked)
        with claimed(checked, accelerator) as resume:
            last = distill(accelerator, dataset, checked, resume, on_sample, held_out)
            accelerator.wait_for_everyone()
        accelerator.free_memory()  # before exit: interpreter teardown can abort while the model is there
        accelerator.end_training()
        return last
