"""No record stops a run: each kind of damage has its rule, is counted, and is named."""

import json
import random
import time
from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anytext_lcm.data.anyword import AnyWordDataset, ReadingRules
from anytext_lcm.data.batch import collate, validate
from anytext_lcm.data.index import BadRecord, open_index
from anytext_lcm.data.packed import expand
from anytext_lcm.data.records import LANGUAGES, MAX_POINTS, MAX_TEXT, RULES, clean, script_language

QUAD = [[8, 16], [56, 16], [56, 40], [8, 40]]


def whole(number=0):
    line = {"polygon": QUAD, "text": "Word", "language": "Latin", "valid": True, "color": [1, 2, 3]}
    return {"img_name": "ok.png", "caption": f"picture {number}", "wm_score": 0.1, "annotations": [line]}


def changed(**fields):
    record = whole()
    record["annotations"][0].update(fields)
    return record


def one_line(**fields):
    """The only annotation of a damaged record as `clean` leaves it (None: it is gone), and the kinds it names."""
    record, problems = clean(changed(**fields), 7)
    assert all(problem.number == 7 and problem.kind in RULES for problem in problems)
    return (record.annotations or (None,))[0], [problem.kind for problem in problems]


def test_a_whole_record_has_no_problem():
    record, problems = clean(whole(), 0)
    assert problems == [] and record.img_name == "ok.png" and record.annotations[0].color == (1, 2, 3)


@pytest.mark.parametrize("raw", [None, 5, "text", [], True, 1.5])
def test_what_is_no_object_is_left_out(raw):
    record, problems = clean(raw, 3)
    assert record is None and [p.kind for p in problems] == ["record"]


@pytest.mark.parametrize("name", [None, "", "  ", 5, ["a"], "a\0b", "\udcff.png"])
def test_a_record_without_a_file_is_left_out(name):
    record, problems = clean(whole() | {"img_name": name}, 0)
    assert record is None and [p.kind for p in problems] == ["img_name"]


@pytest.mark.parametrize("listed", ["none", 5, {"polygon": []}])
def test_a_record_whose_lines_are_not_known_is_left_out(listed):
    record, problems = clean(whole() | {"annotations": listed}, 0)
    assert record is None and [p.kind for p in problems] == ["annotations"]


@pytest.mark.parametrize(
    "polygon",
    [
        None,
        "10,10",
        [[1, 1], [9, 9]],
        [[1, 1], [5, 5], [9, 9], [3, 3]],
        [[1, 1]] * 4,
        [1, 1, 9, 1, 9, 9],
        [[1, 1], [9, float("nan")], [9, 9]],
        [[1, 1], [9, float("inf")], [9, 9]],
        [[1, 1], ["9", 1], [9, 9]],
        [[1, 1], [True, 1], [9, 9]],
        [[1, 1], [9], [9, 9]],
        [[1, 1], [40_000, 1], [9, 9]],
        [[1, 1], [1e300, 1], [9, 9]],
        [[1, 1], [10**30, 1], [9, 9]],
    ],
)
def test_a_line_without_a_place_is_left_out(polygon):
    assert one_line(polygon=polygon) == (None, ["polygon"])


def test_an_empty_polygon_is_upstreams_way_to_have_none():
    assert one_line(polygon=[]) == (None, [])


def test_a_polygon_that_crosses_itself_becomes_its_hull():
    bow_tie = [[8, 16], [56, 40], [56, 16], [8, 40]]
    line, kinds = one_line(polygon=bow_tie)
    assert kinds == ["polygon"] and sorted(line.points.tolist()) == sorted(bow_tie)
    points = line.points.astype(float)
    area = abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(points, [*points[1:], points[0]], strict=True))) / 2
    assert area == 48 * 24  # the whole rectangle; the crossed one has none
    bent = [[0, 0], [20, 10], [40, 0], [40, 20], [20, 30], [0, 20]]  # not convex, and nothing is wrong with it
    line, kinds = one_line(polygon=bent)
    assert kinds == [] and line.points.tolist() == bent


