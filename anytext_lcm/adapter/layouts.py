"""Export an adapter in each layout that other tools read, and compare each file with the adapter."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anytext_lcm import __version__
from anytext_lcm.adapter.card import CARD, UPSTREAM_SCRIPT
from anytext_lcm.adapter.choices import LAYOUTS, PRECISIONS
from anytext_lcm.adapter.formats import (
    describe_rest,
    file_header,
    is_of_stable_diffusion,
    read_lora_file,
    split_layers,
    update_error,
    write_diffusers,
    write_kohya,
)
from anytext_lcm.adapter.lora import load_adapter, save_adapter
from anytext_lcm.adapter.mix import merge, write_merged
from anytext_lcm.adapter.stored import CONFIG_FILE
from anytext_lcm.files import atomic_file
from anytext_lcm.model.anytext2 import AnyText2

UNET_ONLY = ("kohya", "diffusers")  # layouts that hold the UNet's layers alone
OTHER_SIZE = "This network is not of Stable Diffusion 1.5's sizes, so these tools cannot load the file."


@dataclass(frozen=True)
class ExportOptions:
    """What to write, and how."""

    layouts: Sequence[str] = LAYOUTS
    precision: str = "fp32"  # of the merged, kohya and diffusers files; one of PRECISIONS
    ending: str = ".safetensors"  # of the merged file, or ".ckpt"
    base_model: str | None = None  # the teacher's name on a hub, for PEFT
    check: bool = True  # read every file back and compare


Card = Callable[..., str]
"""`card.model_card` with everything but layout, file and left_out filled in."""


def export(
    model: AnyText2, folder: Path, card: Card, metadata: Mapping[str, Any] = {}, options: ExportOptions | None = None
) -> dict[str, Any]:
    """Write the layouts into a folder, read each back, and return the report that goes into export.json.

    Each layout gets a card that says in which tools it works how. metadata goes into every header. With a check the
    model ends up merged: its weights are overwritten by those of the merged file, so that the file itself is compared.
    Errors are relative: of the outputs of `probe`, or of the updates for UNet files. Raises ValueError as the writers
    do.
    """
    options = options or ExportOptions()
    dtype, layouts = getattr(torch, PRECISIONS[options.precision]), options.layouts
    files, errors, (_, rest) = {}, {}, split_layers(model)
    left_out = describe_rest(rest)
    unet_note = left_out if is_of_stable_diffusion(model) else f"{left_out} {OTHER_SIZE}".strip()
    reference = probe(model) if options.check else []
    if "peft" in layouts:  # always fp32: training goes on from it
        files["peft"] = write_peft(model, folder / "peft", card(layout="peft"), metadata, options.base_model)
        if options.check:
            errors["peft"] = distance(reference, probe(load_adapter(model, files["peft"])))
    for layout, write, name in (
        ("kohya", write_kohya, "kohya/anytext_lcm_unet.safetensors"),
        ("diffusers", write_diffusers, "diffusers/pytorch_lora_weights.safetensors"),
    ):
        if layout in layouts:
            files[layout] = write(model, folder / name, metadata, dtype)
            if options.check:
                errors[layout] = update_error(model, read_lora_file(model, files[layout]))
    if "merged" in layouts:
        files["merged"] = write_merged(model, folder / f"merged/anytext2_lcm{options.ending}", metadata, dtype)
        if options.check:
            merge(model).load_checkpoint(files["merged"])
            errors["merged"] = distance(reference, probe(model))
    for layout, path in files.items():
        if layout != "peft":
            note = unet_note if layout in UNET_ONLY else left_out
            text = card(layout=layout, file=path.name, left_out=note)
            path.with_name(CARD).write_text(text, encoding="utf-8")
    if "merged" in layouts:
        script = files["merged"].with_name(UPSTREAM_SCRIPT.stem + ".py")
        script.write_bytes(UPSTREAM_SCRIPT.read_bytes())
    unet_only = [layout for layout in UNET_ONLY if layout in layouts]
    return {
        "anytext_lcm": __version__,
        "about": dict(metadata),
        "precision": options.precision,
        "files": {layout: str(path.relative_to(folder)) for layout, path in files.items()},
        "errors": errors,
        "left_out": {"layouts": unet_only, "layers": rest, "note": unet_note} if unet_only else None,
    }


def write_peft(
    model: AnyText2, folder: str | Path, card: str, metadata: Mapping[str, Any] = {}, base_model: str | None = None
) -> Path:
    """Write the folder that PEFT reads, with its model card. Return it. Raises ValueError when there is no adapter."""
    folder = save_adapter(model, folder, file_header(metadata))
    if base_model:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = base_model
        with atomic_file(folder / CONFIG_FILE) as temporary:
            temporary.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    with atomic_file(folder / CARD) as temporary:
        temporary.write_text(card, encoding="utf-8")
    return folder


@torch.no_grad()
def probe(model: AnyText2, seed: int = 0) -> list[Tensor]:
    """The outputs of both networks for random 64 px inputs: WriteNet's residuals and the predicted noise, fp32.

    Equal outputs mean that two models have equal weights and adapters, as far as drawing is concerned.
    """
    generator = torch.Generator().manual_seed(seed)
    attention = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2.to_k
    width, channels = attention.in_features, model.latent_channels

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(model.device, model.dtype)

    context, text = draw(2, 77, width), draw(2, 77, width)
    glyphs = (draw(2, 1, 64, 64) > 0.8).to(model.dtype)
    latents, masked = draw(2, channels, 8, 8), draw(2, channels, 8, 8)
    timesteps = torch.tensor([259, 999], device=model.device)
    residuals = model.control_model(glyphs, glyphs, masked, text, x=latents, timesteps=timesteps)
    eps = model.model.diffusion_model(latents, timesteps, context, control=residuals)
    return [x.float().cpu() for x in (*residuals, eps)]


def distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Largest difference of two probes over the largest number in the first."""
    largest = max(float(x.abs().max()) for x in first)
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True)) / max(largest, 1e-12)


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
