"""Pictures and prompts of one's own: what the panel, `evaluate` and the sample pictures are of."""

import json

import numpy as np
import pytest
import torch
from micro_network import SIDE, micro_network
from PIL import Image
from test_training import options, scalars

from anytext_lcm import evaluate
from anytext_lcm.adapter.lora import attach
from anytext_lcm.data import mock
from anytext_lcm.data.anyword import AnyWordDataset, ReadingRules
from anytext_lcm.data.convert import write_anyword
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.drawing.jobs import read_batch
from anytext_lcm.judging.own_panel import held_out_items, panel_of_prompts, panel_of_records
from anytext_lcm.judging.panel import Panel
from anytext_lcm.training.data_order import build_dataset, held_out_records
from anytext_lcm.training.loop import run_distillation
from anytext_lcm.training.settings import TrainSettings
from anytext_lcm.training.watching import ReadingPanel, panel_items

CALM = ReadingRules(image_size=SIDE, jitter=False, hint_share=0, random_font=False)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """JSONs of 30 training records and of 12 others."""
    folder = tmp_path_factory.mktemp("records")
    sizes = {"train": 30, "held_out": 12}
    for seed, (name, size) in enumerate(sizes.items()):
        write_anyword(MockDataset(size, seed, SIDE, edit_share=0.0), folder / name)
    return {name: folder / name / "data.json" for name in sizes}


@pytest.fixture
def no_mock(monkeypatch):
    """A run that draws a mock prompt fails."""
    for name in ("__getitem__", "scene"):
        monkeypatch.setattr(mock.MockDataset, name, lambda *_: pytest.fail("a prompt of the mock data was drawn"))


