"""From noise to clean latents: the teacher's many steps and the student's few, in one loop.

Next: `training/step.py`.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from anytext_lcm.lcm.consistency import consistency_function
from anytext_lcm.lcm.schedule import NoiseSchedule, ddim_timesteps, lcm_timesteps, noise_spaced_timesteps
from anytext_lcm.lcm.steps import Predict, ddim_step, noisy_ddim_step

Generators = torch.Generator | Sequence[torch.Generator] | None  # one, or one per picture; None is torch's global one


NOISE_SPACINGS = ("karras", "logsnr")  # of `noise_spaced_timesteps`; the others are of `ddim_timesteps`


class Sampled(NamedTuple):
    """One network call of a sampler."""

    timestep: int  # where the network was called
    x0: Tensor  # (B, C, h, w) the estimate of the clean latents there
    latents: Tensor  # (B, C, h, w) where the step ends; of the last step the result


def draw_noise(like: Tensor, generators: Generators) -> Tensor:
    """Standard normal noise of the shape of `like` (B, ...), drawn on the generators' own device."""
    if isinstance(generators, Sequence):
        return torch.cat([draw_noise(row, g) for row, g in zip(like.split(1), generators, strict=True)])
    device = like.device if generators is None else generators.device
    return torch.randn(like.shape, generator=generators, device=device).to(like.device)


def ddim(
    schedule: NoiseSchedule, x: Tensor, eps: Tensor, t: Tensor, s: Tensor, eta: float, generators: Generators
) -> tuple[Tensor, Tensor]:
    """DDIM (arXiv:2010.02502) from x at t: x0, and the latents at s. eta as in `noisy_ddim_step`."""
    x0 = schedule.x0_from_eps(x, eps, t)
    if eta:
        return x0, noisy_ddim_step(schedule, x0, eps, t, s, eta, draw_noise(x, generators))
    return x0, ddim_step(schedule, x0, eps, s)


def lcm(
    schedule: NoiseSchedule, x: Tensor, eps: Tensor, t: Tensor, s: Tensor, last: bool, generators: Generators
) -> tuple[Tensor, Tensor]:
    """LCM (arXiv:2310.04378): f(x, t), then fresh noise up to s; the last f stays clean."""
    x0 = consistency_function(x, eps, t, schedule)
    return x0, x0 if last else schedule.add_noise(x0, draw_noise(x, generators), s)


def tcd(
    schedule: NoiseSchedule,
    x: Tensor,
    eps: Tensor,
    t: Tensor,
    s: Tensor,
    gamma: float,
    last: bool,
    generators: Generators,
) -> tuple[Tensor, Tensor]:
    """TCD's gamma sampling (arXiv:2402.19159): DDIM past s to floor((1 - gamma) s), then fresh noise up to s.

    gamma 0 draws no noise. gamma 1 goes to t = 0 and is almost `lcm`: alphas_cumprod[0], which is not quite 1, keeps a
    trace of eps.
    """
    x0 = schedule.x0_from_eps(x, eps, t)
    below = ((1 - gamma) * s.double()).floor().long()
    x = ddim_step(schedule, x0, eps, below)
    if gamma > 0 and not last:  # the forward process from `below` on: x_s = ratio x + sqrt(1 - ratio^2) noise
        (alpha_below, _), (alpha_s, _) = schedule.alpha_sigma(below, x), schedule.alpha_sigma(s, x)
        ratio = alpha_s / alpha_below
        x = ratio * x + (1 - ratio**2).clamp(min=0).sqrt() * draw_noise(x, generators)
    return x0, x


def _ddim_grid(schedule: NoiseSchedule, steps: int, spacing: str) -> tuple[Tensor, Tensor]:
    """Where the steps of DDIM start and end. The last one ends at t = 0, so none may start there."""
    if spacing in NOISE_SPACINGS:
        points = noise_spaced_timesteps(schedule, steps + 1, spacing)
        return points[:-1], points[1:]
    starts = ddim_timesteps(steps, len(schedule), spacing)
    # The last step ends at alphas_cumprod[0] and not at clean data, as upstream (ldm/models/diffusion/ddim.py).
    return starts, (starts - len(schedule) // steps).clamp(min=0)


@torch.no_grad()
def sample(
    predict: Predict,
    noise: Tensor,
    schedule: NoiseSchedule,
    steps: int = 4,
    sampler: str = "lcm",
    *,
    spacing: str = "leading",
    eta: float = 0.0,
    gamma: float = 0.3,
    generators: Generators = None,
) -> Iterator[Sampled]:
    """Denoise (B, C, h, w) in `steps` network calls and yield after each one; `finish` returns the result alone.

    predict: eps, guided if guidance is wanted. sampler: ddim with `spacing` and `eta`, lcm, or tcd with `gamma`.
    generators draw the fresh noise, once per step; with one per picture a picture does not depend on its batch.
    Raises ValueError, at the first step, for a sampler, steps or gamma that do not fit.
    """
    if sampler not in ("ddim", "lcm", "tcd"):
        raise ValueError(f"Sampler {sampler!r} is unknown: choose 'ddim', 'lcm' or 'tcd'.")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in 0..1, not {gamma}; 0 is deterministic, 1 almost LCM's sampling.")
    if sampler == "ddim":
        starts, ends = _ddim_grid(schedule, steps, spacing)
    else:
        starts = lcm_timesteps(steps, train_timesteps=len(schedule))
        ends = torch.cat([starts[1:], starts.new_zeros(1)])
    x = noise.float()
    for done, (start, end) in enumerate(zip(starts, ends, strict=True), 1):
        t, s = (timestep.to(x.device).expand(len(x)) for timestep in (start, end))
        eps = predict(x, t)
        if sampler == "ddim":
            x0, x = ddim(schedule, x, eps, t, s, eta, generators)
        elif sampler == "lcm":
            x0, x = lcm(schedule, x, eps, t, s, done == steps, generators)
        else:
            x0, x = tcd(schedule, x, eps, t, s, gamma, done == steps, generators)
        yield Sampled(int(start), x0, x)


def finish(steps: Iterator[Sampled]) -> Tensor:
    """Run a sampler to its end and return its last latents (B, C, h, w), fp32."""
    for step in steps:
        latents = step.latents
    return latents
