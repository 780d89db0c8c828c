"""Solver, consistency function, losses and objectives: against second implementations and diffusers."""

import math

import pytest
import torch
from diffusers import LCMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from anytext_lcm.lcm.consistency import boundary_scalings, consistency_function, l2, pseudo_huber
from anytext_lcm.lcm.objectives import OBJECTIVES, Point, lcm, teacher_x0
from anytext_lcm.lcm.schedule import NoiseSchedule, solver_grid
from anytext_lcm.lcm.steps import DDIMSolver, ddim_step, guide, noisy_ddim_step
from anytext_lcm.training.settings import OBJECTIVES as NAMES

SCHEDULE = NoiseSchedule.scaled_linear()
SOLVER = DDIMSolver(SCHEDULE)
ABAR = SCHEDULE.alphas_cumprod
INDEX = torch.tensor([0, 1, 25, 49])


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- solver -----------------------------------------------------------------------------------------------


def test_solver_step_equals_the_table_of_the_lcm_paper_s_code():
    """That code writes the table of previous alphas out: alphas_cumprod[0], then the grid without its end."""
    x0, eps = randn(1, 4, 4, 3, 3), randn(2, 4, 4, 3, 3)
    previous = torch.cat([ABAR[:1], ABAR[solver_grid(50)[:-1]]])[INDEX].view(4, 1, 1, 1)
    torch.testing.assert_close(SOLVER.step(x0, eps, INDEX), previous.sqrt() * x0 + (1 - previous).sqrt() * eps)


def test_solver_timesteps():
    assert SOLVER.start_timesteps(INDEX).tolist() == [19, 39, 519, 999]
    assert SOLVER.previous_timesteps(INDEX).tolist() == [0, 19, 499, 979]  # the first ends at 0 and not at -1
    assert SOLVER.skip == 20 and len(SOLVER) == 50
    far = DDIMSolver(SCHEDULE, 50, skip=100)
    assert far.previous_timesteps(INDEX).tolist() == [0, 0, 419, 899]
    assert SOLVER.index_of(torch.tensor([19, 519])).tolist() == [0, 25]


@pytest.mark.parametrize("timesteps", [[0], [18, 39], [1000]])
def test_timesteps_off_the_grid(timesteps):
    with pytest.raises(ValueError, match="grid"):
        SOLVER.index_of(torch.tensor(timesteps))


@pytest.mark.parametrize("arguments", [(3, None), (50, 0), (50, 1000)])
def test_impossible_solvers(arguments):
    with pytest.raises(ValueError):
        DDIMSolver(SCHEDULE, *arguments)


def test_a_solver_step_with_the_true_noise_stays_on_the_line():
    x0, noise = randn(3, 4, 4, 2, 2), randn(4, 4, 4, 2, 2)
    t, s = SOLVER.start_timesteps(INDEX), SOLVER.previous_timesteps(INDEX)
    x_t = SCHEDULE.add_noise(x0, noise, t)
    moved = SOLVER.step(SCHEDULE.x0_from_eps(x_t, noise, t), noise, INDEX)
    torch.testing.assert_close(moved, SCHEDULE.add_noise(x0, noise, s), rtol=0, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), t=st.integers(0, 999), s=st.integers(0, 999), between=st.integers(0, 999))
def test_laws_of_the_ddim_step(seed, t, s, between):
    """To the same timestep it is the identity; two steps with one eps are one; without eta no noise comes in."""
    x, eps, noise = (randn(seed + place, 2, 4, 2, 2) for place in range(3))
    at = {timestep: torch.full((2,), timestep) for timestep in (t, s, between)}

    def step(x, start, end):
        return ddim_step(SCHEDULE, SCHEDULE.x0_from_eps(x, eps, at[start]), eps, at[end])

    close = dict(rtol=0, atol=1e-4)  # 1 / alpha_t, at most 14.6, times the rounding of numbers about 5
    torch.testing.assert_close(step(x, t, t), x, **close)
    torch.testing.assert_close(step(step(x, t, between), between, s), step(x, t, s), **close)
    s, t = sorted((s, t))
    x0 = SCHEDULE.x0_from_eps(x, eps, at[t])
    plain = noisy_ddim_step(SCHEDULE, x0, eps, at[t], at[s], 0.0, noise)
    torch.testing.assert_close(plain, ddim_step(SCHEDULE, x0, eps, at[s]), **close)


