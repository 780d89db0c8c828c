"""Text from outside: accents in one form, nothing invisible, no control characters, marks that count."""

import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

from anytext_lcm.data.anyword import AnyWordDataset, ReadingRules
from anytext_lcm.data.batch import Line, build_conditioning
from anytext_lcm.data.records import clean
from anytext_lcm.data.text import is_visible
from anytext_lcm.drawing.play import LineBox
from anytext_lcm.drawing.prompts import Prompt, parse_line, prompts_to_batch
from anytext_lcm.judging.benchmark_set import read_tasks
from anytext_lcm.judging.reading import normalise

ACCENTED, APART = "caf\u00e9", "cafe\u0301"
INVISIBLE = [
    "\u200b",
    "\u200d\u2060",
    "\u3164",
    "\u2800",
    "\u00a0\u3000",
    "\ufe0f",
    "\u115f\u1160",
    "\u202e ",
    "\U000e0100",
]
LEVEL = [[8, 8], [120, 8], [120, 40], [8, 40]]
WIDE = [[8, 8], [500, 8], [500, 40], [8, 40]]
UPRIGHT = [[8, 8], [40, 8], [40, 200], [8, 200]]


@pytest.mark.parametrize("polygon", [LEVEL, WIDE, UPRIGHT], ids=["level", "wide", "upright"])
def test_an_accent_of_its_own_is_drawn_as_its_letter(polygon):
    fields = [build_conditioning([Line(text, np.array(polygon))], (512, 512), 1) for text in (ACCENTED, APART)]
    for name, value in fields[0].items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(value, fields[1][name]), name
    assert fields[0]["texts"] == fields[1]["texts"] == [ACCENTED]


def test_an_accent_is_no_character_of_its_own():
    letters = 20 * "\u00e9"
    assert Line(unicodedata.normalize("NFD", letters), np.array(LEVEL)).text == letters
    with pytest.raises(ValueError, match="21 characters"):
        Line(unicodedata.normalize("NFD", letters + "e"), np.array(LEVEL))
    assert LineBox(APART, 8, 8, 120, 40).line().text == ACCENTED
    assert parse_line(f"{APART}@8,8,120,40").text == parse_line(APART, polygon=np.array(LEVEL)).text == ACCENTED


def test_captions_have_one_form():
    prompts = [Prompt(f"a {text} sign", (Line("x", np.array(LEVEL)),)) for text in (ACCENTED, APART)]
    batch = prompts_to_batch(prompts, (128, 128), 1)
    assert batch["img_caption"] == [f"a {ACCENTED} sign"] * 2


def record(text, caption="a wall"):
    line = {"polygon": WIDE, "text": text, "language": "Latin", "valid": True}
    return {"img_name": "1.png", "caption": caption, "annotations": [line]}


def test_records_and_benchmark_have_one_form(tmp_path):
    Image.new("RGB", (512, 512)).save(tmp_path / "1.png")
    long = 20 * "\u00e9"
    data = {"data_root": ".", "data_list": [record(unicodedata.normalize("NFD", long), APART)]}
    (tmp_path / "data.json").write_text(json.dumps(data))
    item = AnyWordDataset(tmp_path / "data.json", rules=ReadingRules(caption_words=0))[0]
    assert item["texts"] == [long] and item["img_caption"] == ACCENTED and not item["problems"]
    [task] = read_tasks(tmp_path / "data.json")
    assert task.lines[0][0] == long and task.caption == ACCENTED


@pytest.mark.parametrize("text", INVISIBLE, ids=ascii)
def test_text_without_ink_is_refused_or_noted(text):
    assert not is_visible(text)
    with pytest.raises(ValueError, match="invisible"):
        prompts_to_batch([Prompt("a wall", (Line(text, np.array(LEVEL)),))], (128, 128), 1)
    found, problems = clean(record(text), 0)
    assert not found.annotations[0].valid and [problem.kind for problem in problems] == ["text"]


@pytest.mark.parametrize(
    "text", ["a", "\u200ba", "!", "\u0301", "\u0e17\u0e35\u0e48", "\u4f60", "\U0001f600", "\u2764\ufe0f"], ids=ascii
)
def test_text_with_ink_is_visible(text):
    assert is_visible(text) and clean(record(text), 0)[1] == []


@pytest.mark.parametrize("text", ["a\nb", "a\0b", "\x1b[31mred", "a\u2028b", "a\x85b"], ids=ascii)
def test_control_characters_are_refused(text):
    with pytest.raises(ValueError, match="control characters"):
        Line(text, np.array(LEVEL))
    with pytest.raises(ValueError, match="prompt .* control characters"):
        prompts_to_batch([Prompt(text, (Line("x", np.array(LEVEL)),))], (128, 128), 1)


def test_what_is_not_utf_8_is_refused():
    with pytest.raises(ValueError, match="not UTF-8"):
        Line("a\udcff", np.array(LEVEL))
    with pytest.raises(ValueError, match="not UTF-8"):
        prompts_to_batch([Prompt("a\udcff", (Line("x", np.array(LEVEL)),))], (128, 128), 1)


@pytest.mark.parametrize("far", [2**32 + 60, 10**400, float("inf"), float("nan"), -(2**33)])
def test_a_polygon_far_away_does_not_come_round(far):
    with pytest.raises(ValueError, match="leaves the picture"):
        Line("x", np.array([[8, 8], [far, 8], [60, 40], [8, 40]])).pixels((128, 128))


@pytest.mark.parametrize("wanted, read", [("पानी", "पान"), ("ที่", "ทู"), ("ที่", "ที"), ("हिंदी", "हदी"), ("আমি", "আম")])
def test_marks_that_make_another_word_count(wanted, read):
    assert normalise(wanted) != normalise(read)


@pytest.mark.parametrize(
    "wanted, read",
    [
        (ACCENTED, APART),
        ("１２３", "123"),
        ("Ａb-Ｃ", "abc"),
        ("CAF\u00c9", APART),
        ("\u2764\ufe0f1", "1"),
        ("Stra\u00dfe", "STRASSE"),
    ],
)
def test_what_looks_alike_is_equal(wanted, read):
    assert normalise(wanted) == normalise(read) != ""
