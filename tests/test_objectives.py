"""Phased and trajectory consistency and path regression: against a few lines in float64, and on the exact toy."""

import numpy as np
import pytest
import torch

from anytext_lcm.lcm.objectives import OBJECTIVES, PHASED, Point, objective_of
from anytext_lcm.lcm.paths import Paths, draw_paths, path_weights
from anytext_lcm.lcm.samplers import finish, sample
from anytext_lcm.lcm.schedule import NoiseSchedule, lcm_timesteps, phase_edges
from anytext_lcm.lcm.steps import DDIMSolver
from anytext_lcm.teaching import toy
from anytext_lcm.training import settings

SCHEDULE = NoiseSchedule.scaled_linear()
SOLVER = DDIMSolver(SCHEDULE)
ABAR = SCHEDULE.alphas_cumprod.double().numpy()
INDEX = torch.tensor([0, 12, 13, 24, 38, 49])  # t = 19, 259, 279, 499, 779, 999
EDGES = (0, 259, 499, 759)


def eps_of(weights, x, t):
    """A network that anybody can write twice: eps = a x + b t / 1000 + c."""
    a, b, c = weights
    return a * x + b * t / 1000 + c


def network(weights, seen):
    parameter = torch.nn.Parameter(torch.tensor(weights[0]))

    def predict(x, t):
        seen.append(t.tolist())
        return parameter * x + weights[1] * t.view(-1, 1) / 1000 + weights[2]

    return predict, parameter


STUDENT, TEACHER = (0.8, 0.1, 0.05), (0.9, -0.1, 0.02)


def point_of(generator=None, path=None):
    seen = []
    predict, parameter = network(STUDENT, seen)
    teacher = lambda x, t: eps_of(TEACHER, x, t.view(-1, 1))  # noqa: E731
    noise = torch.randn(len(INDEX), 3, generator=torch.Generator().manual_seed(1))
    if path is not None:
        return toy.point_on(predict, teacher, path, INDEX), parameter, seen
    latents = torch.randn(len(INDEX), 3, generator=torch.Generator().manual_seed(2))
    return toy.point(predict, teacher, SOLVER, latents, noise, INDEX, generator), parameter, seen


def jumped(x, eps, t, e):
    x0 = (x - np.sqrt(1 - ABAR[t]) * eps) / np.sqrt(ABAR[t])
    return np.sqrt(ABAR[e]) * x0 + np.sqrt(1 - ABAR[e]) * eps


def written_out(point, ends):
    """Both sides of a consistent jump, picture by picture, from the definitions alone."""
    sides = []
    for row, e in enumerate(ends):
        t, x_t = int(point.t[row]), point.x_t[row].double().numpy()
        s = max(t - 20, 0)
        x_s = jumped(x_t, eps_of(TEACHER, x_t, t), t, s)
        target = x_s if s == e else jumped(x_s, eps_of(STUDENT, x_s, s), s, e)
        sides.append((jumped(x_t, eps_of(STUDENT, x_t, t), t, e), target))
    return (torch.from_numpy(np.stack(side)).float() for side in zip(*sides, strict=True))


def test_phases_end_where_the_sampler_goes_on():
    assert tuple(phase_edges(4).tolist()) == EDGES and phase_edges(1).tolist() == [0]
    for phases in (2, 4, 7, 50):
        edges = set(phase_edges(phases).tolist())
        assert len(edges) == phases and edges <= {0, *SOLVER.timesteps.tolist()}
        for steps in (phases, 2 * phases):
            assert steps > 50 or edges <= {0, *lcm_timesteps(steps).tolist()}
    for wrong in (0, 51, 2.0, True):
        with pytest.raises(ValueError, match="do not divide a grid of 50"):
            phase_edges(wrong)


