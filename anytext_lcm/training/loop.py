"""Distillation: the training step and the loop around it. Imports torch, Accelerate and the rooms below.

`DistillStep` is one step without its update, `run_distillation` the loop; `python -m anytext_lcm.train` and
notebook 04 launch it. There is one copy of the weights: the teacher is the model with its adapter off, the
target the model with it on.
"""

import gc
import math
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import ProjectConfiguration, broadcast_object_list
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from anytext_lcm.adapter.lora import adapter_state, attach
from anytext_lcm.data.batch import collate
from anytext_lcm.data.packed import expand
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.training.checkpoints import (
    Ema,
    Progress,
    adapter_norm,
    begun,
    find_resume,
    owned,
    restore,
    save_checkpoint,
)
from anytext_lcm.training.data_order import DataOrder, MicroBatches, batch_generator, build_dataset, seeded_generator
from anytext_lcm.training.latents import with_latents
from anytext_lcm.training.processes import (
    await_younger_siblings,
    check_same_start,
    end_with_parent,
    fails_first,
    in_words,
)
from anytext_lcm.training.settings import PRECISIONS, TrainSettings
from anytext_lcm.training.step import DistillStep, LossParts, update
from anytext_lcm.training.watching import OnSample, sample_grid

BUCKETS = 5  # of timesteps, 200 wide: the x0 gap says something else in each


def load_teacher(settings: TrainSettings, dtype: torch.dtype = torch.float32) -> AnyText2:
    """The frozen teacher; its networks in dtype, its schedule in fp32."""
    model = AnyText2.from_config(settings.config, device="meta").load_checkpoint(settings.teacher_ckpt)
    model.to(dtype, memory_format=torch.channels_last)  # as `pipeline.load_model` says
    for trunk in (model.model.diffusion_model, model.control_model):
        trunk.gradient_checkpointing = settings.gradient_checkpointing
    return model.requires_grad_(False).eval()


def run_distillation(
    settings: Mapping[str, Any], on_sample: OnSample | None = sample_grid, dataset: Dataset | None = None
) -> Path:
    """Trains an adapter and returns the last checkpoint. Runs alone, under `accelerate launch` and under
    notebook_launcher (see `anytext_lcm/launch.py`).

    settings: fields of TrainSettings. dataset: one of your own whose items hold to `anytext_lcm.data.batch`, in
    place of the one that the settings name. on_sample(model, batch, settings, step) gives pictures and numbers for
    TensorBoard; beside it the settings' panel is read. Several nodes need an output_dir that all of them see.
    Raises ValueError or FileNotFoundError for what the settings ask and cannot be, FloatingPointError when too many
    updates in a row are not finite. Of several processes the first to fail says why on stderr, before they have met
    the first of each node.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        if multiprocessing.parent_process() is not None:
            # A fork of a process whose OpenMP threads have worked waits for them for ever, unless it has but one.
            os.environ["OMP_NUM_THREADS"] = "1"
            torch.set_num_threads(1)
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_parent()
            if multiprocessing.parent_process() is not None:  # forked by notebook_launcher
                await_younger_siblings(int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    alone = world == 1 and not AcceleratorState._shared_state
    try:
        return _run(TrainSettings.from_dict(settings), on_sample, dataset)
    except Exception as error:
        if world > 1 and fails_first(rank):
            known = isinstance(error, ValueError | FileNotFoundError | FloatingPointError)
            sys.stderr.write(f"error: {in_words(error)}\n" if known else f"[rank {rank}] {traceback.format_exc()}")
        raise
    finally:
        if alone:  # so that a notebook can start the next run with another precision
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()


def _accelerator(settings: TrainSettings) -> Accelerator:
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if 0 < gpus < here and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true", "yes"):
        raise ValueError(f"{here} processes were launched for {gpus} GPUs; launch {gpus}, or set ACCELERATE_USE_CPU=1.")
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        log_with="tensorboard",
        project_config=ProjectConfiguration(
            project_dir=settings.output_dir, logging_dir=str(Path(settings.output_dir) / "logs")
        ),
    )
    if settings.num_processes not in (None, accelerator.num_processes):
        raise ValueError(
            f"Expected {settings.num_processes} processes that train together, "
            f"this one knows of {accelerator.num_processes}; on CPUs set ACCELERATE_USE_CPU=1 before the launch."
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("mixed_precision fp16 needs a GPU; use bf16 or no on a CPU.")
    if accelerator.mixed_precision not in PRECISIONS:
        raise ValueError(f"mixed_precision {accelerator.mixed_precision} is not possible; use {', '.join(PRECISIONS)}.")
    return accelerator


def _rate(settings: TrainSettings, step: int) -> float:
    """Learning rate of update `step`, counted from 0: a straight rise, then constant."""
    return settings.learning_rate * min(1.0, (step + 1) / max(1, settings.lr_warmup_steps))


def _tell(problems: Sequence[Sequence[str]], troubles: Counter[str]) -> None:
    """Count a batch's problems by kind, and print the first few of each kind."""
    for sentence in (sentence for of_item in problems for sentence in of_item):
        kind = sentence.split(", record ", 1)[-1].split(": ", 1)[0].split(", ")[-1]
        troubles[kind] += 1
        if troubles[kind] <= 3:
            tqdm.write(sentence)


