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
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import ProjectConfiguration, broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from anytext_lcm.checkpoints import (
    Ema,
    Progress,
    adapter_norm,
    begun,
    find_resume,
    owned,
    restore,
    save_checkpoint,
    seed_random_state,
)
from anytext_lcm.data.anyword import AnyWordDataset, ReadingRules
from anytext_lcm.data.batch import collate
from anytext_lcm.data.light import Light, expand
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.latents import with_latents
from anytext_lcm.lcm.consistency import l2, pseudo_huber
from anytext_lcm.lcm.objectives import OBJECTIVES, LossParts
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.lcm.solver import DDIMSolver
from anytext_lcm.lora import adapter_off, adapter_state, adapts, attach
from anytext_lcm.model.anytext2 import AnyText2, Conditioning
from anytext_lcm.model.vae import sample_posterior
from anytext_lcm.pipeline import decode, defaults_for, denoise, prepare, student_method, teacher_method
from anytext_lcm.settings import PRECISIONS, TrainSettings

BUCKETS = 5  # of timesteps, 200 wide: the x0 gap says something else in each

# -- the step -------------------------------------------------------------------------------------------


def latent_weight(inv_mask: Tensor, latents: Tensor) -> Tensor:
    """Pixels not to be judged (B, 1, H, W), 1 = ignore -> weights (B, 1, h, w): the share of a latent's
    pixels that counts.

    Upstream picks one pixel of each 8x8 (nearest), at 512 px alone, and still counts the ignored ones in its
    mean.
    """
    return 1 - F.interpolate(inv_mask.float(), size=latents.shape[-2:], mode="area")


