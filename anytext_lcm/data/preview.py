"""Look at a data set: a sheet of its items, and counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import pyarrow.compute as pc

from anytext_lcm.data.anyword import AnyWordDataset
from anytext_lcm.data.index import RecordIndex, problem_sentence
from anytext_lcm.data.pictures import open_picture, picture_size
from anytext_lcm.data.records import Problem
from anytext_lcm.data.usable import first_problems
from anytext_lcm.figures.contact_sheet import contact_sheet
from anytext_lcm.files import printable

COLUMNS = ("picture", "masked_img", "glyphs", "positions", "font_hint", "inv_mask")  # of a sheet, from left to right


def sheet(batch: Mapping[str, Any]) -> np.ndarray:
    """A contact sheet (height, width, 3) uint8 RGB of a batch of the contract: a row per item, texts and COLUMNS."""
    pictures = [_bytes(image) for image in batch["img"]]
    for picture, polygons in zip(pictures, batch.get("condition_polygons", batch["polygons"]), strict=True):
        for polygon in polygons:
            cv2.polylines(picture, [np.asarray(polygon, np.int32).reshape(-1, 1, 2)], True, (255, 0, 255), 1)
    gray = (
        batch["glyphs"].amax(1),
        batch["positions"].sum(1).clamp(max=3) * 85,
        batch["font_hint"][:, 0],
        batch["inv_mask"][:, 0] * 255,
    )
    columns = [np.stack(pictures), np.stack([_bytes(image) for image in batch["masked_img"]])]
    columns += [np.repeat(cells.numpy().astype(np.uint8)[..., None], 3, -1) for cells in gray]
    return contact_sheet(dict(zip(COLUMNS, columns, strict=True)), batch["texts"])


def counts(dataset: AnyWordDataset) -> str:
    """Count records, lines, languages and problems of each JSON, in a line of text per JSON."""
    return "\n".join(
        printable(f"{source}: {_counts(index)}") for source, index in zip(dataset.sources, dataset.indices, strict=True)
    )


def problems(dataset: AnyWordDataset, each: int = 3) -> str:
    """List the first `each` problems of each kind and JSON, one per line; empty if there are none."""
    return "\n".join(first_problems(dataset, each))


def shapes(dataset: AnyWordDataset, most: int = 1000) -> str:
    """Say how many pictures are not square and what the data set does to them, in one sentence.

    most: so many records, evenly spread, are looked at; 0 for all. Pictures that cannot be opened are left out.
    """
    count = min(most, len(dataset)) if most else len(dataset)
    aspects = []
    for place in np.linspace(0, len(dataset) - 1, count).round().astype(int):
        source, record = dataset.record(int(place))
        try:
            width, height = picture_size(dataset.picture_path(source, record))
        except (OSError, ValueError):
            continue
        aspects.append(max(width, height) / min(width, height))
    if not aspects:
        return "no picture could be opened"
    oblong = [aspect for aspect in aspects if aspect > 1]
    looked = f"{len(oblong)} of {len(aspects)} pictures" + (" looked at" if count < len(dataset) else "")
    if not oblong:
        return f"{looked} are not square"
    worst, usual = max(oblong), float(np.median(oblong))
    done = {
        "stretch": f"they are stretched by {usual:.2f} (median) to {worst:.2f}, which --fit crop or pad avoids",
        "crop": f"of the longer side {1 - 1 / usual:.0%} (median) to {1 - 1 / worst:.0%} is cut off",
        "pad": f"bars fill {1 - 1 / usual:.0%} (median) to {1 - 1 / worst:.0%} of the square",
    }
    return f"{looked} are not square: {done[dataset.rules.fit]}"


def unreadable_pictures(dataset: AnyWordDataset) -> list[str]:
    """Open every picture. Returns a line for each that cannot be read."""
    broken = []
    for place in range(len(dataset)):
        source, record = dataset.record(place)
        path = dataset.picture_path(source, record)
        try:
            open_picture(path, turned=False)
        except (OSError, ValueError) as error:
            broken.append(problem_sentence(dataset.sources[source], Problem(record.number, "picture", str(error))))
    return broken


def _counts(index: RecordIndex) -> str:
    about = index.about
    lines = pc.list_value_length(index.column("annotations"))
    flat = pc.list_flatten(index.column("annotations"))
    valid, languages = pc.struct_field(flat, "valid"), pc.struct_field(flat, "language")
    spoken = pc.value_counts(pc.filter(languages, valid)).to_pylist()
    spoken.sort(key=lambda entry: -entry["counts"])
    counted = [
        f"{about.records} records, {about.kept} kept",
        f"{len(flat)} lines, at most {pc.max(lines).as_py() or 0} in a picture",
        f"{len(flat) - (pc.sum(valid).as_py() or 0)} lines ignored",
        "languages " + (", ".join(f"{e['values']} {e['counts']}" for e in spoken) or "none"),
        "problems " + (", ".join(f"{kind} {count}" for kind, count in sorted(about.problems.items())) or "none"),
    ]
    return "; ".join(counted)


def _bytes(image) -> np.ndarray:
    """(3, H, W) -1..1 to (H, W, 3) uint8, writable."""
    return np.ascontiguousarray(np.rint((image.numpy() + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0))
