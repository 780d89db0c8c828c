"""Samplers: against diffusers' schedulers step by step, against exact solutions, and by their laws."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler, TCDScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from anytext_lcm.lcm.samplers import finish, sample
from anytext_lcm.lcm.schedule import (
    NoiseSchedule,
    ddim_timesteps,
    lcm_timesteps,
    noise_spaced_timesteps,
    solver_grid,
)
from anytext_lcm.lcm.steps import ddim_step

SCHEDULE = NoiseSchedule.scaled_linear()
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
MEAN, SPREAD = 0.3, 0.7


def gaussian_eps(x, t):
    """The prediction of a perfect network for data from N(MEAN, SPREAD^2)."""
    alpha_t, sigma_t = SCHEDULE.alpha_sigma(t, x)
    return sigma_t * (x - alpha_t * MEAN) / (alpha_t**2 * SPREAD**2 + sigma_t**2)


def wavy_eps(x, t):
    return torch.tanh(x) + 0.1 * torch.cos(3 * x + t.view(-1, 1, 1, 1) / 100)


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def latents(*arguments, **options):
    """The result of a sampler on SCHEDULE: predict, noise, steps, sampler."""
    predict, start, *rest = arguments
    return finish(sample(predict, start, SCHEDULE, *rest, **options))


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 4, 7, 20, 50])
def test_ddim_trajectory_equals_diffusers(steps, spacing):
    scheduler = DDIMScheduler(**BETAS, steps_offset=1, set_alpha_to_one=False, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    x, theirs, clean = noise(2, 4, 3, 3), [], []
    for t in scheduler.timesteps:
        done = scheduler.step(wavy_eps(x, t.expand(2)), t, x)
        x = done.prev_sample
        theirs.append(int(t))
        clean.append(done.pred_original_sample)
    mine = list(sample(wavy_eps, noise(2, 4, 3, 3), SCHEDULE, steps, "ddim", spacing=spacing))
    torch.testing.assert_close(mine[-1].latents, x, rtol=1e-4, atol=1e-4)
    assert [step.timestep for step in mine] == theirs
    for step, x0 in zip(mine, clean, strict=True):
        torch.testing.assert_close(step.x0, x0, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps, eta", [(1, 1.0), (4, 1.0), (7, 0.4), (50, 1.0)])
def test_ddim_with_fresh_noise_equals_diffusers(steps, eta, spacing):
    scheduler = DDIMScheduler(**BETAS, steps_offset=1, set_alpha_to_one=False, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    x, generator = noise(2, 4, 3, 3), seeded(9)
    for t in scheduler.timesteps:
        x = scheduler.step(wavy_eps(x, t.expand(2)), t, x, eta=eta, generator=generator).prev_sample
    arguments = wavy_eps, noise(2, 4, 3, 3), steps, "ddim"
    mine = latents(*arguments, spacing=spacing, eta=eta, generators=seeded(9))
    torch.testing.assert_close(mine, x, rtol=1e-3, atol=1e-3)
    assert (mine - latents(*arguments, spacing=spacing)).abs().mean() > 0.01


def test_fresh_noise_keeps_the_distribution():
    """A perfect network's pictures have the data's mean and deviation, whatever eta is."""
    start = torch.randn(4000, 1, 1, 1, generator=seeded(3))
    for eta in (0.0, 0.5, 1.0):
        x = latents(gaussian_eps, start, 200, "ddim", spacing="trailing", eta=eta, generators=seeded(4))
        assert abs(x.mean() - MEAN) < 0.04 and abs(x.std() - SPREAD) < 0.03, eta


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16])
def test_lcm_trajectory_equals_diffusers(steps):
    scheduler = LCMScheduler(**BETAS)
    scheduler.set_timesteps(steps, original_inference_steps=50)
    generator = seeded(9)
    x = noise(2, 4, 3, 3)
    for t in scheduler.timesteps:
        x, x0 = scheduler.step(wavy_eps(x, t.expand(2)), t, x, generator=generator, return_dict=False)
    mine = latents(wavy_eps, noise(2, 4, 3, 3), steps, generators=seeded(9))
    torch.testing.assert_close(mine, x, rtol=1e-3, atol=1e-3)
    assert torch.equal(x, x0)


def test_no_noise_is_added_after_the_last_lcm_step():
    generator = seeded(1)
    steps = list(sample(wavy_eps, noise(1, 4, 2, 2), SCHEDULE, 4, generators=generator))
    assert [step.timestep for step in steps] == [999, 759, 499, 259]
    assert torch.equal(steps[-1].latents, steps[-1].x0) and not torch.equal(steps[-2].latents, steps[-2].x0)
    same = seeded(1)
    for _ in range(3):  # three draws for four steps
        torch.randn((1, 4, 2, 2), generator=same)
    assert torch.equal(generator.get_state(), same.get_state())


def test_lcm_draws_from_its_generator_alone():
    again = [latents(wavy_eps, noise(1, 4, 2, 2), 4, generators=seeded(seed)) for seed in (1, 1, 2)]
    assert torch.equal(again[0], again[1]) and not torch.allclose(again[0], again[2])


def test_ddim_converges_to_the_exact_ode_on_gaussian_data():
    """There x_t = alpha_t MEAN + sqrt(alpha_t^2 SPREAD^2 + sigma_t^2) z, with one z along the trajectory."""

    def on_line(z, t):
        alpha_t, sigma_t = SCHEDULE.alpha_sigma(torch.tensor([t]), z)
        return alpha_t * MEAN + (alpha_t**2 * SPREAD**2 + sigma_t**2).sqrt() * z

    z = noise(64, 1, 2, 2)
    errors = {}
    for steps in (10, 20, 50, 200, 500):
        start = int(ddim_timesteps(steps)[0])
        errors[steps] = (latents(gaussian_eps, on_line(z, start), steps, "ddim") - on_line(z, 0)).abs().max()
    assert errors[10] > errors[20] > errors[50] > errors[200] > errors[500]
    assert errors[20] < 0.2 and errors[500] < 9e-3
    assert errors[200] / errors[500] == pytest.approx(2.5, rel=0.25)  # a method of first order


def test_a_perfect_consistency_function_needs_one_step():
    """For data of one picture the posterior mean is the consistency function: every step returns the picture."""
    picture = noise(1, 4, 2, 2)

    def predict(x, t):
        return SCHEDULE.eps_from_x0(x, picture.expand_as(x), t)

    for steps in (1, 2, 4):
        x = latents(predict, torch.randn(3, 4, 2, 2), steps, generators=seeded(0))
        torch.testing.assert_close(x, picture.expand(3, -1, -1, -1), rtol=1e-3, atol=1e-3)


def test_steps_that_do_not_fit():
    with pytest.raises(ValueError, match="1 to 50"):
        latents(wavy_eps, noise(1, 4, 2, 2), 51)
    with pytest.raises(ValueError, match="DDIM steps"):
        latents(wavy_eps, noise(1, 4, 2, 2), 0, "ddim")
    with pytest.raises(ValueError, match="choose 'ddim', 'lcm' or 'tcd'"):
        latents(wavy_eps, noise(1, 4, 2, 2), 4, "euler")


@settings(max_examples=30, deadline=None)
@given(
    steps=st.integers(1, 50), sampler=st.sampled_from(["lcm", "tcd"]), gamma=st.floats(0, 1), seed=st.integers(0, 99)
)
def test_the_student_is_called_on_the_grid_of_its_training(steps, sampler, gamma, seed):
    """Once per step, at falling timesteps of the solver's grid, beginning with the noisiest."""
    called = []

    def predict(x, t):
        called.append(int(t[0]))
        return wavy_eps(x, t)

    path = list(sample(predict, noise(1, 4, 2, 2), SCHEDULE, steps, sampler, gamma=gamma, generators=seeded(seed)))
    assert called == [step.timestep for step in path] == sorted(set(called), reverse=True)
    assert len(called) == steps and called[0] == 999 and set(called) <= set(solver_grid().tolist())
    assert all(bool(torch.isfinite(step.latents).all()) for step in path)


