"""Boxes that are turned, masks with several regions, pixels that stay."""

import cv2
import numpy as np
import pytest
from PIL import Image

from anytext_lcm.drawing.editing import boxes_of_mask, fit_picture, paste_back, read_mask, turned_box


def test_a_turned_box():
    assert turned_box(10, 20, 50, 40).tolist() == [[10, 20], [50, 20], [50, 40], [10, 40]]
    assert turned_box(10, 20, 50, 40, 90).tolist() == [[40, 10], [40, 50], [20, 50], [20, 10]]
    clockwise = turned_box(10, 20, 50, 40, 10)
    assert clockwise[1, 1] > clockwise[0, 1]  # the text goes downhill
    assert np.allclose(clockwise.mean(axis=0), [30, 30], atol=1)
    for box in ((10, 20, 10, 40, 0), (10, 40, 50, 20, 0), (0, 0, 9, 9, float("nan")), (0, 0, 9, 9, -400)):
        with pytest.raises(ValueError):
            turned_box(*box)


@pytest.mark.parametrize("angle", [180, -180, 90.5, -91, 360])
def test_a_line_that_would_stand_on_its_head_is_refused(angle):
    """Its glyph would be that of the line turned by 180 degrees less, bit for bit."""
    with pytest.raises(ValueError, match=r"-90..90 degrees, not .* below each other"):
        turned_box(10, 20, 110, 40, angle)


def test_a_mask_is_bright_and_not_transparent(tmp_path):
    seen, path = Image.new("RGBA", (4, 1), "white"), tmp_path / "mask.tif"
    for x, pixel in enumerate([(255, 255, 255, 0), (255, 255, 255, 255), (0, 0, 0, 255), (255, 0, 0, 200)]):
        seen.putpixel((x, 0), pixel)
    seen.save(path)
    assert read_mask(path).tolist() == [[0, 255, 0, 200]]
    seen.convert("RGB").save(path)
    assert read_mask(path).tolist() == [[255, 255, 0, 255]]
    for mode in ("1", "L", "LA", "P", "CMYK"):
        Image.new("L", (2, 3), 255).convert(mode).save(path)
        assert read_mask(path).tolist() == [[255, 255]] * 3, mode


def test_pictures_are_scaled_to_cover_and_cropped():
    picture = np.zeros((100, 300, 3), np.uint8)
    picture[:, 100:200] = 200
    fitted = fit_picture(picture, (64, 64))
    assert fitted.shape == (64, 64, 3) and fitted.dtype == np.uint8 and (fitted[:, 4:-4] == 200).all()
    assert fit_picture(picture[:, :7], (64, 128)).shape == (64, 128, 3)
    # A ramp of 3 levels a pixel, 80 wide and 20 high, at half the size: its middle 40 columns, each the mean of two.
    ramp = np.tile(3 * np.arange(80, dtype=np.uint8)[None, :, None], (20, 1, 3))
    wanted = 3 * (20 + 2 * np.arange(20) + 0.5)
    assert np.abs(fit_picture(ramp, (10, 20))[:, 1:-1, 0] - wanted[1:-1]).max() <= 1
    assert np.array_equal(fit_picture(picture, (100, 300)), picture)


@pytest.mark.parametrize("angle", [0, 15, -20])
def test_a_region_becomes_the_box_it_was_drawn_with(angle):
    box = turned_box(20, 50, 110, 75, angle)
    mask = np.zeros((128, 128), np.uint8)
    cv2.fillPoly(mask, [box.astype(np.int32)], 255)
    [found] = boxes_of_mask(mask, 1)
    assert np.abs(found - box).max() <= 2


def test_regions_come_in_reading_order():
    mask = np.zeros((100, 100), bool)
    mask[60:80, 5:40], mask[10:30, 50:95], mask[90, 90] = True, True, True  # the last one is a speck
    tops = [box[:, 1].min() for box in boxes_of_mask(mask, 2)]
    lefts = [box[:, 0].min() for box in boxes_of_mask(mask, 2, "right")]
    assert tops == [10, 60] and lefts == [5, 50]
    with pytest.raises(ValueError, match="2 regions for 3 lines"):
        boxes_of_mask(mask, 3)
    with pytest.raises(ValueError, match="Order"):
        boxes_of_mask(mask, 2, "up")
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        boxes_of_mask(mask[None], 2)
    whole = boxes_of_mask(np.ones((64, 96)), 1)[0]
    assert whole.min() == 0 and whole.max(axis=0).tolist() <= [96, 64]


def test_pixels_outside_stay():
    rng = np.random.default_rng(0)
    photo, drawn = rng.integers(0, 255, (2, 64, 64, 3)).astype(np.uint8)
    box = turned_box(20, 20, 44, 40)
    pasted = paste_back(photo, drawn, [box])
    far = np.ones((64, 64), bool)
    far[10:51, 10:55] = False
    assert np.array_equal(pasted[far], photo[far]) and np.array_equal(pasted[22:39, 22:43], drawn[22:39, 22:43])
    sharp = paste_back(photo, drawn, [box], feather=0)
    assert np.array_equal(sharp[19, 30], photo[19, 30]) and np.array_equal(sharp[20, 30], drawn[20, 30])
    with pytest.raises(ValueError, match="alike"):
        paste_back(photo, drawn[:32], [box])
