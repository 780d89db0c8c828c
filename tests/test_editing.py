"""Boxes that are turned, masks with several regions, pixels that stay."""

import cv2
import numpy as np
import pytest

from anytext_lcm.editing import boxes_of_mask, fit_picture, paste_back, turned_box


def test_a_turned_box():
    assert turned_box(10, 20, 50, 40).tolist() == [[10, 20], [50, 20], [50, 40], [10, 40]]
    assert turned_box(10, 20, 50, 40, 180).tolist() == [[50, 40], [10, 40], [10, 20], [50, 20]]
    clockwise = turned_box(10, 20, 50, 40, 10)
    assert clockwise[1, 1] > clockwise[0, 1]  # the text goes downhill
    assert np.allclose(clockwise.mean(axis=0), [30, 30], atol=1)
    for box in ((10, 20, 10, 40, 0), (10, 40, 50, 20, 0), (0, 0, 9, 9, float("nan")), (0, 0, 9, 9, 400)):
        with pytest.raises(ValueError):
            turned_box(*box)


def test_pictures_are_scaled_to_cover_and_cropped():
    picture = np.zeros((100, 300, 3), np.uint8)
    picture[:, 100:200] = 200
    fitted = fit_picture(picture, (64, 64))
    assert fitted.shape == (64, 64, 3) and fitted.dtype == np.uint8 and (fitted[:, 4:-4] == 200).all()
    assert fit_picture(picture[:, :7], (64, 128)).shape == (64, 128, 3)
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
