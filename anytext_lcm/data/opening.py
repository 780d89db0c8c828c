"""What opening a large data set costs a process: `python -m anytext_lcm.data.opening FILE.json` prints it as JSON.

Apart from the benchmark, so that the process measured holds the index and not torch.

May import: numpy, psutil, anytext_lcm.data.index.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from anytext_lcm.data.index import open_index


def measure(json_path: str | Path, reads: int = 2000) -> dict[str, float]:
    """Seconds to open a set whose index is there, and MB of this process.

    What it maps from the file counts as resident, though all processes of a machine share it; "its own" leaves it out.
    """
    process = psutil.Process()
    before = process.memory_info()
    start = time.perf_counter()
    index = open_index(json_path)
    last = index[len(index) - 1]
    opened = time.perf_counter() - start
    after = process.memory_info()
    places = np.random.default_rng(0).integers(0, len(index), reads)
    start = time.process_time()
    for place in places:
        index[int(place)]
    spent = time.process_time() - start
    read = process.memory_info()
    return {
        "records": len(index),
        "annotations of the last": len(last.annotations),
        "MB on disk": (index.folder / "records.arrow").stat().st_size / 1e6,
        "seconds to open": opened,
        "MB resident, opened": after.rss / 1e6,
        "MB its own, opened": _own(after) / 1e6,
        "MB more by opening": (after.rss - before.rss) / 1e6,
        f"MB resident after {reads} random reads": read.rss / 1e6,
        "MB its own then": _own(read) / 1e6,
        "CPU microseconds a read": spent / reads * 1e6,
        "bytes sent to a worker": len(pickle.dumps(index)),
    }


def _own(info) -> float:
    """Bytes that are neither mapped from a file nor shared."""
    return info.rss - info.shared


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
