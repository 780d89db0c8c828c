"""Latents on disk: the same training without the autoencoder, and never those of other pictures."""

import json
import os
import pickle
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from micro_network import CHANNELS, SIDE, micro_network
from PIL import Image
from processes import finish, start, start_ranks
from safetensors.torch import save_file
from test_training import options, student, weights

from anytext_lcm import cache_latents
from anytext_lcm.data.batch import collate
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.data.packed import PackedDataset, expand
from anytext_lcm.model.vae import PatchEncoder
from anytext_lcm.training import encoded_once, shards
from anytext_lcm.training.data_order import seeded_generator
from anytext_lcm.training.latents import with_latents, write_latents
from anytext_lcm.training.loop import run_distillation
from anytext_lcm.training.settings import TrainSettings
from anytext_lcm.training.shards import MANIFEST, ShardReader
from anytext_lcm.training.step import DistillStep

# Largest difference of x_t, whose deviation is about 1, from that of a training without stored latents. Measured on
# this network: 0 for fp32, 4.8e-5 for fp16, 4.8e-4 for bf16.
BOUNDS = {"fp32": 0.0, "fp16": 1.5e-4, "bf16": 1.5e-3}


def pictures(seed=0, size=3):
    return PackedDataset(MockDataset(size, seed=seed, image_size=SIDE, edit_share=0.0))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    counts = []
    folder = tmp_path_factory.mktemp("latents") / "stored"
    write_latents(folder, pictures(), micro_network(), 2, progress=counts.append)
    assert counts == [2, 1]
    return folder


@pytest.mark.parametrize("precision", BOUNDS)
def test_a_step_with_stored_latents_is_the_step(tmp_path, precision):
    """The posterior is drawn from anew, with the same numbers; the encoder's own batches have one picture here too."""
    model, source = student(), pictures()
    dataset = with_latents(source, write_latents(tmp_path / "latents", source, model, 1, precision=precision), model)
    worst = 0.0
    for i in range(3):
        batches = [expand(collate([items[i]])) for items in (source, dataset)]
        batches[1].pop("img")  # not needed
        parts = [DistillStep(model)(batch, seeded_generator(4)) for batch in batches]
        assert parts[1].start_timesteps.tolist() == parts[0].start_timesteps.tolist()
        worst = max(worst, float((parts[1].noisy_latents - parts[0].noisy_latents).abs().max()))
        torch.testing.assert_close(parts[1].loss, parts[0].loss, rtol=10 * BOUNDS[precision], atol=0)
    assert worst <= BOUNDS[precision] and (worst > 0) == (precision != "fp32")
    parts[1].loss.backward()


def test_pickled_they_stay_on_disk(stored):
    """A worker that is spawned gets the data set pickled."""
    dataset = with_latents(pictures(), stored, micro_network())
    sent = pickle.dumps(dataset)
    assert len(sent) < len(pickle.dumps(pictures())) + 2000
    assert np.array_equal(pickle.loads(sent)[1]["latent_moments"], dataset[1]["latent_moments"])


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
    with pytest.raises(FileNotFoundError, match="manifest.json is missing"):
        with_latents(pictures(), tmp_path, micro_network())
    (tmp_path / "moments.npy").touch()
    with pytest.raises(ValueError, match="one file of an earlier version, which is not read; compute them"):
        with_latents(pictures(), tmp_path, micro_network())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("shard-00000.safetensors", b""),
        ("shard-00000.safetensors", b"PK\x03\x04" * 9),
        ("manifest.json", b""),
        ("manifest.json", b"[]"),
        ("manifest.json", b"[" * 99_999),
        ("manifest.json", b"\xff\xfe"),
    ],
)
def test_damaged_latents_are_refused_in_a_sentence(stored, tmp_path, name, content):
    (shutil.copytree(stored, tmp_path / "damaged") / name).write_bytes(content)
    with pytest.raises(ValueError, match="No latents can be read: .*; compute them") as error:
        with_latents(pictures(), tmp_path / "damaged", micro_network())
    assert "\n" not in str(error.value)


def test_another_store_is_refused(stored, tmp_path):
    manifest = shutil.copytree(stored, tmp_path / "other") / MANIFEST
    about = json.loads(manifest.read_text())
    about["arrays"]["moments"][1] = [2, *about["arrays"]["moments"][1][1:]]
    manifest.write_text(json.dumps(about))
    with pytest.raises(ValueError, match="holds other arrays than manifest.json says"):
        with_latents(pictures(), manifest.parent, micro_network())
    layout = shards.Layout(3, {"pictures": shards.Array(torch.uint8)}, {})
    shards.ShardWriter(tmp_path / "third", layout).write(0, {"pictures": torch.zeros(3)})
    with pytest.raises(ValueError, match="holds other arrays than latents"):
        with_latents(pictures(), tmp_path / "third", micro_network())


