"""The ablation command on a network of a few thousand weights: what it runs, writes and refuses."""

import json

import pytest

from anytext_lcm import ablate, lora
from anytext_lcm.settings import TrainSettings


def recipe(teacher):  # noqa: F811
    return {
        "config": str(teacher / "micro.yaml"), "teacher_ckpt": str(teacher / "micro.safetensors"), "dataset_size": 5,
        "train_batch_size": 1, "lora_rank": 2, "lora_alpha": 2, "guidance_scale": 2.0, "negative_prompt": "",
        "progress": False,
    }  # fmt: skip


def test_equal_compute():
    assert ablate.updates_for({}, 100) == 100 and ablate.updates_for({"objective": "teacher_x0"}, 100) == 120


def test_every_answer_is_a_run_that_can_be(teacher, tmp_path):  # noqa: F811
    from micro_network import micro_network

    asked = ablate.questions(micro_network(), 2.0, "latents")
    assert tuple(asked) == ablate.QUESTIONS
    for changes in (changes for answers in asked.values() for changes in answers.values()):
        settings = TrainSettings.from_dict(ablate.RECIPE | recipe(teacher) | changes | {"output_dir": str(tmp_path)})
        lora.resolve_targets(micro_network(), settings.lora_targets)


def test_runs_table_and_going_on(teacher, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(ablate, "TEACHER_STEPS", 2)
    arguments = dict(asked=("objective", "latents"), steps=2, lines=2, **recipe(teacher))
    found = ablate.ablate(tmp_path, **arguments)
    assert list(found["runs"]) == ["default", "teacher_x0", "cached latents"]
    assert [run["updates"] for run in found["runs"].values()] == [2, 2, 2]
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(found))
    for run in found["runs"].values():
        for steps in ("4", "8"):
            ned = run["read"][steps]["ned"]
            assert 0 <= ned["low"] <= ned["value"] <= ned["high"] <= 1
    table = (tmp_path / "table.md").read_text()
    assert table.splitlines()[2].startswith("| default | 2 |") and table.count("\n| ") == 3

    def never(*arguments, **more):
        raise AssertionError("a run that is done was run again")

    monkeypatch.setattr(ablate, "run_distillation", never)
    assert ablate.ablate(tmp_path, **arguments)["runs"].keys() == found["runs"].keys()
    with pytest.raises(ValueError, match="belongs to another ablation"):
        ablate.ablate(tmp_path, **arguments | {"steps": 3})


def test_bad_input(tmp_path, capsys):
    for flags, words in ((["--questions", "moon"], "no question moon"), (["--steps", "0"], "--steps must")):
        assert ablate.main(["--output", str(tmp_path / "o"), *flags]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
