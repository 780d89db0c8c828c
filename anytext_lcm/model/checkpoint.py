"""Reading checkpoint files and loading them strictly, all or nothing. Imports torch and safetensors alone."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

# transformers up to 4.30 saved this buffer, later versions do not; it carries no information.
OPTIONAL_KEYS = ("cond_stage_model.transformer.text_model.embeddings.position_ids",)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """A `.safetensors` file or a pickled checkpoint (`.ckpt`, `.pt`, `.pth`, `.bin`), memory-mapped, as name -> tensor.

    Pickles are read with `weights_only=True`, so that a foreign file cannot run code; entries wrapped in `state_dict`
    (once or twice, as upstream's loader allows) are unwrapped. Raises FileNotFoundError or ValueError.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Checkpoint {path} does not exist; name the file that holds the AnyText2 weights.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = _read_pickle(path)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(f"Checkpoint {path} cannot be read: it is truncated or not a weights file ({reason}).") from error
    except Exception as error:  # safetensors raises a class of its own
        raise ValueError(f"Checkpoint {path} cannot be read: it is truncated or not a weights file ({error}).") from error
    for _ in range(2):
        if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
            state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"Checkpoint {path} holds no state dict: expected names mapped to tensors, maybe under 'state_dict'.")
    return dict(state)


def _read_pickle(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6 cannot be mapped


def _listing(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def load_strict(model: nn.Module, state: Mapping[str, Tensor], source: str = "the checkpoint") -> None:
    """Loads every tensor or none: names and shapes are compared before the first one is touched.

    Values are converted to the model's dtypes. Parameters on the meta device receive the tensors themselves, so a full
    model is never held twice. Raises ValueError that names the missing, unexpected and mis-shaped keys.
    """
    state = {k: v for k, v in state.items() if k not in OPTIONAL_KEYS}
    own = model.state_dict()
    missing = [k for k in own if k not in state]
    unexpected = [k for k in state if k not in own]
    shapes = [f"{k} {tuple(state[k].shape)} instead of {tuple(v.shape)}" for k, v in own.items() if k in state and state[k].shape != v.shape]
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
