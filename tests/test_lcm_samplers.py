"""Samplers: against diffusers' schedulers step by step, and against a problem whose answer is known."""

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, TCDScheduler

from anytext_lcm.lcm.samplers import sample_ddim, sample_lcm, sample_tcd
from anytext_lcm.lcm.schedule import NoiseSchedule, ddim_timesteps, lcm_timesteps
from anytext_lcm.lcm.steps import ddim_step

SCHEDULE = NoiseSchedule.scaled_linear()
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
MEAN, SPREAD = 0.3, 0.7


def gaussian_eps(x, t):
    """What a perfect network answers when all pictures are drawn from N(MEAN, SPREAD^2)."""
    alpha_t, sigma_t = SCHEDULE.alpha_sigma(t, x)
    return sigma_t * (x - alpha_t * MEAN) / (alpha_t**2 * SPREAD**2 + sigma_t**2)


def wavy_eps(x, t):
    return torch.tanh(x) + 0.1 * torch.cos(3 * x + t.view(-1, 1, 1, 1) / 100)


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 4, 7, 20, 50])
def test_ddim_trajectory_equals_diffusers(steps, spacing):
    scheduler = DDIMScheduler(**BETAS, steps_offset=1, set_alpha_to_one=False, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    x, theirs, clean = noise(2, 4, 3, 3), [], []
    for t in scheduler.timesteps:
        answer = scheduler.step(wavy_eps(x, t.expand(2)), t, x)
        x = answer.prev_sample
        theirs.append(int(t))
        clean.append(answer.pred_original_sample)
    seen = []
    mine = sample_ddim(
        wavy_eps,
        noise(2, 4, 3, 3),
        SCHEDULE,
        steps,
        progress=lambda done, t, x0: seen.append((done, t, x0)),
        spacing=spacing,
    )
    torch.testing.assert_close(mine, x, rtol=1e-4, atol=1e-4)
    assert [entry[:2] for entry in seen] == list(enumerate(theirs, 1))
    for entry, x0 in zip(seen, clean, strict=True):
        torch.testing.assert_close(entry[2], x0, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps, eta", [(1, 1.0), (4, 1.0), (7, 0.4), (50, 1.0)])
def test_ddim_with_fresh_noise_equals_diffusers(steps, eta, spacing):
    scheduler = DDIMScheduler(**BETAS, steps_offset=1, set_alpha_to_one=False, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    x, generator = noise(2, 4, 3, 3), torch.Generator().manual_seed(9)
    for t in scheduler.timesteps:
        x = scheduler.step(wavy_eps(x, t.expand(2)), t, x, eta=eta, generator=generator).prev_sample
    arguments = wavy_eps, noise(2, 4, 3, 3), SCHEDULE, steps, None, spacing
    mine = sample_ddim(*arguments, eta, torch.Generator().manual_seed(9))
    torch.testing.assert_close(mine, x, rtol=1e-3, atol=1e-3)
    assert (mine - sample_ddim(*arguments)).abs().mean() > 0.01


def test_fresh_noise_keeps_the_distribution():
    """A perfect network's pictures have the data's mean and deviation, whatever eta is."""
    start = torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(3))
    for eta in (0.0, 0.5, 1.0):
        x = sample_ddim(gaussian_eps, start, SCHEDULE, 200, None, "trailing", eta, torch.Generator().manual_seed(4))
        assert abs(x.mean() - MEAN) < 0.04 and abs(x.std() - SPREAD) < 0.03, eta


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16])
def test_lcm_trajectory_equals_diffusers(steps):
    scheduler = LCMScheduler(**BETAS)
    scheduler.set_timesteps(steps, original_inference_steps=50)
    generator = torch.Generator().manual_seed(9)
    x = noise(2, 4, 3, 3)
    for t in scheduler.timesteps:
        x, x0 = scheduler.step(wavy_eps(x, t.expand(2)), t, x, generator=generator, return_dict=False)
    mine = sample_lcm(wavy_eps, noise(2, 4, 3, 3), SCHEDULE, steps, torch.Generator().manual_seed(9))
    torch.testing.assert_close(mine, x, rtol=1e-3, atol=1e-3)
    assert torch.equal(x, x0)


