"""What the student is trained to match: the objectives behind one interface.

An objective gets a `Point` of training and returns what the loss compares. Guidance is inside the teacher, the loss
outside, so an objective says only where the networks are asked.

Next: `samplers.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from anytext_lcm.lcm.consistency import consistency_function
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.lcm.steps import Predict


@dataclass(frozen=True)
class Point:
    """A noisy x_t, its neighbour x_s one teacher step closer to the data, and the networks to ask.

    Latents are fp32 (B, C, h, w), timesteps int64 (B,). No field carries a gradient; of the networks only `student`.
    """

    schedule: NoiseSchedule
    latents: Tensor  # the clean latents that x_t was made from
    x_t: Tensor
    t: Tensor
    teacher_x0: Tensor  # the guided teacher's estimate of the clean latents at (x_t, t)
    x_s: Tensor  # where the solver's step along the teacher's trajectory ends
    s: Tensor
    student: Callable[[], Tensor]  # -> eps at this very (x_t, t), so that encodings of that point can be shared
    target: Predict  # the student's weights without gradient, at any point
    teacher: Predict  # guided, without gradient, at any point
    generator: torch.Generator | None = None  # source of every random number of the step


class Comparison(NamedTuple):
    """What the loss compares. Both are clean latents: what is compared at another timestep is converted to them."""

    pred: Tensor  # (B, C, h, w) the student's estimate, with gradient
    target: Tensor  # (B, C, h, w) what it is to be, without


Objective = Callable[[Point], Comparison]


def lcm(point: Point) -> Comparison:
    """Latent consistency: f(x_t, t) of the student = f(x_s, s) of itself (arXiv:2310.04378, algorithm 1).

    As for LCM-LoRA (arXiv:2311.05556) the target has the student's own weights instead of a moving average, and the
    network gets no input for the guidance scale. At s = 0 the target is x_s itself, where ground truth enters.
    """
    target = consistency_function(point.x_s, point.target(point.x_s, point.s), point.s, point.schedule)
    return Comparison(consistency_function(point.x_t, point.student(), point.t, point.schedule), target)


def teacher_x0(point: Point) -> Comparison:
    """Regression of the student's x0 on the guided teacher's at the same (x_t, t).

    It teaches one step of guidance and no more: at high t the best x0 is the blurred mean of all pictures that x_t may
    have come from, and no trajectory connects it with a sharp one.
    """
    return Comparison(point.schedule.x0_from_eps(point.x_t, point.student(), point.t), point.teacher_x0)


OBJECTIVES: dict[str, Objective] = {"lcm": lcm, "teacher_x0": teacher_x0}
