"""Latents on disk: the same training without the autoencoder, and never those of other pictures."""

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from micro_network import CHANNELS, SIDE, micro_network
from PIL import Image
from safetensors.torch import save_file
from test_training import options, student, weights

from anytext_lcm import cache_latents
from anytext_lcm.data.batch import collate
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.data.packed import PackedDataset, expand
from anytext_lcm.model.vae import PatchEncoder
from anytext_lcm.training import encoded_once
from anytext_lcm.training.data_order import seeded_generator
from anytext_lcm.training.latents import with_latents, write_latents
from anytext_lcm.training.loop import run_distillation
from anytext_lcm.training.settings import TrainSettings
from anytext_lcm.training.step import DistillStep


def pictures(seed=0, size=3):
    return PackedDataset(MockDataset(size, seed=seed, image_size=SIDE, edit_share=0.0))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    counts = []
    folder = tmp_path_factory.mktemp("latents") / "stored"
    write_latents(folder, pictures(), micro_network(), 2, progress=counts.append)
    assert counts == [2, 1]
    return folder


def test_a_step_with_stored_latents_is_the_step(stored):
    """The posterior is stored in half precision and drawn from anew, with the same numbers."""
    model = student()
    dataset = with_latents(pictures(), stored, model)
    batches = [expand(collate([source[i] for i in range(3)])) for source in (pictures(), dataset)]
    assert batches[1]["latent_moments"][0].dtype == np.float16
    parts = [DistillStep(model)(batch, seeded_generator(4)) for batch in batches]
    torch.testing.assert_close(parts[1].noisy_latents, parts[0].noisy_latents, rtol=2e-3, atol=2e-3)
    assert parts[1].start_timesteps.tolist() == parts[0].start_timesteps.tolist()
    batches[1].pop("img")  # not needed
    DistillStep(model)(batches[1], seeded_generator(4)).loss.backward()


def test_pickled_they_stay_on_disk(stored):
    """A worker that is spawned gets the data set pickled."""
    dataset = with_latents(pictures(), stored, micro_network())
    sent = pickle.dumps(dataset)
    assert len(sent) < (stored / "moments.npy").stat().st_size
    assert np.array_equal(pickle.loads(sent)[1]["latent_moments"], dataset[1]["latent_moments"])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at mapped files through /proc")
def test_nothing_is_mapped_when_the_folder_gets_its_name(tmp_path, monkeypatch):
    real, mapped = os.replace, []

    def replace(source, target):
        mapped.append(f"{source}/moments.npy" in Path("/proc/self/maps").read_text())
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    write_latents(tmp_path / "latents", pictures(), micro_network())
    assert mapped == [False]


def test_epochs_that_redraw_share_the_latents_of_a_picture(stored):
    class Again(PackedDataset):
        draws_anew_each_epoch = True

        def __getitem__(self, index):
            return super().__getitem__(index % 3)

    dataset = with_latents(Again(pictures().dataset), stored, micro_network())
    assert dataset.draws_anew_each_epoch and np.array_equal(dataset[4]["latent_moments"], dataset[1]["latent_moments"])


def test_latents_of_something_else_are_refused(stored, tmp_path):
    with pytest.raises(ValueError, match="another autoencoder"):
        with_latents(pictures(), stored, micro_network(seed=1))
    with pytest.raises(ValueError, match="3 pictures, the data set has 4"):
        with_latents(pictures(size=4), stored, micro_network())
    with pytest.raises(ValueError, match="Picture 0 of the data set is not the one"):
        with_latents(pictures(seed=1), stored, micro_network())[0]
    with pytest.raises(FileNotFoundError, match="latents.json is missing"):
        with_latents(pictures(), tmp_path, micro_network())
    damaged = shutil.copytree(stored, tmp_path / "damaged")
    (damaged / "latents.json").write_text(json.dumps({"pictures": 3})[:-2])
    with pytest.raises(ValueError, match="cannot be read"):
        with_latents(pictures(), damaged, micro_network())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("moments.npy", b""),
        ("pictures.npy", b""),
        ("moments.npy", b"PK\x03\x04"),
        ("moments.npy", np.zeros((3, 2), np.float16)),
        ("moments.npy", np.zeros((3, 8, 8, 8), np.float32)),
        ("moments.npy", np.zeros((3, 6, 8, 8), np.float16)),
        ("moments.npy", np.float16(1)),
        ("pictures.npy", np.zeros((3, 1), np.uint32)),
        ("pictures.npy", np.zeros(3)),
        ("latents.json", b""),
        ("latents.json", b"[]"),
        ("latents.json", b"[" * 99_999),
        ("latents.json", b"\xff\xfe"),
    ],
)
def test_latents_of_another_form_are_refused_in_a_sentence(stored, tmp_path, name, content):
    path = shutil.copytree(stored, tmp_path / "damaged") / name
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    with pytest.raises(ValueError, match="The latents in .* cannot be read .*; compute them") as error:
        with_latents(pictures(), tmp_path / "damaged", micro_network())
    assert "\n" not in str(error.value)


def test_precision_does_not_matter_to_whose_latents_they_are(stored):
    with_latents(pictures(), stored, micro_network().to(torch.bfloat16))


