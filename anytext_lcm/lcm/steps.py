"""One DDIM step, deterministic or with fresh noise, and guidance. Imports the schedule."""

import torch
from torch import Tensor

from anytext_lcm.lcm.schedule import NoiseSchedule, solver_grid


def guide(cond: Tensor, uncond: Tensor, guidance_scale: float | Tensor) -> Tensor:
    """uncond + s (cond - uncond): classifier-free guidance (arXiv:2207.12598) in Stable Diffusion's form, s =
    1 is none.

    LCM's paper writes the same as cond + w (cond - uncond), so w = s - 1. fp32.
    """
    return uncond.float() + guidance_scale * (cond.float() - uncond.float())


def ddim_step(schedule: NoiseSchedule, x0: Tensor, eps: Tensor, end_timesteps: Tensor) -> Tensor:
    """alpha_s x0 + sigma_s eps at s = end_timesteps: DDIM (arXiv:2010.02502), equation 12 with no fresh
    noise.

    Where the step starts does not appear: x0 and eps carry it. Tensors (B, ...), end_timesteps int64 (B,);
    fp32.
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
    """As `ddim_step`, but a part of eps is replaced by fresh noise: DDIM, equations 12 and 16.

    eta 0 replaces none, eta 1 as much as the step of DDPM does. Tensors (B, ...), timesteps int64 (B,), each end below
    its start; fp32.
    """
    alpha, sigma = schedule.alpha_sigma(start_timesteps, x0)
    later_alpha, later_sigma = schedule.alpha_sigma(end_timesteps, x0)
    fresh = eta * later_sigma / sigma * (1 - (alpha / later_alpha) ** 2).sqrt()
    return later_alpha * x0 + (later_sigma**2 - fresh**2).clamp(min=0).sqrt() * eps + fresh * noise


class DDIMSolver:
    """The ODE solver of distillation: from a grid timestep, `skip` training timesteps towards the data.

    `index` counts grid points from the cleanest, int64 (B,) in 0..steps-1. The cleanest point, t = 19, steps
    to t = 0 and not to -1, so its step ends at alphas_cumprod[0] and not at clean data (as in LCM's own
    training code).
    """

    def __init__(self, schedule: NoiseSchedule, steps: int = 50, skip: int | None = None):
        """skip defaults to the distance of neighbours on the grid, 20 at 50 steps. Raises ValueError when off
        the grid.
        """
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
        """Grid index -> where the step from t ends: max(t - skip, 0)."""
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
        """Prediction at grid point `index` -> x at `previous_timesteps(index)`, fp32."""
        return ddim_step(self.schedule, x0, eps, self.previous_timesteps(index))
