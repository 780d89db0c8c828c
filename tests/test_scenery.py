"""The mock task for the eye: what its pictures, captions and items hold, against what is drawn."""

import numpy as np
import pytest
import torch

from anytext_lcm.data import background, mock
from anytext_lcm.data.batch import collate, validate
from anytext_lcm.data.material import PHOTOGRAPH, draw_material, photographs
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.data.scenery import Scenery, lab_distance
from anytext_lcm.data.words import split_of
from anytext_lcm.model.text_encoder import Tokenizer
from anytext_lcm.teacher.recipe import recipe_of
from anytext_lcm.teacher.tasks import spread_colors

SIZE = 60


@pytest.fixture(scope="module")
def data():
    return MockDataset(SIZE, seed=4, scenery=Scenery(), edit_share=0.4, hint_share=0.4, color_share=0.8)


@pytest.fixture(scope="module")
def items(data):
    return [data[i] for i in range(SIZE)]


@pytest.fixture(scope="module")
def scenes(data):
    return [data.scene(i) for i in range(SIZE)]


def test_items_keep_the_contract_and_depend_on_their_index_alone(data, items):
    validate(collate(items[:16]))
    again = MockDataset(7, seed=4, scenery=Scenery(), edit_share=0.4, hint_share=0.4, color_share=0.8)[6]
    for name in ("img", "masked_img", "glyphs", "font_hint", "color"):
        np.testing.assert_array_equal(again[name], items[6][name])
    assert again["img_caption"] == items[6]["img_caption"]
    other = MockDataset(7, seed=5, scenery=Scenery())[6]
    assert not np.array_equal(other["img"], items[6]["img"])


def test_without_a_scenery_the_data_set_is_the_old_one():
    plain = MockDataset(3, seed=1)
    assert plain.scenery is None and type(plain.scene(0)) is mock.Scene


def test_objects_are_bold_whole_and_beside_the_text(scenes):
    counts = np.bincount([len(s.placed) for s in scenes if s.ground != "material"], minlength=3)
    assert counts[1] + counts[2] > 4 * counts[0]
    for scene in scenes:
        assert scene.objects == tuple((thing.name, thing.shape) for thing in scene.placed)
        for thing in scene.placed:
            assert 128 / 5 * 0.9 < 2 * thing.radius <= 128 / 2
            assert min(thing.x, thing.y) - thing.radius >= 0 and max(thing.x, thing.y) + thing.radius <= 128
            inside = (
                np.hypot(*(np.mgrid[:128, :128] - np.array([thing.y, thing.x])[:, None, None])) < 0.3 * thing.radius
            )
            assert np.abs(scene.image[inside] - np.array(thing.color)).max() < 2  # nothing over its middle
            assert not scene.coverage[inside].any()


def test_grounds_have_the_tones_that_are_said_and_objects_and_text_stand_out(scenes):
    for scene in scenes:
        if scene.ground == "material":
            assert scene.tones == () and scene.objects == ()
            continue
        assert len(scene.tones) == (1 if scene.ground == "plain" else 2)
        free = np.ones((128, 128), bool)
        for thing in scene.placed:
            reach = int(thing.radius) + 2
            free[
                max(int(thing.y) - reach, 0) : int(thing.y) + reach, max(int(thing.x) - reach, 0) : int(thing.x) + reach
            ] = 0
        ground = scene.image[free & (scene.coverage == 0)]
        for name in scene.tones:
            nearest = min(lab_distance(mock.COLORS[name], color) for color in np.unique(ground[::37], axis=0))
            assert nearest < 22  # a shade of the named colour is there
        lumas = ground.astype(float) @ [0.299, 0.587, 0.114]
        for line in scene.lines:
            luma = background.luma(line.color)
            assert luma > lumas.max() + background.MIN_CONTRAST - 6 or luma < lumas.min() - background.MIN_CONTRAST + 6


