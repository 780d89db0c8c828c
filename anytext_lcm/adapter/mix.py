"""Several adapters as one, and an adapter merged into the weights. Next: `formats.py`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anytext_lcm.adapter.formats import Pairs, file_header, read_lora_file
from anytext_lcm.adapter.lora import (
    ADAPTER_NAME,
    Adapter,
    attach_weights,
    load_adapter,
    update_shapes,
)
from anytext_lcm.adapter.stored import KEY_PREFIX, check_rank, layer_names, read_adapter
from anytext_lcm.adapter.targets import resolve_targets
from anytext_lcm.files import atomic_file
from anytext_lcm.model.anytext2 import SCHEDULE_BUFFERS, AnyText2
from anytext_lcm.model.checkpoint import write_state_dict

CHECKPOINT_ENDINGS = (".safetensors", ".ckpt")


# -- several as one ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WeightedAdapter:
    """An adapter and its weight in a mixture: a PEFT folder, or a kohya or diffusers file of a style.

    Raises ValueError for a scale outside -100..100.
    """

    source: Path
    scale: float = 1.0

    def __post_init__(self):
        if not abs(self.scale) <= 100:  # also catches nan
            raise ValueError(f"The scale of an adapter must lie in -100..100, not {self.scale}.")

    @property
    def is_file(self) -> bool:
        return self.source.suffix.lower() == ".safetensors" and not self.source.is_dir()

    @classmethod
    def parse(cls, text: str) -> "WeightedAdapter":
        """PATH or PATH@SCALE; what exists is a path, @ or not. Raises ValueError for a scale that is no number."""
        source, at, scale = text.rpartition("@")
        if not at or Path(text).exists():
            return cls(Path(text))
        try:
            value = float(scale)
        except ValueError:
            example = "write PATH@SCALE, as in style.safetensors@0.8"
            raise ValueError(f"There is no {text!r}, and it gives no number after @: {example}.") from None
        return cls(Path(source), value)

    def read(self, model: AnyText2) -> Pairs:
        """(down, up) of each layer, with alpha / rank and the scale in `up`. Raises ValueError or FileNotFoundError."""
        pairs = read_lora_file(model, self.source) if self.is_file else _read_folder(self.source)
        return {name: (down, up * self.scale) for name, (down, up) in pairs.items()}


def _read_folder(folder: Path) -> Pairs:
    config, state = read_adapter(folder)
    pairs = {}
    for name in layer_names(state):
        down, up = (state[f"{KEY_PREFIX}{name}.lora_{matrix}.weight"].float() for matrix in "AB")
        pairs[name] = (down, up * (config["lora_alpha"] / config["r"]))
    return pairs


def load_adapters(model: AnyText2, adapters: Sequence[WeightedAdapter]) -> AnyText2:
    """Put one or several adapters into a bare model, in place, as one that is their weighted sum. Return the model.

    One folder of scale 1 is `load_adapter`. Raises ValueError for no adapter, and as the readers do.
    """
    if not adapters:
        raise ValueError("No adapter was named.")
    first = adapters[0]
    if len(adapters) == 1 and first.scale == 1.0 and not first.is_file:
        return load_adapter(model, first.source)
    return add_adapters(model, [adapter.read(model) for adapter in adapters])


def add_adapters(model: nn.Module, parts: Sequence[Pairs]) -> nn.Module:
    """Put several adapters into a bare model, in place, as one whose update is the sum of theirs. Return the model.

    Stacking them is exact: [B1 B2] [A1; A2] = B1 A1 + B2 A2. The rank is the sum of the parts' largest ranks; what a
    part does not adapt is zero. Raises ValueError as `attach` does, for a rank above MAX_RANK, and for weights of
    another shape; the model is unchanged then.

    PEFT's add_weighted_adapter with "cat" gives the same updates to the bit. It needs every part attached beside the
    others first, and its result has the precision of the network: in bf16 the mixture would be rounded.
    """
    ranks = [max((len(down) for down, _ in part.values()), default=0) for part in parts]
    check_rank(sum(ranks), "The rank of the adapters together")
    names = resolve_targets(model, sorted({name for part in parts for name in part}))
    state = {key: torch.zeros(shape) for key, shape in update_shapes(model, names, sum(ranks)).items()}
    start = 0
    for part, rank in zip(parts, ranks, strict=True):
        for name, (down, up) in part.items():
            rows = slice(start, start + len(down))
            a = state[f"{KEY_PREFIX}{name}.lora_A.weight"][rows]
            b = state[f"{KEY_PREFIX}{name}.lora_B.weight"][:, rows]
            if (a.numel(), b.numel(), len(down)) != (down.numel(), up.numel(), up.shape[1]):
                raise ValueError(
                    f"An adapter does not fit this network: {name} has {tuple(down.shape)} and {tuple(up.shape)}."
                )
            a.copy_(down.reshape(a.shape))
            b.copy_(up.reshape(b.shape))
        start += rank
    return attach_weights(model, sum(ranks), sum(ranks), state)


# -- merged into the weights ------------------------------------------------------------------------------


def merge(model: nn.Module) -> nn.Module:
    """Add the adapter to the weights and take its layers out, in place: the state dict is the checkpoint's again.
    Return the model.

    Each layer merges by PEFT. PEFT's merge_and_unload would also unload them, but belongs to the object that attached
    the adapter, which a loaded model does not have. Raises ValueError when there is no adapter or a merged weight is
    not finite.
    """
    for name, layer in Adapter.of(model).layers.items():
        layer.merge(safe_merge=True)
        model.set_submodule(name, layer.get_base_layer())
    del model.peft_config
    return model


def merged_state(model: AnyText2, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The state dict of upstream's checkpoint with the adapter added to the weights; the model stays as it is.

    Sums are fp32 and rounded once, at the end, whatever the network is in; PEFT merges in the network's precision.
    Raises ValueError when there is no adapter or a weight is not finite in dtype.
    """
    layers, state = Adapter.of(model).layers, {}
    for key, value in model.state_dict().items():
        if ".lora_A." in key or ".lora_B." in key:
            continue
        key = key.replace(".base_layer.", ".")
        name, _, kind = key.rpartition(".")
        if name in layers and kind == "weight":
            value = value.float() + layers[name].get_delta_weight(ADAPTER_NAME).float()
        if value.is_floating_point():
            # The schedule stays fp32: half precision changes 1 - abar at t = 1 by 15 %.
            value = value if key in SCHEDULE_BUFFERS else value.to(dtype)
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"The merged weight {key} is not finite in {dtype}; export fp32, or another adapter.")
        state[key] = value.detach().cpu().contiguous()
    return state


def write_merged(
    model: AnyText2, path: str | Path, metadata: Mapping[str, Any] = {}, dtype: torch.dtype = torch.float32
) -> Path:
    """Write base plus adapter as one checkpoint in upstream's layout. Return the path.

    A .safetensors file, or a .ckpt with `state_dict` as upstream saves it. Raises ValueError as `merged_state` does,
    and for another ending.
    """
    path = Path(path)
    if path.suffix not in CHECKPOINT_ENDINGS:
        raise ValueError(f"{path} must end in {' or '.join(CHECKPOINT_ENDINGS)}.")
    state = merged_state(model, dtype)
    with atomic_file(path) as temporary:
        write_state_dict(state, temporary, file_header(metadata))
    return path
