"""The checks of the exercises in notebook 01."""

import torch
from torch import nn

from anytext_lcm.teaching.checks import checker, require, same


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def count(answer) -> str:
    """inputs, outputs, kernel -> parameters."""
    linear, conv = answer(5, 7), answer(5, 7, 3)
    require(linear != 35, "the bias of the Linear layer is missing")
    require(linear == _numbers(nn.Linear(5, 7)), f"a Linear layer from 5 to 7 has 42 parameters, not {linear}")
    require(conv != 35 * 3 + 7, "a kernel of side 3 has nine places, not three")
    require(conv == _numbers(nn.Conv2d(5, 7, 3)), f"a 3x3 convolution from 5 to 7 has 322 parameters, not {conv}")
    return "It agrees with torch.nn."


def add_attnx(answer) -> str:
    """h (2, 3), c (2, 3), two attentions, two norms, scale -> h."""
    generator = torch.Generator().manual_seed(1)
    h, c = torch.randn(2, 2, 3, generator=generator)
    before = h.clone()

    def wanted(scale: float) -> torch.Tensor:
        first = h + scale * torch.sin(2 * h)
        return first + scale * torch.cos(first + 1) * c

    def found(scale: float) -> torch.Tensor:
        return answer(h, c, torch.sin, lambda x, y: torch.cos(x) * y, lambda x: 2 * x, lambda x: x + 1, scale)

    half = found(0.5)
    require(same(h, before), "it changes the h that it was given; write h = h + ..., not h += ...")
    require(same(found(0.0), h), "with scale 0 it must return h, and does not")
    parallel = h + 0.5 * torch.sin(2 * h) + 0.5 * torch.cos(h + 1) * c
    require(not same(half, parallel), "the second attention sees the old h; it must see the new one")
    unscaled = h + torch.sin(2 * h)
    unscaled = unscaled + torch.cos(unscaled + 1) * c
    require(not same(half, unscaled), "scale is missing")
    require(same(half, wanted(0.5)), "it is not h + scale * attention(norm(h)), twice")
    return "Both attentions are added, one after the other."


def adapter_size(answer) -> str:
    """shape, rank -> parameters."""
    require(answer((7, 5), 3) == 3 * (5 + 7), f"a Linear of shape (7, 5) needs 36 at rank 3, not {answer((7, 5), 3)}")
    wide = answer((7, 5, 3, 3), 2)
    require(wide != 2 * (5 + 7), "the kernel is left out: A of a 3x3 convolution has 9 numbers per input and rank")
    require(wide != 2 * 9 * (5 + 7), "B is a 1x1 convolution: the kernel belongs to A alone")
    require(wide == 2 * (5 * 9 + 7), f"a convolution of shape (7, 5, 3, 3) needs 104 at rank 2, not {wide}")
    require(answer((4, 4, 1, 1), 64) == 64 * 8, "a 1x1 convolution must cost as much as a Linear")
    return "At rank 64 a zero conv of 320 channels takes 40,960."


def trained_bytes(answer) -> str:
    """parameters -> bytes."""
    found = answer(1000)
    require(found != 4000, "only the weights are counted")
    require(found != 8000, "Adam's two moments are missing")
    require(found != 12_000, "three numbers per parameter are counted; weight, gradient and two moments make four")
    require(found == 16_000, f"1000 parameters take 16,000 bytes, not {found}")
    return "Sixteen bytes for every trained number."


def hit(answer) -> str:
    """names, targets -> sorted list."""
    names = ["unet.b.attn1.to_q", "unet.a.attn1.to_q", "unet.a.attn1.into_q", "unet.a.attn1.to_k", "to_q"]
    short = answer(names, ["to_q"])
    require(isinstance(short, list), f"it returns {type(short).__name__}, and a list is asked for")
    require("unet.a.attn1.into_q" not in short, "to_q must not hit into_q: a dot stands before an ending")
    require("to_q" in short, "a target that is the whole name is missed")
    require(set(short) == {"to_q", names[0], names[1]}, f"the ending to_q hits {len(short)} names, and three fit")
    require(short == sorted(short), "the list is not sorted")
    require(answer(names, [names[1]]) == [names[1]], "a full name must hit that module alone")
    require(answer(names, []) == [], "without targets there is nothing to hit")
    return "A full name hits one module, an ending all that end so."


def compare(answer) -> str:
    """wanted, found {name: shape} -> three sorted lists."""
    wanted = {"a": (1,), "b": (2, 3), "c": (4,), "d": (5,)}
    result = answer(wanted, {"b": (3, 2), "c": (4,), "z": (1,), "y": (1,)})
    require(isinstance(result, tuple | list) and len(result) == 3, "it does not return three lists")
    missing, unexpected, other = (list(names) for names in result)
    require(missing != ["y", "z"], "missing and unexpected are swapped")
    require(missing == ["a", "d"], f"missing are a and d, not {', '.join(missing) or 'none'}")
    require(unexpected == ["y", "z"], f"nobody wanted y and z, in this order; it says {unexpected}")
    require("c" not in other, "c has the same shape in both")
    require(other == ["b"], "b has another shape, (3, 2) and not (2, 3)")
    return "Names, strangers and shapes are kept apart."


CHECKS = {
    "count": count,
    "add_attnx": add_attnx,
    "adapter_size": adapter_size,
    "trained_bytes": trained_bytes,
    "hit": hit,
    "compare": compare,
}
check = checker(CHECKS)
