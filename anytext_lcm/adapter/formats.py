"""LoRA files of a Stable Diffusion UNet, kohya's and diffusers', written and read.

Both name Stable Diffusion 1.5's UNet and nothing else, so WriteNet and AttnX stay out of them; `describe_rest` says how
much that is. Next: `layouts.py`.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anytext_lcm.adapter.lora import ADAPTER_NAME, Adapter, adapter_layers
from anytext_lcm.adapter.stored import check_alpha, check_config, check_rank, read_header, read_tensors
from anytext_lcm.files import atomic_file
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.checkpoint import write_state_dict
from anytext_lcm.model.config import TrunkConfig
from anytext_lcm.model.layers import Downsample, ResBlock, SpatialTransformer, Upsample
from anytext_lcm.model.unet import UNetModel

Pairs = Mapping[str, tuple[Tensor, Tensor]]
"""down (r, in, ...) and up (out, r, ...) fp32 of each adapted layer by its name; up @ down is the whole update."""

UNET = "model.diffusion_model."
_KEY = re.compile(r"(.+?)\.(?:(alpha)|(?:lora_down|lora\.down|lora_A)\.(weight)|(?:lora_up|lora\.up|lora_B)\.weight)")
_ATTNX = re.compile(r"\.attn[12]x\.")
_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


# -- names ------------------------------------------------------------------------------------------------


def diffusers_names(unet: UNetModel) -> dict[str, str]:
    """Names of the UNet's layers that hold weights -> the same layers in diffusers' UNet2DConditionModel.

    CompVis numbers all blocks in one row, diffusers counts residual blocks, attentions and resampling of each level.
    The map is read off the network, so it also holds for small ones, where the tables of diffusers' own conversion
    (convert_ldm_unet_checkpoint) hold for Stable Diffusion's depth alone. Attentions attn1x and attn2x (AttnX) have no
    counterpart and no entry. Works with and without an adapter attached.
    """
    names = dict(_ENDS)

    def add(layer: nn.Module, ours: str, level: str, place: int) -> None:
        if isinstance(layer, ResBlock):
            names.update({f"{ours}.{k}": f"{level}.resnets.{place}.{v}" for k, v in _RESIDUAL.items()})
        elif isinstance(layer, SpatialTransformer):
            for name, module in layer.named_modules():
                own = any(True for _ in module.parameters(recurse=False)) or hasattr(module, "base_layer")
                inside = ".lora_" in f".{name}." or "base_layer" in name
                if own and not inside and not _ATTNX.search(name):
                    names[f"{ours}.{name}"] = f"{level}.attentions.{place}.{name}"
        elif isinstance(layer, Downsample):
            names[f"{ours}.op"] = f"{level}.downsamplers.0.conv"
        elif isinstance(layer, Upsample):
            names[f"{ours}.conv"] = f"{level}.upsamplers.0.conv"

    level = place = 0
    for i, block in enumerate(unet.input_blocks):
        for j, layer in enumerate(block):
            add(layer, f"input_blocks.{i}.{j}", f"down_blocks.{level}", place)
        if isinstance(block[0], Downsample):
            level, place = level + 1, 0
        elif i:  # block 0 is conv_in alone
            place += 1
    residuals = 0
    for j, layer in enumerate(unet.middle_block):
        add(layer, f"middle_block.{j}", "mid_block", residuals if isinstance(layer, ResBlock) else 0)
        residuals += isinstance(layer, ResBlock)
    level = place = 0
    for i, block in enumerate(unet.output_blocks):
        for j, layer in enumerate(block):
            add(layer, f"output_blocks.{i}.{j}", f"up_blocks.{level}", place)
        level, place = (level + 1, 0) if isinstance(block[-1], Upsample) else (level, place + 1)
    existing = {name.replace(".base_layer", "") for name, _ in unet.named_modules()}
    return {ours: theirs for ours, theirs in names.items() if ours in existing}


def kohya_name(theirs: str) -> str:
    """A layer's name in diffusers -> in a kohya file, which joins the path with underscores."""
    return "lora_unet_" + theirs.replace(".", "_")


def split_layers(model: AnyText2) -> tuple[dict[str, str], list[str]]:
    """(adapted layers that Stable Diffusion's UNet has -> their names in diffusers, adapted layers that it lacks)."""
    names = diffusers_names(model.model.diffusion_model)
    known, rest = {}, []
    for name in adapter_layers(model):
        theirs = names.get(name.removeprefix(UNET)) if name.startswith(UNET) else None
        if theirs is None:
            rest.append(name)
        else:
            known[name] = theirs
    return known, rest


def describe_rest(rest: Sequence[str]) -> str:
    """One sentence about what a UNet-only file lacks; empty when it lacks nothing."""
    attnx = sum(_ATTNX.search(name) is not None for name in rest)
    control = sum(name.startswith("control_model.") for name in rest)
    other = len(rest) - attnx - control
    parts = [f"{count} in {where}" for count, where in ((control, "WriteNet"), (attnx, "AttnX")) if count]
    parts += [f"{other} elsewhere"] if other else []
    if not parts:
        return ""
    return (
        f"Left out: {' and '.join(parts)} of the adapted layers, which Stable Diffusion's UNet does not have; "
        "the peft and merged layouts hold them."
    )


