"""From noise to a picture's latents: the teacher's many steps, the student's few. Imports the rest of this
room.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from anytext_lcm.lcm.consistency import consistency_function
from anytext_lcm.lcm.objectives import Predict
from anytext_lcm.lcm.schedule import NoiseSchedule, ddim_timesteps, lcm_timesteps
from anytext_lcm.lcm.steps import ddim_step, noisy_ddim_step

Progress = Callable[[int, int, Tensor], None]  # steps done, timestep just used, estimate of the clean latents there


def _batch(timestep: Tensor, like: Tensor) -> Tensor:
    return timestep.to(like.device).expand(like.shape[0])


def _fresh_noise(x: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
    if isinstance(generator, Sequence):
        return torch.cat([_fresh_noise(row, g) for row, g in zip(x.split(1), generator, strict=True)])
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device).to(x.device)


@torch.no_grad()
def sample_ddim(
    predict: Predict,
    noise: Tensor,
    schedule: NoiseSchedule,
    steps: int = 20,
    progress: Progress | None = None,
    spacing: str = "leading",
    eta: float = 0.0,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Tensor:
    """DDIM (arXiv:2010.02502): noise (B, C, h, w) at t = 951 of 20 steps -> latents, fp32.

    predict answers the guided eps. eta 0 is deterministic; 1 draws as much fresh noise as DDPM, from `generator` or
    from one for each picture. The last step ends at alphas_cumprod[0] and not at clean data, as
    upstream's sampler does (ldm/models/diffusion/ddim.py). spacing as in `ddim_timesteps`. Raises ValueError
    for a number of steps that does not fit the schedule.
    """
    timesteps = ddim_timesteps(steps, len(schedule), spacing)
    stride = len(schedule) // steps
    x = noise.float()
    for done, timestep in enumerate(timesteps, 1):
        t = _batch(timestep, x)
        eps = predict(x, t)
        x0 = schedule.x0_from_eps(x, eps, t)
        end = (t - stride).clamp(min=0)
        if eta:
            x = noisy_ddim_step(schedule, x0, eps, t, end, eta, _fresh_noise(x, generator))
        else:
            x = ddim_step(schedule, x0, eps, end)
        if progress is not None:
            progress(done, int(timestep), x0)
    return x


@torch.no_grad()
def sample_lcm(
    predict: Predict,
    noise: Tensor,
    schedule: NoiseSchedule,
    steps: int = 4,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    original_steps: int = 50,
    progress: Progress | None = None,
) -> Tensor:
    """Multistep consistency sampling: LCM (arXiv:2310.04378). noise (B, C, h, w) -> latents,
    fp32.

    Answer the clean latents, put fresh noise on them down to the next timestep, answer again. The last answer
    is returned as it is, without noise. generator draws that noise, on its own device; one draw between two
    steps. One generator a picture makes each picture independent of what else is in the batch. Raises
    ValueError when steps is not within 1..original_steps.
    """
    timesteps = lcm_timesteps(steps, original_steps, len(schedule))
    x = noise.float()
    for done, timestep in enumerate(timesteps, 1):
        t = _batch(timestep, x)
        x0 = consistency_function(x, predict(x, t), t, schedule)
        if progress is not None:
            progress(done, int(timestep), x0)
        if done == steps:
            return x0
        x = schedule.add_noise(x0, _fresh_noise(x, generator), _batch(timesteps[done], x))
    raise AssertionError("unreachable: there is at least one step")


def _noisier(x: Tensor, noise: Tensor, schedule: NoiseSchedule, start: Tensor, end: Tensor) -> Tensor:
    """The forward process from timesteps start (B,) to end (B,), not before it: x_s with noise added until x_t."""
    alpha_s, _ = schedule.alpha_sigma(start, x)
    alpha_t, _ = schedule.alpha_sigma(end, x)
    ratio = alpha_t / alpha_s
    return ratio * x + (1 - ratio**2).clamp(min=0).sqrt() * noise


@torch.no_grad()
def sample_tcd(
    predict: Predict,
    noise: Tensor,
    schedule: NoiseSchedule,
    steps: int = 4,
    gamma: float = 0.3,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    original_steps: int = 50,
    progress: Progress | None = None,
) -> Tensor:
    """Gamma sampling: TCD (arXiv:2402.19159), strategic stochastic sampling. noise (B, C, h, w) -> latents, fp32.

    At the timesteps of `sample_lcm`, each step goes by DDIM past the next timestep t to floor((1 - gamma) t), and fresh
    noise brings it back up to t. gamma 0 draws no noise: DDIM on the student's grid. gamma 1 goes to t = 0 and keeps
    what the network calls noise there only as far as alphas_cumprod[0] is not 1, so it is almost `sample_lcm`. The last
    step ends at t = 0. A student trained by another objective than TCD's can be sampled so as well; it has learnt to
    answer clean latents at these timesteps, and that is all that is asked. generator as in `sample_lcm`. Raises
    ValueError when gamma is not within 0..1 or steps not within 1..original_steps.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in 0..1, not {gamma}; 0 is deterministic, 1 almost LCM's sampling.")
    timesteps = lcm_timesteps(steps, original_steps, len(schedule)).tolist()
    x = noise.float()
    for done, (timestep, end) in enumerate(zip(timesteps, [*timesteps[1:], 0], strict=True), 1):
        t = _batch(torch.tensor(timestep), x)
        eps = predict(x, t)
        x0 = schedule.x0_from_eps(x, eps, t)
        below = _batch(torch.tensor(math.floor((1 - gamma) * end)), x)
        x = ddim_step(schedule, x0, eps, below)
        if progress is not None:
            progress(done, timestep, x0)
        if gamma > 0 and done < steps:
            x = _noisier(x, _fresh_noise(x, generator), schedule, below, _batch(torch.tensor(end), x))
    return x
