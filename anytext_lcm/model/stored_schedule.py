"""The 13 schedule buffers that a checkpoint stores (upstream `ldm/models/diffusion/ddpm.py`).

They are here because the checkpoint holds them and loading is strict. Only `alphas_cumprod` is computed with:
`NoiseSchedule` (lcm/schedule.py) derives the rest from it.
"""

import torch
from torch import Tensor

SCHEDULE_BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "logvar",
)


def schedule_buffers(
    timesteps: int, start: float, end: float, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """Compute the buffers by name, (timesteps,) fp32 each, in fp64, for betas from `start` to `end`.

    The square roots of the betas are evenly spaced ("scaled linear").
    """
    betas = torch.linspace(start**0.5, end**0.5, timesteps, dtype=torch.float64, device=device) ** 2
    abar = torch.cumprod(1 - betas, dim=0)
    previous = torch.cat([torch.ones_like(abar[:1]), abar[:-1]])
    variance = betas * (1 - previous) / (1 - abar)
    buffers = {
        "betas": betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": abar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - abar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - abar).log(),
        "sqrt_recip_alphas_cumprod": (1 / abar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / abar - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * previous.sqrt() / (1 - abar),
        "posterior_mean_coef2": (1 - previous) * (1 - betas).sqrt() / (1 - abar),
        "logvar": torch.zeros_like(betas),
    }
    return {name: value.float() for name, value in buffers.items()}
