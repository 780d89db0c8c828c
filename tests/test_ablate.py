"""The ablation command on a network of a few thousand weights: what it runs, writes and refuses."""

import json

import numpy as np
import pytest
from filelock import FileLock
from micro_network import micro_network

from anytext_lcm import ablate, demo, lora
from anytext_lcm.settings import TrainSettings


def recipe(teacher):
    return {
        "config": str(teacher / "micro.yaml"), "teacher_ckpt": str(teacher / "micro.safetensors"), "dataset_size": 5,
        "train_batch_size": 1, "lora_rank": 2, "lora_alpha": 2, "guidance_scale": 2.0, "negative_prompt": "",
        "progress": False,
    }  # fmt: skip


def settings_of(teacher, folder, **changes):
    return TrainSettings.from_dict(ablate.RECIPE | recipe(teacher) | {"output_dir": str(folder)} | changes)


class Colours:
    """In place of the text detector, to save time: what a picture's channels are like."""

    def __init__(self, threads):
        pass

    def __call__(self, images):
        pixels = np.asarray(images, float).reshape(len(images), -1, 3)
        return np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(ablate, "DetectorFeatures", Colours)
    monkeypatch.setattr(ablate, "TEACHER_STEPS", 2)
    monkeypatch.setattr(ablate, "SHEET_ROWS", 2)


def test_equal_compute():
    assert ablate.updates_for({}, 100) == 100 and ablate.updates_for({"objective": "teacher_x0"}, 100) == 120


def test_the_default_is_what_ships():
    shipped = demo.DEFAULTS
    assert (ablate.RECIPE["learning_rate"], ablate.RECIPE["train_batch_size"]) == (shipped.learning_rate, shipped.batch)
    assert (ablate.RECIPE["lora_rank"], ablate.RECIPE["ema_decay"]) == (shipped.rank, shipped.ema)
    assert ablate.RECIPE["lora_targets"] == shipped.targets


def test_every_answer_is_a_run_that_can_be(teacher, tmp_path):
    default, model = settings_of(teacher, tmp_path), micro_network()
    asked = ablate.questions(model, default, "latents")
    assert tuple(asked) == ablate.QUESTIONS
    seen = []
    for name, changes in (pair for answers in asked.values() for pair in answers.items()):
        settings = settings_of(teacher, tmp_path, **changes)
        names = lora.resolve_targets(model, settings.lora_targets)
        assert settings.identity() != default.identity(), name
        assert ablate.training_of(name, changes) not in seen  # no two runs share a folder
        seen.append(ablate.training_of(name, changes))
        if name == "decoder alone":
            assert names and {n.split(".")[2] for n in names} <= {"middle_block", "output_blocks"}
    assert seen.count(ablate.DEFAULT) == 1  # "no average" is the default's training, read without its average


def test_runs_table_and_going_on(teacher, tmp_path, capsys, monkeypatch, quick):
    arguments = dict(asked=("objective", "latents", "average"), steps=2, lines=16, **recipe(teacher))
    # Another process has one of the runs in hand: it is left alone.
    with FileLock(tmp_path / ".teacher_x0.lock"):
        found = ablate.ablate(tmp_path, **arguments)
    said = capsys.readouterr().out
    assert "5 of 5 runs are to do. One trains for about" in said and "teacher_x0: another process is at it." in said
    assert list(found["runs"]) == ["default", "no average", "untrained", "cached latents"]
    assert [run["updates"] for run in found["runs"].values()] == [2, 2, 0, 2]
    assert found["runs"]["default"]["seconds"] > 0 and found["runs"]["no average"]["seconds"] is None
    assert json.loads((tmp_path / "results.json").read_text()) == found
    for name, run in found["runs"].items():
        assert (tmp_path / "sheets" / f"{name.replace(' ', '_')}.png").is_file()
        for of in run["read"].values():
            assert 0 <= of["ned"]["low"] <= of["ned"]["value"] <= of["ned"]["high"] <= 1
            assert len(of["right"]) == found["panel"]["lines"] and of["kernel"]["low"] <= of["kernel"]["high"]
    table = (tmp_path / "table.md").read_text()
    assert table.splitlines()[2].startswith("| default | 2 |") and table.count("\n| ") == 4

    # The second time the teacher is not read again, and only what was left is done.
    monkeypatch.setattr(ablate.Judge, "_look_at_the_teacher", never)
    assert set(ablate.ablate(tmp_path, **arguments)["runs"]) == {*found["runs"], "teacher_x0"}
    monkeypatch.setattr(ablate, "run_distillation", never)
    monkeypatch.setattr(ablate, "Judge", never)
    assert len(ablate.ablate(tmp_path, **arguments)["runs"]) == 5
    for changes in ({"steps": 3}, {"lines": 17}, {"learning_rate": 1.0}):
        with pytest.raises(ValueError, match="belongs to another ablation"):
            ablate.ablate(tmp_path, **arguments | changes)


def never(*arguments, **more):
    raise AssertionError("what is done was done again")


def test_a_training_that_gives_up_does_not_end_the_others(teacher, tmp_path, monkeypatch, quick):
    def gives_up(settings, on_sample):
        raise FloatingPointError("Updates 1 to 10 were skipped.")

    monkeypatch.setattr(ablate, "run_distillation", gives_up)
    found = ablate.ablate(tmp_path, (), steps=2, lines=16, **recipe(teacher))
    assert found["runs"]["default"]["failed"] == "Updates 1 to 10 were skipped."
    assert "read" in found["runs"]["untrained"]
    assert "default failed: Updates 1 to 10 were skipped." in (tmp_path / "table.md").read_text()


def test_a_run_over_the_default(monkeypatch):
    runs = {name: {"read": {"4": {"right": right}}} for name, right in (("default", "1100"), ("other", "1110"))}
    results = {"runs": runs, "panel": {"groups": [0, 0, 1, 1]}}
    assert ablate._over_default(results, "other", "4")["value"] == 1.5
    assert ablate._over_default(results, "default", "4") is None
    runs["default"]["read"]["4"]["right"] = "0000"
    assert ablate._over_default(results, "other", "4") is None


def test_bad_input(tmp_path, capsys):
    for flags, words in (
        (["--questions", "moon"], "no question moon"), (["--steps", "0"], "--steps must"),
        (["--threads", "0"], "--threads must"), (["--lines", "3"], "--lines must be 16 or more"),
        (["--teacher_ckpt", "nowhere.ckpt"], "nowhere.ckpt does not exist"),
    ):  # fmt: skip
        assert ablate.main(["--output", str(tmp_path / "o"), *flags]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
