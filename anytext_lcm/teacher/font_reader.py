"""The font predictor: a copy of the recogniser that is trained on to tell fonts apart.

A recogniser learns to read every font alike, so its features hardly tell a bold serif from a light sans: a linear
classifier on them named the right one of eight fonts in 24 % of the lines. Upstream trains this copy with the rest of
the network; here it is trained alone, so that its features can be computed once.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anytext_lcm.data.glyphs import draw_placed_glyph, draw_position
from anytext_lcm.data.layout import FONTS, place_line
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.crop import crop_image
from anytext_lcm.teacher.columns import SIDE
from anytext_lcm.teacher.fitting import Plan, TrainingState, fit, save
from anytext_lcm.teacher.processes import Rank
from anytext_lcm.teacher.recipe import CONFIG, Recipe

LR = 1e-3


def hints(rng: np.random.Generator, count: int) -> tuple[list[Tensor], Tensor]:
    """Lines cut out of font hints, each (3, h, w) in 0..255, and the indices of their fonts in FONTS (count,)."""
    crops, labels = [], []
    while len(crops) < count:
        block = place_line(rng, SIDE, "train", np.zeros((SIDE, SIDE), np.uint8), 1)
        if block is None:  # this text does not fit
            continue
        hint = draw_placed_glyph(block.text, block.condition_quad, block.font, (SIDE, SIDE))
        mask = draw_position(block.condition_quad, (SIDE, SIDE)) * 255
        crops.append(crop_image(torch.from_numpy(hint).float().expand(3, -1, -1), mask))
        labels.append(FONTS.index(block.font))
    return crops, torch.tensor(labels)


def train_font_predictor(rank: Rank, work: Path, recipe: Recipe) -> None:
    """Stage `fonts`: writes fonts.pt, and prints what share of new hints it names."""
    torch.manual_seed(recipe.seed)
    network = AnyText2.from_config(CONFIG).text_predictor
    network.load_state_dict(torch.load(work / "recogniser.pt", map_location="cpu", weights_only=True))
    network.train().to(rank.device)
    classifier = nn.Linear(network.feature_size, len(FONTS)).to(rank.device)
    both = nn.ModuleList([network, classifier])
    state = TrainingState(both, [torch.optim.AdamW(both.parameters(), lr=LR, weight_decay=1e-2)])

    def loss_of(step: int) -> tuple[Tensor, dict]:
        crops, labels = hints(rank.rng(8, step), recipe.font_batch)
        return F.cross_entropy(classifier(network.neck_features(crops)), labels.to(rank.device)), {}

    fit(rank, state, Plan("fonts", recipe.font_steps, LR, decay=0.5, warmup=30, clip=5.0), loss_of)
    crops, labels = hints(np.random.default_rng(recipe.seed + 99), 256)
    with torch.inference_mode():
        right = (classifier(network.eval().neck_features(crops)).argmax(1).cpu() == labels).float().mean()
    print(f"fonts: {right:.3f} of 256 lines it did not train on", file=sys.stderr)
    save(work / "fonts.pt", network.state_dict())
