"""The yardstick: pictures of any model, scored by `benchmark --pictures`."""

import json
import random
import shutil

import numpy as np
import pytest
from micro_network import micro_config
from omegaconf import OmegaConf
from PIL import Image, ImageDraw, ImageFont

from anytext_lcm import benchmark
from anytext_lcm.data.fonts import PLAIN_FONT, font_path
from anytext_lcm.data.words import WORDS
from anytext_lcm.judging import benchmark_report, benchmark_score
from anytext_lcm.judging.benchmark_pictures import MOST_COMPARED, Found, Scoring, check_scoring, find_pictures
from anytext_lcm.judging.benchmark_set import PANEL_PROMPTS, Task, read_tasks, write_prompts
from anytext_lcm.judging.defaults import PANEL
from anytext_lcm.judging.judge import unseen_scenes

BOX = ((56, 180), (456, 180), (456, 300), (56, 300))
COUNT = 20  # prompts, of one line each


def swapped(word):
    """The word with two letters beside each other in the other order, so that it says something else."""
    place = next(i for i in range(len(word) - 1) if word[i] != word[i + 1])
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def lettered(words, folder, side=512, ending="png", samples=1):
    """Black words on white, drawn by Pillow at the prompts' places, named as upstream does."""
    folder.mkdir(parents=True)
    font = ImageFont.truetype(str(font_path(PLAIN_FONT)), 90)
    for name, word in words.items():
        picture = Image.new("RGB", (512, 512), "white")
        ImageDraw.Draw(picture).text((256, 240), word, font=font, fill="black", anchor="mm")
        for k in range(samples):
            picture.resize((side, side), Image.Resampling.LANCZOS).save(folder / f"{name}_{k}.{ending}")
    return folder


@pytest.fixture(scope="module")
def words():
    """Words whose letters a reader tells apart, by the prompt's name."""
    chosen = [word for word in WORDS if len(word) == 5 and not set(word) & set("ijlt")]
    return {f"{i:09d}": word.upper() for i, word in enumerate(random.Random(1).sample(chosen, COUNT))}


