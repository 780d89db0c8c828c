"""Processor cores: how many there are, work spread over them, its time, the name of the hardware."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import torch


def available_cores() -> int:
    """CPU cores this process may use: fewer than the machine has in a container or under a batch system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no control groups, or "max": no limit
        pass
    return cores


def use_available_cores() -> None:
    """Set torch's threads to `available_cores`, unless OMP_NUM_THREADS is set: more threads than cores stall."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cores())


def spread_over_cores(
    work: Callable[[slice], Any], chunks: list[slice], device: torch.device, stop: Event | None = None
) -> list[Any]:
    """Return work(chunk) of every chunk, in order and without gradients; on a CPU several at once, one thread each.

    stop: set when one fails or the wait is interrupted, so that work that looks at it need not go on.
    """
    # Threads inside an operation wait for each other several hundred times per network call, and for a long time when
    # another program keeps a core busy. Whole chunks side by side do not wait at all.

    def quietly(chunk: slice) -> Any:
        with torch.no_grad():  # a setting of the thread
            return work(chunk)

    threads = torch.get_num_threads()
    workers = min(threads, len(chunks)) if device.type == "cpu" else 1
    if workers == 1:
        return [quietly(chunk) for chunk in chunks]
    try:
        # Holds for this thread and for those that begin from here on.
        torch.set_num_threads(1)
        with ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(1)) as pool:
            try:
                return list(pool.map(quietly, chunks))
            except BaseException:
                if stop is not None:
                    stop.set()  # the pool waits for what has begun
                raise
    finally:
        torch.set_num_threads(threads)


@dataclass
class Clock:
    """Seconds per phase: on the wall, and of all cores together."""

    wall: dict[str, float] = field(default_factory=dict)
    cores: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, phase: str, device: torch.device) -> Iterator[None]:
        def now() -> tuple[float, float]:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return time.perf_counter(), time.process_time()

        wall, cores = now()
        yield
        later = now()
        self.wall[phase] = self.wall.get(phase, 0.0) + later[0] - wall
        self.cores[phase] = self.cores.get(phase, 0.0) + later[1] - cores


def describe_hardware(device: torch.device) -> dict[str, Any]:
    """What a measured time depends on: cpu, cores, threads, device, and gpu where there is one."""
    name = ""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        import platform

        name = platform.processor() or platform.machine()
    found = {"cpu": name, "cores": available_cores(), "threads": torch.get_num_threads(), "device": device.type}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found