def test_the_command_and_a_run_on_what_it_wrote(teacher, tmp_path, capsys):
    folder = tmp_path / "latents"
    flags = [
        "--config",
        str(teacher / "micro.yaml"),
        "--teacher_ckpt",
        str(teacher / "micro.safetensors"),
        "--latents",
        str(folder),
        "--use_mock_dataset",
        "--dataset_size",
        "5",
        "--no-progress",
    ]
    assert cache_latents.main(flags) == 0 and "train with --latents" in capsys.readouterr().out
    run = options(teacher, tmp_path / "run", latents=str(folder), max_train_steps=1, sample_steps=0)
    assert any(value.any() for key, value in weights(run_distillation(run)).items() if "lora_B" in key)
    with pytest.raises(ValueError, match="latents True, now None"):
        run_distillation(run | {"latents": None, "resume_from_checkpoint": "latest", "max_train_steps": 2})
    other = tmp_path / "other.safetensors"
    save_file({k: v.contiguous().clone() for k, v in micro_network(seed=1).state_dict().items()}, other)
    with pytest.raises(ValueError, match="another autoencoder"):
        run_distillation(run | {"teacher_ckpt": str(other), "output_dir": str(tmp_path / "third")})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    assert cache_latents.main([*flags[:4], "--latents", str(tmp_path / "mine"), *flags[6:]]) == 2
    assert "holds other files" in capsys.readouterr().err


def records(folder, count=4):
    """A data set on disk: its JSON."""
    lines = [{"polygon": [[4, 20], [60, 20], [60, 44], [4, 44]], "text": "Word", "language": "Latin"}]
    entries = [{"img_name": f"{i}.png", "caption": f"no {i}", "annotations": lines} for i in range(count)]
    for i in range(count):
        Image.new("RGB", (SIDE, SIDE), (40 * i, 90, 120)).save(folder / f"{i}.png")
    (folder / "data.json").write_text(json.dumps({"data_root": ".", "data_list": entries}))
    return str(folder / "data.json")


def test_a_run_stores_its_latents_itself_where_it_pays(teacher, tmp_path, monkeypatch, capsys):
    """As with a named folder; the run that goes on takes what it has, and --latents none stores nothing."""
    named = {"use_mock_dataset": False, "data_list": (records(tmp_path),), "sample_steps": 0, "max_train_steps": 1}
    plain = run_distillation(options(teacher, tmp_path / "plain", **named))
    assert not (tmp_path / "plain" / "latents").exists()
    monkeypatch.setattr(encoded_once, "pays", lambda *_: True)
    own = run_distillation(options(teacher, tmp_path / "own", **named))
    assert "encoded once" in capsys.readouterr().out and (tmp_path / "own" / "latents").is_dir()
    by_name = run_distillation(options(teacher, tmp_path / "named", **named, latents=str(tmp_path / "own" / "latents")))
    for key, value in weights(own).items():
        assert torch.equal(weights(by_name)[key], value)
    none = run_distillation(options(teacher, tmp_path / "none", **named, latents="none"))
    assert not (tmp_path / "none" / "latents").exists()
    for key, value in weights(plain).items():
        assert torch.equal(weights(none)[key], value)
    encoded = []
    monkeypatch.setattr(encoded_once, "write_latents", lambda *_: encoded.append(1))
    more = named | {"max_train_steps": 2, "resume_from_checkpoint": "latest"}
    run_distillation(options(teacher, tmp_path / "own", **more))
    run_distillation(options(teacher, tmp_path / "plain", **more))  # begun without, it goes on without
    assert not encoded and not (tmp_path / "plain" / "latents").exists()


def test_when_it_pays_to_encode_once(teacher, tmp_path):
    settings = TrainSettings.from_dict(
        options(teacher, tmp_path, use_mock_dataset=False, data_list=(records(tmp_path),), max_train_steps=100)
    )
    seen = 100 * settings.train_batch_size * settings.gradient_accumulation_steps
    gpu = SimpleNamespace(device=torch.device("cuda"), latent_channels=CHANNELS, first_stage_model=Encoder(Plain()))
    assert encoded_once.pays(settings, seen // 2, gpu, 1) and not encoded_once.pays(settings, seen // 2 + 1, gpu, 1)
    assert encoded_once.pays(settings, seen // 2 + 1, gpu, 2)  # two processes see twice as many
    long = replace(settings, max_train_steps=10**9)
    most = 2**30 // (4 * CHANNELS * (SIDE // 8) ** 2)
    assert encoded_once.pays(long, most, gpu, 1) and not encoded_once.pays(long, most + 1, gpu, 1)
    assert not encoded_once.pays(replace(settings, data_list=None), 4, gpu, 1)
    assert not encoded_once.pays(settings, 4, SimpleNamespace(**vars(gpu) | {"device": torch.device("cpu")}), 1)
    linear = Encoder(PatchEncoder(3, CHANNELS, 8))
    assert not encoded_once.pays(settings, 4, SimpleNamespace(**vars(gpu) | {"first_stage_model": linear}), 1)


class Plain:
    """An encoder that is not linear."""


class Encoder(NamedTuple):
    encoder: object
