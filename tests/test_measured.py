"""The scripts of the measurements, in miniature."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from anytext_lcm.judging import likeness

sys.path.insert(0, str(Path(__file__).parents[1] / "notebooks" / "measured"))

import objectives  # noqa: E402


class Colours:
    """In place of the text detector, to save time: what a picture's channels are like."""

    def __init__(self, threads):
        pass

    def __call__(self, images):
        pixels = np.asarray(images, float).reshape(len(images), -1, 3)
        return np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1)


@pytest.fixture
def small(teacher, monkeypatch):
    """Two steps, one rival, few layers to train."""
    monkeypatch.setattr(likeness, "DetectorFeatures", Colours)
    monkeypatch.setattr(objectives, "STEPS", (1, 2))
    monkeypatch.setattr(objectives, "RIVALS", ("", "-unipc"))
    monkeypatch.setattr(objectives, "REFERENCE", "teacher-3")
    recipe = objectives.recipe
    less = {"lora_rank": 2, "lora_alpha": 2, "train_batch_size": 2, "lora_targets": ("unet_attention",)}
    monkeypatch.setattr(objectives, "recipe", lambda updates: recipe(updates) | less)
    for cached in (objectives._teacher, objectives._panel, objectives._prepared):
        cached.cache_clear()
    return ["--config", str(teacher / "micro.yaml"), "--ckpt", str(teacher / "micro.safetensors"), "--processes", "1"]


def run(arguments):
    return objectives.run(objectives.build_parser(), objectives.work, arguments)


def test_the_comparison_goes_on_where_it_was_killed(small, tmp_path, capsys, monkeypatch):
    command = [*small, "--output", str(tmp_path), "--objectives", "lcm", "path-ends", "--seeds", "0", "--updates", "2"]
    command += ["--prompts", "8", "--noises", "1"]
    judged, judge = [], objectives.judge

    def dies(plan, folder, name, tuning):
        judged.append(name)
        if len(judged) == 20:
            raise KeyboardInterrupt
        judge(plan, folder, name, tuning)

    monkeypatch.setattr(objectives, "judge", dies)
    assert run(command) == 130
    assert not (tmp_path / "results.json").exists() and (tmp_path / "judged").is_dir()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    assert run(command) == 0
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert len(judged) == len(set(judged)) + 1  # the one that died alone was judged again

    found = json.loads((tmp_path / "results.json").read_text())
    methods = found["methods"]
    assert len(methods) == 3 + 2 * 2 + 2 * 2 + 2 * 2 * 2
    assert methods["student-2-deterministic@path-ends-0"]["evaluations"] == 2
    for name, spaced in found["chosen"].items():
        values = {trial: v["value"] for trial, v in found["tuning"].items() if trial.startswith(f"{name}-")}
        values = {trial: v for trial, v in values.items() if trial.count("-") == spaced.count("-")}
        assert len(values) == 3 and values[spaced] == min(values.values())
    kernel = methods["student-1@lcm-0"]["distribution"]["kernel"]
    assert kernel["low"] <= kernel["high"] and methods["student-1@lcm-0"]["sharpness"]["to_real"]["n"] == 8
    assert methods["teacher-3"]["same_noise"]["rmse"] == 0 < methods["student-1@lcm-0"]["same_noise"]["rmse"]
    table = (tmp_path / "table.md").read_text()
    assert "### distance to real" in table and "### objects" in table and "path-ends, deterministic" in table
    assert "### diversity" not in table  # one noise
    capsys.readouterr()
    assert run([*command, "--updates", "3"]) == 2
    assert "was begun with updates 2, now 3" in capsys.readouterr().err
