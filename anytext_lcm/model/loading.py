"""Load a network with its weights, ready to draw."""

from pathlib import Path

import torch

from anytext_lcm.model import networks
from anytext_lcm.model.anytext2 import AnyText2

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
LONGEST_REASON = 80  # characters


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
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"Device {str(device)!r} cannot be used{_reason(error)}: there is {_devices()}.") from error
    return found


def _reason(error: Exception) -> str:
    """What torch says, in brackets; nothing where it lists all devices or kernels that it knows."""
    reason = str(error).partition("\n")[0].rstrip(".")
    return f" ({reason})" if 0 < len(reason) <= LONGEST_REASON else ""


def _devices() -> str:
    return " and ".join(["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))])


def usual_precision(device: str | torch.device) -> str:
    """The precision of a device unless another is asked for: fp16 on a GPU, as upstream draws, fp32 on a CPU.

    A CPU computes no faster in half precision, or slower.
    """
    return "fp16" if torch.device(device).type == "cuda" else "fp32"


def chosen_precision(device: str | torch.device | None, precision: str | None) -> str:
    """The precision asked for, or the usual one of the device. Raises ValueError as `usable_device`, and for a name
    that is none of PRECISIONS.
    """
    chosen = precision or usual_precision(usable_device(device))
    if chosen not in PRECISIONS:
        raise ValueError(f"Precision {chosen!r} is unknown: choose {', '.join(PRECISIONS)}.")
    return chosen


def load_model(
    config: str | Path,
    checkpoint: str | Path,
    device: str | torch.device | None = None,
    precision: str | None = None,
) -> AnyText2:
    """Load a teacher from its yaml and its weights, frozen, its networks in `precision` and its schedule in fp32.

    device: by default `default_device()`. precision: one of PRECISIONS, by default `usual_precision(device)`. Raises
    FileNotFoundError or ValueError.
    """
    device = usable_device(device)
    dtype = PRECISIONS[chosen_precision(device, precision)]
    # Built without memory, so that nothing is there twice; `AnyText2` itself keeps the schedule in fp32.
    model = AnyText2.from_config(config, "meta").to(dtype)
    _ = model.tokenizer  # one that is missing shows before the weights are read
    return model.load_checkpoint(checkpoint, device).requires_grad_(False)


def load_embedded_teacher(device: str | torch.device | None = None, precision: str | None = None) -> AnyText2:
    """Load the small teacher that comes with the package. Raises FileNotFoundError when it is not there."""
    if not networks.EMBEDDED_CHECKPOINT.is_file():
        raise FileNotFoundError(
            f"The embedded teacher {networks.EMBEDDED_CHECKPOINT} is missing; rebuild it with "
            "`python -m anytext_lcm.build_teacher`."
        )
    return load_model(networks.EMBEDDED_CONFIG, networks.EMBEDDED_CHECKPOINT, device, precision)


def load_chosen(
    config: str | Path,
    checkpoint: str | Path | None,
    device: str | torch.device | None = None,
    precision: str | None = None,
) -> AnyText2:
    """Load a teacher, by default with the weights that its yaml names. Raises as `networks.checkpoint_for` does."""
    checkpoint = networks.checkpoint_for(config, "--ckpt") if checkpoint is None else checkpoint
    return load_model(config, checkpoint, device, precision)