def _counts(troubles: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted(troubles.items()))


def _run(settings: TrainSettings, on_sample: OnSample | None, dataset: Dataset | None) -> Path:
    if dataset is None:
        dataset = build_dataset(settings)
    accelerator = _accelerator(settings)
    with ExitStack() as held:
        resume, problem = None, None
        if accelerator.is_main_process:  # one process looks, so that all see the same
            try:
                if not begun(settings.output_dir):
                    find_resume(settings)  # a mistyped folder is refused before anything is made in it
                held.enter_context(owned(settings.output_dir))
                resume = find_resume(settings)
            except (ValueError, OSError) as error:
                problem = error
        [(resume, problem)] = broadcast_object_list([(resume, problem)])
        if problem is not None:
            raise problem
        last = _train(accelerator, dataset, settings, resume, on_sample)
        # A process that still holds the model when the interpreter ends may abort in the teardown.
        accelerator.wait_for_everyone()
    accelerator.free_memory()
    gc.collect()
    accelerator.end_training()
    return last


class _Sums:
    """Loss and squared x0 gap of an update, the gap by bucket of timesteps, over batches and processes."""

    def __init__(self, device: torch.device, train_timesteps: int):
        self.values = torch.zeros(1 + 2 * BUCKETS, device=device)
        self.width = train_timesteps // BUCKETS

    @torch.no_grad()
    def add(self, parts: LossParts) -> None:
        gap = (parts.pred - parts.teacher_x0).square().flatten(1).mean(1)
        bucket = (parts.start_timesteps // self.width).clamp(max=BUCKETS - 1)
        self.values[0] += parts.loss.detach()
        self.values[1 : 1 + BUCKETS].index_add_(0, bucket, gap)
        self.values[1 + BUCKETS :].index_add_(0, bucket, torch.ones_like(gap))

    def take(self, accelerator: Accelerator, batches: int) -> dict[str, float]:
        """loss, x0_gap (RMS), and x0_gap_by_timestep/LOW-HIGH of the buckets that were drawn; starts anew.
        Collective.
        """
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


def _give_up(values: Mapping[str, float], scale: float, progress: Progress) -> str:
    """Why a run stops whose updates are skipped one after the other."""
    bad = [name.rpartition("/")[2] for name, v in values.items() if "/" in name and not math.isfinite(v)]
    where = f"at timesteps {', '.join(bad)}" if bad else "though no timestep's prediction is to blame"
    first = progress.step - progress.skipped_in_row + 1
    return (
        f"Updates {first} to {progress.step} were skipped because loss or gradient was not finite: at the last one "
        f"the loss was {values['loss']:g}, the gradient {values['grad_norm']:g}, {where}, at loss scale {scale:g}. "
        "Resume from the last checkpoint with bf16 or a lower learning rate."
    )


def _train(
    accelerator: Accelerator,
    dataset: Dataset,
    settings: TrainSettings,
    resume: Path | None,
    on_sample: OnSample | None,
) -> Path:
    rank, world = accelerator.process_index, accelerator.num_processes
    accumulation = settings.gradient_accumulation_steps

    model = load_teacher(settings, PRECISIONS[accelerator.mixed_precision])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        attach(model, settings.lora_rank, settings.lora_alpha, settings.lora_targets)
    model.to(accelerator.device)
    if accelerator.device.type == "cpu":
        # Weights mapped from a file lie as the file has them, and the last digits of a product depend on alignment:
        # one process, which keeps the mapping, would not round as several do, which copy.
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
    parameters = list(adapter_state(model).values())
    step_module = DistillStep(
        model,
        objective=settings.objective,
        guidance_scale=settings.guidance_scale,
        negative_prompt=settings.negative_prompt,
        loss=settings.loss,
        huber_c=settings.huber_c,
    ).eval()  # nothing in the network may drop out or move its statistics
    if settings.latents:
        dataset = with_latents(dataset, settings.latents, model)
    optimizer = accelerator.prepare(torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0))
    check_same_start(accelerator, parameters)
    ema = Ema(adapter_state(model), settings.ema_decay) if settings.ema_decay else None
    progress = Progress()
    if resume:
        progress = restore(resume, model, optimizer, accelerator, settings, ema)
    if progress.step >= settings.max_train_steps:
        raise ValueError(f"{resume} has trained {progress.step} steps already; raise --max_train_steps to go on.")

    accelerator.init_trackers(
        "distill",
        {k: v for k, v in settings.identity().items() if isinstance(v, int | float | str)},
        # what a killed run logged after its last checkpoint is written again
        init_kwargs={"tensorboard": {"purge_step": progress.step + 1 if resume else 0}}
        if settings.resume_from_checkpoint
        else {},
    )
    loader = DataLoader(
        MicroBatches(dataset, settings.seed, rank, world),
        batch_sampler=DataOrder(
            progress.step * accumulation,
            settings.max_train_steps * accumulation,
            size=len(dataset),
            batch_size=settings.train_batch_size,
            seed=settings.seed,
            rank=rank,
            world=world,
            redraws=getattr(dataset, "redraws", False),
        ),
        collate_fn=collate,
        num_workers=settings.num_workers,
        pin_memory=accelerator.device.type == "cuda",
        generator=seeded_generator(settings.seed, rank, progress.step),  # else it draws from the global one
    )
    watching = settings.sample_steps > 0
    drawing = on_sample is not None and watching and accelerator.is_main_process
    first = expand(collate([dataset[i] for i in range(min(4, len(dataset)))])) if drawing else None
    panel = None
    if watching and settings.panel_prompts and accelerator.is_main_process:
        from anytext_lcm.training.watching import PanelReader  # a second to import, and only this process reads

        panel = PanelReader(settings)

    def look(step: int) -> dict[str, np.ndarray | float]:
        """Pictures and scores by tag; none, and a sentence, when they cannot be drawn after training has begun: an
        adapter whose pictures are not numbers may recover, and the steps it took shall be saved.
        """
        try:
            pictures = dict(on_sample(model, first, settings, step)) if drawing else {}
            return pictures | (panel(model) if panel is not None else {})
        except ValueError as error:
            if not step:
                raise
            tqdm.write(f"No sample pictures at step {step}: {error}")
            return {}

    def show(step: int) -> None:
        """Pictures and scores of this moment to TensorBoard; all processes learn the best step. Collective."""
        if accelerator.is_main_process and watching:
            writer = accelerator.get_tracker("tensorboard", unwrap=True)
            with accelerator.autocast():
                found = look(step)
                if ema is not None and step:
                    with ema.applied():
                        found |= {f"ema/{tag}": value for tag, value in look(step).items()}
            for tag, value in found.items():
                if isinstance(value, np.ndarray):
                    writer.add_images(f"samples/{tag}", value, step, dataformats="NHWC")
                else:
                    writer.add_scalar(tag, value, step)
            if step and "panel/ned" in found:
                progress.judge(float(found["panel/ned"]))
                writer.add_scalar("panel/since_best", progress.panels_since_best, step)
        best = (progress.best_score, progress.best_step, progress.panels_since_best)
        [best] = broadcast_object_list([best])
        progress.best_score, progress.best_step, progress.panels_since_best = best

    if not resume:
        show(0)
    bar = tqdm(
        total=settings.max_train_steps,
        initial=progress.step,
        desc="distil",
        disable=not (settings.progress and accelerator.is_main_process),
    )
    sums = _Sums(accelerator.device, len(step_module.schedule))
    last: Path | None = None
    troubles: Counter[str] = Counter()
    began = time.perf_counter()
    for micro, batch in enumerate(loader, progress.step * accumulation):
        _tell(batch.get("problems", ()), troubles)
        batch = expand(batch, accelerator.device)
        with accelerator.autocast():
            parts: LossParts = step_module(batch, batch_generator(settings.seed, rank, world, micro))
        sums.add(parts)
        accelerator.backward(parts.loss)
        if (micro + 1) % accumulation:
            continue
        values = sums.take(accelerator, accumulation)
        rate = _rate(settings, progress.step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        progress.step += 1
        norm, moved = update(
            accelerator, optimizer, parameters, values["loss"], accumulation, settings.max_grad_norm
        )
        if moved:
            progress.skipped_in_row = 0
            if ema is not None:
                ema.update()
        else:
            progress.skipped, progress.skipped_in_row = progress.skipped + 1, progress.skipped_in_row + 1
        values |= {
            "lr": rate,
            "grad_norm": norm,
            "adapter_norm": adapter_norm(model),
            "samples_per_second": settings.train_batch_size * accumulation * world / (time.perf_counter() - began),
            "skipped_updates": progress.skipped,
        }
        accelerator.log(values, step=progress.step)
        if progress.skipped_in_row >= settings.max_skipped:
            scale = accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0
            raise FloatingPointError(_give_up(values, scale, progress))
        speed = f"{values['samples_per_second']:.2f}"
        bar.set_postfix({"loss": f"{values['loss']:.4f}", "samples/s": speed}, refresh=False)
        bar.update()
        ends = progress.step == settings.max_train_steps
        if watching and progress.step % settings.sample_steps == 0:
            show(progress.step)
            ends |= 0 < settings.patience <= progress.panels_since_best
        if ends or progress.step % settings.checkpointing_steps == 0 or progress.step == progress.best_step:
            last = Path(settings.output_dir) / f"checkpoint-{progress.step}"
            save_checkpoint(last, model, optimizer, accelerator, settings, progress, ema)
        if ends:
            break
        began = time.perf_counter()
    bar.close()
    if progress.step < settings.max_train_steps and accelerator.is_main_process:
        tqdm.write(
            f"Stopped after {progress.step} updates: {progress.panels_since_best} panels in a row read no better than "
            f"at {progress.best_step}; the best adapter is in checkpoint-{progress.best_step}."
        )
    if troubles:
        tqdm.write(f"Records mended or stepped over: {_counts(troubles)}.")
    assert last is not None  # the last step always saves
    return last
