"""Distillation: the training step and the loop around it. Imports torch, Accelerate and the rooms below.

`DistillStep` is one step without its update, `run_distillation` the loop; `python -m anytext_lcm.train` and
notebook 04 launch it. There is one copy of the weights: the teacher is the model with its adapter off, the
target the model with it on.
"""

import gc
import json
import math
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import ProjectConfiguration
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from anytext_lcm.data.anyword import AnyWordDataset, ReadingRules
from anytext_lcm.data.batch import collate
from anytext_lcm.data.light import Light, expand
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.lcm.consistency import pseudo_huber
from anytext_lcm.lcm.objectives import OBJECTIVES, LossParts
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.lcm.solver import DDIMSolver
from anytext_lcm.lora import adapter_off, adapter_state, attach, load_adapter, save_adapter
from anytext_lcm.model.anytext2 import AnyText2, Conditioning
from anytext_lcm.outputs import whole_directory
from anytext_lcm.pipeline import decode, defaults_for, denoise, prepare, student_method, teacher_method
from anytext_lcm.settings import PRECISIONS, TrainSettings

STATE_FILE = "training_state.pt"

# -- the step -------------------------------------------------------------------------------------------


def latent_weight(inv_mask: Tensor, latents: Tensor) -> Tensor:
    """Pixels not to be judged (B, 1, H, W), 1 = ignore -> weights (B, 1, h, w): the share of a latent's
    pixels that counts.

    Upstream picks one pixel of each 8x8 (nearest), at 512 px alone, and still counts the ignored ones in its
    mean.
    """
    return 1 - F.interpolate(inv_mask.float(), size=latents.shape[-2:], mode="area")


