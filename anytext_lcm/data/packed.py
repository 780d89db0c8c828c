"""Packed items: the contract of `batch` in a quarter of its bytes, for the way from a worker to the device.

Pictures stay bytes, masks are bits, and what follows from other fields (hint, masked_img) is not sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from anytext_lcm.data.batch import FIELDS, PACKED_FIELDS


def pack(item: Mapping[str, Any]) -> dict[str, Any]:
    """Pack an item of the contract: PACKED_FIELDS, and all its entries that are not in FIELDS.

    Raises ValueError where that would lose something: a picture whose values are not those of bytes, a masked_img that
    is neither all -1 nor the picture with holes, a hint that is not the union of the positions, a width that is no
    multiple of 8.
    """
    image = np.asarray(item["img"])
    if image.shape[2] % 8:
        raise ValueError(f"A packed item's width must be a multiple of 8, the picture has {image.shape[2]} pixels.")
    picture = np.rint((image + 1) * 127.5).clip(0, 255).astype(np.uint8)
    if not np.array_equal(_as_float(picture), image):
        raise ValueError("The picture's values are not those of bytes / 127.5 - 1: send this item as it is.")
    if not np.array_equal(np.max(item["positions"], axis=0), item["hint"][0]):
        raise ValueError("The hint is not the union of the positions: send this item as it is.")
    masked = np.asarray(item["masked_img"])
    edit = bool((masked != -1).any())
    if edit and not np.array_equal(masked, np.where(item["hint"] == 1, np.float32(-1), image)):
        raise ValueError("masked_img is neither all -1 nor the picture with holes: send this item as it is.")
    packed = {
        "picture": np.ascontiguousarray(picture.transpose(1, 2, 0)),
        "edit": edit,
        "positions_packed": np.packbits(item["positions"], axis=-1),
        "gly_line_packed": np.packbits(item["gly_line"], axis=-1),
        "inv_mask_packed": np.packbits(item["inv_mask"], axis=-1),
    }
    return packed | {name: value for name, value in item.items() if name in PACKED_FIELDS or name not in FIELDS}


def is_packed(batch: Mapping[str, Any]) -> bool:
    """Whether an item or a batch is packed."""
    return "picture" in batch


def expand(batch: Mapping[str, Any], device: torch.device | str | None = None) -> dict[str, Any]:
    """Make a batch of the contract on `device`, with the same values, of a packed batch; another one is only moved.

    The bytes travel, the numbers are made on the device. Lists stay lists.
    """
    batch = {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) and device is not None else value
        for name, value in batch.items()
    }
    if not is_packed(batch):
        return batch
    picture, edit = batch.pop("picture"), batch.pop("edit")
    image = picture.permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1)
    positions = unpack_bits(batch.pop("positions_packed"))
    hint = positions.amax(dim=1, keepdim=True)
    hole = (hint == 1) | ~edit[:, None, None, None]
    return batch | {
        "img": image,
        "masked_img": image.masked_fill(hole, -1),
        "hint": hint,
        "inv_mask": unpack_bits(batch.pop("inv_mask_packed")),
        "positions": positions,
        "gly_line": unpack_bits(batch.pop("gly_line_packed")),
    }


def unpack_bits(packed: Tensor) -> Tensor:
    """Unpack (..., n) uint8 of eight bits, the first highest, as (..., 8 n) uint8, 0 or 1, as numpy.unpackbits does."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    return packed[..., None].bitwise_right_shift(shifts).bitwise_and_(1).flatten(-2)


def item_bytes(item: Mapping[str, Any]) -> int:
    """Count the bytes of the arrays and tensors of an item or batch, without texts and polygons."""
    return sum(int(value.nbytes) for value in item.values() if isinstance(value, np.ndarray | Tensor))


class PackedDataset(Dataset):
    """A data set of the contract with its items packed; reading raises ValueError for what `pack` refuses."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return pack(self.dataset[index])


def _as_float(picture: np.ndarray) -> np.ndarray:
    """Turn uint8 into float32 -1..1, with the rounding of the contract's pictures."""
    return picture.astype(np.float32) / np.float32(127.5) - np.float32(1)
