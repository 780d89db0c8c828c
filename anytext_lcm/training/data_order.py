"""
Which items and which noise a micro-batch gets: decided by its place in the run.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from anytext_lcm.data.anyword import AnyWordDataset, ReadingRules
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.data.packed import PackedDataset
from anytext_lcm.model.networks import defaults_for
from anytext_lcm.training.checkpoints import seed_random_state
from anytext_lcm.training.settings import TrainSettings


def seeded_generator(*keys: int) -> torch.Generator:
    """A generator decided by all keys together, so that no two of (seed, rank, step) share their noise."""
    state = np.random.SeedSequence(keys).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


@lru_cache(maxsize=2)  # a batch may straddle two epochs; 3 million records take 24 MB an epoch
def _epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(size, generator=seeded_generator(seed, epoch, 1 << 20))


def batch_indices(
    size: int, batch_size: int, seed: int, rank: int, world: int, step: int, redraws: bool = False
) -> list[int]:
    """Items of micro-batch `step` on process `rank`: an endless row of shuffled epochs, dealt out in turn.

    Nothing but the arguments decides, which is what makes a resumed run continue in the middle of an epoch. For a data
    set that makes an item anew each time (`redraws`) item i of epoch e is i + e * size.
    """
    first = (step * world + rank) * batch_size
    epochs = [divmod(place, size) for place in range(first, first + batch_size)]
    return [int(_epoch_order(size, seed, epoch)[place]) + (epoch * size if redraws else 0) for epoch, place in epochs]


def batch_generator(seed: int, rank: int, world: int, step: int) -> torch.Generator:
    """Noise and timesteps of micro-batch `step` on process `rank`: decided by the batch's place in the whole run.

    So three processes do what one does that accumulates three times as many batches, to the order of summation.
    """
    return seeded_generator(seed, 0, step * world + rank)


class DataOrder:
    """(step, `batch_indices`) from one micro-batch to another, for a DataLoader over `MicroBatches`."""

    def __init__(self, start: int, stop: int, **arguments: int):
        self.start, self.stop, self.arguments = start, stop, arguments

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        return ((step, batch_indices(step=step, **self.arguments)) for step in range(self.start, self.stop))


class MicroBatches(Dataset):
    """The items of a micro-batch at once. The global generators, from which a data set of one's own may draw, begin
    each of them anew, as its place in the run decides, here or in a worker: so a resumed run draws what the unbroken
    one does, and no checkpoint holds their state.
    """

    def __init__(self, dataset: Dataset, seed: int, rank: int, world: int):
        self.dataset, self.seed, self.rank, self.world = dataset, seed, rank, world

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, batch: tuple[int, list[int]]) -> list[Any]:
        step, indices = batch
        place = step * self.world + self.rank
        seed_random_state(seeded_generator(self.seed, place, 1 << 22).initial_seed())
        together = getattr(self.dataset, "__getitems__", None)  # where it can, as torch asks it itself
        return together(indices) if together else [self.dataset[i] for i in indices]


def build_dataset(settings: TrainSettings) -> Dataset:
    """The data set that the settings name: mock pictures or records on disk, as light items.

    Raises ValueError when they name none or both, and as AnyWordDataset does.
    """
    side = settings.image_size or defaults_for(settings.config).size[0]
    if settings.use_mock_dataset == bool(settings.data_list):
        named = "Both data sets were named" if settings.use_mock_dataset else "No data set was named"
        raise ValueError(f"{named}; pass --use_mock_dataset or --data_list.")
    if settings.use_mock_dataset:
        return PackedDataset(MockDataset(settings.dataset_size, seed=settings.seed, image_size=side))
    fonts = {"fonts": settings.fonts} if settings.fonts else {}
    return AnyWordDataset(
        settings.data_list,
        data_root=settings.data_root,
        rules=ReadingRules(image_size=side, edit_share=settings.edit_share, **fonts),
        seed=settings.seed,
        wm_thresh=settings.wm_thresh,
        strict=settings.strict,
        index_dir=settings.index_dir,
    )
