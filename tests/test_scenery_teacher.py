"""The stages that the scenery task has of its own, in miniature."""

import numpy as np
import pytest
import torch
from small_models import EMBEDDED

from anytext_lcm.data.scenery import Scenery
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.networks import EMBEDDED_CHECKPOINT
from anytext_lcm.teacher import columns, features, stages
from anytext_lcm.teacher.decoder import mixed_crops, train_decoder
from anytext_lcm.teacher.diffusion import train_diffusion
from anytext_lcm.teacher.font_reader import FONTS, hints, train_font_predictor
from anytext_lcm.teacher.processes import Rank
from anytext_lcm.teacher.recipe import recipe_of
from anytext_lcm.teacher.tasks import training_pictures

ALONE = Rank(0, 1, torch.device("cpu"))
TINY = recipe_of(
    "scenery",
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
    """Data of the scenery task, and the shipped weights laid out as the stages' states."""
    folder = tmp_path_factory.mktemp("scenery")
    columns.create_columns(folder, TINY.pictures)
    columns.draw(ALONE, folder, TINY)
    columns.finish_data(folder, 1)
    stages.start_from(EMBEDDED_CHECKPOINT, folder, TINY)
    return folder


def test_the_columns_hold_the_scenery(work):
    data = training_pictures(TINY, columns.SIDE, columns.LINES)
    assert isinstance(data.scenery, Scenery)
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

    stages.stage_export(work, tmp_path / "teacher.safetensors", "scenery")
    model = AnyText2.from_config(EMBEDDED).load_checkpoint(tmp_path / "teacher.safetensors")
    decoder = torch.load(work / "decoder.pt", weights_only=True)["average"]["module.decoder.linear.weight"]
    torch.testing.assert_close(model.first_stage_model.decoder.linear.weight, decoder, atol=1e-3, rtol=1e-3)


def test_weights_go_on_with_their_own_colours_and_fonts(work, tmp_path):
    """Weights of another task get colours that can be learned; those of the same task keep what they learned."""
    torch.save(torch.load(work / "recogniser.pt", weights_only=True), work / "fonts.pt")
    features.finish_features(work)  # the scale factor
    stages.stage_export(work, tmp_path / "teacher.safetensors", "scenery")
    again = tmp_path / "again"
    again.mkdir()
    stages.start_from(tmp_path / "teacher.safetensors", again, TINY)
    name = "embedding_manager.color_proj.0.weight"
    before, after = (torch.load(folder / "diffusion.pt", weights_only=True)["raw"] for folder in (work, again))
    shipped = AnyText2.from_config(EMBEDDED).load_checkpoint(EMBEDDED_CHECKPOINT).state_dict()
    assert not torch.allclose(before[name], shipped[name], atol=1e-3)
    torch.testing.assert_close(after[name], before[name], atol=1e-3, rtol=1e-3)
    fonts = torch.load(again / "fonts.pt", weights_only=True)
    for key, value in torch.load(work / "fonts.pt", weights_only=True).items():
        torch.testing.assert_close(fonts[key], value, atol=1e-3, rtol=1e-3)
    for name in ("fonts.pt", "features.done"):
        (work / name).unlink()


def before_letters(work):
    return torch.load(work / "recogniser.pt", weights_only=True)["head.fc.weight"]