def test_captions_say_what_is_there_and_leave_colours_mostly_to_the_numbers(items):
    named = [item["meta"]["color_in_caption"] for item in items]
    given = [item["meta"]["color_given"] for item in items]
    assert np.mean(named) <= 0.4 and np.mean(given) > 0.6  # at most a third, and most; of 60
    for item in items:
        meta, caption = item["meta"], item["img_caption"]
        for color, shape in meta["objects"]:
            assert f"{color} {shape}" in caption
        assert all(tone in caption for tone in meta["tones"]) == (meta["ground_in_caption"] or not meta["tones"])
        assert (meta["text_colors"][0] + " " in caption.replace("text", " ")) or not meta["color_in_caption"]
        wanted = item["color"][: item["n_lines"]].astype(int)
        np.testing.assert_array_equal(wanted, meta["text_rgb"] if meta["color_given"] else np.full_like(wanted, 500))


def test_the_tokenizer_has_one_token_for_every_word_of_a_caption(items):
    tokenizer = Tokenizer("anytext_lcm/assets/tokenizer")
    ids = tokenizer.image_ids([item["img_caption"] for item in items])
    for item, row in zip(items, ids.tolist(), strict=True):
        assert row.index(max(row)) - 1 == len(item["img_caption"].replace(",", " ,").split())  # up to the end token


def test_strings_are_two_to_seven_characters_of_their_split():
    for split in ("train", "test"):
        data = MockDataset(80, seed=2, split=split, scenery=Scenery())
        texts = [text for i in range(80) for text in (line.text for line in data.scene(i).lines)]
        assert {len(text) for text in texts} >= {2, 3, 4, 5, 6, 7} and max(map(len, texts)) == 7
        assert all(split_of(text) == split for text in texts)
        assert any(text.isdigit() for text in texts) and any(not text.isalnum() for text in texts)


def test_editing_keeps_the_picture_around_the_text(items):
    edited = [item for item in items if item["meta"]["mode"] == "edit"]
    assert {item["meta"]["ground"] == "material" for item in edited} == {True, False}
    for item in edited:
        kept = item["hint"][0] == 0
        np.testing.assert_array_equal(item["masked_img"][:, kept], item["img"][:, kept])
    drawn = MockDataset(SIZE, seed=4, scenery=Scenery(), edit_share=0)
    assert all(drawn[i]["meta"]["ground"] != "material" for i in range(20))


def test_material_is_varied_and_never_the_photograph(monkeypatch):
    pictures = [draw_material(np.random.default_rng(i), 64) for i in range(60)]
    assert all(picture.shape == (64, 64, 3) and picture.dtype == np.uint8 for picture in pictures)
    np.testing.assert_array_equal(pictures[3], draw_material(np.random.default_rng(3), 64))
    means, spreads = (np.array([f(p.astype(float)) for p in pictures]) for f in (np.mean, np.std))
    assert np.ptp(means) > 120 and np.ptp(spreads) > 40
    photo = photographs(3, 64)
    assert len(photo) == 3 and photo[0].shape == (64, 64, 3)
    assert PHOTOGRAPH not in [name for name in _opened(monkeypatch)]


def _opened(monkeypatch):
    """Names of the files that drawing material opens."""
    from anytext_lcm.data import material

    names, open_ = [], material.Image.open
    material._sample_pictures.cache_clear()
    monkeypatch.setattr(material.Image, "open", lambda path, *rest: (names.append(path.name), open_(path, *rest))[1])
    for i in range(40):
        draw_material(np.random.default_rng(i), 32)
    return names


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


def test_a_task_has_its_own_recipe():
    assert recipe_of("mock") == recipe_of("mock", diffusion_lr=None)
    scenery = recipe_of("scenery", diffusion_steps=7)
    assert scenery.strip_share == 0 and scenery.diffusion_steps == 7 and scenery.task == "scenery"
    with pytest.raises(ValueError, match="choose one of mock, scenery"):
        recipe_of("photo")
