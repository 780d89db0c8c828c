"""The checks of the exercises in notebook 05."""

import cv2
import numpy as np
import torch

from anytext_lcm.drawing import play
from anytext_lcm.teaching.checks import checker, require, same

SIDE = 128  # of the scene, in pixels


def steps_for(answer) -> str:
    """evaluations, scale -> steps."""
    require(answer(4, 1) == 4, f"without guidance 4 evaluations are 4 steps, not {answer(4, 1)}")
    require(answer(100, 4.0) != 100, "a guided step costs two evaluations")
    require(answer(100, 4.0) == 50, f"guided, 100 evaluations are 50 steps, not {answer(100, 4.0)}")
    odd = answer(5, 4.0)
    require(odd == 2, f"guided, 5 evaluations are enough for 2 steps, and it says {odd}")
    return "At 4 evaluations the student takes 4 steps and the guided teacher 2."


def guided_estimate(answer) -> str:
    """x_t, cond, uncond (2, 3), s_g, alpha, sigma -> (2, 3)."""
    x, cond, uncond = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(4))
    alpha, sigma = 0.6, 0.8

    def estimate(eps: torch.Tensor) -> torch.Tensor:
        return (x - sigma * eps) / alpha

    one = answer(x, cond, uncond, 1.0, alpha, sigma)
    require(not same(one, estimate(uncond)), "at s_g = 1 this returns the unconditional branch")
    require(same(one, estimate(cond)), "at s_g = 1 it must be the estimate of the conditional branch")
    zero = answer(x, cond, uncond, 0.0, alpha, sigma)
    require(same(zero, estimate(uncond)), "at s_g = 0 it must be the estimate of the unconditional branch")
    four = answer(x, cond, uncond, 4.0, alpha, sigma)
    require(not same(four, estimate(cond + 4 * (cond - uncond))), "that is s_g + 1: start from uncond, not from cond")
    require(same(four, estimate(uncond + 4 * (cond - uncond))), "at s_g = 4 it is not the guided estimate")
    return "It goes from the unconditional branch through the conditional one, and beyond."


def agreement(answer) -> str:
    """wanted, read -> 0..1."""
    require(same(answer("maple", "maple"), 1.0), "equal texts must give 1")
    require(same(answer("abc", "xyz"), 0.0), "texts without a common letter must give 0")
    longer = answer("oak", "oakoak")
    require(not same(longer, 0.0), "it divides by the shorter text; take the longer one")
    require(same(longer, 0.5), f"oak and oakoak differ by 3 of 6 letters, so 0.5, not {longer:.2f}")
    shifted = answer("maple", "aple")
    require(not same(shifted, 0.0), "a lost letter must not shift all that follow: count insertions and deletions")
    require(same(shifted, 0.8), f"maple and aple differ by one of 5 letters, so 0.8, not {shifted:.2f}")
    require(same(answer("kitten", "sitting"), 1 - 3 / 7), "kitten and sitting have the edit distance 3")
    require(same(answer("", ""), 1.0), "two empty texts agree: 1")
    return "It equals the project's NED."


def paired_interval(answer) -> str:
    """student, rival (n,), picks (R, n) -> low, high."""
    generator = np.random.default_rng(2)
    hard = generator.random(40)  # what is hard for one is hard for the other
    student, rival = hard + 0.1 + 0.02 * generator.standard_normal(40), hard
    picks = generator.integers(0, 40, (500, 40))
    found = answer(student, rival, picks)
    require(found is not None and np.shape(found) == (2,), "it must return two numbers, low and high")
    low, high = (float(value) for value in found)
    require(low <= high, "low lies above high")
    require(low > 0 or high > 0, "the sign is wrong: student less rival")
    require(high - low < 0.05, f"the interval is {high - low:.2f} wide: use the same picks for both sides")
    means = (student - rival)[picks].mean(axis=1)
    require(low > means.min() and high < means.max(), "it is the whole range; 2.5 % lie below it and 2.5 % above")
    require(same((low, high), np.quantile(means, [0.025, 0.975]), 1e-6), "it is not the 2.5 % and the 97.5 % quantile")
    return "The difference is known far better than each side."


