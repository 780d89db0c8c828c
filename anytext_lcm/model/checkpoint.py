"""Read and write checkpoint files, and load them strictly, all or nothing."""

import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

# transformers up to 4.30 saved this buffer, later versions do not; it carries no information.
OPTIONAL_KEYS = ("cond_stage_model.transformer.text_model.embeddings.position_ids",)

# So much of a mapped file is kept in memory while its tensors are copied.
MAPPED_BYTES = 1 << 28

# What readers raise for a damaged or foreign file. An interrupt, a denied access or a lack of memory is no damage.
DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, RuntimeError, TypeError),
    *(ValueError, SafetensorError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile),
)
SMALL_FILE = 256 << 20  # bytes that any machine can hold


@contextmanager
def failures_of_writing(path: Path) -> Iterator[None]:
    """Raise OSError when a file cannot be written, as on a full disk, which safetensors' and torch's writers do not."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise OSError(f"Weights could not be written to {path.parent} ({reason}); make space there.") from error


def write_state_dict(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors by name: a `.ckpt` under `state_dict` as upstream does, anything else as safetensors with metadata.

    Raises OSError when it cannot be written.
    """
    with failures_of_writing(path):
        if path.suffix == ".ckpt":
            torch.save({"state_dict": state}, path)
        else:
            save_file(dict(state), path, metadata=metadata)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a `.safetensors` file or a pickled checkpoint (`.ckpt`, `.pt`, `.pth`, `.bin`) as name -> tensor.

    Files are memory-mapped. Pickles are read with `weights_only=True`, so that a foreign file cannot run code. Entries
    under `state_dict` (once or twice, as upstream's loader allows) are unwrapped, and what torch.compile and
    DistributedDataParallel put into the names (`_orig_mod.`, `module.`) is taken out.
    Raises FileNotFoundError for a missing file, ValueError for one that is damaged, holds no state dict or does not fit
    into memory, OSError for one that cannot be opened.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Checkpoint {path} is not a file; name the one that holds the AnyText2 weights.")
    try:
        state = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_pickle(path)
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(path):  # what torch.save has written since 1.6
            raise ValueError(_unreadable(path)) from error
        raise ValueError(
            f"Checkpoint {path} holds more than tensors, and loading that could run foreign code; "
            "save its state dict alone, best as .safetensors."
        ) from error
    except (MemoryError, *DAMAGE) as error:
        # Torch's is a RuntimeError. A small file that asks for much is damaged where it says how much it holds.
        if (isinstance(error, MemoryError) or "memory" in str(error)) and path.stat().st_size > SMALL_FILE:
            raise ValueError(f"Checkpoint {path} needs more memory than there is; close other programs.") from error
        raise ValueError(_unreadable(path)) from error
    for _ in range(2):
        if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
            state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise ValueError(f"Checkpoint {path} holds no state dict: expected tensors by name, maybe under 'state_dict'.")
    return _plain_names(state)


def _plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without the names of wrappers, or as it is where that would make two names one."""
    plain = {name.replace("_orig_mod.", ""): value for name, value in state.items()}
    while plain and all(name.startswith("module.") for name in plain):
        plain = {name.removeprefix("module."): value for name, value in plain.items()}
    return plain if len(plain) == len(state) else dict(state)


def _unreadable(path: Path) -> str:
    size = path.stat().st_size
    return f"Checkpoint {path} ({size} bytes) is truncated or no weights file; download or export it again."


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _read_pickle(path: Path) -> object:
    mapped = zipfile.is_zipfile(path)  # the format before torch 1.6 cannot be mapped
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


_AVERAGE = (
    " The keys under model_ema. are an average of the weights, which is not read: delete them from the file to use the "
    "weights beside them."
)


def _listing(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def kind_of(tensor: Tensor) -> str:
    """What a tensor is besides a plain one of floating-point numbers; empty for such a one."""
    if tensor.is_meta:
        return "without data"
    if tensor.layout is not torch.strided or tensor.is_nested:
        return "sparse"
    if tensor.is_quantized:
        return "quantised"
    return "" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")


def check_fits(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Compare names, shapes and kinds of tensors with a model's, without reading a number.

    Raises ValueError naming keys that are missing, unexpected, of another shape, or no plain floating-point numbers;
    source begins it.
    """
    own = model.state_dict()
    missing = [k for k in own if k not in state]
    unexpected = [k for k in state if k not in own and k not in OPTIONAL_KEYS]
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(v.shape)}"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    kinds = [
        f"{k} is {kind}" for k, v in own.items() if k in state and v.is_floating_point() and (kind := kind_of(state[k]))
    ]
    problems = [
        f"{len(names)} {kind} ({_listing(names)})"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
            ("no plain floating-point weights", kinds),
        )
        if names
    ]
    if problems:
        hint = _AVERAGE if any(k.startswith("model_ema.") for k in unexpected) else ""
        keys = "; ".join(problems)
        raise ValueError(f"{source} does not fit this model, nothing was loaded: keys {keys}.{hint}")


def load_strict(model: nn.Module, state: Mapping[str, Tensor], source: str = "the checkpoint") -> None:
    """Load every tensor or none: names, shapes and kinds are compared before the first one is touched.

    Values are converted to the model's dtypes. Parameters on the meta device receive the tensors themselves, so a full
    model is never held twice. Raises ValueError as `check_fits`.
    """
    check_fits(model, state, source)
    own = model.state_dict()
    state = {k: state[k] for k in own}
    if any(v.is_meta for v in own.values()):
        model.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()}, strict=True, assign=True)
    else:
        model.load_state_dict(state, strict=True)


def copy_out(
    path: str | Path, state: dict[str, Tensor], names: list[str], copy: Callable[[str, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Copy tensors out of a file one after the other: copy(name, tensor) by name. Empties `state`, read from `path`.

    Of a mapped file, what has been read stays in memory as long as the mapping does, so the file is mapped anew after
    every MAPPED_BYTES. Then the copies and one piece of the file are all there is. `state` must hold the only
    references to its tensors. Raises as `read_state_dict`.
    """
    mapped = Path(path).suffix.lower() == ".safetensors" or zipfile.is_zipfile(path)
    copies: dict[str, Tensor] = {}
    since = 0
    for name in names:
        value = state.pop(name)
        copies[name] = copy(name, value)
        since += value.nbytes
        del value
        if mapped and since > MAPPED_BYTES:
            state.clear()  # before the file is mapped again
            state.update(read_state_dict(path))
            since = 0
    state.clear()
    return copies
