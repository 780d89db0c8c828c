"""Mock pictures with their conditioning, drawn once into memory-mapped columns.

A column is one .npy file of the work folder with a row per picture; masks of zeros and ones are packed to bits.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from anytext_lcm.data.mock import MockDataset
from anytext_lcm.files import atomic_file
from anytext_lcm.teacher.processes import Rank
from anytext_lcm.teacher.recipe import Recipe

LINES = 2  # line slots of a mock picture
SIDE = 128  # pixels
_SHAPES = {  # of one row, uint8 but for the colours
    "img": (3, SIDE, SIDE),
    "glyphs": (SIDE * SIDE // 8,),
    "positions": (LINES, SIDE * SIDE // 8),
    "gly_line": (LINES, 80 * 512 // 8),
    "font_hint": (SIDE, SIDE),
    "n_lines": (),
    "edit": (),
    "color": (LINES, 3),
}


def create_columns(work: Path, count: int) -> None:
    """Create empty columns of `count` rows."""
    for name, shape in _SHAPES.items():
        dtype = np.float32 if name == "color" else np.uint8
        np.lib.format.open_memmap(work / f"{name}.npy", mode="w+", dtype=dtype, shape=(count, *shape))


def open_columns(work: Path, mode: str = "r") -> dict[str, np.ndarray]:
    """Open the columns by name; mode "r" or "r+"."""
    return {name: np.lib.format.open_memmap(work / f"{name}.npy", mode=mode) for name in _SHAPES}


def draw(rank: Rank, work: Path, recipe: Recipe) -> None:
    """Stage `data`: fill this process's rows, and write their captions and lines for `finish_data`."""
    columns = open_columns(work, mode="r+")
    dataset = MockDataset(recipe.pictures, recipe.seed, SIDE, LINES)
    captions = []
    for i in tqdm(range(rank.index, recipe.pictures, rank.world), desc="data", disable=not rank.main):
        item = dataset[i]
        columns["img"][i] = np.round((np.asarray(item["img"]) + 1) * 127.5)
        columns["glyphs"][i] = np.packbits((np.asarray(item["glyphs"]) != 0).any(0))
        columns["positions"][i] = np.packbits(np.asarray(item["positions"]).reshape(LINES, -1), axis=1)
        columns["gly_line"][i] = np.packbits(np.asarray(item["gly_line"]).reshape(LINES, -1), axis=1)
        columns["font_hint"][i] = np.asarray(item["font_hint"])[0]
        columns["n_lines"][i] = item["n_lines"]
        columns["edit"][i] = bool((np.asarray(item["masked_img"]) != -1).any())
        columns["color"][i] = item["color"]
        quads = [np.asarray(quad).tolist() for quad in item["condition_polygons"]]
        captions.append((i, item["img_caption"], item["text_caption"], list(item["texts"]), quads))
    (work / f"captions.{rank.index}.json").write_text(json.dumps(captions))


def finish_data(work: Path, world: int) -> None:
    """Merge the captions and lines of all processes into captions.json and lines.json."""
    parts = [work / f"captions.{i}.json" for i in range(world)]
    rows = sorted(row for p in parts for row in json.loads(p.read_text()))
    write_json(work / "lines.json", [[texts, quads] for *_, texts, quads in rows])
    write_json(work / "captions.json", [[image, text] for _, image, text, *_ in rows])
    for p in parts:
        p.unlink()


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all: its presence means that a stage is done."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")