@pytest.fixture(scope="module")
def data(words, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "test1k.json"
    write_prompts(path, [Task(name, f"a sign that says {word}", ((word, BOX),)) for name, word in words.items()])
    return path


@pytest.fixture(scope="module")
def good(words, tmp_path_factory):
    return lettered(words, tmp_path_factory.mktemp("good") / "pictures")


def score(data, tmp_path, *more):
    """Exit code and report of a run into tmp_path/out."""
    code = benchmark.main(["--data", str(data), "--output", str(tmp_path / "out"), "--samples", "1", *map(str, more)])
    report = tmp_path / "out" / "report.json"
    return code, json.loads(report.read_text(encoding="utf-8")) if report.exists() else None


def test_a_letter_swapped_in_a_tenth_of_the_lines_costs_ten_points(data, words, good, tmp_path):
    every_tenth = {name: swapped(word) if i % 10 == 3 else word for i, (name, word) in enumerate(words.items())}
    bad = lettered(every_tenth, tmp_path / "bad")
    code, report = score(data, tmp_path, "--pictures", f"good={good}", f"bad={bad}", f"again={good}")
    rows = report["methods"]
    assert code == 0 and rows["good"]["exact"]["value"] == 1, rows["good"]["exact"]
    assert rows["bad"]["exact"]["value"] == pytest.approx(0.9)
    lost = rows["bad"]["difference"]["exact"]
    assert lost["value"] == pytest.approx(-0.1) and lost["low"] < -0.1 < lost["high"] <= 0
    # A swap is two edits of five letters in a tenth of the lines.
    assert rows["bad"]["difference"]["ned"]["value"] == pytest.approx(-0.1 * 2 / 5, abs=1e-4)
    for found in rows["again"]["difference"].values():
        assert (found["value"], found["low"], found["high"]) == (0, 0, 0)
    assert rows["again"] | {"difference": 0} == rows["good"] | {"difference": 0}
    assert [found["kind"] for found in rows["good"]["by_script"]] == ["Latin"]
    assert [(found["kind"], found["lines"]) for found in rows["good"]["by_length"]] == [("5 to 8", COUNT)]
    assert [found["kind"] for found in rows["good"]["by_height"]] == ["96 to 128"]


def test_the_folder_of_a_report(data, good, tmp_path, capsys):
    code, report = score(data, tmp_path, "--pictures", f"mine={good}", "--limit", "12")
    printed, table = capsys.readouterr().out, (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "chart.png",
        "grid.png",
        "report.json",
        "table.md",
    ]
    assert code == 0 and report["prompts"] == 12 and report["published"] is None and report["real"] is None
    assert "compare it with the row of the real pictures. A grid below one level is not seen." in printed
    assert "12 prompts, 12 lines, 1 pictures a prompt" in printed and "upstream draws" not in printed
    assert (
        "| mine | 1.0000 [1.000, 1.000] |" in table
        and " -0.0" not in table
        and "### Sentence accuracy by script" in table
    )
    assert report["settings"]["pictures"] == {"mine": str(good)}
    with Image.open(tmp_path / "out" / "grid.png") as sheet:
        assert sheet.width > 256 and sheet.height > 8 * 256


def test_every_name_stands_in_the_charts_legend():
    found = {"kind": "x", "lines": 9, "value": 0.5, "low": 0.4, "high": 0.6}
    row = {f"by_{kind}": [found] for kind in ("height", "length", "script")}
    [legend] = benchmark_report.chart({"methods": dict.fromkeys(("mine", "_x", "a.b"), row)}).legends
    assert [text.get_text() for text in legend.get_texts()] == ["mine", "_x", "a.b"]
    assert len(legend.legend_handles) == 3


def test_a_report_that_fails_leaves_the_earlier_one_whole(data, good, tmp_path, capsys, monkeypatch):
    def files():
        return {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    assert score(data, tmp_path, "--pictures", f"mine={good}", "--limit", "2")[0] == 0
    before = files()
    for name in ("chart", "sheet"):
        with monkeypatch.context() as patch:
            patch.setattr(benchmark_report, name, lambda *_: float("no number"))  # ValueError
            assert score(data, tmp_path, "--pictures", f"mine={good}", "--limit", "3")[0] == 2
        assert files() == before
    report = json.loads(before["report.json"]) | {"prompts": float("nan")}
    with pytest.raises(ValueError, match="JSON"):
        benchmark_report.write_benchmark(tmp_path / "new", report, None)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("limit", "samples"), [(1, 8), (7, 1)])
def test_too_few_pictures_for_a_distance_are_scored_without(data, words, tmp_path, limit, samples):
    mine = lettered(dict(list(words.items())[:limit]), tmp_path / "mine", samples=samples)
    flags = ["--pictures", f"mine={mine}", "--limit", limit, "--samples", samples, "--real"]
    code, report = score(data, tmp_path, *flags, lettered({f"r{i}": "REAL" for i in range(16)}, tmp_path / "real"))
    assert code == 0 and report["real"] is None and report["methods"]["mine"]["distance"] is None
    assert "No distance to real: that needs 8 drawn pictures of two or more prompts." in report["notes"]


def test_our_own_pictures_score_as_in_the_benchmarks_own_report(data, teacher, tmp_path):
    """Drawn by the smallest network, in its own size; then the folders alone."""
    config = micro_config()
    config.model.defaults = {"checkpoint": str(teacher / "micro.safetensors")}
    OmegaConf.save(config, tmp_path / "micro.yaml")
    drawn = ["--data", str(data), "--limit", "3", "--samples", "2", "--adapter", "none"]
    drawn += ["--methods", "teacher-2", "teacher-1", "--config", str(tmp_path / "micro.yaml")]
    assert benchmark.main([*drawn, "--output", str(tmp_path / "drawn")]) == 0
    folders = [f"{name}={tmp_path / 'drawn' / name}" for name in ("teacher-1", "teacher-2")]
    again = ["--data", str(data), "--limit", "3", "--samples", "2", "--reference", "teacher-2", "--pictures", *folders]
    assert benchmark.main([*again, "--output", str(tmp_path / "again")]) == 0
    first, second = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("drawn", "again"))
    for row in first["methods"].values():
        row.pop("seconds_this_run")
    for key in ("prompts", "lines", "samples", "read_at", "reference", "real", "methods"):
        assert first[key] == second[key], key
    assert first["methods"]["teacher-1"]["ned"]["value"] > 0


