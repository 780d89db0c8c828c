"""Measure what an item costs to make and to collate; example sets to measure on, whose index can be made large."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from PIL import Image

from anytext_lcm.data.anyword import AnyWordDataset, ReadingRules
from anytext_lcm.data.batch import collate
from anytext_lcm.data.index import ROWS, RecordIndex, open_index
from anytext_lcm.data.packed import item_bytes
from anytext_lcm.files import atomic_file

# -- data to measure on -----------------------------------------------------------------------------------

_TEXTS = ("Hello world", "slope 20", "TALL", "A longer line of it", "small print")
_QUADS = (
    (30, 20, 300, 20, 300, 70, 30, 70),
    (320, 30, 490, 90, 475, 140, 305, 80),
    (440, 160, 490, 160, 490, 480, 440, 480),
    (30, 200, 420, 210, 418, 290, 28, 280),
    (40, 320, 300, 330, 300, 370, 40, 360),
)


def example_record(number: int) -> dict[str, Any]:
    """Make a record of AnyWord's JSON with five lines, level, turned and vertical; each number another one."""
    lines = [
        {
            "polygon": [[x + number % 17, y + number % 23] for x, y in zip(quad[::2], quad[1::2], strict=True)],
            "text": f"{text} {number % 10}"[:20],
            "language": "Latin",
            "color": [number % 256, 37 * slot, 200],
        }
        for slot, (text, quad) in enumerate(zip(_TEXTS, _QUADS, strict=True))
    ]
    caption = f"a picture of things with the number {number} and some words about them"
    return {"img_name": f"{number % 8}.jpg", "caption": caption, "wm_score": 0.1, "annotations": lines}


def example_set(folder: Path, count: int = 8) -> AnyWordDataset:
    """Write records of five lines with JPEGs of 512 px to a folder, in AnyWord's layout, and open them."""
    rng = np.random.default_rng(0)
    for number in range(8):
        coarse = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        picture = cv2.resize(coarse, (512, 512), interpolation=cv2.INTER_CUBIC)
        Image.fromarray(picture).save(folder / f"{number}.jpg", quality=90)
    write_records(folder / "data.json", count)
    return AnyWordDataset(folder / "data.json", rules=ReadingRules(hint_shake=False))


def write_records(path: Path, count: int) -> None:
    """Write a JSON of `count` example records."""
    with path.open("w", encoding="utf-8") as file:
        file.write('{"data_root": ".", "data_list": [')
        for number in range(count):
            file.write((",\n" if number else "\n") + json.dumps(example_record(number)))
        file.write("]}")


def large_set(folder: Path, rows: int, tell: Callable[[str], None]) -> Path:
    """Write a JSON with an index of `rows` records of five lines, and return the path of the JSON.

    The JSON holds one batch; the index repeats it and has its full size. tell is called with a line of timings.
    """
    path = folder / "large.json"
    write_records(path, ROWS)
    start = time.process_time()
    index = open_index(path)
    spent = time.process_time() - start
    tell(f"index from JSON: {ROWS} records, {spent / ROWS * 1e6:.3g} microseconds of CPU per record")
    enlarge_index(index.folder, rows)
    return path


def enlarge_index(folder: Path, rows: int) -> None:
    """Repeat the only batch of an index until there are `rows` records; ValueError unless it is a whole batch."""
    index = RecordIndex(folder)
    if len(index) != ROWS:
        raise ValueError(f"An index to enlarge needs {ROWS} records, a whole batch, {folder} has {len(index)}.")
    batch = index.batch(0)
    with atomic_file(folder / "records.arrow") as path, pa.OSFile(str(path), "wb") as file:
        with pa.ipc.new_file(file, batch.schema) as writer:
            for first in range(0, rows, ROWS):
                writer.write_batch(batch.slice(0, rows - first))
    about = (folder / "about.json").read_text(encoding="utf-8")
    with atomic_file(folder / "about.json") as path:
        path.write_text(about.replace(f'"kept": {ROWS}', f'"kept": {rows}'), encoding="utf-8")


# -- measuring --------------------------------------------------------------------------------------------


def measure_items(dataset: AnyWordDataset, count: int, batch_size: int = 4) -> dict[str, float]:
    """Measure MB per item as it leaves a worker, ms to read and make and to collate it, and items per CPU second.

    The items are read from disk, made and collated in batches; a first batch is not counted. The bytes are those of the
    arrays. CPU seconds are those of this process, so that other work on the machine does not count.
    """
    weight = spent = making = 0.0
    for first in range(-batch_size, count, batch_size):
        start = time.process_time()
        items = [dataset[index + batch_size] for index in range(first, min(first + batch_size, max(count, 0)))]
        made = time.process_time()
        collate(items)
        if first >= 0:
            making, spent = making + made - start, spent + time.process_time() - start
        weight = max(weight, *map(item_bytes, items))
    return {
        "MB": weight / 1e6,
        "ms to read and make": making / count * 1e3,
        "ms to collate": (spent - making) / count * 1e3,
        "items/s": count / spent,
    }