def test_a_polygon_of_many_points_takes_no_time():
    """Its hull stands for it. The time grew with the square of the points: 24 s for these."""
    turns = np.linspace(0, 2 * np.pi, 5000, endpoint=False)
    wheel = (1000 + np.stack([np.cos(turns), np.sin(turns)], 1) * (800 - 300 * (np.arange(5000) % 2))[:, None]).tolist()
    began = time.process_time()
    line, kinds = one_line(polygon=wheel)
    assert time.process_time() - began < 0.5 and kinds == ["polygon"]
    low, high = line.points.min(0), line.points.max(0)
    assert (low == 200).all() and (high >= 1799).all() and cv2.isContourConvex(line.points)
    rim = (1000 + 800 * np.stack([np.cos(turns), np.sin(turns)], 1))[:: 5000 // MAX_POINTS].tolist()
    assert len(rim) == MAX_POINTS and one_line(polygon=rim)[1] == []


@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "a/../../b.png", "C:\\a.png", "..\\a.png"])
def test_a_name_that_leads_out_of_data_root_is_said(name):
    record, problems = clean(whole() | {"img_name": name}, 0)
    assert record.img_name == name and [p.kind for p in problems] == ["path"]
    assert clean(whole() | {"img_name": "a..b/c.png"}, 0)[1] == []


@pytest.mark.parametrize("text", [None, "", "   ", 5, ["a"], "\t\n", "a\udcffb"])
def test_where_the_text_is_not_known_the_loss_does_not_look(text):
    line, kinds = one_line(text=text)
    assert not line.valid and line.points.tolist() == QUAD and set(kinds) == {"text"}


@pytest.mark.parametrize(
    "text, kept",
    [
        ("two\nlines", "two lines"),
        ("\x00\x1bWord", "Word"),
        ("x" * 10_000, "x" * MAX_TEXT),
        ("a\u2028b", "a b"),
    ],
)
def test_texts_are_mended(text, kept):
    line, kinds = one_line(text=text)
    assert line.valid and line.text == kept and kinds == ["text"]


@pytest.mark.parametrize(
    "color",
    [
        [1, 2],
        [1, 2, 3, 4],
        [0, 0, 256],
        [-1, 0, 0],
        "red",
        [1, 2, float("nan")],
        ["1", 2, 3],
    ],
)
def test_colours_out_of_range_are_unspecified(color):
    line, kinds = one_line(color=color)
    assert line.color is None and line.valid and kinds == ["color"]


def test_unspecified_colours_are_no_problem():
    assert one_line(color=[500, 500, 500])[0].color is None and one_line(color=[500, 500, 500])[1] == []


@pytest.mark.parametrize("value", ["false", 0, 1, []])
def test_valid_that_is_neither_is_not_learned(value):
    line, kinds = one_line(valid=value)
    assert not line.valid and kinds == ["valid"]


@pytest.mark.parametrize(
    "text, language",
    [
        ("Word", "Latin"),
        ("汉语", "Chinese_sim"),
        ("漢語", "Chinese_tra"),
        ("ひらがな", "Japanese"),
        ("한글", "Korean"),
        ("كلمة", "Arabic"),
        ("শব্দ", "Bangla"),
        ("शब्द", "Hindi"),
        ("???", "Latin"),
    ],
)
def test_languages(text, language):
    assert script_language(text) == language
    line, kinds = one_line(text=text, language="Klingon")
    assert line.language == language and kinds == ["language"]
    if language.startswith("Chinese"):
        assert one_line(text=text, language="Chinese") == (
            line.__class__(line.polygon, text, language, True, (1, 2, 3)),
            [],
        )


