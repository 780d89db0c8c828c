"""The exact toy: its formulas against independent ones, its students against what they must learn."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anytext_lcm.lcm.consistency import l2
from anytext_lcm.lcm.objectives import OBJECTIVES
from anytext_lcm.lcm.samplers import finish, sample
from anytext_lcm.lcm.steps import DDIMSolver
from anytext_lcm.teaching import family, toy

LINE, RING = toy.Mixture.line(), toy.Mixture.ring()
SCHEDULE = LINE.schedule


def at(t, x):
    return torch.full((len(x),), t)


def ddim(predict, x, steps):
    return finish(sample(predict, x, SCHEDULE, steps, "ddim", spacing="trailing"))


def points(seed, count, dims):
    return torch.randn(count, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("data", [LINE, RING], ids=["line", "ring"])
@pytest.mark.parametrize("t", [0, 259, 999])
def test_noise_prediction_is_the_score(data, t):
    """eps = -sigma * d log p / dx, with the derivative taken by autograd."""
    x = points(0, 50, data.means.shape[1]).requires_grad_()
    score = torch.autograd.grad(data.log_density(x, at(t, x)).sum(), x)[0]
    sigma = (1 - SCHEDULE.alphas_cumprod[t].double()).sqrt()
    assert score.abs().max() > 0.5
    torch.testing.assert_close(data.predict(x.detach(), at(t, x)), -sigma * score, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("t", [19, 499, 999])
def test_density_is_that_of_torch_s_distributions(t):
    alpha = SCHEDULE.alphas_cumprod[t].double().sqrt()
    scale = ((alpha * RING.spread) ** 2 + 1 - alpha**2).sqrt()
    bells = torch.distributions.Independent(torch.distributions.Normal(alpha * RING.means.double(), scale), 1)
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(RING.weights), bells)
    x = points(1, 20, 2)
    torch.testing.assert_close(RING.log_density(x, at(t, x)), mixture.log_prob(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("t", [259, 759])
def test_posterior_mean_by_monte_carlo(t):
    """E[x0 | x_t = x]: the average of clean data, each weighted by how likely it leads to x."""
    x0 = LINE.sample(400_000, torch.Generator().manual_seed(2)).double()
    x = torch.tensor([[0.3]], dtype=torch.float64)
    alpha, sigma = (value.double() for value in SCHEDULE.alpha_sigma(at(t, x), x))
    weight = torch.softmax(-((x - alpha * x0) ** 2) / (2 * sigma**2), 0)
    assert LINE.posterior_mean(x, at(t, x)).item() == pytest.approx((weight * x0).sum().item(), abs=0.01)
    assert LINE.posterior_mean(x, at(t, x)).abs() > 0.05


def test_shares_are_bayes_rule():
    x = points(3, 6, 1)
    shares = LINE.shares(x, at(499, x))
    torch.testing.assert_close(shares.sum(-1), torch.ones(6, dtype=torch.float64))
    alone = torch.stack([LINE.condition((k,)).log_density(x, at(499, x)).exp() / 2 for k in (0, 1)], -1)
    torch.testing.assert_close(shares, alone / alone.sum(-1, keepdim=True), rtol=1e-4, atol=1e-6)


def test_samples_follow_the_weights():
    heavy = toy.Mixture(torch.tensor([[0.0], [5.0]]), 0.1, torch.tensor([0.2, 0.8]))
    x = heavy.sample(4000, torch.Generator().manual_seed(4))
    assert (x > 2.5).float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert x[x > 2.5].std().item() == pytest.approx(0.1, rel=0.05)


# -- the ODE ----------------------------------------------------------------------------------------------


def test_flow_of_one_bell_is_a_formula():
    """For one Gaussian x / alpha moves away from the mean as sqrt(spread^2 + u^2)."""
    bell = toy.Mixture.line((0.7,), 0.2)
    x = points(5, 30, 1)
    a, b = (SCHEDULE.alphas_cumprod[t].double() for t in (999, 0))
    ratio = ((0.04 + (1 - b) / b) / (0.04 + (1 - a) / a)).sqrt()
    wanted = b.sqrt() * (0.7 + ratio * (x / a.sqrt() - 0.7))
    torch.testing.assert_close(bell.flow(x, 999, 0), wanted, rtol=1e-6, atol=1e-6)


def test_flow_on_a_line_keeps_quantiles():
    x = points(6, 200, 1)
    solved, known = LINE.flow(x, 999, 0), LINE.quantile_flow(x, 999, 0)
    assert (solved - known).abs().max() < 1e-3 and (solved - known).abs().median() < 1e-6
    assert (known.abs() - 1).abs().max() < 0.5


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), t=st.integers(1, 999), s=st.integers(0, 999))
def test_consistency_along_a_path(seed, t, s):
    """f(x_t, t) = f(x_s, s) for two points of one path, and a path can be walked back."""
    s = min(s, t)
    x = points(seed, 8, 2)
    earlier = RING.flow(x, t, s, steps=64)
    torch.testing.assert_close(RING.flow(earlier, s, t, steps=64), x, rtol=1e-2, atol=1e-2)
    gap = (RING.consistency(x, t, steps=64) - RING.consistency(earlier, s, steps=64)).norm(dim=-1)
    assert gap.median() < 1e-3
    torch.testing.assert_close(RING.consistency(x, at(0, x)), x, rtol=0, atol=1e-12)  # the boundary


def test_flow_takes_a_timestep_for_each_point():
    x = points(7, 4, 2)
    both = RING.flow(torch.cat([x, x]), torch.tensor([999] * 4 + [259] * 4), 0)
    torch.testing.assert_close(both, torch.cat([RING.flow(x, 999, 0), RING.flow(x, 259, 0)]))


def test_ddim_tends_to_the_flow():
    x = points(8, 100, 2).float()
    end = RING.flow(x, 999, 0)
    errors = [(ddim(RING.predict, x, steps) - end).abs().mean() for steps in (25, 200)]
    assert errors[1] < errors[0] / 4 and errors[1] < 0.05


def test_guided_flow_follows_the_guided_prediction():
    """Against DDIM's small steps with `guided`, and without guidance against the conditional alone."""
    right = RING.condition((0, 1))
    x = points(9, 40, 2).float()
    strong = RING.flow(x, 999, 0, given=right, guidance_scale=3.0)
    drawn = ddim(toy.guided(RING, right, 3.0), x, 500)
    assert (strong - drawn).abs().median() < 0.02
    torch.testing.assert_close(RING.flow(x, 999, 0, given=right, guidance_scale=1.0), right.flow(x, 999, 0))
    assert (strong - right.flow(x, 999, 0)).abs().mean() > 0.05


