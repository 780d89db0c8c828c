"""Mock pictures with more kinds of text: up to five lines, turned, vertical, Chinese; readable by rule."""

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from anytext_lcm.data import colours, fonts
from anytext_lcm.data.batch import collate, validate
from anytext_lcm.data.glyphs import draw_position
from anytext_lcm.data.lettering import CHINESE_WORDS, TextStyle, varied_text
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.data.packed import PackedDataset, item_bytes

SIDE = 256


@pytest.fixture(scope="module")
def chinese_font(tmp_path_factory):
    """A font that holds the mock data's Chinese characters, each as bars of its own, whatever the machine has."""
    characters = sorted(set("".join(CHINESE_WORDS) + "国"))
    names = [".notdef", *(f"uni{ord(c):04X}" for c in characters)]
    glyphs = {}
    for number, name in enumerate(names):
        pen = TTGlyphPen(None)
        for bar in range(8):
            if bar in (0, 7) or number >> (bar - 1) & 1:
                low = bar * 110
                pen.moveTo((50, low))
                for point in ((50, low + 70), (950, low + 70), (950, low)):
                    pen.lineTo(point)
                pen.closePath()
        glyphs[name] = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"uni{ord(c):04X}" for c in characters})
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics({name: (1000, 50) for name in names})
    builder.setupHorizontalHeader(ascent=860, descent=-140)
    builder.setupNameTable({"familyName": "Bars", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path = tmp_path_factory.mktemp("fonts") / "Bars.ttf"
    builder.save(path)
    return path


@pytest.fixture(scope="module")
def rich(chinese_font):
    style = TextStyle(chinese_share=0.3, chinese_fonts=(chinese_font,))
    return MockDataset(40, seed=2, image_size=SIDE, max_lines=5, text_style=style)


def test_every_kind_of_line_comes_up(rich):
    items = [rich[i] for i in range(len(rich))]
    validate(collate(items))
    assert {item["n_lines"] for item in items} == {1, 2, 3, 4, 5}
    languages = {language for item in items for language in item["language"]}
    assert {"Latin", "Chinese_sim"} <= languages
    angles = [angle for item in items for angle in item["meta"]["angles"]]
    assert any(angle > 16 for angle in angles) and any(angle < -16 for angle in angles) and 0 in angles
    tall = [q for item in items for q in item["polygons"] if np.ptp(q[:, 1]) > 1.2 * np.ptp(q[:, 0])]
    assert len(tall) >= 5
    assert {item["meta"]["mode"] for item in items} == {"edit", "generate"}
    colors = {tuple(row) for item in items for row in item["color"][: item["n_lines"]].tolist()}
    assert (500.0, 500.0, 500.0) in colors and len(colors) > 10
    assert all((item["gly_line"][slot] > 0).any() for item in items for slot in range(item["n_lines"]))


def test_no_line_is_unreadable(rich):
    """No overlap, enough contrast, large enough, inside: measured on the pictures, not taken from the drawing code."""
    for index in range(len(rich)):
        scene = rich.scene(index)
        taken = np.zeros((SIDE, SIDE), np.uint8)
        luma = scene.image.astype(np.float32) @ np.float32([0.299, 0.587, 0.114])
        for line in scene.lines:
            assert line.condition_quad.min() >= 0 and line.condition_quad.max() <= SIDE - 1
            here = draw_position(line.condition_quad, (SIDE, SIDE))
            assert not (here & taken).any()
            taken |= here
            assert line.font_height >= (10 - 0.5) * SIDE / 128  # half a pixel for the whole font size
            own = np.dot(line.color, [0.299, 0.587, 0.114])
            behind = luma[(here == 1) & (scene.coverage == 0)]
            far = np.abs(behind - own)
            if scene.ground == "material":  # a varied picture has all lumas somewhere
                assert np.median(far) >= colours.MIN_CONTRAST / 2
            else:
                assert far.min() >= colours.MIN_CONTRAST - 1.5  # rounding of two colours
            ink = scene.coverage[here == 1]
            assert (ink > 128).mean() > 0.04
        assert not scene.coverage[taken == 0].any()


def test_items_do_not_depend_on_order(rich, chinese_font):
    style = TextStyle(chinese_share=0.3, chinese_fonts=(chinese_font,))
    again = MockDataset(9999, seed=2, image_size=SIDE, max_lines=5, text_style=style)
    for index in (33, 4):
        one, other = rich[index], again[index]
        assert one["texts"] == other["texts"] and one["img_caption"] == other["img_caption"]
        for name in ("img", "glyphs", "positions", "font_hint", "masked_img"):
            np.testing.assert_array_equal(one[name], other[name])


def test_five_lines_at_512_weigh_no_more_than_3_mb():
    style = TextStyle(line_counts=(5,))
    dataset = PackedDataset(MockDataset(1, image_size=512, max_lines=5, text_style=style))
    assert dataset[0]["n_lines"] == 5 and item_bytes(dataset[0]) <= 3e6


def test_varied_text_writes_chinese_where_it_can(monkeypatch, chinese_font):
    monkeypatch.setattr("anytext_lcm.data.lettering.find_fonts", lambda text: [chinese_font])
    assert varied_text().chinese_share > 0
    monkeypatch.setattr("anytext_lcm.data.lettering.find_fonts", lambda text: [])
    assert varied_text().chinese_share == 0 and varied_text(vertical_share=0).vertical_share == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"line_counts": ()}, "numbers of lines"),
        ({"heights": (30, 20)}, "must rise"),
        ({"vertical_share": 2}, "vertical_share is 2"),
        ({"max_angle": 80}, "0..45"),
        ({"chinese_share": 0.5}, "need chinese_fonts"),
        ({"chinese_share": 0.5, "chinese_fonts": ("DejaVuSans.ttf",)}, r"DejaVuSans.ttf has .*U\+5317"),
    ],
)
def test_letterings_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        TextStyle(**options)


def test_fonts_are_chosen_by_what_they_hold(chinese_font):
    both = [chinese_font, "DejaVuSans.ttf"]
    assert fonts.covering_fonts("abc", both) == ["DejaVuSans.ttf"]
    assert fonts.covering_fonts("北京", both) == [chinese_font]
    with pytest.raises(fonts.DrawingError, match=r"No font of Bars.ttf, DejaVuSans.ttf has '字' \(U\+5B57\)"):
        fonts.covering_fonts("字", both)
    with pytest.raises(fonts.DrawingError, match="has all characters at once: name one that covers 'a北'"):
        fonts.covering_fonts("a北", both)
    with pytest.raises(fonts.DrawingError, match="No font of Bars.ttf"):
        TextStyle(fonts=(chinese_font,))


def test_a_font_of_boxes_is_refused():
    with pytest.raises(fonts.DrawingError, match="draws a box for any character"):
        fonts.require_glyphs("LastResortHE-Regular.ttf", "字")
    assert not fonts.covers("LastResortHE-Regular.ttf", "a")


def test_fonts_of_the_system_are_found_by_what_they_hold():
    found = fonts.find_fonts("abc")
    assert all(fonts.covers(path, "abc") for path in found)
    assert fonts.find_fonts("\U0010fffd") == []  # a private character that no font has
