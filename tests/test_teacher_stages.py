"""The teacher's fonts and decoder, and how its stages go on from finished weights, in miniature."""

import numpy as np
import pytest
import torch
from small_models import EMBEDDED

from anytext_lcm.data.mock import MockDataset
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.networks import EMBEDDED_CHECKPOINT
from anytext_lcm.teacher import columns, features, stages
from anytext_lcm.teacher.decoder import mixed_crops, train_decoder
from anytext_lcm.teacher.diffusion import spread_colors, train_diffusion
from anytext_lcm.teacher.font_reader import FONTS, hints, train_font_predictor
from anytext_lcm.teacher.processes import Rank
from anytext_lcm.teacher.recipe import Recipe

ALONE = Rank(0, 1, torch.device("cpu"))
TINY = Recipe(
    pictures=16,
    seed=3,
    vae_batch=6,
    decoder_steps=2,
    font_steps=2,
    font_batch=3,
    diffusion_steps=2,
    diffusion_batch=2,
    noise_levels_per_picture=2,
)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Mock pictures, and the shipped weights laid out as the stages' states."""
    folder = tmp_path_factory.mktemp("stages")
    columns.create_columns(folder, TINY.pictures)
    columns.draw(ALONE, folder, TINY)
    columns.finish_data(folder, 1)
    stages.start_from(EMBEDDED_CHECKPOINT, folder, TINY)
    return folder


def test_the_columns_hold_the_pictures_of_the_seed(work):
    data = MockDataset(TINY.pictures, seed=TINY.seed)
    found = columns.open_columns(work)
    for i in (0, 9):
        np.testing.assert_array_equal(found["img"][i].transpose(1, 2, 0), data.scene(i).image)


def test_hints_show_their_fonts():
    crops, labels = hints(np.random.default_rng(0), 5)
    assert len(crops) == 5 and all(crop.shape[0] == 3 and crop.max() > 200 for crop in crops)
    assert 0 <= int(labels.min()) and int(labels.max()) < len(FONTS)


def test_a_share_of_what_the_decoder_sees_is_material_without_text(work):
    found = columns.open_columns(work)
    images, text = mixed_crops(found, np.random.default_rng(0), TINY, whole=False)
    assert images.shape == (6, 3, 64, 64) and images.abs().max() <= 1
    assert text[-2:].sum() == 0 and text[:-2].sum() > 0


@pytest.mark.full
def test_decoder_and_fonts_leave_latents_and_reading_alone_and_the_diffusion_takes_them_up(work, tmp_path):
    train_decoder(ALONE, work, TINY)
    before, after = (torch.load(work / f"{name}.pt", weights_only=True)["raw"] for name in ("vae", "decoder"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith(("decoder.", "post_quant_conv.")) for name in moved)

    train_font_predictor(ALONE, work, TINY)
    features.prepare_features(work, TINY)
    features.encode_all(ALONE, work, TINY)
    features.finish_features(work)
    train_diffusion(ALONE, work, TINY)
    assert features.scale_factor(work) == AnyText2.from_config(EMBEDDED, device="meta").scale_factor
    state = torch.load(work / "diffusion.pt", weights_only=True)
    fonts = torch.load(work / "fonts.pt", weights_only=True)
    for name, value in fonts.items():
        assert torch.equal(state["average"][f"module.embedding_manager.font_predictor.{name}"], value)
    assert torch.equal(state["raw"]["text_predictor.head.fc.weight"], before_letters(work))

    stages.stage_export(work, tmp_path / "teacher.safetensors")
    model = AnyText2.from_config(EMBEDDED).load_checkpoint(tmp_path / "teacher.safetensors")
    decoder = torch.load(work / "decoder.pt", weights_only=True)["average"]["module.decoder.linear.weight"]
    torch.testing.assert_close(model.first_stage_model.decoder.linear.weight, decoder, atol=1e-3, rtol=1e-3)


def test_finished_weights_keep_what_they_learned(work, tmp_path):
    features.finish_features(work)  # the scale factor
    stages.stage_export(work, tmp_path / "teacher.safetensors")
    again = tmp_path / "again"
    again.mkdir()
    stages.start_from(tmp_path / "teacher.safetensors", again, TINY)
    learned = stages.load_average(work).state_dict()
    (work / "features.done").unlink()
    raw = torch.load(again / "diffusion.pt", weights_only=True)["raw"]
    assert raw.keys() == learned.keys()
    for name, value in learned.items():
        torch.testing.assert_close(raw[name], value, atol=1e-3, rtol=1e-3)
    for name, value in torch.load(again / "fonts.pt", weights_only=True).items():
        torch.testing.assert_close(value, learned[f"embedding_manager.font_predictor.{name}"], atol=1e-3, rtol=1e-3)


def test_the_colour_projection_starts_with_every_colour_apart():
    projection = torch.nn.Sequential(torch.nn.Linear(3, 128), torch.nn.LayerNorm(128))
    colors = torch.tensor([[0, 0, 0], [128] * 3, [255] * 3, [500] * 3, [200, 40, 40], [100, 20, 20]]).float()

    def closest():
        distances = torch.cdist(projection(colors), projection(colors)) + 100 * torch.eye(len(colors))
        return distances.min().item()

    with torch.no_grad():
        assert closest() < 0.3  # torch's own start, of vectors 11 long
        spread_colors(projection)
        assert closest() > 1.5


def before_letters(work):
    return torch.load(work / "recogniser.pt", weights_only=True)["head.fc.weight"]