@settings(max_examples=25, deadline=None)
@given(t=st.integers(1, 999), data=st.data(), eta=st.floats(0, 1))
def test_a_noisy_ddim_step_keeps_the_noise_level(t, data, eta):
    """The kept part of eps and the fresh noise add up to sigma_s in variance, for every eta."""
    s = torch.tensor([data.draw(st.integers(0, t - 1))])
    t, zero, one = torch.tensor([t]), torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    kept = noisy_ddim_step(SCHEDULE, zero, one, t, s, eta, zero)
    fresh = noisy_ddim_step(SCHEDULE, zero, zero, t, s, eta, one)
    torch.testing.assert_close(kept**2 + fresh**2, SCHEDULE.alpha_sigma(s, zero)[1] ** 2, rtol=1e-4, atol=1e-6)
    signal = noisy_ddim_step(SCHEDULE, one, zero, t, s, eta, zero)
    torch.testing.assert_close(signal, SCHEDULE.alpha_sigma(s, zero)[0])


def test_guidance_in_both_spellings():
    cond, uncond = randn(5, 2, 4, 2, 2), randn(6, 2, 4, 2, 2)
    assert torch.equal(guide(cond, uncond, 0.0), uncond)
    torch.testing.assert_close(guide(cond, uncond, 1.0), cond)
    torch.testing.assert_close(guide(cond, uncond, 7.5), cond + 6.5 * (cond - uncond))  # LCM's w = s - 1
    assert guide(cond.half(), uncond.half(), 7.5).dtype == torch.float32


def test_guiding_x0_is_guiding_eps():
    x_t, cond, uncond = (randn(seed, 4, 4, 2, 2) for seed in (7, 8, 9))
    t = SOLVER.start_timesteps(INDEX)
    guided = guide(SCHEDULE.x0_from_eps(x_t, cond, t), SCHEDULE.x0_from_eps(x_t, uncond, t), 7.5)
    of_eps = SCHEDULE.x0_from_eps(x_t, guide(cond, uncond, 7.5), t)
    torch.testing.assert_close(guided, of_eps, rtol=1e-4, atol=1e-3)


# -- consistency function ---------------------------------------------------------------------------------


def test_boundary():
    c_skip, c_out = boundary_scalings(torch.tensor([0, 1, 19, 26, 999]))
    assert c_skip.shape == c_out.shape == (5, 1, 1, 1) and c_skip.dtype == c_out.dtype == torch.float32
    assert c_skip[0] == 1 and c_out[0] == 0  # exactly
    for i, t in enumerate((1, 19, 26, 999), 1):
        s = 10 * t
        assert c_skip[i].item() == pytest.approx(0.25 / (s**2 + 0.25), rel=1e-6)
        assert c_out[i].item() == pytest.approx(s / math.sqrt(s**2 + 0.25), rel=1e-6)
    assert 6.9e-6 < c_skip[2] < 7e-6 and c_out[4] > 0.999999  # in fp16 it would be 0


def test_boundary_scalings_equal_diffusers():
    scheduler = LCMScheduler()
    for t in (0, 19, 259, 999):
        c_skip, c_out = scheduler.get_scalings_for_boundary_condition_discrete(t)
        mine = boundary_scalings(torch.tensor([t]))
        assert mine[0].item() == pytest.approx(c_skip, rel=1e-6) and mine[1].item() == pytest.approx(c_out, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), t=st.integers(0, 999))
