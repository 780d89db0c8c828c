"""An exact diffusion model: a mixture of Gaussians, and a small student to train on it.

What a real teacher approximates is a formula here: density, score, posterior mean, and the paths of the
probability-flow ODE. So a claim about few-step sampling is checked against the truth in seconds, as in
notebooks/03_lcm_maths.ipynb.

In y = x_t / alpha_t and u = sigma_t / alpha_t noisy data are clean data plus u times noise, the ODE is dy/du = eps
(arXiv:2010.02502, equation 14; arXiv:2206.00364), and DDIM is Euler's method for it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from anytext_lcm.lcm.consistency import pseudo_huber
from anytext_lcm.lcm.objectives import OBJECTIVES, Objective, Point
from anytext_lcm.lcm.paths import Paths, draw_paths
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.lcm.steps import DDIMSolver, Predict, ddim_step, guide

SCHEDULE = NoiseSchedule.scaled_linear()


@dataclass(frozen=True)
class Mixture:
    """Data sum_k weights_k N(means_k, spread^2), noised by `schedule`. Points are (B, D), timesteps int64 (B,).

    means: (K, D); spread > 0; weights: (K,) that sum to one.
    """

    means: Tensor
    spread: float
    weights: Tensor
    schedule: NoiseSchedule = SCHEDULE

    @classmethod
    def line(cls, means: tuple[float, ...] = (-1.0, 1.0), spread: float = 0.1) -> "Mixture":
        """Equally heavy modes on a line: the "pictures" are numbers."""
        points = torch.tensor(means)[:, None]
        return cls(points, spread, torch.full((len(points),), 1 / len(points)))

    @classmethod
    def ring(cls, modes: int = 8, radius: float = 1.0, spread: float = 0.06) -> "Mixture":
        """Equally heavy modes on a circle in the plane, the first at the right, counted anti-clockwise."""
        angle = torch.arange(modes) * (2 * math.pi / modes)
        points = radius * torch.stack([angle.cos(), angle.sin()], 1)
        return cls(points, spread, torch.full((modes,), 1 / modes))

    def condition(self, modes: tuple[int, ...]) -> "Mixture":
        """The conditional distribution of a prompt that names the wanted modes."""
        keep = torch.tensor(modes)
        return replace(self, means=self.means[keep], weights=self.weights[keep] / self.weights[keep].sum())

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Clean data (count, D)."""
        modes = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator)
        return self.means[modes] + self.spread * noise

    def _parts(self, y: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """y = x / alpha (B, D) at noise level u (B, 1) -> y - means (B, K, D), variance (B, 1), log of each mode's
        share of the density (B, K) up to a common term.
        """
        apart = y[:, None] - self.means.to(y)
        variance = self.spread**2 + u**2
        return apart, variance, self.weights.to(y).log() - (apart**2).sum(-1) / (2 * variance)

    def _velocity(self, y: Tensor, u: Tensor) -> Tensor:
        """dy/du = eps (B, D), without a division by u, which may be 0."""
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
        """The probability of each mode given x, (B, K)."""
        alpha, u = self._level(timesteps, x)
        return torch.softmax(self._parts(x / alpha, u)[2], -1)

    def posterior_mean(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """E[x_0 | x_t = x] (B, D), the optimum of every regression of the clean data."""
        alpha, u = self._level(timesteps, x)
        y = x / alpha
        return y - u * self._velocity(y, u)

    def predict(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """eps = -sigma_t * score (B, D), the prediction of a perfect network."""
        alpha, u = self._level(timesteps, x)
        return self._velocity(x / alpha, u)

    def velocity(self, x: Tensor, angle: Tensor) -> Tensor:
        """dx/d(angle) of the exact paths (B, D), at any angle = atan(sigma / alpha) (B, 1), between timesteps too.

        With x = cos(angle) x_0 + sin(angle) noise this is the prediction v, averaged over all x_0 that x may come from.
        """
        alpha, sigma = angle.cos(), angle.sin()
        return (self._velocity(x / alpha, sigma / alpha) - sigma * x) / alpha

    def flow(
        self,
        x: Tensor,
        start: int | Tensor,
        end: int | Tensor = 0,
        steps: int = 128,
        given: "Mixture | None" = None,
        guidance_scale: float = 1.0,
    ) -> Tensor:
        """The end, at timestep `end`, of the probability-flow ODE from x at timestep `start`. fp64 (B, D).

        start, end: one timestep, or one per point. With `given`, a conditional mixture, the field is the guided one.
        128 steps are right to about 1e-8, and to 1e-4 where two paths part.
        """
        # Fourth-order Runge-Kutta in theta with u = spread * sinh(theta), where paths are smooth down to u = 0.
        x = x.double()
        (alpha, u), (alpha_end, u_end) = (self._level(torch.as_tensor(t).expand(len(x)), x) for t in (start, end))
        theta = (u / self.spread).asinh()
        step = ((u_end / self.spread).asinh() - theta) / steps
        y = x / alpha

        def slope(y: Tensor, theta: Tensor) -> Tensor:
            level = self.spread * theta.sinh()
            field = self._velocity(y, level)
            if given is not None:
                field = field + guidance_scale * (given._velocity(y, level) - field)  # `guide` in fp64
            return field * self.spread * theta.cosh()

        for _ in range(steps):
            k1 = slope(y, theta)
            k2 = slope(y + step / 2 * k1, theta + step / 2)
            k3 = slope(y + step / 2 * k2, theta + step / 2)
            k4 = slope(y + step * k3, theta + step)
            y, theta = y + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4), theta + step
        return alpha_end * y

    def consistency(self, x: Tensor, timesteps: Tensor, **options) -> Tensor:
        """The exact consistency function f(x_t, t): the end at t = 0 of the path through (x_t, t). fp64 (B, D)."""
        return self.flow(x, timesteps, 0, **options)

    def quantile_flow(self, x: Tensor, start: int, end: int = 0) -> Tensor:
        """`flow` on a line without a solver: paths cannot cross there, so each keeps its quantile. fp64 (B, 1).

        By bisection. Raises ValueError in more than one dimension.
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


def guided(uncond: Mixture, cond: Mixture, guidance_scale: float) -> Predict:
    """A guided teacher: one `Predict` of two mixtures."""
    return lambda x, t: guide(cond.predict(x, t), uncond.predict(x, t), guidance_scale)


def perfect_student(predict: Predict, x: Tensor, solver: DDIMSolver, index: int | Tensor) -> Tensor:
    """f(x_t, t) of a student that meets the `lcm` objective exactly. x: (B, D) at grid point `index`, one or (B,).

    f(x_t, t) = f(x_s, s), and at s = 0 it is x_s: so the teacher's DDIM steps of the solver's skip, down to t = 0.
    Raises ValueError for a skip that leads off the grid, where nothing is trained.
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

    With a `base` it starts as that teacher: its x0 plus a correction that is zero at first, as a LoRA adapter's.
    Without one it predicts v inside, so that x0 tends to the input where the noise ends.
    """

    def __init__(self, dims: int = 1, width: int = 96, base: Predict | None = None, seed: int = 0):
        super().__init__()
        self.base = base
        if isinstance(base, nn.Module):
            base.requires_grad_(False)
        sizes = [3 * dims + 6, width, width, width]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            hidden = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.SiLU())]
            self.net = nn.Sequential(*hidden, nn.Linear(width, dims))
        if base is not None:
            nn.init.zeros_(self.net[-1].weight)
            nn.init.zeros_(self.net[-1].bias)

    def x0(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """The clean data, (B, D)."""
        alpha, sigma = SCHEDULE.alpha_sigma(timesteps, x)
        level = (sigma / alpha).log()  # -3.5 .. 2.7
        # x also in units of the noise: details close to the data are small at the scale of x.
        waves = [wave(level * k) for k in (1.0, 2.0) for wave in (torch.sin, torch.cos)]
        inside = torch.cat([x, 3 * x, x / (sigma + 0.1), level, alpha, *waves], -1)
        own = self.net(inside)
        if self.base is None:
            return SCHEDULE.x0_from_v(x, own, timesteps)
        return SCHEDULE.x0_from_eps(x, self.base(x, timesteps), timesteps) + sigma * own

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return SCHEDULE.eps_from_x0(x, self.x0(x, timesteps), timesteps)


def frozen(network: Predict) -> Predict:
    """The network without gradient."""
    return torch.no_grad()(lambda x, t: network(x, t))


def point(
    student: Predict,
    teacher: Predict,
    solver: DDIMSolver,
    latents: Tensor,
    noise: Tensor,
    index: Tensor,
    generator: torch.Generator | None = None,
) -> Point:
    """A `Point` of plain networks: steps 5 to 9 of `training/step.py`. latents, noise: (B, D); index: int64 (B,)."""
    schedule, t, s = solver.schedule, solver.start_timesteps(index), solver.previous_timesteps(index)
    target, teacher = frozen(student), frozen(teacher)
    x_t = schedule.add_noise(latents, noise, t)
    eps = teacher(x_t, t)
    x0 = schedule.x0_from_eps(x_t, eps, t)
    x_s = solver.step(x0, eps, index)
    return Point(schedule, latents, x_t, t, x0, x_s, s, lambda: student(x_t, t), target, teacher, generator)


def point_on(student: Predict, teacher: Predict, path: Paths, index: Tensor) -> Point:
    """A `Point` on stored paths of B points at grid index int64 (B,), as `training/step.py` makes it."""
    solver, target, teacher = path.solver, frozen(student), frozen(teacher)
    t, s = solver.start_timesteps(index), solver.previous_timesteps(index)
    x_t, x0 = path.at(t), path.x0(index)
    x_s = solver.step(x0, solver.schedule.eps_from_x0(x_t, x0, t), index)
    network = lambda: student(x_t, t)  # noqa: E731
    return Point(solver.schedule, path.end, x_t, t, x0, x_s, s, network, target, teacher, path=path)


def train(
    student: nn.Module,
    data: Mixture,
    objective: str | Objective = "lcm",
    steps: int = 1000,
    *,
    teacher: Predict | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = pseudo_huber,
    learning_rate: float = 2e-3,
    decay: bool = True,
    paths: int = 0,
) -> Iterator[float]:
    """Train a student in place, 256 points per update, and yield the loss after each one.

    objective: a name in OBJECTIVES or a function. teacher: by default the exact one, unguided; see `guided`. decay: the
    learning rate falls linearly to a fiftieth. paths: take the points from so many paths of the teacher, drawn first,
    instead of from data.
    """
    objective = OBJECTIVES[objective] if isinstance(objective, str) else objective
    solver, generator = DDIMSolver(data.schedule), torch.Generator().manual_seed(0)
    teacher = teacher or data.predict
    if paths:
        stored = draw_paths(teacher, torch.randn(paths, data.means.shape[1], generator=generator), solver)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=learning_rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - 0.98 * step / steps if decay else 1)
        if paths:
            rows = torch.randint(paths, (256,), generator=generator)
            index = torch.randint(len(solver), (256,), generator=generator)
            now = point_on(student, teacher, Paths(solver, stored[rows]), index)
        else:
            latents = data.sample(256, generator)
            noise = torch.randn(latents.shape, generator=generator)
            index = torch.randint(len(solver), (256,), generator=generator)
            now = point(student, teacher, solver, latents, noise, index, generator)
        value = loss(*objective(now))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        yield value.item()


def wasserstein(first: Tensor, second: Tensor, directions: int = 32) -> float:
    """The 1-Wasserstein distance of two sets of samples (N, D): how far mass must travel on average.

    Exact on a line, where sorted samples belong together. In the plane the mean over directions spread over a half
    circle (the sliced distance, Bonneel et al. 2015), where a shift by d counts 2/pi d. Raises ValueError for unequal
    shapes or more dimensions.
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


def interval(values: Tensor) -> str:
    """The mean of `values` (N,), N > 1, and two of its standard errors, about a 95 % interval: "0.215 ± 0.004"."""
    values = values.double().flatten()
    return f"{values.mean():.3f} ± {2 * values.std() / len(values) ** 0.5:.3f}"
