"""Which items and which noise a micro-batch gets: its place in the run decides, and no state has to be saved."""

import os
import random
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from anytext_lcm.data.anyword import AnyWordDataset, ReadingRules
from anytext_lcm.data.batch import collate
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.data.packed import PackedDataset
from anytext_lcm.data.usable import complaints, require_lines
from anytext_lcm.training.processes import ignore_interrupts
from anytext_lcm.training.settings import DataSettings, TrainSettings


def seeded_generator(*keys: int) -> torch.Generator:
    """A generator decided by all keys together, so that no two of (seed, rank, step) share their noise."""
    state = np.random.SeedSequence(keys).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def seed_random_state(seed: int) -> None:
    """Seed Python, numpy and torch, the GPU included."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@lru_cache(maxsize=2)  # a batch may straddle two epochs; 3 million records take 24 MB an epoch
def _epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(size, generator=seeded_generator(seed, epoch, 1 << 20))


def batch_indices(
    size: int, batch_size: int, seed: int, rank: int, world: int, step: int, draws_anew_each_epoch: bool = False
) -> list[int]:
    """Items of micro-batch `step` on process `rank`: shuffled epochs one after the other, dealt out in turn.

    Only the arguments decide, so a resumed run continues in the middle of an epoch. For a data set that draws an item
    anew in each epoch, item i of epoch e is i + e * size.
    """
    first = (step * world + rank) * batch_size
    epochs = [divmod(place, size) for place in range(first, first + batch_size)]
    offset = size if draws_anew_each_epoch else 0
    return [int(_epoch_order(size, seed, epoch)[place]) + epoch * offset for epoch, place in epochs]


def batch_generator(seed: int, rank: int, world: int, step: int) -> torch.Generator:
    """Noise and timesteps of micro-batch `step` on process `rank`, decided by the batch's place in the whole run.

    So three processes draw what one draws that accumulates three times as many batches.
    """
    return seeded_generator(seed, 0, step * world + rank)


class DataOrder:
    """(step, `batch_indices`) from one micro-batch to another, as the batch sampler of a DataLoader."""

    def __init__(self, start: int, stop: int, **arguments: int):
        self.start, self.stop, self.arguments = start, stop, arguments

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        return ((step, batch_indices(step=step, **self.arguments)) for step in range(self.start, self.stop))


class MicroBatches(Dataset):
    """The items of a micro-batch at once.

    Reseeds Python, numpy and torch before each micro-batch by its place in the run, here or in a worker, so that a
    custom data set draws the same numbers after a resume.
    """

    def __init__(self, dataset: Dataset, seed: int, rank: int, world: int):
        self.dataset, self.seed, self.rank, self.world = dataset, seed, rank, world

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, batch: tuple[int, list[int]]) -> list[Any]:
        step, indices = batch
        place = step * self.world + self.rank
        seed_random_state(seeded_generator(self.seed, place, 1 << 22).initial_seed())
        together = getattr(self.dataset, "__getitems__", None)  # torch's name for reading several items at once
        return together(indices) if together else [self.dataset[i] for i in indices]


def build_loader(
    dataset: Dataset, settings: TrainSettings, done: int, rank: int, world: int, pin_memory: bool
) -> DataLoader:
    """The micro-batches of process `rank` of `world` that are left after `done` updates."""
    accumulation = settings.gradient_accumulation_steps
    order = DataOrder(
        done * accumulation,
        settings.max_train_steps * accumulation,
        size=len(dataset),
        batch_size=settings.train_batch_size,
        seed=settings.seed,
        rank=rank,
        world=world,
        draws_anew_each_epoch=getattr(dataset, "draws_anew_each_epoch", False),
    )
    return DataLoader(
        MicroBatches(dataset, settings.seed, rank, world),
        batch_sampler=order,
        collate_fn=collate,
        num_workers=settings.num_workers or 0,
        pin_memory=pin_memory,
        worker_init_fn=ignore_interrupts,
        generator=seeded_generator(settings.seed, rank, done),  # else it draws from the global one
    )


def mock_pictures(settings: DataSettings, **more: Any) -> MockDataset:
    """The made-up pictures that the settings name. more: other arguments of theirs."""
    own = {"size": settings.dataset_size, "seed": settings.seed, "image_size": settings.picture_size}
    return MockDataset(**(own | more))


def build_dataset(settings: DataSettings) -> Dataset:
    """The data set that the settings name: mock pictures or records on disk, as light items.

    Stored paths are built by `path_store.PathDataset` instead. The first process says on stderr what is wrong with the
    records. Raises ValueError when the settings name none or both, when no line of text can be used, and as
    AnyWordDataset does.
    """
    if settings.use_mock_dataset == bool(settings.data_list):
        named = "Both data sets were named" if settings.use_mock_dataset else "No data set was named"
        raise ValueError(f"{named}; pass --use_mock_dataset or --data_list, or --paths.")
    if settings.use_mock_dataset:
        return PackedDataset(mock_pictures(settings))
    rules = ReadingRules(image_size=settings.picture_size, edit_share=settings.edit_share, **_reading(settings))
    dataset = _records(settings, settings.data_list, rules)
    require_lines(dataset)
    if os.environ.get("RANK", "0") == "0":
        for sentence in complaints(dataset):
            print(sentence, file=sys.stderr)
    return dataset


def name_of_data(settings: DataSettings, dataset: Dataset) -> str:
    """Words that tell the pictures of `build_dataset` from those of other settings or other files of records."""
    side = settings.picture_size
    if settings.use_mock_dataset:
        return f"drawn pictures of {side} px from seed {settings.seed}"
    digests = ", ".join(index.about.digest[:12] for index in dataset.indices)
    part = f" but {settings.validation_share:g} of them" if settings.validation_share else ""
    return f"records {digests}{part} of {side} px ({settings.fit}) up to wm_score {settings.wm_thresh:g}"


def held_out_records(settings: DataSettings) -> AnyWordDataset | None:
    """The records that are not trained on, drawn without chance: no font hint, no jitter, nothing edited.

    None when the settings hold none out. Raises as `build_dataset`.
    """
    if not settings.holds_out:
        return None
    calm = {"hint_share": 0.0, "jitter": False, "random_font": False}
    rules = ReadingRules(image_size=settings.picture_size, **calm, **_reading(settings))
    dataset = _records(settings, settings.validation_list or settings.data_list, rules, held_out=True)
    require_lines(dataset)
    return dataset


def _reading(settings: DataSettings) -> dict[str, Any]:
    return {"fit": settings.fit} | ({"fonts": settings.fonts} if settings.fonts else {})


def _records(
    settings: DataSettings, sources: Sequence[str] | None, rules: ReadingRules, held_out: bool = False
) -> AnyWordDataset:
    return AnyWordDataset(
        sources or (),
        data_root=settings.data_root,
        rules=rules,
        seed=settings.seed,
        wm_thresh=settings.wm_thresh,
        strict=settings.strict,
        index_dir=settings.index_dir,
        share=settings.validation_share,
        held_out=held_out,
    )
