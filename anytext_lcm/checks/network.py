"""The network: its yaml, its tokenizer, and its weights by their names and shapes."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anytext_lcm.checks import published
from anytext_lcm.checks.forecast import scaled
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

    size = f"{scaled(path.stat().st_size)}B"
    if path.is_file() and path.suffix.lower() != ".safetensors" and not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            old = file.read(2) == b"\x80\x02"  # a pickle of protocol 2
        if old and path.stat().st_size > 2**28:
            return f"{path}: {size} in torch's format before 1.6, whose names show only when it is loaded"
    state = read_state_dict(path)
    check_fits(model, state, f"Checkpoint {path}")
    kinds = sorted({str(value.dtype).removeprefix("torch.") for value in state.values() if value.is_floating_point()})
    return f"{path}: {size}, {len(state)} tensors of {' and '.join(kinds)} that fit the network"


def look_at_adapters(found: Findings, model: "AnyText2", folders: Sequence[Path]) -> None:
    """Read adapters and compare their modules and shapes with the network's. model: on the meta device."""
    from anytext_lcm.adapter.lora import read_fitting

    for folder in folders:
        with found.looking_at("adapter", "Name one of this network with --adapter, or none."):
            config, state = read_fitting(model, folder)
            found.ok("adapter", f"{folder}: rank {config['r']}, {len(state) // 2} layers that fit the network")


def require_network(config: str, checkpoint: str | None, flag: str = "--ckpt", adapters: Sequence[Path] = ()) -> None:
    """Raise Missing unless yaml, tokenizer, weights and adapters are there and fit each other. Takes seconds, loads no
    network. flag: as in `look_at_network`; adapters: folders in PEFT's format.
    """
    found = Findings()
    model = look_at_network(found, config, checkpoint, flag)
    if model is not None:
        look_at_adapters(found, model, adapters)
    found.require()
