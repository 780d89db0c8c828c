"""The autoencoder: a linear encoder from principal components, then its decoder on text-centred crops."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.vae import AutoencoderKL
from anytext_lcm.teacher.columns import SIDE, open_columns
from anytext_lcm.teacher.fitting import Plan, TrainingState, fit, moving_average
from anytext_lcm.teacher.processes import Rank, autocast, parallel
from anytext_lcm.teacher.recipe import CONFIG, Recipe

CROP = 64  # pixels


def crops(
    columns: Mapping[str, np.ndarray], rng: np.random.Generator, count: int, whole: bool
) -> tuple[Tensor, Tensor]:
    """Random pictures (count, 3, h, w) in -1..1 and where their text is (count, 1, h, w) 0/1.

    h = w = SIDE with `whole`; else CROP, four of five around a pixel of text.
    """
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


def fit_patches(columns: Mapping[str, np.ndarray], vae: AutoencoderKL, noise: float, text_weight: float) -> None:
    """Set encoder and linear decoder, in place, to the principal components of the 8x8 squares of 3,000 pictures.

    Squares with text count text_weight times. The latents have mean square 1 over all channels; `noise` is the
    posterior's standard deviation.
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
    # Channel i gets the deviation sqrt(spread_i), then all together mean square 1. Coarse channels stay larger than
    # fine ones, so that the noise of diffusion buries the fine ones first.
    gain = spread**-0.5 / np.sqrt(spread.mean())
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


class DecoderLoss(nn.Module):
    """Error of pixels and edges, text weighted up, of pictures decoded from latents with up to `noise` added."""

    def __init__(self, vae: nn.Module, text_weight: float, noise: float):
        super().__init__()
        self.vae, self.text_weight, self.noise = vae, text_weight, noise

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        """The loss (), for images (B, 3, h, w) in -1..1 and text (B, 1, h, w) 0/1."""
        with torch.no_grad():
            z, _ = self.vae.encode(images)
            z = z + self.noise * torch.rand(len(z), 1, 1, 1, device=z.device) * torch.randn_like(z)
        error = self.vae.decode(z).float() - images
        weight = 1 + (self.text_weight - 1) * text
        edges = sum((error.diff(dim=d).abs() * weight.narrow(d, 1, weight.shape[d] - 1)).mean() for d in (2, 3))
        return ((error.abs() + error.square()) * weight).mean() + 0.5 * edges


def frozen_encoder(vae: AutoencoderKL) -> AutoencoderKL:
    """Leave only the decoder to be trained, in place: the latents must stay what they are."""
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    return vae


def decoder_state(vae: AutoencoderKL, lr: float, path: Path) -> TrainingState:
    """AdamW and a moving average for the part of the autoencoder that is trained; goes on from `path`."""
    parameters = [p for p in vae.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    state = TrainingState(vae, [optimiser], moving_average(vae, 0.99), path)
    state.restore()
    return state


def fit_decoder(
    rank: Rank,
    state: TrainingState,
    plan: Plan,
    loss: DecoderLoss,
    draw: Callable[[int, bool], tuple[Tensor, Tensor]],
) -> None:
    """Train the decoder. draw(step, whole) -> (images, text); the last tenth of the steps asks for whole pictures, so
    that their edges are seen, too.
    """
    loss = parallel(loss, rank)
    torch.manual_seed(1000 * state.step + rank.index)

    def loss_of(step: int) -> tuple[Tensor, dict]:
        images, text = draw(step, step >= 0.9 * plan.steps)
        with autocast(rank):
            return loss(images.to(rank.device, memory_format=torch.channels_last), text.to(rank.device)), {}

    fit(rank, state, plan, loss_of)


def train_autoencoder(rank: Rank, work: Path, recipe: Recipe) -> None:
    """Stage `vae`: fit the linear encoder, then train the decoder; writes vae.pt."""
    torch.manual_seed(recipe.seed)
    columns = open_columns(work)
    vae = AnyText2.from_config(CONFIG).first_stage_model.train()
    fit_patches(columns, vae, recipe.posterior_noise, recipe.text_weight)
    frozen_encoder(vae).to(rank.device, memory_format=torch.channels_last)
    state = decoder_state(vae, recipe.vae_lr, work / "vae.pt")

    def draw(step: int, whole: bool) -> tuple[Tensor, Tensor]:
        count = recipe.vae_batch // (3 if whole else 1) * (8 if rank.device.type == "cuda" else 1)
        return crops(columns, rank.rng(1, step), count, whole)

    plan = Plan("vae", recipe.vae_steps, recipe.vae_lr, decay=0.5)
    fit_decoder(rank, state, plan, DecoderLoss(vae, recipe.text_weight, recipe.decoder_noise), draw)
