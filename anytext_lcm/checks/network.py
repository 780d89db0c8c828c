"""The network: its yaml, its tokenizer, and its weights by their names and shapes."""

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from anytext_lcm.checks import published
from anytext_lcm.checks.found import Findings
from anytext_lcm.model.networks import checkpoint_for, defaults_for

if TYPE_CHECKING:
    from anytext_lcm.model.anytext2 import AnyText2


def look_at_network(found: Findings, config: str, checkpoint: str | None, flag: str) -> "AnyText2 | None":
    """Look at yaml, tokenizer and weights without loading them.

    checkpoint: None for those that come with the yaml. flag: the option that names others, for the messages.
    Returns the network on the meta device, None where the yaml describes none.
    """
    from anytext_lcm.model.anytext2 import AnyText2

    model, foreign = None, False
    with found.looking_at("network"):
        foreign = defaults_for(config).checkpoint is None  # a yaml with weights of its own is no upstream network
        model = AnyText2.from_config(config, device="meta")
        parameters = sum(p.numel() for p in model.parameters())
        found.ok("network", f"{config}: {parameters / 1e6:,.1f} million weights")
    if model is None:
        return None
    with found.looking_at("tokenizer", published.TOKENIZER if foreign else ""):
        tokenizer = model.tokenizer
        found.ok("tokenizer", f"{model.tokenizer_folder}: '*' is {tokenizer.placeholder_id}")
    with found.looking_at("weights", published.WEIGHTS if foreign else ""):
        path = Path(checkpoint) if checkpoint is not None else checkpoint_for(config, flag)
        if not path.is_file():
            raise FileNotFoundError(f"{flag} {path} does not exist.")
        found.ok("weights", describe_weights(model, path))
    return model


def describe_weights(model: "AnyText2", path: Path) -> str:
    """Compare names and shapes of a file with the network's; returns a sentence about it.

    Files are mapped, so that no weight is read. Raises FileNotFoundError or ValueError.
    """
    from anytext_lcm.model.checkpoint import check_fits, read_state_dict

    if path.is_file() and path.suffix.lower() != ".safetensors" and not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            old = file.read(2) == b"\x80\x02"  # a pickle of protocol 2
        if old and path.stat().st_size > 2**28:
            return f"{path}: {size(path)} in torch's format before 1.6, whose names show only when it is loaded"
    state = read_state_dict(path)
    check_fits(model, state, f"Checkpoint {path}")
    kinds = sorted({str(value.dtype).removeprefix("torch.") for value in state.values() if value.is_floating_point()})
    return f"{path}: {size(path)}, {len(state)} tensors of {' and '.join(kinds)} that fit the network"


def size(path: Path) -> str:
    """The size of a file in GB or MB."""
    count = path.stat().st_size
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def require_network(config: str, checkpoint: str | None, flag: str = "--ckpt") -> None:
    """Raise Missing unless yaml, tokenizer and weights are there and fit each other. Takes seconds, loads nothing."""
    found = Findings()
    look_at_network(found, config, checkpoint, flag)
    found.require()