def test_no_noise_is_added_after_the_last_lcm_step():
    answers = []
    generator = torch.Generator().manual_seed(1)
    result = sample_lcm(
        wavy_eps,
        noise(1, 4, 2, 2),
        SCHEDULE,
        4,
        generator,
        progress=lambda done, t, x0: answers.append((done, t, x0)),
    )
    assert torch.equal(result, answers[-1][2]) and [a[:2] for a in answers] == [
        (1, 999),
        (2, 759),
        (3, 499),
        (4, 259),
    ]
    same = torch.Generator().manual_seed(1)
    for _ in range(3):  # three draws for four steps
        torch.randn((1, 4, 2, 2), generator=same)
    assert torch.equal(generator.get_state(), same.get_state())


def test_lcm_draws_from_its_generator_alone():
    again = [sample_lcm(wavy_eps, noise(1, 4, 2, 2), SCHEDULE, 4, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(again[0], again[1]) and not torch.allclose(again[0], again[2])


def test_ddim_converges_to_the_exact_ode_on_gaussian_data():
    """There x_t = alpha_t MEAN + sqrt(alpha_t^2 SPREAD^2 + sigma_t^2) z with one z all along the
    trajectory.
    """

    def on_line(z, t):
        alpha_t, sigma_t = SCHEDULE.alpha_sigma(torch.tensor([t]), z)
        return alpha_t * MEAN + (alpha_t**2 * SPREAD**2 + sigma_t**2).sqrt() * z

    z = noise(64, 1, 2, 2)
    errors = {}
    for steps in (10, 20, 50, 200, 500):
        start = int(ddim_timesteps(steps)[0])
        errors[steps] = (sample_ddim(gaussian_eps, on_line(z, start), SCHEDULE, steps) - on_line(z, 0)).abs().max()
    assert errors[10] > errors[20] > errors[50] > errors[200] > errors[500]
    assert errors[20] < 0.2 and errors[500] < 9e-3
    assert errors[200] / errors[500] == pytest.approx(2.5, rel=0.25)  # a method of first order


def test_a_perfect_consistency_function_needs_one_step():
    """For pictures that are all the same, the posterior mean is the consistency function: every step answers
    the picture.
    """
    picture = noise(1, 4, 2, 2)

    def predict(x, t):
        return SCHEDULE.eps_from_x0(x, picture.expand_as(x), t)

    for steps in (1, 2, 4):
        x = sample_lcm(predict, torch.randn(3, 4, 2, 2), SCHEDULE, steps, torch.Generator().manual_seed(0))
        torch.testing.assert_close(x, picture.expand(3, -1, -1, -1), rtol=1e-3, atol=1e-3)


def test_steps_that_do_not_fit():
    with pytest.raises(ValueError, match="1 to 50"):
        sample_lcm(wavy_eps, noise(1, 4, 2, 2), SCHEDULE, 51)
    with pytest.raises(ValueError, match="DDIM steps"):
        sample_ddim(wavy_eps, noise(1, 4, 2, 2), SCHEDULE, 0)


def test_samplers_answer_fp32_and_ask_with_int64():
    def predict(x, t):
        assert t.dtype == torch.int64 and t.shape == (2,) and x.dtype == torch.float32
        return (0.5 * x).half()

    for sample in (sample_ddim, sample_lcm):
        assert sample(predict, noise(2, 4, 2, 2).half(), SCHEDULE, 4).dtype == torch.float32


def test_lcm_with_one_generator_a_picture_does_not_depend_on_the_batch():
    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]

    together = sample_lcm(wavy_eps, noise(3, 4, 3, 3), SCHEDULE, 4, generators())
    alone = sample_lcm(wavy_eps, noise(3, 4, 3, 3)[1:2], SCHEDULE, 4, generators()[1:2])
    torch.testing.assert_close(together[1:2], alone)
    with pytest.raises(ValueError):
        sample_lcm(wavy_eps, noise(3, 4, 3, 3), SCHEDULE, 4, generators()[:2])


def test_unknown_spacing():
    with pytest.raises(ValueError, match="leading"):
        ddim_timesteps(4, spacing="linspace")


# -- gamma sampling --------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_tcd_trajectory_equals_diffusers(steps, gamma):
    scheduler = TCDScheduler(**BETAS)
    scheduler.set_timesteps(timesteps=lcm_timesteps(steps).tolist())  # its own, 999, 749, ..., leave the student's grid
    generator = torch.Generator().manual_seed(9)
    x, theirs = noise(2, 4, 3, 3), []
    for t in scheduler.timesteps:
        theirs.append(int(t))
        eps = wavy_eps(x, t.expand(2))
        x = scheduler.step(eps, t, x, eta=gamma, generator=generator, return_dict=False)[0]
    seen = []
    mine = sample_tcd(
        wavy_eps,
        noise(2, 4, 3, 3),
        SCHEDULE,
        steps,
        gamma,
        torch.Generator().manual_seed(9),
        progress=lambda done, t, x0: seen.append((done, t)),
    )
    torch.testing.assert_close(mine, x, rtol=1e-3, atol=1e-3)
    assert seen == list(enumerate(theirs, 1)) and mine.dtype == torch.float32


def test_gamma_0_draws_nothing_and_is_a_ddim_on_the_students_grid():
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    mine = sample_tcd(wavy_eps, noise(2, 4, 3, 3), SCHEDULE, 4, 0.0, generator)
    assert torch.equal(generator.get_state(), before)
    x = noise(2, 4, 3, 3)
    for start, end in ((999, 759), (759, 499), (499, 259), (259, 0)):
        t = torch.full((2,), start)
        eps = wavy_eps(x, t)
        x = ddim_step(SCHEDULE, SCHEDULE.x0_from_eps(x, eps, t), eps, torch.full((2,), end))
    assert torch.equal(mine, x)


def test_gamma_1_is_almost_lcm():
    """Both put fresh noise on the clean estimate; TCD's keeps a trace of eps, as abar_0 is not quite 1."""
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    lcm = sample_lcm(wavy_eps, noise(64, 4, 3, 3), SCHEDULE, 4, generators[0])
    tcd = sample_tcd(wavy_eps, noise(64, 4, 3, 3), SCHEDULE, 4, 1.0, generators[1])
    assert (lcm - tcd).square().mean().sqrt() < 0.1 * lcm.square().mean().sqrt()
    assert torch.equal(generators[0].get_state(), generators[1].get_state())  # as many draws


@pytest.mark.parametrize("gamma", [0.0, 0.02])
def test_fresh_noise_keeps_the_spread_of_gaussian_data(gamma):
    """With a perfect network every step ends on a sample of its noise level, whichever part of its noise is fresh;
    what is left is the error of DDIM steps of 20 to 40 timesteps.
    """
    x = sample_tcd(gaussian_eps, noise(4000, 1, 1, 1), SCHEDULE, 50, gamma, torch.Generator().manual_seed(2))
    assert x.mean().item() == pytest.approx(MEAN, abs=0.06)
    assert x.std().item() == pytest.approx(SPREAD, abs=0.06)


def test_tcd_with_one_generator_a_picture_does_not_depend_on_the_batch():
    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]

    together = sample_tcd(wavy_eps, noise(3, 4, 3, 3), SCHEDULE, 4, 0.5, generators())
    alone = sample_tcd(wavy_eps, noise(3, 4, 3, 3)[2:], SCHEDULE, 4, 0.5, generators()[2:])
    torch.testing.assert_close(together[2:], alone)


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_gamma_out_of_range(gamma):
    with pytest.raises(ValueError, match="gamma"):
        sample_tcd(wavy_eps, noise(1, 4, 2, 2), SCHEDULE, 4, gamma)
