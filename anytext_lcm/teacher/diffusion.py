"""UNet, WriteNet, text tower and the trainable part of the embedding manager, on v."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.teacher.batches import Batches
from anytext_lcm.teacher.features import load_frozen, scaled_parts
from anytext_lcm.teacher.fitting import Plan, TrainingState, fit, moving_average
from anytext_lcm.teacher.muon import Muon
from anytext_lcm.teacher.processes import Rank, autocast, parallel
from anytext_lcm.teacher.recipe import Recipe


class DiffusionLoss(nn.Module):
    """Mean squared error of v (Salimans & Ho, arXiv:2202.00512) at several noise levels per picture.

    Inside the text boxes an error counts text_weight times.
    """

    def __init__(self, model: AnyText2, noise_levels: int, text_weight: float):
        super().__init__()
        self.model, self.noise_levels, self.text_weight = model, noise_levels, text_weight

    def forward(self, batch: dict, latents: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(loss (), unweighted error of each noise level (N,) without gradient), N = B * noise_levels.

        batch: the model's contract of B pictures; latents: (B, z, 16, 16); t: (N,) int64; noise: (N, z, 16, 16).
        """
        model, levels = self.model, self.noise_levels
        conditioning = model.condition(batch)
        control = [c.repeat(levels, 1, 1, 1) for c in model.control(conditioning)]
        x0 = latents.repeat(levels, 1, 1, 1)
        abar = model.alphas_cumprod[t].view(-1, 1, 1, 1)
        noisy = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
        target = abar.sqrt() * noise - (1 - abar).sqrt() * x0
        context = conditioning.image_context.repeat(levels, 1, 1)
        output = model.model.diffusion_model(noisy, t, context, control=control).float()
        text = F.adaptive_avg_pool2d(conditioning.positions.float().clamp(max=1), x0.shape[2:]).repeat(levels, 1, 1, 1)
        weight = 1 + (self.text_weight - 1) * text
        errors = (output - target).square().mean(1, keepdim=True)
        return (errors * weight).sum() / weight.sum(), errors.detach().mean((1, 2, 3))


def trainable(model: AnyText2) -> list[nn.Parameter]:
    """Freeze the autoencoder and the two recognisers, in place, and return all other parameters."""
    model.requires_grad_(True)
    for frozen in (model.first_stage_model, model.text_predictor, model.embedding_manager.font_predictor):
        frozen.requires_grad_(False)
    return [p for p in model.parameters() if p.requires_grad]


def optimisers_of(model: AnyText2, recipe: Recipe, rank: Rank) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside UNet and WriteNet, AdamW for all else: ends, biases, norms, text parts."""
    unet, control = model.model.diffusion_model, model.control_model
    ends = [unet.input_blocks[0][0].weight, unet.out[2].weight]
    ends += [control.input_blocks[0][0].weight, control.fuse_block_za.weight]
    ends += [p for stack in (control.glyph_block, control.position_block) for p in stack.parameters()]
    outside = {id(p) for p in ends}
    inner = [
        p
        for net in (model.model, control)
        for p in net.parameters()
        if p.requires_grad and p.ndim > 1 and id(p) not in outside
    ]
    chosen = {id(p) for p in inner}
    others = [p for p in trainable(model) if id(p) not in chosen]
    return [
        Muon(inner, lr=recipe.diffusion_lr, rank=rank),
        torch.optim.AdamW(others, lr=recipe.diffusion_lr, betas=(0.9, 0.99), weight_decay=1e-3, fused=True),
    ]


def diffusion_state(model: AnyText2, recipe: Recipe, rank: Rank, ema: float, path: Path) -> TrainingState:
    """The network with its optimisers and a moving average of decay `ema`; goes on from `path`."""
    for net in (model.model, model.control_model):
        net.to(memory_format=torch.channels_last)
    trainable(model)
    state = TrainingState(model, optimisers_of(model, recipe, rank), moving_average(model, ema), path)
    state.restore()
    return state


def spread_colors(projection: nn.Sequential, seed: int = 0) -> None:
    """Set Linear and LayerNorm of line colours (0..255, or 500 for any), in place, so that colours can be learned."""
    # At torch's own start the bias is tiny beside weights times 255, and the LayerNorm removes the length: black, grey,
    # white and "any" become one vector, and (208, 40, 40) the same as (100, 19, 19). With these weights grey, the bias,
    # counts as much as the difference from it.
    linear, generator = projection[0], torch.Generator().manual_seed(seed)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator) / 200)
        linear.bias.copy_(torch.randn(linear.bias.shape, generator=generator) - linear.weight.sum(1) * 127)


def train_diffusion(rank: Rank, work: Path, recipe: Recipe) -> None:
    """Stage `diffusion`: writes diffusion.pt."""
    torch.manual_seed(recipe.seed)
    model = scaled_parts(work, rank.device)
    if not (work / "diffusion.pt").exists():
        spread_colors(model.embedding_manager.color_proj, recipe.seed)
    state = diffusion_state(model, recipe, rank, recipe.ema, work / "diffusion.pt")
    for network in (model, state.average.module):
        load_frozen(network, work)  # the checkpoint may be older than their stages' last run
    batches = Batches(work, recipe, rank.device, model.scale_factor)
    loss = parallel(DiffusionLoss(model, recipe.noise_levels_per_picture, recipe.text_weight), rank)

    def loss_of(step: int) -> tuple[Tensor, dict]:
        count = recipe.diffusion_batch * (16 if rank.device.type == "cuda" else 1)
        batch, latents, t, noise = batches.draw(rank.rng(3, step), count)
        with autocast(rank):
            value, errors = loss(batch, latents, t, noise)
        bands = [errors[(t >= low) & (t < low + 250)].mean() for low in (0, 250, 500, 750)]
        return value, {"bands": torch.stack(bands)}

    fit(rank, state, Plan("diffusion", recipe.diffusion_steps, recipe.diffusion_lr, recipe.decay), loss_of)
