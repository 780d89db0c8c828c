"""The checks of the exercises in notebook 02."""

import numpy as np
import torch

from anytext_lcm.data.batch import Line, collate, validate
from anytext_lcm.teaching.checks import checker, require, same


def text_caption(answer) -> str:
    """n -> caption."""
    one, two = answer(1), answer(2)
    require(isinstance(one, str), f"it returns {type(one).__name__}, and a string is asked for")
    require(two.count("*") == 2, f"for two lines it has {two.count('*')} stars")
    require(one.split() == "Text says * .".split(), f"for one line it says {one!r}")
    require(two.split() == "Text says * , * .".split(), f"for two lines it says {two!r}; a comma stands between")
    require((one, two) == ("Text says * . ", "Text says * , * . "), "the words are right, the spaces are not")
    require(answer(3) == "Text says * , * , * . ", "it is right for two lines and wrong for three")
    return "One star per line, for the line's embedding."


def turned(answer) -> str:
    """x, y, width, height, angle -> corners (4, 2)."""
    straight = np.array([[30, 25], [70, 25], [70, 35], [30, 35]])
    found = answer(50, 30, 40, 10, 0)
    require(not same(found, straight + [20, 5]), "(x, y) is the middle of the box, not its upper left corner")
    require(same(found, straight), "without a turn the corners are not those of the box, from the upper left on")
    quarter = answer(50, 30, 40, 10, 90)
    right = np.array([[55, 10], [55, 50], [45, 50], [45, 10]])
    require(not same(quarter, right[[2, 3, 0, 1]]), "it turns counter-clockwise; y points down in a picture")
    require(same(quarter, right), "turned by 90 degrees the upper left corner must lie at (55, 10)")
    sloped = answer(0, 0, 2, 2, 30)
    require(same(sloped[1], [np.cos(np.pi / 12) * 2**0.5, -np.sin(np.pi / 12) * 2**0.5]), "at 30 degrees it is wrong")
    return "The corners turn about the middle."


def used(answer) -> str:
    """n_lines (B,), slots -> bool (B, L)."""
    found = answer(torch.tensor([1, 0, 3]), 3)
    require(isinstance(found, torch.Tensor) and found.dtype == torch.bool, "it does not return a tensor of bools")
    wanted = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 1]])
    require(not same(found.int(), 1 - wanted), "it marks the slots that are empty")
    require(not same(found.int(), torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]])), "slots count from 0: use <, not <=")
    require(same(found.int(), wanted), "with 1, 0 and 3 lines in 3 slots it marks others")
    require(answer(torch.tensor([2]), 5).shape == (1, 5), "one item with five slots must give the shape (1, 5)")
    return "The rest of the slots is zero, and nobody looks there."


def mean_over_places(answer) -> str:
    """picture (H, W), offsets -> (H, W)."""
    picture = np.zeros((5, 7))
    picture[1, 2] = 12.0
    same_place = answer(picture, [(0, 0)])
    require(same(same_place, picture), "one offset of (0, 0) must leave the picture as it is")
    right = answer(picture, [(2, 0)])
    require(np.shape(right) == (5, 7), f"it returns the shape {np.shape(right)}, and (5, 7) is asked for")
    require(not right[3, 2], "dx moves down here; it must move to the right, along axis 1")
    require(right[1, 4] == 12, "dx = 2 does not move the picture two pixels to the right")
    require(answer(picture, [(0, 1)])[2, 2] == 12, "dy = 1 does not move the picture one pixel down")
    both = answer(picture, [(0, 0), (1, 0), (0, 1)])
    require(not same(both.sum(), 36.0), "that is the sum of the moved pictures, not their mean")
    require(same(sorted(both[both > 0]), [4.0, 4.0, 4.0]), "the mean of three places must have a third at each")
    return "What is written stays, where it stands is averaged away."


def masked(answer) -> str:
    """picture (3, H, W), hint (1, H, W), mode -> (3, H, W)."""
    picture = np.random.default_rng(0).uniform(-0.9, 0.9, (3, 4, 5))
    before, hint = picture.copy(), np.zeros((1, 4, 5), np.uint8)
    hint[0, 1:3, 2:4] = 1
    edit = answer(picture, hint, "edit")
    require(same(picture, before), "it changes the picture that it was given; work on a copy")
    require(np.shape(edit) == (3, 4, 5), f"it returns the shape {np.shape(edit)}, and (3, 4, 5) is asked for")
    holes = np.broadcast_to(hint == 1, edit.shape)
    require(not (edit[~holes] == -1).all(), "the holes are where no text goes: the mask is the wrong way round")
    require((edit[holes] == -1).all(), "in a hole it is not -1; 0 is grey")
    require(same(edit[~holes], picture[~holes]), "beside the holes the picture must stay as it is")
    require((answer(picture, hint, "generate") == -1).all(), "in generation it must be -1 everywhere")
    return "The model sees what stays, and nothing where text goes."


def own_item(answer) -> str:
    """picture, caption, lines -> item of the contract."""
    picture = np.linspace(-1, 1, 3 * 64 * 128, dtype=np.float32).reshape(3, 64, 128)
    quads = [np.array([[4, y], [60, y], [60, y + 24], [4, y + 24]]) for y in (4, 36)]
    lines = [Line(text, quad) for text, quad in zip(("up", "down"), quads, strict=True)]
    items = [answer(picture, "a wall", lines[:n]) for n in (1, 2)]
    require(all(isinstance(item, dict) for item in items), "it does not return a dictionary")
    for name in ("img", "img_caption", "glyphs"):
        require(name in items[0], f"the field {name!r} is missing")
    slots = items[0]["glyphs"].shape
    require(slots[1:] == (64, 128), f"glyphs are {slots[1:]}, and the picture is (64, 128): height first")
    require(slots[0] == 2, f"it has {slots[0]} line slots, and two are asked for")
    try:
        validate(collate(items))
    except ValueError as error:
        require(False, f"validate says: {str(error).rstrip('.')}")
    require(items[1]["texts"] == ["up", "down"] and items[0]["img_caption"] == "a wall", "texts or caption are others")
    require(same(items[0]["img"], picture), "the picture has changed")
    return "validate accepts a batch of it."


CHECKS = {
    "text_caption": text_caption,
    "turned": turned,
    "used": used,
    "mean_over_places": mean_over_places,
    "masked": masked,
    "own_item": own_item,
}
check = checker(CHECKS)
