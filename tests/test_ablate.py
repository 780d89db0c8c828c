"""Ablations on a network of a few thousand weights: what they train, judge and write."""

import json
from pathlib import Path

import numpy as np
import pytest
from micro_network import micro_network
from omegaconf import OmegaConf

from anytext_lcm import ablate as command
from anytext_lcm.adapter import stored, targets
from anytext_lcm.adapter.stored import training_header
from anytext_lcm.judging import likeness
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.networks import EMBEDDED_CONFIG, defaults_for
from anytext_lcm.training import ablation, recipes
from anytext_lcm.training.recipes import DEFAULTS, recipe
from anytext_lcm.training.settings import TrainSettings


def small(teacher):
    return {
        "config": str(teacher / "micro.yaml"),
        "teacher_ckpt": str(teacher / "micro.safetensors"),
        "dataset_size": 5,
        "train_batch_size": 1,
        "lora_rank": 2,
        "lora_alpha": 2,
        "guidance_scale": 2.0,
        "negative_prompt": "",
        "progress": False,
    }


class Colours:
    """In place of the text detector, to save time: what a picture's channels are like."""

    def __init__(self, threads):
        pass

    def __call__(self, images):
        pixels = np.asarray(images, float).reshape(len(images), -1, 3)
        return np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(likeness, "DetectorFeatures", Colours)
    monkeypatch.setattr(ablation, "TEACHER_STEPS", 2)
    monkeypatch.setattr(ablation, "STUDENT_STEPS", (4,))


def test_equal_compute():
    assert recipes.updates_for({}, 100) == 100 and recipes.updates_for({"objective": "teacher_x0"}, 100) == 120
    # 120 updates of 8 use the 50 points of 20 paths once: 960 (1 + 2) + 20 * 50 * 2 passes for 800 * 6
    assert recipes.updates_for({"objective": "path"}, 100) == 120 and recipes.paths_for(120, 8) == 20


def test_every_run_differs_from_the_recipe_and_can_be(teacher, tmp_path):
    model, common = micro_network(), recipe(10) | small(teacher) | {"output_dir": str(tmp_path)}
    default = TrainSettings.from_dict(common)
    assert default.learning_rate == DEFAULTS.learning_rate and default.lora_targets == DEFAULTS.targets
    changes = recipes.changes(model, DEFAULTS.targets, "latents", "paths", str(teacher / "micro.yaml"))
    assert tuple(changes) == recipes.RUNS
    for name, changed in changes.items():
        settings = TrainSettings.from_dict(common | changed)
        names = targets.resolve_targets(model, settings.lora_targets)
        differing = {key for key, value in settings.identity().items() if value != default.identity()[key]}
        differing |= {"config"} & set(changed)  # another network
        assert names and differing and differing <= set(changed), name
        if name == "decoder alone":
            assert {n.split(".")[2] for n in names} <= {"middle_block", "output_blocks"}


def test_two_runs_are_trained_and_judged(teacher, tmp_path, monkeypatch, quick):
    monkeypatch.setattr(ablation, "format_table", lambda results: "the table")  # it asks for eight steps too
    found = ablation.ablate(tmp_path, ("teacher_x0",), steps=5, lines=16, **small(teacher))
    assert json.loads((tmp_path / "results.json").read_text()) == found
    runs = found["runs"]
    assert {name: run["updates"] for name, run in runs.items()} == {
        "default": 5,
        "teacher_x0": 6,
        "no average": 5,
        "untrained": 0,
    }
    assert runs["default"]["seconds"] > 0 and runs["default"]["cpu_seconds"] > 0
    averages = [
        stored.read_adapter(tmp_path / name)[1] for name in ("default/checkpoint-5", "default/checkpoint-5/ema")
    ]
    assert any((averages[0][key] != averages[1][key]).any() for key in averages[0])
    for name, run in runs.items():
        of = run["read"]["4"]
        assert 0 <= of["ned"]["low"] <= of["ned"]["value"] <= of["ned"]["high"] <= 1
        assert ("over_default" in of) == (name != "default") and "retention" in of
        assert of["distribution"]["kernel"]["low"] <= of["distribution"]["kernel"]["high"]
    assert (tmp_path / "table.md").read_text() == "the table\n"
    with pytest.raises(ValueError, match="checkpoint-5"):  # trained ones are not overwritten
        ablation.ablate(tmp_path, (), steps=2, lines=16, **small(teacher))


def test_a_stopped_ablation_is_told_what_its_own_flags_can_do(teacher, tmp_path, monkeypatch, capsys):
    flags = ["--output", str(tmp_path), "--config", str(teacher / "micro.yaml"), "--steps", "2", "--lines", "16"]
    flags += ["--teacher_ckpt", str(teacher / "micro.safetensors"), "--runs", "Huber"]

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ablation, "ablate", stopped)
        assert command.main(flags) == 130
    assert "delete their folders or name another --output" in capsys.readouterr().err
    monkeypatch.setattr(ablation, "checkpoints", lambda folder: {2: folder / "checkpoint-2"})
    monkeypatch.setattr(ablation, "load_teacher", lambda *_: pytest.fail("the weights were read"))
    assert command.main(flags) == 2
    said = capsys.readouterr().err
    assert "Huber (checkpoint-2)" in said and "default (checkpoint-2)" in said and "name another --output" in said


