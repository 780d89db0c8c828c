"""
Several adapters as one, and an adapter merged into the weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from anytext_lcm.adapter.formats import CHECKPOINT_ENDINGS, read_header, read_lora_file
from anytext_lcm.adapter.lora import (
    KEY_PREFIX,
    adapter_layers,
    adapter_state,
    attach,
    check_plain,
    load_adapter,
    read_adapter,
    update_shapes,
)
from anytext_lcm.adapter.targets import resolve_targets
from anytext_lcm.files import atomic_file
from anytext_lcm.model.anytext2 import SCHEDULE_BUFFERS, AnyText2


def add_adapters(
    model: nn.Module, parts: Sequence[Mapping[str, tuple[Tensor, Tensor]]], trainable: bool = False
) -> nn.Module:
    """Puts several adapters into a bare model, in place, as one whose update is the sum of theirs. Returns the model.

    parts: for each adapter, (down (r, in, ...), up (out, r, ...)) by module name, everything that scales it already
    multiplied into `up`. Downs are stacked and ups put side by side, which is exact: [B1 B2][A1; A2] = B1 A1 + B2 A2
    ("cat" of PEFT's add_weighted_adapter). The rank is the sum of the largest rank of each part; what a part does not
    adapt is filled with zeros. Raises ValueError as `attach` does and for weights of another shape; the model is
    unchanged then.
    """
    ranks = [max((down.shape[0] for down, _ in part.values()), default=0) for part in parts]
    names = sorted({name for part in parts for name in part})
    rank, offsets = sum(ranks), [sum(ranks[:i]) for i in range(len(ranks))]
    shapes = update_shapes(model, resolve_targets(model, names), rank)
    state = {key: torch.zeros(shape) for key, shape in shapes.items()}
    for part, offset in zip(parts, offsets, strict=True):
        for name, (down, up) in part.items():
            rows = slice(offset, offset + down.shape[0])
            a, b = state[f"{KEY_PREFIX}{name}.lora_A.weight"], state[f"{KEY_PREFIX}{name}.lora_B.weight"]
            if a[rows].numel() != down.numel() or b[:, rows].numel() != up.numel() or len(down) != up.shape[1]:
                raise ValueError(
                    f"An adapter does not fit this network: {name} has {tuple(down.shape)} and {tuple(up.shape)}."
                )
            a[rows], b[:, rows] = down.reshape(a[rows].shape), up.reshape(b[:, rows].shape)
    with torch.random.fork_rng(devices=[]):  # a fresh adapter draws numbers that are replaced below
        attach(model, rank, rank, names)
    for key, parameter in adapter_state(model).items():
        parameter.data.copy_(state[key])
        parameter.requires_grad_(trainable)
    return model


def merge(model: nn.Module) -> nn.Module:
    """Adds the adapter to the weights and takes its layers out, in place: the state dict is the checkpoint's
    again.

    Raises ValueError when there is no adapter or a merged weight is not finite.
    """
    layers = adapter_layers(model)
    if not layers:
        raise ValueError("There is no adapter to merge; load one with load_adapter.")
    for name, layer in layers.items():
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    del model.peft_config
    return model


@dataclass(frozen=True)
class Part:
    """An adapter and its weight in a mixture: a PEFT folder, or a kohya or diffusers file of a style.

    Raises ValueError for a scale outside -100..100.
    """

    source: Path
    scale: float = 1.0

    def __post_init__(self):
        if not abs(self.scale) <= 100:  # also catches nan
            raise ValueError(f"The scale of an adapter must lie in -100..100, not {self.scale}.")


def parse_part(text: str) -> Part:
    """PATH or PATH@SCALE -> Part. Raises ValueError for a scale that is no number."""
    source, at, scale = text.rpartition("@")
    if not at:
        return Part(Path(text))
    try:
        value = float(scale)
    except ValueError:
        raise ValueError(f"{text!r} gives no number after @: write PATH@SCALE, as in style.safetensors@0.8.") from None
    return Part(Path(source), value)


def read_part(model: AnyText2, part: Part) -> dict[str, tuple[Tensor, Tensor]]:
    """(down, up) of each adapted layer with alpha / rank and the part's scale in `up`. Raises as the readers do."""
    if part.source.suffix == ".safetensors":
        pairs = read_lora_file(model, part.source)
    else:
        config, state = read_adapter(part.source)
        check_plain(config, state, part.source)
        pairs = {}
        for key, down in state.items():
            if not key.endswith(".lora_A.weight"):
                continue
            up = state.get(key.replace(".lora_A.", ".lora_B."))
            if up is None:
                raise ValueError(f"The adapter in {part.source} has only one half of {key}.")
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            pairs[name] = (down.float(), up.float() * (config["lora_alpha"] / config["r"]))
    return {name: (down, up * part.scale) for name, (down, up) in pairs.items()}


def load_parts(model: AnyText2, parts: Sequence[Part]) -> AnyText2:
    """Puts one or several adapters into a bare model, in place, as one adapter that is their weighted sum.

    One part of scale 1 is `load_adapter`. Raises ValueError for no part, and as the readers do.
    """
    if not parts:
        raise ValueError("No adapter was named.")
    if len(parts) == 1 and parts[0].scale == 1.0 and parts[0].source.suffix != ".safetensors":
        return load_adapter(model, parts[0].source)
    return add_adapters(model, [read_part(model, part) for part in parts])


def merged_state(model: AnyText2, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The state dict of upstream's checkpoint with the adapter added to the weights; the model stays as it is.

    Sums are fp32 and rounded once, at the end. The schedule stays fp32 whatever dtype: half precision changes 1 - abar
    at t = 1 by 15 %. Raises ValueError when there is no adapter or a weight is not finite in dtype.
    """
    layers = adapter_layers(model)
    if not layers:
        raise ValueError("There is no adapter to merge; load one first.")
    state = {}
    for key, value in model.state_dict().items():
        if ".lora_A." in key or ".lora_B." in key:
            continue
        key = key.replace(".base_layer.", ".")
        name, _, kind = key.rpartition(".")
        if name in layers and kind == "weight":
            value = value.float() + layers[name].get_delta_weight("default").float()
        if value.is_floating_point() and key not in SCHEDULE_BUFFERS:
            value = value.to(dtype)
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"The merged weight {key} is not finite in {dtype}; export fp32, or another adapter.")
        state[key] = value.detach().cpu().contiguous()
    return state


def write_merged(
    model: AnyText2, path: str | Path, about: Mapping[str, Any] = {}, dtype: torch.dtype = torch.float32
) -> Path:
    """Base plus adapter as one checkpoint in upstream's layout: .safetensors, or .ckpt with `state_dict` as upstream
    saves it. Returns the path. Raises ValueError as `merged_state` does, and for another ending.
    """
    path = Path(path)
    if path.suffix not in CHECKPOINT_ENDINGS:
        raise ValueError(f"{path} must end in {' or '.join(CHECKPOINT_ENDINGS)}.")
    state = merged_state(model, dtype)
    with atomic_file(path) as temporary:
        if path.suffix == ".safetensors":
            save_file(state, temporary, metadata=read_header(about))
        else:
            torch.save({"state_dict": state}, temporary)
    return path
