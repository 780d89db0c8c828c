"""AnyText-benchmark: a small set in its layout, made here, drawn and read as the large one would be."""

import json
import math
import random
from dataclasses import replace

import cv2
import numpy as np
import pytest
from micro_network import SIDE, micro_config, micro_network
from omegaconf import OmegaConf
from PIL import Image

from anytext_lcm import benchmark
from anytext_lcm.adapter.lora import adapter_state, attach, save_adapter
from anytext_lcm.data.batch import TEXT_PHRASES
from anytext_lcm.judging import benchmark_run, benchmark_set, reading
from anytext_lcm.judging.benchmark_lines import ENGLISH, is_chinese, upstream_crop, upstream_ned
from anytext_lcm.judging.benchmark_pictures import check_scoring
from anytext_lcm.judging.benchmark_score import kinds_of_lines, score_pictures, summarise
from anytext_lcm.judging.benchmark_set import make_batch, polygons_of, read_tasks
from anytext_lcm.model.networks import EMBEDDED_CONFIG, FULL_CONFIG


def square(left, top, width=400, height=120):
    return [[left, top], [left + width, top], [left + width, top + height], [left, top + height]]


RECORDS = [
    {
        "img_name": "000000001.jpg",
        "caption": "a sign that says * on a wall",
        "annotations": [
            {"polygon": square(40, 40), "text": "HELLO", "valid": True, "language": "Latin"},
            {"polygon": square(40, 300), "text": "world", "valid": True},
        ],
    },
    {
        "img_name": "000000002.b.jpg",
        "caption": "a poster",
        "annotations": [
            {"polygon": square(60, 100), "text": "A text of far more than twenty characters", "valid": True},
            {"polygon": square(60, 300), "text": "###", "valid": False},
            {"polygon": square(4, 480, 10, 4), "text": "tiny", "valid": True},
        ],
    },
    {"img_name": "000000003.jpg", "caption": "a picture without text", "annotations": []},
    {"img_name": "000000004.jpg", "caption": "a picture without annotations"},
]


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "laion_word"
    folder.mkdir()
    path = folder / "test1k.json"
    path.write_text(json.dumps({"data_root": "/nowhere", "data_list": RECORDS}), encoding="utf-8")
    return path


def test_reading(data):
    one, two, three, four = read_tasks(data)
    assert (one.name, two.name, three.name) == ("000000001", "000000002", "000000003")
    assert [text for text, _ in one.lines] == ["HELLO", "world"] and "*" not in one.caption
    assert [text for text, _ in two.lines] == ["A text of far more t", "tiny"]
    assert three.lines == ((" ", ((0, 0), (0, 50), (50, 50), (50, 0))),) and four.lines == ()  # as upstream counts
    assert len(read_tasks(data, limit=1)) == 1
    assert np.array_equal(polygons_of(one, (64, 128))[0], np.rint(np.array(square(40, 40)) * [0.25, 0.125]))


def test_prompts_written_are_read_the_same(data, tmp_path):
    tasks = read_tasks(data)
    benchmark_set.write_prompts(tmp_path / "prompts.json", tasks)
    assert read_tasks(tmp_path / "prompts.json") == tasks and tasks[3].lines == ()


def test_what_is_asked_for(data):
    one, two, three, four = read_tasks(data)
    batch = make_batch(one, (512, 512), 4, "DejaVuSans.ttf", hint=True)
    assert batch["img_caption"] == ["a sign that says   on a wall, best quality, extremely detailed"] * 4
    assert batch["n_lines"].tolist() == [2] * 4 and batch["font_hint"].any()
    assert (batch["masked_img"] == -1).all() and (batch["color"] == 500).all()
    small = make_batch(two, (64, 64), 2, "DejaVuSans.ttf", hint=False, words="")
    assert small["texts"][0] == ["A text of far more t"] and not small["font_hint"].any()
    assert small["img_caption"] == ["a poster"] * 2
    for task in (three, four):
        assert make_batch(task, (512, 512), 1, "DejaVuSans.ttf", True)["texts"] == [[" "]]


