"""Objects, text colour by number, fonts and kept photographs, on pictures made for the purpose."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from anytext_lcm.data.colours import COLORS
from anytext_lcm.data.fonts import load_font
from anytext_lcm.judging.font import font_fits, fonts_obeyed
from anytext_lcm.judging.ink import ink_distance, ink_obeyed
from anytext_lcm.judging.kept import kept_outside
from anytext_lcm.judging.objects import objects_obeyed

NOTHING = np.zeros((128, 128), bool)


def picture(ground="green"):
    return np.full((128, 128, 3), COLORS[ground], np.uint8)


def shape(canvas, kind, color, middle=(64, 70), size=44):
    """Drawn with OpenCV's own primitives, apart from how the data set draws."""
    (x, y), half = middle, size // 2
    if kind == "circle":
        cv2.circle(canvas, middle, half, COLORS[color], -1, cv2.LINE_AA)
    elif kind == "square":
        cv2.rectangle(canvas, (x - half, y - half), (x + half, y + half), COLORS[color], -1)
    else:
        points = np.array([[x, y - half], [x + half, y + half * 0.85], [x - half, y + half * 0.85]], np.int32)
        cv2.fillPoly(canvas, [points], COLORS[color], cv2.LINE_AA)
    return canvas


def obeyed(canvas, wanted, ground=("green",), excluded=NOTHING):
    return objects_obeyed([canvas], [wanted], [ground], [excluded])[0]


@pytest.mark.parametrize("kind", ["circle", "square", "triangle"])
@pytest.mark.parametrize("size", [28, 44, 62])
def test_a_shape_is_found_and_no_other_is_taken_for_it(kind, size):
    canvas = shape(picture(), kind, "red", size=size)
    for wanted in ("circle", "square", "triangle"):
        assert obeyed(canvas, [("red", wanted)]) == (wanted == kind)


def test_another_colour_than_asked_for_does_not_count():
    canvas = shape(picture(), "circle", "blue")
    assert obeyed(canvas, [("blue", "circle")]) == 1
    assert obeyed(canvas, [("red", "circle")]) == 0


def test_each_of_two_objects_counts_half():
    canvas = shape(picture(), "circle", "yellow", middle=(32, 60), size=40)
    assert obeyed(canvas, [("yellow", "circle"), ("white", "square")]) == 0.5
    shape(canvas, "square", "white", middle=(96, 60), size=40)
    assert obeyed(canvas, [("yellow", "circle"), ("white", "square")]) == 1


def test_smudges_specks_and_floods_are_no_objects():
    smudge = picture().astype(np.float32)
    weight = np.exp(-np.square(np.mgrid[:128, :128] - 64).sum(0) / (2 * 14**2))[..., None]
    smudge += 0.55 * weight * (np.array(COLORS["red"]) - smudge)  # the average of many places: never fully red
    assert obeyed(smudge.astype(np.uint8), [("red", "circle")]) == 0
    blot, rng = picture(), np.random.default_rng(0)
    for x, y in rng.integers(30, 90, (5, 2)):  # a region of the right colour and size without a shape
        cv2.circle(blot, (int(x), int(y)), 12, COLORS["red"], -1)
    assert all(obeyed(blot, [("red", kind)]) == 0 for kind in ("circle", "square", "triangle"))
    assert obeyed(shape(picture(), "circle", "red", size=8), [("red", "circle")]) == 0
    assert obeyed(picture("red"), [("red", "square")]) == 0
    assert obeyed(picture(), [("red", "circle")]) == 0


def test_stripes_and_gradients_behind_do_not_disturb():
    striped = picture()
    for x in range(0, 128, 40):
        striped[:, x : x + 20] = COLORS["yellow"]
    assert obeyed(shape(striped.copy(), "triangle", "blue"), [("blue", "triangle")], ("green", "yellow")) == 1
    share = np.linspace(0, 1, 128)[None, :, None]
    passage = np.uint8((1 - share) * COLORS["green"] + share * COLORS["yellow"]).repeat(128, 0)
    assert obeyed(shape(passage.copy(), "square", "blue"), [("blue", "square")], ("green", "yellow")) == 1
    assert obeyed(passage, [("blue", "square")], ("green", "yellow")) == 0


