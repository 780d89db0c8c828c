"""The numbers of the recipe, and what all its stages share: processes, learning rate, training states."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

CONFIG = "models_yaml/anytext2_tiny.yaml"


@dataclass(frozen=True)
class Recipe:
    """From nothing in one run; the reason stands beside each number. The shipped weights come from eight
    shorter runs, between which data and settings were mended (anytext_lcm/assets/README.md).
    """

    task: str = "mock"  # see `tasks`
    seed: int = 0
    pictures: int = 28_000  # the diffusion sees each four times or less, at four noise levels a time
    vae_steps: int = 1500
    vae_batch: int = 12  # 64 px crops a process
    vae_lr: float = 2e-3
    posterior_noise: float = 0.05  # of latents with deviation 1
    decoder_noise: float = 0.25  # largest noise the decoder is trained to bear: the diffusion's latents are not exact
    decoder_steps: int = 2500  # of the decoder alone, on scenes and material
    decoder_lr: float = 1e-3
    decoder_material: float = 0.35  # share of material among its pictures
    decoder_text_weight: float = 3.0
    recogniser_steps: int = 600
    recogniser_batch: int = 32
    font_steps: int = 600  # of the font predictor (scenery task)
    font_batch: int = 32
    diffusion_steps: int = 10_000
    diffusion_batch: int = 4  # pictures a process
    strip_share: float = 0.6  # the first of the steps look at half a picture around a line, at half the cost
    strip_batch: int = 6  # strips a process
    copies: int = 4  # noise levels a picture; they share its control branch: 35 % more samples a second than 2
    diffusion_lr: float = 2e-3
    decay: float = 0.5  # share of the steps over which the rate falls to zero
    ema: float = 0.998
    caption_dropout: float = 0.1  # both captions empty: trains the branch that guidance subtracts
    text_weight: float = 5.0  # loss weight inside the text boxes, about a quarter of a picture
    reader_steps: int = 2000
    reader_batch: int = 16  # pictures a process
    reader_noise: float = 0.5  # largest noise on the latents it learns to read
    writing_steps: int = 2000  # the shipped weights: 1,150 with an earlier loss and 1,500 with this one
    writing_lr: float = 4e-4
    writing_batch: int = 10  # half-drawn pictures a process
    writing_pool: int = 120  # that many are half drawn at a time, on each process
    writing_ahead: int = 24  # of these are drawn on without being learned from: fewer looks at more prompts
    writing_strides: tuple[int, ...] = (50, 100)  # timesteps from look to look: twenty steps or ten
    writing_jump: tuple[int, int] = (100, 300)  # timesteps from the first estimate to the second
    writing_true: tuple[int, int] = (3, 3)  # true pictures a process, and noise levels of each, of diffusion's loss
    writing_weight: float = 0.3  # of the reading loss of each of the two estimates
    writing_steepest: float = 4.0  # counts as often at most for coming late, where a velocity moves its estimate little
    writing_noise: float = 0.15  # largest noise on the latents that are read
    writing_guidance: float = 2.0  # of half of the DDIM steps, half have none; drawing has 4 by now
    writing_ema: float = 0.98


# -- processes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rank:
    """One of the processes of a stage."""

    index: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.index == 0

    def rng(self, *keys: int) -> np.random.Generator:
        return np.random.default_rng([self.index, *keys])


def _run_rank(index: int, world: int, port: int, stage, work: Path, recipe: Recipe) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(index), WORLD_SIZE=str(world))
    device = torch.device("cuda", index) if torch.cuda.is_available() else torch.device("cpu")
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=index, world_size=world)
    try:
        stage(Rank(index, world, device), work, recipe)
    finally:
        if world > 1:
            dist.destroy_process_group()


def launch(stage, work: Path, recipe: Recipe, world: int) -> None:
    """Runs stage(rank, work, recipe) in `world` fresh processes (spawn: forking after OpenMP has run can hang)."""

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_run_rank, args=(world, port, stage, work, recipe), nprocs=world)


def parallel(module: nn.Module, rank: Rank) -> nn.Module:
    return DistributedDataParallel(module, gradient_as_bucket_view=True) if rank.world > 1 else module


def rate(step: int, total: int, peak: float, decay: float, warmup: int = 200) -> float:
    """Linear warm-up, constant, linear fall over the last share `decay`: a longer run shares its beginning."""
    return peak * min(1.0, (step + 1) / warmup, (total - step) / max(1, decay * total))


def moving_average(module: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of the weights; the first updates count more, lest the start be half of a run."""

    @torch.no_grad()
    def update(averages: list[Tensor], weights: list[Tensor], count: Tensor) -> None:
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + int(count)) / (10 + int(count))))

    return AveragedModel(module, multi_avg_fn=update)


def save(path: Path, content: object) -> None:
    unfinished = path.with_suffix(".partial")
    torch.save(content, unfinished)
    unfinished.replace(path)


def save_training(
    path: Path, step: int, module: nn.Module, average: AveragedModel, optimisers: list[torch.optim.Optimizer]
) -> None:
    """What `restore` takes up again."""
    states = [o.state_dict() for o in optimisers]
    save(path, dict(raw=module.state_dict(), average=average.state_dict(), optimisers=states, step=step))


def autocast(rank: Rank):
    """bfloat16 where the hardware multiplies it; without AVX512-BF16 a CPU takes ten times as long as in float32."""
    fast = rank.device.type != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.autocast(rank.device.type, torch.bfloat16, enabled=fast)


def restore(path: Path, module: nn.Module, average: AveragedModel, *optimisers: torch.optim.Optimizer) -> int:
    """Puts a training state back where there is one and returns its step."""
    if not path.exists():
        return 0
    saved = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(saved["raw"])
    average.load_state_dict(saved["average"])
    for optimiser, state in zip(optimisers, saved.get("optimisers", ()), strict=False):
        optimiser.load_state_dict(state)  # weights that `start_from` put there have none
    return saved["step"]


def averaged(path: Path) -> dict[str, Tensor]:
    """The averaged weights of a training state, under their own names."""
    saved = torch.load(path, map_location="cpu", weights_only=True)["average"]
    return {k.removeprefix("module."): v for k, v in saved.items() if k != "n_averaged"}
