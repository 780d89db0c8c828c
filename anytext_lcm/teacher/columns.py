"""The pictures of the mock task with their conditioning, drawn once into memory-mapped columns; their latents and
recogniser features; batches of them. May import: outputs, the rooms data and model.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.outputs import whole_file
from anytext_lcm.teacher.reading import letter_ids, line_transform
from anytext_lcm.teacher.recipe import CONFIG, Rank, Recipe, autocast, averaged
from anytext_lcm.teacher.tasks import training_pictures

LINES = 2  # line slots of the mock task
SIDE = 128


def open_columns(work: Path, count: int, mode: str = "r") -> dict[str, np.ndarray]:
    shapes = {
        "img": (3, SIDE, SIDE),
        "glyphs": (SIDE * SIDE // 8,),
        "positions": (LINES, SIDE * SIDE // 8),
        "gly_line": (LINES, 80 * 512 // 8),
        "font_hint": (SIDE, SIDE),
        "n_lines": (),
        "edit": (),
        "color": (LINES, 3),
    }
    kinds = {"color": np.float32}
    open_ = np.lib.format.open_memmap
    if mode == "r":
        return {k: open_(work / f"{k}.npy", mode="r") for k in shapes}
    return {
        k: open_(work / f"{k}.npy", mode=mode, dtype=kinds.get(k, np.uint8), shape=(count, *s))
        for k, s in shapes.items()
    }


def draw(rank: Rank, work: Path, recipe: Recipe) -> None:
    columns = {k: np.lib.format.open_memmap(work / f"{k}.npy", mode="r+") for k in open_columns(work, 0)}
    dataset = training_pictures(recipe, SIDE, LINES)
    captions = []
    for i in tqdm(range(rank.index, recipe.pictures, rank.world), desc="data", disable=not rank.main):
        item = dataset[i]
        columns["img"][i] = np.round((np.asarray(item["img"]) + 1) * 127.5)
        columns["glyphs"][i] = np.packbits((np.asarray(item["glyphs"]) != 0).any(0))
        columns["positions"][i] = np.packbits(np.asarray(item["positions"]).reshape(LINES, -1), axis=1)
        columns["gly_line"][i] = np.packbits(np.asarray(item["gly_line"]).reshape(LINES, -1), axis=1)
        columns["font_hint"][i] = np.asarray(item["font_hint"])[0]
        columns["n_lines"][i] = item["n_lines"]
        columns["edit"][i] = bool((np.asarray(item["masked_img"]) != -1).any())
        columns["color"][i] = item["color"]
        quads = [np.asarray(quad).tolist() for quad in item["condition_polygons"]]
        captions.append((i, item["img_caption"], item["text_caption"], list(item["texts"]), quads))
    (work / f"captions.{rank.index}.json").write_text(json.dumps(captions))


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all: that the file is there says that a stage is done."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def finish_data(work: Path, world: int) -> None:
    """Puts together what the processes wrote of captions and lines."""
    parts = [work / f"captions.{i}.json" for i in range(world)]
    rows = sorted(row for p in parts for row in json.loads(p.read_text()))
    write_json(work / "lines.json", [[texts, quads] for *_, texts, quads in rows])
    write_json(work / "captions.json", [[image, text] for _, image, text, *_ in rows])
    for p in parts:
        p.unlink()


class Lines:
    """Of each picture, what its lines say and where they stand."""

    def __init__(self, work: Path):
        rows = json.loads((work / "lines.json").read_text())
        self.texts = [[letter_ids(text) for text in texts] for texts, _ in rows]
        self.transforms = [np.stack([line_transform(np.array(quad), SIDE) for quad in quads]) for _, quads in rows]

    def of(self, pictures: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor, list[list[int]]]:
        """(transforms (N, 2, 3), place (N,) of each line's picture among `pictures`, letter ids) of all their lines."""
        place = [k for k, i in enumerate(pictures) for _ in self.texts[i]]
        transforms = torch.from_numpy(np.concatenate([self.transforms[i] for i in pictures]))
        texts = [ids for i in pictures for ids in self.texts[i]]
        return transforms.to(device), torch.tensor(place, device=device), texts


# -- features -------------------------------------------------------------------------------------------------------


def load_parts(work: Path, device: torch.device) -> AnyText2:
    """The network with trained autoencoder and recognisers."""
    return load_frozen(AnyText2.from_config(CONFIG), work).to(device)


def load_frozen(model: AnyText2, work: Path) -> AnyText2:
    """Puts autoencoder and recognisers into a network, as the last stages that trained them left them."""
    decoder = work / "decoder.pt"  # the same encoder, so the latents fit either
    model.first_stage_model.load_state_dict(averaged(decoder if decoder.exists() else work / "vae.pt"))
    letters = torch.load(work / "recogniser.pt", map_location="cpu", weights_only=True)
    model.text_predictor.load_state_dict(letters)
    if (work / "fonts.pt").exists():
        letters = torch.load(work / "fonts.pt", map_location="cpu", weights_only=True)
    model.embedding_manager.font_predictor.load_state_dict(letters)
    return model


def _masked(images: Tensor, hint: Tensor) -> Tensor:
    return (images - 10 * hint).clamp(-1, 1)


def encode_all(rank: Rank, work: Path, recipe: Recipe) -> None:
    columns = open_columns(work, recipe.pictures)
    out = {
        k: np.lib.format.open_memmap(work / f"{k}.npy", mode="r+")
        for k in ("latents", "masked", "glyph_features", "font_features")
    }
    model = load_parts(work, rank.device)
    size = 16
    starts = range(rank.index * size, recipe.pictures, rank.world * size)
    for a in tqdm(starts, desc="features", disable=not rank.main, mininterval=5):
        rows = slice(a, min(a + size, recipe.pictures))
        images = torch.from_numpy(np.array(columns["img"][rows])).to(rank.device).float() / 127.5 - 1
        hint = (
            torch.from_numpy(np.unpackbits(columns["positions"][rows], axis=2)).any(1).view(-1, 1, SIDE, SIDE).float()
        )
        with torch.inference_mode():
            with autocast(rank):
                moments = torch.stack(model.first_stage_model.encode(images), dim=1)
            out["latents"][rows] = moments.half().cpu().numpy()
            edit = np.nonzero(columns["edit"][rows])[0]
            if len(edit):
                with autocast(rank):
                    masked = torch.stack(
                        model.first_stage_model.encode(_masked(images[edit], hint[edit].to(rank.device))),
                        dim=1,
                    )
                out["masked"][a + edit] = masked.half().cpu().numpy()
            glyph, font = _recogniser_features(model, columns, rows)
            out["glyph_features"][rows], out["font_features"][rows] = (
                glyph.half().numpy(),
                font.half().numpy(),
            )


def _recogniser_features(model: AnyText2, columns: dict, rows: slice) -> tuple[Tensor, Tensor]:
    """(n, LINES, neck) each, on the CPU. A black crop is read once: its shape changes the features by under 1 %."""
    manager, device = model.embedding_manager, model.device
    lines = torch.from_numpy(np.unpackbits(columns["gly_line"][rows], axis=2)).view(-1, LINES, 80, 512)
    positions = torch.from_numpy(np.unpackbits(columns["positions"][rows], axis=2)).view(-1, LINES, SIDE, SIDE)
    hints = torch.from_numpy(np.array(columns["font_hint"][rows])).float()[:, None] / 255
    used = torch.from_numpy(columns["n_lines"][rows].astype(np.int64))
    glyph = manager.encode_glyphs(model.text_predictor, lines.to(device), used).cpu()
    black = manager.encode_fonts(hints[:1].to(device) * 0, positions[:1, :1].to(device), used[:1] * 0 + 1).cpu()
    font = black * (torch.arange(LINES) < used[:, None])[..., None]
    hinted = hints.amax((1, 2, 3)) > 0
    if hinted.any():
        font[hinted] = manager.encode_fonts(hints[hinted].to(device), positions[hinted].to(device), used[hinted]).cpu()
    return glyph, font


def prepare_features(work: Path, recipe: Recipe) -> None:
    """Empty columns for what `encode_all` computes."""
    model = AnyText2.from_config(CONFIG, device="meta")
    z, side, neck = model.latent_channels, SIDE // 8, model.embedding_manager.proj[0].in_features
    shapes = {
        "latents": (2, z, side, side),
        "masked": (2, z, side, side),
        "glyph_features": (LINES, neck),
        "font_features": (LINES, neck),
    }
    for name, shape in shapes.items():
        np.lib.format.open_memmap(work / f"{name}.npy", mode="w+", dtype=np.float16, shape=(recipe.pictures, *shape))


def finish_features(work: Path) -> None:
    """Notes that the columns are complete, and the scale that gives the latents a deviation of 1.

    Weights that the work folder goes on from keep the scale that they were trained with, the configuration's.
    """
    if (work / "diffusion.pt").exists():
        write_json(work / "features.done", {"scale_factor": AnyText2.from_config(CONFIG, device="meta").scale_factor})
        return
    latents = np.load(work / "latents.npy", mmap_mode="r")[:2000].astype(np.float32)
    spread = float(np.sqrt(latents[:, 0].var() + np.exp(latents[:, 1]).mean()))
    write_json(work / "features.done", {"scale_factor": round(1 / spread, 5)})


def scale_factor(work: Path) -> float:
    return json.loads((work / "features.done").read_text())["scale_factor"]


def scaled_parts(work: Path, device: torch.device) -> AnyText2:
    """`load_parts` once the latents' deviation is known."""
    model = load_parts(work, device)
    model.scale_factor = scale_factor(work)
    return model


# -- batches --------------------------------------------------------------------------------------------------------


class Batches:
    """Random batches from the columns, as the model's contract with frozen parts already computed."""

    def __init__(self, work: Path, recipe: Recipe, device: torch.device, scale_factor: float):
        self.recipe, self.device, self.scale = recipe, device, scale_factor
        self.columns = open_columns(work, recipe.pictures)
        for name in ("latents", "masked", "glyph_features", "font_features"):
            self.columns[name] = np.load(work / f"{name}.npy", mmap_mode="r")
        self.captions = json.loads((work / "captions.json").read_text())
        blank = load_parts(work, torch.device("cpu"))
        with torch.inference_mode():
            self.empty = torch.stack(blank.first_stage_model.encode(torch.full((1, 3, SIDE, SIDE), -1.0)), dim=1)[
                0
            ].numpy()

    def _sample(self, moments: np.ndarray, rng: np.random.Generator) -> Tensor:
        mean, logvar = moments[:, 0].astype(np.float32), moments[:, 1].astype(np.float32)
        z = mean + np.exp(0.5 * logvar) * rng.standard_normal(mean.shape, dtype=np.float32)
        return torch.from_numpy(z).to(self.device) * self.scale

    def _strip_rows(self, positions: Tensor, n_lines: Tensor, height: int, rng: np.random.Generator) -> list[int]:
        """The first latent row of a strip around a line of each picture, as far as the picture's edges allow."""
        first = []
        for lines, used in zip(positions, n_lines.tolist(), strict=True):
            inside = lines[rng.integers(used)].any(1).nonzero()
            middle = (inside.min() + inside.max()).item() / 2 / 8
            start = round(middle - height / 2 + rng.uniform(-1, 1))
            first.append(min(max(start, 0), SIDE // 8 - height))
        return first

    def prompts(self, rows: np.ndarray, rng: np.random.Generator, dropout: float) -> dict:
        """The model's contract of these pictures but the pictures; `dropout` of the captions are empty."""
        c = {k: self.columns[k][rows] for k in ("glyphs", "positions", "color", "n_lines", "glyph_features",
                                                "font_features", "edit", "masked")}  # fmt: skip
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

    def draw(self, rng: np.random.Generator, count: int, height: int) -> tuple:
        """What DiffusionLoss takes; height: latent rows to look at, all 16 or fewer."""
        rows = np.sort(rng.choice(self.recipe.pictures, size=count, replace=False))
        batch = self.prompts(rows, rng, self.recipe.caption_dropout)
        total = count * self.recipe.copies
        u = (rng.permutation(total) + rng.random(total)) / total  # stratified: every batch covers all levels
        # Half of them where letters are lost: with the weights before this choice, DDIM from true latents at t = 300
        # kept every line, from 500 five of six, from 700 half.
        t = np.where(u < 0.5, 350 + 1200 * u, 2000 * (u - 0.5))
        latents = self._sample(self.columns["latents"][rows], rng)
        noise = rng.standard_normal((total, latents.shape[1], height, latents.shape[3]), dtype=np.float32)
        whole = height == latents.shape[2]
        return (
            batch,
            latents,
            torch.from_numpy(t).long().clamp(0, 999).to(self.device),
            torch.from_numpy(noise).to(self.device),
            None if whole else self._strip_rows(batch["positions"], batch["n_lines"], height, rng),
        )