def is_of_stable_diffusion(model: AnyText2) -> bool:
    """Whether the UNet's layers have the sizes of Stable Diffusion 1.5's, so that other tools can load a file."""
    own, usual = model.model.diffusion_model.trunk_config, TrunkConfig()
    sizes = ("in_channels", "out_channels", "model_channels", "channel_mult", "num_res_blocks", "context_dim")
    return all(getattr(own, size) == getattr(usual, size) for size in sizes)


# -- write ------------------------------------------------------------------------------------------------


def scaled_pairs(model: AnyText2) -> Pairs:
    """The attached adapter on the CPU, alpha / rank multiplied into `up`. Raises ValueError when there is none."""
    pairs = {}
    for name, layer in Adapter.of(model).layers.items():
        down, up = (x[ADAPTER_NAME].weight.detach().float().cpu() for x in (layer.lora_A, layer.lora_B))
        pairs[name] = (down, up * layer.scaling[ADAPTER_NAME])
    return pairs


def _unet_pairs(model: AnyText2) -> Pairs:
    """`scaled_pairs` of the UNet's layers by their names in diffusers. Raises ValueError when there are none."""
    pairs, (known, rest) = scaled_pairs(model), split_layers(model)
    if not known:
        raise ValueError(
            f"None of the {len(rest)} adapted layers is one of Stable Diffusion's UNet, so kohya and diffusers files "
            "would be empty; export peft or merged instead."
        )
    return {theirs: pairs[name] for name, theirs in known.items()}


def file_header(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The header of a safetensors file with this package's metadata in it."""
    return {"format": "pt", "anytext_lcm": json.dumps(dict(metadata), sort_keys=True)}


def write_kohya(
    model: AnyText2, path: str | Path, metadata: Mapping[str, Any] = {}, dtype: torch.dtype = torch.float32
) -> Path:
    """Write the UNet's part of the adapter as kohya's file, lora_unet_*.lora_down, .lora_up, .alpha. Return the path.

    alpha is the rank, so the update is up @ down. Raises ValueError when the model has no adapter, none in the UNet, or
    one that is not finite in dtype.
    """
    from diffusers.utils import convert_state_dict_to_kohya  # imports for seconds

    pairs, rank = _unet_pairs(model), str(Adapter.of(model).rank)
    peft = {f"unet.{name}.lora_A.weight": down for name, (down, _) in pairs.items()}
    peft |= {f"unet.{name}.lora_B.weight": up for name, (_, up) in pairs.items()}
    ours = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
    }
    if is_of_stable_diffusion(model):
        ours |= {"ss_base_model_version": "sd_v1", "modelspec.architecture": "stable-diffusion-v1/lora"}
    return _write_lora(convert_state_dict_to_kohya(peft), path, file_header(metadata) | ours, dtype)


def write_diffusers(
    model: AnyText2, path: str | Path, metadata: Mapping[str, Any] = {}, dtype: torch.dtype = torch.float32
) -> Path:
    """Write the UNet's part of the adapter as diffusers' file, unet.*.lora.down and .lora.up. Return the path.

    This layout has no alpha beside the weights, and not every reader looks into the header, so the update is up @ down.
    Raises ValueError as `write_kohya`.
    """
    pairs, rank = _unet_pairs(model), Adapter.of(model).rank
    state = {f"unet.{name}.lora.down.weight": down for name, (down, _) in pairs.items()}
    state |= {f"unet.{name}.lora.up.weight": up for name, (_, up) in pairs.items()}
    config = {"unet.r": rank, "unet.lora_alpha": rank, "unet.target_modules": sorted(pairs)}
    ours = {"lora_adapter_metadata": json.dumps(config, sort_keys=True)}
    return _write_lora(state, path, file_header(metadata) | ours, dtype)


def _write_lora(state: Mapping[str, Tensor], path: str | Path, header: dict[str, str], dtype: torch.dtype) -> Path:
    state = {k: v.to(torch.float32 if k.endswith(".alpha") else dtype).contiguous() for k, v in sorted(state.items())}
    if bad := [key for key, value in state.items() if not bool(torch.isfinite(value).all())]:
        raise ValueError(f"{len(bad)} weights, like {bad[0]}, are not finite in {dtype}; export fp32.")
    with atomic_file(path) as temporary:
        write_state_dict(state, temporary, header)
    return Path(path)


# -- read -------------------------------------------------------------------------------------------------


