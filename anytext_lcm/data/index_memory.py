"""What opening the index of a large data set costs a process. Apart from `benchmark.py`, so that no torch is loaded."""

from __future__ import annotations

import pickle
import time
from pathlib import Path

import numpy as np
import psutil

from anytext_lcm.data.index import open_index


def index_memory(json_path: str | Path, reads: int = 2000) -> dict[str, float]:
    """Measure what opening the index of a JSON adds to this process, then `reads` random reads: seconds and MB.

    Resident memory counts what is mapped from the file, though all processes of a machine share it; "of its own" leaves
    it out.
    """
    process = psutil.Process()
    before, start = process.memory_info(), time.perf_counter()
    index = open_index(json_path)
    last = index[len(index) - 1]
    opened, after = time.perf_counter() - start, process.memory_info()
    places, start = np.random.default_rng(0).integers(0, len(index), reads), time.process_time()
    for place in places:
        index[int(place)]
    spent, read = time.process_time() - start, process.memory_info()

    def own(info) -> float:
        return info.rss - info.shared

    return {
        "records": len(index),
        "annotations of the last": len(last.annotations),
        "MB on disk": (index.folder / "records.arrow").stat().st_size / 1e6,
        "seconds to open": opened,
        "MB resident by opening": (after.rss - before.rss) / 1e6,
        "MB of its own by opening": (own(after) - own(before)) / 1e6,
        f"MB resident by opening and {reads} random reads": (read.rss - before.rss) / 1e6,
        "MB of its own by both": (own(read) - own(before)) / 1e6,
        "CPU microseconds a read": spent / reads * 1e6,
        "bytes sent to a worker": len(pickle.dumps(index)),
    }
