"""Fonts, glyphs and the batch contract."""

import hashlib
import string
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fontTools.ttLib import TTFont

from anytext_lcm.data import batch as contract
from anytext_lcm.data import fonts, glyphs
from anytext_lcm.data.batch import FIELDS, Line, build_conditioning, collate, validate
from anytext_lcm.data.mock import MockDataset

BOX = np.array([[10, 40], [110, 40], [110, 70], [10, 70]])
SIZE = (128, 128)


@pytest.fixture(scope="module")
def reference():
    """Glyphs drawn by upstream's draw_glyph and draw_glyph2 under the library versions it pins."""
    file = np.load(Path(__file__).parent / "reference" / "11_glyphs.npz")
    used = hashlib.sha256(fonts.font_path(fonts.PLAIN_FONT).read_bytes()).hexdigest()
    assert used == str(file["font_sha256"]), "matplotlib ships another DejaVu Sans than the reference has"
    return file


@pytest.fixture(scope="module")
def held_out():
    dataset = MockDataset(64, seed=3, split="test")
    return [dataset[i] for i in range(len(dataset))]


# -- fonts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("font", fonts.TEXT_FONTS)
def test_a_font_is_as_it_is_listed_and_draws_every_letter_and_digit(font):
    """By the font file's own tables, and by pixels: 62 pictures, all with ink and no two alike."""
    letters = string.ascii_letters + string.digits
    fonts.require_glyphs(font, letters + " ")
    with TTFont(fonts.font_path(font)) as file:
        assert (file["post"].italicAngle != 0) == (font in fonts.ITALIC_FONTS) == (font not in fonts.UPRIGHT_FONTS)
    drawn = {letter: fonts.load_font(font, 40).getmask(letter, anchor="ls") for letter in letters}
    assert all(mask.getbbox() for mask in drawn.values())
    assert len({(mask.size, bytes(mask)) for mask in drawn.values()}) == len(letters)


def test_missing_glyph_names_font_and_characters():
    with pytest.raises(ValueError, match=r"DejaVuSans\.ttf.*'字' \(U\+5B57\)"):
        fonts.require_glyphs("DejaVuSans.ttf", "a字")
    with pytest.raises(ValueError, match="U\\+00DF"):  # cmr10 has no sharp s
        glyphs.draw_glyph_line("Straße", "cmr10.ttf")


@pytest.mark.parametrize("font", ["NoSuchFont.ttf", "/no/such/folder/DejaVuSans.ttf", "None"])
def test_missing_font_file(font):
    with pytest.raises(FileNotFoundError, match="neither a file nor one of matplotlib's fonts"):
        fonts.font_path(font)


# -- glyphs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(6))
def test_glyph_line_equals_upstream(reference, index):
    drawn = glyphs.draw_glyph_line(str(reference[f"line{index}.text"]))
    wanted = np.unpackbits(reference[f"line{index}.img_packed"], axis=1)
    assert drawn.shape == glyphs.GLYPH_LINE_SIZE and drawn.dtype == np.uint8
    # FreeType versions differ in up to 16 of the 40960 pixels.
    assert np.count_nonzero(drawn != wanted) <= 32


@pytest.mark.parametrize(
    "case",
    "wide nospace space tiny trapezoid negcolor square vertical rot-20 rot30 rot60 rot80".split(),
)
def test_placed_glyph_equals_upstream(reference, case):
    drawn = glyphs.draw_placed_glyph(
        str(reference[f"img.{case}.text"]), reference[f"img.{case}.poly"], add_space=case != "nospace"
    )
    wanted, color = reference[f"img.{case}.u8"], reference[f"img.{case}.color"]
    color = np.full(3, 255) if color.mean() < 0 else np.clip(color, 10, 255)
    painted = np.rint(drawn[..., None] * (color / 255.0))
    # Upstream paints in colour, rounding once more; nearest-neighbour turns may differ by a few pixels.
    assert np.count_nonzero(np.abs(painted - wanted) > 1) <= 30


def test_glyph_stays_where_the_polygon_is():
    for degrees in (-14, 0, 9, 30):
        turn = cv2.getRotationMatrix2D((64, 64), degrees, 1.0)
        quad = cv2.transform(np.float32([[[20, 48], [108, 48], [108, 80], [20, 80]]]), turn)[0]
        drawn = glyphs.draw_placed_glyph("Word", quad, size=SIZE)
        inside = cv2.dilate(glyphs.draw_position(quad, SIZE), np.ones((5, 5), np.uint8))
        assert drawn.max() > 200 and not drawn[inside == 0].any()


def test_glyph_errors():
    with pytest.raises(ValueError, match="empty"):
        glyphs.draw_glyph_line("")
    with pytest.raises(ValueError, match="too small"):
        glyphs.draw_placed_glyph("Word", [[10, 10], [40, 10], [40, 11], [10, 11]], size=SIZE)
    with pytest.raises(ValueError, match="3 or more"):
        glyphs.draw_placed_glyph("Word", [[10, 10], [40, 10]], size=SIZE)