def read_lora_file(model: AnyText2, path: str | Path) -> Pairs:
    """Read a kohya or diffusers LoRA file, its alpha and rank multiplied into `up`.

    Alpha and rank stand beside the weights, or in the header that diffusers 0.34 and later write, rslora and patterns
    too; an alpha beside the weights wins. Knows diffusers' older names (attn1.processor.to_q_lora) as well. Skips
    weights of text encoders, since the text towers take no adapter here. Raises FileNotFoundError, or ValueError for
    another format, for layers that this UNet does not have, and as `stored.check_config` for the header.
    """
    state = _load(path)
    theirs = diffusers_names(model.model.diffusion_model)
    names = {kohya_name(v): UNET + k for k, v in theirs.items()} | {f"unet.{v}": UNET + k for k, v in theirs.items()}
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith(("lora_te", "text_encoder")):
            continue
        plain = re.sub(r"\.processor\.(to_[qkv]|to_out)_lora\.", r".\1.lora.", key)
        plain = plain.replace(".to_out.lora.", ".to_out.0.lora.")
        match = _KEY.fullmatch(plain)
        if match is None or not key.startswith(("lora_unet_", "unet.")):
            raise ValueError(f"{path} is no kohya or diffusers LoRA of a UNet: it holds {key!r}.")
        if match[1] not in names:
            raise ValueError(f"{path} has a layer that this UNet lacks: {match[1]!r}.")
        kind = "alpha" if match[2] else "down" if match[3] else "up"
        found.setdefault(names[match[1]], {})[kind] = value.float()
    if not found:
        raise ValueError(f"{path} holds no LoRA weights of a UNet.")
    config, pairs = _unet_config(path), {}
    for name, parts in found.items():
        if not {"down", "up"} <= set(parts):
            raise ValueError(f"{path} has only one half of {name!r}.")
        if parts["down"].ndim < 2 or parts["up"].ndim < 2 or len(parts["down"]) != parts["up"].shape[1]:
            shapes = " and ".join(str(tuple(parts[kind].shape)) for kind in ("down", "up"))
            raise ValueError(f"{path} does not fit this network: the halves of {name!r} have {shapes}.")
        scale = _scale(path, theirs[name.removeprefix(UNET)], parts, config)
        pairs[name] = (parts["down"], parts["up"] * scale)
    return pairs


def _unet_config(path: str | Path) -> dict[str, Any]:
    """PEFT's settings of the UNet that diffusers 0.34 and later write into the header; empty without them.

    Raises ValueError when they are not readable or are those of a variant of LoRA.
    """
    text = read_header(Path(path)).get("lora_adapter_metadata")
    if text is None:
        return {}
    what = f"{path}: lora_adapter_metadata"
    try:
        config = {k.removeprefix("unet."): v for k, v in json.loads(text).items() if k.startswith("unet.")}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{what} in the header cannot be read ({error}).") from error
    if not config:
        return {}
    config = {"r": 8, "lora_alpha": 8} | config  # PEFT's defaults
    check_config(config, what)
    for key, check in (("rank_pattern", check_rank), ("alpha_pattern", check_alpha)):
        if not isinstance(pattern := config.get(key) or {}, dict):
            raise ValueError(f"{what}: {key} must be a table of layers, not {pattern!r}.")
        for layer, value in pattern.items():
            check(value, f"{what}: {key} of {layer!r}")
    return config


def _scale(path: str | Path, layer: str, parts: Mapping[str, Tensor], config: Mapping[str, Any]) -> float:
    """What `up` is multiplied by: alpha / rank, where an alpha beside the weights wins over the header's. Without
    either it is 1. layer: its name in diffusers. Raises ValueError for another rank than the header's.
    """
    rank = len(parts["down"])
    check_rank(rank, f"{path}: the rank of {layer!r}")
    if "alpha" in parts:
        if parts["alpha"].numel() != 1:
            raise ValueError(f"{path}: the alpha of {layer!r} has {parts['alpha'].numel()} numbers instead of one.")
        alpha = float(parts["alpha"])
        check_alpha(alpha, f"{path}: the alpha of {layer!r}")
        return alpha / rank
    if not config:
        return 1.0
    from peft.utils.other import get_pattern_key

    def of_layer(default: str, patterns: str) -> Any:
        table = config.get(patterns) or {}
        try:
            return table.get(get_pattern_key(table, layer), config[default])
        except re.error as error:
            raise ValueError(f"{path}: {patterns} in the header is no list of patterns ({error}).") from error

    if (said := of_layer("r", "rank_pattern")) != rank:
        raise ValueError(f"{path}: the header gives {layer!r} rank {said}, its weights have rank {rank}.")
    return of_layer("lora_alpha", "alpha_pattern") / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _load(path: str | Path) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no LoRA file {path}.")
    return read_tensors(Path(path))


def update_error(model: AnyText2, pairs: Pairs) -> float:
    """Compare the updates of a LoRA file (`read_lora_file`) with those of the attached adapter.

    Returns the largest difference over the largest update. Raises ValueError when a layer is missing.
    """
    known, own = split_layers(model)[0], scaled_pairs(model)
    if set(pairs) != set(known):
        raise ValueError(f"The file has {len(pairs)} layers instead of {len(known)}.")
    error = largest = 0.0
    for name, (down, up) in pairs.items():
        own_down, own_up = own[name]
        update = own_up.flatten(1) @ own_down.flatten(1)
        largest = max(largest, float(update.abs().max()))
        error = max(error, float((update - up.flatten(1) @ down.flatten(1)).abs().max()))
    return error / max(largest, 1e-12)
