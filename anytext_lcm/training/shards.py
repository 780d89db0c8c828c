"""A store of rows of named arrays in numbered files, written by several processes and read row by row.

    manifest.json             settings, number of rows, rows of a file, type and shape of each array
    shard-00000.safetensors   the arrays of the first rows, (rows, *shape) each; and so on

A file has its name only when it is whole, so the files that are there are what is done: a run that was killed goes on
with the others. Process r of n writes the files k with k % n = r. Nothing is read before it is asked for.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from anytext_lcm.files import atomic_file, check_writable, read_json, sweep_files
from anytext_lcm.model.checkpoint import DAMAGE, write_state_dict

MANIFEST, FORMAT = "manifest.json", 1
SHARD_ROWS = 256  # latents of 512 px in half precision: 17 MB a file, 12,000 files for 3 million pictures
OPEN_FILES = 32  # mapped at a time by a reader
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64, "U8": torch.uint8}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}  # as safetensors writes them


@dataclass(frozen=True)
class Array:
    """What one array has for each row: its type, one of float16, bfloat16, float32, int64, uint8, and its shape."""

    dtype: torch.dtype
    shape: tuple[int, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """What a store holds, as its manifest says it.

    rows        of the whole store
    arrays      by name
    settings    what the numbers depend on, as JSON values: weights, precision, data
    shard_rows  rows of a file; the last one may have fewer
    """

    rows: int
    arrays: Mapping[str, Array]
    settings: Mapping[str, Any]
    shard_rows: int = SHARD_ROWS

    @property
    def shards(self) -> int:
        """Number of files."""
        return -(-self.rows // self.shard_rows)

    @property
    def bytes(self) -> int:
        """Bytes of all arrays of all rows."""
        return self.rows * sum(array.bytes for array in self.arrays.values())

    def rows_of(self, shard: int) -> range:
        """The rows of a file."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows))

    def to_json(self) -> dict[str, Any]:
        arrays = {name: [_NAMES[array.dtype], list(array.shape)] for name, array in self.arrays.items()}
        about = {"rows": self.rows, "shard_rows": self.shard_rows, "arrays": arrays, "settings": dict(self.settings)}
        return json.loads(json.dumps({"format": FORMAT} | about))

    @classmethod
    def from_json(cls, about: Any) -> "Layout":
        """Raises KeyError, TypeError, ValueError or AttributeError for what `to_json` does not write."""
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']!r}")
        arrays = {
            name: Array(_DTYPES[dtype], tuple(map(int, shape))) for name, (dtype, shape) in about["arrays"].items()
        }
        rows, each = int(about["rows"]), int(about["shard_rows"])
        if rows < 1 or each < 1 or not arrays or not isinstance(about["settings"], dict):
            raise ValueError("it is empty")
        return cls(rows, arrays, about["settings"], each)


