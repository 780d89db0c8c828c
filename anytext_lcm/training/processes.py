"""
Several processes of one run: gradient averaging, failing in one voice, ending together.
"""

import os
import threading
import time
from collections.abc import Sequence

import psutil
import torch
from accelerate import Accelerator
from torch import nn


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


def fails_first(rank: int) -> bool:
    """Whether this process is the first of the run to fail: it knows the cause, the others have lost a partner.

    Before the processes have met, those of a node fail over the same settings and files, so its first one speaks.
    """
    if not torch.distributed.is_initialized():
        return rank == 0 or os.environ.get("LOCAL_RANK", "0") == "0"
    try:  # the store has no public name; it counts for all processes, on all nodes
        return torch.distributed.distributed_c10d._get_default_store().add("failures", 1) == 1
    except Exception:  # the process that kept the store is gone, so this one was not the first
        return False


def end_with_parent() -> None:
    """Ends this process within a second or so of the launcher that started it, however that ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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


def check_same_start(accelerator: Accelerator, parameters: Sequence[nn.Parameter]) -> None:
    """The first process's adapter on all of them: two kinds of processor may draw other last digits from a seed."""
    if accelerator.num_processes > 1:
        for parameter in parameters:
            torch.distributed.broadcast(parameter.data, src=0)
