"""The scripts of the measurements, in miniature."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from micro_network import micro_network

from anytext_lcm.adapter import lora
from anytext_lcm.judging import likeness

sys.path.insert(0, str(Path(__file__).parents[1] / "notebooks" / "measured"))

import objectives  # noqa: E402
import styled  # noqa: E402


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
    for module in (likeness, styled):
        monkeypatch.setattr(module, "DetectorFeatures", Colours)
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
        judged.append((name, tuning))
        if len(judged) == 20:
            raise KeyboardInterrupt
        judge(plan, folder, name, tuning)

    monkeypatch.setattr(objectives, "judge", dies)
    assert run(command) == 130
    assert not (tmp_path / "objectives.json").exists() and (tmp_path / "judged").is_dir()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    assert run(command) == 0
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert len(judged) == len(set(judged)) + 1  # the one that died alone was judged again

    found = json.loads((tmp_path / "objectives.json").read_text())
    methods = found["methods"]
    assert found["plan"]["config"] == "micro.yaml" and str(tmp_path) not in json.dumps(found)
    assert len(methods) == 3 + 2 * 2 + 2 * 2 + 2 * 2 * 2
    assert methods["student-2-deterministic@path-ends-0"]["evaluations"] == 2
    for name, spaced in found["chosen"].items():
        values = {trial: v["value"] for trial, v in found["tuning"].items() if trial.startswith(f"{name}-")}
        values = {trial: v for trial, v in values.items() if trial.count("-") == spaced.count("-")}
        assert len(values) == 3 and values[spaced] == min(values.values())
    kernel = methods["student-1@lcm-0"]["distribution"]["kernel"]
    assert kernel["low"] <= kernel["high"] and methods["student-1@lcm-0"]["sharpness"]["to_real"]["n"] == 8
    same = {name: methods[name]["same_noise"]["interval"]["value"] for name in ("teacher-3", "student-1@lcm-0")}
    assert same["teacher-3"] == 0 < same["student-1@lcm-0"]
    table = (tmp_path / "table.md").read_text()
    assert "### distance to real" in table and "### objects" in table and "path-ends, deterministic" in table
    assert "### diversity" not in table  # one noise
    capsys.readouterr()
    assert run([*command, "--updates", "3"]) == 2
    assert "was begun with updates 2, now 3" in capsys.readouterr().err


# -- a style ------------------------------------------------------------------------------------------------


def student(scale=0.05):
    """The micro network with an adapter that already does something."""
    model = lora.attach(micro_network(), 2, 2, ["unet_attention", "unet_decoder"])
    generator = torch.Generator().manual_seed(1)
    for parameter in lora.adapter_state(model).values():
        parameter.data += scale * torch.randn(parameter.shape, generator=generator)
    return model


def test_the_style_is_another_font_and_dots_behind_the_text():
    data = styled.Styled(3, 0, 128)
    plain, scene, picture = data.plain[1], data.plain.scene(1), data.picture(1)
    with styled.held_out_font():
        assert {line.font for line in data.plain.scene(1).lines} == {styled.FONT}
        own = data.plain.scene(1)
    assert styled.FONT not in {line.font for line in scene.lines}
    changed = (picture != own.image).any(-1)
    assert 0.15 < changed.mean() < 0.45 and not changed[own.coverage == 255].any()
    assert (picture <= own.image).all() and data[1]["img"].shape == plain["img"].shape


def test_the_ways_to_have_a_style_are_trained_and_judged(small, tmp_path, capsys, monkeypatch):
    less = styled.recipe
    quick = {"lora_rank": 2, "lora_alpha": 2, "lora_targets": ("unet_attention",)}
    monkeypatch.setattr(styled, "recipe", lambda updates: less(updates) | quick)
    monkeypatch.setattr(styled, "STEPS", (1,))
    monkeypatch.setattr(styled, "WEIGHTS", (0.5,))
    adapter = lora.save_adapter(student(), tmp_path / "lcm")
    command = [*small[:4], "--adapter", str(adapter), "--output", str(tmp_path / "out"), "--prompts", "8"]
    command += ["--updates", "2", "--batch", "2", "--rank", "2"]
    assert styled.run(styled.build_parser(), styled.work, command) == 0
    found = json.loads((tmp_path / "out" / "styled.json").read_text())
    assert len(found) == 6 and all(row["read"]["n"] == 8 for by_steps in found.values() for row in by_steps.values())
    assert "(b) distilled from the styled teacher" in (tmp_path / "out" / "table.md").read_text()
    tuned = [lora.load_adapter(micro_network(), tmp_path / "out" / f"tuned-{w}") for w in ("0", "1")]
    states = [lora.adapter_state(model) for model in tuned]
    assert any(not torch.equal(states[0][key], states[1][key]) for key in states[0])