def test_caption_and_score():
    record, problems = clean(whole() | {"caption": "a\udcff\nb", "wm_score": float("nan")}, 0)
    assert record.caption == "a b" and record.wm_score is None
    assert [p.kind for p in problems] == ["caption", "caption", "wm_score"]
    for score in (10**400, float("inf"), True, [0.1]):
        record, problems = clean(whole() | {"wm_score": score}, 0)
        assert record.wm_score is None and [p.kind for p in problems] == ["wm_score"]
    record, problems = clean(whole() | {"caption": 5, "wm_score": "0.3"}, 0)
    assert record.caption == "" and record.wm_score is None and len(problems) == 2


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["img_name", "annotations", "polygon", "text", "color", "valid", "x"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(json_values, st.dictionaries(st.sampled_from(list(whole()["annotations"][0])), json_values))
def test_anything_becomes_a_record_or_a_reason(anything, fields):
    """Whatever a JSON can hold: no exception, and what comes out is of the stated kind."""
    for raw in (anything, changed(**fields)):
        record, problems = clean(raw, 1)
        assert record is not None or problems
        for line in record.annotations if record else ():
            assert len(line.polygon) >= 6 and all(type(c) is int and abs(c) <= 30_000 for c in line.polygon)
            assert line.language in LANGUAGES and type(line.valid) is bool
            assert not line.valid or (line.text.strip() and len(line.text) <= MAX_TEXT and line.text.encode())
            assert line.color is None or all(type(c) is int and 0 <= c <= 255 for c in line.color)


# -- a whole file of damage -------------------------------------------------------------------------------


def _line(text, key, value):
    """The JSON text of a record with one field of its annotation written as given."""
    record = json.loads(text)
    record["annotations"][0][key] = "\1"
    return json.dumps(record).encode().replace(b'"\\u0001"', value)


MUTATIONS = {  # kind of problem, what becomes of the record's text
    "missing picture": ("picture", lambda t, r: t.replace("ok.png", f"gone{r.randrange(99)}.png").encode()),
    "truncated picture": ("picture", lambda t, r: t.replace("ok.png", "half.jpg").encode()),
    "two points": ("polygon", lambda t, r: _line(t, "polygon", b"[[1, 1], [9, 9]]")),
    "nan": ("polygon", lambda t, r: _line(t, "polygon", b"[[1, 1], [NaN, 9], [9, 30]]")),
    "self-crossing": ("polygon", lambda t, r: _line(t, "polygon", b"[[8, 16], [56, 40], [56, 16], [8, 40]]")),
    "outside": ("outside", lambda t, r: _line(t, "polygon", b"[[108, 16], [156, 16], [156, 40], [108, 40]]")),
    "empty text": ("text", lambda t, r: _line(t, "text", b'""')),
    "long text": ("text", lambda t, r: _line(t, "text", b'"%s"' % (b"Word" * 2500))),
    "control characters": ("text", lambda t, r: _line(t, "text", b'"Wo\x01\x1b\nrd"')),
    "unknown language": ("language", lambda t, r: _line(t, "language", b'"Klingon"')),
    "wrong type": (None, lambda t, r: _line(t, *r.choice([("text", b"5"), ("color", b'"red"'), ("polygon", b"{}")]))),
    "number without end": (
        "wm_score",
        lambda t, r: t.replace('"wm_score": 0.1', f'"wm_score": {"9" * r.choice([400, 5000])}').encode(),
    ),
    "many points": ("polygon", lambda t, r: _line(t, "polygon", json.dumps(QUAD * 1250).encode())),
    "out of data_root": ("path", lambda t, r: t.replace("ok.png", "../x/ok.png").encode()),
    "no object": ("record", lambda t, r: r.choice([b"5", b"null", b'"x"', b"[]"])),
    "duplicate key": ("duplicate key", lambda t, r: t.replace("{", '{"img_name": "other.png", ', 1).encode()),
    "not UTF-8": ("text", lambda t, r: _line(t, "text", b'"W\xff\xfeord"')),
    "colour out of range": ("color", lambda t, r: _line(t, "color", b"[0, 300, 0]")),
    "no glyph": ("glyph", lambda t, r: _line(t, "text", '"字"'.encode())),
}


WHOLE_EVERY = 8


def damaged_file(folder, count, seed=0):
    """A JSON of `count` damaged records, every eighth followed by a whole one; how each was damaged, None: whole."""
    draw, done, written = random.Random(seed), [], []
    Image.new("RGB", (64, 64), (200, 60, 60)).save(folder / "ok.png")
    Image.new("RGB", (64, 64), (200, 60, 60)).save(folder / "half.jpg")
    picture = (folder / "half.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(picture[: len(picture) * 2 // 3])
    for number in range(count):
        name = draw.choice(list(MUTATIONS))
        done.append(name)
        written.append(MUTATIONS[name][1](json.dumps(whole(number)), draw))
        if number % WHOLE_EVERY == 0:
            done.append(None)
            written.append(json.dumps(whole(number)).encode())
    path = folder / "data.json"
    path.write_bytes(b'{"data_root": ".", "data_list": [\n' + b",\n".join(written) + b"\n]}")
    return path, done


def test_a_thousand_damaged_records_stop_nothing_and_each_is_named(tmp_path):
    path, done = damaged_file(tmp_path, 1000)
    rules = ReadingRules(image_size=64, max_lines=2, caption_words=0, hint_share=0)
    dataset = AnyWordDataset(path, rules=rules)
    index = dataset.indices[0]
    named = {(problem.number, problem.kind) for problem in index.problems()}
    assert sum(index.about.problems.values()) == len(index.problems())
    items, reported = [], []
    for place in range(len(dataset)):
        item = dataset[place]
        reported += item["problems"]
        items.append({k: v for k, v in item.items() if place < 32 or k == "n_lines"})
    for kind in ("picture", "outside", "glyph"):
        for sentence in reported:
            if f", {kind}: " in sentence:
                named.add((int(sentence.split(", record ")[1].split(",")[0]), kind))
    validate(expand(collate(items[:32])))
    counted = Counter()
    for number, name in enumerate(done):
        kinds = {kind for place, kind in named if place == number}
        counted[name] += 1
        if name is None:
            assert not kinds
        else:
            expected = MUTATIONS[name][0]
            assert kinds and (expected is None or expected in kinds), f"record {number}: {name} became {kinds}"
    assert counted[None] == 1000 // WHOLE_EVERY and len(counted) == len(MUTATIONS) + 1
    assert len(dataset) == len(done) - counted["no object"]


def test_a_last_line_without_room_leaves_its_slot_empty(tmp_path):
    Image.new("RGB", (512, 512)).save(tmp_path / "ok.png")
    lines = [
        {"polygon": [[10, 10], [300, 10], [300, 90], [10, 90]], "text": "HELLO"},
        {"polygon": [[10, 200], [310, 200], [310, 201], [10, 201]], "text": "flat"},
    ]
    record = {"img_name": "ok.png", "caption": "a wall", "annotations": lines}
    (tmp_path / "data.json").write_text(json.dumps({"data_root": ".", "data_list": [record]}))
    item = AnyWordDataset(tmp_path / "data.json", rules=ReadingRules())[0]
    assert item["texts"] == ["HELLO"] and ", glyph: " in item["problems"][0]
    validate(expand(collate([item])))


def test_strict_stops_at_the_first(tmp_path):
    for name, (kind, damage) in MUTATIONS.items():
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        damaged_file(folder, 0)
        records = [json.dumps(whole()).encode(), damage(json.dumps(whole()), random.Random(0))]
        path = folder / "data.json"
        path.write_bytes(b'{"data_root": ".", "data_list": [' + b", ".join(records) + b"]}")
        with pytest.raises(BadRecord, match=f"data.json, record 1, {kind or ''}"):
            dataset = AnyWordDataset(path, rules=ReadingRules(image_size=64), strict=True)
            _ = [dataset[place] for place in range(2)]
        assert open_index(path)[0].caption == "picture 0"  # and read leniently afterwards