def test_missing_pictures_are_counted_and_named(data, good, words, tmp_path, capsys):
    folder = shutil.copytree(good, tmp_path / "some")
    names = list(words)
    for name in names[5:10]:
        (folder / f"{name}_0.png").unlink()
    code, report = score(data, tmp_path, "--pictures", f"good={good}", f"some={folder}")
    error = capsys.readouterr().err
    assert code == 2 and report is None and not (tmp_path / "out").exists()
    assert f"{folder} lacks 5 of 20 pictures ({names[5]}_0.jpg, {names[6]}_0.jpg, {names[7]}_0.jpg, ...)" in error
    assert "--partial" in error and error.count("\n") == 1
    code, report = score(data, tmp_path, "--pictures", f"good={good}", f"some={folder}", "--partial")
    assert code == 0 and report["prompts"] == 15 and report["left_out"] == {"good": 0, "some": 5}
    assert any("some lacks 5 prompts" in note for note in report["notes"])
    assert report["methods"]["good"]["exact"]["n"] == report["methods"]["some"]["exact"]["n"] == 15
    code = benchmark.main(["--data", str(data), "--pictures", f"good={good}"])  # upstream's four a prompt
    assert code == 2 and "say --samples 1, of which all are there," in capsys.readouterr().err


def test_pictures_of_another_size_are_read_at_the_references(data, words, good, tmp_path):
    small = lettered(words, tmp_path / "small", side=256, ending="jpg")
    _, report = score(data, tmp_path, "--pictures", f"good={good}", f"small={small}")
    assert report["read_at"] == [512, 512] and report["methods"]["small"]["resized"] == COUNT
    assert report["methods"]["small"]["exact"]["value"] >= 0.9
    assert f"small: {COUNT} pictures were resized to 512 x 512 before they were read." in report["notes"]
    _, report = score(data, tmp_path, "--pictures", f"good={good}", f"small={small}", "--reference", "small")
    assert report["read_at"] == [256, 256] and report["methods"]["small"]["resized"] == 0


def test_the_grid_is_measured_before_a_picture_is_resized(data, words, good, tmp_path):
    (tmp_path / "grid").mkdir()
    for name in list(words)[:9]:
        with Image.open(good / f"{name}_0.png") as picture:
            pixels = np.asarray(picture.resize((256, 256))).astype(int)
        pixels[::8] -= 20
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "grid" / f"{name}_0.png")
    _, report = score(data, tmp_path, "--pictures", f"good={good}", f"grid={tmp_path / 'grid'}", "--limit", 9)
    rows = report["methods"]
    assert rows["good"]["grid"]["value"] < 0.5 and rows["grid"]["grid"]["low"] > 4
    assert rows["grid"]["difference"]["grid_energy"]["low"] > 16


def test_real_pictures_are_nearest_to_themselves(data, words, good, tmp_path, capsys):
    """Of the words' own drawing, and of noise."""
    real, noise = lettered({f"r{word}": word for word in WORDS[:40]}, tmp_path / "real"), tmp_path / "noise"
    noise.mkdir()
    rng = np.random.default_rng(0)
    for name in words:
        Image.fromarray(rng.integers(0, 256, (512, 512, 3), np.uint8)).save(noise / f"{name}_0.png")
    _, report = score(data, tmp_path, "--pictures", f"good={good}", f"noise={noise}", "--real", real)
    near, far = (report["methods"][name]["distance"]["value"] for name in ("good", "noise"))
    assert far > 10 * max(near, report["real"]["distance"]["value"], 0.01)
    assert report["real"]["pictures"] == 40 and report["settings"]["real"] == str(real)
    (tmp_path / "few").mkdir()
    code, _ = score(data, tmp_path, "--pictures", f"good={good}", "--real", tmp_path / "few")
    assert code == 2 and "holds 0 pictures, and a distance needs 16" in capsys.readouterr().err