def test_samplers_return_fp32_and_call_with_int64():
    def predict(x, t):
        assert t.dtype == torch.int64 and t.shape == (2,) and x.dtype == torch.float32
        return (0.5 * x).half()

    for sampler in ("ddim", "lcm", "tcd"):
        for step in sample(predict, noise(2, 4, 2, 2).half(), SCHEDULE, 4, sampler):
            assert step.x0.dtype == step.latents.dtype == torch.float32


@pytest.mark.parametrize("options", [{"sampler": "ddim", "eta": 1.0}, {}, {"sampler": "tcd", "gamma": 0.5}])
def test_with_a_generator_per_picture_a_picture_does_not_depend_on_its_batch(options):
    def generators():
        return [seeded(seed) for seed in (1, 2, 3)]

    together = latents(wavy_eps, noise(3, 4, 3, 3), 4, generators=generators(), **options)
    for row in range(3):
        rows = slice(row, row + 1)
        alone = latents(wavy_eps, noise(3, 4, 3, 3)[rows], 4, generators=generators()[rows], **options)
        torch.testing.assert_close(together[rows], alone)
    with pytest.raises(ValueError):
        latents(wavy_eps, noise(3, 4, 3, 3), 4, generators=generators()[:2], **options)


def test_nothing_in_a_sampler_keeps_a_gradient():
    weight = torch.ones(1, requires_grad=True)
    for step in sample(lambda x, t: weight * wavy_eps(x, t), noise(1, 4, 2, 2), SCHEDULE, 2):
        assert torch.is_grad_enabled()  # between the steps the caller's own mode holds
        assert not step.x0.requires_grad and not step.latents.requires_grad


