"""Write a data set of the contract to disk in AnyWord-3M's layout.

FOLDER/data.json and FOLDER/imgs/00000000.png, ... The polygons are those of the condition (`condition_polygons`), so
that `AnyWordDataset` makes the same masks of them.
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
    """Write the first `count` items (None: all), complete or not at all, and return the path of the JSON.

    Mode, phrase of the text caption and font hint are not in AnyWord's layout: the reader draws them anew.
    Raises ValueError for an unknown format, for items with ignored regions, whose polygons are not known, and for a
    folder that holds other files.
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
    """Make an entry of AnyWord's data_list of an item of the contract; `name` is its picture's path.

    Raises ValueError for an item with ignored regions.
    """
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
