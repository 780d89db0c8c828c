"""Finished paths of the teacher, in the form in which they are stored: the noise, then its clean latents at each step.

A path of DDIM steps is a weighted mean of these, so rounding them to half precision is not amplified by the high
timesteps' small alpha.

Next: `objectives.py`.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.lcm.steps import DDIMSolver, Predict


def path_weights(solver: DDIMSolver) -> Tensor:
    """(n + 1, n + 1) fp64: row k gives x after k steps of a path from its stored rows, noise first.

    In y = x / alpha and u = sigma / alpha, DDIM (arXiv:2010.02502, equation 13) is y_s = (u_s / u_t) y_t +
    (1 - u_s / u_t) x0. The timesteps are the grid's, falling, and then 0.
    """
    timesteps = torch.cat([solver.timesteps.flip(0), torch.zeros(1, dtype=torch.int64)])
    abar = solver.schedule.alphas_cumprod.cpu().double()[timesteps]
    alpha, u = abar.sqrt(), ((1 - abar) / abar).sqrt()
    rows = [torch.zeros(len(timesteps), dtype=torch.float64)]
    rows[0][0] = 1 / alpha[0]
    for k in range(1, len(timesteps)):
        ratio = u[k] / u[k - 1]
        row = ratio * rows[-1]
        row[k] = 1 - ratio
        rows.append(row)
    return torch.stack(rows) * alpha[:, None]


@dataclass(frozen=True)
class Paths:
    """Paths of B pictures along `solver`'s grid of n timesteps.

    stored: (B, n + 1, C, h, w) of any float type: pure noise at the noisiest timestep, then the guided teacher's
    clean latents at every timestep of the grid, falling.
    """

    solver: DDIMSolver
    stored: Tensor

    @cached_property
    def _weights(self) -> Tensor:
        return path_weights(self.solver).float().to(self.stored.device)

    def at(self, timesteps: Tensor) -> Tensor:
        """x at timesteps int64 (B,), of the grid or 0: fp32 (B, C, h, w). Raises ValueError for another timestep."""
        ended, grid = timesteps == 0, self.solver.timesteps.to(timesteps.device)
        index = self.solver.index_of(torch.where(ended, grid[0], timesteps))
        done = len(self.solver) - 1 - index + ended.long()
        weights = self._weights[done.to(self.stored.device)]
        with torch.autocast(weights.device.type, enabled=False):  # it would sum in half precision
            return torch.einsum("bn,bn...->b...", weights, self.stored.float())

    @property
    def end(self) -> Tensor:
        """The clean latents at timestep 0, fp32 (B, C, h, w)."""
        return self.at(torch.zeros(len(self.stored), dtype=torch.int64, device=self.stored.device))

    def x0(self, index: Tensor) -> Tensor:
        """The teacher's clean latents at grid point `index`, counted from the cleanest: fp32 (B, C, h, w)."""
        rows = (len(self.solver) - index).to(self.stored.device)
        return self.stored[torch.arange(len(rows), device=self.stored.device), rows].float()


@torch.no_grad()
def draw_paths(teacher: Predict, noise: Tensor, solver: DDIMSolver, dtype: torch.dtype = torch.float16) -> Tensor:
    """Follow the teacher from pure noise (B, C, h, w) along the whole grid: what `Paths` stores, on the noise's device.

    teacher: guided. The noise is rounded to dtype before the first step, so that the path starts from what is stored;
    every step goes on from the unrounded latents.
    """
    schedule: NoiseSchedule = solver.schedule
    stored = [noise.to(dtype)]
    x = stored[0].float()
    for place in reversed(range(len(solver))):
        index = torch.full((len(x),), place, device=x.device)
        t = solver.start_timesteps(index)
        eps = teacher(x, t)
        x0 = schedule.x0_from_eps(x, eps, t)
        stored.append(x0.to(dtype))
        x = solver.step(x0, eps, index)
    return torch.stack(stored, dim=1)
