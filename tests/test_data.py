"""Fonts, glyphs, the batch contract and the mock data set."""

import hashlib
import logging
import string
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fontTools.ttLib import TTFont

from anytext_lcm.data import background, fonts, glyphs, layout, scene, words
from anytext_lcm.data import batch as contract
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


# -- the mock data set -----------------------------------------------------------------------------------


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
    quads = np.maximum.reduce([glyphs.draw_position(quad, SIZE) for quad in item["polygons"]])
    assert not coverage[0][cv2.dilate(quads, np.ones((3, 3), np.uint8)) == 0].any()
    assert coverage[0][quads == 1].mean() > 20


def test_splits_share_no_text():
    generator = np.random.default_rng(0)
    drawn = {split: {layout.draw_text(generator, split).lower() for _ in range(3000)} for split in ("train", "test")}
    assert not drawn["train"] & drawn["test"]
    assert not set(words.WORDS_OF["train"]) & set(words.WORDS_OF["test"])
    assert min(len(words.WORDS_OF[split]) for split in drawn) > 100
    for split, texts in drawn.items():
        assert len(texts) > 1000
        assert {words.split_of(casing) for t in texts for casing in (t, t.title(), t.upper())} == {split}


def test_text_is_readable_by_rule():
    dataset = MockDataset(150, seed=6)
    for index in range(len(dataset)):
        scene = dataset.scene(index)
        taken = np.zeros(SIZE, np.uint8)
        luma = scene.image.astype(np.float32) @ np.float32([0.299, 0.587, 0.114])
        for line in scene.lines:
            assert 3 <= len(line.text) <= 6
            assert layout.MIN_HEIGHT - 0.01 <= line.font_height <= layout.MAX_HEIGHT + 0.01
            for quad in (line.quad, line.condition_quad):
                assert quad.min() >= 0 and quad.max() <= 127
            here = glyphs.draw_position(line.condition_quad, SIZE)
            assert not (here & taken).any()
            taken |= here
            # The text is within the condition, up to the rounding of corners to whole pixels.
            room = cv2.dilate(here, np.ones((3, 3), np.uint8))
            assert not glyphs.draw_position(line.quad, SIZE)[room == 0].any()
            behind = luma[(here == 1) & (scene.coverage == 0)]
            own = np.dot(line.color, [0.299, 0.587, 0.114])
            assert np.abs(behind - own).min() >= background.MIN_CONTRAST - 1.5  # rounding of two colours


def test_what_is_open_and_what_is_told(held_out):
    metas = [item["meta"] for item in held_out]
    assert {len(item["texts"]) for item in held_out} == {1, 2}
    assert {meta["mode"] for meta in metas} == {"edit", "generate"}
    for item, meta in zip(held_out, metas, strict=True):
        caption = item["img_caption"]
        assert meta["background"] in caption.split()
        for color, shape in meta["objects"]:
            assert f"{color} {shape}" in caption
        assert meta["color_in_caption"] or meta["color_given"]  # the colour is told somewhere
        assert not any(text in caption.split() for text in item["texts"])
        assert (item["font_hint"].any()) == meta["font_hinted"]
        colors = [tuple(rgb) for rgb in item["color"][: item["n_lines"]].astype(int).tolist()]
        assert colors == (meta["text_rgb"] if meta["color_given"] else [(500, 500, 500)] * item["n_lines"])
        assert (item["masked_img"] == -1).all() == (meta["mode"] == "generate")


def test_caption_vocabulary_is_complete():
    known = set(scene.caption_vocabulary())
    dataset = MockDataset(100, seed=8)
    for index in range(len(dataset)):
        item = dataset[index]
        for caption in (item["img_caption"], item["text_caption"]):
            spaced = caption.lower()
            for sign in ",.:*":
                spaced = spaced.replace(sign, f" {sign} ")
            assert set(spaced.split()) <= known


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
