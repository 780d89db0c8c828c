"""The decoder once more, with the encoder fixed: on scenes and on material, so that photographs come through, too.

The latents stay what they are, so this stage may run before, beside or after the diffusion.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anytext_lcm.data.material import draw_material
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.teacher.autoencoder import CROP, DecoderLoss, crops, decoder_state, fit_decoder, frozen_encoder
from anytext_lcm.teacher.columns import SIDE, open_columns
from anytext_lcm.teacher.fitting import Plan, averaged
from anytext_lcm.teacher.processes import Rank
from anytext_lcm.teacher.recipe import CONFIG, Recipe


def mixed_crops(
    columns: Mapping[str, np.ndarray], rng: np.random.Generator, recipe: Recipe, whole: bool
) -> tuple[Tensor, Tensor]:
    """As `crops`, with a share of `recipe.decoder_material` of the pictures replaced by material without text."""
    count = recipe.vae_batch // (3 if whole else 1)
    made = max(1, round(recipe.decoder_material * count))
    images, text = crops(columns, rng, count - made, whole)
    side = SIDE if whole else CROP
    material = np.stack([draw_material(rng, SIDE)[:side, :side] for _ in range(made)])
    material = torch.from_numpy(material).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.cat([images, material]), torch.cat([text, torch.zeros(made, 1, side, side)])


def train_decoder(rank: Rank, work: Path, recipe: Recipe) -> None:
    """Stage `decoder`: train the decoder of vae.pt further; writes decoder.pt."""
    torch.manual_seed(recipe.seed)
    columns = open_columns(work)
    vae = AnyText2.from_config(CONFIG).first_stage_model.train()
    vae.load_state_dict(averaged(work / "vae.pt"))
    frozen_encoder(vae).to(rank.device, memory_format=torch.channels_last)
    state = decoder_state(vae, recipe.decoder_lr, work / "decoder.pt")

    def draw(step: int, whole: bool) -> tuple[Tensor, Tensor]:
        return mixed_crops(columns, rank.rng(7, step), recipe, whole)

    plan = Plan("decoder", recipe.decoder_steps, recipe.decoder_lr, decay=0.6, warmup=50)
    fit_decoder(rank, state, plan, DecoderLoss(vae, recipe.decoder_text_weight, recipe.decoder_noise), draw)
