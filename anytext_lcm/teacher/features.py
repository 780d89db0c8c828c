"""Latents and recogniser features of every picture, computed once by the frozen parts of the network."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.teacher.columns import LINES, SIDE, open_columns, write_json
from anytext_lcm.teacher.fitting import averaged
from anytext_lcm.teacher.processes import Rank, autocast
from anytext_lcm.teacher.recipe import CONFIG, Recipe

FEATURES = ("latents", "masked", "glyph_features", "font_features")
_CHUNK = 16  # pictures at once


def load_frozen(model: AnyText2, work: Path) -> AnyText2:
    """Put autoencoder and recognisers into a network, in place, as the last stages that trained them left them."""
    decoder = work / "decoder.pt"  # the same encoder as vae.pt, so the latents fit either
    model.first_stage_model.load_state_dict(averaged(decoder if decoder.exists() else work / "vae.pt"))
    letters = torch.load(work / "recogniser.pt", map_location="cpu", weights_only=True)
    model.text_predictor.load_state_dict(letters)
    if (work / "fonts.pt").exists():
        letters = torch.load(work / "fonts.pt", map_location="cpu", weights_only=True)
    model.embedding_manager.font_predictor.load_state_dict(letters)
    return model


def load_parts(work: Path, device: torch.device) -> AnyText2:
    """A network with trained autoencoder and recognisers; the rest has random weights."""
    return load_frozen(AnyText2.from_config(CONFIG), work).to(device)


def scaled_parts(work: Path, device: torch.device) -> AnyText2:
    """`load_parts` with the scale factor that the stage `features` found."""
    model = load_parts(work, device)
    model.scale_factor = scale_factor(work)
    return model


def scale_factor(work: Path) -> float:
    """The factor that gives the latents a standard deviation of 1."""
    return json.loads((work / "features.done").read_text())["scale_factor"]


def prepare_features(work: Path, recipe: Recipe) -> None:
    """Create empty columns for `encode_all`."""
    model = AnyText2.from_config(CONFIG, device="meta")
    z, side, neck = model.latent_channels, SIDE // 8, model.embedding_manager.proj[0].in_features
    shapes = ((2, z, side, side), (2, z, side, side), (LINES, neck), (LINES, neck))
    for name, shape in zip(FEATURES, shapes, strict=True):
        np.lib.format.open_memmap(work / f"{name}.npy", mode="w+", dtype=np.float16, shape=(recipe.pictures, *shape))


def encode_all(rank: Rank, work: Path, recipe: Recipe) -> None:
    """Stage `features`: fill this process's rows with posterior moments (2, z, h, w) and features (LINES, neck)."""
    columns = open_columns(work)
    out = {name: np.lib.format.open_memmap(work / f"{name}.npy", mode="r+") for name in FEATURES}
    model = load_parts(work, rank.device)
    starts = range(rank.index * _CHUNK, recipe.pictures, rank.world * _CHUNK)
    for first in tqdm(starts, desc="features", disable=not rank.main, mininterval=5):
        rows = slice(first, min(first + _CHUNK, recipe.pictures))
        images = torch.from_numpy(np.array(columns["img"][rows])).to(rank.device).float() / 127.5 - 1
        boxes = torch.from_numpy(np.unpackbits(columns["positions"][rows], axis=2)).any(1)
        boxes = boxes.view(-1, 1, SIDE, SIDE).float().to(rank.device)
        edit = np.nonzero(columns["edit"][rows])[0]
        with torch.inference_mode(), autocast(rank):
            out["latents"][rows] = _moments(model, images)
            if len(edit):  # what is drawn from nothing has the same masked picture, which Batches encodes once
                masked = (images[edit] - 10 * boxes[edit]).clamp(-1, 1)
                out["masked"][first + edit] = _moments(model, masked)
        with torch.inference_mode():
            glyph, font = _recogniser_features(model, columns, rows)
        out["glyph_features"][rows], out["font_features"][rows] = glyph.half().numpy(), font.half().numpy()


def _moments(model: AnyText2, images: Tensor) -> np.ndarray:
    """Mean and log variance of the posterior, (B, 2, z, h, w) float16."""
    return torch.stack(model.first_stage_model.encode(images), dim=1).half().cpu().numpy()


def _recogniser_features(model: AnyText2, columns: Mapping[str, np.ndarray], rows: slice) -> tuple[Tensor, Tensor]:
    """Features of the glyph lines and of the font hints, (n, LINES, neck) each, on the CPU."""
    manager, device = model.embedding_manager, model.device
    lines = torch.from_numpy(np.unpackbits(columns["gly_line"][rows], axis=2)).view(-1, LINES, 80, 512)
    positions = torch.from_numpy(np.unpackbits(columns["positions"][rows], axis=2)).view(-1, LINES, SIDE, SIDE)
    hints = torch.from_numpy(np.array(columns["font_hint"][rows])).float()[:, None] / 255
    used = torch.from_numpy(columns["n_lines"][rows].astype(np.int64))
    glyph = manager.encode_glyphs(model.text_predictor, lines.to(device), used).cpu()
    # A line without a hint is a black crop. It is read once: its shape changes the features by under 1 %.
    black = manager.encode_fonts(hints[:1].to(device) * 0, positions[:1, :1].to(device), used[:1] * 0 + 1).cpu()
    font = black * (torch.arange(LINES) < used[:, None])[..., None]
    hinted = hints.amax((1, 2, 3)) > 0
    if hinted.any():
        font[hinted] = manager.encode_fonts(hints[hinted].to(device), positions[hinted].to(device), used[hinted]).cpu()
    return glyph, font


def finish_features(work: Path) -> None:
    """Write features.done: the columns are complete, and the scale factor that gives their latents deviation 1.

    Weights that the work folder goes on from keep the scale factor that they were trained with, the configuration's.
    """
    if (work / "diffusion.pt").exists():
        write_json(work / "features.done", {"scale_factor": AnyText2.from_config(CONFIG, device="meta").scale_factor})
        return
    latents = np.load(work / "latents.npy", mmap_mode="r")[:2000].astype(np.float32)
    spread = float(np.sqrt(latents[:, 0].var() + np.exp(latents[:, 1]).mean()))
    write_json(work / "features.done", {"scale_factor": round(1 / spread, 5)})
