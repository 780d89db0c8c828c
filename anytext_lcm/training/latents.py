"""Latents of a data set's pictures on disk, since the autoencoder is a quarter of a training step at full size.

Written by `python -m anytext_lcm.cache_latents`, read by training with --latents FOLDER.

    moments.npy   float16 (N, 2C, h, w): mean and log variance of each picture's posterior, unscaled; 64 KB at 512 px
    pictures.npy  uint32 (N,): checksum of each picture
    latents.json  the autoencoder they come from, and how many

The sample of the posterior is still drawn anew at every step, and texts, glyphs and hints stay as the data set draws
them.
"""

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from anytext_lcm.data.batch import collate
from anytext_lcm.data.packed import expand
from anytext_lcm.files import atomic_folder, read_json
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.training.checkpoints import fingerprint
from anytext_lcm.training.processes import ignore_interrupts, worker_deaths_in_words

MOMENTS, PICTURES, ABOUT = "moments.npy", "pictures.npy", "latents.json"


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
        return dict(item) | {"checksum": checksum(item)}


@torch.no_grad()
def write_latents(
    folder: str | Path,
    dataset: Dataset,
    model: AnyText2,
    batch_size: int = 12,
    num_workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Encode every picture of the data set; the folder appears complete or not at all. Returns the folder.

    progress: called after each batch with its number of pictures. Raises ValueError when the folder holds other files.
    """
    loader = DataLoader(
        _Checked(dataset),
        batch_size,
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=ignore_interrupts,
    )
    with worker_deaths_in_words(), atomic_folder(folder, mark=ABOUT) as temporary:
        moments, checksums, done = None, np.zeros(len(dataset), np.uint32), 0
        for batch in loader:
            images = expand(batch, model.device)["img"]
            mean, logvar = model.first_stage_model.encode(images.to(model.dtype))
            found = torch.cat([mean, logvar], dim=1).to("cpu", torch.float16).numpy()
            if moments is None:
                shape = (len(dataset), *found.shape[1:])
                moments = np.lib.format.open_memmap(temporary / MOMENTS, "w+", np.float16, shape)
            moments[done : done + len(found)] = found
            checksums[done : done + len(found)] = batch["checksum"]
            done += len(found)
            if progress is not None:
                progress(len(found))
        moments.flush()
        del moments  # Windows renames no folder with a mapped file in it
        np.save(temporary / PICTURES, checksums)
        about = {"autoencoder": fingerprint(model.first_stage_model), "pictures": len(dataset)}
        (temporary / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return Path(folder)


class WithLatents(Dataset):
    """The data set with `latent_moments`, float16 (2C, h, w), in every item."""

    def __init__(self, dataset: Dataset, moments: np.ndarray, checksums: np.ndarray, folder: Path):
        self.dataset, self.moments, self.checksums, self.folder = dataset, moments, checksums, folder
        self.draws_anew_each_epoch = getattr(dataset, "draws_anew_each_epoch", False)

    def __getstate__(self) -> dict[str, Any]:
        """All but the latents: pickled, they would be copied into every spawned worker."""
        return {name: value for name, value in vars(self).items() if name != "moments"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.moments = np.load(self.folder / MOMENTS, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item, row = self.dataset[index], index % len(self)
        if checksum(item) != self.checksums[row]:
            raise ValueError(
                f"Picture {row} of the data set is not the one that {self.folder} was computed for; "
                "compute the latents again, or train without --latents."
            )
        return dict(item) | {"latent_moments": np.array(self.moments[row])}


def with_latents(dataset: Dataset, folder: str | Path, model: AnyText2) -> WithLatents:
    """The data set with the latents of a folder.

    Raises FileNotFoundError when they are missing, ValueError when they are of another autoencoder or other data.
    """
    folder = Path(folder)
    again = "compute them with python -m anytext_lcm.cache_latents, or train without --latents"
    try:
        if odd := [name for name in (MOMENTS, PICTURES) if (folder / name).exists() and not (folder / name).is_file()]:
            raise ValueError(f"{odd[0]} is not a regular file")
        about = read_json(folder / ABOUT)
        moments, checksums = np.load(folder / MOMENTS, mmap_mode="r"), np.load(folder / PICTURES)
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise FileNotFoundError(f"{folder} holds no latents ({missing} is missing); {again}.") from error
    except (OSError, ValueError, EOFError, SyntaxError, TokenError, zipfile.BadZipFile) as error:
        raise ValueError(f"The latents in {folder} cannot be read ({error}); {again}.") from error
    forms = ((MOMENTS, moments, np.float16, 4), (PICTURES, checksums, np.uint32, 1))
    wrong = [n for n, array, dtype, axes in forms if getattr(array, "dtype", None) != dtype or array.ndim != axes]
    if not isinstance(about, dict):
        wrong.append(ABOUT)
    if not wrong and moments.shape[1] != 2 * model.latent_channels:
        wrong.append(MOMENTS)
    if wrong:
        raise ValueError(f"The latents in {folder} cannot be read ({wrong[0]} has another form); {again}.")
    if about.get("autoencoder") != (own := fingerprint(model.first_stage_model)):
        raise ValueError(
            f"The latents in {folder} come from another autoencoder ({about.get('autoencoder')}, this one is {own}); "
            f"{again}."
        )
    if not len(dataset) == about.get("pictures") == len(moments) == len(checksums):
        raise ValueError(
            f"{folder} holds latents of {len(moments)} pictures, the data set has {len(dataset)}; {again}."
        )
    return WithLatents(dataset, moments, checksums, folder)
