"""A data set of the contract written to disk in AnyWord-3M's layout.

FOLDER/data.json and FOLDER/imgs/00000000.png, ... The polygons are those a model is told (`condition_polygons`), so
that `AnyWordDataset` makes the same masks of them.

May import: numpy, Pillow, torch, anytext_lcm.outputs, anytext_lcm.data.batch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from anytext_lcm.data.batch import UNSPECIFIED_COLOR
from anytext_lcm.files import atomic_folder

FORMATS = {"png": {}, "jpg": {"quality": 95}}
"""Picture formats and how they are written; only png keeps every byte."""


def write_anyword(dataset: Dataset, folder: str | Path, count: int | None = None, image_format: str = "png") -> Path:
    """Write the first `count` items (None: all), complete or not at all. Returns the path of the JSON.

    What an item draws anew each time (mode, phrase of the text caption, font hint) is not in AnyWord's layout and is
    left to the reader. Raises ValueError for a format that is none, for items with ignored regions, whose polygons
    are not known, and for a folder that holds other files.
    """
    if image_format not in FORMATS:
        raise ValueError(f"Picture format {image_format!r} is unknown: choose {' or '.join(FORMATS)}.")
    count = len(dataset) if count is None else min(count, len(dataset))
    with atomic_folder(folder, mark="data.json") as temporary:
        (temporary / "imgs").mkdir()
        with (temporary / "data.json").open("w", encoding="utf-8") as file:
            file.write('{"data_root": ".", "data_list": [')
            for number in range(count):
                item = dataset[number]
                name = f"imgs/{number:08d}.{image_format}"
                picture = np.rint((np.asarray(item["img"]) + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)
                Image.fromarray(picture).save(temporary / name, **FORMATS[image_format])
                file.write(",\n" if number else "\n")
                json.dump(record_of(item, name), file, ensure_ascii=False)
            file.write("\n]}\n")
    return Path(folder) / "data.json"


def record_of(item: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The record of an item of the contract: an entry of AnyWord's data_list."""
    if np.any(item["inv_mask"]):
        raise ValueError(f"The item for {name} has ignored regions, and their polygons are not known.")
    annotations = []
    polygons = item.get("condition_polygons", item["polygons"])
    lines = zip(polygons, item["texts"], item["language"], strict=True)
    for slot, (polygon, text, language) in enumerate(lines):
        annotation = {"polygon": np.asarray(polygon).tolist(), "text": text, "language": language, "valid": True}
        color = np.asarray(item["color"][slot]).astype(int).tolist()
        if tuple(color) != UNSPECIFIED_COLOR:
            annotation["color"] = color
        annotations.append(annotation)
    return {"img_name": name, "caption": item["img_caption"], "annotations": annotations}
