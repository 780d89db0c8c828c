"""
Export an adapter in each layout that other tools read, and check each file against the adapter.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anytext_lcm import __version__
from anytext_lcm.adapter.card import CARD
from anytext_lcm.adapter.choices import PRECISIONS
from anytext_lcm.adapter.formats import (
    describe_rest,
    read_lora_file,
    split_layers,
    update_error,
    write_diffusers,
    write_kohya,
)
from anytext_lcm.adapter.lora import CONFIG_FILE, load_adapter, save_adapter
from anytext_lcm.adapter.mix import merge, write_merged
from anytext_lcm.files import whole_file
from anytext_lcm.model.anytext2 import AnyText2


def write_peft(
    model: AnyText2, folder: str | Path, card: str, about: Mapping[str, Any] = {}, base_model: str | None = None
) -> Path:
    """The folder that PEFT reads, with its model card. Returns it. Raises ValueError when there is no adapter."""
    folder = save_adapter(model, folder, {"anytext_lcm": json.dumps(dict(about), sort_keys=True)})
    if base_model:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = base_model
        with whole_file(folder / CONFIG_FILE) as temporary:
            temporary.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    with whole_file(folder / CARD) as temporary:
        temporary.write_text(card, encoding="utf-8")
    return folder


@torch.no_grad()
def probe(model: AnyText2, seed: int = 0) -> list[Tensor]:
    """What both networks answer to random 64 px inputs: WriteNet's residuals and the predicted noise, fp32.

    Two models that answer the same to these have the same weights and adapters, for all that matters here.
    """
    generator = torch.Generator().manual_seed(seed)
    attention = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2.to_k
    width, channels = attention.in_features, model.latent_channels

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(model.device, model.dtype)

    context, text = draw(2, 77, width), draw(2, 77, width)
    glyphs = (draw(2, 1, 64, 64) > 0.8).to(model.dtype)
    latents, masked = draw(2, channels, 8, 8), draw(2, channels, 8, 8)
    residuals = model.control_model(glyphs, glyphs, masked, text)
    timesteps = torch.tensor([259, 999], device=model.device)
    eps = model.model.diffusion_model(latents, timesteps, context, control=residuals)
    return [x.float().cpu() for x in (*residuals, eps)]


def distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Largest difference of two probes, over the largest number in them."""
    largest = max(float(x.abs().max()) for x in first)
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True)) / max(largest, 1e-12)


def export(
    model: AnyText2,
    folder: Path,
    layouts: Sequence[str],
    card: str,
    about: Mapping[str, Any] = {},
    precision: str = "fp32",
    ending: str = ".safetensors",
    base_model: str | None = None,
    check: bool = True,
) -> dict[str, Any]:
    """Writes the layouts into a folder, reads each back, and returns the report that goes into export.json.

    With a check the model ends up merged: its weights are overwritten by those of the merged file, so that the file
    itself is what is compared. Errors are relative, of the answers to `probe` or, for UNet files, of the updates.
    """
    dtype, files, errors = getattr(torch, PRECISIONS[precision]), {}, {}
    reference = probe(model) if check else []
    _, rest = split_layers(model)
    if "peft" in layouts:  # always fp32: it is what training goes on from
        files["peft"] = write_peft(model, folder / "peft", card, about, base_model)
        if check:
            errors["peft"] = distance(reference, probe(load_adapter(model, files["peft"])))
    for layout, write, name in (
        ("kohya", write_kohya, "kohya/anytext_lcm_unet.safetensors"),
        ("diffusers", write_diffusers, "diffusers/pytorch_lora_weights.safetensors"),
    ):
        if layout in layouts:
            files[layout] = write(model, folder / name, about, dtype)
            if check:
                errors[layout] = update_error(model, read_lora_file(model, files[layout]))
    if "merged" in layouts:
        files["merged"] = write_merged(model, folder / f"merged/anytext2_lcm{ending}", about, dtype)
        if check:
            merge(model).load_checkpoint(files["merged"])
            errors["merged"] = distance(reference, probe(model))
    unet_only = [layout for layout in ("kohya", "diffusers") if layout in layouts]
    return {
        "anytext_lcm": __version__,
        "about": dict(about),
        "precision": precision,
        "files": {layout: str(path.relative_to(folder)) for layout, path in files.items()},
        "errors": errors,
        "left_out": {"layouts": unet_only, "layers": rest, "note": describe_rest(rest)} if unet_only else None,
    }


def sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