def test_fast_control_off_is_the_same_network_in_a_yaml_of_its_own(teacher, tmp_path, monkeypatch, quick):
    monkeypatch.setattr(ablation, "format_table", lambda results: "")
    yaml, drawn = tmp_path / ablation.SLOW, []
    draw = ablation.run_method

    def noted(model, *more):
        drawn.append(model.control_model.fast_control)
        return draw(model, *more)

    monkeypatch.setattr(ablation, "run_method", noted)
    found = ablation.ablate(tmp_path, ("fast control off", "text counts 5 times"), steps=2, lines=16, **small(teacher))
    assert drawn == [True, True, False, True, True, True]  # teacher, default, the two runs, no average, untrained
    assert found["runs"]["fast control off"]["changes"] == {"config": str(yaml)}
    first, second = (OmegaConf.to_container(OmegaConf.load(path)) for path in (teacher / "micro.yaml", yaml))
    for network, fast in ((first, True), (second, False)):
        params = network["model"]["params"]
        assert params["control_stage_config"]["params"].pop("fast_control") is fast
        params["cond_stage_config"]["params"]["version"] = Path(
            params["cond_stage_config"]["params"]["version"]
        ).resolve()
    assert first == second
    assert training_header(tmp_path / "text_counts_5_times" / "checkpoint-2")["text_factor"] == 5.0


def test_the_yaml_of_the_embedded_network_is_read_from_any_folder(tmp_path):
    ablation.write_slow(str(EMBEDDED_CONFIG), tmp_path / "slow.yaml")
    model = AnyText2.from_config(tmp_path / "slow.yaml", device="meta")
    assert not model.control_model.fast_control and model.tokenizer.placeholder_id == 265
    assert defaults_for(tmp_path / "slow.yaml") == defaults_for(EMBEDDED_CONFIG)


def test_a_training_that_gives_up_does_not_end_the_others(teacher, tmp_path, monkeypatch):
    def gives_up(settings, on_sample):
        raise FloatingPointError("Updates 1 to 10 were skipped.")

    monkeypatch.setattr(ablation, "run_distillation", gives_up)
    monkeypatch.setattr(ablation, "judge", lambda settings, adapters, *_: {"teacher": {}, "runs": dict(adapters)})
    monkeypatch.setattr(ablation, "format_table", lambda results: "")
    found = ablation.ablate(tmp_path, ("Huber",), steps=2, lines=16, **small(teacher))["runs"]
    assert found["default"]["failed"] == found["Huber"]["failed"] == "Updates 1 to 10 were skipped."
    assert [name for name, run in found.items() if "read" in run] == ["untrained"]


def reading(accuracy, ned, over_default=None):
    def interval(value):
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    return {
        "accuracy": interval(accuracy),
        "ned": interval(ned),
        "retention": interval(1.0),
        "over_default": over_default and interval(over_default),
        "distribution": {"kernel": interval(0.4), "kernel_floor": interval(0.0)},
    }


def test_the_table_begins_with_the_default_and_ends_with_the_worst():
    both = {
        "untrained": {"updates": 0, "read": {s: reading(0.5, 0.6, 0.7) for s in "48"}},
        "Huber": {"updates": 20, "cpu_seconds": 7.4, "read": {s: reading(0.9, 0.95, 1.1) for s in "48"}},
        "default": {"updates": 20, "cpu_seconds": 10.0, "read": {s: reading(0.8, 0.85) for s in "48"}},
        "rank 4": {"updates": 20, "failed": "Updates 1 to 10 were skipped."},
    }
    results = {"runs": both, "panel": {"lines": 20, "prompts": 15}, "teacher": reading(0.9, 0.9)}
    lines = ablation.format_table(results).splitlines()
    assert lines[0].count("|") == 12 and "right, 4 steps" in lines[0] and "right, 8 steps" in lines[0]
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| default", "| Huber", "| untrained"]
    assert lines[2].startswith("| default | 20 | 10 | 0.800 [0.700, 0.900] | 1.000 [0.900, 1.100] | - | 0.400 [")
    assert lines[3].startswith("| Huber | 20 | 7 | 0.900 [0.800, 1.000] | 1.000 [0.900, 1.100] | 1.100 [1.000, 1.200]")
    assert lines[4].startswith("| untrained | 0 | - |")
    assert "rank 4 failed: Updates 1 to 10 were skipped." in lines
    assert lines[-1].startswith(
        "20 lines of 15 prompts, 95 % intervals over prompts. The teacher's 50 steps: right 0.9"
    )
