"""The guided teacher under diffusers' fast solvers, the rivals that need no training.

DPM-Solver++(2M), arXiv:2211.01095, and UniPC of order 2, arXiv:2302.04867. Both evaluate the network once per step
(twice with guidance), as DDIM does, and reuse earlier evaluations.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anytext_lcm.drawing.methods import NOISE_SPACINGS, Method
from anytext_lcm.lcm.samplers import Sampled
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.lcm.steps import Predict


def make_scheduler(method: Method, schedule: NoiseSchedule) -> Any:
    """diffusers' scheduler on our schedule, its timesteps set. Raises ValueError when diffusers is not installed."""
    try:
        from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
    except ImportError as error:
        raise ValueError(
            f"{method.name} uses diffusers, which is not installed: `pip install diffusers`, or leave this method out."
        ) from error
    abar = schedule.alphas_cumprod.double().cpu().numpy()
    scheduler = {"dpm++": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}[method.sampler](
        trained_betas=1 - abar / np.concatenate([[1.0], abar[:-1]]),
        solver_order=2,
        timestep_spacing="trailing" if method.spacing in NOISE_SPACINGS else method.spacing,
        use_karras_sigmas=method.spacing == "karras",
        use_exponential_sigmas=method.spacing == "logsnr",
        steps_offset=1,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(method.steps)
    return scheduler


@torch.no_grad()
def solver_steps(predict: Predict, noise: Tensor, schedule: NoiseSchedule, method: Method) -> Iterator[Sampled]:
    """Denoise (B, C, h, w) by the method's solver and yield after each network call, as `lcm.samplers.sample`."""
    scheduler, x = make_scheduler(method, schedule), noise.float()
    for timestep in scheduler.timesteps:
        t = timestep.long().to(x.device).expand(len(x))
        eps = predict(x, t)
        x0 = schedule.x0_from_eps(x, eps, t)
        x = scheduler.step(eps, timestep, x).prev_sample
        yield Sampled(int(timestep), x0, x)
