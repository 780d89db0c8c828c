"""The checks of the exercises in notebook 03."""

import torch
from torch import Tensor

from anytext_lcm.lcm.consistency import consistency_function
from anytext_lcm.lcm.samplers import finish, sample
from anytext_lcm.lcm.schedule import lcm_timesteps
from anytext_lcm.lcm.steps import ddim_step
from anytext_lcm.teaching.checks import checker, require, same
from anytext_lcm.teaching.toy import SCHEDULE, Mixture, Student

LINE = Mixture.line()


def _draw(count: int = 6) -> tuple[Tensor, Tensor]:
    """Data and noise, (count, 1) each."""
    generator = torch.Generator().manual_seed(11)
    return LINE.sample(count, generator), torch.randn(count, 1, generator=generator)


def velocity(answer) -> str:
    """x_t, v (B, 1), t (B,) -> x0, noise."""
    x0, noise = _draw()
    t = torch.tensor([0, 19, 259, 499, 759, 999])
    x_t, v = SCHEDULE.add_noise(x0, noise, t), SCHEDULE.v_from_x0_eps(x0, noise, t)
    found = answer(x_t, v, t)
    require(isinstance(found, tuple | list) and len(found) == 2, "it does not return two tensors, x0 and noise")
    require(not same(found[0], noise) or not same(found[1], x0), "the two are returned in the wrong order")
    require(not same(found[0], 2 * SCHEDULE.alpha_sigma(t, x_t)[0] * x_t - x0), "x0 has the wrong sign before v")
    require(same(found[0], x0), "x0 is not the data that x_t was made from")
    require(not same(found[1], 2 * SCHEDULE.alpha_sigma(t, x_t)[1] * x_t - noise), "noise has the wrong sign before v")
    require(same(found[1], noise), "x0 is right, noise is not the noise that x_t was made from")
    return "Both come back at six timesteps, from 0 to 999."


def ddim(answer) -> str:
    """x_t, eps (B, 1), t, s (B,) -> x_s (B, 1)."""
    x, _ = _draw()
    t, s = torch.full((6,), 759), torch.full((6,), 499)
    eps = LINE.predict(x, t)
    x0, found = SCHEDULE.x0_from_eps(x, eps, t), answer(x, eps, t, s)
    require(not same(found, x0), "it returns the clean estimate; the noise of level s is missing")
    require(not same(found, ddim_step(SCHEDULE, x, eps, s)), "it scales x_t itself; estimate the clean data first")
    require(same(answer(x, eps, t, t), x), "with s = t it must return x_t, and does not")
    require(same(found, ddim_step(SCHEDULE, x0, eps, s)), "from 759 to 499 it is not the DDIM step")
    return "It equals the package's ddim_step, and with s = t it returns x_t."


def one_gaussian(answer) -> str:
    """y, u (B, 1), mean, spread -> y at u = 0 (B, 1)."""
    y, u = torch.linspace(-3, 3, 7).double()[:, None], torch.full((7, 1), 2.0, dtype=torch.float64)
    zero = torch.zeros_like(u)
    found = answer(y, u, 0.7, 0.2)
    require(same(answer(y, zero, 0.7, 0.2), y, 1e-6), "at u = 0 it must return y, and does not")
    average = 0.7 + (y - 0.7) * 0.04 / (0.04 + u**2)
    require(
        not same(found, average, 1e-6), "it is the posterior mean, which divides by variances; a path ends elsewhere"
    )
    centre = torch.full((1, 1), 0.7, dtype=torch.float64)
    require(same(answer(centre, u[:1], 0.7, 0.2), centre, 1e-6), "a path that starts at the mean must stay there")
    require(same(found, 0.7 + (y - 0.7) * 0.2 / (0.04 + u**2).sqrt(), 1e-6), "it does not solve dy/du = eps")
    return "It solves the ODE: the distance from the mean shrinks as the standard deviation does."


def target(answer) -> str:
    """student, x_s (B, 1), s (B,) -> (B, 1)."""
    student = Student(base=LINE.predict, seed=5)
    torch.nn.init.normal_(student.net[-1].weight, std=0.1)
    x, _ = _draw()
    later, zero = torch.full((6,), 499), torch.zeros(6, dtype=torch.int64)
    with torch.no_grad():
        wanted = consistency_function(x, student(x, later), later, SCHEDULE)
        at_zero = answer(student, x, zero)
    found = answer(student, x, later)
    require(not same(found, x), "at s = 499 it returns x_s, which is noisy; ask the student there")
    require(same(at_zero, x), "at s = 0 it must return x_s itself: the truth enters there and nowhere else")
    require(same(found, wanted), "at s = 499 it is not f(x_s, s) of the student")
    require(not found.requires_grad, "its value is right, but a gradient passes through the target to the student")
    return "It is x_s at s = 0 and f(x_s, s) elsewhere, without a gradient."


def few_steps(answer) -> str:
    """student, x (B, 1), timesteps (n,) falling, generator -> (B, 1)."""
    student, (_, noise) = Student(base=LINE.predict), _draw()

    def drawn(n: int) -> Tensor:
        with torch.no_grad():
            return answer(student, noise, lcm_timesteps(n), torch.Generator().manual_seed(2))

    def wanted(n: int) -> Tensor:
        fresh = torch.Generator().manual_seed(2)
        return finish(sample(student, noise, SCHEDULE, n, generators=fresh))

    one = drawn(1)
    require(not same(one, noise), "one step returns the noise it was given")
    require(same(one, wanted(1)), "one step must be f(x, 999), without noise after it")
    clean = noise
    for t in lcm_timesteps(4):
        t = t.expand(6)
        with torch.no_grad():
            clean = consistency_function(clean, student(clean, t), t, SCHEDULE)
    require(not same(drawn(4), clean), "no noise is put on the estimates between the steps")
    require(same(drawn(4), wanted(4)), "four steps differ: noise must go up to the NEXT timestep, and not on the last")
    return "One, and four steps equal the package's sampler."


CHECKS = {"velocity": velocity, "ddim": ddim, "one_gaussian": one_gaussian, "target": target, "few_steps": few_steps}
check = checker(CHECKS)
