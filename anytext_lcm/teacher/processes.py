"""The processes of a stage: one single-threaded process per core, or one per GPU, that average their gradients.

`accelerate` is not used here. From Python it starts several processes on a CPU by forking alone, which can hang once
OpenMP has run, and its `save_state` writes another layout than `fitting.TrainingState`. It would replace 15 lines and
add 2 seconds of imports to each process.
"""

import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from anytext_lcm.teacher.recipe import Recipe


@dataclass(frozen=True)
class Rank:
    """One of the processes of a stage: its number, how many there are, its device."""

    index: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process shows progress and writes files."""
        return self.index == 0

    def rng(self, *keys: int) -> np.random.Generator:
        """Random numbers of this process; a stage gives its own number and the step."""
        return np.random.default_rng([self.index, *keys])


Stage = Callable[[Rank, Path, Recipe], None]


def launch(stage: Stage, work: Path, recipe: Recipe, world: int) -> None:
    """Run stage(rank, work, recipe) in `world` fresh processes and wait for them. Raises what the first to fail raises.

    `stage` must be a function of a module, since the processes import it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_run_rank, args=(world, port, stage, work, recipe), nprocs=world)


def _run_rank(index: int, world: int, port: int, stage: Stage, work: Path, recipe: Recipe) -> None:
    torch.set_num_threads(1)  # two OpenMP threads of one process slow each other down on a busy machine
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


def parallel(module: nn.Module, rank: Rank) -> nn.Module:
    """The module with gradients averaged over all processes; itself when there is one process."""
    return (
        DistributedDataParallel(module, gradient_as_bucket_view=True, bucket_cap_mb=200) if rank.world > 1 else module
    )


def autocast(rank: Rank) -> AbstractContextManager:
    """bfloat16 where it is fast."""
    return torch.autocast(rank.device.type, torch.bfloat16, enabled=fast_bfloat16(rank))


def fast_bfloat16(rank: Rank) -> bool:
    """Whether the hardware multiplies it; without AVX512-BF16 a CPU takes ten times as long as in float32."""
    return rank.device.type != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16", False)
