"""The grid of latents: found where there is one, at any place and size of picture, and not in what has none."""

import io
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from anytext_lcm.adapter.lora import adapter_state, load_adapter, resolve_adapter
from anytext_lcm.judging import intervals
from anytext_lcm.judging.artefacts import grid_energy, repeating
from anytext_lcm.judging.compare import run_method
from anytext_lcm.judging.judge import real_pictures
from anytext_lcm.judging.panel import Panel, prepare_panel
from anytext_lcm.model.loading import load_embedded_teacher

PHOTO = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


@pytest.fixture(scope="module")
def scenes():
    """48 pictures with text, of 128 pixels."""
    return list(real_pictures(48, 128, seed=3))


@pytest.fixture(scope="module")
def photo():
    return np.asarray(Image.open(PHOTO).convert("RGB"))


def jpeg(picture, quality):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def with_grid(picture, amplitude, period=8, kind="lines"):
    """A grid of this root mean square in grey levels: lines on cells' edges, or waves."""
    y, x = np.indices((period, period))
    cell = (x * y == 0) * 1.0 if kind == "lines" else np.cos(2 * np.pi * x / period) + np.cos(2 * np.pi * y / period)
    cell = (cell - cell.mean()) / cell.std()
    height, width = picture.shape[:2]
    grid = np.tile(cell, (height // period + 1, width // period + 1))[:height, :width]
    return np.clip(picture + amplitude * grid[..., None], 0, 255).round().astype(np.uint8)


def levels(pictures):
    """The score as the report has it: grey levels, with a sign."""
    energy = grid_energy(pictures).mean()
    return np.sign(energy) * np.sqrt(abs(energy))


@pytest.mark.parametrize("kind", ["lines", "waves"])
def test_a_stronger_grid_scores_more(scenes, photo, kind):
    for pictures in (scenes, [photo]):
        scores = [levels([with_grid(p, amplitude, kind=kind) for p in pictures]) for amplitude in (0, 1, 2, 4, 8)]
        assert (np.diff(scores) > 0.3).all(), scores
        assert scores[3] == pytest.approx(4, rel=0.25) and scores[4] == pytest.approx(8, rel=0.25)


def test_pictures_without_a_grid_score_less_than_half_of_a_weak_one(scenes, photo):
    """Also what JPEG does on its blocks of 8 pixels, wherever they lie, and a grid of another period."""
    for pictures in (scenes, [photo]):
        least = levels([with_grid(p, 2) for p in pictures])
        for change in (
            lambda p: p,
            lambda p: jpeg(p, 75),
            lambda p: jpeg(p, 30),
            lambda p: p[3:, 5:],
            lambda p: jpeg(p, 75)[3:, 5:],
            lambda p: np.ascontiguousarray(p[:, ::-1]),
        ):
            assert abs(levels([change(p) for p in pictures])) < 0.75 < 0.5 * least
    assert levels([with_grid(p, 4, period=11) for p in scenes]) < 0.75
    assert -0.75 < levels(scenes) < -0.1  # the score is not 0 without a grid, as the report's note says


def test_jpeg_and_shifts_leave_the_grid_where_it_is(scenes):
    found = levels([with_grid(p, 3) for p in scenes])
    for change in (lambda p: jpeg(p, 75), lambda p: p[3:, 5:]):
        assert levels([change(with_grid(p, 3)) for p in scenes]) == pytest.approx(found, rel=0.15)


def test_a_grid_in_a_part_of_the_picture_counts_by_its_share():
    plain = np.random.default_rng(0).normal(128, 5, (512, 512, 3)).clip(0, 255).astype(np.uint8)
    quarter = plain.copy()
    quarter[:256, :256] = with_grid(plain, 6)[:256, :256]
    clean, whole = grid_energy([plain])[0], grid_energy([with_grid(plain, 6)])[0]
    assert (grid_energy([quarter])[0] - clean) / (whole - clean) == pytest.approx(0.25, abs=0.03)


def test_letters_hide_no_grid_and_make_none(scenes):
    """Nearly all that a scene's score is made of lies in its plain ground: text alone moves it by less than a level."""
    texts = [p.copy() for p in scenes]
    for picture in texts:
        picture[40:88, 8:120] = np.random.default_rng(1).integers(0, 2, (8, 16, 1)).repeat(6, 0).repeat(7, 1) * 255
    assert abs(levels(texts)) < 1 and levels([with_grid(p, 4) for p in texts]) > 2.5


@pytest.mark.full
def test_an_adapter_driven_too_far_draws_more_of_a_grid():
    """The shipped adapter at three times its strength, on the same prompts and noise: beyond the paired interval."""
    model, panel = load_embedded_teacher(), Panel.build(prompts=32)
    prepared = prepare_panel(model, panel)
    load_adapter(model, resolve_adapter("shipped"))
    shipped = grid_energy(run_method(model, panel, "student-4", prepared).images)
    for key, weight in adapter_state(model).items():
        if "lora_B" in key:
            weight.data *= 3
    driven = grid_energy(run_method(model, panel, "student-4", prepared).images)
    assert intervals.bootstrap_mean(driven - shipped, panel.prompt_of).low > 0


def test_noise_has_no_energy_on_average_and_a_pattern_its_square():
    rng = np.random.default_rng(0)
    energies = [repeating(rng.normal(128, 20, (128, 128)).astype(np.float32), 8) for _ in range(200)]
    assert abs(np.mean(energies)) < 4 * np.std(energies) / np.sqrt(len(energies))
    cell = rng.normal(0, 3, (8, 8))
    luma = (np.tile(cell - cell.mean(), (16, 16)) + np.linspace(0, 90, 128)).astype(np.float32)  # on a slope
    assert repeating(luma, 8) == pytest.approx(cell.var(), rel=0.05)


def test_a_picture_too_small_for_a_grid():
    with pytest.raises(ValueError, match="too small"):
        grid_energy(np.zeros((1, 17, 64, 3), np.uint8))
    assert grid_energy(np.zeros((1, 18, 64, 3), np.uint8)) == 0
