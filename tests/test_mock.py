"""The mock data set: what its pictures, captions and items hold, against what is drawn."""

import logging

import cv2
import numpy as np
import pytest
import torch

from anytext_lcm.data import colours, glyphs, layout, words
from anytext_lcm.data.batch import collate, validate
from anytext_lcm.data.material import PHOTOGRAPH, draw_material, photographs
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.data.scene_captions import caption_vocabulary
from anytext_lcm.data.strings import draw_text
from anytext_lcm.data.words import split_of
from anytext_lcm.model.text_encoder import Tokenizer

SIZE = 60  # items
SIDE = (128, 128)


@pytest.fixture(scope="module")
def data():
    return MockDataset(SIZE, seed=4, edit_share=0.4)


@pytest.fixture(scope="module")
def items(data):
    return [data[i] for i in range(SIZE)]


@pytest.fixture(scope="module")
def scenes(data):
    return [data.scene(i) for i in range(SIZE)]


def assert_same_item(one, other):
    assert one.keys() == other.keys()
    for name in one:
        if isinstance(one[name], np.ndarray):
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
        elif "polygons" in name:
            np.testing.assert_array_equal(np.stack(one[name]), np.stack(other[name]), err_msg=name)
        else:
            assert one[name] == other[name], name


def test_items_depend_on_seed_split_and_index_alone():
    first, again = MockDataset(50, seed=1), MockDataset(9999, seed=1)
    for index in (49, 7, 7, 0):
        assert_same_item(first[index], again[index])
    assert not np.array_equal(first[0]["img"], MockDataset(50, seed=2)[0]["img"])
    assert not np.array_equal(first[0]["img"], MockDataset(50, seed=1, split="test")[0]["img"])
    assert not np.array_equal(first[0]["img"], first[1]["img"])


def test_workers_change_nothing():
    dataset = MockDataset(8, seed=4)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=collate)
    for number, batch in enumerate(loader):
        validate(batch)
        own = collate([dataset[4 * number + i] for i in range(4)])
        assert torch.equal(batch["img"], own["img"]) and torch.equal(batch["glyphs"], own["glyphs"])
        assert batch["texts"] == own["texts"] and batch["img_caption"] == own["img_caption"]


def test_picture_is_the_items_picture():
    dataset = MockDataset(4)
    image, coverage = dataset.picture(2)
    item = dataset[2]
    np.testing.assert_array_equal(image, item["img"])
    assert coverage.shape == (1, 128, 128) and coverage.dtype == np.uint8
    # All text lies in the polygons, and the polygons hold text.
    quads = np.maximum.reduce([glyphs.draw_position(quad, SIDE) for quad in item["polygons"]])
    assert not coverage[0][cv2.dilate(quads, np.ones((3, 3), np.uint8)) == 0].any()
    assert coverage[0][quads == 1].mean() > 20


def test_items_hold_to_the_contract(items):
    validate(collate(items[:16]))


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
            seen = np.unique(ground[::37], axis=0)
            nearest = min(colours.lab_distance(colours.COLORS[name], color) for color in seen)
            assert nearest < 22  # a shade of the named colour is there
        lumas = ground.astype(float) @ [0.299, 0.587, 0.114]
        for line in scene.lines:
            luma = colours.luma(line.color)
            assert luma > lumas.max() + colours.MIN_CONTRAST - 6 or luma < lumas.min() - colours.MIN_CONTRAST + 6


def test_text_is_readable_by_rule():
    dataset = MockDataset(100, seed=6, edit_share=0)
    for index in range(len(dataset)):
        scene = dataset.scene(index)
        taken = np.zeros(SIDE, np.uint8)
        luma = scene.image.astype(np.float32) @ np.float32([0.299, 0.587, 0.114])
        for line in scene.lines:
            assert 2 <= len(line.text) <= 7
            assert layout.MIN_HEIGHT - 0.01 <= line.font_height <= layout.MAX_HEIGHT + 0.01
            for quad in (line.quad, line.condition_quad):
                assert quad.min() >= 0 and quad.max() <= 127
            here = glyphs.draw_position(line.condition_quad, SIDE)
            assert not (here & taken).any()
            taken |= here
            # The text is within the condition, up to the rounding of corners to whole pixels.
            room = cv2.dilate(here, np.ones((3, 3), np.uint8))
            assert not glyphs.draw_position(line.quad, SIDE)[room == 0].any()
            behind = luma[(here == 1) & (scene.coverage == 0)]
            own = np.dot(line.color, [0.299, 0.587, 0.114])
            assert np.abs(behind - own).min() >= colours.MIN_CONTRAST - 1.5  # rounding of two colours


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


def test_what_an_item_gives_is_what_its_meta_says(items):
    metas = [item["meta"] for item in items]
    assert {len(item["texts"]) for item in items} == {1, 2}
    assert {meta["mode"] for meta in metas} == {"edit", "generate"}
    assert {meta["ground"] for meta in metas} == {"plain", "stripes", "checks", "gradient", "material"}
    for item, meta in zip(items, metas, strict=True):
        assert not any(text in item["img_caption"].split() for text in item["texts"])
        assert item["font_hint"].any() == meta["font_hinted"]
        assert (item["masked_img"] == -1).all() == (meta["mode"] == "generate")