@pytest.mark.parametrize("spacing", ["karras", "logsnr"])
def test_ddim_by_noise_level_is_euler_on_diffusers_sigmas(spacing):
    """In x / alpha DDIM is Euler's method, on the levels of diffusers' solvers rounded to timesteps."""
    options = {"use_karras_sigmas": spacing == "karras", "use_exponential_sigmas": spacing == "logsnr"}
    betas = {name: value for name, value in BETAS.items() if name != "clip_sample"}
    scheduler = DPMSolverMultistepScheduler(**betas, timestep_spacing="trailing", **options)
    scheduler.set_timesteps(6)
    assert (noise_spaced_timesteps(SCHEDULE, 6, spacing) - scheduler.timesteps).abs().max() <= 1
    timesteps = noise_spaced_timesteps(SCHEDULE, 7, spacing)
    assert (timesteps[0], timesteps[-1]) == (999, 0) and (timesteps[:-1] > timesteps[1:]).all()
    level = ((1 - SCHEDULE.alphas_cumprod) / SCHEDULE.alphas_cumprod).sqrt()
    y = (x := noise(2, 4, 3, 3)) / SCHEDULE.alphas_cumprod[999].sqrt()
    for t, s in itertools.pairwise(timesteps):
        eps = wavy_eps(y * SCHEDULE.alphas_cumprod[t].sqrt(), t.expand(2))
        y = y + (level[s] - level[t]) * eps
    mine = finish(sample(wavy_eps, x, SCHEDULE, 6, "ddim", spacing=spacing))
    torch.testing.assert_close(mine, y * SCHEDULE.alphas_cumprod[0].sqrt(), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="too many"):
        noise_spaced_timesteps(SCHEDULE, 400, spacing)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "karras", "logsnr"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 16])
