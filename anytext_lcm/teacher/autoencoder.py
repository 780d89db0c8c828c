"""The autoencoder: a linear encoder from principal components, then its decoder on text-centred crops."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.vae import AutoencoderKL
from anytext_lcm.teacher.columns import SIDE, open_columns
from anytext_lcm.teacher.recipe import CONFIG, Rank, Recipe, autocast, parallel, rate, restore, save_training

CROP = 64


def crops(columns: dict, rng: np.random.Generator, count: int, whole: bool) -> tuple[Tensor, Tensor]:
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


def fit_patches(columns: dict, vae: AutoencoderKL, noise: float, text_weight: float) -> None:
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


class DecoderLoss(nn.Module):
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


def train_autoencoder(rank: Rank, work: Path, recipe: Recipe) -> None:
    torch.manual_seed(recipe.seed)
    columns = open_columns(work, recipe.pictures)
    total, path = recipe.vae_steps, work / "vae.pt"
    vae = AnyText2.from_config(CONFIG).first_stage_model.train()
    fit_patches(columns, vae, recipe.posterior_noise, recipe.text_weight)
    vae.to(rank.device, memory_format=torch.channels_last)
    parameters = [p for p in vae.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.vae_lr, betas=(0.9, 0.99), weight_decay=1e-4)
    average = AveragedModel(vae, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    start = restore(path, vae, average, optimiser)
    loss_of = parallel(DecoderLoss(vae, recipe.text_weight, recipe.decoder_noise), rank)
    torch.manual_seed(1000 * start + rank.index)
    bar = tqdm(range(start, total), initial=start, total=total, desc="vae", disable=not rank.main, mininterval=5)
    for step in bar:
        whole = step >= 0.9 * total  # the last steps see the edges of whole pictures too
        batch = recipe.vae_batch // (3 if whole else 1) * (8 if rank.device.type == "cuda" else 1)
        images, text = crops(columns, rank.rng(1, step), batch, whole)
        for group in optimiser.param_groups:
            group["lr"] = rate(step, total, recipe.vae_lr, 0.5)
        with autocast(rank):
            loss = loss_of(images.to(rank.device, memory_format=torch.channels_last), text.to(rank.device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        average.update_parameters(vae)
        if rank.main and step % 25 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if rank.main and (step % 200 == 199 or step == total - 1):
            save_training(path, step + 1, vae, average, [optimiser])
