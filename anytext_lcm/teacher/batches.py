"""Random batches from the columns, and the lines of text in them."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anytext_lcm.teacher.columns import LINES, SIDE, open_columns
from anytext_lcm.teacher.features import FEATURES, load_parts
from anytext_lcm.teacher.reading import letter_ids, line_transform
from anytext_lcm.teacher.recipe import Recipe

_OF_PROMPT = ("glyphs", "positions", "color", "n_lines", "glyph_features", "font_features", "edit", "masked")


class Lines:
    """Letter ids and places of the lines of each picture."""

    def __init__(self, work: Path):
        rows = json.loads((work / "lines.json").read_text())
        self.texts = [[letter_ids(text) for text in texts] for texts, _ in rows]
        self.transforms = [np.stack([line_transform(np.array(quad), SIDE) for quad in quads]) for _, quads in rows]

    def of(self, pictures: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor, list[list[int]]]:
        """All lines of these pictures: transforms (N, 2, 3), indices into `pictures` (N,), letter ids."""
        place = [k for k, i in enumerate(pictures) for _ in self.texts[i]]
        transforms = torch.from_numpy(np.concatenate([self.transforms[i] for i in pictures]))
        texts = [ids for i in pictures for ids in self.texts[i]]
        return transforms.to(device), torch.tensor(place, device=device), texts


class Batches:
    """Random batches in the model's contract, with the outputs of its frozen parts already computed."""

    def __init__(self, work: Path, recipe: Recipe, device: torch.device, scale_factor: float):
        self.recipe, self.device, self.scale = recipe, device, scale_factor
        self.columns = open_columns(work)
        for name in FEATURES:
            self.columns[name] = np.load(work / f"{name}.npy", mmap_mode="r")
        self.captions = json.loads((work / "captions.json").read_text())
        vae = load_parts(work, torch.device("cpu")).first_stage_model
        with torch.inference_mode():  # (2, z, h, w): the masked picture where a picture is drawn from nothing
            self.empty = torch.stack(vae.encode(torch.full((1, 3, SIDE, SIDE), -1.0)), dim=1)[0].numpy()

    def prompts(self, rows: np.ndarray, rng: np.random.Generator, dropout: float) -> dict:
        """The model's contract of these pictures without the pictures; a share `dropout` of captions is empty."""
        c = {name: self.columns[name][rows] for name in _OF_PROMPT}
        masked = np.where(c["edit"].astype(bool)[:, None, None, None, None], c["masked"], self.empty[None])
        captions = [self.captions[i] if rng.random() >= dropout else ["", ""] for i in rows]
        return {
            "glyphs": torch.from_numpy(np.unpackbits(c["glyphs"], axis=1)).view(-1, 1, SIDE, SIDE),
            "positions": torch.from_numpy(np.unpackbits(c["positions"], axis=2)).view(-1, LINES, SIDE, SIDE),
            "color": torch.from_numpy(c["color"]),
            "n_lines": torch.from_numpy(c["n_lines"].astype(np.int64)),
            "glyph_features": torch.from_numpy(c["glyph_features"]).float(),
            "font_features": torch.from_numpy(c["font_features"]).float(),
            "masked_latents": self._sample(masked, rng),
            "img_caption": [image for image, _ in captions],
            "text_caption": [text for _, text in captions],
        }

    def draw(self, rng: np.random.Generator, count: int) -> tuple[dict, Tensor, Tensor, Tensor]:
        """The arguments of `DiffusionLoss`, of `count` pictures."""
        rows = np.sort(rng.choice(self.recipe.pictures, size=count, replace=False))
        batch = self.prompts(rows, rng, self.recipe.caption_dropout)
        total = count * self.recipe.noise_levels_per_picture
        u = (rng.permutation(total) + rng.random(total)) / total  # stratified: every batch covers all levels
        # Half of them where letters are lost: with the weights before this choice, DDIM from true latents at t = 300
        # kept every line, from 500 five of six, from 700 half.
        t = np.where(u < 0.5, 350 + 1200 * u, 2000 * (u - 0.5))
        latents = self._sample(self.columns["latents"][rows], rng)
        noise = rng.standard_normal((total, *latents.shape[1:]), dtype=np.float32)
        return (
            batch,
            latents,
            torch.from_numpy(t).long().clamp(0, 999).to(self.device),
            torch.from_numpy(noise).to(self.device),
        )

    def _sample(self, moments: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Scaled latents (B, z, h, w), drawn from posteriors (B, 2, z, h, w)."""
        mean, logvar = moments[:, 0].astype(np.float32), moments[:, 1].astype(np.float32)
        z = mean + np.exp(0.5 * logvar) * rng.standard_normal(mean.shape, dtype=np.float32)
        return torch.from_numpy(z).to(self.device) * self.scale