# -- the batch -------------------------------------------------------------------------------------------


def test_conditioning_of_two_lines():
    low = BOX + (0, 45)
    item = build_conditioning(
        [Line("Word", BOX, (255, 0, 0), hint_font="cmr10.ttf"), Line("two", low)], SIZE, max_lines=3
    )
    assert item["text_caption"] == "Text says * , * . " and item["n_lines"] == 2
    assert item["color"].tolist() == [[255, 0, 0], [500, 500, 500], [0, 0, 0]]
    assert (item["masked_img"] == -1).all() and not item["inv_mask"].any()
    assert (item["hint"][0] == item["positions"].max(0)).all()
    assert item["glyphs"][:2].any(axis=(1, 2)).all() and not item["glyphs"][2].any()
    # Only the first line asked for a font, so the hint is empty around the second.
    assert item["font_hint"][0, 40:71].any() and not item["font_hint"][0, 80:].any()


def test_editing_leaves_a_hole():
    image = np.linspace(-1, 1, 3 * 128 * 128, dtype=np.float32).reshape(3, 128, 128)
    item = build_conditioning([Line("Word", BOX)], SIZE, max_lines=1, mode="edit", image=image)
    hole = np.broadcast_to(item["hint"] == 1, image.shape)
    assert (item["masked_img"][hole] == -1).all()
    np.testing.assert_array_equal(item["masked_img"][~hole], image[~hole])


@pytest.mark.parametrize(
    "lines, arguments, message",
    [
        ([], {}, "no line of text"),
        ([Line("a", BOX)] * 3, {}, "3 lines do not fit 2 slots"),
        ([Line("a", BOX)], {"mode": "paint"}, "'paint' is unknown"),
        ([Line("a", BOX)], {"mode": "edit"}, "needs an image"),
        ([Line("a", BOX + 60)], {}, "line 'a' leaves the picture of 128 x 128"),
        ([Line("字", BOX)], {}, "no glyph"),
    ],
)
def test_conditioning_errors(lines, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_conditioning(lines, SIZE, max_lines=2, **arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"text": "a" * 21}, "21 characters, the limit is 20"),
        ({"color": (300, 0, 0)}, "line 'word' must be three numbers 0..255"),
        ({"color": (float("nan"), 0, 0)}, "three numbers 0..255"),
        ({"color": (1, 2)}, "three numbers 0..255"),
        ({"polygon": BOX[:2]}, "line 'word' needs 3 or more"),
        ({"polygon": BOX[:, :1]}, "3 or more"),
    ],
)
def test_lines_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        Line(**({"text": "word", "polygon": BOX} | arguments))


def test_twenty_characters_are_allowed():
    item = build_conditioning([Line("twenty characters ok", BOX)], SIZE, max_lines=1)
    assert item["texts"] == ["twenty characters ok"]


def test_collated_items_hold_to_the_contract(held_out):
    batch = collate(held_out)
    validate(batch)
    assert set(FIELDS) | set(contract.TEXT_FIELDS) | {"condition_polygons", "meta"} == set(batch)
    assert batch["gly_line"].shape == (64, 2, 80, 512)
    assert batch["img_caption"][0] == held_out[0]["img_caption"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda b: b.pop("hint"), "lacks the field 'hint'"),
        (lambda b: b.update(img=b["img"].double()), "'img' must be a tensor of torch.float32"),
        (lambda b: b.update(img=b["img"] * 2), r"'img' must lie in -1..1"),
        (lambda b: b.update(img=b["img"] * float("nan")), r"'img' must lie in -1..1"),
        (lambda b: b.update(hint=b["hint"][:, 0]), "'hint' must have shape"),
        (lambda b: b.update(positions=b["positions"] * 255), "'positions' must lie in 0..1"),
        (lambda b: b.update(glyphs=b["glyphs"][:, :1]), "'glyphs' must have shape"),
        (lambda b: b.update(n_lines=b["n_lines"] + 2), "raise max_lines"),
        (lambda b: b.update(n_lines=b["n_lines"] * 0), "'n_lines' must lie in 1"),
        (lambda b: b.update(texts=[["a" * 21] * len(t) for t in b["texts"]]), "21 characters"),
        (lambda b: b.update(texts=[[] for _ in b["texts"]]), "0 texts for n_lines"),
        (lambda b: b.update(text_caption=["Text says . "] * len(b["texts"])), "0 '\\*'"),
        (lambda b: b.update(img_caption=b["img_caption"][1:]), "'img_caption' has"),
        (lambda b: b.update(color=torch.full_like(b["color"], 500)), "'color' is not zero in the slots"),
    ],
)
def test_broken_batches_are_named(held_out, change, message):
    broken = collate(held_out)
    change(broken)
    with pytest.raises(ValueError, match=message):
        validate(broken)


def test_items_of_two_sizes_do_not_collate():
    with pytest.raises(ValueError, match="differ in the shape"):
        collate([MockDataset(1)[0], MockDataset(1, max_lines=3)[0]])