def test_the_panel_is_held_out_scenes_and_can_be_drawn_elsewhere(tmp_path, capsys):
    """Its prompts, written and read again, are the same; its own real pictures give the distance."""
    assert benchmark.main(["--write_prompts", str(tmp_path / "prompts.json"), "--limit", "9"]) == 0
    tasks = read_tasks(PANEL, 9)
    assert read_tasks(tmp_path / "prompts.json") == tasks and len(read_tasks(PANEL)) == PANEL_PROMPTS
    scenes = unseen_scenes(9, 20_000, 128)
    for index, task in enumerate(tasks):
        item = scenes[index]
        assert [text for text, _ in task.lines] == item["texts"] and task.caption == item["img_caption"]
        assert np.array_equal(np.array(task.lines[0][1]) / 4, item["condition_polygons"][0])
        (tmp_path / "own").mkdir(exist_ok=True)
        Image.fromarray(scenes.scene(index).image).save(tmp_path / "own" / f"{task.name}_0.png")
        (tmp_path / "grey").mkdir(exist_ok=True)
        Image.new("RGB", (128, 128), "grey").save(tmp_path / "grey" / f"{task.name}_0.png")
    folders = [f"own={tmp_path / 'own'}", f"grey={tmp_path / 'grey'}"]
    words = ["--pictures", *folders, "--limit", "9", "--samples", "1"]
    assert benchmark.main([*words, "--output", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["read_at"] == [128, 128] and report["settings"]["real"] == PANEL
    near, far = (report["methods"][name]["distance"]["value"] for name in ("own", "grey"))
    assert report["real"]["pictures"] == 18 and near < far / 3
    assert report["methods"]["own"]["correct"]["value"] > 0.7


def test_writing_prompts_takes_no_other_flags_and_spares_its_input(data, tmp_path, capsys):
    prompts = ["--data", str(data), "--write_prompts"]
    for flags, named in (("--pictures a=b --partial", "--partial, --pictures"), ("--reference x", "--reference")):
        assert benchmark.main([*prompts, str(tmp_path / "new.json"), *flags.split()]) == 2
        assert f"{named} says nothing to --write_prompts" in capsys.readouterr().err
        assert not (tmp_path / "new.json").exists()
    before, link = data.read_bytes(), tmp_path / "link.json"
    link.symlink_to(data)
    for path in (data, link):
        assert benchmark.main([*prompts, str(path), "--limit", "3"]) == 2
        assert "is the file of --data, which would be overwritten" in capsys.readouterr().err
    assert data.read_bytes() == before and link.is_symlink()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--pictures", "mine"], "is not NAME=FOLDER"),
        (["--pictures", "=x"], "is not NAME=FOLDER"),
        (["--pictures", "a b=x"], "give each folder a name of letters, digits and _ . @ + - alone."),
        (["--pictures", "a=x", "a=y"], "are named 'a'"),
        (["--pictures", "a=nowhere"], "There is no folder nowhere"),
        (["--pictures", "a=EMPTY"], "the first would be 000000000_0.jpg; pictures end in .jpg, .jpeg, .png or .webp."),
        (["--pictures", "a=GOOD", "--real", "EMPTY"], "add some that end in .jpg, .jpeg, .png or .webp."),
        (["--pictures", "a=OTHER"], "000000000_0.jpg; the first there is cat.png"),
        (["--pictures", "a=GOOD", "--reference", "b"], "no pictures named 'b' to compare with: choose a"),
        (["--pictures", "a=GOOD", "--ckpt", "x", "--seed", "3"], "--seed, --ckpt is of drawing"),
        (["--pictures", "a=DOT"], "000000000_0.png is 1 x 1 pixels, and lines are read 48 high: give larger"),
        (["--pictures", "b=GOOD", "a=DOT"], "DOT/000000000_0.png is 1 x 1 pixels, and a grid needs 18: give larger"),
        (["--pictures", "a=GOOD", "--real", "DOT"], "DOT/000000000_0.png is 1 x 1 pixels, and a grid needs 18"),
        (["--pictures", "a=GOOD", "--reference", ""], "--reference: must be a name"),
        (["--pictures", "a=GOOD", "--real", ""], "--real: must be a name"),
        (["--pictures", "a=GOOD", "--output", ""], "--output: must be a name"),
        (["--data", ""], "--data: must be a name"),
        (["--write_prompts", ""], "--write_prompts: must be a name"),
        (["--partial"], "--partial is of --pictures"),
        (["--methods", "teacher-2", "--reference", "student-4"], "student-4 is none of the methods, teacher-2"),
    ],
)
def test_mistakes_are_said_before_anything_is_loaded(data, good, flags, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark_score.reading, "LineReader", None)
    monkeypatch.setattr("anytext_lcm.model.loading.load_chosen", None)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "OTHER").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "OTHER" / "cat.png")
    shutil.copytree(good, tmp_path / "DOT")
    Image.new("RGB", (1, 1)).save(tmp_path / "DOT" / "000000000_0.png")
    for name in ("EMPTY", "OTHER", "DOT"):
        flags = [word.replace(name, str(tmp_path / name)) for word in flags]
    code, report = score(data, tmp_path, *(word.replace("GOOD", str(good)) for word in flags))
    error = capsys.readouterr().err.replace(f"{tmp_path}/", "")
    assert code == 2 and report is None and said in error and error.count("\n") == 1


