"""Runs in processes of their own, to be killed or to train together. They are forked, so that what the tests have
imported need not be imported again.
"""

import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from micro_network import SIDE

from anytext_lcm.data.batch import Line, build_conditioning

FORK = multiprocessing.get_context("fork")


class NoisyPictures(torch.utils.data.Dataset):
    """A user's data set: five pictures of a word, each shifted by numbers that it draws from torch's global generator.

    A run over it is repeated only by who puts the generator's state back.
    """

    def __init__(self):
        line = Line("Word", np.array([[4, 20], [60, 20], [60, 44], [4, 44]]))
        self.item = build_conditioning([line], (SIDE, SIDE), max_lines=1) | {"img_caption": "a wall"}

    def __len__(self):
        return 5

    def __getitem__(self, index):
        shift = 0.1 * float(torch.rand(()))
        return self.item | {"img": np.full((3, SIDE, SIDE), 0.1 * index + shift, np.float32)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(work: Callable[..., Any], *arguments: Any, **environment: str) -> multiprocessing.Process:
    """work(*arguments) in a process; its exit code is 1 when it raises, and the traceback goes to stderr."""
    process = FORK.Process(target=_run, args=(work, arguments, environment))
    process.start()
    return process


def start_ranks(
    world: int, work: Callable[..., Any], *arguments: Any, **environment: str
) -> list[multiprocessing.Process]:
    """The same in `world` processes that find each other through the environment, as a launcher's do."""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "ACCELERATE_USE_CPU": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    ranks = ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world))
    return [start(work, *arguments, **shared, **own, **environment) for own in ranks]


def finish(processes: list[multiprocessing.Process], seconds: float = 300) -> list[int]:
    """Their exit codes. A process that still runs by then is killed, and the test fails."""
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    assert not late, f"{len(late)} processes still ran after {seconds} s"
    return [process.exitcode for process in processes]


def _run(work: Callable[..., Any], arguments: tuple, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)  # the parent's other threads did not come along
    try:
        work(*arguments)
    except Exception:
        if "RANK" not in os.environ:  # a rank speaks for itself
            traceback.print_exc()
        sys.exit(1)
