"""Latents of a data set's pictures on disk, since the autoencoder is a quarter of a training step at full size.

Written by `python -m anytext_lcm.cache_latents`, read by training with --latents FOLDER: a store of `shards.py` with,
for each picture,

    moments   (2C, h, w): mean and log variance of its posterior, unscaled; at 512 px 64 KB in half precision
    checksum  int64: CRC-32 of the picture

The sample of the posterior is still drawn anew at every step, and texts, glyphs and hints stay as the data set draws
them.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from anytext_lcm.data.batch import collate
from anytext_lcm.data.packed import expand
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.loading import PRECISIONS
from anytext_lcm.training.checkpoints import fingerprint
from anytext_lcm.training.processes import ignore_interrupts, worker_deaths_in_words
from anytext_lcm.training.shards import SHARD_ROWS, Array, Layout, ShardReader, ShardWriter

MOMENTS, CHECKSUM, AUTOENCODER = "moments", "checksum", "autoencoder"


def checksum(item: Mapping[str, Any]) -> int:
    """CRC-32 of an item's picture; a light item and its expanded one differ."""
    picture = item["picture"] if "picture" in item else item["img"]
    return zlib.crc32(np.ascontiguousarray(picture).tobytes())


class _Checked(Dataset):
    """The items with the checksum of their picture, computed by the worker that makes them."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.dataset[index]
        return dict(item) | {CHECKSUM: checksum(item)}


def latent_layout(
    dataset: Dataset, model: AnyText2, precision: str = "fp16", data: str = "", shard_rows: int = SHARD_ROWS
) -> Layout:
    """What the store of a data set's latents holds.

    precision: one of PRECISIONS, of what is stored. fp16 halves the store and rounds a mean by less than a thousandth
    of itself, far below the posterior's own noise. data: words that tell this data set from others.
    """
    height, width = expand(collate([dataset[0]]))["img"].shape[-2:]
    moments = Array(PRECISIONS[precision], (2 * model.latent_channels, height // 8, width // 8))
    settings = {AUTOENCODER: fingerprint(model.first_stage_model), "precision": precision, "data": data}
    return Layout(len(dataset), {MOMENTS: moments, CHECKSUM: Array(torch.int64)}, settings, shard_rows)


@torch.no_grad()
def encode_shards(
    writer: ShardWriter,
    shards: Sequence[int],
    dataset: Dataset,
    model: AnyText2,
    batch_size: int = 12,
    num_workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Encode the pictures of some files of a store and write these, one after the other.

    progress: called after each batch with its number of pictures. Raises OSError when a worker dies.
    """
    rows = [writer.layout.rows_of(shard) for shard in shards]
    batches = [of_shard[at : at + batch_size] for of_shard in rows for at in range(0, len(of_shard), batch_size)]
    loader = DataLoader(
        _Checked(dataset),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=ignore_interrupts,
    )
    dtype = writer.layout.arrays[MOMENTS].dtype
    with worker_deaths_in_words():
        left, moments, checksums = iter(shards), [], []
        for indices, batch in zip(batches, loader, strict=True):
            images = expand(batch, model.device)["img"]
            mean, logvar = model.first_stage_model.encode(images.to(model.dtype))
            moments.append(torch.cat([mean, logvar], dim=1).to("cpu", dtype))
            checksums += batch[CHECKSUM]
            if progress is not None:
                progress(len(images))
            if indices[-1] == len(dataset) - 1 or (indices[-1] + 1) % writer.layout.shard_rows == 0:
                writer.write(next(left), {MOMENTS: torch.cat(moments), CHECKSUM: torch.tensor(checksums)})
                moments, checksums = [], []


def write_latents(
    folder: str | Path,
    dataset: Dataset,
    model: AnyText2,
    batch_size: int = 12,
    num_workers: int = 0,
    progress: Callable[[int], None] | None = None,
    **layout: Any,
) -> Path:
    """Encode every picture that is not in the folder yet, in this process; returns the folder.

    layout: as in `latent_layout`. Raises ValueError as `ShardWriter`, OSError when a worker dies.
    """
    writer = ShardWriter(folder, latent_layout(dataset, model, **layout))
    encode_shards(writer, writer.missing(), dataset, model, batch_size, num_workers, progress)
    return Path(folder)


class WithLatents(Dataset):
    """The data set with `latent_moments`, float32 (2C, h, w), in every item."""

    def __init__(self, dataset: Dataset, store: ShardReader):
        self.dataset, self.store = dataset, store
        self.draws_anew_each_epoch = getattr(dataset, "draws_anew_each_epoch", False)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item, row = self.dataset[index], index % len(self)
        kept = self.store.row(row)
        if checksum(item) != int(kept[CHECKSUM]):
            raise ValueError(
                f"Picture {row} of the data set is not the one that {self.store.folder} was computed for; "
                "compute the latents again, or train without --latents."
            )
        return dict(item) | {"latent_moments": kept[MOMENTS].float().numpy()}


def with_latents(dataset: Dataset, folder: str | Path, model: AnyText2) -> WithLatents:
    """The data set with the latents of a folder.

    Raises FileNotFoundError when they are missing, ValueError when they are not complete, damaged, of an earlier
    version, or of another autoencoder or other data.
    """
    again = "compute them with python -m anytext_lcm.cache_latents, or train without --latents"
    if (Path(folder) / "moments.npy").is_file():
        raise ValueError(f"The latents in {folder} are one file of an earlier version, which is not read; {again}.")
    try:
        store = ShardReader(folder)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"No latents can be read: {str(error).rstrip('.')}; {again}.") from error
    layout, own = store.layout, fingerprint(model.first_stage_model)
    kinds = {name: (array.dtype.is_floating_point, len(array.shape)) for name, array in layout.arrays.items()}
    channels = layout.arrays[MOMENTS].shape[:1] if MOMENTS in kinds else ()
    if kinds != {MOMENTS: (True, 3), CHECKSUM: (False, 0)} or channels != (2 * model.latent_channels,):
        raise ValueError(f"The store in {folder} holds other arrays than latents of this network; {again}.")
    if (theirs := layout.settings.get(AUTOENCODER)) != own:
        raise ValueError(
            f"The latents in {folder} come from another autoencoder ({theirs}, this one is {own}); {again}."
        )
    if len(dataset) != len(store):
        raise ValueError(f"{folder} holds latents of {len(store)} pictures, the data set has {len(dataset)}; {again}.")
    return WithLatents(dataset, store)
