"""The checks of the exercises in notebook 06."""

import copy

import torch

from anytext_lcm.lcm.steps import guide
from anytext_lcm.teaching.checks import checker, require, same
from anytext_lcm.teaching.toy import Student


def guidance(answer) -> str:
    """cond, uncond (B, 1), s_g -> eps (B, 1)."""
    cond, uncond = torch.randn(2, 5, 1, generator=torch.Generator().manual_seed(4))
    at_one = answer(cond, uncond, 1.0)
    require(not same(at_one, uncond), "at s_g = 1 this returns the unconditional branch")
    require(not same(at_one, 2 * cond - uncond), "it uses s_g as w; at s_g = 1 it guides already")
    require(same(at_one, cond), "at s_g = 1, without guidance, it must return the conditional branch")
    strong, wanted = answer(cond, uncond, 3.0), guide(cond, uncond, 3.0)
    require(not same(strong, 2 * cond - wanted), "it pushes away from the condition: the difference has the wrong sign")
    require(same(strong, wanted), "at s_g = 3 it differs from guidance")
    return "At s_g = 1 and 3 it equals steps.guide, so w = s_g - 1."


def average(answer) -> str:
    """average, student: modules of one shape; rate -> None. Changes the average in place."""
    student, mean = Student(seed=1), Student(seed=2)
    before, new = copy.deepcopy(mean).state_dict(), copy.deepcopy(student).state_dict()
    answer(mean, student, 0.1)
    found = mean.state_dict()
    require(all(same(student.state_dict()[k], new[k], 1e-7) for k in new), "it changes the student")
    require(not all(same(found[k], before[k], 1e-7) for k in new), "the average has not changed; change it in place")
    swapped = all(same(found[k], 0.1 * before[k] + 0.9 * new[k], 1e-6) for k in new)
    require(not swapped, "rate and 1 - rate are swapped: at rate 0.1 nine tenths of the average must stay")
    right = all(same(found[k], 0.9 * before[k] + 0.1 * new[k], 1e-6) for k in new)
    require(right, "at rate 0.1 it is not 0.9 average + 0.1 student")
    return "At rate 0.1 nine tenths of the average stay and one tenth of the student is added."


def edge(answer) -> str:
    """t int64 (B,), edges int64 (E,) rising from 0 -> int64 (B,)."""
    edges, t = torch.tensor([0, 259, 499, 759]), torch.tensor([19, 259, 279, 499, 519, 759, 779, 999])
    found, wanted = answer(t, edges), torch.tensor([0, 0, 259, 259, 499, 499, 759, 759])
    on_edge = torch.tensor([0, 259, 259, 499, 499, 759, 759, 759])
    require(not same(found, on_edge), "a t that is an edge stays where it is; its jump must go to the edge below")
    require(not same(found, torch.tensor([259, 259, 499, 499, 759, 759, 999, 999])), "it returns the edge above t")
    require(same(found, wanted), f"for t = {t.tolist()} it returns {torch.as_tensor(found).tolist()}")
    return "Each t gets the largest edge below it."


def meanflow(answer) -> str:
    """v, du (B, 1), start, end (B, 1) -> the target of the average velocity (B, 1)."""
    # A path with x = angle^2 / 2 + constant: v = angle, the average velocity is (start + end) / 2, its rate 1 / 2.
    start = torch.tensor([[1.2], [0.9], [0.5]])
    end, half = start / 3, torch.full_like(start, 0.5)
    require(same(answer(start, half, start, start), start), "between equal times the average must be v itself")
    found, wanted = answer(start, half, start, end), (start + end) / 2
    require(not same(found, start + (start - end) / 2), "the correction has the wrong sign")
    require(same(found, wanted), "on a path with x = angle^2 / 2 it is not the average velocity")
    v = start.clone().requires_grad_()
    require(not answer(v, half, start, end).requires_grad, "the target must carry no gradient")
    return "On a path with x = angle^2 / 2 it is the average velocity, and it carries no gradient."


def left(answer) -> str:
    """shares (B, K), rows that sum to 1 -> (B,)."""
    even = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    found = answer(even)
    require(not same(found, torch.tensor([0.25, 0.5, 1.0])), "that is the chance itself; its inverse is asked for")
    require(same(found, torch.tensor([4.0, 2.0, 1.0])), "even rows over 4, 2 and 1 pictures must give 4, 2 and 1")
    between = answer(torch.tensor([[0.8, 0.1, 0.1]]))
    require(not same(between, torch.tensor([3.0])), "it counts the pictures that are possible, however unlikely")
    require(not same(between, torch.tensor([1 / 0.8])), "it sees the likeliest picture alone")
    require(same(between, torch.tensor([1 / 0.66])), "for 0.8, 0.1, 0.1 the chance of two equal draws is 0.66")
    return "At t = 999 many pictures are left, and hardly more than one halfway."


CHECKS = {"guidance": guidance, "average": average, "edge": edge, "meanflow": meanflow, "left": left}
check = checker(CHECKS)
