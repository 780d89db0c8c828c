"""An exact diffusion model to learn on: a mixture of Gaussians. Imports torch and the room lcm.

Everything that a real teacher only approximates is a formula here: density, score, the mean of the clean data
given noisy ones, and the paths of the probability-flow ODE. So each claim about few-step sampling can be
checked against the truth, in one dimension or two, in seconds on a CPU. `python -m pytest tests/test_toy.py`
holds the formulas to independent ones; notebooks/03_lcm_maths.ipynb stands on them.

In the variables y = x_t / alpha_t and u = sigma_t / alpha_t noisy data are clean data plus u times noise, and
the ODE is dy/du = eps (DDIM, arXiv:2010.02502, equation 14; Karras et al., arXiv:2206.00364). DDIM is Euler's
method there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from anytext_lcm.lcm.objectives import OBJECTIVES, LossParts, Predict
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.lcm.steps import DDIMSolver, ddim_step, guide

SCHEDULE = NoiseSchedule.scaled_linear()


@dataclass(frozen=True)
class Mixture:
    """Data in round bells: sum_k weights_k N(means_k, spread^2), noised by `schedule`.

    means: (K, D); spread > 0; weights: (K,) that sum to one. Points are (B, D), timesteps int64 (B,).
    """

    means: Tensor
    spread: float
    weights: Tensor
    schedule: NoiseSchedule = SCHEDULE

    @classmethod
    def line(cls, means: tuple[float, ...] = (-1.0, 1.0), spread: float = 0.1) -> "Mixture":
        """Equally heavy bells on a line: the "pictures" are numbers."""
        points = torch.tensor(means)[:, None]
        return cls(points, spread, torch.full((len(points),), 1 / len(points)))

    @classmethod
    def ring(cls, modes: int = 8, radius: float = 1.0, spread: float = 0.06) -> "Mixture":
        """Equally heavy bells on a circle in the plane, the first at the right, counted anti-clockwise."""
        angle = torch.arange(modes) * (2 * math.pi / modes)
        points = radius * torch.stack([angle.cos(), angle.sin()], 1)
        return cls(points, spread, torch.full((modes,), 1 / modes))

    def condition(self, modes: tuple[int, ...]) -> "Mixture":
        """What is left when the prompt says which modes are wanted: the conditional distribution."""
        keep = torch.tensor(modes)
        return replace(self, means=self.means[keep], weights=self.weights[keep] / self.weights[keep].sum())

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Clean data (count, D)."""
        modes = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator)
        return self.means[modes] + self.spread * noise

    def _parts(self, y: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """y = x / alpha (B, D) at noise level u (B, 1): y - means (B, K, D), variance (B, 1), log of each
        mode's share of the density (B, K), up to what they have in common.
        """
        apart = y[:, None] - self.means.to(y)
        variance = self.spread**2 + u**2
        return apart, variance, self.weights.to(y).log() - (apart**2).sum(-1) / (2 * variance)

    def _velocity(self, y: Tensor, u: Tensor) -> Tensor:
        """dy/du = eps, without a division by u, so that it may be 0."""
        apart, variance, logits = self._parts(y, u)
        return u / variance * (torch.softmax(logits, -1)[..., None] * apart).sum(1)

    def _level(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule.alpha_sigma(timesteps, like)
        return alpha.to(like.dtype), (sigma / alpha).to(like.dtype)

    def log_density(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """log p_t(x), (B,)."""
        alpha, u = self._level(timesteps, x)
        _, variance, logits = self._parts(x / alpha, u)
        scale = (2 * math.pi * (alpha**2 * variance)).log() * (x.shape[1] / 2)
        return torch.logsumexp(logits, -1) - scale[:, 0]

    def shares(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """The probability that x came from each mode, (B, K)."""
        alpha, u = self._level(timesteps, x)
        return torch.softmax(self._parts(x / alpha, u)[2], -1)

    def posterior_mean(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """E[x_0 | x_t = x]: what every regression of the clean data learns. (B, D)."""
        alpha, u = self._level(timesteps, x)
        y = x / alpha
        return y - u * self._velocity(y, u)

    def predict(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """The noise that a perfect network predicts, eps = -sigma_t * score. (B, D), a `Predict`."""
        alpha, u = self._level(timesteps, x)
        return self._velocity(x / alpha, u)

    # -- the ODE ----------------------------------------------------------------------------------------

    def flow(
        self,
        x: Tensor,
        start: int | Tensor,
        end: int | Tensor = 0,
        steps: int = 128,
        given: "Mixture | None" = None,
        guidance_scale: float = 1.0,
    ) -> Tensor:
        """Where the probability-flow ODE leads from x at timestep `start` to timestep `end`, in fp64.

        Fourth-order Runge-Kutta in theta with u = spread * sinh(theta), in which the paths are smooth all the
        way to u = 0; 128 steps are right to about 1e-8, and to 1e-4 where two paths part. With `given`, a
        conditional mixture, the field is the guided one, uncond + s (cond - uncond). start and end: one
        timestep, or one for each x.
        """
        x = x.double()
        (alpha, u), (alpha_end, u_end) = (self._level(torch.as_tensor(t).expand(len(x)), x) for t in (start, end))
        theta = (u / self.spread).asinh()
        step = ((u_end / self.spread).asinh() - theta) / steps
        y = x / alpha

        def slope(y: Tensor, theta: Tensor) -> Tensor:
            level = self.spread * theta.sinh()
            field = self._velocity(y, level)
            if given is not None:
                field = guide_exactly(given._velocity(y, level), field, guidance_scale)
            return field * self.spread * theta.cosh()

        for _ in range(steps):
            k1 = slope(y, theta)
            k2 = slope(y + step / 2 * k1, theta + step / 2)
            k3 = slope(y + step / 2 * k2, theta + step / 2)
            k4 = slope(y + step * k3, theta + step)
            y, theta = y + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4), theta + step
        return alpha_end * y

    def consistency(self, x: Tensor, timesteps: Tensor, **options) -> Tensor:
        """The exact consistency function f(x_t, t): the end, at t = 0, of the path through (x_t, t). fp64."""
        return self.flow(x, timesteps, 0, **options)

    def quantile_flow(self, x: Tensor, start: int, end: int = 0) -> Tensor:
        """The same as `flow` on a line, without solving anything: paths cannot cross there, so each carries
        its quantile along. By bisection, fp64 (B, 1). Raises ValueError in more than one dimension.
        """
        if self.means.shape[1] != 1:
            raise ValueError("Only numbers have an order; use flow for points in the plane.")
        wanted, low = self._below(x.double(), start), torch.full_like(x.double(), -10.0)
        high = -low
        for _ in range(60):
            middle = (low + high) / 2
            below = self._below(middle, end) < wanted
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return middle

    def _below(self, x: Tensor, timestep: int) -> Tensor:
        """The distribution function of p_t on a line, (B, 1)."""
        alpha, u = self._level(torch.full((len(x),), timestep), x)
        shares = torch.special.ndtr((x / alpha - self.means[:, 0].to(x)) / (self.spread**2 + u**2).sqrt())
        return (self.weights.to(x) * shares).sum(-1, keepdim=True)


def guide_exactly(cond: Tensor, uncond: Tensor, guidance_scale: float) -> Tensor:
    """`solver.guide` in the dtype that comes in; the ODE is solved in fp64."""
    return uncond + guidance_scale * (cond - uncond)


def guided(uncond: Mixture, cond: Mixture, guidance_scale: float) -> Predict:
    """The guided noise prediction as one `Predict`: what the teacher's sampler follows."""
    return lambda x, t: guide(cond.predict(x, t), uncond.predict(x, t), guidance_scale)


def perfect_student(predict: Predict, x: Tensor, solver: DDIMSolver, index: int | Tensor) -> Tensor:
    """What the `lcm` objective asks for at grid point `index`, were it met exactly: the teacher's own DDIM
    steps of the solver's skip, one after the other down to t = 0. x: (B, D), index: one or (B,).

    By induction: f(x_t, t) = f(x_s, s), and at s = 0 it is x_s. Raises ValueError for a skip that leads off
    the grid: the student would be asked where nothing trains it.
    """
    if solver.skip % (len(solver.schedule) // len(solver)):
        raise ValueError(f"A skip of {solver.skip} leads off the grid of {len(solver)} timesteps.")
    t = solver.start_timesteps(torch.as_tensor(index).expand(len(x)))
    while bool((t > 0).any()):
        eps = predict(x, t)
        s = (t - solver.skip).clamp(min=0)
        moved = ddim_step(solver.schedule, solver.schedule.x0_from_eps(x, eps, t), eps, s)
        x, t = torch.where((t > 0)[:, None], moved, x), s
    return x


class Student(nn.Module):
    """A network of some twenty thousand weights that predicts the noise: (B, D), int64 (B,) -> (B, D).

    Inside it predicts v, as the embedded teacher does, so that its answer tends to the input where the noise
    ends. With a `base`, a teacher to start from, it answers the base's clean data plus a correction that is
    zero at first, as a LoRA adapter does.
    """

    def __init__(
        self,
        dims: int = 1,
        width: int = 96,
        base: Predict | None = None,
        schedule: NoiseSchedule = SCHEDULE,
        seed: int = 0,
    ):
        super().__init__()
        self.base, self.schedule = base, schedule
        if isinstance(base, nn.Module):
            base.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = nn.Sequential(
                nn.Linear(3 * dims + 6, width),
                nn.SiLU(),
                nn.Linear(width, width),
                nn.SiLU(),
                nn.Linear(width, width),
                nn.SiLU(),
                nn.Linear(width, dims),
            )
        if base is not None:
            nn.init.zeros_(self.net[-1].weight)
            nn.init.zeros_(self.net[-1].bias)

    def x0(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """The clean data, (B, D)."""
        alpha, sigma = self.schedule.alpha_sigma(timesteps, x)
        level = (sigma / alpha).log()  # -3.5 .. 2.7
        # The place also in units of the noise: what matters close to the data is small at the scale of x.
        waves = [wave(level * k) for k in (1.0, 2.0) for wave in (torch.sin, torch.cos)]
        inside = torch.cat([x, 3 * x, x / (sigma + 0.1), level, alpha, *waves], -1)
        own = self.net(inside)
        if self.base is None:
            return self.schedule.x0_from_v(x, own, timesteps)
        return self.schedule.x0_from_eps(x, self.base(x, timesteps), timesteps) + sigma * own

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return self.schedule.eps_from_x0(x, self.x0(x, timesteps), timesteps)


def train(
    student: nn.Module,
    data: Mixture,
    objective: str | Callable[..., LossParts] = "lcm",
    steps: int = 1000,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
    skip: int | None = None,
    cond: Mixture | None = None,
    guidance_scale: float = 1.0,
    seed: int = 0,
    decay: bool = True,
    teacher: Predict | Literal["noise"] | None = None,
    watch: Callable[[int, nn.Module], None] | None = None,
    **options,
) -> list[float]:
    """Trains a student in place by an objective: a name of the package's, or a function like one. Returns its
    losses.

    The student sees data of `cond`, the whole of `data` by default, and the teacher is guided from `data`
    towards it. decay: the learning rate falls linearly to a fiftieth. teacher: another one than the exact
    one, unguided; "noise" is the noise that was added, for consistency training, which has no teacher. watch(step,
    student) is called after each update. options go to the objective (loss).
    """
    cond = data if cond is None else cond

    def pair(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return (teacher(x, t),) * 2 if teacher else (cond.predict(x, t), data.predict(x, t))

    solver, generator = DDIMSolver(data.schedule, skip=skip), torch.Generator().manual_seed(seed)
    loss_of = OBJECTIVES[objective] if isinstance(objective, str) else objective
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.Adam(trained, lr=learning_rate), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - 0.98 * step / steps if decay else 1)
        latents = cond.sample(batch_size, generator)
        noise = torch.randn(latents.shape, generator=generator)
        index = torch.randint(len(solver), (batch_size,), generator=generator)
        noisy_latents = data.schedule.add_noise(latents, noise, solver.start_timesteps(index))
        looks = (lambda x, t, eps=noise: (eps, eps)) if teacher == "noise" else pair
        parts = loss_of(student, looks, student, data.schedule, solver, noisy_latents, index, guidance_scale, **options)
        optimizer.zero_grad()
        parts.loss.backward()
        optimizer.step()
        losses.append(parts.loss.item())
        if watch is not None:
            watch(step, student)
    return losses


def wasserstein(first: Tensor, second: Tensor, directions: int = 32) -> float:
    """How far mass must travel from one set of samples to the other, on average: the 1-Wasserstein distance.

    first, second: (N, D), as many of both. Exact on a line, where sorted samples belong together; in the
    plane the mean over directions evenly spread over a half circle (the sliced distance, Bonneel et al. 2015;
    a shift by d counts 2/pi d there). Raises ValueError for unequal shapes or more dimensions.
    """
    if first.shape != second.shape or first.ndim != 2 or first.shape[1] > 2:
        raise ValueError(f"Two sets of as many points on a line or in a plane, not {first.shape}, {second.shape}.")
    if first.shape[1] == 1:
        axes = torch.ones(1, 1)
    else:
        angle = (torch.arange(directions) + 0.5) * (math.pi / directions)
        axes = torch.stack([angle.cos(), angle.sin()])
    apart = (first.double() @ axes.double()).sort(0).values - (second.double() @ axes.double()).sort(0).values
    return apart.abs().mean().item()
