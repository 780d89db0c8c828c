"""Hostile files of every kind through every way in: see `campaign.py`, `attacks.py` and `attacks_weights.py`.

`make test` runs a few of each category, always the same, `make test-full` hundreds of each.
"""

import contextlib
import io
import json
import re

import pytest
import torch
from attacks import Warm, batches, draws, fonts, lists, pictures, preview
from attacks_weights import adapters, checkpoints, latents, path_settings, path_stores, states
from campaign import Attempt, failures, run_case
from micro_network import SIDE, micro_network
from test_resume import options

from anytext_lcm.adapter import formats
from anytext_lcm.adapter.lora import Adapter, attach, save_adapter
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.data.packed import PackedDataset
from anytext_lcm.training.latents import write_latents
from anytext_lcm.training.loop import run_distillation
from anytext_lcm.training.path_store import Wishes, write_paths

CATEGORIES = (pictures, lists, batches, fonts, checkpoints, adapters, states, latents, path_stores)
FEW, MANY = 40, 400  # cases of a category; loading weights takes longer than the others
SLOW = {"checkpoints": 20, "states": 20}


@pytest.fixture(scope="module")
def warm(teacher, tmp_path_factory):
    """Everything that cases share, and modules that are imported late."""
    model = attach(micro_network(), 2, 2)
    for parameter in Adapter.of(model).state().values():
        parameter.data += 0.1
    save_adapter(model, teacher / "adapter")
    formats.write_kohya(model, teacher / "kohya.safetensors")
    formats.write_diffusers(model, teacher / "diffusers.safetensors")
    model = micro_network()
    write_latents(teacher / "latents", PackedDataset(MockDataset(3, image_size=SIDE, edit_share=0.0)), model)
    wishes = [{"prompt": f"wall {n}", "lines": [f"W{n}@4,8,60,28"]} for n in range(5)]
    (teacher / "wishes.json").write_text(json.dumps(wishes))
    for name, captions in (("rules", None), ("captions", teacher / "wishes.json")):
        settings = path_settings(teacher, teacher / name)
        write_paths(teacher / name, settings, Wishes(settings, 5, captions), model)
    with contextlib.redirect_stderr(io.StringIO()):
        run_distillation(options(teacher, teacher / "run", max_train_steps=1, use_mock_dataset=True))
    return Warm(model, teacher)


@pytest.mark.parametrize("attack", CATEGORIES, ids=lambda attack: attack.__name__)
def test_a_few(attack, warm, tmp_path):
    assert failures(attack, range(SLOW.get(attack.__name__, FEW)), tmp_path, warm) == ""


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("attack", CATEGORIES, ids=lambda attack: attack.__name__)
def test_many(attack, warm, tmp_path):
    assert failures(attack, range(FEW, FEW + MANY), tmp_path, warm) == ""


def naughty(kind):
    """An attack that ends as no case may."""

    def use():
        if kind == "traceback":
            raise KeyError("x")
        if kind == "hang":
            import campaign

            campaign.signal.alarm(1)
            while True:
                pass
        if kind == "memory":
            torch.zeros(2**30)
        if kind == "file":
            open("left", "w").close()
        if kind == "code":
            return 0
        raise ValueError("two\nlines" if kind == "lines" else "no")

    def attack(rng, here, warm):
        return Attempt(kind, use, lambda: kind != "code", lambda: kind != "model")

    return attack


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("traceback", "KeyError"),
        ("hang", "still ran"),
        ("memory", "traceback"),
        ("file", "left \\['left'\\]"),
        ("code", "nothing came of it"),
        ("model", "changed something"),
        ("none", None),
    ],
)
def test_the_campaign_sees_what_it_looks_for(kind, words, tmp_path):
    """Otherwise its silence would mean nothing."""
    found = run_case(naughty(kind), 0, tmp_path / "case", None)
    assert found is None if words is None else re.search(words, found)


def test_whole_files_are_taken(warm, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert preview("--mock", "2") == 0
    assert draws(warm, "--adapter", "none", "--prompt", "a", "--line", "CAT@4,10,60,40", "--output", "a.png") == 0