def test_the_phrase_is_upstreams_of_every_prompt_but_the_first(data):
    """It seeds Python's generator with 100 while it draws a prompt; the phrase is the next prompt's first draw."""
    generator = random.Random(100)
    phrase = generator.choice(TEXT_PHRASES)
    [caption] = make_batch(read_tasks(data)[0], (512, 512), 1, "DejaVuSans.ttf", hint=True)["text_caption"]
    assert caption == f"{phrase}* , * . "


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data_list": []}, "no prompt"),
        ({"data_list": [RECORDS[0], RECORDS[0]]}, "several prompts named"),
        ({"data_list": [{"caption": "x"}]}, "record 0, img_name: it is missing"),
        ({"data_list": [5]}, "record 0: it is 5"),
        ({"data_list": [RECORDS[2]]}, "no prompt with a line"),
    ],
)
def test_other_files(data, change, words):
    data.write_text(json.dumps(change))
    with pytest.raises(ValueError, match=words):
        read_tasks(data)


def test_a_font_that_lacks_the_letters(data):
    tasks = read_tasks(data)
    assert benchmark_set.check_font(tasks, "DejaVuSans.ttf") == 0
    chinese = [benchmark_set.Task("x", "c", (("你好", tasks[0].lines[0][1]),))]
    with pytest.raises(ValueError, match="cannot write 1 of 1"):
        benchmark_set.check_font(chinese, "DejaVuSans.ttf")
    assert benchmark_set.check_font(chinese + tasks * 5, "DejaVuSans.ttf") == 1


def test_upstreams_measures():
    assert upstream_ned("cat", "cat") == 1 and upstream_ned("cat", "") < 1e-5
    assert upstream_ned("Cat", "cat") == pytest.approx(2 / 3, abs=1e-5)  # case counts, as upstream
    assert upstream_ned("caf\u00e9", "caf\u4f60", ENGLISH) == 1  # what its dictionary lacks is one and the same
    assert upstream_ned("caf\u00e9", "caf\u4f60") == pytest.approx(3 / 4, abs=1e-5)
    assert len(ENGLISH) == 95 and {"a", "Z", "0", "~", " "} <= ENGLISH and "\u00e9" not in ENGLISH
    assert is_chinese(["\u4f60\u597d", "\u5c0f 3", "OPEN"]) and not is_chinese(["OPEN", "\u4f60"])


def by_similarity(image, polygon):
    """Upstream's crop in other tools: OpenCV's similarity of the rectangle's integer corners, then its resize."""
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.fillPoly(mask, [polygon], 255)
    [contour], _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    corners = np.trunc(cv2.boxPoints(cv2.minAreaRect(contour)))
    corners = corners[np.lexsort((corners[:, 1], corners[:, 0]))]
    (tl, bl), (tr, br) = (sorted(pair.tolist(), key=lambda p: p[1]) for pair in (corners[:2], corners[2:]))
    width = int(max(np.hypot(*np.subtract(tl, tr)), np.hypot(*np.subtract(bl, br))))
    height = int(max(np.hypot(*np.subtract(tl, bl)), np.hypot(*np.subtract(tr, br))))
    matrix = cv2.getAffineTransform(np.float32([tl, tr, bl]), np.float32([[0, 0], [width, 0], [0, height]]))
    crop = cv2.warpAffine(image, matrix, (width, height))
    if height > 1.2 * width:
        crop = np.rot90(crop)
    wide = min(320, math.ceil(48 * crop.shape[1] / crop.shape[0]))
    return cv2.resize(crop, (wide, 48), interpolation=cv2.INTER_LINEAR)


@pytest.mark.parametrize(
    "polygon",
    [
        square(40, 100, 300, 60),
        square(100, 40, 60, 300),
        square(200, 200, 50, 55),
        [[60, 80], [360, 140], [350, 190], [50, 130]],
    ],
    ids=["wide", "high", "square", "turned"],
)
def test_lines_are_cut_out_as_upstream_does(polygon):
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (512, 512, 3)).astype(np.uint8), (0, 0), 6)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
    polygon = np.array(polygon, np.int32)
    crop, expected = upstream_crop(image, polygon), by_similarity(image, polygon)
    assert crop.shape == (48, 320, 3) and crop.dtype == np.float32
    wide = expected.shape[1]
    assert not crop[:, wide + 1 :].any()  # the rest is black, there is no margin
    inside = np.abs(crop[2:-2, 2 : wide - 2] - expected[2:-2, 2 : wide - 2])
    assert inside.mean() < 4  # levels; half a pixel is off where upstream divides by the width instead of width - 1