def test_caption_vocabulary_is_complete():
    known = set(caption_vocabulary())
    dataset = MockDataset(100, seed=8)
    for index in range(len(dataset)):
        item = dataset[index]
        for caption in (item["img_caption"], item["text_caption"]):
            spaced = caption.lower()
            for sign in ",.:*":
                spaced = spaced.replace(sign, f" {sign} ")
            assert set(spaced.split()) <= known


def test_the_tokenizer_has_one_token_for_every_word_of_a_caption(items):
    tokenizer = Tokenizer("anytext_lcm/assets/tokenizer")
    ids = tokenizer.image_ids([item["img_caption"] for item in items])
    for item, row in zip(items, ids.tolist(), strict=True):
        assert row.index(max(row)) - 1 == len(item["img_caption"].replace(",", " ,").split())  # up to the end token


def test_strings_are_two_to_seven_characters_of_their_split():
    for split in ("train", "test"):
        data = MockDataset(80, seed=2, split=split)
        texts = [text for i in range(80) for text in (line.text for line in data.scene(i).lines)]
        assert {len(text) for text in texts} >= {2, 3, 4, 5, 6, 7} and max(map(len, texts)) == 7
        assert all(split_of(text) == split for text in texts)
        assert any(text.isdigit() for text in texts) and any(not text.isalnum() for text in texts)


def test_splits_share_no_text():
    generator = np.random.default_rng(0)
    drawn = {split: {draw_text(generator, split).lower() for _ in range(3000)} for split in ("train", "test")}
    assert not drawn["train"] & drawn["test"]
    assert not set(words.WORDS_OF["train"]) & set(words.WORDS_OF["test"])
    assert min(len(words.WORDS_OF[split]) for split in drawn) > 100
    for split, texts in drawn.items():
        assert len(texts) > 400
        assert {words.split_of(casing) for t in texts for casing in (t, t.title(), t.upper())} == {split}


def test_editing_keeps_the_picture_around_the_text(items):
    edited = [item for item in items if item["meta"]["mode"] == "edit"]
    assert {item["meta"]["ground"] == "material" for item in edited} == {True, False}
    for item in edited:
        kept = item["hint"][0] == 0
        np.testing.assert_array_equal(item["masked_img"][:, kept], item["img"][:, kept])
    drawn = MockDataset(SIZE, seed=4, edit_share=0)
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


@pytest.mark.parametrize("image_size", [64, 256])
def test_other_sizes_scale(image_size):
    dataset = MockDataset(12, seed=1, image_size=image_size, max_lines=3)
    batch = collate([dataset[i] for i in range(12)])
    validate(batch)
    assert batch["img"].shape == (12, 3, image_size, image_size)
    for meta in batch["meta"]:
        assert all(28 <= height * 128 / image_size <= 46.01 for height in meta["font_heights"])


def test_one_slot_means_one_line():
    dataset = MockDataset(20, max_lines=1)
    assert {dataset[i]["n_lines"] for i in range(20)} == {1}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"size": 0}, "at least one item"),
        ({"size": 1, "split": "val"}, "'val' is unknown"),
        ({"size": 1, "image_size": 100}, "multiple of 8"),
        ({"size": 1, "max_lines": 0}, "at least one line slot"),
    ],
)
def test_mock_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        MockDataset(**arguments)
    with pytest.raises(IndexError, match="outside the data set"):
        MockDataset(2)[2]


def test_a_recogniser_reads_the_pictures():
    """The ground truth is legible: what a trained model fails to write, it fails by itself."""
    rapidocr = pytest.importorskip("rapidocr")
    from rapidocr.ch_ppocr_rec import TextRecInput

    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        recognise = rapidocr.RapidOCR()._load_rec_model()
    finally:
        logging.disable(level)
    dataset, crops, texts, index = MockDataset(1000, seed=5, split="test"), [], [], 0
    while len(crops) < 40:
        scene, index = dataset.scene(index), index + 1
        for line in scene.lines:
            crops.append(rectified(scene.image[..., ::-1], line.quad))
            texts.append(line.text.lower())
    order = sorted(range(len(crops)), key=lambda i: crops[i].shape[1])  # alike widths, little padding
    right = 0
    for start in range(0, len(order), 6):
        chosen = order[start : start + 6]
        read = recognise(TextRecInput(img=[crops[i] for i in chosen])).txts
        right += sum(text.replace(" ", "").lower() == texts[i] for text, i in zip(read, chosen, strict=True))
    assert right / len(crops) >= 0.96


def rectified(image, quad, height=48, margin=2.0):
    """The quad turned upright with a little room around it, `height` pixels high."""
    quad = quad.astype(np.float32)
    across, down = quad[1] - quad[0], quad[3] - quad[0]
    wide, high = np.linalg.norm(across), np.linalg.norm(down)
    across, down = across / wide * margin, down / high * margin
    width = round(float(height * (wide + 2 * margin) / (high + 2 * margin)))
    source = np.float32([quad[0] - across - down, quad[1] + across - down, quad[3] - across + down])
    turn = cv2.getAffineTransform(source, np.float32([[0, 0], [width, 0], [0, height]]))
    return cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_CUBIC)