def test_text_of_the_same_colour_does_not_count():
    canvas = shape(picture(), "circle", "white", middle=(64, 40), size=40)
    cv2.putText(canvas, "SALE", (10, 110), cv2.FONT_HERSHEY_SIMPLEX, 1.5, COLORS["white"], 12)
    text = np.zeros((128, 128), bool)
    text[70:120] = True
    assert obeyed(canvas, [("white", "circle")], excluded=text) == 1


def test_what_was_not_asked_for_is_no_number():
    assert np.isnan(obeyed(picture(), []))
    with pytest.raises(ValueError, match="There is no red star"):
        obeyed(picture(), [("red", "star")])
    with pytest.raises(ValueError, match="one of each a picture"):
        objects_obeyed([picture()], [], [], [])


LINE = np.array([[8, 40], [120, 40], [120, 76], [8, 76]])


def written(color, ground="green", thickness=3):
    canvas = picture(ground)
    cv2.putText(canvas, "SALE", (14, 70), cv2.FONT_HERSHEY_SIMPLEX, 1.2, color, thickness, cv2.LINE_AA)
    return canvas


@pytest.mark.parametrize("color", [(255, 0, 0), (250, 250, 250), (20, 30, 90), (60, 200, 220)])
def test_letters_in_the_wanted_colour_obey_and_no_others(color):
    assert ink_distance(written(color), LINE, color) < 3
    assert ink_obeyed([written(color)], [[LINE]], [[color]])[0] == 1
    for other in [(255, 0, 0), (250, 250, 250), (20, 30, 90), (60, 200, 220)]:
        if other != color:
            assert ink_obeyed([written(color)], [[LINE]], [[other]])[0] == 0


def test_a_ground_of_two_colours_is_not_taken_for_letters():
    checks = picture("brown")
    checks[:, ::2] = COLORS["gray"]
    assert ink_distance(checks, LINE, (250, 250, 250)) > 40  # no letters at all
    cv2.putText(checks, "SALE", (14, 70), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (250, 250, 250), 3)
    assert ink_distance(checks, LINE, (250, 250, 250)) < 3


def test_open_colours_do_not_count_and_lines_are_averaged():
    canvas = written((255, 0, 0))
    assert np.isnan(ink_obeyed([canvas], [[LINE]], [[(500, 500, 500)]])[0])
    assert ink_obeyed([canvas], [[LINE, LINE]], [[(255, 0, 0), (0, 0, 255)]])[0] == 0.5
    with pytest.raises(ValueError, match="has no pixel"):
        ink_distance(canvas, LINE + 500, (255, 0, 0))


FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf", "DejaVuSerif.ttf")


@pytest.mark.parametrize("font", FONTS)
@pytest.mark.parametrize("degrees", [0, 14])
def test_the_font_that_a_line_is_drawn_in_fits_best(font, degrees):
    layer = Image.fromarray(picture())
    ImageDraw.Draw(layer).text((16, 44), "River", font=load_font(font, 34), fill=(250, 240, 60))
    canvas = np.asarray(layer.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=COLORS["green"]))
    cos, sin = np.cos(np.radians(-degrees)), np.sin(np.radians(-degrees))
    quad = (LINE - 64) @ np.array([[cos, sin], [-sin, cos]]) + 64  # turned with the picture, about its middle
    assert FONTS[font_fits(canvas, quad, "River", (250, 240, 60), FONTS).argmax()] == font
    line = [[quad]], [["River"]], [[(250, 240, 60)]]
    assert [fonts_obeyed([canvas], *line, [[wanted]], FONTS)[0] for wanted in FONTS] == [f == font for f in FONTS]


def test_without_letters_no_font_fits():
    assert not font_fits(picture(), LINE, "River", (250, 240, 60), FONTS).any()


def test_kept_looks_outside_the_hole_alone():
    original = np.random.default_rng(1).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    hole = np.zeros((128, 128), np.uint8)
    hole[40:80] = 1
    drawn = original.copy()
    drawn[40:80] = 0
    assert kept_outside([drawn], [original], [hole])[0] == np.inf
    drawn[:40] = np.clip(original[:40].astype(int) + np.where(original[:40] < 128, 10, -10), 0, 255)
    share = 40 / 88  # of what is kept, each pixel off by 10
    assert kept_outside([drawn], [original], [hole])[0] == pytest.approx(10 * np.log10(255**2 / (100 * share)))
    with pytest.raises(ValueError, match="nothing to keep"):
        kept_outside([drawn], [original], [np.ones((128, 128))])
    with pytest.raises(ValueError, match="differ"):
        kept_outside([drawn], [original[:64]], [hole])
