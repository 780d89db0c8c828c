"""The noise schedule, its conversions, and the timesteps at which teacher and student are called.

Symbols: alpha_t = sqrt(alphas_cumprod[t]) scales the signal, sigma_t = sqrt(1 - alphas_cumprod[t]) the noise;
alpha_t^2 + sigma_t^2 = 1. Every result is fp32, whatever dtype comes in. At t = 999 an error of eps grows by
1 / alpha_t = 14.6, and bf16 cannot hold the number 999.

Next: `steps.py`.
"""

import torch
from torch import Tensor

TRAIN_TIMESTEPS = 1000  # AnyText2 models_yaml/anytext2_sd15.yaml, as Stable Diffusion 1.5


def as_column(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, ...) with as many axes as `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


class NoiseSchedule:
    """The forward process x_t = alpha_t x0 + sigma_t noise, and the conversions between predictions.

    A network predicts eps (the noise), x0 (the data) or v = alpha_t eps - sigma_t x0 (Salimans & Ho,
    arXiv:2202.00512, appendix D). Tensors are (B, ...), timesteps int64 (B,) in 0..999, results fp32.
    """

    def __init__(self, alphas_cumprod: Tensor):
        """alphas_cumprod: (T,), falling, inside (0, 1). Raises ValueError otherwise."""
        abar = alphas_cumprod.detach().float()
        if abar.ndim != 1 or not bool(((abar > 0) & (abar < 1)).all()) or not bool((abar[1:] < abar[:-1]).all()):
            raise ValueError(
                "alphas_cumprod must be one falling row of numbers between 0 and 1; pass the model's buffer."
            )
        self.alphas_cumprod = abar

    @classmethod
    def scaled_linear(cls, start: float = 0.00085, end: float = 0.012, steps: int = TRAIN_TIMESTEPS) -> "NoiseSchedule":
        """Betas whose square roots are evenly spaced: Stable Diffusion's "linear", diffusers' "scaled_linear"."""
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
        return cls(torch.cumprod(1 - betas, dim=0))

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def to(self, device: torch.device | str) -> "NoiseSchedule":
        return NoiseSchedule(self.alphas_cumprod.to(device))

    def alpha_sigma(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, each fp32 (B, 1, ...) with as many axes as `like`.

        Raises ValueError for timesteps that are not integers.
        """
        if timesteps.dtype not in (torch.int64, torch.int32):  # half precision would have rounded them already
            raise ValueError(f"timesteps must be int64, not {timesteps.dtype}; they index the schedule.")
        abar = self.alphas_cumprod.to(like.device)[timesteps.to(like.device)]
        return as_column(abar.sqrt(), like), as_column((1 - abar).sqrt(), like)

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = alpha_t x0 + sigma_t noise."""
        alpha_t, sigma_t = self.alpha_sigma(timesteps, x0)
        return alpha_t * x0.float() + sigma_t * noise.float()

    def x0_from_eps(self, x_t: Tensor, eps: Tensor, timesteps: Tensor) -> Tensor:
        """x0 = (x_t - sigma_t eps) / alpha_t."""
        alpha_t, sigma_t = self.alpha_sigma(timesteps, x_t)
        return (x_t.float() - sigma_t * eps.float()) / alpha_t

    def eps_from_x0(self, x_t: Tensor, x0: Tensor, timesteps: Tensor) -> Tensor:
        """eps = (x_t - alpha_t x0) / sigma_t."""
        alpha_t, sigma_t = self.alpha_sigma(timesteps, x_t)
        return (x_t.float() - alpha_t * x0.float()) / sigma_t

    def v_from_x0_eps(self, x0: Tensor, eps: Tensor, timesteps: Tensor) -> Tensor:
        """v = alpha_t eps - sigma_t x0."""
        alpha_t, sigma_t = self.alpha_sigma(timesteps, x0)
        return alpha_t * eps.float() - sigma_t * x0.float()

    def x0_from_v(self, x_t: Tensor, v: Tensor, timesteps: Tensor) -> Tensor:
        """x0 = alpha_t x_t - sigma_t v: a rotation, so nothing is divided by a small number."""
        alpha_t, sigma_t = self.alpha_sigma(timesteps, x_t)
        return alpha_t * x_t.float() - sigma_t * v.float()

    def eps_from_v(self, x_t: Tensor, v: Tensor, timesteps: Tensor) -> Tensor:
        """eps = sigma_t x_t + alpha_t v."""
        alpha_t, sigma_t = self.alpha_sigma(timesteps, x_t)
        return sigma_t * x_t.float() + alpha_t * v.float()


def solver_grid(n: int = 50, train_timesteps: int = TRAIN_TIMESTEPS) -> Tensor:
    """The timesteps of training, int64 (n,), rising: 19, 39, ..., 999 (arXiv:2310.04378, section 4.3).

    Raises ValueError when n does not divide train_timesteps: the grid would not end at the noisiest timestep.
    """
    if n < 1 or train_timesteps % n:
        raise ValueError(f"A grid of {n} steps does not divide {train_timesteps} timesteps evenly; use for example 50.")
    return torch.arange(1, n + 1) * (train_timesteps // n) - 1


def lcm_timesteps(steps: int, original_steps: int = 50, train_timesteps: int = TRAIN_TIMESTEPS) -> Tensor:
    """The timesteps of the student's sampling, int64 (steps,), falling: 4 steps are 999, 759, 499, 259.

    All lie on `solver_grid(original_steps)`, the only timesteps of training: place i of the falling grid is
    floor(i * original_steps / steps), as in LCM's own scheduler. Raises ValueError unless steps is in
    1..original_steps.
    """
    grid = solver_grid(original_steps, train_timesteps).flip(0)
    if not 1 <= steps <= original_steps:
        raise ValueError(
            f"{steps} steps are not possible: the student knows {original_steps} timesteps, "
            f"so ask for 1 to {original_steps}."
        )
    return grid[torch.arange(steps) * original_steps // steps]


def noise_spaced_timesteps(schedule: NoiseSchedule, steps: int, spacing: str) -> Tensor:
    """Timesteps spaced by their noise level u = sigma / alpha, int64 (steps,), falling from 999 to 0.

    karras: u^(1/7) falls evenly (arXiv:2206.00364, equation 5). logsnr: log u falls evenly, and so does the log of the
    signal-to-noise ratio (arXiv:2206.00927). Each level takes the nearest timestep in log u. Raises ValueError for
    another spacing, and where two levels take the same timestep.
    """
    abar = schedule.alphas_cumprod.cpu().double()
    level = ((1 - abar) / abar).sqrt()
    share, (low, high) = torch.linspace(0, 1, steps, dtype=torch.float64), (level[0], level[-1])
    if spacing == "karras":
        wanted = (high ** (1 / 7) + share * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    elif spacing == "logsnr":
        wanted = (high.log() + share * (low.log() - high.log())).exp()
    else:
        raise ValueError(f"Spacing {spacing!r} is unknown: choose 'karras' or 'logsnr'.")
    timesteps = (wanted.log()[:, None] - level.log()).abs().argmin(1)
    if len(timesteps.unique()) < steps:
        raise ValueError(f"{steps} steps are too many for the spacing {spacing}: two of them would be one timestep.")
    return timesteps


def phase_edges(phases: int, original_steps: int = 50, train_timesteps: int = TRAIN_TIMESTEPS) -> Tensor:
    """Where the phases of the noise range end, int64 (phases,), rising from 0: 4 phases end at 0, 259, 499 and 759.

    They are the timesteps of `lcm_timesteps(phases)` but the first, which is where the noisiest phase begins, and 0. So
    they lie on the solver's grid, and as many steps as there are phases, or twice as many, step from edge to edge.
    Raises ValueError unless phases is in 1..original_steps.
    """
    if isinstance(phases, bool) or not isinstance(phases, int) or not 1 <= phases <= original_steps:
        raise ValueError(
            f"{phases!r} phases do not divide a grid of {original_steps} timesteps: give 1 to {original_steps}."
        )
    inner = lcm_timesteps(phases, original_steps, train_timesteps)[1:].flip(0)
    return torch.cat([inner.new_zeros(1), inner])


def ddim_timesteps(steps: int, train_timesteps: int = TRAIN_TIMESTEPS, spacing: str = "leading") -> Tensor:
    """The timesteps of the teacher's sampling, int64 (steps,), falling: 20 steps are 951, 901, ..., 1.

    leading: 0, c, 2c, ... plus 1 with c = train_timesteps // steps (ldm/models/diffusion/ddim.py; "leading" with
    an offset of 1 in diffusers). trailing: counted down from 999 (arXiv:2305.08891, table 2); few steps need it,
    because pure noise belongs at t = 999. Raises ValueError for steps or spacing that do not fit.
    """
    # Where steps does not divide 1000, upstream makes more steps than it was asked for. Here it is always `steps`.
    if not 1 <= steps < train_timesteps:  # then the noisiest, (steps - 1) c + 1, is on the schedule too
        raise ValueError(
            f"{steps} DDIM steps are not possible with {train_timesteps} timesteps; ask for 1 to {train_timesteps - 1}."
        )
    if spacing == "trailing":
        places = torch.arange(steps, dtype=torch.float64) * (train_timesteps / steps)
        return (train_timesteps - places).round().long() - 1
    if spacing != "leading":
        raise ValueError(f"Spacing {spacing!r} is unknown: choose 'leading' or 'trailing'.")
    return (torch.arange(steps) * (train_timesteps // steps) + 1).flip(0)
