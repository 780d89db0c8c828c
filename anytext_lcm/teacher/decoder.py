"""The decoder once more, when the encoder is fixed: on scenes and on material, so that photographs come through too.

The latents stay what they are, so this can be done at any time, before, beside or after the diffusion.
"""

import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from anytext_lcm.data.material import draw_material
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.teacher.autoencoder import CROP, DecoderLoss, crops
from anytext_lcm.teacher.columns import SIDE, open_columns
from anytext_lcm.teacher.recipe import CONFIG, Rank, Recipe, autocast, averaged, parallel, rate, restore, save_training

SAVE_EVERY = 600  # seconds


def mixed_crops(columns: dict, rng: np.random.Generator, recipe: Recipe, whole: bool) -> tuple[Tensor, Tensor]:
    """A process's pictures (n, 3, h, w) in -1..1, a share of them material, and where text is (n, 1, h, w)."""
    count = recipe.vae_batch // (3 if whole else 1)
    made = max(1, round(recipe.decoder_material * count))
    images, text = crops(columns, rng, count - made, whole)
    side = SIDE if whole else CROP
    material = np.stack([draw_material(rng, SIDE)[:side, :side] for _ in range(made)])
    material = torch.from_numpy(material).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.cat([images, material]), torch.cat([text, torch.zeros(made, 1, side, side)])


def train_decoder(rank: Rank, work: Path, recipe: Recipe) -> None:
    torch.manual_seed(recipe.seed)
    columns = open_columns(work, recipe.pictures)
    total, path = recipe.decoder_steps, work / "decoder.pt"
    vae = AnyText2.from_config(CONFIG).first_stage_model.train()
    vae.load_state_dict(averaged(work / "vae.pt"))
    vae.encoder.requires_grad_(False), vae.quant_conv.requires_grad_(False)
    vae.to(rank.device, memory_format=torch.channels_last)
    parameters = [p for p in vae.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.decoder_lr, betas=(0.9, 0.99), weight_decay=1e-4)
    average = AveragedModel(vae, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    start = restore(path, vae, average, optimiser)
    loss_of = parallel(DecoderLoss(vae, recipe.decoder_text_weight, recipe.decoder_noise), rank)
    torch.manual_seed(1000 * start + rank.index)
    log = (work / "decoder.jsonl").open("a") if rank.main else None
    bar = tqdm(range(start, total), initial=start, total=total, desc="decoder", disable=not rank.main, mininterval=10)
    saved, mean = time.monotonic(), 0.0
    for step in bar:
        whole = step >= 0.9 * total  # the last steps see the edges of whole pictures too
        images, text = mixed_crops(columns, rank.rng(7, step), recipe, whole)
        for group in optimiser.param_groups:
            group["lr"] = rate(step, total, recipe.decoder_lr, 0.6, warmup=50)
        with autocast(rank):
            loss = loss_of(images.to(rank.device, memory_format=torch.channels_last), text.to(rank.device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        average.update_parameters(vae)
        mean += loss.item() / 50
        if rank.main and step % 50 == 49:
            log.write(json.dumps(dict(step=step + 1, loss=round(mean, 5))) + "\n"), log.flush()
            bar.set_postfix(loss=f"{mean:.4f}")
            mean = 0.0
        if rank.main and (time.monotonic() - saved > SAVE_EVERY or step == total - 1):
            save_training(path, step + 1, vae, average, [optimiser])
            saved = time.monotonic()