def read_layout(folder: str | Path) -> Layout:
    """Read a store's manifest. Raises FileNotFoundError for none, ValueError for one that is damaged."""
    path = Path(folder) / MANIFEST
    try:
        return Layout.from_json(read_json(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{folder} holds no store of shards ({MANIFEST} is missing).") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}).") from error


def compare_settings(folder: str | Path, kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise ValueError naming the first setting in which a store differs from what is wanted."""
    for name in {**kept, **wanted}:
        if (old := kept.get(name)) != (new := wanted.get(name)):
            raise ValueError(
                f"{folder} was computed with {name} {old}, now it is {new}; name another folder, or delete this one."
            )


def shard_path(folder: str | Path, shard: int) -> Path:
    """The path of a file of the store."""
    return Path(folder) / f"shard-{shard:05d}.safetensors"


def what_is_wrong_with(folder: str | Path, layout: Layout, shard: int) -> str | None:
    """Why a file of the store is not whole, or None. Reads its header and its size, not its numbers."""
    path, count = shard_path(folder, shard), len(layout.rows_of(shard))
    if path.exists() and not path.is_file():  # reading a pipe would wait for a writer
        return f"{path.name} is no regular file"
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 1 << 20)))
        header.pop("__metadata__", None)
        found = {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()}
        size = 8 + length + max(entry["data_offsets"][1] for entry in header.values())
    except FileNotFoundError:
        return f"{path.name} is missing"
    except (OSError, ValueError, struct.error, LookupError, TypeError, AttributeError, RecursionError):
        return f"{path.name} cannot be read"
    if found != {name: (_NAMES[a.dtype], [count, *a.shape]) for name, a in layout.arrays.items()}:
        return f"{path.name} holds other arrays than {MANIFEST} says"
    here = path.stat().st_size
    return None if here == size else f"{path.name} is truncated: it has {here} bytes instead of {size}"


def check_folder(folder: str | Path) -> None:
    """Raise ValueError for a file and for a folder with files but no manifest: nothing is written among them.

    Ask before minutes of work, not after.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder to write.")
    foreign = folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir())
    if foreign and not (folder / MANIFEST).is_file():  # looked for last: another process may just have written it
        raise ValueError(f"{folder} holds other files and will not be filled; name another folder.")


class ShardWriter:
    """A store that is filled file by file. Several processes may make one each for the same folder."""

    def __init__(self, folder: str | Path, layout: Layout):
        """Begin a store, or go on with one; what killed processes of this machine left half-written is deleted.

        Raises ValueError when the folder holds a store of other settings or something else, or cannot be written.
        """
        self.folder, self.layout = Path(folder), layout
        path = self.folder / MANIFEST
        check_folder(folder)
        check_writable(path)
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep_files(self.folder)
        if not path.is_file():
            with atomic_file(path) as temporary:
                temporary.write_text(json.dumps(layout.to_json(), indent=1) + "\n", encoding="utf-8")
        kept, wanted = read_layout(folder).to_json(), layout.to_json()
        for name in ("format", "rows"):
            compare_settings(folder, {name: kept[name]}, {name: wanted[name]})
        compare_settings(
            folder, kept["settings"], wanted["settings"]
        )  # before arrays, whose types may follow from them
        compare_settings(folder, kept, wanted)

    def missing(self, rank: int = 0, world: int = 1) -> list[int]:
        """The files that are not there or not whole, of those that process `rank` of `world` writes."""
        shards = range(rank, self.layout.shards, world)
        return [shard for shard in shards if what_is_wrong_with(self.folder, self.layout, shard)]

    def write(self, shard: int, arrays: Mapping[str, Tensor]) -> None:
        """Write a file whole. arrays: by name, (rows, *shape) in any type. Raises ValueError for other arrays."""
        count, expected = len(self.layout.rows_of(shard)), self.layout.arrays
        shapes = {name: tuple(value.shape) for name, value in arrays.items()}
        if shapes != (wanted := {name: (count, *array.shape) for name, array in expected.items()}):
            raise ValueError(f"Shard {shard} needs arrays {wanted}, these are {shapes}.")
        state = {name: value.to("cpu", expected[name].dtype).contiguous() for name, value in arrays.items()}
        with atomic_file(shard_path(self.folder, shard)) as temporary:
            write_state_dict(state, temporary)


class ShardReader:
    """The rows of a complete store, read from mapped files when they are asked for. It can be forked and pickled."""

    def __init__(self, folder: str | Path):
        """Raises FileNotFoundError without a manifest, ValueError when it is damaged or a file is not whole."""
        self.folder, self.layout = Path(folder), read_layout(folder)
        wrong = (what_is_wrong_with(folder, self.layout, shard) for shard in range(self.layout.shards))
        if (first := next(filter(None, wrong), None)) is not None:
            raise ValueError(f"The store in {folder} is not complete: {first}.")
        self._opened = lru_cache(OPEN_FILES)(self._open)

    def _open(self, shard: int) -> Any:
        return safe_open(shard_path(self.folder, shard), "pt")

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "layout": self.layout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._opened = lru_cache(OPEN_FILES)(self._open)

    def __len__(self) -> int:
        return self.layout.rows

    def row(self, index: int, *names: str) -> dict[str, Tensor]:
        """The arrays of a row, or those that are named, shape as in the manifest: copies of what the file holds.

        Raises IndexError outside 0 <= index < len, ValueError for a file that can no longer be read and for one whose
        numbers are not finite.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"Row {index} is outside the store of {len(self)} rows.")
        shard, place = divmod(index, self.layout.shard_rows)
        try:
            file = self._opened(shard)
            found = {name: file.get_slice(name)[place].clone() for name in names or self.layout.arrays}
        except (OSError, *DAMAGE) as error:
            path = shard_path(self.folder, shard)
            raise ValueError(f"Row {index} of {path} cannot be read ({error}); compute it again.") from error
        for name, value in found.items():
            if not bool(torch.isfinite(value).all()):
                path = shard_path(self.folder, shard)
                raise ValueError(
                    f"Row {index} of {path} has numbers in {name!r} that are not finite; delete this file and compute "
                    "it again."
                )
        return found

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self.row(index) for index in range(len(self)))
