"""UNet, WriteNet, text tower and the trainable part of the embedding manager, on v."""

import json
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from anytext_lcm.model.anytext2 import AnyText2, Conditioning
from anytext_lcm.teacher.columns import SIDE, Batches, load_frozen, scaled_parts
from anytext_lcm.teacher.muon import Muon
from anytext_lcm.teacher.recipe import Rank, Recipe, autocast, moving_average, parallel, rate, restore, save_training
from anytext_lcm.teacher.tasks import spread_colors

SAVE_EVERY = 600  # seconds: what an interruption costs at most


class DiffusionLoss(nn.Module):
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
            conditioning, latents = cut_strips(conditioning, latents, rows, noise.shape[2])
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


def cut_strips(
    conditioning: Conditioning, latents: Tensor, rows: list[int], height: int
) -> tuple[Conditioning, Tensor]:
    """Picture i from latent row rows[i] on, `height` latent rows of it."""
    scale = SIDE // latents.shape[2]

    def cut(x: Tensor, unit: int) -> Tensor:
        return torch.stack([p[:, unit * y : unit * (y + height)] for p, y in zip(x, rows, strict=True)])

    parts = {"glyphs": scale, "positions": scale, "masked_latents": 1}
    cuts = {name: cut(getattr(conditioning, name), unit) for name, unit in parts.items()}
    return replace(conditioning, **cuts), cut(latents, 1)


def trainable(model: AnyText2) -> list[nn.Parameter]:
    """Everything but the autoencoder and the two recognisers."""
    model.requires_grad_(True)
    for frozen in (model.first_stage_model, model.text_predictor, model.embedding_manager.font_predictor):
        frozen.requires_grad_(False)
    return [p for p in model.parameters() if p.requires_grad]


def optimisers_of(model: AnyText2, recipe: Recipe, rank: Rank) -> list[torch.optim.Optimizer]:
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


def train_diffusion(rank: Rank, work: Path, recipe: Recipe) -> None:
    torch.manual_seed(recipe.seed)
    model = scaled_parts(work, rank.device)
    for net in (model.model, model.control_model):
        net.to(memory_format=torch.channels_last)
    parameters = trainable(model)
    optimisers = optimisers_of(model, recipe, rank)
    average = moving_average(model, recipe.ema)
    batches = Batches(work, recipe, rank.device, model.scale_factor)
    path = work / "diffusion.pt"
    start = restore(path, model, average, *optimisers)
    for network in (model, average.module):
        load_frozen(network, work)  # a checkpoint may be older than they are
    if start == 0 and recipe.task == "scenery":
        for network in (model, average.module):
            spread_colors(network.embedding_manager.color_proj, recipe.seed)
    loss_of = parallel(DiffusionLoss(model, recipe.copies, recipe.text_weight), rank)
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
    saved = clock
    for step in bar:
        strips = step < recipe.strip_share * recipe.diffusion_steps
        count = recipe.strip_batch if strips else recipe.diffusion_batch
        count *= 16 if rank.device.type == "cuda" else 1
        batch, latents, t, noise, rows = batches.draw(rank.rng(3, step), count, 8 if strips else 16)
        for group in (g for o in optimisers for g in o.param_groups):
            group["lr"] = rate(step, recipe.diffusion_steps, recipe.diffusion_lr, recipe.decay)
        with autocast(rank):
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
        if rank.main and (time.monotonic() - saved > SAVE_EVERY or step == recipe.diffusion_steps - 1):
            save_training(path, step + 1, model, average, optimisers)
            saved = time.monotonic()
