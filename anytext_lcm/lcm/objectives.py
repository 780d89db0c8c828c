"""What the student is asked to match: the two objectives behind one interface. Imports the rest of this room.

Steps 1 to 5 (encode, condition, control, draw t, add noise) and 11 (update) of a training step are in
`anytext_lcm/distill.py`; 6 to 10 here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from anytext_lcm.lcm.consistency import consistency_function, pseudo_huber
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.lcm.steps import DDIMSolver, guide

Predict = Callable[[Tensor, Tensor], Tensor]  # x_t (B, C, h, w), timesteps int64 (B,) -> eps (B, C, h, w)
PredictPair = Callable[
    [Tensor, Tensor], tuple[Tensor, Tensor]
]  # the same -> eps of the conditional, of the unconditional branch
_NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class LossParts:
    """A loss and what it was made of; all but `loss` and `pred` without gradient."""

    loss: Tensor  # scalar
    pred: Tensor  # (B, C, h, w) what the student answered
    target: Tensor  # (B, C, h, w) what it should have answered
    teacher_x0: Tensor  # (B, C, h, w) the guided teacher's estimate of the clean latents from the same x_t
    noisy_latents: Tensor  # (B, C, h, w) x_t
    start_timesteps: Tensor  # (B,) t
    end_timesteps: Tensor  # (B,) where the target looks: t - skip, or t


def lcm(
    student: Predict,
    teacher: PredictPair,
    target: Predict,
    schedule: NoiseSchedule,
    solver: DDIMSolver,
    noisy_latents: Tensor,
    index: Tensor,
    guidance_scale: float = 7.5,
    loss: Callable[..., Tensor] = pseudo_huber,
    weight: Tensor | None = None,
    shared: Mapping[str, Any] = _NONE,
) -> LossParts:
    """Latent consistency: f(x_t, t) of the student = f(x_s, s) of itself, where the teacher's ODE leads from
    x_t to x_s.

    LCM (arXiv:2310.04378), algorithm 1, with a guidance scale that the student is not told and, as for LCM-LoRA
    (arXiv:2311.05556), the student's own weights instead of a moving average as target. Guidance acts on eps; on x0
    it would be the same, x0 being linear in eps.

    noisy_latents: x_t (B, C, h, w); index: int64 (B,) of t on the solver's grid; weight: (B, 1, h, w) in 0..1, what the
    mean keeps. shared: keyword arguments for teacher and student that are true at this very (x_t, t), such as encodings
    common to both; no call at another point gets them.
    """
    t = solver.start_timesteps(index)
    with torch.no_grad():
        # 6. teacher: with and without the condition, guided
        teacher_eps = guide(*teacher(noisy_latents, t, **shared), guidance_scale)
        teacher_x0 = schedule.x0_from_eps(noisy_latents, teacher_eps, t)
        # 7. solver: one DDIM step along the teacher's trajectory, from t to s
        earlier_latents = solver.step(teacher_x0, teacher_eps, index)
        # 8. target: the same weights without gradient at (x_s, s); at s = 0 it is x_s itself, where ground
        # truth enters
        s = solver.previous_timesteps(index)
        wanted = consistency_function(earlier_latents, target(earlier_latents, s), s, schedule)
    # 9. student: the consistency function at (x_t, t)
    pred = consistency_function(noisy_latents, student(noisy_latents, t, **shared), t, schedule)
    # 10. loss: distance of the two
    return LossParts(loss(pred, wanted, weight=weight), pred, wanted, teacher_x0, noisy_latents, t, s)


def teacher_x0(
    student: Predict,
    teacher: PredictPair,
    target: Predict,
    schedule: NoiseSchedule,
    solver: DDIMSolver,
    noisy_latents: Tensor,
    index: Tensor,
    guidance_scale: float = 7.5,
    loss: Callable[..., Tensor] = pseudo_huber,
    weight: Tensor | None = None,
    shared: Mapping[str, Any] = _NONE,
) -> LossParts:
    """Regression of the student's x0 on the guided teacher's x0 at the same x_t and t; arguments as in `lcm`,
    `target` unused.

    It teaches the student one step of guidance, and no more: at high t the teacher's x0 is the blurred mean
    of all pictures that x_t may have come from, and so is the best student's. There is no path along which
    sharpness could travel.
    """
    t = solver.start_timesteps(index)
    with torch.no_grad():
        # 6. teacher: with and without the condition, guided
        wanted = schedule.x0_from_eps(noisy_latents, guide(*teacher(noisy_latents, t, **shared), guidance_scale), t)
    # 7. and 8. have no counterpart: no solver, and the target is the teacher
    # 9. student: its estimate of the clean latents at the same (x_t, t)
    pred = schedule.x0_from_eps(noisy_latents, student(noisy_latents, t, **shared), t)
    # 10. loss: distance of the two
    return LossParts(loss(pred, wanted, weight=weight), pred, wanted, wanted, noisy_latents, t, t)


OBJECTIVES = {"lcm": lcm, "teacher_x0": teacher_x0}