def test_precision_does_not_matter_to_whose_latents_they_are(stored):
    with_latents(pictures(), stored, micro_network().to(torch.bfloat16))


def flags_for(teacher, folder, *more):
    network = ["--config", str(teacher / "micro.yaml"), "--teacher_ckpt", str(teacher / "micro.safetensors")]
    return [*network, "--latents", str(folder), "--use_mock_dataset", "--dataset_size", "5", "--no-progress", *more]


def test_the_command_and_a_run_on_what_it_wrote(teacher, tmp_path, capsys):
    folder = tmp_path / "latents"
    assert cache_latents.main(flags_for(teacher, folder)) == 0
    printed = capsys.readouterr()
    assert "train with --latents" in printed.out
    assert "5 pictures of 64 x 64, fp16: 5.16 kB in 1 files; 5.16 kB to write." in printed.err
    run = options(teacher, tmp_path / "run", latents=str(folder), max_train_steps=1, sample_steps=0)
    assert any(value.any() for key, value in weights(run_distillation(run)).items() if "lora_B" in key)
    with pytest.raises(ValueError, match="latents True, now None"):
        run_distillation(run | {"latents": None, "resume_from_checkpoint": "latest", "max_train_steps": 2})
    other = tmp_path / "other.safetensors"
    save_file({k: v.contiguous().clone() for k, v in micro_network(seed=1).state_dict().items()}, other)
    with pytest.raises(ValueError, match="another autoencoder"):
        run_distillation(run | {"teacher_ckpt": str(other), "output_dir": str(tmp_path / "third")})


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--precision", "fp32"], "with precision fp16, now it is fp32"),
        (["--seed", "1"], "with data drawn pictures of 64 px from seed 0, now it is"),
        (["--dataset_size", "6"], "with rows 5, now it is 6"),
    ],
)
def test_the_command_refuses_a_store_of_other_settings(teacher, tmp_path, capsys, more, words):
    assert cache_latents.main(flags_for(teacher, tmp_path / "latents")) == 0
    assert cache_latents.main(flags_for(teacher, tmp_path / "latents", *more)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and words in error


def test_the_command_leaves_other_folders_alone_and_asks_the_disk_first(teacher, tmp_path, capsys, monkeypatch):
    (tmp_path / "thesis.txt").write_text("dear")
    assert cache_latents.main(flags_for(teacher, tmp_path)) == 2
    assert "holds other files" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 1000))
    assert cache_latents.main(flags_for(teacher, tmp_path / "latents")) == 2
    assert "needs 5.16 kB more and its disk has 1 kB left" in capsys.readouterr().err


def command_in_small_files(flags, killed_at=None):
    """The command with two pictures a file; killed right after that many files."""
    from anytext_lcm.training import latents

    layout, write, written = latents.latent_layout, shards.ShardWriter.write, []
    latents.latent_layout = lambda *arguments: layout(*arguments, shard_rows=2)

    def count(writer, shard, arrays):
        write(writer, shard, arrays)
        written.append(shard)
        if len(written) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    shards.ShardWriter.write = count
    assert cache_latents.main(flags) == 0
    assert "RANK" not in os.environ or written == [int(os.environ["RANK"])]


def moments(folder):
    return torch.stack([row["moments"] for row in ShardReader(folder)])


def test_a_killed_command_goes_on_and_three_processes_write_what_one_does(teacher, tmp_path):
    folders = [tmp_path / name for name in ("whole", "killed", "three")]
    flags = [flags_for(teacher, folder, "--train_batch_size", "2") for folder in folders]
    assert finish([start(command_in_small_files, flags[0])]) == [0]
    assert finish([start(command_in_small_files, flags[1], 2)]) == [-signal.SIGKILL]
    with pytest.raises(ValueError, match="shard-00002.safetensors is missing"):
        ShardReader(folders[1])
    kept = [shards.shard_path(folders[1], shard).stat().st_mtime_ns for shard in range(2)]
    assert finish([start(command_in_small_files, flags[1])]) == [0]
    assert kept == [shards.shard_path(folders[1], shard).stat().st_mtime_ns for shard in range(2)]
    assert finish(start_ranks(3, command_in_small_files, flags[2])) == [0, 0, 0]
    whole = moments(folders[0])
    assert whole.shape == (5, 8, 8, 8) and all(torch.equal(moments(folder), whole) for folder in folders[1:])


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
