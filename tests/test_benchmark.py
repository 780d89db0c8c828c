"""AnyText-benchmark: a small set in its layout, made here, drawn and read as the large one would be."""

import json

import numpy as np
import pytest
from micro_network import SIDE, micro_config, micro_network
from omegaconf import OmegaConf
from PIL import Image

from anytext_lcm import benchmark
from anytext_lcm.adapter.lora import adapter_state, attach, save_adapter
from anytext_lcm.judging import benchmark_set, reading
from anytext_lcm.judging.benchmark_set import make_batch, polygons_of, read_tasks


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
]


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "laion_word"
    folder.mkdir()
    path = folder / "test1k.json"
    path.write_text(json.dumps({"data_root": "/nowhere", "data_list": RECORDS}), encoding="utf-8")
    return path


def test_reading(data):
    one, two, three = read_tasks(data)
    assert (one.name, two.name, three.name) == ("000000001", "000000002", "000000003")
    assert [text for text, _ in one.lines] == ["HELLO", "world"] and "*" not in one.caption
    assert [text for text, _ in two.lines] == ["A text of far more t", "tiny"] and three.lines == ()
    assert len(read_tasks(data, limit=1)) == 1
    assert np.array_equal(polygons_of(one, (64, 128))[0], np.rint(np.array(square(40, 40)) * [0.25, 0.125]))


def test_what_is_asked_for(data):
    one, two, three = read_tasks(data)
    batch = make_batch(one, (512, 512), 4, "DejaVuSans.ttf", hint=True)
    assert batch["img_caption"] == ["a sign that says   on a wall, best quality, extremely detailed"] * 4
    assert batch["n_lines"].tolist() == [2] * 4 and batch["font_hint"].any()
    assert (batch["masked_img"] == -1).all() and (batch["color"] == 500).all()
    small = make_batch(two, (64, 64), 2, "DejaVuSans.ttf", hint=False, words="")
    assert small["texts"][0] == ["A text of far more t"] and not small["font_hint"].any()
    assert small["img_caption"] == ["a poster"] * 2
    assert make_batch(three, (512, 512), 1, "DejaVuSans.ttf", True)["texts"] == [[" "]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data_list": []}, "no prompt"),
        ({"data_list": [RECORDS[0], RECORDS[0]]}, "several prompts named"),
        ({"data_list": [{"caption": "x"}]}, "record 0"),
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
    assert benchmark_set.upstream_ned("cat", "cat") == 1 and benchmark_set.upstream_ned("cat", "") < 1e-5
    assert benchmark_set.upstream_ned("Cat", "cat") == pytest.approx(2 / 3, abs=1e-5)  # case counts, as upstream


def test_scores_of_real_text(tmp_path, data):
    """Pictures with the text drawn into them are read, empty ones are not, and prompts without text do not count."""
    tasks = read_tasks(data)
    for kind in ("good", "bad"):
        (tmp_path / kind).mkdir()
        for task in tasks:
            image = np.full((512, 512, 3), 255, np.uint8)
            if kind == "good" and task.lines:
                image[make_batch(task, (512, 512), 1, "DejaVuSans.ttf", False)["glyphs"][0].amax(0).numpy() > 60] = 0
            for path in benchmark_set.picture_paths(tmp_path / kind, task, 2):
                Image.fromarray(image).save(path)
    reader = reading.LineReader(1)
    good, bad = (benchmark_set.score_tasks(reader, tasks, tmp_path / kind, 2, (512, 512)) for kind in ("good", "bad"))
    assert len(good["exact"]) == 2 * 4 and sorted(set(good["group"])) == [0, 1]
    assert good["correct"].mean() >= 0.5 and good["ned"].mean() > 0.5 and bad["ned"].mean() < 0.2
    rows = benchmark_set.summarise({"teacher-20": good, "student-4": bad}, "teacher-20")
    assert rows["teacher-20"]["retention"]["value"] == 1 and rows["student-4"]["retention"]["value"] == 0
    assert "retention" not in benchmark_set.summarise({"student-4": bad}, None)["student-4"]
    with pytest.raises(ValueError, match="not 64 x 64"):
        benchmark_set.score_tasks(reader, tasks, tmp_path / "bad", 2, (64, 64))


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
    assert "AnyText2, English" in printed and "0.8175" in printed and "ModelScope" in printed and "FID" in printed
    for method in ("teacher-2", "student-1"):
        names = sorted(path.name for path in (tmp_path / "out" / method).iterdir())
        assert names == sorted([*(f"00000000{i}_{k}.jpg" for i in (1, 2, 3) for k in range(4)), "settings.json"])
        with Image.open(tmp_path / "out" / method / names[0]) as picture:
            assert picture.size == (SIDE, SIDE)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["prompts"], report["lines"], report["samples"]) == (3, 4, 4)
    assert report["reference"] == "teacher-2" and report["methods"]["student-1"]["exact"]["n"] == 2
    first = tmp_path / "out" / "student-1" / "000000001_0.jpg"
    before, missing = first.stat().st_mtime_ns, tmp_path / "out" / "student-1" / "000000002_3.jpg"
    picture = missing.read_bytes()
    missing.unlink()
    assert benchmark.main(command) == 0  # goes on: what is there stays, what is not is drawn, and alike
    assert first.stat().st_mtime_ns == before and missing.read_bytes() == picture
    assert benchmark.main([*command, "--seed", "5"]) == 2
    assert "other settings" in capsys.readouterr().err


def written(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "report.json"}


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
