"""What the student is trained to match: the objectives behind one interface.

An objective gets a `Point` of training and returns what the loss compares. Guidance is inside the teacher, the loss
outside, so an objective says only where the networks are asked.

Next: `samplers.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from anytext_lcm.lcm.consistency import consistency_function
from anytext_lcm.lcm.paths import Paths
from anytext_lcm.lcm.schedule import NoiseSchedule, phase_edges
from anytext_lcm.lcm.steps import Predict, ddim_step


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
    path: Paths | None = None  # the teacher's whole path through x_t and x_s, where it was stored


class Comparison(NamedTuple):
    """What the loss compares: clean latents, or those at the timestep where the objective's jump ends."""

    pred: Tensor  # (B, C, h, w) the student's, with gradient
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


def jump(schedule: NoiseSchedule, x: Tensor, eps: Tensor, t: Tensor, e: Tensor) -> Tensor:
    """J(x_t, t -> e): one DDIM step (arXiv:2010.02502) with the student's eps from t to any e below, fp32."""
    return ddim_step(schedule, schedule.x0_from_eps(x, eps, t), eps, e)


def _consistent_jump(point: Point, e: Tensor) -> Comparison:
    """J(x_t, t -> e) of the student = J(x_s, s -> e) of itself; where s = e the target is x_s."""
    target = jump(point.schedule, point.x_s, point.target(point.x_s, point.s), point.s, e)
    ended = (point.s == e).view(-1, *[1] * (point.x_s.ndim - 1))
    return _compared(point, torch.where(ended, point.x_s, target), e)


def _compared(point: Point, target: Tensor, e: Tensor) -> Comparison:
    """The student's jump from (x_t, t) to e beside its target there."""
    return Comparison(jump(point.schedule, point.x_t, point.student(), point.t, e), target)


def _phase_end(point: Point, phases: int) -> Tensor:
    """The end e of the phase that each (t, s) lies in, int64 (B,): the largest of `phase_edges` up to s."""
    edges = phase_edges(phases, train_timesteps=len(point.schedule)).to(point.s.device)
    return edges[torch.searchsorted(edges, point.s, right=True) - 1]


def pcm(point: Point, phases: int = 4) -> Comparison:
    """Phased consistency (arXiv:2405.18407): J(x_t, t -> e) = J(x_s, s -> e), e the end of t's phase.

    No jump crosses an edge, so fewer targets rest on the student's own guesses, and deterministic sampling in as many
    steps as there are phases makes the jumps that were trained. The phases are those of `phase_edges`; without the
    paper's discriminator. With one phase it is `lcm`, but for the boundary at t = 0.
    """
    return _consistent_jump(point, _phase_end(point, phases))


def tcd(point: Point) -> Comparison:
    """Trajectory consistency (arXiv:2402.19159): `pcm` with e drawn from 0..s for each picture.

    The student learns jumps to any end with one eps at (x_t, t): it gets no input for e, as a LoRA adapter cannot add
    one, so it learns the mean over ends.
    """
    share = torch.rand(point.s.shape, generator=point.generator, device=_device(point))
    e = (share.to(point.s.device).double() * (point.s + 1)).long().minimum(point.s)
    return _consistent_jump(point, e)


def _device(point: Point) -> torch.device:
    return point.s.device if point.generator is None else point.generator.device


def path(point: Point, phases: int = 4) -> Comparison:
    """Regression on the teacher's stored path: J(x_t, t -> e) = x_e of that path, e the end of t's phase.

    No target rests on the student. With one phase the targets are the ends of the paths, as in knowledge distillation
    (arXiv:2101.02388); with more the teacher's latents at `phase_edges`. Raises ValueError for a point without a path.
    """
    if point.path is None:
        raise ValueError("The path objective needs the teacher's stored paths: train with --paths FOLDER.")
    e = _phase_end(point, phases)
    return _compared(point, point.path.at(e), e)


OBJECTIVES: dict[str, Objective] = {"lcm": lcm, "teacher_x0": teacher_x0, "pcm": pcm, "tcd": tcd, "path": path}
PHASED = ("pcm", "path")


def objective_of(name: str, phases: int | None = None) -> Objective:
    """The objective of this name; those in PHASED with so many phases, by default their own.

    Raises ValueError for phases that the grid does not have, and for phases of an objective without them.
    """
    if phases is None:
        return OBJECTIVES[name]
    if name not in PHASED:
        raise ValueError(f"The objective {name} has no phases: leave --phases out, or choose {' or '.join(PHASED)}.")
    phase_edges(phases)
    return partial(OBJECTIVES[name], phases=phases)