def test_a_folder_in_the_place_of_a_file_is_named_before_the_work(data, good, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark_score.reading, "LineReader", None)
    for name in benchmark_report.FILES:
        (tmp_path / "out" / name).mkdir(parents=True)
        code = benchmark.main(
            ["--data", str(data), "--output", str(tmp_path / "out"), "--samples", "1", "--pictures", f"mine={good}"]
        )
        error = capsys.readouterr().err
        assert code == 2 and f"{name} is a folder, and a file of this name is to come" in error
        (tmp_path / "out" / name).rmdir()


def test_a_report_is_not_written_among_the_pictures_it_is_of(data, good, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark_score.reading, "LineReader", None)
    pictures, real = (shutil.copytree(good, tmp_path / name) for name in ("mine", "real"))
    (tmp_path / "link").symlink_to(real)
    scored = ["--samples", "1", "--pictures", f"good={good}", f"mine={pictures}"]
    for flags in (scored, ["--methods", "teacher-2"]):
        for output in (pictures, real, tmp_path / "link")[flags != scored :]:
            words = ["--data", data, *flags, "--real", real, "--output", output, "--dry_run"]
            assert benchmark.main(list(map(str, words))) == 2
            assert "holds pictures to score or to compare with: name another --output" in capsys.readouterr().err


def test_pictures_that_lie_on_their_side_are_measured_as_they_are_read(data, good, tmp_path):
    folder, exif = shutil.copytree(good, tmp_path / "turned"), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (300, 500)).save(folder / "000000000_0.png", exif=exif)
    assert check_scoring(read_tasks(data), {"a": folder}, 1, None).size == (300, 500)  # height, width


def test_a_picture_with_two_endings(data, good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "two")
    shutil.copy(folder / "000000000_0.png", folder / "000000000_0.webp")
    tasks = read_tasks(data)
    with pytest.raises(ValueError, match="holds 000000000_0.png and 000000000_0.webp: keep one"):
        find_pictures(folder, tasks, 1)
    for other in ("notes.txt", "000000000_1.png", "thumbs_0.png"):
        shutil.copy(good / "000000000_0.png", good.parent / other)
    assert not find_pictures(good, tasks, 1).missing


def test_as_many_are_compared_as_there_are_real_ones(tmp_path):
    tasks = [Task(str(i), "", (("A", BOX),)) for i in range(20)]
    for samples, real, compared in ((1, 30, 15), (1, 100, 20), (4, 1000, 80), (100, 9000, MOST_COMPARED)):
        paths = [tmp_path / f"{i}.png" for i in range(real)]
        assert Scoring(tasks, {}, samples, (8, 8), None, paths, {}).compared == compared
    assert Scoring(tasks[:7], {}, 1, (8, 8), None, PANEL, {}).compared == 0
    assert [Scoring(tasks[:n], {}, 8, (8, 8), None, PANEL, {}).compared for n in (1, 2)] == [0, 16]
    assert Scoring(tasks, {}, 1, (8, 8), None, None, {}).compared == 0


