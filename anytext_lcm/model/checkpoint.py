"""Read checkpoint files and load them strictly, all or nothing."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

# transformers up to 4.30 saved this buffer, later versions do not; it carries no information.
OPTIONAL_KEYS = ("cond_stage_model.transformer.text_model.embeddings.position_ids",)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a `.safetensors` file or a pickled checkpoint (`.ckpt`, `.pt`, `.pth`, `.bin`) as name -> tensor.

    Files are memory-mapped. Pickles are read with `weights_only=True`, so that a foreign file cannot run code. Entries
    under `state_dict` (once or twice, as upstream's loader allows) are unwrapped.
    Raises FileNotFoundError for a missing file, ValueError for one that is damaged or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Checkpoint {path} is not a file; name the one that holds the AnyText2 weights.")
    try:
        state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(path):  # what torch.save has written since 1.6
            raise ValueError(_unreadable(path)) from error
        raise ValueError(
            f"Checkpoint {path} holds more than tensors, and loading that could run foreign code; "
            "save its state dict alone, best as .safetensors."
        ) from error
    except Exception as error:  # each format and each kind of damage has its own class
        raise ValueError(_unreadable(path)) from error
    for _ in range(2):
        if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
            state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"Checkpoint {path} holds no state dict: expected tensors by name, maybe under 'state_dict'.")
    return dict(state)


def _unreadable(path: Path) -> str:
    size = path.stat().st_size
    return f"Checkpoint {path} ({size} bytes) is truncated or no weights file; download or export it again."


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _read_pickle(path: Path) -> object:
    mapped = zipfile.is_zipfile(path)  # the format before torch 1.6 cannot be mapped
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _listing(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def load_strict(model: nn.Module, state: Mapping[str, Tensor], source: str = "the checkpoint") -> None:
    """Load every tensor or none: names and shapes are compared before the first one is touched.

    Values are converted to the model's dtypes. Parameters on the meta device receive the tensors themselves, so a full
    model is never held twice. Raises ValueError naming missing, unexpected and mis-shaped keys; source begins it.
    """
    state = {k: v for k, v in state.items() if k not in OPTIONAL_KEYS}
    own = model.state_dict()
    missing = [k for k in own if k not in state]
    unexpected = [k for k in state if k not in own]
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(v.shape)}"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    problems = [
        f"{len(names)} {kind} ({_listing(names)})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise ValueError(f"{source} does not fit this model, nothing was loaded: keys " + "; ".join(problems) + ".")
    if any(v.is_meta for v in own.values()):
        model.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()}, strict=True, assign=True)
    else:
        model.load_state_dict(state, strict=True)