def test_the_plane_has_no_quantiles():
    with pytest.raises(ValueError, match="use flow"):
        RING.quantile_flow(points(0, 2, 2), 999)


def test_perfect_student_is_ddim():
    """At skip 20 it returns at t = 999 the end of 50 trailing DDIM steps, at t = 19 that of one step."""
    x = points(10, 30, 1).float()
    solver = DDIMSolver(SCHEDULE)
    drawn = ddim(LINE.predict, x, 50)
    torch.testing.assert_close(toy.perfect_student(LINE.predict, x, solver, 49), drawn)
    mixed = toy.perfect_student(LINE.predict, torch.cat([x[:1], x[:1]]), solver, torch.tensor([49, 0]))
    torch.testing.assert_close(mixed[0], drawn[0])
    t = at(19, x[:1])
    one = SCHEDULE.add_noise(LINE.posterior_mean(x[:1], t), LINE.predict(x[:1], t), t * 0)
    torch.testing.assert_close(mixed[1:], one, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="off the grid"):
        toy.perfect_student(LINE.predict, x, DDIMSolver(SCHEDULE, skip=30), 49)


# -- students ---------------------------------------------------------------------------------------------


def test_a_student_with_a_base_starts_as_its_base():
    student, x = toy.Student(base=LINE.predict), points(11, 9, 1).float()
    t = torch.randint(1, 1000, (9,))
    torch.testing.assert_close(student.x0(x, t), LINE.posterior_mean(x, t), rtol=1e-4, atol=1e-4)
    base = toy.Student(seed=1)
    toy.Student(base=base)
    assert not any(parameter.requires_grad for parameter in base.parameters())


def test_regression_learns_the_posterior_mean():
    student = toy.Student()
    losses = list(toy.train(student, LINE, "teacher_x0", steps=400))
    x = torch.linspace(-1, 1, 41)[:, None]
    error = {t: (student.x0(x, at(t, x)) - LINE.posterior_mean(x, at(t, x))).abs().mean() for t in (499, 999)}
    assert sum(losses[-20:]) < sum(losses[:20]) / 4 and max(error.values()) < 0.12
    assert (LINE.consistency(x, at(999, x)) - student.x0(x, at(999, x))).abs().mean() > 0.5


