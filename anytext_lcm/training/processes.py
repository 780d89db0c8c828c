"""The processes of one run: how they start, agree, average gradients, fail and end together."""

import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import ProjectConfiguration, broadcast_object_list
from torch import nn

from anytext_lcm.command import FAILURES, in_words
from anytext_lcm.training.settings import PRECISIONS, TrainSettings

# -- start ------------------------------------------------------------------------------------------------


def settle() -> None:
    """Make this process safe to train in: the threads of a fork, the end of its launcher. Does nothing when alone."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    forked = multiprocessing.parent_process() is not None
    if forked:
        # The OpenMP threads of the parent are not there, and a fork with more than one would wait for them forever.
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
        if forked:  # by notebook_launcher
            await_younger_siblings(int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))


def await_younger_siblings(place: int, count: int, limit: float = 60.0) -> None:
    """Return when the parent has forked all of its `count` processes, or after `limit` seconds. place: of this one."""
    # The parent keeps the store by which they meet. When an early child connects, the store's thread looks up its
    # address; a child forked during the lookup inherits glibc's resolver lock as taken and hangs at its own first
    # lookup (two of fifty launches in JupyterLab). So nobody connects before the last of them is there.

    def birth(process: psutil.Process) -> tuple[float, int]:
        return process.create_time(), process.pid

    own, until = birth(psutil.Process()), time.monotonic() + limit
    while time.monotonic() < until:
        if sum(birth(sibling) > own for sibling in psutil.Process(os.getppid()).children()) >= count - 1 - place:
            return
        time.sleep(0.01)


def end_with_parent() -> None:
    """End this process within a second or so of the launcher that started it, however that ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def check_gpus() -> None:
    """Raise ValueError for more processes than GPUs, unless they are to use the CPU or there is no GPU."""
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if 0 < gpus < here and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true", "yes"):
        raise ValueError(f"{here} processes were launched for {gpus} GPUs; launch {gpus}, or set ACCELERATE_USE_CPU=1.")


def start_accelerator(settings: TrainSettings) -> Accelerator:
    """Accelerate, with TensorBoard in output_dir/logs.

    Raises ValueError for more processes than GPUs, fewer than `num_processes`, and a precision the device lacks.
    """
    check_gpus()
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


def share_first_weights(accelerator: Accelerator, parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the first one's adapter: two kinds of CPU may draw other last digits from one seed."""
    if accelerator.num_processes > 1:
        for parameter in parameters:
            torch.distributed.broadcast(parameter.data, src=0)


# -- work -------------------------------------------------------------------------------------------------


def average_gradients(accelerator: Accelerator, parameters: Sequence[nn.Parameter], batches: int) -> None:
    """Replace each gradient, a sum over `batches` micro-batches, by the mean over those of all processes. Collective.

    One flat buffer in a fixed order, not DistributedDataParallel: that reorders its buckets after the first step, and
    with three processes or more another order rounds differently, so a resumed run would not be the unbroken one.
    """
    flat = torch.cat([p.grad.flatten() for p in parameters])
    if accelerator.num_processes > 1:
        torch.distributed.all_reduce(flat)
    flat /= accelerator.num_processes * batches  # once, so that processes and accumulation round alike
    for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad.copy_(mean.view_as(parameter))


def raise_everywhere(problem: Exception | None) -> None:
    """Raise the first process's problem on all of them, or on none. Collective."""
    [shared] = broadcast_object_list([problem])
    if shared is not None:
        raise shared


# -- end --------------------------------------------------------------------------------------------------


def ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C to the process that trains: `worker_init_fn` of a DataLoader. worker: its number, not used."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _unless_left_alone


def _unless_left_alone(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The hook of a worker: says nothing when the process that trains has gone while it was being served."""
    # It is called by the thread through which multiprocessing hands tensors over; a worker's own errors are sent on.
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def worker_death(error: BaseException) -> re.Match | None:
    """Torch's words for a DataLoader's dead worker, (pid), reason; None for another error."""
    return re.match(r"DataLoader worker (\(pid.*?\)) (.*)", str(error))


@contextmanager
def worker_deaths_in_words() -> Iterator[None]:
    """Raise OSError with a sentence when a DataLoader's worker dies inside; torch raises RuntimeError anywhere."""
    try:
        yield
    except RuntimeError as error:
        if not (found := worker_death(error)):
            raise
        raise OSError(
            f"A process that prepares batches {found[1]} {found[2].strip().rstrip('.')}: memory may have run out. "
            "Use fewer --num_workers; a training goes on with --resume_from_checkpoint latest."
        ) from error


@contextmanager
def one_voice() -> Iterator[None]:
    """Of several processes that fail inside, the first one prints the reason on stderr. The error goes on."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    try:
        yield
    except Exception as error:
        if world > 1 and fails_first(rank):
            known = isinstance(error, FAILURES)
            sys.stderr.write(f"error: {in_words(error)}\n" if known else f"[rank {rank}] {traceback.format_exc()}")
        raise


def fails_first(rank: int) -> bool:
    """Whether this process is the first of the run to fail: it has the cause, the others lost a partner.

    Before the process group exists, the processes of a node fail over the same settings and files: its first one is it.
    """
    if not torch.distributed.is_initialized():
        return rank == 0 or os.environ.get("LOCAL_RANK", "0") == "0"
    try:  # the store has no public name; it counts over all processes of all nodes
        return torch.distributed.distributed_c10d._get_default_store().add("failures", 1) == 1
    except Exception:  # the process that kept the store is gone, so this one was not the first
        return False


@contextmanager
def fresh_accelerate_state() -> Iterator[None]:
    """Reset Accelerate's global state afterwards, so that a notebook's next run may have another precision.

    Leaves alone a state that was there before, and that of several processes.
    """
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1 and not AcceleratorState._shared_state
    try:
        yield
    finally:
        if alone:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
