"""Pictures that are not square, and records that are held out."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from anytext_lcm.data.__main__ import main
from anytext_lcm.data.anyword import AnyWordDataset, ReadingRules
from anytext_lcm.data.placing import PADDING, place_picture
from anytext_lcm.data.preview import shapes

WIDE = np.tile(np.arange(96, dtype=np.uint8)[None, :, None], (64, 1, 3))  # 64 high, 96 wide, brighter to the right
TALL = WIDE.transpose(1, 0, 2)


def test_stretching_is_a_resize_of_each_side():
    square, placing, padding = place_picture(WIDE, 64, "stretch")
    assert np.array_equal(square, cv2.resize(WIDE, (64, 64), interpolation=cv2.INTER_LINEAR)) and not padding
    assert placing.points(np.array([[96, 64], [48, 10]])).tolist() == [[64, 64], [32, 10]]


@pytest.mark.parametrize(
    ("focus", "left"), [([], 16), ([[0, 5], [20, 9]], 0), ([[90, 5], [96, 9]], 32), ([[30, 0], [54, 9]], 10)]
)
def test_a_crop_keeps_what_it_is_for(focus, left):
    square, placing, padding = place_picture(WIDE, 64, "crop", [np.array(focus)] if focus else [])
    assert np.array_equal(square, WIDE[:, left : left + 64]) and not padding
    assert placing.points(np.array([[left, 3]])).tolist() == [[0, 3]]
    large, placing, _ = place_picture(TALL, 128, "crop", [np.array(focus)[:, ::-1]] if focus else [])
    assert large.shape == (128, 128, 3)
    assert placing.points(np.array([[3, left + 1]])).tolist() == [[6, 2]]


def test_padding_shows_all_of_the_picture():
    square, placing, padding = place_picture(WIDE, 96, "pad")
    assert np.array_equal(square[16:80], WIDE)
    assert (square[:16] == PADDING).all() and (square[80:] == PADDING).all()
    assert placing.points(np.array([[0, 0], [96, 64]])).tolist() == [[0, 16], [96, 80]]
    assert [bar.tolist() for bar in padding] == [
        [[0, 0], [95, 0], [95, 15], [0, 15]],
        [[0, 80], [95, 80], [95, 95], [0, 95]],
    ]
    square, placing, padding = place_picture(TALL, 48, "pad")
    assert square.shape == (48, 48, 3) and (square[:, :8] == PADDING).all() and len(padding) == 2
    assert placing.points(np.array([[64, 96]])).tolist() == [[40, 48]]


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_a_square_picture_fits_as_it_is(fit):
    square, placing, padding = place_picture(WIDE[:, :64], 64, fit)
    points = np.array([[1, 2]])
    assert np.array_equal(square, WIDE[:, :64]) and placing.points(points) is points and not padding


def test_an_unknown_fit():
    for make in (lambda: place_picture(WIDE, 64, "bend"), lambda: ReadingRules(fit="bend")):
        with pytest.raises(ValueError, match="fit must be one of stretch, crop, pad, not 'bend'"):
            make()


def box(left, top, right, bottom):
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


LINES = (("LEFT", box(2, 10, 60, 30)), ("RIGHT", box(64, 10, 94, 30)))


def records(folder, count=1, lines=LINES):
    """A JSON of `count` pictures of 96 x 64 with these lines."""
    entries = []
    for number in range(count):
        Image.fromarray(WIDE + np.uint8(number)).save(folder / f"{number}.png")
        annotations = [{"polygon": polygon, "text": text, "valid": True} for text, polygon in lines]
        entries.append({"img_name": f"{number}.png", "caption": "a wall", "annotations": annotations})
    path = folder / "data.json"
    path.write_text(json.dumps({"data_root": ".", "data_list": entries}))
    return path


def item(path, fit):
    rules = ReadingRules(image_size=96, fit=fit, jitter=False, hint_share=0)
    item = AnyWordDataset(path, rules=rules)[0]
    return item, np.unpackbits(item["inv_mask_packed"], axis=-1)[0], np.unpackbits(item["positions_packed"], axis=-1)


def test_the_loss_does_not_look_at_padding(tmp_path):
    found, ignored, positions = item(records(tmp_path), "pad")
    assert found["texts"] == ["LEFT", "RIGHT"] and not found["problems"]
    assert ignored[:16].all() and ignored[80:].all() and not ignored[16:80].any()
    rows = np.flatnonzero(positions[0].any(axis=1))
    assert (rows.min(), rows.max()) == (26, 46)  # 10..30 and the bar of 16


def test_a_line_that_a_crop_cuts_is_ignored(tmp_path):
    """Both lines reach from 2 to 94 of 96: the crop keeps 16..80, and less than nine tenths of either."""
    found, ignored, _ = item(records(tmp_path), "crop")
    assert found["texts"] == [" "] and not found["problems"]
    assert ignored[20, 10] and ignored[20, 90] and not ignored[60].any()


def test_what_is_whole_in_a_crop_is_drawn(tmp_path):
    """The crop keeps 18..82, around the line; the square is half as large again."""
    found, ignored, _ = item(records(tmp_path, lines=(("WHOLE", box(40, 10, 60, 30)),)), "crop")
    assert found["texts"] == ["WHOLE"] and found["polygons"][0].tolist() == box(33, 15, 63, 45) and not ignored.any()
    assert found["picture"][0, 0, 0] == 18


def test_preview_says_what_becomes_of_them(tmp_path, capsys):
    path = records(tmp_path, 3)
    Image.fromarray(WIDE[:, :64]).save(tmp_path / "2.png")
    words = {
        "stretch": "2 of 3 pictures are not square: they are stretched by 1.50 (median) to 1.50, which --fit",
        "crop": "2 of 3 pictures are not square: of the longer side 33% (median) to 33% is cut off",
        "pad": "2 of 3 pictures are not square: bars fill 33% (median) to 33% of the square",
    }
    for fit, sentence in words.items():
        assert shapes(AnyWordDataset(path, rules=ReadingRules(fit=fit))).startswith(sentence)
    look = ["preview", "--data_list", str(path), "--image_size", "64", "--output", str(tmp_path / "sheet.png")]
    assert main([*look, "--fit", "pad"]) == 0
    assert words["pad"] in capsys.readouterr().out
    assert main(["preview", "--mock", "2", "--fit", "pad", "--output", str(tmp_path / "sheet.png")]) == 2
    assert "--fit has no effect on mock data" in capsys.readouterr().err


def test_preview_looks_at_some_of_many(tmp_path):
    dataset = AnyWordDataset(records(tmp_path, 5))
    (tmp_path / "4.png").unlink()
    assert shapes(dataset, 2).startswith("1 of 1 pictures looked at are not square")
    assert shapes(dataset, 0).startswith("4 of 4 pictures are not square")


def test_a_share_is_held_out_and_nothing_is_in_both_parts(tmp_path):
    path = records(tmp_path, 40)
    kept, held = (AnyWordDataset(path, share=0.25, held_out=part) for part in (False, True))
    names = [{dataset.record(i)[1].img_name for i in range(len(dataset))} for dataset in (kept, held)]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 40
    assert 4 <= len(held) <= 16  # a quarter of 40, give or take two deviations
    records(tmp_path, 60)  # more pictures: those of before stay where they were
    more = AnyWordDataset(path, share=0.25, held_out=True)
    assert names[1] == {more.record(i)[1].img_name for i in range(len(more))} & (names[0] | names[1])
    with pytest.raises(ValueError, match="is left of .*: a held-out share of 1e-06 has none of"):
        AnyWordDataset(path, share=1e-6, held_out=True)
