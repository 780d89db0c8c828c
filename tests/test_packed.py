"""Packed items: the same values after expansion, few bytes, and the literal implementation as the measure."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from literal_item import literal_item

from anytext_lcm.data.anyword import ReadingRules, make_item
from anytext_lcm.data.batch import FIELDS, PACKED_FIELDS, TEXT_FIELDS, collate, validate
from anytext_lcm.data.glyphs import colored_support, draw_placed_glyph
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.data.packed import PackedDataset, expand, item_bytes, pack, unpack_bits
from anytext_lcm.data.records import Annotation, Record

QUADS = (
    (30, 20, 300, 20, 300, 70, 30, 70),
    (320, 30, 490, 90, 475, 140, 305, 80),
    (440, 160, 490, 160, 490, 480, 440, 480),
    (30, 200, 420, 210, 418, 290, 28, 280),
    (40, 320, 180, 320, 180, 338, 40, 338),
    (30, 400, 400, 400, 400, 460, 30, 460),
)


def busy_record():
    colors = ((255, 10, 20), None, (0, 0, 0), (30, 60, 90), (12, 200, 90), None)
    texts = ("Hello", "slope 20", "TALL", "A longer line of it", "small", "too many")
    lines = [
        Annotation(quad, text, "Latin", True, color) for quad, text, color in zip(QUADS, texts, colors, strict=True)
    ]
    ignored = Annotation((200, 470, 400, 470, 400, 505, 200, 505), "", "Latin", False, None)
    return Record(0, "a.png", "a busy * picture", 0.7, (*lines, ignored))


@pytest.fixture(scope="module")
def busy_picture():
    rng = np.random.default_rng(1)
    return np.kron(rng.integers(0, 256, (64, 64, 3)), np.ones((8, 8, 1))).astype(np.uint8)


def weight(value):
    """Bytes of an array or a list of arrays."""
    return sum(map(weight, value)) if isinstance(value, list) else getattr(value, "nbytes", 0)


@pytest.mark.parametrize("seed, edit_share", [(0, 0.0), (1, 1.0), (2, 0.5), (5, 0.0)])
def test_values_are_those_of_the_literal_implementation(busy_picture, seed, edit_share):
    rules = ReadingRules(
        edit_share=edit_share, hint_shake=False, color_share=0.7, fonts=("DejaVuSans.ttf", "STIXGeneralBol.ttf")
    )
    mine, problems = make_item(busy_record(), busy_picture, rules, np.random.default_rng(seed))
    theirs = literal_item(busy_record(), busy_picture, rules, np.random.default_rng(seed))
    assert problems == [] and item_bytes(mine) <= 3e6
    assert sum(map(weight, theirs.values())) > 8 * item_bytes(mine)
    batch = expand(collate([mine]))
    validate(batch)
    for name in ("img", "masked_img", "hint", "inv_mask"):
        np.testing.assert_array_equal(batch[name][0].permute(1, 2, 0), theirs[name], err_msg=name)
    np.testing.assert_array_equal(batch["font_hint"][0].permute(1, 2, 0), 255 * theirs["font_hint"])
    for name in ("positions", "gly_line"):
        np.testing.assert_array_equal(batch[name][0, ..., None], np.stack(theirs[name]), err_msg=name)
    for slot, glyph in enumerate(theirs["glyphs"]):
        np.testing.assert_array_equal(batch["glyphs"][0, slot] > 0, glyph.any(-1), err_msg=f"line {slot}")
    np.testing.assert_array_equal(batch["color"][0], np.stack(theirs["color"]))
    assert batch["n_lines"].tolist() == [theirs["n_lines"]] == [5]
    for name in ("img_caption", "text_caption"):
        assert batch[name] == [theirs[name]]


def test_a_packed_batch_has_the_fields_it_says():
    dataset = PackedDataset(MockDataset(3, seed=2, edit_share=0.5))
    batch = collate([dataset[i] for i in range(len(dataset))])
    assert set(batch) == set(PACKED_FIELDS) | set(TEXT_FIELDS) | {"condition_polygons", "meta"}
    for name, field in PACKED_FIELDS.items():
        assert batch[name].dtype == field.dtype, name
    assert batch["positions_packed"].shape == (3, 2, 128, 16) and batch["picture"].shape == (3, 128, 128, 3)


@pytest.mark.parametrize("edit_share", [0.0, 0.5, 1.0])
def test_packed_and_expanded_mock_items_are_the_same(edit_share):
    dataset = MockDataset(4, seed=7, edit_share=edit_share)
    packed = PackedDataset(dataset)
    own = collate([dataset[i] for i in range(4)])
    back = expand(collate([packed[i] for i in range(4)]), "cpu")
    validate(back)
    assert set(back) == set(own)
    for name in FIELDS:
        assert back[name].dtype == own[name].dtype and torch.equal(back[name], own[name]), name
    assert back["texts"] == own["texts"] and back["img_caption"] == own["img_caption"]
    assert item_bytes(packed[0]) < 0.45 * item_bytes(dataset[0])


def test_every_byte_survives():
    picture = np.arange(256, dtype=np.uint8).repeat(64 * 3).reshape(128, 128, 3)
    image = picture.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - np.float32(1)
    item = MockDataset(1)[0] | {"img": image, "masked_img": np.full_like(image, -1)}
    np.testing.assert_array_equal(pack(item)["picture"], picture)
    assert torch.equal(expand(collate([pack(item)]))["img"][0], torch.from_numpy(image))


def test_a_batch_of_the_contract_passes_through():
    batch = collate([MockDataset(1)[0]])
    through = expand(batch, "cpu")
    assert set(through) == set(batch) and all(through[name] is batch[name] for name in batch)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda i: i.update(img=i["img"] * 0.999), "not those of bytes"),
        (lambda i: i.update(masked_img=i["masked_img"] * 0.5), "neither all -1"),
        (lambda i: i.update(hint=1 - i["hint"]), "not the union"),
        (lambda i: i.update(img=i["img"][..., :100]), "multiple of 8"),
    ],
)
def test_what_would_lose_something_is_refused(change, message):
    item = dict(MockDataset(1)[0])
    change(item)
    with pytest.raises(ValueError, match=message):
        pack(item)


@settings(deadline=None, max_examples=30)
@given(arrays(np.uint8, (2, 3, 5)))
def test_bits_unpack_as_numpy_does(packed):
    assert np.array_equal(unpack_bits(torch.from_numpy(packed)), np.unpackbits(packed, axis=-1))


@settings(deadline=None, max_examples=30)
@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_faint_pixels_go_as_pillow_loses_them(color):
    from PIL import Image

    coverage = np.arange(256, dtype=np.uint8)[None]
    canvas = Image.new("RGB", (256, 1))
    canvas.paste(Image.new("RGB", (256, 1), tuple(max(c, 10) for c in color)), (0, 0), Image.fromarray(coverage))
    np.testing.assert_array_equal(colored_support(coverage, color) > 0, np.asarray(canvas).any(-1))
    assert np.array_equal(colored_support(coverage, None), coverage)


def test_colour_changes_faint_pixels_alone():
    placed = draw_placed_glyph("Word", [[10, 40], [110, 40], [110, 70], [10, 70]], size=(128, 128))
    dark = colored_support(placed, (0, 0, 0))
    assert 0 < (placed > 0).sum() - (dark > 0).sum() < 0.2 * (placed > 0).sum()
    assert np.array_equal(dark[dark > 0], placed[dark > 0])