def test_pcm_equals_a_second_implementation():
    point, parameter, seen = point_of()
    compared = OBJECTIVES["pcm"](point)
    ends = [max(edge for edge in EDGES if edge <= max(t - 20, 0)) for t in point.t.tolist()]
    assert ends == [0, 0, 259, 259, 759, 759]  # 259 belongs to the cleanest phase, 279 begins the next one
    pred, target = written_out(point, ends)
    torch.testing.assert_close(compared.pred, pred, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(compared.target, target, rtol=1e-4, atol=1e-4)
    assert torch.equal(compared.target[2], point.x_s[2]) and torch.equal(compared.target[0], point.x_s[0])
    assert seen == [point.s.tolist(), point.t.tolist()]  # one evaluation each, as lcm
    compared.pred.sum().backward()
    assert parameter.grad.abs() > 0 and not compared.target.requires_grad


def test_two_phases_have_other_ends():
    point, _, _ = point_of()
    compared = objective_of("pcm", 2)(point)
    pred, _ = written_out(point, [499 if t > 499 else 0 for t in point.t.tolist()])
    torch.testing.assert_close(compared.pred, pred, rtol=1e-4, atol=1e-4)


def test_tcd_equals_a_second_implementation():
    point, parameter, seen = point_of(torch.Generator().manual_seed(7))
    compared = OBJECTIVES["tcd"](point)
    share = torch.rand(len(INDEX), generator=torch.Generator().manual_seed(7)).double().numpy()
    ends = np.floor(share * (point.s.numpy() + 1)).astype(int)
    assert (ends <= point.s.numpy()).all() and len(set(ends)) > 3
    pred, target = written_out(point, ends)
    torch.testing.assert_close(compared.pred, pred, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(compared.target, target, rtol=1e-4, atol=1e-4)
    assert seen == [point.s.tolist(), point.t.tolist()]  # no network is told where the jump ends


def test_ends_of_tcd_are_uniform():
    point, _, _ = point_of()
    many = {name: getattr(point, name)[-1:].expand(4000, *getattr(point, name).shape[1:]) for name in ("x_t", "t", "s")}
    found = []

    class Watched(NoiseSchedule):
        def add_noise(self, x0, noise, timesteps):
            found.append(timesteps)
            return super().add_noise(x0, noise, timesteps)

    zero = lambda *_: torch.zeros(4000, 3)  # noqa: E731
    wide = Point(
        Watched(SCHEDULE.alphas_cumprod), many["x_t"], many["x_t"], many["t"], many["x_t"], many["x_t"], many["s"],
        zero, zero, zero, torch.Generator().manual_seed(3),
    )  # fmt: skip
    OBJECTIVES["tcd"](wide)
    counts = np.histogram(found[0].numpy(), bins=7, range=(0, 980))[0]
    assert int(found[0].max()) <= 979 and (abs(counts - 4000 / 7) < 90).all()  # four deviations


def stored_paths(count=6):
    teacher = lambda x, t: eps_of(TEACHER, x, t.view(-1, 1))  # noqa: E731
    noise = torch.randn(count, 3, generator=torch.Generator().manual_seed(4))
    return noise, draw_paths(teacher, noise, SOLVER)


def test_a_stored_path_is_the_teacher_s_ddim():
    """In half precision, and still within a thousandth of the path in float64 at every timestep."""
    noise, stored = stored_paths()
    assert stored.shape == (6, 51, 3) and stored.dtype == torch.float16
    path, x = Paths(SOLVER, stored), noise.half().double().numpy()
    timesteps = [*range(999, 0, -20), 0]
    for t, s in zip(timesteps, timesteps[1:], strict=False):
        found = path.at(torch.full((6,), t))
        np.testing.assert_allclose(found, x, atol=2e-3)
        index = torch.full((6,), (t - 19) // 20)
        eps = eps_of(TEACHER, x, t)
        x0 = (x - np.sqrt(1 - ABAR[t]) * eps) / np.sqrt(ABAR[t])
        np.testing.assert_allclose(path.x0(index), x0, rtol=1e-3, atol=2e-3)
        x = jumped(x, eps, t, s)
    np.testing.assert_allclose(path.end, x, atol=2e-3)
    mixed = path.at(torch.tensor([999, 0, 19, 39, 499, 759]))
    assert torch.equal(mixed[0], stored[0, 0].float()) and torch.equal(mixed[1], path.end[1])
    with pytest.raises(ValueError, match="not all on the solver's grid"):
        path.at(torch.full((6,), 20))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_half_precision_of_the_networks_does_not_reach_the_mathematics(objective):
    """Under autocast, as on a GPU by default, points and targets keep every bit. A sum by einsum would not."""
    _, stored = stored_paths()

    def compared():
        torch.manual_seed(7)  # tcd draws
        point, _, _ = point_of(path=Paths(SOLVER, stored))
        pred, target = OBJECTIVES[objective](point)
        return point.x_t, point.x_s, point.path.end, pred.detach(), target

    exact = compared()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            half = compared()
        for a, b in zip(exact, half, strict=True):
            assert b.dtype == torch.float32 and torch.equal(a, b)


def test_weights_of_a_path_are_a_mean():
    """In x / alpha and with the noise in units of sigma nothing is amplified: all weights lie in 0..1 and sum to 1."""
    weights = path_weights(SOLVER)
    timesteps = torch.cat([SOLVER.timesteps.flip(0), torch.tensor([0])])
    alpha = SCHEDULE.alphas_cumprod.double()[timesteps].sqrt()
    mean = weights / alpha[:, None]
    mean[:, 0] *= alpha[0]
    assert mean.min() >= 0
    torch.testing.assert_close(mean.sum(1), torch.ones(51, dtype=torch.float64))


def test_path_equals_a_second_implementation():
    noise, stored = stored_paths()
    for phases, ends in ((None, [0, 0, 259, 259, 759, 759]), (1, [0] * 6)):
        point, parameter, seen = point_of(path=Paths(SOLVER, stored))
        compared = objective_of("path", phases)(point)
        for row, (t, e) in enumerate(zip(point.t.tolist(), ends, strict=True)):
            x, at = noise[row].half().double().numpy(), {}
            for now in range(999, 0, -20):
                at[now] = x
                x = jumped(x, eps_of(TEACHER, x, now), now, max(now - 20, 0))
            at[0] = x
            np.testing.assert_allclose(compared.target[row], at[e], atol=2e-3)
            wanted = jumped(at[t], eps_of(STUDENT, at[t], t), t, e)
            np.testing.assert_allclose(compared.pred[row].detach(), wanted, rtol=1e-2, atol=5e-3)
        assert seen == [point.t.tolist()]  # the student alone is evaluated
        compared.pred.sum().backward()
        assert parameter.grad.abs() > 0


def test_lcm_on_a_path_has_the_path_s_next_point():
    _, stored = stored_paths()
    point, _, _ = point_of(path=Paths(SOLVER, stored))
    torch.testing.assert_close(point.x_s, point.path.at(point.s), rtol=1e-4, atol=1e-4)
    assert OBJECTIVES["lcm"](point).target.shape == (6, 3)


def test_path_needs_a_path_and_names_match():
    point, _, _ = point_of()
    with pytest.raises(ValueError, match="--paths FOLDER"):
        OBJECTIVES["path"](point)
    with pytest.raises(ValueError, match="lcm has no phases"):
        objective_of("lcm", 4)
    with pytest.raises(ValueError, match="60 phases do not divide"):
        objective_of("pcm", 60)
    assert (settings.OBJECTIVES, settings.PHASED) == (tuple(OBJECTIVES), PHASED)


# -- on the exact toy ---------------------------------------------------------------------------------------


def distances(objective, sampler, updates=200, **options):
    """W1 to data after 1, 2, 4, 8 and 16 steps of a student of the ring."""
    ring = toy.Mixture.ring(8, spread=0.06)
    student = toy.Student(dims=2)
    for _ in toy.train(student, ring, objective, updates, **options):
        pass
    real = ring.sample(2000, torch.Generator().manual_seed(5))
    noise = torch.randn(2000, 2, generator=torch.Generator().manual_seed(6))
    fresh = torch.Generator().manual_seed(7)
    return {
        steps: toy.wasserstein(
            finish(sample(student, noise, ring.schedule, steps, sampler, gamma=0.0, generators=fresh)), real
        )
        for steps in (1, 2, 4, 8, 16)
    }


def test_on_the_toy_lcm_gets_worse_with_steps_and_pcm_does_not():
    """At equal compute: the deterministic phases are nearer from four steps on, lcm at one."""
    lcm, pcm = distances("lcm", "tcd"), distances("pcm", "tcd")
    assert lcm[8] > lcm[2] and pcm[4] < pcm[2] < pcm[1] and pcm[8] < 1.2 * pcm[4]
    assert pcm[4] < 0.6 * lcm[4] and pcm[8] < 0.6 * lcm[8] and lcm[1] < pcm[1]


def test_on_the_toy_tcd_is_nearer_than_lcm_at_many_steps():
    lcm, tcd = distances("lcm", "tcd", 400), distances("tcd", "tcd", 400)
    assert tcd[8] < 0.8 * lcm[8] and tcd[16] < 0.8 * lcm[16] and lcm[1] < tcd[1]


def test_on_the_toy_path_ends_are_nearest_at_one_step():
    path, lcm = distances(objective_of("path", 1), "lcm", paths=2000), distances("lcm", "lcm")
    assert path[1] < lcm[1] and path[4] < lcm[4]
