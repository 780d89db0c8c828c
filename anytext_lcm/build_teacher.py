"""Rebuilds the embedded teacher from nothing: `python -m anytext_lcm.build_teacher`.

Seven stages, each of which can be run alone; vae, diffusion and writing go on where they were interrupted:
    data        pictures and conditioning of the mock task, drawn once into memory-mapped columns
    vae         a linear encoder from principal components, then its decoder on text-centred crops
    recogniser  CTC on drawn lines; one set of weights for both of AnyText2's predictors, frozen afterwards
    features    latents and recogniser features of every picture, so that the diffusion runs on what is left
    diffusion   UNet, WriteNet, text tower and the trainable part of the embedding manager, on v
    reader      CTC on lines cut out of true latents
    writing     the diffusion goes on, and what it makes of its own half-drawn pictures must be legible to the reader
and `export`, which writes the half-precision file of `anytext_lcm/assets`.

Runs on all CPU cores as single-threaded processes that average gradients (two OpenMP threads of one process slow each
other down on a busy machine), or on one GPU. May import: data, model, lcm, reading.
"""

import argparse
import json
import math
import os
import string
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from anytext_lcm.data.mock import MockDataset
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.model.anytext2 import AnyText2, Conditioning
from anytext_lcm.model.vae import AutoencoderKL
from anytext_lcm.reading import (
    Reader,
    ReadingLoss,
    ctc,
    cut_lines,
    evenly_spaced,
    letter_ids,
    line_transform,
    moved,
    read,
)

CONFIG = "models_yaml/anytext2_tiny.yaml"
STAGES = ("data", "vae", "recogniser", "features", "diffusion", "reader", "writing", "export")
CHARACTERS = "".join(chr(c) for c in range(33, 127)) + " "  # class 0 is CTC's blank


@dataclass(frozen=True)
class Recipe:
    """From nothing in one run; the reason stands beside each number. The shipped weights come from eight
    shorter runs, between which data and settings were mended (anytext_lcm/assets/README.md).
    """

    seed: int = 0
    pictures: int = 28_000  # the diffusion sees each four times or less, at four noise levels a time
    vae_steps: int = 1500
    vae_batch: int = 12  # 64 px crops a process
    vae_lr: float = 2e-3
    posterior_noise: float = 0.05  # of latents with deviation 1
    decoder_noise: float = 0.25  # largest noise the decoder is trained to bear: the diffusion's latents are not exact
    recogniser_steps: int = 600
    recogniser_batch: int = 32
    diffusion_steps: int = 10_000
    diffusion_batch: int = 4  # pictures a process
    strip_share: float = 0.6  # the first of the steps look at half a picture around a line, at half the cost
    strip_batch: int = 6  # strips a process
    copies: int = 4  # noise levels a picture; they share its control branch: 35 % more samples a second than 2
    diffusion_lr: float = 2e-3
    decay: float = 0.5  # share of the steps over which the rate falls to zero
    ema: float = 0.998
    caption_dropout: float = 0.1  # both captions empty: trains the branch that guidance subtracts
    text_weight: float = 5.0  # loss weight inside the text boxes, about a quarter of a picture
    reader_steps: int = 2000
    reader_batch: int = 16  # pictures a process
    reader_noise: float = 0.5  # largest noise on the latents it learns to read
    writing_steps: int = 2000  # the shipped weights: 1,150 with an earlier loss and 1,500 with this one
    writing_lr: float = 4e-4
    writing_batch: int = 10  # half-drawn pictures a process
    writing_pool: int = 120  # that many are half drawn at a time, on each process
    writing_ahead: int = 24  # of these are drawn on without being learned from: fewer looks at more prompts
    writing_strides: tuple[int, ...] = (50, 100)  # timesteps from look to look: twenty steps or ten
    writing_jump: tuple[int, int] = (100, 300)  # timesteps from the first estimate to the second
    writing_true: tuple[int, int] = (3, 3)  # true pictures a process, and noise levels of each, of diffusion's loss
    writing_weight: float = 0.3  # of the reading loss of each of the two estimates
    writing_noise: float = 0.15  # largest noise on the latents that are read
    writing_guidance: float = 2.0  # of half of the DDIM steps; the other half go without
    writing_ema: float = 0.98


# -- processes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rank:
    """One of the processes of a stage."""

    index: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.index == 0

    def rng(self, *keys: int) -> np.random.Generator:
        return np.random.default_rng([self.index, *keys])


def _run_rank(index: int, world: int, port: int, stage, work: Path, recipe: Recipe) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(index), WORLD_SIZE=str(world))
    device = torch.device("cuda", index) if torch.cuda.is_available() else torch.device("cpu")
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=index, world_size=world)
    try:
        stage(Rank(index, world, device), work, recipe)
    finally:
        if world > 1:
            dist.destroy_process_group()