def test_every_call_of_ddim_moves_the_latents(spacing, steps):
    """A call that leaves them as they are is an evaluation that was paid for nothing."""
    x, asked = noise(1, 4, 3, 3), []

    def eps(latents, t):
        asked.append((int(t[0]), latents))
        return wavy_eps(latents, t)

    last = finish(sample(eps, x, SCHEDULE, steps, "ddim", spacing=spacing))
    timesteps, states = zip(*asked, strict=True)
    assert len(timesteps) == steps and all(t > s for t, s in itertools.pairwise([*timesteps, 0]))
    assert all((b - a).abs().max() > 1e-3 for a, b in itertools.pairwise([*states, last]))


def test_unknown_spacing():
    with pytest.raises(ValueError, match="leading"):
        ddim_timesteps(4, spacing="linspace")


# -- gamma sampling --------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_tcd_trajectory_equals_diffusers(steps, gamma):
    scheduler = TCDScheduler(**BETAS)
    scheduler.set_timesteps(timesteps=lcm_timesteps(steps).tolist())  # its own, 999, 749, ..., leave the student's grid
    generator = seeded(9)
    x, theirs = noise(2, 4, 3, 3), []
    for t in scheduler.timesteps:
        theirs.append(int(t))
        eps = wavy_eps(x, t.expand(2))
        x = scheduler.step(eps, t, x, eta=gamma, generator=generator, return_dict=False)[0]
    mine = list(sample(wavy_eps, noise(2, 4, 3, 3), SCHEDULE, steps, "tcd", gamma=gamma, generators=seeded(9)))
    torch.testing.assert_close(mine[-1].latents, x, rtol=1e-3, atol=1e-3)
    assert [step.timestep for step in mine] == theirs


def test_gamma_0_draws_nothing_and_is_a_ddim_on_the_students_grid():
    generator = seeded(1)
    before = generator.get_state()
    mine = latents(wavy_eps, noise(2, 4, 3, 3), 4, "tcd", gamma=0.0, generators=generator)
    assert torch.equal(generator.get_state(), before)
    x = noise(2, 4, 3, 3)
    for start, end in ((999, 759), (759, 499), (499, 259), (259, 0)):
        t = torch.full((2,), start)
        eps = wavy_eps(x, t)
        x = ddim_step(SCHEDULE, SCHEDULE.x0_from_eps(x, eps, t), eps, torch.full((2,), end))
    assert torch.equal(mine, x)


def test_gamma_1_is_almost_lcm():
    """Both put fresh noise on the clean estimate; TCD's keeps a trace of eps, as abar_0 is not quite 1."""
    generators = [seeded(3), seeded(3)]
    lcm = latents(wavy_eps, noise(64, 4, 3, 3), 4, generators=generators[0])
    tcd = latents(wavy_eps, noise(64, 4, 3, 3), 4, "tcd", gamma=1.0, generators=generators[1])
    assert (lcm - tcd).square().mean().sqrt() < 0.1 * lcm.square().mean().sqrt()
    assert torch.equal(generators[0].get_state(), generators[1].get_state())  # as many draws


@pytest.mark.parametrize("gamma", [0.0, 0.02])
def test_fresh_noise_keeps_the_spread_of_gaussian_data(gamma):
    """With a perfect network every step ends on a sample of its noise level, whichever part of the noise is fresh.

    The tolerance is the error of DDIM steps of 20 to 40 timesteps.
    """
    x = latents(gaussian_eps, noise(4000, 1, 1, 1), 50, "tcd", gamma=gamma, generators=seeded(2))
    assert x.mean().item() == pytest.approx(MEAN, abs=0.06)
    assert x.std().item() == pytest.approx(SPREAD, abs=0.06)


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_gamma_out_of_range(gamma):
    with pytest.raises(ValueError, match="gamma"):
        latents(wavy_eps, noise(1, 4, 2, 2), 4, "tcd", gamma=gamma)