def clear_until(answer) -> str:
    """alphas_cumprod (T,), wanted -> t."""
    alphas_cumprod = torch.tensor([0.99, 0.9, 0.8, 0.5, 0.2, 0.1])
    found = answer(alphas_cumprod, 1.0)
    require(found != 4, "it counts the timesteps; they begin at 0")
    require(found == 3, f"an SNR of 1 is reached at t = 3, where half of the power is signal, not at {found}")
    require(answer(alphas_cumprod, 3.9) == 2, "with wanted = 3.9 it must be t = 2, whose SNR is 4")
    return "At t = 259, the last of four LCM steps, the SNR is about 2."


def kernel_mmd(answer) -> str:
    """a (n, D), b (m, D) -> number."""
    generator = np.random.default_rng(0)

    def sample(count: int, shift: float = 0.0) -> np.ndarray:
        return generator.standard_normal((count, 4)) + shift

    a, b = sample(6), sample(5, 1.0)
    k_aa, k_bb, k_ab = ((x @ y.T / 4 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    parts = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (k_aa, k_bb)]
    found = answer(a, b)
    biased = k_aa.mean() + k_bb.mean() - 2 * k_ab.mean()
    require(not same(found, biased), "the diagonal is still in: pairs of a row with itself pull it above 0")
    require(not same(found, sum(parts) - k_ab.mean()), "the mean over mixed pairs counts twice")
    unscaled = [(x @ y.T + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
    wrong = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in unscaled[:2]]
    require(not same(found, sum(wrong) - 2 * unscaled[2].mean()), "the inner product is not divided by D")
    require(same(found, sum(parts) - 2 * k_ab.mean(), 1e-6), "it is not the unbiased estimator")
    equal = np.mean([answer(sample(6), sample(5)) for _ in range(300)])
    require(abs(equal) < 1, f"for equal distributions it is {equal:.1f} on average, and 0 is right")
    return "0 on average for equal distributions, and so at times below 0."


def speedup(answer) -> str:
    """prepare, denoise, decode, factor -> times as fast."""
    require(same(answer(0.0, 1.0, 0.0, 25.0), 25.0), "with nothing but denoising it must be the factor itself")
    require(same(answer(0.1, 1.0, 0.3, 1.0), 1.0), "a factor of 1 changes nothing")
    found = answer(0.0, 1.0, 0.25, 25.0)
    require(not same(found, 1 / found) and found > 1, "that is new time over old time")
    require(same(found, 1.25 / 0.29), f"1.25 seconds become 0.29; that is 4.31 times as fast, not {found:.2f}")
    require(same(answer(0.1, 1.0, 0.1, 1e9), 6.0), "with an infinite factor the rest of the time stays")
    return "25 times faster denoising makes a picture with a fifth of decoding 4.3 times as fast."


def lost_at(answer) -> str:
    """ned {name: 0..1} in the order of the chain, tolerance -> name or None."""
    names = ("drawn", "autoencoder", "teacher", "student")

    def found(*values: float) -> str | None:
        return answer(dict(zip(names, values, strict=True)), 0.1)

    whole = found(1.0, 0.95, 0.97, 0.96)
    require(whole != "autoencoder", "a fall of 0.05 is within the tolerance of 0.1")
    require(whole is None, f"where nothing is lost it must be None, not {whole!r}")
    require(found(0.5, 0.5, 0.5, 0.5) == "drawn", "0.5 at the first link is below 1: the reader fails there")
    both = found(1.0, 0.4, 0.1, 0.0)
    require(both == "autoencoder", f"1, 0.4, 0.1, 0: the first link that loses is the autoencoder, not {both!r}")
    slow = found(0.95, 0.88, 0.8, 0.5)
    require(slow == "student", f"0.95, 0.88, 0.8, 0.5: each is compared with the link before it, so not {slow!r}")
    return "It names the first link to mend; a later one may be worse."


def merged_weight(answer) -> str:
    """weight (24, 16), up (24, 4), down (4, 16), all fp16, scale -> (24, 16) fp16."""
    generator = torch.Generator().manual_seed(6)
    weight, up, down = (torch.randn(shape, generator=generator).half() for shape in ((24, 16), (24, 4), (4, 16)))
    before, product = weight.clone(), up.double() @ down.double()
    exact = weight.double() + 0.7 * product
    found = answer(weight, up, down, 0.7)
    require(same(weight, before, 0), "it changes the weight that it was given; write weight + ..., not weight += ...")
    require(not same(found, weight + product, 0.02), "scale is missing")
    require(same(found, exact, 0.02), "it is not weight + scale * up @ down")
    require(found.dtype == weight.dtype, f"it is {found.dtype}, and the weight's torch.float16 is asked for")
    least = (exact.half().double() - exact).abs().mean()
    often = (found.double() - exact).abs().mean() > 1.05 * least
    require(not often, "it rounds more than once: add and multiply in fp32, then go back to fp16")
    return "The one rounding left is the one that fp16 asks for."


def unbeaten(answer) -> str:
    """rows {name: (evaluations, share, distance)} -> names."""
    rows = {"costly": (8, 0.91, 0.31), "best": (8, 0.92, 0.30), "good": (4, 0.90, 0.30), "far": (4, 0.90, 0.35)}
    rows["cheap"] = (2, 0.80, 0.50)
    found = answer(rows)
    require(isinstance(found, list), f"it returns {type(found).__name__}, and a list is asked for")
    require(found, "nothing is left: a row does not beat itself")
    require("far" not in found, "far differs from good in distance alone, and loses")
    require("costly" not in found, "costly is behind best twice, at the same cost")
    require("cheap" in found, "cheap has the fewest evaluations, so nothing beats it")
    require("best" in found, "best reads most lines; more is better there")
    require(found == ["best", "good", "cheap"], f"best, good and cheap are left, in this order; it says {found}")
    require(answer({"a": rows["good"], "b": rows["good"]}) == ["a", "b"], "of two equal rows none beats the other")
    return "What is left is a choice between cost, reading and distance."


def my_scene(answer) -> str:
    """A play.Scene with two lines."""
    require(isinstance(answer, play.Scene), f"it is {type(answer).__name__}, and a play.Scene is asked for")
    boxes = [box for box in answer.boxes if box.text.strip()]
    require(len(boxes) == 2, f"it has {len(boxes)} lines with text, and two are asked for")
    taken = np.zeros((SIDE, SIDE), int)
    for box in boxes:
        require(2 <= len(box.text) <= 7, f"{box.text!r} has {len(box.text)} letters, and 2 to 7 are asked for")
        corners = box.line().polygon
        inside = corners.min() >= 0 and corners.max() <= SIDE
        require(inside, f"the box of {box.text!r} leaves the picture of {SIDE} x {SIDE} pixels")
        require(box.bottom - box.top >= 24, f"the box of {box.text!r} is {box.bottom - box.top} pixels high, below 24")
        taken += cv2.fillPoly(np.zeros((SIDE, SIDE), np.uint8), [corners.astype(np.int32).reshape(-1, 1, 2)], 1)
    require(taken.max() < 2, "the two boxes overlap")
    require("background" in answer.caption, "the caption does not name the background")
    return "Draw it with the student, and read it yourself."


CHECKS = {
    "steps_for": steps_for,
    "guided_estimate": guided_estimate,
    "agreement": agreement,
    "paired_interval": paired_interval,
    "clear_until": clear_until,
    "kernel_mmd": kernel_mmd,
    "speedup": speedup,
    "lost_at": lost_at,
    "my_scene": my_scene,
    "merged_weight": merged_weight,
    "unbeaten": unbeaten,
}
check = checker(CHECKS)
