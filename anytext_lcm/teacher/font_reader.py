"""The font predictor: a copy of the recogniser that goes on to tell fonts apart.

A recogniser is trained to read any font alike, and its features hardly tell a bold serif from a light sans: a linear
reading of them named the right one of eight fonts in 24 % of the lines. Upstream trains this copy with the rest. Here
it is trained by itself, so that its features may be computed once.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from anytext_lcm.data import mock, scenery
from anytext_lcm.data.glyphs import draw_placed_glyph, draw_position
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.crop import crop_image
from anytext_lcm.teacher.columns import SIDE
from anytext_lcm.teacher.recipe import CONFIG, Rank, Recipe, rate, save

FONTS = mock._FONTS


def hints(rng: np.random.Generator, count: int) -> tuple[list[Tensor], Tensor]:
    """Lines as a font hint shows them, cut out (3, h, w) 0..255, and the numbers (count,) of their fonts."""
    crops, labels = [], []
    while len(crops) < count:
        block = scenery._place_line(rng, SIDE, SIDE / 128, "train", np.zeros((SIDE, SIDE), np.uint8), 1)
        if block is None:
            continue
        hint = draw_placed_glyph(block.text, block.condition_quad, block.font, (SIDE, SIDE))
        mask = draw_position(block.condition_quad, (SIDE, SIDE)) * 255
        crops.append(crop_image(torch.from_numpy(hint).float().expand(3, -1, -1), mask))
        labels.append(FONTS.index(block.font))
    return crops, torch.tensor(labels)


def train_font_predictor(rank: Rank, work: Path, recipe: Recipe) -> None:
    torch.manual_seed(recipe.seed)
    network = AnyText2.from_config(CONFIG).text_predictor
    network.load_state_dict(torch.load(work / "recogniser.pt", map_location="cpu", weights_only=True))
    network.train().to(rank.device)
    named = nn.Linear(network.feature_size, len(FONTS)).to(rank.device)
    parameters = [*network.parameters(), *named.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-2)
    bar = tqdm(range(recipe.font_steps), desc="fonts", disable=not rank.main, mininterval=10)
    for step in bar:
        crops, labels = hints(rank.rng(8, step), recipe.font_batch)
        for group in optimiser.param_groups:
            group["lr"] = rate(step, recipe.font_steps, 1e-3, 0.5, warmup=30)
        loss = F.cross_entropy(named(network.neck_features(crops)), labels.to(rank.device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimiser.step()
        if step % 25 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    crops, labels = hints(np.random.default_rng(recipe.seed + 99), 256)
    with torch.inference_mode():
        right = (named(network.eval().neck_features(crops)).argmax(1).cpu() == labels).float().mean()
    print(f"fonts: {right:.3f} of 256 lines it did not train on", file=sys.stderr)
    save(work / "fonts.pt", network.state_dict())
