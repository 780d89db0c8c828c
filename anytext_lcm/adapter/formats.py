"""An adapter in other programs' formats and back: LoRA files of a UNet, mixtures, the merged checkpoint.

kohya and diffusers files know Stable Diffusion 1.5's UNet and nothing else, so WriteNet and AttnX stay out of them;
`describe_rest` says so. Imports torch, safetensors and the rooms model, lora and outputs.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anytext_lcm.adapter.lora import adapter_layers, adapter_state
from anytext_lcm.files import atomic_file
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.layers import Downsample, ResBlock, SpatialTransformer, Upsample
from anytext_lcm.model.unet import UNetModel

CHECKPOINT_ENDINGS = (".safetensors", ".ckpt")


UNET = "model.diffusion_model."


_KEY = re.compile(r"(.+?)\.(?:(alpha)|(?:lora_down|lora\.down|lora_A)\.(weight)|(?:lora_up|lora\.up|lora_B)\.weight)")


_UP, _DOWN = "lora_up.weight", "lora_down.weight"


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


def diffusers_names(unet: UNetModel) -> dict[str, str]:
    """Names of the UNet's layers that hold weights -> the same layers in diffusers' UNet2DConditionModel.

    CompVis numbers blocks through, diffusers counts residual blocks, attentions and resampling of each level. The map
    is read off the network itself, so it also holds for small ones. Attentions attn1x and attn2x (AttnX) have no
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
                if own and not inside and not re.search(r"\.attn[12]x\.", name):
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
    """A layer's name in diffusers -> in a kohya file: kohya trains Stable Diffusion 1.5 on diffusers' UNet and joins
    the path with underscores.
    """
    return "lora_unet_" + theirs.replace(".", "_")


def split_layers(model: AnyText2) -> tuple[dict[str, str], list[str]]:
    """The adapted layers that a Stable Diffusion UNet has, by their name in diffusers, and those that it lacks."""
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
    attnx = sum(re.search(r"\.attn[12]x\.", name) is not None for name in rest)
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


def read_header(about: Mapping[str, Any]) -> dict[str, str]:
    return {"format": "pt", "anytext_lcm": json.dumps(dict(about), sort_keys=True)}


def _weights(model: AnyText2) -> dict[str, tuple[Tensor, Tensor, float, int]]:
    """A (r, in, ...), B (out, r, ...) fp32 on the CPU, alpha and rank of each adapted layer."""
    state = {key: value.detach().float().cpu() for key, value in adapter_state(model).items()}
    return {
        name: (
            *(state[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB"),
            float(layer.lora_alpha["default"]),
            int(layer.r["default"]),
        )
        for name, layer in adapter_layers(model).items()
    }


def _checked_layers(model: AnyText2) -> dict[str, str]:
    known, rest = split_layers(model)
    if not adapter_layers(model):
        raise ValueError("There is no adapter to export; load one first.")
    if not known:
        raise ValueError(
            f"None of the {len(rest)} adapted layers is one of Stable Diffusion's UNet, so kohya and diffusers files "
            "would be empty; export peft or merged instead."
        )
    return known


def write_kohya(
    model: AnyText2, path: str | Path, about: Mapping[str, Any] = {}, dtype: torch.dtype = torch.float32
) -> Path:
    """The UNet's part of the adapter as lora_unet_*.lora_down, .lora_up and .alpha (.safetensors). Returns the path.

    The update is alpha / rank times up down. Raises ValueError when the model has no adapter or none in the UNet.
    """
    known, weights = _checked_layers(model), _weights(model)
    state, alphas, ranks = {}, set(), set()
    for name, theirs in known.items():
        down, up, alpha, rank = weights[name]
        key = kohya_name(theirs)
        state[f"{key}.{_DOWN}"], state[f"{key}.{_UP}"] = down, up
        state[f"{key}.alpha"] = torch.tensor(alpha)
        alphas.add(alpha)
        ranks.add(rank)
    header = read_header(about) | {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(max(ranks)),
        "ss_network_alpha": str(max(alphas)),
        "ss_base_model_version": "sd_v1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
    }
    return _write_lora(state, path, header, dtype)


def write_diffusers(
    model: AnyText2, path: str | Path, about: Mapping[str, Any] = {}, dtype: torch.dtype = torch.float32
) -> Path:
    """The UNet's part of the adapter as unet.*.lora.down and .lora.up (pytorch_lora_weights.safetensors).

    This layout has no place for alpha beside the weights, and not every reader looks into the header: alpha / rank is
    multiplied into `up`, so that the update is up down as it stands. Raises as `write_kohya`.
    """
    known, weights = _checked_layers(model), _weights(model)
    state, ranks = {}, set()
    for name, theirs in known.items():
        down, up, alpha, rank = weights[name]
        state[f"unet.{theirs}.lora.down.weight"] = down
        state[f"unet.{theirs}.lora.up.weight"] = up * (alpha / rank)
        ranks.add(rank)
    header = read_header(about)
    if len(ranks) == 1:
        [rank] = ranks
        config = {"unet.r": rank, "unet.lora_alpha": rank, "unet.target_modules": sorted(known.values())}
        header["lora_adapter_metadata"] = json.dumps(config, sort_keys=True)
    return _write_lora(state, path, header, dtype)


def _write_lora(state: dict[str, Tensor], path: str | Path, header: dict[str, str], dtype: torch.dtype) -> Path:
    state = {k: v if k.endswith(".alpha") else v.to(dtype).contiguous() for k, v in sorted(state.items())}
    if bad := [key for key, value in state.items() if not bool(torch.isfinite(value).all())]:
        raise ValueError(f"{len(bad)} weights, like {bad[0]}, are not finite in {dtype}; export fp32.")
    with atomic_file(path) as temporary:
        save_file(state, temporary, metadata=header)
    return Path(path)


def read_lora_file(model: AnyText2, path: str | Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A kohya or diffusers LoRA file -> (down, scaled up) fp32 of each layer by this package's names.

    The update of a layer is up down. diffusers' older names (attn1.processor.to_q_lora) are known too. Weights of text
    encoders are passed over, since the text towers here take no adapter. Raises FileNotFoundError, or ValueError for
    another format and for layers that this UNet does not have.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no LoRA file {path}.")
    try:
        state = load_file(path)
    except Exception as error:  # safetensors raises a class of its own
        raise ValueError(f"{path} is no safetensors file ({error}).") from error
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
    result = {}
    for name, parts in found.items():
        if not {"down", "up"} <= set(parts):
            raise ValueError(f"{path} has only one half of {name!r}.")
        rank = parts["down"].shape[0]
        result[name] = (parts["down"], parts["up"] * (float(parts.get("alpha", rank)) / rank))
    return result


def update_error(model: AnyText2, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> float:
    """How far the updates of a LoRA file (`read_lora_file`) are from those of the attached adapter: the largest
    difference over the largest update. Raises ValueError when a layer is missing.
    """
    known, weights = split_layers(model)[0], _weights(model)
    if set(pairs) != set(known):
        raise ValueError(f"The file has {len(pairs)} layers instead of {len(known)}.")
    error = largest = 0.0
    for name, (down, up) in pairs.items():
        own_down, own_up, alpha, rank = weights[name]
        own = (alpha / rank) * own_up.flatten(1) @ own_down.flatten(1)
        largest = max(largest, float(own.abs().max()))
        error = max(error, float((own - up.flatten(1) @ down.flatten(1)).abs().max()))
    return error / max(largest, 1e-12)
