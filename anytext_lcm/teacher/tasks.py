"""What a task changes beside the recipe's numbers: its pictures, and the start of the colours."""

import torch
from torch import nn

from anytext_lcm.data.mock import MockDataset
from anytext_lcm.data.scenery import SCENERY_SHARES, Scenery
from anytext_lcm.teacher.recipe import Recipe


def training_pictures(recipe: Recipe, side: int, lines: int) -> MockDataset:
    """The pictures that the stages learn from, of `side` x `side` pixels, with `lines` slots per picture."""
    options = {"size": recipe.pictures, "seed": recipe.seed, "image_size": side, "max_lines": lines}
    if recipe.task == "scenery":
        options |= {"scenery": Scenery(), **SCENERY_SHARES}
    return MockDataset(**options)


def spread_colors(projection: nn.Sequential, seed: int = 0) -> None:
    """Set Linear and LayerNorm of line colours (0..255, or 500 for any), in place, so that colours can be learned."""
    # At torch's own start the bias is tiny beside weights times 255, and the LayerNorm removes the length: black, grey,
    # white and "any" become one vector, and (208, 40, 40) the same as (100, 19, 19). With these weights grey, the bias,
    # counts as much as the difference from it.
    linear, generator = projection[0], torch.Generator().manual_seed(seed)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator) / 200)
        linear.bias.copy_(torch.randn(linear.bias.shape, generator=generator) - linear.weight.sum(1) * 127)