def test_a_panel_of_records(records, no_mock):
    dataset = AnyWordDataset(records["held_out"], rules=CALM)
    panel = panel_of_records(dataset, lines=5, seed=3, repeats=2)
    items = panel.items[: len(panel) // 2]
    assert 5 <= sum(item["n_lines"] for item in items) <= 6 and panel.items[len(items) :] == items
    assert len({item["img_name"] for item in items}) == len(items)
    for item, image, texts, polygons in zip(items, panel.images, panel.texts, panel.polygons, strict=False):
        assert np.array_equal(image, item["picture"]) and texts == item["texts"] and len(polygons) == len(texts)
    assert panel.size == (SIDE, SIDE) and panel.source == "held-out records of data.json"
    assert len(panel.others) == 12 - len(items)
    shown = {image.tobytes() for image in panel.images}
    assert not shown & {image.tobytes() for image in panel.others}
    again, other = (panel_of_records(dataset, 5, seed).texts for seed in (3, 4))
    assert again == panel.texts[: len(items)] and again != other


def test_records_without_text_are_passed_over(records, tmp_path):
    about = json.loads(records["held_out"].read_text())
    about["data_root"] = str(records["held_out"].parent)
    for entry in about["data_list"][2:]:
        entry["annotations"] = []
    (tmp_path / "data.json").write_text(json.dumps(about))
    items, rest = held_out_items(AnyWordDataset(tmp_path / "data.json", rules=CALM), prompts=9)
    assert len(items) == 2 and rest == []
    about["data_list"] = about["data_list"][1:]
    (tmp_path / "data.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="1 held-out prompts of .*data.json can be drawn, and a panel needs 2"):
        held_out_items(AnyWordDataset(tmp_path / "data.json", rules=CALM), lines=9)


def prompts_file(folder):
    entries = [
        {"prompt": "a wall", "lines": ["ONE@4,4,60,24", "TWO@4,34,60,54#red"], "seed": 7},
        {"prompt": "a door", "lines": ["2026@4,4,60,24"]},
    ]
    path = folder / "prompts.json"
    path.write_text(json.dumps(entries))
    return path


def test_a_panel_of_prompts(tmp_path, no_mock):
    wishes = read_batch(str(prompts_file(tmp_path)), 40, None)
    panel = panel_of_prompts(wishes, (SIDE, SIDE), "prompts.json", repeats=2)
    assert panel.texts == [["ONE", "TWO"], ["2026"]] * 2 and panel.noise_seeds == (7, 41, 100_007, 100_041)
    assert panel.polygons[1][0].tolist() == [[4, 4], [60, 4], [60, 24], [4, 24]]
    with pytest.raises(ValueError, match="prompts of prompts.json come without pictures"):
        _ = panel.images
    with pytest.raises(ValueError, match="a panel needs 2"):
        panel_of_prompts(wishes[:1], (SIDE, SIDE), "prompts.json")


def run(teacher, output, *flags):
    network = ["--config", str(teacher / "micro.yaml"), "--ckpt", str(teacher / "micro.safetensors")]
    return evaluate.main([*network, "--adapter", "none", "--output", str(output), *map(str, flags)])


def test_evaluate_on_records(teacher, records, tmp_path, no_mock, capsys):
    flags = ["--validation_list", records["train"], "--lines", "8", "--methods", "real", "untrained-1"]
    assert run(teacher, tmp_path / "out", *flags) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    panel, row = report["panel"], report["methods"]["untrained-1"]
    count = (30 - panel["prompts"]) // 2
    assert panel["source"] == "held-out records of data.json" and 8 <= panel["lines"] <= 9
    assert row["distribution"] is None or row["distribution"]["n"] <= count
    assert "background_obeyed" not in row and report["methods"]["real"]["sharpness"]["gradient_energy_to_real"] == 1
    table = (tmp_path / "out" / "table.md").read_text()
    assert f"{panel['prompts']} prompts (held-out records of data.json)" in table
    assert "None" not in table + capsys.readouterr().out  # no teacher to compare with
    assert "mock" not in table and Image.open(tmp_path / "out" / "grid.png").size[0] > 2 * SIDE


def test_distance_is_to_the_records_own_pictures(records):
    """To others of the same kind; equal numbers are compared where there are fewer than the panel would need."""
    panel = panel_of_records(AnyWordDataset(records["train"], rules=CALM), lines=14)
    assert len(panel.others) < 2 * len(panel)
    found = panel.judge(panel.images).measures["distribution"]
    assert found["n"] == len(panel.others) // 2 < len(panel)
    noise = np.random.default_rng(0).integers(0, 256, panel.images.shape, np.uint8)
    assert panel.judge(noise).measures["distribution"]["kernel"]["value"] > 10 * abs(found["kernel"]["value"])


def test_evaluate_on_prompts(teacher, tmp_path, no_mock, capsys):
    flags = ["--prompts", prompts_file(tmp_path), "--sampling_seeds", "2", "--methods", "teacher-1", "untrained-1"]
    assert run(teacher, tmp_path / "out", *flags) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["panel"]["texts"] == [["ONE", "TWO"], ["2026"]]
    assert report["panel"]["real"] == "none: the prompts have no pictures"
    for row in report["methods"].values():
        assert row["distribution"] is None and row["diversity"] is None
        assert row["sharpness"]["gradient_energy_to_real"] is None and row["sharpness"]["gradient_energy"] > 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "There is no distance to real pictures (none: the prompts have no pictures)." in table


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompts", "PROMPTS", "--fit", "pad"], "--fit is of records"),
        (["--prompts", "PROMPTS", "--lines", "9"], "--lines has no effect on --prompts"),
        (["--prompts", "PROMPTS", "--methods", "real"], "real need the pictures of records"),
        (["--prompts", "nowhere.json"], "nowhere.json cannot be read"),
        (["--data_list", "RECORDS"], "--data_list names no held-out records"),
        (["--fit", "crop"], "--fit names no held-out records"),
        (["--validation_share", "0.1"], "--validation_share is a share of --data_list"),
        (["--validation_list", "RECORDS", "--data_list", "RECORDS", "--validation_share", "0.1"], "give one of them"),
        (["--validation_list", "nowhere.json"], "nowhere.json"),
        (["--data_list", "RECORDS", "--validation_share", "0.6"], "at most 0.5"),
    ],
)
def test_evaluate_refuses_in_a_sentence(teacher, records, tmp_path, capsys, flags, words):
    names = {"PROMPTS": prompts_file(tmp_path), "RECORDS": records["train"]}
    assert run(teacher, tmp_path / "out", *(names.get(flag, flag) for flag in flags)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error and not (tmp_path / "out").exists()


def test_a_training_watches_held_out_records(teacher, records, tmp_path, no_mock):
    settings = options(teacher, tmp_path / "run", use_mock_dataset=False, panel_prompts=3, max_train_steps=2)
    del settings["dataset_size"]
    settings |= {"data_list": [str(records["train"])], "validation_list": [str(records["held_out"])]}
    run_distillation(settings)
    assert [event.step for event in scalars(tmp_path / "run").Scalars("panel/ned")] == [0, 2]
    sheets = sorted((tmp_path / "run" / "samples").iterdir())
    assert [path.name for path in sheets] == ["000000.png", "000002.png"]
    sheet = np.asarray(Image.open(sheets[1]))
    real = {np.asarray(Image.open(path)).tobytes() for path in records["held_out"].parent.glob("imgs/*.png")}
    first = sheet[34 : 34 + SIDE, 156 : 156 + SIDE]  # below the captions, right of the labels
    assert first.tobytes() in real


def test_a_panel_is_of_held_out_records_or_of_none(teacher, records, tmp_path):
    common = options(teacher, tmp_path, use_mock_dataset=False, panel_prompts=3)
    del common["dataset_size"]
    named = TrainSettings.from_dict(common | {"data_list": (str(records["train"]),)})
    assert held_out_records(named) is None and panel_items(named, None) == []
    with pytest.raises(ValueError, match="--patience needs a panel to go by; hold records out"):
        TrainSettings.from_dict(common | {"data_list": (str(records["train"]),), "patience": 2})
    shared = TrainSettings.from_dict(common | {"data_list": (str(records["train"]),), "validation_share": 0.3})
    held, kept = held_out_records(shared), build_dataset(shared)
    assert len(held) + len(kept) == 30
    items = panel_items(shared, held)
    assert len(items) == 4 and not any(item["font_hint"].any() for item in items)
    trained = {kept.record(i)[1].img_name for i in range(len(kept))}
    assert not trained & {item["img_name"] for item in items}
    model = attach(micro_network(), 2, 2)
    scores = [ReadingPanel(shared, items[:3])(model) for _ in range(2)]
    assert scores[0] == scores[1] and set(scores[0]) == {"panel/accuracy", "panel/ned"}


def test_scenes_keep_their_panel():
    """The embedded network's panel and report are what they were."""
    panel = Panel.build(prompts=2, image_size=SIDE)
    assert panel.source == "scenes" and panel.has_pictures and panel.noise_seeds == (0, 1)
    assert torch.equal(panel.batch["img"], torch.from_numpy(np.stack([item["img"] for item in panel.items])))