def _launch(stage, work: Path, recipe: Recipe, world: int) -> None:
    """Runs stage(rank, work, recipe) in `world` fresh processes (spawn: forking after OpenMP has run can hang)."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_run_rank, args=(world, port, stage, work, recipe), nprocs=world)


def _parallel(module: nn.Module, rank: Rank) -> nn.Module:
    return DistributedDataParallel(module, gradient_as_bucket_view=True) if rank.world > 1 else module


def _rate(step: int, total: int, peak: float, decay: float, warmup: int = 200) -> float:
    """Linear warm-up, constant, linear fall over the last share `decay`: a longer run shares its beginning."""
    return peak * min(1.0, (step + 1) / warmup, (total - step) / max(1, decay * total))


def _save(path: Path, content: object) -> None:
    unfinished = path.with_suffix(".partial")
    torch.save(content, unfinished)
    unfinished.replace(path)


def _save_training(
    path: Path, step: int, module: nn.Module, average: AveragedModel, optimisers: list[torch.optim.Optimizer]
) -> None:
    """What `_restore` takes up again."""
    states = [o.state_dict() for o in optimisers]
    _save(path, dict(raw=module.state_dict(), average=average.state_dict(), optimisers=states, step=step))


def _autocast(rank: Rank):
    """bfloat16 where the hardware multiplies it; without AVX512-BF16 a CPU takes ten times as long as in float32."""
    fast = rank.device.type != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.autocast(rank.device.type, torch.bfloat16, enabled=fast)


def _restore(path: Path, module: nn.Module, average: AveragedModel, *optimisers: torch.optim.Optimizer) -> int:
    """Puts a training state back where there is one and returns its step."""
    if not path.exists():
        return 0
    saved = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(saved["raw"])
    average.load_state_dict(saved["average"])
    for optimiser, state in zip(optimisers, saved.get("optimisers", ()), strict=False):
        optimiser.load_state_dict(state)  # weights that `start_from` put there have none
    return saved["step"]


def start_from(checkpoint: Path, work: Path, recipe: Recipe) -> None:
    """Lays finished weights out as the stages' states: autoencoder and recogniser are kept, the diffusion goes on."""
    model = AnyText2.from_config(CONFIG).load_checkpoint(checkpoint)

    def state(module: nn.Module, step: int) -> dict:
        average = {f"module.{k}": v for k, v in module.state_dict().items()} | {"n_averaged": torch.tensor(1)}
        return dict(raw=module.state_dict(), average=average, step=step)

    _save(work / "vae.pt", state(model.first_stage_model, recipe.vae_steps))
    _save(work / "recogniser.pt", model.text_predictor.state_dict())
    _save(work / "diffusion.pt", state(model, 0))


# -- data -----------------------------------------------------------------------------------------------------------

LINES = 2  # line slots of the mock task
SIDE = 128


def _columns(work: Path, count: int, mode: str = "r") -> dict[str, np.ndarray]:
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


def _draw(rank: Rank, work: Path, recipe: Recipe) -> None:
    columns = {k: np.lib.format.open_memmap(work / f"{k}.npy", mode="r+") for k in _columns(work, 0)}
    dataset = MockDataset(recipe.pictures, seed=recipe.seed, image_size=SIDE, max_lines=LINES)
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


def stage_data(work: Path, recipe: Recipe, world: int) -> None:
    if (work / "captions.json").exists() and (work / "lines.json").exists():
        return
    _columns(work, recipe.pictures, mode="w+")
    _launch(_draw, work, recipe, world)
    finish_data(work, world)


def finish_data(work: Path, world: int) -> None:
    """Puts together what the processes wrote of captions and lines."""
    parts = [work / f"captions.{i}.json" for i in range(world)]
    rows = sorted(row for p in parts for row in json.loads(p.read_text()))
    (work / "lines.json").write_text(json.dumps([[texts, quads] for *_, texts, quads in rows]))
    (work / "captions.json").write_text(json.dumps([[image, text] for _, image, text, *_ in rows]))
    for p in parts:
        p.unlink()


class _Lines:
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


# -- autoencoder ----------------------------------------------------------------------------------------------------

CROP = 64


