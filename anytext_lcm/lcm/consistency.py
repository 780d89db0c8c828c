"""The consistency function and the losses that compare two of its values.

f(x_t, t) must return the same clean latents for every point of one teacher trajectory. Two conditions define it: the
identity at t = 0 (built in here), and neighbours agree (the loss).

Next: `paths.py`.
"""

from torch import Tensor

from anytext_lcm.lcm.schedule import NoiseSchedule, as_column


def boundary_scalings(
    timesteps: Tensor, sigma_data: float = 0.5, timestep_scaling: float = 10.0, like: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """c_skip and c_out of f = c_skip x_t + c_out x0: Consistency Models (arXiv:2303.01469), appendix C.

    timesteps: int64 (B,). Returns fp32 (B, 1, 1, 1), or with the axes of `like`; exactly (1, 0) at t = 0. As LCM's code
    it differs from the paper: t is scaled by 10, epsilon is 0, and c_out lacks the factor sigma_data, because it
    multiplies an estimate of x0.
    """
    # On the solver's grid nearly a switch: c_skip(19) = 7e-6. In fp16 t**2 would overflow from t = 26 on.
    t = timestep_scaling * timesteps.float()
    t = t.view(-1, 1, 1, 1) if like is None else as_column(t, like).to(like.device)
    c_skip = sigma_data**2 / (t**2 + sigma_data**2)
    c_out = t / (t**2 + sigma_data**2).sqrt()
    return c_skip, c_out


def consistency_function(x_t: Tensor, eps: Tensor, timesteps: Tensor, schedule: NoiseSchedule) -> Tensor:
    """f(x_t, t) = c_skip x_t + c_out (x_t - sigma_t eps) / alpha_t (arXiv:2310.04378), fp32 (B, C, h, w)."""
    c_skip, c_out = boundary_scalings(timesteps, like=x_t)
    return c_skip * x_t.float() + c_out * schedule.x0_from_eps(x_t, eps, timesteps)


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of values (B, C, h, w), weighted by (B, 1, h, w) from 0 on; 0 when all weights are.

    Weights that sum to less than 1, over channels too, are not scaled up: then it is their weighted sum.
    """
    if weight is None:
        return values.mean()
    weight = weight.float().expand_as(values)
    return (values * weight).sum() / weight.sum().clamp(min=1)


def pseudo_huber(pred: Tensor, target: Tensor, c: float = 1e-3, weight: Tensor | None = None) -> Tensor:
    """Mean of sqrt(d^2 + c^2) - c with d = pred - target: quadratic below c, absolute above (arXiv:2310.14189)."""
    squared = (pred.float() - target.float()) ** 2
    # The same number without the difference of two nearly equal ones.
    return weighted_mean(squared / ((squared + c**2).sqrt() + c), weight)


def l2(pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of (pred - target)^2, fp32 scalar."""
    return weighted_mean((pred.float() - target.float()) ** 2, weight)