def test_a_point_is_made_of_steps_5_to_9():
    """Its neighbour lies on the teacher's DDIM path, and the student carries a gradient that the target lacks."""
    student, solver, index = toy.Student(base=LINE.predict), DDIMSolver(SCHEDULE), torch.tensor([0, 24, 49])
    latents, noise = points(13, 3, 1).float(), points(14, 3, 1).float()
    teacher = toy.guided(LINE, LINE.condition((1,)), 3.0)
    point = toy.point(student, teacher, solver, latents, noise, index)
    assert point.t.tolist() == [19, 499, 999] and point.s.tolist() == [0, 479, 979]
    abar, abar_s = (SCHEDULE.alphas_cumprod[time][:, None] for time in (point.t, point.s))
    torch.testing.assert_close(point.x_t, abar.sqrt() * latents + (1 - abar).sqrt() * noise)
    eps = teacher(point.x_t, point.t)
    x0 = (point.x_t - (1 - abar).sqrt() * eps) / abar.sqrt()
    torch.testing.assert_close(point.teacher_x0, x0)
    torch.testing.assert_close(point.x_s, abar_s.sqrt() * x0 + (1 - abar_s).sqrt() * eps)
    assert torch.equal(point.student(), point.target(point.x_t, point.t))
    assert point.student().requires_grad and not point.target(point.x_t, point.t).requires_grad
    of_itself = toy.point(student, student, solver, latents, noise, index)
    assert not of_itself.teacher(point.x_t, point.t).requires_grad and not of_itself.x_s.requires_grad


def test_an_objective_a_loss_and_a_teacher_may_be_functions():
    calls = []

    def mine(point):
        calls.append(point.schedule)
        return OBJECTIVES["lcm"](point)

    def losses(*arguments, **options):
        student = toy.Student(base=LINE.predict, width=8, seed=2)
        return list(toy.train(student, LINE, *arguments, steps=2, **options))

    plain = losses("lcm")
    assert losses(mine) == plain and calls == [SCHEDULE] * 2
    assert losses("lcm", teacher=LINE.condition((1,)).predict) != plain != losses("lcm", loss=l2)


def test_training_is_reproducible_and_goes_on_only_as_far_as_it_is_asked():
    runs = []
    for _ in range(2):
        student = toy.Student(base=LINE.predict, width=8)
        weights = [student.net[-1].weight.detach().clone()]
        for loss in toy.train(student, LINE, steps=3):
            weights.append(student.net[-1].weight.detach().clone())
            runs.append(loss)
        assert len(weights) == 4 and all(not torch.equal(*pair) for pair in pairwise(weights))
    assert runs[:3] == runs[3:]


# -- distance ---------------------------------------------------------------------------------------------


def test_wasserstein_of_a_shift():
    x = points(12, 500, 2)
    assert toy.wasserstein(x[:, :1], x[:, :1] + 0.3) == pytest.approx(0.3)
    assert toy.wasserstein(x, x + torch.tensor([0.3, 0.4])) == pytest.approx(0.5 * 2 / math.pi, rel=1e-3)
    assert toy.wasserstein(x, x.flip(0)) == 0
    with pytest.raises(ValueError, match="as many points"):
        toy.wasserstein(x, x[:10])


def test_velocity_turns_a_point_along_its_path():
    """Against the flow by differences, and against v of the prediction at a timestep."""
    x = RING.sample(16, torch.Generator().manual_seed(3)).double()
    t = torch.full((16,), 500)
    before, after = (RING.flow(x, 500, end, steps=8) for end in (501, 499))
    angles = [family.angle(torch.tensor([place]), x[:1]).double() for place in (501, 499)]
    slope = (before - after) / (angles[0] - angles[1])
    found = RING.velocity(x, family.angle(t, x).double())
    assert torch.allclose(found, slope, atol=1e-4)
    x0 = SCHEDULE.x0_from_eps(x, RING.predict(x, t), t)
    assert torch.allclose(found.float(), SCHEDULE.v_from_x0_eps(x0, RING.predict(x, t), t), atol=1e-5)


def test_a_two_time_student_starts_as_the_teacher_and_learns():
    """Untrained, its jumps are Euler steps of the exact velocity; `fit` lowers its loss and repeats itself."""
    student, x = family.TwoTimeStudent(RING), torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    start, end = (family.angle(torch.full((8,), t), x) for t in (999, 0))
    euler = x - (start - end) * RING.velocity(x, start)
    assert torch.allclose(family.jumps(student, x, 1), euler)

    def loss(network, generator):
        points = torch.randn(32, 2, generator=generator)
        angles = torch.full((32, 1), 0.7)
        return (network(points, angles, angles) ** 2).mean()

    before = loss(student, torch.Generator().manual_seed(9)).item()
    again = family.fit(family.twin(student), loss, 20)
    family.fit(student, loss, 20)
    assert loss(student, torch.Generator().manual_seed(9)) < 0.5 * before
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True))


def test_interval_is_two_standard_errors():
    assert toy.interval(torch.tensor([1.0, 2.0, 3.0, 4.0])) == "2.500 ± 1.291"