def test_the_published_figures_stand_beside_the_whole_set_by_anytext2_alone(data, tmp_path):
    tasks = [replace(read_tasks(data)[0], name=str(i)) for i in range(1000)]
    chinese = [replace(task, lines=tuple(("\u4f60\u597d", box) for _, box in task.lines)) for task in tasks]
    assert benchmark_run.published(tasks, FULL_CONFIG, 4)["name"] == "AnyText2, English"
    assert benchmark_run.published(chinese, FULL_CONFIG, 4)["accuracy"] == 0.7250
    for other in ((tasks[:10], FULL_CONFIG, 4), (tasks, EMBEDDED_CONFIG, 4), (tasks, FULL_CONFIG, 1)):
        assert benchmark_run.published(*other) is None
    yaml = OmegaConf.load(FULL_CONFIG)
    yaml.model.params.cond_stage_config.params.version = "elsewhere"
    OmegaConf.save(yaml, tmp_path / "mine.yaml")
    assert benchmark_run.published(tasks, tmp_path / "mine.yaml", 4)
    yaml.model.params.unet_config.params.model_channels = 192
    OmegaConf.save(yaml, tmp_path / "mine.yaml")
    assert benchmark_run.published(tasks, tmp_path / "mine.yaml", 4) is None


def test_the_negative_prompt_is_that_of_upstreams_evaluation(command, monkeypatch):
    plans = []
    monkeypatch.setattr("anytext_lcm.checks.network.require_network", lambda *_: None)  # no weights of full size here
    monkeypatch.setattr(benchmark_run, "check_plan", lambda plan, limit: plans.append(plan) or 1 / 0)
    for config in (FULL_CONFIG, EMBEDDED_CONFIG):
        with pytest.raises(ZeroDivisionError):
            benchmark.work(benchmark.build_parser().parse_args([*command, "--config", str(config)]))
    assert plans[0].negative_prompt.startswith("longbody, lowres") and plans[1].negative_prompt == ""


def test_scores_of_real_text(tmp_path, data):
    """Pictures with the text drawn into them are read, empty ones are not. A prompt whose annotations are none counts
    as one line that nobody reads, one without annotations does not count."""
    tasks = read_tasks(data)
    for kind in ("good", "bad"):
        (tmp_path / kind).mkdir()
        for task in tasks:
            image = np.full((512, 512, 3), 255, np.uint8)
            if kind == "good" and task is not tasks[3]:
                image[make_batch(task, (512, 512), 1, "DejaVuSans.ttf", False)["glyphs"][0].amax(0).numpy() > 60] = 0
            for path in benchmark_set.picture_paths(tmp_path / kind, task, 2):
                Image.fromarray(image).save(path)
    scoring = check_scoring(tasks, {kind: tmp_path / kind for kind in ("good", "bad")}, 2, "good")
    reader = reading.LineReader(1)
    scores = {name: score_pictures(reader, tasks, found.paths, (512, 512)) for name, found in scoring.found.items()}
    good, bad = (scores[kind].lines for kind in ("good", "bad"))
    assert len(good["exact"]) == 2 * 5 and sorted(set(good["group"])) == [0, 1, 2]
    assert not good["exact"][good["group"] == 2].any()
    assert good["correct"].mean() >= 0.4 and good["ned"].mean() > 0.5 and bad["ned"].mean() < 0.2
    rows = summarise(scores, "good", kinds_of_lines(tasks, 2), 2)
    assert rows["good"]["retention"]["value"] == 1 and rows["bad"]["retention"]["value"] == 0
    alone = summarise({"bad": scores["bad"]}, None, {}, 2)["bad"]
    assert "retention" not in alone and "difference" not in alone


@pytest.fixture
def command(data, teacher, tmp_path):
    config = micro_config()
    config.model.defaults = {"checkpoint": str(teacher / "micro.safetensors")}
    OmegaConf.save(config, tmp_path / "micro.yaml")
    adapter = save_adapter(attach(micro_network(), 2, 2), tmp_path / "adapter")
    words = ["--data", data, "--config", tmp_path / "micro.yaml", "--adapter", adapter, "--output", tmp_path / "out"]
    return [str(word) for word in (*words, "--methods", "teacher-2", "student-1")]


