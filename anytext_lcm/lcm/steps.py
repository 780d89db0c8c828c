"""One step along a teacher's trajectory: guidance, DDIM with and without fresh noise, the solver of distillation.

Next: `consistency.py`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from anytext_lcm.lcm.schedule import NoiseSchedule, solver_grid

Predict = Callable[[Tensor, Tensor], Tensor]  # a network: x_t (B, C, h, w), timesteps int64 (B,) -> eps (B, C, h, w)


def guide(cond: Tensor, uncond: Tensor, guidance_scale: float | Tensor) -> Tensor:
    """Classifier-free guidance (arXiv:2207.12598): uncond + s (cond - uncond), fp32; s = 1 is none.

    LCM's paper writes cond + w (cond - uncond), so w = s - 1.
    """
    return uncond.float() + guidance_scale * (cond.float() - uncond.float())


def ddim_step(schedule: NoiseSchedule, x0: Tensor, eps: Tensor, end_timesteps: Tensor) -> Tensor:
    """x_s = alpha_s x0 + sigma_s eps at s = end_timesteps: DDIM (arXiv:2010.02502), equation 12 without noise.

    x0 and eps carry where the step starts. Tensors (B, ...), end_timesteps int64 (B,); fp32.
    """
    return schedule.add_noise(x0, eps, end_timesteps)


def noisy_ddim_step(
    schedule: NoiseSchedule,
    x0: Tensor,
    eps: Tensor,
    start_timesteps: Tensor,
    end_timesteps: Tensor,
    eta: float,
    noise: Tensor,
) -> Tensor:
    """`ddim_step` with a part of eps replaced by fresh noise: DDIM, equations 12 and 16.

    eta 0 replaces none, eta 1 as much as DDPM. Tensors (B, ...), timesteps int64 (B,), each end below its start.
    """
    alpha_t, sigma_t = schedule.alpha_sigma(start_timesteps, x0)
    alpha_s, sigma_s = schedule.alpha_sigma(end_timesteps, x0)
    fresh = eta * sigma_s / sigma_t * (1 - (alpha_t / alpha_s) ** 2).sqrt()
    return alpha_s * x0 + (sigma_s**2 - fresh**2).clamp(min=0).sqrt() * eps + fresh * noise


class DDIMSolver:
    """The ODE solver of distillation: from a grid timestep `skip` training timesteps towards the data.

    `index` counts grid points from the cleanest, int64 (B,) in 0..steps-1.
    """

    def __init__(self, schedule: NoiseSchedule, steps: int = 50, skip: int | None = None):
        """skip: by default the distance of neighbours on the grid, 20 at 50 steps. Raises ValueError out of range."""
        self.schedule = schedule
        self.timesteps = solver_grid(steps, len(schedule))
        self.skip = len(schedule) // steps if skip is None else skip
        if not 1 <= self.skip < len(schedule):
            raise ValueError(f"A skip of {self.skip} timesteps is not possible: give 1 to {len(schedule) - 1}.")

    def __len__(self) -> int:
        return len(self.timesteps)

    def start_timesteps(self, index: Tensor) -> Tensor:
        """Grid index -> t."""
        return self.timesteps.to(index.device)[index]

    def previous_timesteps(self, index: Tensor) -> Tensor:
        """Grid index -> s, where the step from t ends: max(t - skip, 0).

        The cleanest point, t = 19, steps to 0 and not to -1: its end is alphas_cumprod[0], as in LCM's own code.
        """
        return (self.start_timesteps(index) - self.skip).clamp(min=0)

    def index_of(self, timesteps: Tensor) -> Tensor:
        """t -> grid index. Raises ValueError for a timestep that is not on the grid."""
        grid = self.timesteps.to(timesteps.device)
        index = torch.searchsorted(grid, timesteps).clamp(max=len(grid) - 1)
        if not bool((grid[index] == timesteps).all()):
            raise ValueError(
                f"timesteps {timesteps.tolist()} are not all on the solver's grid {grid[0]}, ... {grid[-1]} "
                f"of {len(grid)} steps; draw a grid index instead."
            )
        return index

    def step(self, x0: Tensor, eps: Tensor, index: Tensor) -> Tensor:
        """Predictions at grid point `index` -> x_s at `previous_timesteps(index)`, fp32."""
        return ddim_step(self.schedule, x0, eps, self.previous_timesteps(index))
