"""A fresh process for each variant, and how much memory it takes."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil


def in_own_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """work(*arguments) in a fresh process, which inherits neither memory nor caches.

    Raises what `work` raises, and RuntimeError when the process was killed.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(work, *arguments).result()
        except BrokenProcessPool as error:
            raise RuntimeError("A variant's process was killed, most likely for lack of memory.") from error


def resident_bytes() -> int:
    """Memory of this process, in bytes."""
    return psutil.Process().memory_info().rss


def peak_bytes() -> int:
    """Largest memory of this process since `forget_peak`, in bytes; outside Linux its memory now."""
    try:  # the kernel's mark: getrusage would count the parent's, too
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        [line] = [line for line in lines if line.startswith("VmHWM:")]
        return 1024 * int(line.split()[1])
    except OSError:
        return resident_bytes()


def forget_peak() -> None:
    """Let `peak_bytes` count from here on. Outside Linux nothing is done."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