class DistillStep(nn.Module):
    """A batch to a loss: steps 1 to 10 of a training step; 6 to 10 are `anytext_lcm/lcm/objectives.py`.

    A module, so that it can be called and put into evaluation as the network in it. Make a new one when the weights,
    device or precision of the autoencoder change: the step keeps what it has encoded of the empty picture.
    """

    def __init__(
        self,
        model: AnyText2,
        objective: str = "lcm",
        guidance_scale: float = 7.5,
        negative_prompt: str = "",
        huber_c: float = 1e-3,
        loss: str = "huber",
    ):
        """Arguments as in TrainSettings. Raises ValueError for a network without fast control."""
        super().__init__()
        if not model.control_model.fast_control:
            raise ValueError(
                "Distillation shares control residuals between timesteps, so it needs fast_control: true in the yaml."
            )
        self.model = model
        self.schedule = NoiseSchedule(model.alphas_cumprod)
        self.solver = DDIMSolver(self.schedule)
        self.objective = OBJECTIVES[objective]
        self.guidance_scale, self.negative_prompt = guidance_scale, negative_prompt
        self.loss = partial(pseudo_huber, c=huber_c) if loss == "huber" else l2
        self._blanks: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def forward(self, batch: Mapping[str, Any], generator: torch.Generator | None = None) -> LossParts:
        """batch: fields of `anytext_lcm.data.batch`, or `latents` and `masked_latents` in place of the
        pictures.

        generator draws every random number of the step. The loss's gradient reaches the adapter alone.
        """
        model = self.model
        with torch.no_grad():
            # 1. encode: the picture's latents, one sample of the autoencoder's posterior
            latents = self._encode(batch, generator)
            # 2. condition: what both networks are told; without condition glyphs, positions and masked
            # latents stay
            cond = model.condition(batch, generator, self.blank(batch))
            both = Conditioning.cat([cond, model.uncondition(cond, self.negative_prompt)])
            # 3. control: residuals depend on neither x_t nor t, so once a step: the teacher's for both
            # branches ...
            with adapter_off(model):
                teacher_control = model.control(both)
        # ... and the student's, which carry its gradient; the target shares them without
        if adapts(model, "control_model"):
            student_control = model.control(cond)
        else:
            student_control = [residual.chunk(2)[0] for residual in teacher_control]
        target_control = [residual.detach() for residual in student_control]
        # 4. draw t: a point of the solver's grid for each picture, and the noise
        device = generator.device if generator is not None else latents.device
        index = torch.randint(len(self.solver), (len(latents),), generator=generator, device=device)
        noise = torch.randn(latents.shape, generator=generator, device=device)

        # 5. add noise: one point x_t on the way from the picture to pure noise
        index = index.to(latents.device)
        t = self.solver.start_timesteps(index)
        noisy_latents = self.schedule.add_noise(latents.float(), noise.to(latents.device), t)
        unet, shared = model.model.diffusion_model, {}
        if not adapts(model, "model.diffusion_model.input_blocks", "model.diffusion_model.time_embed"):
            # the adapter leaves the encoder alone, so at (x_t, t) teacher and student have it in common
            with torch.no_grad(), adapter_off(model):
                x = torch.cat([noisy_latents, noisy_latents]).to(model.dtype)
                shared["encoded"] = unet.encode(x, torch.cat([t, t]), both.image_context)

        def teacher(x: Tensor, t: Tensor, encoded: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
            x, t = torch.cat([x, x]), torch.cat([t, t])  # both branches in one batch
            with adapter_off(model):
                return model.predict_noise(x, t, both, teacher_control, encoded=encoded).chunk(2)

        def target(x: Tensor, t: Tensor) -> Tensor:
            return model.predict_noise(x, t, cond, target_control)

        def student(x: Tensor, t: Tensor, encoded: list[Tensor] | None = None) -> Tensor:
            own = None if encoded is None else [both_branches.chunk(2)[0] for both_branches in encoded]
            return model.predict_noise(x, t, cond, student_control, encoded=own)

        # 6. to 10.: teacher, solver, target, student, loss
        return self.objective(
            student,
            teacher,
            target,
            self.schedule,
            self.solver,
            noisy_latents,
            index,
            guidance_scale=self.guidance_scale,
            loss=self.loss,
            weight=latent_weight(batch["inv_mask"].to(latents.device), latents) if "inv_mask" in batch else None,
            shared=shared,
        )

    def blank(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
        """`AnyText2.blank_moments` of the batch's size, encoded once by this object, so once in a run.

        None for a batch that brings its masked latents.
        """
        if "masked_latents" in batch or "masked_img" not in batch:
            return None
        size = tuple(batch["masked_img"].shape[-2:])
        if size not in self._blanks:
            self._blanks[size] = self.model.blank_moments(*size)
        return self._blanks[size]

    def _encode(self, batch: Mapping[str, Any], generator: torch.Generator | None) -> Tensor:
        """Scaled latents (B, C, h, w), fp32: given, drawn from a stored posterior, or from the pictures."""
        model = self.model
        if "latents" in batch:
            return batch["latents"].to(model.device)
        if "latent_moments" in batch:
            moments = torch.stack([torch.as_tensor(m) for m in batch["latent_moments"]]).to(model.device)
            return model.scale_factor * sample_posterior(*moments.float().chunk(2, dim=1), generator)
        return model.encode(batch["img"], generator)


# -- what a run is made of ------------------------------------------------------------------------------


def seeded_generator(*keys: int) -> torch.Generator:
    """A generator decided by all keys together, so that no two of (seed, rank, step) share their noise."""
    state = np.random.SeedSequence(keys).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


@lru_cache(maxsize=2)  # a batch may straddle two epochs; 3 million records take 24 MB an epoch
def _epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(size, generator=seeded_generator(seed, epoch, 1 << 20))


def batch_indices(
    size: int, batch_size: int, seed: int, rank: int, world: int, step: int, redraws: bool = False
) -> list[int]:
    """Items of micro-batch `step` on process `rank`: an endless row of shuffled epochs, dealt out in turn.

    Nothing but the arguments decides, which is what makes a resumed run continue in the middle of an epoch. For a data
    set that makes an item anew each time (`redraws`) item i of epoch e is i + e * size.
    """
    first = (step * world + rank) * batch_size
    epochs = [divmod(place, size) for place in range(first, first + batch_size)]
    return [int(_epoch_order(size, seed, epoch)[place]) + (epoch * size if redraws else 0) for epoch, place in epochs]


def batch_generator(seed: int, rank: int, world: int, step: int) -> torch.Generator:
    """Noise and timesteps of micro-batch `step` on process `rank`: decided by the batch's place in the whole run.

    So three processes do what one does that accumulates three times as many batches, to the order of summation.
    """
    return seeded_generator(seed, 0, step * world + rank)


class _Order:
    """(step, `batch_indices`) from one micro-batch to another, for a DataLoader over `_Batches`."""

    def __init__(self, start: int, stop: int, **arguments: int):
        self.start, self.stop, self.arguments = start, stop, arguments

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        return ((step, batch_indices(step=step, **self.arguments)) for step in range(self.start, self.stop))


class _Batches(Dataset):
    """The items of a micro-batch at once. The global generators, from which a data set of one's own may draw, begin
    each of them anew, as its place in the run decides, here or in a worker: so a resumed run draws what the unbroken
    one does, and no checkpoint holds their state.
    """

    def __init__(self, dataset: Dataset, seed: int, rank: int, world: int):
        self.dataset, self.seed, self.rank, self.world = dataset, seed, rank, world

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, batch: tuple[int, list[int]]) -> list[Any]:
        step, indices = batch
        place = step * self.world + self.rank
        seed_random_state(seeded_generator(self.seed, place, 1 << 22).initial_seed())
        together = getattr(self.dataset, "__getitems__", None)  # where it can, as torch asks it itself
        return together(indices) if together else [self.dataset[i] for i in indices]


def build_dataset(settings: TrainSettings) -> Dataset:
    """The data set that the settings name: mock pictures or records on disk, as light items.

    Raises ValueError when they name none or both, and as AnyWordDataset does.
    """
    side = settings.image_size or defaults_for(settings.config).size[0]
    if settings.use_mock_dataset == bool(settings.data_list):
        named = "Both data sets were named" if settings.use_mock_dataset else "No data set was named"
        raise ValueError(f"{named}; pass --use_mock_dataset or --data_list.")
    if settings.use_mock_dataset:
        return Light(MockDataset(settings.dataset_size, seed=settings.seed, image_size=side))
    fonts = {"fonts": settings.fonts} if settings.fonts else {}
    return AnyWordDataset(
        settings.data_list,
        data_root=settings.data_root,
        rules=ReadingRules(image_size=side, edit_share=settings.edit_share, **fonts),
        seed=settings.seed,
        wm_thresh=settings.wm_thresh,
        strict=settings.strict,
        index_dir=settings.index_dir,
    )


def load_teacher(settings: TrainSettings, dtype: torch.dtype = torch.float32) -> AnyText2:
    """The frozen teacher; its networks in dtype, its schedule in fp32."""
    model = AnyText2.from_config(settings.config, device="meta").load_checkpoint(settings.teacher_ckpt)
    model.to(dtype, memory_format=torch.channels_last)  # as `pipeline.load_model` says
    for trunk in (model.model.diffusion_model, model.control_model):
        trunk.gradient_checkpointing = settings.gradient_checkpointing
    return model.requires_grad_(False).eval()


@torch.no_grad()
def sample_grid(model: AnyText2, batch: Mapping[str, Any], settings: TrainSettings, step: int) -> dict[str, np.ndarray]:
    """Pictures (B, H, W, 3) uint8 by method: the student's in 1, 2, 4, 8 and the settings' steps, and at step 0,
    before training, the teacher's in 20.
    """
    prepared = prepare(model, dict(batch), range(len(batch["img_caption"])), settings.negative_prompt)
    methods = [student_method(steps) for steps in sorted({1, 2, 4, 8, settings.num_inference_steps})]
    if step == 0:
        methods.append(teacher_method(20, settings.guidance_scale))
    return {method.name: decode(model, denoise(model, prepared, method)) for method in methods}


# model, batch, settings, step -> pictures (B, H, W, 3) uint8 and numbers by tag; of the numbers "panel/ned" in 0..1
# decides which step was the best
OnSample = Callable[[AnyText2, Mapping[str, Any], TrainSettings, int], Mapping[str, np.ndarray | float]]

# -- the loop -------------------------------------------------------------------------------------------


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
            _end_with_parent()
            if multiprocessing.parent_process() is not None:  # forked by notebook_launcher
                await_younger_siblings(int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    alone = world == 1 and not AcceleratorState._shared_state
    try:
        return _run(TrainSettings.from_dict(settings), on_sample, dataset)
    except Exception as error:
        if world > 1 and _fails_first(rank):
            known = isinstance(error, ValueError | FileNotFoundError | FloatingPointError)
            sys.stderr.write(f"error: {in_words(error)}\n" if known else f"[rank {rank}] {traceback.format_exc()}")
        raise
    finally:
        if alone:  # so that a notebook can start the next run with another precision
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()


def in_words(error: Exception) -> str:
    """What an error says; of one in a process that prepares batches, which torch wraps in its traceback, the last line
    without the name of its class.
    """
    said = str(error)
    if " in DataLoader worker process " not in said:
        return said
    last = said.strip().splitlines()[-1]
    return last.partition(": ")[2] or last


def await_younger_siblings(place: int, count: int, limit: float = 60.0) -> None:
    """Returns once the parent has forked all of its `count` processes, this one being number `place`, or after `limit`
    seconds.

    The parent keeps the store by which they meet. When an early child connects, that store's thread looks the child's
    address up; a child forked during it inherits glibc's resolver lock as taken and waits for ever at its own first
    lookup (two of fifty launches in JupyterLab). So nobody connects before the last of them is there.
    """

    def birth(process: psutil.Process) -> tuple[float, int]:
        return process.create_time(), process.pid

    own, until = birth(psutil.Process()), time.monotonic() + limit
    while time.monotonic() < until:
        if sum(birth(sibling) > own for sibling in psutil.Process(os.getppid()).children()) >= count - 1 - place:
            return
        time.sleep(0.01)


def _fails_first(rank: int) -> bool:
    """Whether this process is the first of the run to fail: it knows the cause, the others have lost a partner.

    Before the processes have met, those of a node fail over the same settings and files, so its first one speaks.
    """
    if not torch.distributed.is_initialized():
        return rank == 0 or os.environ.get("LOCAL_RANK", "0") == "0"
    try:  # the store has no public name; it counts for all processes, on all nodes
        return torch.distributed.distributed_c10d._get_default_store().add("failures", 1) == 1
    except Exception:  # the process that kept the store is gone, so this one was not the first
        return False


def _end_with_parent() -> None:
    """Ends this process within a second or so of the launcher that started it, however that ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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


def average_gradients(accelerator: Accelerator, parameters: Sequence[nn.Parameter], batches: int) -> None:
    """Every process gets the mean gradient of all batches of all processes, from its sum over its own. Collective.

    One flat buffer in a fixed order instead of DistributedDataParallel, which reorders its buckets after the
    first step: from three processes on another order is another rounding, and a resumed run would not be the
    unbroken one. It is sent once an update, 108 MB at rank 64, instead of overlapping the backward pass. Divided is
    at the end, once, so that three processes round as one with three times as many batches.
    """
    flat = torch.cat([p.grad.flatten() for p in parameters])
    if accelerator.num_processes > 1:
        torch.distributed.all_reduce(flat)
    flat /= accelerator.num_processes * batches
    for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad.copy_(mean.view_as(parameter))


def _same_start(accelerator: Accelerator, parameters: Sequence[nn.Parameter]) -> None:
    """The first process's adapter on all of them: two kinds of processor may draw other last digits from a seed."""
    if accelerator.num_processes > 1:
        for parameter in parameters:
            torch.distributed.broadcast(parameter.data, src=0)


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
        settings.objective,
        settings.guidance_scale,
        settings.negative_prompt,
        settings.huber_c,
        settings.loss,
    ).eval()  # nothing in the network may drop out or move its statistics
    if settings.latents:
        dataset = with_latents(dataset, settings.latents, model)
    optimizer = accelerator.prepare(torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0))
    _same_start(accelerator, parameters)
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
        _Batches(dataset, settings.seed, rank, world),
        batch_sampler=_Order(
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
        from anytext_lcm.watch import PanelReader  # a second to import, and only this process reads

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
        # 11. update: gradients of all processes averaged, clipped, one step of AdamW
        average_gradients(accelerator, parameters, accumulation)
        norm = float(accelerator.clip_grad_norm_(parameters, settings.max_grad_norm))
        values = sums.take(accelerator, accumulation)
        rate = _rate(settings, progress.step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        progress.step += 1
        finite = math.isfinite(values["loss"]) and math.isfinite(norm)
        if finite or accelerator.scaler is not None:  # the scaler passes over such a step, and scales less
            optimizer.step()
            finite = finite and not optimizer.step_was_skipped
        optimizer.zero_grad()
        if finite:
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