def test_consistency_function(seed, t):
    x_t, eps = randn(seed, 2, 4, 2, 2), randn(seed + 1, 2, 4, 2, 2)
    zero = torch.zeros(2, dtype=torch.int64)
    assert torch.equal(consistency_function(x_t, eps, zero, SCHEDULE), x_t)  # the identity, bit for bit
    a = ABAR[t].double()
    s = 10.0 * t
    x0 = (x_t.double() - (1 - a).sqrt() * eps) / a.sqrt()
    wanted = 0.25 / (s**2 + 0.25) * x_t + s / math.sqrt(s**2 + 0.25) * x0
    mine = consistency_function(x_t, eps, zero + t, SCHEDULE)
    torch.testing.assert_close(mine.double(), wanted, rtol=1e-4, atol=1e-4)
    half = consistency_function(x_t.bfloat16(), eps.bfloat16(), zero + t, SCHEDULE)
    assert half.dtype == torch.float32


# -- losses -----------------------------------------------------------------------------------------------


def test_pseudo_huber_values_and_limits():
    d = torch.tensor([0.0, 1e-5, 1e-3, 0.1, 30.0]).view(1, 1, 1, 5)
    written = ((d.double() ** 2 + 1e-6).sqrt() - 1e-3).mean()
    assert pseudo_huber(d, torch.zeros_like(d)).item() == pytest.approx(written.item(), rel=1e-6)
    tiny = torch.full((1, 1, 1, 1), 1e-6)  # quadratic: d^2 / 2c; the difference of two nearly equal numbers would be 0
    assert pseudo_huber(tiny, torch.zeros_like(tiny)).item() == pytest.approx(5e-10, rel=1e-3)
    assert pseudo_huber(d * 0, d * 0) == 0 and l2(d, d * 0).item() == pytest.approx((d**2).mean().item())


def test_pseudo_huber_gradient_by_finite_differences():
    pred = randn(10, 1, 2, 2, 2).double().mul(1e-2).float().requires_grad_()
    target = torch.zeros_like(pred)
    pseudo_huber(pred, target).backward()
    written = pred.detach() / (pred.detach() ** 2 + 1e-6).sqrt() / pred.numel()
    torch.testing.assert_close(pred.grad, written, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("loss", [pseudo_huber, l2])
def test_weights_leave_out_what_is_not_to_be_judged(loss):
    pred, target = randn(11, 2, 4, 3, 3), randn(12, 2, 4, 3, 3)
    weight = torch.ones(2, 1, 3, 3)
    torch.testing.assert_close(loss(pred, target, weight=weight), loss(pred, target))
    weight[0, 0, 1] = 0
    kept = weight.expand_as(pred) > 0
    wanted = loss(pred[kept], target[kept])
    torch.testing.assert_close(loss(pred, target, weight=weight), wanted)
    pred[~kept] += 1000
    torch.testing.assert_close(loss(pred, target, weight=weight), wanted)
    assert loss(pred, target, weight=weight * 0) == 0


# -- objectives -------------------------------------------------------------------------------------------


class Net(torch.nn.Module):
    """eps = a x + b t / 1000 + c: enough for a network to have a gradient and to notice its timestep."""

    def __init__(self, a, b, c):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(a))
        self.b, self.c, self.seen = b, c, []

    def forward(self, x, t):
        self.seen.append(t.tolist())
        return self.a * x + self.b * t.view(-1, 1, 1, 1) / 1000 + self.c


def point_of(index=INDEX, guidance_scale=7.5):
    """A point made by hand, with two networks as the teacher's branches and one student."""
    student, cond, uncond = Net(0.8, 0.1, 0.05), Net(0.9, 0.0, 0.0), Net(0.7, 0.0, 0.1)
    latents, noise = randn(20, len(index), 4, 2, 2), randn(21, len(index), 4, 2, 2)
    t, s = SOLVER.start_timesteps(index), SOLVER.previous_timesteps(index)
    x_t = SCHEDULE.add_noise(latents, noise, t)

    @torch.no_grad()
    def teacher(x, t):
        return guide(cond(x, t), uncond(x, t), guidance_scale)

    eps = teacher(x_t, t)
    x0 = SCHEDULE.x0_from_eps(x_t, eps, t)
    x_s = SOLVER.step(x0, eps, index)
    target = torch.no_grad()(student.forward)
    return Point(SCHEDULE, latents, x_t, t, x0, x_s, s, lambda: student(x_t, t), target, teacher), student, noise