def test_partial_with_nothing_in_common(data, good, words, tmp_path):
    halves = []
    for half in (0, 1):
        (tmp_path / str(half)).mkdir()
        for name in list(words)[half::2]:
            shutil.copy(good / f"{name}_0.png", tmp_path / str(half))
        halves.append(tmp_path / str(half))
    with pytest.raises(ValueError, match="No prompt with text is whole in every folder"):
        check_scoring(read_tasks(data), dict(zip("ab", halves, strict=True)), 1, "a", partial=True)


def test_samples_and_lines_are_kept_apart(tmp_path):
    """Two prompts of two unlike lines, two samples each: of each kind, interval and distance what belongs to it."""
    high, low = ((40, 40), (472, 40), (472, 150), (40, 150)), ((60, 300), (200, 300), (200, 340), (60, 340))
    tasks = [Task(name, "", (("OPEN", high), ("quietly", low))) for name in "pq"]
    right = np.array([True, False] * 4)  # of prompt, sample, line: the high lines alone
    lines = dict.fromkeys(benchmark_score.MEASURES, right) | {"group": np.repeat([0, 1], 4)}
    kinds = benchmark_score.kinds_of_lines(tasks, 2)
    measured = benchmark_score.Scores(lines, np.zeros(4), np.repeat([0, 1], 2))
    row = benchmark_score.summarise({"a": measured}, None, kinds, 2)["a"]
    for kind, words in (("height", ["32 to 48", "96 to 128"]), ("length", ["5 to 8", "1 to 4"])):
        found = {one["kind"]: (one["value"], one["lines"], one["n"]) for one in row[f"by_{kind}"]}
        assert found == {words[0]: (0, 2, 2), words[1]: (1, 2, 2)}
    assert row["exact"]["n"] == row["grid"]["n"] == 2


def test_a_prompts_samples_count_as_one_in_grid_and_distance(data, words, tmp_path):
    mine = lettered(dict(list(words.items())[:4]), tmp_path / "mine", samples=2)
    real = lettered({f"r{i}": "REAL" for i in range(16)}, tmp_path / "real")
    _, report = score(data, tmp_path, "--pictures", f"mine={mine}", "--real", real, "--limit", 4, "--samples", 2)
    row = report["methods"]["mine"]
    assert report["real"]["pictures"] == 16 and report["real"]["distance"]["n"] == 8
    assert [row[key]["n"] for key in ("exact", "grid", "distance")] == [4, 4, 4]
    assert row["difference"]["grid_energy"]["n"] == 4


def test_scripts():
    named = {"OPEN": "Latin", "caf\u00e9 24": "Latin", "24 %": "no letters", "\u4f60\u597d": "Han"}
    named |= {"\u041c\u0438\u0440": "Cyrillic", "\u4f60\u597d OK": "several scripts", "": "no letters"}
    assert {text: benchmark_score.script_of(text) for text in named} == named


def test_differences_agree_with_a_plain_bootstrap():
    """Prompts drawn with replacement, one by one, both methods' lines of a prompt together."""
    rng = np.random.default_rng(5)
    group = np.repeat(np.arange(60), rng.integers(1, 4, 60))
    skill = rng.random(60)[group]
    methods = {name: rng.random(len(group)) < skill - shift for name, shift in (("a", 0.0), ("b", 0.15))}
    scores = {
        name: benchmark_score.Scores(
            dict.fromkeys(benchmark_score.MEASURES, right) | {"group": group}, np.zeros(60), np.arange(60)
        )
        for name, right in methods.items()
    }
    found = benchmark_score.summarise(scores, "a", {}, 1)["b"]["difference"]["exact"]
    difference = methods["b"].astype(int) - methods["a"]
    by_prompt = [difference[group == g] for g in range(60)]
    drawn = []
    for _ in range(4000):
        chosen = np.concatenate([by_prompt[g] for g in rng.integers(0, 60, 60)])
        drawn.append(chosen.mean())
    assert found["value"] == pytest.approx(difference.mean())
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.01)


def test_a_found_folder_has_whole_prompts_alone(tmp_path):
    tasks = [Task(name, "", (("A", BOX),)) for name in ("p", "q")]
    for name in ("p_0.jpg", "p_1.PNG", "q_1.webp"):
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    found = find_pictures(tmp_path, tasks, 2)
    assert found == Found(tmp_path, {"p": (tmp_path / "p_0.jpg", tmp_path / "p_1.PNG")}, ("q_0.jpg",))