class DistillStep(nn.Module):
    """A batch to a loss: steps 1 to 10 of a training step; 5 to 10 are `anytext_lcm/lcm/objectives.py`.

    A module, so that DistributedDataParallel can wrap it: only what runs in `forward` has its gradients
    averaged.
    """

    def __init__(
        self,
        model: AnyText2,
        objective: str = "lcm",
        guidance_scale: float = 7.5,
        negative_prompt: str = "",
        solver_steps: int = 50,
        huber_c: float = 1e-3,
    ):
        super().__init__()
        if not model.control_model.fast_control:
            raise ValueError(
                "Distillation shares control residuals between timesteps, "
                "so it needs fast_control: true in the yaml."
            )
        self.model = model
        self.schedule = NoiseSchedule(model.alphas_cumprod)
        self.solver = DDIMSolver(self.schedule, solver_steps)
        self.objective = OBJECTIVES[objective]
        self.guidance_scale, self.negative_prompt = guidance_scale, negative_prompt
        self.loss = partial(pseudo_huber, c=huber_c)

    def forward(self, batch: Mapping[str, Any], generator: torch.Generator | None = None) -> LossParts:
        """batch: fields of `anytext_lcm.data.batch`, or `latents` and `masked_latents` in place of the
        pictures.

        generator draws every random number of the step. The loss's gradient reaches the adapter alone.
        """
        model = self.model
        with torch.no_grad():
            # 1. encode: the picture's latents, one sample of the autoencoder's posterior
            latents = (
                batch["latents"].to(model.device)
                if "latents" in batch
                else model.encode(batch["img"], generator)
            )
            # 2. condition: what both networks are told; without condition glyphs, positions and masked
            # latents stay
            cond = model.condition(batch, generator)
            both = Conditioning.cat([cond, model.uncondition(cond, self.negative_prompt)])
            # 3. control: residuals depend on neither x_t nor t, so once a step: the teacher's for both
            # branches ...
            with adapter_off(model):
                teacher_control = model.control(both)
        # ... and the student's, which carry its gradient; the target shares them without
        student_control = model.control(cond)
        target_control = [residual.detach() for residual in student_control]
        # 4. draw t: a point of the solver's grid for each picture, and the noise
        device = generator.device if generator is not None else latents.device
        index = torch.randint(len(self.solver), (len(latents),), generator=generator, device=device)
        noise = torch.randn(latents.shape, generator=generator, device=device)

        def teacher(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            with adapter_off(model):  # both branches in one batch
                return model.predict_noise(torch.cat([x, x]), torch.cat([t, t]), both, teacher_control).chunk(
                    2
                )

        def target(x: Tensor, t: Tensor) -> Tensor:
            return model.predict_noise(x, t, cond, target_control)

        def student(x: Tensor, t: Tensor) -> Tensor:
            return model.predict_noise(x, t, cond, student_control)

        # 5. to 10.: add noise, teacher, solver, target, student, loss
        return self.objective(
            student,
            teacher,
            target,
            self.schedule,
            self.solver,
            latents.float(),
            noise.to(latents.device),
            index.to(latents.device),
            guidance_scale=self.guidance_scale,
            loss=self.loss,
            weight=latent_weight(batch["inv_mask"].to(latents.device), latents)
            if "inv_mask" in batch
            else None,
        )


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
    return [
        int(_epoch_order(size, seed, epoch)[place]) + (epoch * size if redraws else 0) for epoch, place in epochs
    ]


class _Order:
    """`batch_indices` from one micro-batch to another, for a DataLoader."""

    def __init__(self, start: int, stop: int, **arguments: int):
        self.start, self.stop, self.arguments = start, stop, arguments

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        return (batch_indices(step=step, **self.arguments) for step in range(self.start, self.stop))


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
    model.to(dtype)
    for trunk in (model.model.diffusion_model, model.control_model):
        trunk.gradient_checkpointing = settings.gradient_checkpointing
    return model.requires_grad_(False).eval()


@torch.no_grad()
def sample_grid(
    model: AnyText2, batch: Mapping[str, Any], settings: TrainSettings, step: int
) -> dict[str, np.ndarray]:
    """Pictures (B, H, W, 3) uint8 by method: the student's, and at step 0, before training, the teacher's 20
    steps.
    """
    prepared = prepare(model, dict(batch), range(len(batch["img_caption"])), settings.negative_prompt)
    methods = [student_method(settings.num_inference_steps)]
    if step == 0:
        methods.append(teacher_method(20, settings.guidance_scale))
    return {method.name: decode(model, denoise(model, prepared, method)) for method in methods}


# model, batch, settings, step -> pictures by tag
OnSample = Callable[[AnyText2, Mapping[str, Any], TrainSettings, int], Mapping[str, np.ndarray]]

# -- checkpoints ----------------------------------------------------------------------------------------


def checkpoints(output_dir: str | Path) -> dict[int, Path]:
    """The complete checkpoints of a run by their step, rising."""
    found = {}
    for path in Path(output_dir).glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isdigit() and (path / STATE_FILE).is_file():
            found[int(number)] = path
    return dict(sorted(found.items()))


def find_resume(settings: TrainSettings) -> Path | None:
    """The checkpoint to go on from, None for a fresh start.

    Raises FileNotFoundError when it is not there, ValueError when the output directory holds steps this run
    would write again.
    """
    existing = checkpoints(settings.output_dir)
    wanted = settings.resume_from_checkpoint
    if wanted == "latest":
        if not existing:
            raise FileNotFoundError(
                f"{settings.output_dir} holds no checkpoint to resume from; leave the flag out to start."
            )
        return existing[max(existing)]
    if wanted is not None and not (Path(wanted) / STATE_FILE).is_file():
        raise FileNotFoundError(f"{wanted} is no checkpoint to resume from: {STATE_FILE} is not in it.")
    start = 0
    if wanted is not None:
        start = torch.load(Path(wanted) / STATE_FILE, map_location="cpu", weights_only=True, mmap=True)[
            "step"
        ]
    if later := [path.name for step, path in existing.items() if step > start]:
        raise ValueError(
            f"{settings.output_dir} holds {', '.join(later)} already; "
            "resume from latest or name another output_dir."
        )
    return None if wanted is None else Path(wanted)


def save_checkpoint(
    directory: Path,
    model: AnyText2,
    optimizer: Any,
    accelerator: Accelerator,
    settings: TrainSettings,
    step: int,
) -> None:
    """Adapter and training state, complete or not at all. Noise and data order need no state: step and seed
    decide them.
    """
    about = {"step": step, "network": Path(settings.config).name, **settings.identity()}
    state = {
        "step": step,
        "processes": accelerator.num_processes,
        "settings": settings.identity(),
        "optimizer": optimizer.state_dict(),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else {},
    }
    with whole_directory(directory, mark=STATE_FILE) as temporary:
        save_adapter(model, temporary, {"anytext_lcm": json.dumps(about)})
        torch.save(state, temporary / STATE_FILE)


def restore(
    directory: Path, model: AnyText2, optimizer: Any, accelerator: Accelerator, settings: TrainSettings
) -> int:
    """Puts a checkpoint back and returns its step. Raises ValueError when it belongs to another run."""
    state = torch.load(directory / STATE_FILE, map_location="cpu", weights_only=True)
    now = settings.identity() | {"processes": accelerator.num_processes}
    defaults = {f.name: f.default for f in fields(TrainSettings)}  # of settings younger than the checkpoint
    then = defaults | state["settings"] | {"processes": state["processes"]}
    if differing := [f"{k} {then.get(k)!r}, now {v!r}" for k, v in now.items() if then.get(k) != v]:
        raise ValueError(
            f"{directory} was trained with other settings: {'; '.join(differing)}; use the same to resume."
        )
    load_adapter(model, directory, trainable=True)
    optimizer.load_state_dict(state["optimizer"])
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    return state["step"]


# -- the loop -------------------------------------------------------------------------------------------


def run_distillation(
    settings: Mapping[str, Any], on_sample: OnSample | None = sample_grid, dataset: Dataset | None = None
) -> Path:
    """Trains an adapter and returns the last checkpoint. Runs alone, under `accelerate launch` and under
    notebook_launcher.

    settings: fields of TrainSettings. dataset: one of your own whose items hold to `anytext_lcm.data.batch`, in
    place of the one that the settings name. on_sample(model, batch, settings, step) gives pictures for TensorBoard.
    On several CPU processes set ACCELERATE_USE_CPU=1 before launching, or each process trains for itself;
    num_processes notices. Raises ValueError or FileNotFoundError for what the settings ask and cannot be.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(
            1
        )  # a process forked from a notebook hangs in the parent's thread pool otherwise
    alone = world == 1 and not AcceleratorState._shared_state
    try:
        return _run(TrainSettings.from_dict(settings), on_sample, dataset)
    except Exception:
        if world > 1:  # the launcher reports whichever process it saw die first, and not why
            sys.stderr.write(f"[rank {rank}] {traceback.format_exc()}")
        raise
    finally:
        if alone:  # so that a notebook can start the next run with another precision
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()


def _accelerator(settings: TrainSettings) -> Accelerator:
    accelerator = Accelerator(
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
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
        raise ValueError(
            f"mixed_precision {accelerator.mixed_precision} is not possible; use {', '.join(PRECISIONS)}."
        )
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
    resume = find_resume(settings)
    if dataset is None:
        dataset = build_dataset(settings)
    accelerator = _accelerator(settings)
    last = _train(accelerator, dataset, settings, resume, on_sample)
    # A process that still holds the wrapped model when the interpreter ends may abort in the teardown.
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    gc.collect()
    accelerator.end_training()
    return last


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
    parameters = list(adapter_state(model).values())
    step_module = DistillStep(
        model,
        settings.objective,
        settings.guidance_scale,
        settings.negative_prompt,
        huber_c=settings.huber_c,
    ).eval()  # nothing in the network may drop out or move its statistics
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    step_module, optimizer = accelerator.prepare(step_module, optimizer)
    done = restore(resume, model, optimizer, accelerator, settings) if resume else 0
    if done >= settings.max_train_steps:
        raise ValueError(f"{resume} has trained {done} steps already; raise --max_train_steps to go on.")

    accelerator.init_trackers(
        "distill", {k: v for k, v in settings.identity().items() if isinstance(v, int | float | str)}
    )
    loader = DataLoader(
        dataset,
        batch_sampler=_Order(
            done * accumulation,
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
    )
    sampling = on_sample is not None and settings.sample_steps > 0 and accelerator.is_main_process
    panel = expand(collate([dataset[i] for i in range(min(4, len(dataset)))])) if sampling else None

    def show(step: int) -> None:
        if sampling:
            writer = accelerator.get_tracker("tensorboard", unwrap=True)
            with accelerator.autocast():
                pictures = on_sample(model, panel, settings, step)
            for tag, images in pictures.items():
                writer.add_images(f"samples/{tag}", images, step, dataformats="NHWC")
        accelerator.wait_for_everyone()

    show(done)
    bar = tqdm(
        total=settings.max_train_steps,
        initial=done,
        desc="distil",
        disable=not (settings.progress and accelerator.is_main_process),
    )
    sums = torch.zeros(2, device=accelerator.device)
    last: Path | None = None
    troubles: Counter[str] = Counter()
    for micro, batch in enumerate(loader, done * accumulation):
        _tell(batch.get("problems", ()), troubles)
        batch = expand(batch, accelerator.device)
        with accelerator.accumulate(step_module):
            parts: LossParts = step_module(batch, seeded_generator(settings.seed, rank, micro))
            # 11. update: gradients of all processes averaged, clipped, one step of AdamW
            accelerator.backward(parts.loss)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(parameters, settings.max_grad_norm)
                for group in optimizer.param_groups:
                    group["lr"] = _rate(settings, done)
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            sums += torch.stack([parts.loss, (parts.pred - parts.teacher_x0).square().mean()])
        if not accelerator.sync_gradients:
            continue
        loss, gap = (accelerator.reduce(sums, "mean") / accumulation).tolist()
        sums.zero_()
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The loss of step {done + 1} is {loss}; "
                "resume from the last checkpoint with bf16 or a lower learning rate."
            )
        values = {
            "loss": loss,
            "lr": _rate(settings, done),
            "grad_norm": float(norm),
            "x0_gap": math.sqrt(gap),
        }
        done += 1
        accelerator.log(values, step=done)
        bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        bar.update()
        if done % settings.checkpointing_steps == 0 or done == settings.max_train_steps:
            last = Path(settings.output_dir) / f"checkpoint-{done}"
            if accelerator.is_main_process:
                save_checkpoint(last, model, optimizer, accelerator, settings, done)
            accelerator.wait_for_everyone()
        if settings.sample_steps and done % settings.sample_steps == 0:
            show(done)
    bar.close()
    if troubles:
        tqdm.write(f"Records mended or stepped over: {_counts(troubles)}.")
    assert last is not None  # the last step always saves
    return last