def _crops(columns: dict, rng: np.random.Generator, count: int, whole: bool) -> tuple[Tensor, Tensor]:
    """Crops around text (images, -1..1) and where text is in them (0/1)."""
    images, masks = [], []
    for i in rng.integers(len(columns["img"]), size=count):
        mask = np.unpackbits(columns["positions"][i], axis=1).any(0).reshape(SIDE, SIDE)
        image = columns["img"][i]
        if not whole:
            ys, xs = np.nonzero(mask)
            at = rng.integers(len(ys)) if rng.random() < 0.8 else None
            y, x = (rng.integers(SIDE), rng.integers(SIDE)) if at is None else (ys[at], xs[at])
            y, x = (int(np.clip(v - CROP // 2, 0, SIDE - CROP)) // 8 * 8 for v in (y, x))
            image, mask = image[:, y : y + CROP, x : x + CROP], mask[y : y + CROP, x : x + CROP]
        images.append(image)
        masks.append(mask)
    return torch.from_numpy(np.stack(images)).float() / 127.5 - 1, torch.from_numpy(np.stack(masks)).float()[:, None]


def _fit_patches(columns: dict, vae: AutoencoderKL, noise: float, text_weight: float) -> None:
    """Encoder and linear decoder from the principal components of 3,000 pictures' squares, text weighted up.

    Channels are divided by the root of their deviation: coarse ones are still larger than fine ones, so that the
    noise of diffusion buries them later. All together have variance 1; `noise` is the posterior's deviation.
    """
    conv, linear = vae.encoder.conv, vae.decoder.linear
    patch, z = conv.stride[0], linear.in_channels
    images = np.array(columns["img"][:3000], dtype=np.float32) / 127.5 - 1
    squares = images.reshape(len(images), 3, SIDE // patch, patch, SIDE // patch, patch).transpose(0, 2, 4, 1, 3, 5)
    squares = squares.reshape(-1, 3 * patch * patch)
    masks = np.unpackbits(np.array(columns["positions"][:3000]), axis=2).any(1)
    text = masks.reshape(-1, SIDE // patch, patch, SIDE // patch, patch).mean((2, 4)).reshape(-1)
    weight = 1 + (text_weight - 1) * text
    mean = np.average(squares, axis=0, weights=weight)
    squares = squares - mean
    covariance = (squares * weight[:, None]).T @ squares / weight.sum()
    axes = np.linalg.eigh(covariance.astype(np.float64))[1][:, ::-1][:, :z]  # the largest first
    spread = (squares @ axes).std(0)
    gain = spread**-0.5 / np.sqrt(spread.mean())  # channel i gets the deviation sqrt(spread_i), then mean square 1
    with torch.no_grad():
        conv.weight.zero_(), conv.bias.zero_()
        conv.weight[:z] = torch.from_numpy((axes * gain).T.copy()).float().view(z, 3, patch, patch)
        conv.bias[:z] = torch.from_numpy(-(mean @ axes) * gain).float()
        conv.bias[z:] = 2 * math.log(noise)
        linear.weight.copy_(torch.from_numpy((axes / gain).T.copy()).float().view(z, 3, patch, patch))
        linear.bias.copy_(torch.from_numpy(mean.reshape(3, -1).mean(1)).float())
        for identity in (vae.quant_conv, vae.post_quant_conv):
            identity.weight.copy_(torch.eye(identity.out_channels)[:, :, None, None]), identity.bias.zero_()
        vae.decoder.correction.conv_out.weight.zero_(), vae.decoder.correction.conv_out.bias.zero_()
    vae.encoder.requires_grad_(False), vae.quant_conv.requires_grad_(False)


class _DecoderLoss(nn.Module):
    """Pixels and edges after a decoder that sees latents with up to `noise` added: the diffusion's are not exact."""

    def __init__(self, vae: nn.Module, text_weight: float, noise: float):
        super().__init__()
        self.vae, self.text_weight, self.noise = vae, text_weight, noise

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        with torch.no_grad():
            z, _ = self.vae.encode(images)
            z = z + self.noise * torch.rand(len(z), 1, 1, 1, device=z.device) * torch.randn_like(z)
        error = self.vae.decode(z).float() - images
        weight = 1 + (self.text_weight - 1) * text
        edges = sum((error.diff(dim=d).abs() * weight.narrow(d, 1, weight.shape[d] - 1)).mean() for d in (2, 3))
        return ((error.abs() + error.square()) * weight).mean() + 0.5 * edges


def _train_autoencoder(rank: Rank, work: Path, recipe: Recipe) -> None:
    torch.manual_seed(recipe.seed)
    columns = _columns(work, recipe.pictures)
    total, path = recipe.vae_steps, work / "vae.pt"
    vae = AnyText2.from_config(CONFIG).first_stage_model.train()
    _fit_patches(columns, vae, recipe.posterior_noise, recipe.text_weight)
    vae.to(rank.device, memory_format=torch.channels_last)
    parameters = [p for p in vae.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.vae_lr, betas=(0.9, 0.99), weight_decay=1e-4)
    average = AveragedModel(vae, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    start = _restore(path, vae, average, optimiser)
    loss_of = _parallel(_DecoderLoss(vae, recipe.text_weight, recipe.decoder_noise), rank)
    torch.manual_seed(1000 * start + rank.index)
    bar = tqdm(range(start, total), initial=start, total=total, desc="vae", disable=not rank.main, mininterval=5)
    for step in bar:
        whole = step >= 0.9 * total  # the last steps see the edges of whole pictures too
        batch = recipe.vae_batch // (3 if whole else 1) * (8 if rank.device.type == "cuda" else 1)
        images, text = _crops(columns, rank.rng(1, step), batch, whole)
        for group in optimiser.param_groups:
            group["lr"] = _rate(step, total, recipe.vae_lr, 0.5)
        with _autocast(rank):
            loss = loss_of(images.to(rank.device, memory_format=torch.channels_last), text.to(rank.device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        average.update_parameters(vae)
        if rank.main and step % 25 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if rank.main and (step % 200 == 199 or step == total - 1):
            _save_training(path, step + 1, vae, average, [optimiser])


def _averaged(path: Path) -> dict[str, Tensor]:
    """The averaged weights of a training state, under their own names."""
    saved = torch.load(path, map_location="cpu", weights_only=True)["average"]
    return {k.removeprefix("module."): v for k, v in saved.items() if k != "n_averaged"}


# -- recogniser -----------------------------------------------------------------------------------------------------


def _train_recogniser(rank: Rank, work: Path, recipe: Recipe) -> None:
    from anytext_lcm.data.fonts import TEXT_FONTS
    from anytext_lcm.data.glyphs import draw_glyph_line
    from anytext_lcm.model.recogniser import ctc_loss, preprocess

    torch.manual_seed(recipe.seed)
    network = AnyText2.from_config(CONFIG).text_predictor.train().to(rank.device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    fonts = list(TEXT_FONTS)
    bar = tqdm(range(recipe.recogniser_steps), desc="recogniser", disable=not rank.main, mininterval=5)
    for step in bar:
        rng = rank.rng(2, step)
        alphabet = list(string.ascii_letters + string.digits)
        texts = ["".join(rng.choice(alphabet, size=rng.integers(2, 9))) for _ in range(recipe.recogniser_batch)]
        lines = [draw_glyph_line(t, fonts[rng.integers(len(fonts))]) for t in texts]
        images = [torch.from_numpy(line).float().expand(3, -1, -1) * 255 for line in lines]
        for group in optimiser.param_groups:
            group["lr"] = _rate(step, recipe.recogniser_steps, 2e-3, 0.5, warmup=50)
        output = network(preprocess(images).to(rank.device))
        targets = [[CHARACTERS.index(c) + 1 for c in t] for t in texts]
        loss = ctc_loss(output["ctc"], targets).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        if step % 25 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    _save(work / "recogniser.pt", network.state_dict())


# -- features -------------------------------------------------------------------------------------------------------


def load_parts(work: Path, device: torch.device) -> AnyText2:
    """The network with trained autoencoder and recognisers."""
    model = AnyText2.from_config(CONFIG)
    model.first_stage_model.load_state_dict(_averaged(work / "vae.pt"))
    letters = torch.load(work / "recogniser.pt", map_location="cpu", weights_only=True)
    model.text_predictor.load_state_dict(letters)
    model.embedding_manager.font_predictor.load_state_dict(letters)
    return model.to(device)


def _masked(images: Tensor, hint: Tensor) -> Tensor:
    return (images - 10 * hint).clamp(-1, 1)


def _encode_all(rank: Rank, work: Path, recipe: Recipe) -> None:
    columns = _columns(work, recipe.pictures)
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
            with _autocast(rank):
                moments = torch.stack(model.first_stage_model.encode(images), dim=1)
            out["latents"][rows] = moments.half().cpu().numpy()
            edit = np.nonzero(columns["edit"][rows])[0]
            if len(edit):
                with _autocast(rank):
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
    """Empty columns for what `_encode_all` computes."""
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
    """Notes that the columns are complete, and the scale that gives the latents a deviation of 1."""
    latents = np.load(work / "latents.npy", mmap_mode="r")[:2000].astype(np.float32)
    spread = float(np.sqrt(latents[:, 0].var() + np.exp(latents[:, 1]).mean()))
    (work / "features.done").write_text(json.dumps({"scale_factor": round(1 / spread, 5)}))


def _scale_factor(work: Path) -> float:
    return json.loads((work / "features.done").read_text())["scale_factor"]


def _scaled_parts(work: Path, device: torch.device) -> AnyText2:
    """`load_parts` once the latents' deviation is known."""
    model = load_parts(work, device)
    model.scale_factor = _scale_factor(work)
    return model


def stage_features(work: Path, recipe: Recipe, world: int) -> None:
    if (work / "features.done").exists():
        return
    prepare_features(work, recipe)
    _launch(_encode_all, work, recipe, world)
    finish_features(work)


# -- diffusion ------------------------------------------------------------------------------------------------------


class _DiffusionLoss(nn.Module):
    """v-prediction (Salimans & Ho 2022) with several noise levels a picture, weighted up inside the text boxes.

    rows, if given, are the first latent rows of the strip of each picture that is looked at, as high as the noise.
    """

    def __init__(self, model: AnyText2, copies: int, text_weight: float):
        super().__init__()
        self.model, self.copies, self.text_weight = model, copies, text_weight

    def forward(
        self, batch: dict, latents: Tensor, t: Tensor, noise: Tensor, rows: list[int] | None
    ) -> tuple[Tensor, Tensor]:
        model, copies = self.model, self.copies
        conditioning = model.condition(batch)
        if rows is not None:
            conditioning, latents = _strips(conditioning, latents, rows, noise.shape[2])
        control = [c.repeat(copies, 1, 1, 1) for c in model.control(conditioning)]
        x0 = latents.repeat(copies, 1, 1, 1)
        abar = model.alphas_cumprod[t].view(-1, 1, 1, 1)
        noisy = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
        target = abar.sqrt() * noise - (1 - abar).sqrt() * x0
        context = conditioning.image_context.repeat(copies, 1, 1)
        output = model.model.diffusion_model(noisy, t, context, control=control).float()
        text = F.adaptive_avg_pool2d(conditioning.positions.float().clamp(max=1), x0.shape[2:]).repeat(copies, 1, 1, 1)
        weight = 1 + (self.text_weight - 1) * text
        errors = (output - target).square().mean(1, keepdim=True)
        return (errors * weight).sum() / weight.sum(), errors.detach().mean((1, 2, 3))


def _strips(conditioning: Conditioning, latents: Tensor, rows: list[int], height: int) -> tuple[Conditioning, Tensor]:
    """Picture i from latent row rows[i] on, `height` latent rows of it."""
    scale = SIDE // latents.shape[2]

    def cut(x: Tensor, unit: int) -> Tensor:
        return torch.stack([p[:, unit * y : unit * (y + height)] for p, y in zip(x, rows, strict=True)])

    parts = {"glyphs": scale, "positions": scale, "masked_latents": 1}
    cuts = {name: cut(getattr(conditioning, name), unit) for name, unit in parts.items()}
    return replace(conditioning, **cuts), cut(latents, 1)


class _Batches:
    """Random batches from the columns, as the model's contract with frozen parts already computed."""

    def __init__(self, work: Path, recipe: Recipe, device: torch.device, scale_factor: float):
        self.recipe, self.device, self.scale = recipe, device, scale_factor
        self.columns = _columns(work, recipe.pictures)
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
        """What _DiffusionLoss takes; height: latent rows to look at, all 16 or fewer."""
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


def trainable(model: AnyText2) -> list[nn.Parameter]:
    """Everything but the autoencoder and the two recognisers."""
    model.requires_grad_(True)
    for frozen in (model.first_stage_model, model.text_predictor, model.embedding_manager.font_predictor):
        frozen.requires_grad_(False)
    return [p for p in model.parameters() if p.requires_grad]


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, weight matrix by weight matrix (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon), scaled to the size of Adam's (Liu et al., arXiv:2502.16982, eq. 4).

    torch.optim.Muon takes matrices alone and works in bfloat16; this one takes convolutions as (out, in * k * k),
    works in float32, and with several ranks each does its share and sums up. All gradients must be averaged.
    """

    def __init__(self, params, lr: float, rank: Rank, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.rank = rank

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            params = group["params"]
            by_shape: dict[tuple[int, int], list[int]] = {}
            for i, p in enumerate(params):
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p, memory_format=torch.contiguous_format)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                by_shape.setdefault((len(p), p[0].numel()), []).append(i)
            updates: list[Tensor] = [None] * len(params)
            flat = torch.zeros(sum(p.numel() for p in params), device=params[0].device)
            for i, (p, part) in enumerate(zip(params, flat.split([p.numel() for p in params]), strict=True)):
                updates[i] = part.view(p.shape)
            for shape, members in by_shape.items():
                mine = members[self.rank.index :: self.rank.world]
                if not mine:
                    continue
                grads, momenta = ([params[i].grad for i in mine], [self.state[params[i]]["momentum"] for i in mine])
                nesterov = [g.lerp(m, group["momentum"]) for g, m in zip(grads, momenta, strict=True)]
                whitened = _orthogonal(torch.stack([g.reshape(shape) for g in nesterov]))
                for i, update in zip(mine, whitened.unbind(), strict=True):
                    updates[i].copy_(update.view(params[i].shape))
            if self.rank.world > 1:
                dist.all_reduce(flat)
            for p, update in zip(params, updates, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-0.2 * group["lr"] * max(len(p), p[0].numel()) ** 0.5)


def _orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """(n, a, b) to matrices with the same singular vectors and singular values near 1 (Newton-Schulz, quintic)."""
    x = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if matrices.shape[1] > matrices.shape[2] else x


def _optimisers(model: AnyText2, recipe: Recipe, rank: Rank) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside UNet and WriteNet, AdamW for all else (ends, biases, norms, text parts)."""
    ends = {id(model.model.diffusion_model.input_blocks[0][0].weight), id(model.model.diffusion_model.out[2].weight)}
    ends |= {id(model.control_model.input_blocks[0][0].weight), id(model.control_model.fuse_block_za.weight)}
    ends |= {id(p) for stack in (model.control_model.glyph_block, model.control_model.position_block)
             for p in stack.parameters()}  # fmt: skip
    inner = [
        p
        for net in (model.model, model.control_model)
        for p in net.parameters()
        if p.requires_grad and p.ndim > 1 and id(p) not in ends
    ]
    chosen = {id(p) for p in inner}
    others = [p for p in trainable(model) if id(p) not in chosen]
    return [
        Muon(inner, lr=recipe.diffusion_lr, rank=rank),
        torch.optim.AdamW(others, lr=recipe.diffusion_lr, betas=(0.9, 0.99), weight_decay=1e-3, fused=True),
    ]


def _train_diffusion(rank: Rank, work: Path, recipe: Recipe) -> None:
    torch.manual_seed(recipe.seed)
    model = _scaled_parts(work, rank.device)
    for net in (model.model, model.control_model):
        net.to(memory_format=torch.channels_last)
    parameters = trainable(model)
    optimisers = _optimisers(model, recipe, rank)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
    batches = _Batches(work, recipe, rank.device, model.scale_factor)
    path = work / "diffusion.pt"
    start = _restore(path, model, average, *optimisers)
    loss_of = _parallel(_DiffusionLoss(model, recipe.copies, recipe.text_weight), rank)
    log = (work / "diffusion.jsonl").open("a") if rank.main else None
    bar = tqdm(
        range(start, recipe.diffusion_steps),
        initial=start,
        total=recipe.diffusion_steps,
        desc="diffusion",
        disable=not rank.main,
        mininterval=10,
    )
    clock, mean = time.monotonic(), 0.0
    for step in bar:
        strips = step < recipe.strip_share * recipe.diffusion_steps
        count = recipe.strip_batch if strips else recipe.diffusion_batch
        count *= 16 if rank.device.type == "cuda" else 1
        batch, latents, t, noise, rows = batches.draw(rank.rng(3, step), count, 8 if strips else 16)
        for group in (g for o in optimisers for g in o.param_groups):
            group["lr"] = _rate(step, recipe.diffusion_steps, recipe.diffusion_lr, recipe.decay)
        with _autocast(rank):
            loss, errors = loss_of(batch, latents, t, noise, rows)
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        average.update_parameters(model)
        mean += loss.item()
        if rank.main and step % 50 == 49:
            bands = [round(errors[(t >= a) & (t < a + 250)].mean().item(), 4) for a in (0, 250, 500, 750)]
            row = dict(
                step=step + 1,
                loss=round(mean / 50, 5),
                bands=bands,
                seconds=round(time.monotonic() - clock, 1),
            )
            log.write(json.dumps(row) + "\n"), log.flush()
            bar.set_postfix(loss=f"{row['loss']:.4f}")
            mean = 0.0
        if rank.main and (step % 250 == 249 or step == recipe.diffusion_steps - 1):
            _save_training(path, step + 1, model, average, optimisers)


# -- reader and writing ------------------------------------------------------------------------------------------------


def _to_pictures(model: AnyText2):
    """Scaled latents -> pictures by the linear part of the decoder."""
    vae = model.first_stage_model
    return lambda latents: vae.decoder.linear(vae.post_quant_conv(latents / model.scale_factor))


class _ReaderLoss(nn.Module):
    def __init__(self, reader: Reader):
        super().__init__()
        self.reader = reader

    def forward(self, lines: Tensor, texts: list[list[int]], first: bool) -> Tensor:
        logits = self.reader(lines)
        loss = ctc(logits, texts).mean()
        return 0.3 * loss + evenly_spaced(logits, texts) if first else loss


def _train_reader(rank: Rank, work: Path, recipe: Recipe) -> None:
    torch.manual_seed(recipe.seed)
    model = _scaled_parts(work, rank.device)
    to_pictures = _to_pictures(model)
    lines, latents = _Lines(work), np.load(work / "latents.npy", mmap_mode="r")
    reader = Reader().to(rank.device)
    loss_of = _parallel(_ReaderLoss(reader), rank)
    optimiser = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=1e-3)
    generator = torch.Generator().manual_seed(rank.index)
    kept_back = max(1, recipe.pictures // 50)  # the last pictures: what it reads in them is printed
    bar = tqdm(range(recipe.reader_steps), desc="reader", disable=not rank.main, mininterval=5)

    def cut(rows: np.ndarray, noise: float, move: bool) -> tuple[Tensor, list[list[int]]]:
        transforms, place, texts = lines.of(rows, rank.device)
        z = torch.from_numpy(latents[rows][:, 0].astype(np.float32)) * model.scale_factor
        z = z + noise * torch.rand(len(z), 1, 1, 1, generator=generator) * torch.randn(z.shape, generator=generator)
        transforms = moved(transforms, generator) if move else transforms
        with torch.no_grad():
            return cut_lines(to_pictures(z.to(rank.device)), transforms, place), texts

    for step in bar:
        rng = rank.rng(4, step)
        rows = rng.integers(recipe.pictures - kept_back, size=recipe.reader_batch)
        crops, texts = cut(rows, recipe.reader_noise, move=True)
        if rng.random() < 0.3:
            crops = F.avg_pool2d(crops, 3, 1, 1)  # estimates of clean latents are blurred
        for group in optimiser.param_groups:
            group["lr"] = _rate(step, recipe.reader_steps, 2e-3, 0.6, warmup=100)
        loss = loss_of(crops, texts, step < recipe.reader_steps // 4)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 5.0)
        optimiser.step()
        if rank.main and step % 25 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    if rank.main:
        rows = np.arange(recipe.pictures - kept_back, recipe.pictures)[:256]
        crops, texts = cut(rows, 0.0, move=False)
        with torch.inference_mode():
            right = [a == b for a, b in zip(map(letter_ids, read(reader.eval()(crops))), texts, strict=True)]
        print(f"reader: {np.mean(right):.3f} of {len(right)} lines it did not train on", file=sys.stderr)
        _save(work / "reader.pt", reader.state_dict())


class _Trajectories:
    """Pictures half drawn by DDIM from noise, at all levels; what is done is replaced by noise for another prompt."""

    def __init__(self, model: AnyText2, batches: _Batches, recipe: Recipe, rng: np.random.Generator):
        self.model, self.batches, self.recipe, self.rng = model, batches, recipe, rng
        self.schedule = NoiseSchedule(model.alphas_cumprod)
        size = recipe.writing_pool
        self.x = torch.empty(size, *batches.columns["latents"].shape[2:], device=model.device)
        self.rows, self.stride, self.t = (np.zeros(size, np.int64) for _ in range(3))
        for place in range(size):
            self._begin(place)
        ends = np.linspace(999, max(recipe.writing_strides), size)  # all levels are there from the first step on
        while len(behind := np.flatnonzero(self.t > ends)):
            for part in np.array_split(behind, len(behind) // 16 + 1):
                self.advance(part)

    def _begin(self, place: int) -> None:
        self.rows[place] = self.rng.integers(self.recipe.pictures)
        self.stride[place] = self.rng.choice(self.recipe.writing_strides)
        self.t[place] = 999 - self.rng.integers(self.stride[place] // 2)  # its own shift: all timesteps come up
        noise = self.rng.standard_normal(self.x.shape[1:], dtype=np.float32)
        self.x[place] = torch.from_numpy(noise).to(self.x.device)

    def timesteps(self, places: np.ndarray) -> Tensor:
        """(n,) int64, of the pictures at these places."""
        return torch.from_numpy(self.t[places]).to(self.x.device)

    def batch(self, places: np.ndarray, empty: bool = False) -> dict:
        return self.batches.prompts(self.rows[places], self.rng, 1.0 if empty else 0.0)

    def predictor(self, batch: dict) -> Callable[[Tensor, Tensor], Tensor]:
        """(latents, timesteps) -> velocity, for the prompts of the batch."""
        conditioning = self.model.condition(batch)
        control = self.model.control(conditioning)
        unet, context = self.model.model.diffusion_model, conditioning.image_context
        return lambda x, t: unet(x, t, context, control=control).float()

    @torch.no_grad()
    def advance(self, places: np.ndarray, v: Tensor | None = None) -> None:
        """One DDIM step. v (n, z, h, w): the velocity with captions, where it is known already."""
        t, x = self.timesteps(places), self.x[places]
        v = self.predictor(self.batch(places))(x, t) if v is None else v
        if self.rng.random() < 0.5:
            bare = self.predictor(self.batch(places, empty=True))(x, t)
            v = bare + self.recipe.writing_guidance * (v - bare)
        self.t[places] -= self.stride[places]
        done = self.t[places] < 0
        self.x[places] = self.step(x, v, t, self.timesteps(places).clamp(min=0))
        for place in places[done]:
            self._begin(place)

    def step(self, x: Tensor, v: Tensor, t: Tensor, later: Tensor) -> Tensor:
        """Where a DDIM step from t to `later` takes the latents."""
        x0, eps = self.schedule.x0_from_v(x, v, t), self.schedule.eps_from_v(x, v, t)
        return self.schedule.add_noise(x0, eps, later)


STEEPEST = 4.0  # a reading loss counts as often at most for coming late, where a velocity moves its estimate little


class _WritingLoss(nn.Module):
    """The diffusion's loss on true pictures, and how badly lines can be read in what the model expects of its own."""

    def __init__(self, diffusion: _DiffusionLoss, reading: ReadingLoss, weight: float, jump: tuple[int, int]):
        super().__init__()
        self.diffusion, self.reading, self.weight, self.jump = diffusion, reading, weight, jump

    def forward(
        self, true: tuple, paths: _Trajectories, batch: dict, places: np.ndarray, lines: tuple,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """(loss, the diffusion's, the readings' (2,), velocity at `places` of the paths).

        The gradient of the second estimate, a step further on, goes through both: the first has to leave a state
        behind out of which something legible comes, and not only be legible itself.
        """
        diffusion, _ = self.diffusion(*true)
        predict, schedule = paths.predictor(batch), paths.schedule
        x, t = paths.x[places], paths.timesteps(places)
        v = predict(x, t)
        low, high = self.jump
        jump = torch.randint(low, high + 1, (len(t),), generator=generator)
        later = (t - jump.to(t.device)).clamp(min=0)
        further = paths.step(x, v, t, later)
        loss, found = diffusion, []
        for state, velocity, at in ((x, v, t), (further, predict(further, later), later)):
            readings = self.reading(schedule.x0_from_v(state, velocity, at), *lines, generator)
            _, sigma = schedule.alpha_sigma(at, state)  # of a velocity so much is in its estimate
            steepness = (1 / sigma.flatten()).clamp(max=STEEPEST)[lines[1]]
            loss = loss + self.weight * (steepness * readings).mean()
            found.append(readings.detach().mean())
        return loss, diffusion.detach(), torch.stack(found), v.detach()


def _train_writing(rank: Rank, work: Path, recipe: Recipe) -> None:
    """Teaches the finished diffusion to keep its lines legible on its own way from noise to picture.

    On noisy true pictures the estimate is legible early on; along the network's own trajectories it gets worse from
    step to step, for no loss on true pictures shows the network its own mistakes.
    """
    torch.manual_seed(recipe.seed)
    count, copies = recipe.writing_true
    recipe = replace(recipe, copies=copies, diffusion_lr=recipe.writing_lr)
    model = _scaled_parts(work, rank.device)
    for net in (model.model, model.control_model):
        net.to(memory_format=torch.channels_last)
    parameters = trainable(model)
    optimisers = _optimisers(model, recipe, rank)
    path = work / "writing.pt"
    if not path.exists():
        model.load_state_dict(_averaged(work / "diffusion.pt"))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.writing_ema))
    start = _restore(path, model, average, *optimisers)
    reader = Reader().to(rank.device)
    reader.load_state_dict(torch.load(work / "reader.pt", map_location="cpu", weights_only=True))
    reading = ReadingLoss(reader, _to_pictures(model), recipe.writing_noise)
    diffusion = _DiffusionLoss(model, recipe.copies, recipe.text_weight)
    loss_of = _parallel(_WritingLoss(diffusion, reading, recipe.writing_weight, recipe.writing_jump), rank)
    batches, lines = _Batches(work, recipe, rank.device, model.scale_factor), _Lines(work)
    paths = _Trajectories(model, batches, recipe, rank.rng(5, start))
    generator = torch.Generator().manual_seed(1000 * start + rank.index)
    log = (work / "writing.jsonl").open("a") if rank.main else None
    bar = tqdm(range(start, recipe.writing_steps), initial=start, total=recipe.writing_steps, desc="writing",
               disable=not rank.main, mininterval=10)  # fmt: skip
    clock, means = time.monotonic(), np.zeros(3)
    for step in bar:
        rng = rank.rng(6, step)
        order = rng.permutation(recipe.writing_pool)
        places, ahead = np.split(order[: recipe.writing_batch + recipe.writing_ahead], [recipe.writing_batch])
        for group in (g for o in optimisers for g in o.param_groups):
            group["lr"] = _rate(step, recipe.writing_steps, recipe.writing_lr, recipe.decay, warmup=20)
        batch = paths.batch(places)
        with _autocast(rank):
            loss, true, readings, v = loss_of(
                batches.draw(rng, count, SIDE // 8), paths, batch, places, lines.of(paths.rows[places], rank.device),
                generator,
            )  # fmt: skip
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        paths.advance(places, v)
        for part in np.array_split(ahead, len(ahead) // 16 + 1):
            paths.advance(part)
        for optimiser in optimisers:
            optimiser.step()
        average.update_parameters(model)
        means += [true.item(), *readings.tolist()]
        if rank.main and step % 25 == 24:
            row = dict(step=step + 1, diffusion=round(means[0] / 25, 4), readings=(means[1:] / 25).round(4).tolist(),
                       seconds=round(time.monotonic() - clock, 1))  # fmt: skip
            log.write(json.dumps(row) + "\n"), log.flush()
            bar.set_postfix(readings=row["readings"])
            means[:] = 0
        if rank.main and (step % 100 == 99 or step == recipe.writing_steps - 1):
            _save_training(path, step + 1, model, average, optimisers)


# -- export ---------------------------------------------------------------------------------------------------------


def load_average(work: Path) -> AnyText2:
    """The averaged weights of the last saved step, of the last of the two stages that there is."""
    model = AnyText2.from_config(CONFIG)
    last = work / "writing.pt"
    model.load_state_dict(_averaged(last if last.exists() else work / "diffusion.pt"))
    model.scale_factor = _scale_factor(work)
    return model.eval()


def stage_export(work: Path, target: Path) -> None:
    """Half-precision safetensors, written beside its final place and renamed."""
    from safetensors.torch import save_file

    model = load_average(work)
    state = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in model.state_dict().items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".partial")
    save_file(state, unfinished, metadata={"scale_factor": str(model.scale_factor)})
    unfinished.replace(target)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB; set scale_factor: {model.scale_factor} in {CONFIG}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m anytext_lcm.build_teacher", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("outputs/teacher"), help="columns and checkpoints go here")
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--steps", type=int, default=Recipe.diffusion_steps, help="diffusion steps")
    parser.add_argument("--lr", type=float, default=Recipe.diffusion_lr, help="of the diffusion at its peak")
    parser.add_argument("--decay", type=float, default=Recipe.decay, help="share of the steps over which it falls")
    parser.add_argument("--pictures", type=int, default=Recipe.pictures)
    parser.add_argument("--vae_steps", type=int, default=Recipe.vae_steps)
    parser.add_argument("--writing_steps", type=int, default=Recipe.writing_steps)
    parser.add_argument("--processes", type=int, default=1 if torch.cuda.is_available() else os.cpu_count())
    parser.add_argument("--target", type=Path, default=Path("anytext_lcm/assets/teacher.safetensors"))
    parser.add_argument("--start_from", type=Path, help="weights to go on from, for instance the shipped ones")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(
        pictures=args.pictures,
        vae_steps=args.vae_steps,
        diffusion_steps=args.steps,
        writing_steps=args.writing_steps,
        diffusion_lr=args.lr,
        decay=args.decay,
    )
    if args.start_from is not None and not (args.work / "diffusion.pt").exists():
        start_from(args.start_from, args.work, recipe)
    for stage in args.stage:
        began = time.monotonic()
        if stage == "data":
            stage_data(args.work, recipe, args.processes)
        elif stage == "vae":
            _launch(_train_autoencoder, args.work, recipe, args.processes)
        elif stage == "recogniser":
            if not (args.work / "recogniser.pt").exists():
                _launch(_train_recogniser, args.work, recipe, 1)
        elif stage == "features":
            stage_features(args.work, recipe, args.processes)
        elif stage == "diffusion":
            _launch(_train_diffusion, args.work, recipe, args.processes)
        elif stage == "reader":
            if not (args.work / "reader.pt").exists():
                _launch(_train_reader, args.work, recipe, args.processes)
        elif stage == "writing":
            _launch(_train_writing, args.work, recipe, args.processes)
        else:
            stage_export(args.work, args.target)
        print(f"{stage}: {(time.monotonic() - began) / 60:.1f} minutes", file=sys.stderr)


if __name__ == "__main__":
    main()