def test_the_whole_way(command, tmp_path, capsys):
    assert benchmark.main(command) == 0
    printed = capsys.readouterr().out
    assert "0.8175" not in printed and "ModelScope" in printed and "own noise" in printed and "FID" in printed
    for method in ("teacher-2", "student-1"):
        names = sorted(path.name for path in (tmp_path / "out" / method).iterdir())
        assert names == sorted([*(f"00000000{i}_{k}.jpg" for i in (1, 2, 3, 4) for k in range(4)), "settings.json"])
        with Image.open(tmp_path / "out" / method / names[0]) as picture:
            assert picture.size == (SIDE, SIDE)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["prompts"], report["lines"], report["samples"]) == (4, 5, 4)
    assert report["reference"] == "teacher-2" and report["methods"]["student-1"]["exact"]["n"] == 3
    assert report["published"] is None
    first = tmp_path / "out" / "student-1" / "000000001_0.jpg"
    before, missing = first.stat().st_mtime_ns, tmp_path / "out" / "student-1" / "000000002_3.jpg"
    picture = missing.read_bytes()
    missing.unlink()
    assert benchmark.main(command) == 0  # goes on: what is there stays, what is not is drawn, and alike
    assert first.stat().st_mtime_ns == before and missing.read_bytes() == picture
    assert benchmark.main([*command, "--seed", "5"]) == 2
    assert "other settings" in capsys.readouterr().err


def written(folder):
    """When each method's pictures and settings were written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/*")}


def test_another_set_of_the_same_name_is_not_scored_by_the_first_ones_pictures(command, data, tmp_path, capsys):
    assert benchmark.main([*command, "--samples", "1"]) == 0
    before = written(tmp_path / "out")
    other = tmp_path / "wukong_word" / data.name
    other.parent.mkdir()
    other.write_text(data.read_text().replace("HELLO", "WORLD"))
    capsys.readouterr()
    assert benchmark.main([*command, "--samples", "1", "--data", str(other)]) == 2
    error = capsys.readouterr().err
    assert "other settings (data)" in error and error.count("\n") == 1 and written(tmp_path / "out") == before
    same = tmp_path / "copy.json"
    same.write_bytes(data.read_bytes())
    assert benchmark.main([*command, "--samples", "1", "--data", str(same)]) == 0
    assert written(tmp_path / "out") == before


def test_an_adapter_replaced_in_its_place_counts_as_another(command, tmp_path, capsys, monkeypatch):
    assert benchmark.main([*command, "--samples", "1"]) == 0
    before = written(tmp_path / "out")
    trained = attach(micro_network(), 2, 2)
    for parameter in adapter_state(trained).values():
        parameter.data += 0.1
    save_adapter(trained, tmp_path / "adapter")
    capsys.readouterr()
    assert benchmark.main([*command, "--samples", "1"]) == 2
    assert "student-1 holds pictures of other settings (adapter)" in capsys.readouterr().err
    # A folder of another method that would come first is not begun either.
    assert benchmark.main([*command, "--samples", "1", "--methods", "untrained-1", "student-1"]) == 2
    assert written(tmp_path / "out") == before
    # The teacher's pictures do not depend on it: nothing is drawn again.
    monkeypatch.setattr(benchmark_set, "draw_prepared", None)
    assert benchmark.main([*command, "--samples", "1", "--methods", "teacher-2"]) == 0
    assert benchmark.main([*command, "--samples", "1", "--methods", "teacher-2", "--adapter", "none"]) == 0
    assert written(tmp_path / "out") == before


def test_checkpoints_are_told_apart_by_their_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_set, "END", 4)
    (tmp_path / "a").write_bytes(b"abcd" + bytes(20) + b"wxyz")
    found = benchmark_set.content_of(tmp_path / "a", ends=True)
    for content in (b"Abcd" + bytes(20) + b"wxyz", b"abcd" + bytes(20) + b"wxyZ", b"abcd" + bytes(19) + b"wxyz"):
        (tmp_path / "b").write_bytes(content)
        assert benchmark_set.content_of(tmp_path / "b", ends=True) != found
    (tmp_path / "b").write_bytes((tmp_path / "a").read_bytes())
    assert benchmark_set.content_of(tmp_path / "b", ends=True) == found and found.startswith("28 bytes")
    (tmp_path / "b").write_bytes(b"abcd" + bytes(19) + b"\1wxyz")
    assert benchmark_set.content_of(tmp_path / "b") != benchmark_set.content_of(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="check its name"):
        benchmark_set.content_of(tmp_path / "c")


def test_a_note_that_cannot_be_read(command, tmp_path, capsys):
    note = tmp_path / "out" / "teacher-2" / "settings.json"
    note.parent.mkdir(parents=True)
    for text in ("{", "[]", "{}"):
        note.write_text(text)
        assert benchmark.main(command) == 2
        error = capsys.readouterr().err
        assert "does not say what its pictures were drawn from" in error and error.count("\n") == 1
