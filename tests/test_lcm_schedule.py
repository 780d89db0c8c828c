"""The schedule and its grids: against upstream's reference outputs, against diffusers, and by their own
laws.
"""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_weights import load_reference

from anytext_lcm.lcm.schedule import NoiseSchedule, ddim_timesteps, lcm_timesteps, solver_grid

SCHEDULE = NoiseSchedule.scaled_linear()
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
ANY_TIMESTEP = st.integers(0, 999)
SEEDS = st.integers(0, 2**31)


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_alphas_cumprod_equal_upstream():
    reference = load_reference("12_schedule")
    assert np.array_equal(SCHEDULE.alphas_cumprod.numpy(), reference["alphas_cumprod_f32"])
    assert SCHEDULE.alphas_cumprod.dtype == torch.float32 and len(SCHEDULE) == 1000


@pytest.mark.parametrize("steps", [4, 8, 20, 50])
def test_ddim_timesteps_and_their_ends_equal_upstream(steps):
    reference = load_reference("12_schedule")
    timesteps = ddim_timesteps(steps)
    assert timesteps.dtype == torch.int64
    assert timesteps.flip(0).tolist() == reference[f"timesteps_{steps}"].tolist()
    ends = (timesteps - 1000 // steps).clamp(min=0)
    np.testing.assert_allclose(
        SCHEDULE.alphas_cumprod[ends].flip(0).numpy(), reference[f"alphas_prev_{steps}"], rtol=1e-6
    )


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8, 15, 20, 30, 37, 50, 999])
def test_ddim_timesteps_equal_diffusers(steps):
    scheduler = DDIMScheduler(**BETAS, steps_offset=1, set_alpha_to_one=False, timestep_spacing="leading")
    scheduler.set_timesteps(steps)
    assert ddim_timesteps(steps).tolist() == scheduler.timesteps.tolist()


def test_lcm_timesteps_equal_diffusers():
    scheduler = LCMScheduler(**BETAS)
    for steps in range(1, 51):
        scheduler.set_timesteps(steps, original_inference_steps=50)
        assert lcm_timesteps(steps).tolist() == scheduler.timesteps.tolist(), steps


def test_lcm_timesteps_lie_on_the_grid():
    grid = solver_grid()
    assert grid.dtype == torch.int64 and grid[:2].tolist() == [19, 39] and grid[-1] == 999 and len(grid) == 50
    assert lcm_timesteps(4).tolist() == [999, 759, 499, 259]
    assert lcm_timesteps(8).tolist() == [999, 879, 759, 639, 499, 379, 259, 139]
    for steps in (1, 2, 4, 6, 8, 16, 50):
        chosen = lcm_timesteps(steps)
        assert len(chosen) == steps and set(chosen.tolist()) <= set(grid.tolist())
        assert bool((chosen[1:] < chosen[:-1]).all())


@pytest.mark.parametrize("steps", [0, -1, 51, 1000])
def test_lcm_steps_off_the_grid(steps):
    with pytest.raises(ValueError, match="1 to 50"):
        lcm_timesteps(steps)


@pytest.mark.parametrize("steps", [0, -4, 1000, 1001])
def test_impossible_ddim_steps(steps):
    with pytest.raises(ValueError, match="DDIM steps"):
        ddim_timesteps(steps)


@pytest.mark.parametrize("n", [0, -5, 3, 30, 2000])
def test_grid_that_does_not_divide(n):
    with pytest.raises(ValueError, match="does not divide"):
        solver_grid(n)


@pytest.mark.parametrize("bad", [torch.tensor(0.5), torch.tensor([0.9, 0.95]), torch.tensor([1.0, 0.5])])
def test_alphas_that_are_none(bad):
    with pytest.raises(ValueError, match="falling"):
        NoiseSchedule(bad)


def test_timesteps_in_half_precision_are_refused():
    x = torch.zeros(1, 4, 2, 2)
    with pytest.raises(ValueError, match="int64"):
        SCHEDULE.add_noise(x, x, torch.tensor([999.0], dtype=torch.bfloat16))


@settings(max_examples=60, deadline=None)
@given(t=st.lists(ANY_TIMESTEP, min_size=1, max_size=4), seed=SEEDS)
def test_conversions_invert_each_other(t, seed):
    timesteps = torch.tensor(t)
    x0, noise = randn(seed, len(t), 4, 3, 2), randn(seed + 1, len(t), 4, 3, 2)
    x_t = SCHEDULE.add_noise(x0, noise, timesteps)
    v = SCHEDULE.v_from_x0_eps(x0, noise, timesteps)
    # An error of one unit in the last place of x_t grows by 1 / alpha_t, at most 14.6, or by 1 / sigma_t, at
    # most 34.3.
    close = dict(rtol=0, atol=34.3 * 4 * torch.finfo(torch.float32).eps * 8)
    torch.testing.assert_close(SCHEDULE.x0_from_eps(x_t, noise, timesteps), x0, **close)
    torch.testing.assert_close(SCHEDULE.eps_from_x0(x_t, x0, timesteps), noise, **close)
    torch.testing.assert_close(SCHEDULE.x0_from_v(x_t, v, timesteps), x0, rtol=0, atol=1e-5)
    torch.testing.assert_close(SCHEDULE.eps_from_v(x_t, v, timesteps), noise, rtol=0, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(t=ANY_TIMESTEP, dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float64]), seed=SEEDS)
def test_everything_is_fp32(t, dtype, seed):
    timesteps = torch.tensor([t])
    a, b = randn(seed, 1, 4, 2, 2).to(dtype), randn(seed + 1, 1, 4, 2, 2).to(dtype)
    for name in ("add_noise", "x0_from_eps", "eps_from_x0", "v_from_x0_eps", "x0_from_v", "eps_from_v"):
        answer = getattr(SCHEDULE, name)(a, b, timesteps)
        assert answer.dtype == torch.float32, name
        torch.testing.assert_close(answer, getattr(SCHEDULE, name)(a.float(), b.float(), timesteps))


def test_signal_and_noise_squares_sum_to_one():
    t = torch.arange(1000)
    alpha_t, sigma_t = SCHEDULE.alpha_sigma(t, torch.zeros(1000, 1, 1))
    torch.testing.assert_close(alpha_t**2 + sigma_t**2, torch.ones(1000, 1, 1))
    assert alpha_t.shape == (1000, 1, 1)
