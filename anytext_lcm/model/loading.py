"""Load a network with its weights, ready to draw."""

from pathlib import Path

import torch

from anytext_lcm.model import networks
from anytext_lcm.model.anytext2 import AnyText2


def default_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device of this name, by default `default_device()`. Raises ValueError when this machine cannot compute on it.

    Ask before weights are read.
    """
    if device is None:
        return default_device()
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"Device {str(device)!r} cannot be used ({reason}): choose cpu or cuda.") from error
    return found


def load_model(
    config: str | Path,
    checkpoint: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> AnyText2:
    """Load a teacher from its yaml and its weights, frozen, networks in `dtype` and schedule in fp32.

    device: by default `default_device()`. Raises FileNotFoundError or ValueError.
    """
    device = usable_device(device)
    model = AnyText2.from_config(config)
    _ = model.tokenizer  # one that is missing shows before the weights are read
    model.load_checkpoint(checkpoint).requires_grad_(False)
    for network in model.children():  # the schedule, buffers of the model itself, stays in fp32
        network.to(dtype)
    # Convolutions read and write pixels with their channels beside each other, so nothing is reordered in between.
    return model.to(default_device() if device is None else device, memory_format=torch.channels_last)


def load_embedded_teacher(device: str | torch.device | None = None) -> AnyText2:
    """Load the small teacher that comes with the package, fp32. Raises FileNotFoundError when it is not there."""
    if not networks.EMBEDDED_CHECKPOINT.is_file():
        raise FileNotFoundError(
            f"The embedded teacher {networks.EMBEDDED_CHECKPOINT} is missing; rebuild it with "
            "`python -m anytext_lcm.build_teacher`."
        )
    return load_model(networks.EMBEDDED_CONFIG, networks.EMBEDDED_CHECKPOINT, device)


def load_chosen(
    config: str | Path, checkpoint: str | Path | None, device: str | torch.device | None = None
) -> AnyText2:
    """Load a teacher, by default with the weights that its yaml names. Raises as `networks.checkpoint_for` does."""
    return load_model(config, networks.checkpoint_for(config, "--ckpt") if checkpoint is None else checkpoint, device)
