"""Panels of one's own: held-out records with their pictures, or prompts without."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from anytext_lcm.data.anyword import AnyWordDataset
from anytext_lcm.data.fonts import PLAIN_FONT
from anytext_lcm.drawing.prompts import Prompt, prompts_to_items
from anytext_lcm.judging.panel import NOISE_STEP, Panel


def held_out_items(
    dataset: Dataset, prompts: int | None = None, lines: int | None = None, seed: int = 0
) -> tuple[list[dict[str, Any]], list[int]]:
    """Items with text, each of another picture, in an order that `seed` decides: so many, or as many as have so many
    lines, or all there are. Also returns the places of the records that were not looked at.

    dataset: with a length, items, and its files in `sources`; captions without pictures have no `img_name`. Raises
    ValueError when there are fewer than 2.
    """
    order = np.random.default_rng([seed, 1]).permutation(len(dataset)).tolist()
    wanted, items, names, count, looked = (lines if prompts is None else prompts), [], set(), 0, 0
    for place in order:
        if (count if prompts is None else len(items)) >= wanted:
            break
        looked += 1
        item = dataset[place]
        name = item.get("img_name", place)  # captions have no pictures
        if name in names or not any(text.strip() for text in item["texts"]):
            continue  # a broken picture has been stepped over, or nothing is written in this one
        items.append(item)
        names.add(name)
        count += int(item["n_lines"])
    if len(items) < 2:
        sources = ", ".join(map(str, dataset.sources))
        raise ValueError(f"{len(items)} held-out prompts of {sources} can be drawn, and a panel needs 2: add some.")
    return items, order[looked:]


def panel_of_records(dataset: AnyWordDataset, lines: int, seed: int = 0, repeats: int = 1) -> Panel:
    """A panel of held-out records, with as many lines as asked for or as there are.

    Their pictures are the real ones. Up to twice as many other held-out pictures are kept for the distance to real
    ones: texts and layouts of the panel itself would bring it too low. Raises ValueError as `held_out_items` and for
    other repeats than 1 to 10.
    """
    items, rest = held_out_items(dataset, lines=lines, seed=seed)
    others = {}
    shown = {item["img_name"] for item in items}
    for place in rest:
        if len(others) == 2 * repeats * len(items):
            break
        item = dataset[place]
        if item["img_name"] not in shown:
            others.setdefault(item["img_name"], item["picture"])
    names = ", ".join(source.name for source in dataset.sources)
    pictures = np.stack(list(others.values())) if others else None
    return Panel.of_items(items, seed, repeats, source=f"held-out records of {names}", others=pictures)


def panel_of_prompts(
    wishes: Sequence[tuple[Prompt, int]],
    size: tuple[int, int],
    name: str,
    repeats: int = 1,
    font: str | Path = PLAIN_FONT,
) -> Panel:
    """A panel of prompts with their seeds, as `drawing.jobs.read_batch` reads them. It has no real pictures.

    size: height and width. name: of their file, for the report. Raises ValueError for fewer than 2 and as
    `prompts_to_batch`.
    """
    if len(wishes) < 2:
        raise ValueError(f"{name} holds {len(wishes)} prompt, and a panel needs 2: add some.")
    most = max(len(prompt.lines) for prompt, _ in wishes)
    items = prompts_to_items([prompt for prompt, _ in wishes], size, max(most, 1), font)
    seeds = [seed + repeat * NOISE_STEP for repeat in range(repeats) for _, seed in wishes]
    return Panel.of_items(items, 0, repeats, seeds, source=f"prompts of {name}", has_pictures=False)
