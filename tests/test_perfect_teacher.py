"""The exact teacher of notebook 06 on pictures: what a condition allows, and what no network could improve on."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from anytext_lcm.judging.colours import text_mask
from anytext_lcm.judging.reading import LineReader, score_lines
from anytext_lcm.lcm.samplers import finish, sample
from anytext_lcm.model.loading import load_embedded_teacher

sys.path.insert(0, str(Path(__file__).parents[1] / "notebooks"))

import perfect_teacher  # noqa: E402
from perfect_teacher import SIZE, draw_condition  # noqa: E402


@pytest.fixture(scope="module")
def model():
    return load_embedded_teacher("cpu")


@pytest.fixture(scope="module")
def condition():
    return draw_condition(np.random.default_rng(0), reach=6.0)


@pytest.fixture(scope="module")
def pictures(condition):
    return condition.pictures(spacing=6.0)


def noise(count, seed=0):
    return torch.randn(count, 16, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_a_condition_has_its_text_in_every_shape_and_place(condition, pictures):
    # Six upright fonts in two widths and two slants, two italic ones in two widths; three by three places.
    assert pictures.shape == ((6 * 4 + 2 * 2) * 9, SIZE, SIZE, 3)
    assert len(np.unique(pictures.reshape(len(pictures), -1), axis=0)) == len(pictures)
    outside = ~text_mask([condition.polygon], (SIZE, SIZE), grow=0).astype(bool)
    assert (pictures[:, outside] == np.rint(condition.background)[outside]).all()
    scores = score_lines(
        LineReader(), pictures[::7], [[condition.polygon]] * len(pictures[::7]), [[condition.text]] * len(pictures[::7])
    )
    assert scores.accuracy > 0.95  # so what is not read later was not drawn


def test_reach_moves_the_text_and_nothing_else(condition, pictures):
    """From -6 to 6 pixels around the picture's middle, each way alone."""
    ink = np.abs(pictures.astype(int) - np.rint(condition.background)).sum(-1) > 60
    left = ink.any(1).argmax(-1).reshape(-1, 3, 3)  # first column with ink, of places by down, across
    top = ink.any(2).argmax(-1).reshape(-1, 3, 3)
    assert (np.abs(np.diff(left, axis=2) - 6) <= 1).all() and (np.abs(np.diff(left, axis=1)) <= 1).all()
    assert (np.abs(np.diff(top, axis=1) - 6) <= 1).all() and (np.abs(np.diff(top, axis=2)) <= 1).all()


def test_its_heights_are_the_ones_asked_for():
    rng = np.random.default_rng(1)
    small = [draw_condition(rng, heights=(18.0, 24.0)).ink_size[1] for _ in range(20)]
    large = [draw_condition(rng).ink_size[1] for _ in range(20)]
    assert max(small) < 24 and np.mean(large) > 1.2 * np.mean(small)


def test_the_perfect_teacher_answers_the_posterior_mean(model, pictures):
    teacher = perfect_teacher.exact_teacher(model, pictures)
    x, t = noise(3).flatten(1), torch.tensor([999, 799, 599])
    alpha, sigma = teacher.schedule.alpha_sigma(t, x)
    variance = (alpha * perfect_teacher.SPREAD) ** 2 + sigma**2
    apart = x[:, None].double() - alpha[..., None] * teacher.means
    share = torch.softmax(-apart.square().sum(-1) / (2 * variance), -1)
    shift = alpha[..., None] * perfect_teacher.SPREAD**2 / variance[..., None] * apart
    expected = (share[..., None] * (teacher.means + shift)).sum(1)
    assert_close(teacher.schedule.x0_from_eps(x, teacher.predict(x, t), t).double(), expected, rtol=0, atol=2e-3)


def test_its_means_are_the_latents_of_the_pictures(model, pictures):
    """By the model's own encoder, mean of eight samples, which differs by the posterior's noise alone."""
    teacher = perfect_teacher.exact_teacher(model, pictures[:3])
    images = torch.from_numpy(pictures[:3].transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1
    with torch.no_grad():
        samples = torch.stack([model.encode(images, torch.Generator().manual_seed(k)) for k in range(8)]).mean(0)
    assert_close(teacher.means, samples.flatten(1), rtol=0, atol=0.3)


def test_many_steps_end_in_one_of_the_pictures_and_one_step_between_them(model, pictures):
    teacher = perfect_teacher.exact_teacher(model, pictures)
    start = noise(4).flatten(1)
    nearest = {}
    for steps in (1, 50):
        end = finish(sample(teacher.predict, start, teacher.schedule, steps, "ddim", spacing="trailing"))
        nearest[steps] = torch.cdist(end, teacher.means).min(-1).values
    assert (nearest[50] < 10).all()  # SPREAD in 4096 numbers is 3.2
    assert (nearest[1] > 2 * nearest[50]).all()


def test_what_is_left_open_is_counted(model, pictures):
    start = noise(2).flatten(1)
    copies = perfect_teacher.exact_teacher(model, np.repeat(pictures[:1], 12, axis=0))
    assert perfect_teacher.pictures_left(copies, start) == pytest.approx(12)
    every = perfect_teacher.exact_teacher(model, pictures)
    assert 2 < perfect_teacher.pictures_left(every, start) < len(pictures)
    # Hundred times as much of one picture as there is at t = 999 tells which one it is.
    assert perfect_teacher.pictures_left(every, start + 7 * every.means[:1]) == pytest.approx(1, abs=1e-3)


def test_one_step_is_read_less_than_four_where_much_is_open(model):
    rng = np.random.default_rng(3)
    conditions = [draw_condition(rng, reach=10.0) for _ in range(4)]
    read, alike, count = perfect_teacher.measure(model, conditions, spacing=5.0, noises=2, progress=False)
    assert read[4].value == 1 and read[50].value == 1
    assert read[1].value <= 0.75
    assert alike > 5 and count == 28 * 25


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--reach", "40"], "reach must be 0..16"),
        (["--heights", "30", "20"], "30 to 20"),
        (["--conditions", "0"], "--conditions must be 1"),
    ],
)
def test_bad_flags_are_one_sentence(flags, words, capsys):
    assert perfect_teacher.main(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1


def test_places_need_a_spacing(condition):
    with pytest.raises(ValueError, match="apart"):
        condition.pictures(0)