def test_lcm_loss_equals_a_second_implementation():
    point, student, noise = point_of()
    compared, latents, total = lcm(point), point.latents, []
    for n, i in enumerate(INDEX.tolist()):
        t = 20 * (i + 1) - 1
        s = max(t - 20, 0)
        at, as_ = ABAR[t].double(), ABAR[s].double()
        x_t = at.sqrt() * latents[n].double() + (1 - at).sqrt() * noise[n]
        cond, uncond = 0.9 * x_t, 0.7 * x_t + 0.1
        eps = uncond + 7.5 * (cond - uncond)
        x_s = as_.sqrt() * (x_t - (1 - at).sqrt() * eps) / at.sqrt() + (1 - as_).sqrt() * eps

        def f(x, time, abar):
            eps = 0.8 * x + 0.1 * time / 1000 + 0.05
            x0 = (x - (1 - abar).sqrt() * eps) / abar.sqrt()
            return 0.25 / ((10 * time) ** 2 + 0.25) * x + 10 * time / ((10 * time) ** 2 + 0.25) ** 0.5 * x0

        d = f(x_t, t, at) - f(x_s, s, as_)
        torch.testing.assert_close(compared.target[n].double(), f(x_s, s, as_), rtol=1e-4, atol=1e-4)
        total.append(((d**2 + 1e-6).sqrt() - 1e-3).mean())
    loss = pseudo_huber(*compared)
    assert loss.item() == pytest.approx(torch.stack(total).mean().item(), rel=1e-4)
    assert loss.dtype == torch.float32
    assert student.seen == [[0, 19, 499, 979], [19, 39, 519, 999]]  # as target, then as student


def test_the_gradient_reaches_the_student_and_not_the_target():
    """Finite differences with the target held still: the derivative of the student's side alone."""
    point, student, _ = point_of()
    compared, x_t, t = lcm(point), point.x_t, point.t
    pseudo_huber(*compared).backward()

    def loss_at(a):
        pred = consistency_function(x_t, Net(a, 0.1, 0.05)(x_t, t), t, SCHEDULE)
        return ((pred - compared.target).double() ** 2 + 1e-6).sqrt().sub(1e-3).mean().item()

    numeric = (loss_at(0.8 + 1e-3) - loss_at(0.8 - 1e-3)) / 2e-3
    assert student.a.grad.item() == pytest.approx(numeric, rel=1e-2)
    assert compared.pred.requires_grad and not compared.target.requires_grad


def test_the_first_grid_point_is_trained_on_the_solver_s_own_picture():
    point, _, noise = point_of(index=torch.tensor([0]))
    t = torch.tensor([19])
    x_t = SCHEDULE.add_noise(point.latents, noise, t)
    eps = guide(0.9 * x_t, 0.7 * x_t + 0.1, 7.5)
    solved = ddim_step(SCHEDULE, SCHEDULE.x0_from_eps(x_t, eps, t), eps, torch.tensor([0]))
    torch.testing.assert_close(lcm(point).target, solved)


def test_teacher_x0_regresses_on_the_guided_teacher_at_the_same_timestep():
    point, student, noise = point_of(guidance_scale=3.0)
    compared, t = teacher_x0(point), SOLVER.start_timesteps(INDEX)
    x_t = SCHEDULE.add_noise(point.latents, noise, t)
    wanted = SCHEDULE.x0_from_eps(x_t, guide(0.9 * x_t, 0.7 * x_t + 0.1, 3.0), t)
    torch.testing.assert_close(compared.target, wanted)
    pred = SCHEDULE.x0_from_eps(x_t, 0.8 * x_t + 0.1 * t.view(-1, 1, 1, 1) / 1000 + 0.05, t)
    torch.testing.assert_close(compared.pred, pred)
    assert student.seen == [t.tolist()]
    pseudo_huber(*compared).backward()
    assert student.a.grad.abs() > 0


def test_objectives_by_name():
    assert (OBJECTIVES["lcm"], OBJECTIVES["teacher_x0"]) == (lcm, teacher_x0)
    assert tuple(OBJECTIVES) == NAMES  # the flag's choices, kept where no torch is needed
