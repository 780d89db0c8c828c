"""The mock tasks that a teacher can be trained on, and what the recipe has of its own for each."""

from dataclasses import replace

import torch
from torch import nn

from anytext_lcm.data.mock import MockDataset
from anytext_lcm.data.scenery import Scenery
from anytext_lcm.teacher.recipe import Recipe

TASKS = ("mock", "scenery")
_SCENERY = dict(
    strip_share=0.0,  # whole pictures only: what is around the text is half of the task
    text_weight=2.5,  # with 5 the objects were smudges in fifty steps too
    diffusion_batch=6,
    diffusion_lr=1.6e-3,
    decay=0.4,
)


def recipe_of(task: str, **numbers) -> Recipe:
    """The recipe of a task, with `numbers` in place of its own. Raises ValueError for an unknown task."""
    if task not in TASKS:
        raise ValueError(f"Task {task!r} is unknown: choose one of {', '.join(TASKS)}.")
    own = _SCENERY if task == "scenery" else {}
    return replace(Recipe(task=task), **{**own, **{k: v for k, v in numbers.items() if v is not None}})


def training_pictures(recipe: Recipe, side: int, lines: int) -> MockDataset:
    """The pictures that the stages learn from; `side` in pixels, `lines` slots a picture."""
    options = {"size": recipe.pictures, "seed": recipe.seed, "image_size": side, "max_lines": lines}
    if recipe.task == "scenery":
        options |= {"scenery": Scenery(), "edit_share": 0.3, "hint_share": 0.4, "color_share": 0.8}
    return MockDataset(**options)


def spread_colors(projection: nn.Sequential, seed: int = 0) -> None:
    """A start from which the colour of a line can be learned: Linear and LayerNorm of colours 0..255, or 500 = any.

    From torch's own start the bias is nothing beside weights times 255, and the LayerNorm takes the length away: black,
    grey, white and "any" become one vector, and (208, 40, 40) the same as (100, 19, 19). The weights are made small
    enough that grey, the bias, counts as much as the difference from it.
    """
    linear, generator = projection[0], torch.Generator().manual_seed(seed)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator) / 200)
        linear.bias.copy_(torch.randn(linear.bias.shape, generator=generator) - linear.weight.sum(1) * 127)
