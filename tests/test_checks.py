"""What a command looks at before it loads anything, and what `doctor` says of it."""

import json
import os
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from micro_network import SIDE, micro_network
from PIL import Image
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from anytext_lcm import benchmark, cache_latents, doctor, evaluate, export, sample, train
from anytext_lcm.adapter.stored import WEIGHTS_FILE, read_adapter
from anytext_lcm.checks import machine
from anytext_lcm.checks.data import look_at_data, look_at_latents
from anytext_lcm.checks.forecast import checkpoint_bytes, duration, flops_per_picture, forecast, latent_bytes, scaled
from anytext_lcm.checks.found import Findings
from anytext_lcm.checks.network import describe_weights, look_at_network, require_network
from anytext_lcm.command import Missing
from anytext_lcm.data.fonts import characters, find_fonts
from anytext_lcm.data.index import open_index
from anytext_lcm.model import loading
from anytext_lcm.model.networks import CONFIGS, EMBEDDED_CONFIG, find_config
from anytext_lcm.training import fitting, memory
from anytext_lcm.training.data_order import build_dataset
from anytext_lcm.training.loop import run_distillation
from anytext_lcm.training.settings import TrainSettings
from anytext_lcm.training.shards import Array, Layout, ShardWriter

QUIET = ["--sample_steps", "0", "--no-progress", "--mixed_precision", "no"]


@pytest.fixture
def given(teacher, tmp_path):
    """Settings of a training of the micro network on mock data."""
    return {
        "config": str(teacher / "micro.yaml"),
        "teacher_ckpt": str(teacher / "micro.safetensors"),
        "output_dir": str(tmp_path / "run"),
        "use_mock_dataset": True,
        "train_batch_size": 2,
        "lora_rank": 2,
    }


@pytest.fixture
def nothing_is_read(monkeypatch):
    """Reading weights as numbers fails the test."""
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("the weights were read"))
    monkeypatch.setattr(
        "anytext_lcm.model.checkpoint.load_strict", lambda *_, **__: pytest.fail("the weights were read")
    )


def states(found):
    return {finding.subject: finding.state for finding in found.found}


def said(found, subject):
    return next(finding.text for finding in found.found if finding.subject == subject)


def records(folder, texts, pictures=True, root="imgs"):
    """A JSON of one record for each text."""
    lines = [{"polygon": [[4, 20], [60, 20], [60, 44], [4, 44]], "text": text, "language": "Latin"} for text in texts]
    listed = [{"img_name": f"{i}.png", "caption": "a wall", "annotations": [line]} for i, line in enumerate(lines)]
    if pictures:
        (folder / "imgs").mkdir(exist_ok=True)
        for record in listed:
            Image.new("RGB", (SIDE, SIDE)).save(folder / "imgs" / record["img_name"])
    path = folder / "data.json"
    path.write_text(json.dumps({"data_root": root, "data_list": listed}))
    return str(path)


# -- the network ------------------------------------------------------------------------------------------


def test_a_yaml_is_found_by_its_plain_name_and_as_in_a_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("anytext2_tiny.yaml", "models_yaml/anytext2_tiny.yaml", str(EMBEDDED_CONFIG)):
        assert find_config(name).samefile(EMBEDDED_CONFIG)
    (tmp_path / "anytext2_tiny.yaml").write_text("model: mine")
    assert find_config("anytext2_tiny.yaml").read_text() == "model: mine"  # one's own comes first
    for name in ("no.yaml", "other/anytext2_sd15.yaml"):
        with pytest.raises(FileNotFoundError, match="anytext2_sd15.yaml, anytext2_tiny.yaml"):
            find_config(name)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_weights_are_compared_by_names_and_shapes(teacher, tmp_path, suffix, nothing_is_read):
    from anytext_lcm.model.anytext2 import AnyText2

    model = AnyText2.from_config(teacher / "micro.yaml", device="meta")
    state = {key: value.contiguous().clone() for key, value in micro_network().state_dict().items()}
    path = tmp_path / f"weights{suffix}"

    def write(values):
        save_file(values, path) if suffix == ".safetensors" else torch.save({"state_dict": values}, path)

    write({key: value.half() if value.is_floating_point() else value for key, value in state.items()})
    assert f"{len(state)} tensors of float16 that fit" in describe_weights(model, path)
    first = next(key for key, value in state.items() if value.ndim == 4)
    for changed, words in (
        ({k: v for k, v in state.items() if k != first}, f"1 missing .{first}"),
        (state | {"extra": torch.zeros(1)}, "1 unexpected .extra"),
        (state | {first: state[first][:1].clone()}, f"of another shape .{first} "),
    ):
        write(changed)
        with pytest.raises(ValueError, match=words):
            describe_weights(model, path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="truncated or no weights file"):
        describe_weights(model, path)


def test_a_large_file_of_old_torch_is_not_read(teacher, tmp_path):
    from anytext_lcm.model.anytext2 import AnyText2

    path = tmp_path / "old.ckpt"
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    model = AnyText2.from_config(teacher / "micro.yaml", device="meta")
    with pytest.raises(ValueError, match="missing"):  # a small one is
        describe_weights(model, path)
    os.truncate(path, 2**28 + 1)
    assert "before 1.6" in describe_weights(model, path)


def test_all_that_is_missing_is_said_at_once_with_its_source(tmp_path, monkeypatch, nothing_is_read):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Missing) as missing:
        require_network("anytext2_sd15.yaml", "models/anytext_v2.0.ckpt")
    tokenizer, weights = missing.value.sentences
    assert "clip-vit-large-patch14/vocab.json is missing" in tokenizer and "iic/cv_anytext2" in tokenizer
    assert weights.startswith("--ckpt models/anytext_v2.0.ckpt does not exist") and "iic/cv_anytext2" in weights
    found = Findings()
    assert look_at_network(found, "anytext2_tiny.yaml", None, "--ckpt") is not None and found.complete
    assert set(states(found)) == {"network", "tokenizer", "weights"}


@pytest.mark.parametrize("command", [sample, evaluate, benchmark, export, train, cache_latents])
def test_a_missing_tokenizer_is_found_before_weights_are_read(command, teacher, tmp_path, monkeypatch, capsys):
    """With weights that would load: the tokenizer alone is missing."""
    from omegaconf import OmegaConf

    yaml = OmegaConf.load(teacher / "micro.yaml")
    yaml.model.params.cond_stage_config.params.version = "nowhere"
    OmegaConf.save(yaml, tmp_path / "micro.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("anytext_lcm.model.anytext2.load_strict", lambda *_, **__: pytest.fail("weights were read"))
    data = records(tmp_path, ["Word"])
    ckpt = str(teacher / "micro.safetensors")
    drawing = ["--config", "micro.yaml", "--ckpt", ckpt]
    training = ["--config", "micro.yaml", "--teacher_ckpt", ckpt, "--use_mock_dataset"]
    adapter = ["--adapter", str(tmp_path / "adapter")]
    if command is export:
        from anytext_lcm.adapter.lora import attach, save_adapter

        save_adapter(attach(micro_network(), 2, 2), tmp_path / "adapter")
    arguments = {
        sample: [*drawing, "--adapter", "none", "--prompt", "a wall", "--line", "cat@4,10,60,40"],
        evaluate: [*drawing, "--adapter", "none", "--lines", "2", "--output", "out"],
        benchmark: [*drawing, "--adapter", "none", "--methods", "teacher-1", "--data", data, "--output", "out"],
        export: [*drawing, *adapter, "--output", "out"],
        train: [*training, "--output_dir", "out"],
        cache_latents: [*training, "--latents", "out"],
    }[command]
    before = sorted(path.name for path in tmp_path.iterdir())
    assert command.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: CLIP tokenizer: nowhere/vocab.json is missing")
    assert printed.err.count("\n") == 1 and printed.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_the_notebooks_way_finds_a_missing_tokenizer_too(teacher, given, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "anytext_lcm.model.anytext2.find_tokenizer", lambda *_: tmp_path / "nowhere"
    )  # as a yaml names it
    monkeypatch.setattr("anytext_lcm.model.anytext2.load_strict", lambda *_, **__: pytest.fail("weights were read"))
    for call in (
        lambda: loading.load_model(given["config"], given["teacher_ckpt"], "cpu"),
        lambda: run_distillation(given | {"mixed_precision": "no"}, None),
    ):
        with pytest.raises(FileNotFoundError, match="vocab.json is missing"):
            call()


# -- the data ---------------------------------------------------------------------------------------------


def test_records_are_looked_at_and_nothing_is_written(given, tmp_path):
    source = records(tmp_path, ["Word", "another"] * 30)
    settings = TrainSettings(**given | {"use_mock_dataset": False, "data_list": (source,)})
    found = Findings()
    assert look_at_data(found, settings) == 60
    with pytest.MonkeyPatch.context() as patch:  # of a large file the first records are read
        patch.setattr("anytext_lcm.checks.data.TRIED_RECORDS", 10)
        assert 55 <= look_at_data(Findings(), settings) <= 65
    assert states(found) == {"data": "note", "pictures": "ok", "fonts": "ok"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.json", "imgs"]
    open_index(source)
    found = Findings()
    assert look_at_data(found, settings) == 60 and states(found)["data"] == "ok"
    for path in list((tmp_path / "imgs").iterdir())[:30]:
        path.unlink()
    found = Findings()
    look_at_data(found, settings)
    assert states(found)["pictures"] == "note"
    found = Findings()
    look_at_data(found, replace(settings, data_root=str(tmp_path / "nowhere")))
    assert states(found)["pictures"] == "missing" and "see --data_root" in said(found, "pictures")


def test_held_out_records_are_looked_at(given, tmp_path):
    source = records(tmp_path, ["Word", "another"])
    settings = TrainSettings(
        **given | {"use_mock_dataset": False, "data_list": (source,), "validation_list": (source,)}
    )
    found = Findings()
    assert look_at_data(found, settings) == 2 and "2 of its records" in said(found, "held out")
    found = Findings()
    look_at_data(found, replace(settings, validation_list=("nope.json",)))
    assert states(found)["held out"] == "missing" and "nope.json" in said(found, "held out")


def test_lines_that_no_font_holds(given, tmp_path):
    settings = TrainSettings(**given | {"use_mock_dataset": False})
    for texts, state, count in ((["Word", "招牌", "門"], "note", "2 of 3"), (["招牌"], "missing", "1 of 1")):
        found = Findings()
        look_at_data(found, replace(settings, data_list=(records(tmp_path, texts),)))
        assert states(found)["fonts"] == state and f"cannot write {count} lines" in said(found, "fonts")
        assert "Arial_Unicode.ttf" in said(found, "fonts")
    [sentence] = [finding.text for finding in found.found if finding.state == "missing"]
    with pytest.raises(ValueError) as refused:  # as the data set itself says it
        build_dataset(replace(settings, data_list=(records(tmp_path, ["招牌"]),)))
    assert sentence == str(refused.value)


def test_a_large_file_with_its_data_root_at_the_end(given, tmp_path, monkeypatch):
    monkeypatch.setattr("anytext_lcm.checks.data.TRIED_RECORDS", 2)
    source = Path(records(tmp_path, ["Word"] * 5))
    settings = TrainSettings(**given | {"use_mock_dataset": False, "data_list": (str(source),)})
    listed = json.loads(source.read_text())["data_list"]
    for root, count, state in (("imgs", 5, "note"), (None, 2, "missing")):
        source.write_text(json.dumps({"data_list": listed[:count]} | ({"data_root": root} if root else {})))
        found = Findings()
        look_at_data(found, settings)
        assert states(found)["pictures"] == state, said(found, "pictures")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "no complete JSON"),
        ('{"data_root": "imgs", "data_list": []}', "No record"),
        ('{"data_root": "imgs"}', "no 'data_list'"),
    ],
)
def test_json_that_cannot_be_used(given, tmp_path, content, words):
    (tmp_path / "data.json").write_text(content)
    found = Findings()
    settings = TrainSettings(**given | {"use_mock_dataset": False, "data_list": (str(tmp_path / "data.json"),)})
    assert look_at_data(found, settings) is None and words in said(found, "data") and not found.complete


def test_latents(tmp_path):
    found = Findings()
    look_at_latents(found, str(tmp_path / "none"), 5)
    assert states(found) == {"latents": "missing"}
    kinds = {"moments": Array(torch.float16, (8, 8, 8))}
    ShardWriter(tmp_path / "store", Layout(rows=5, arrays=kinds, settings={}))
    for count, state in ((5, "ok"), (6, "note"), (None, "ok")):
        found = Findings()
        look_at_latents(found, str(tmp_path / "store"), count)
        assert states(found) == {"latents": state}


# -- the machine ------------------------------------------------------------------------------------------


def test_the_largest_batch_is_the_last_that_fits(given):
    settings = TrainSettings(**given)
    sizes = [memory.estimate(replace(settings, train_batch_size=batch))["total"] for batch in range(1, 8)]
    for batch, size in enumerate(sizes, 1):
        assert machine.largest_batch(settings, size + 1e-9) == batch
    assert machine.largest_batch(settings, sizes[0] - 1e-9) == 0


def test_verdicts_for_cards(given, monkeypatch):
    monkeypatch.setattr(
        machine, "largest_batch", lambda s, usable: int(usable) * (2 if s.gradient_checkpointing else 1)
    )
    settings = TrainSettings(**given | {"train_batch_size": 20})
    said = {line.partition(": ")[0]: line for line in machine.verdicts(settings)}
    assert "batch 20 fits (" in said["24 GB"] and "23, 46 with" in said["24 GB"]
    assert "fits with --gradient_checkpointing" in said["16 GB"]
    assert "fits with --gradient_checkpointing" in said["12 GB"]
    [small] = [v for v in machine.verdicts(replace(settings, train_batch_size=25)) if v.startswith("12 GB")]
    assert "does not fit: use at most 22, with" in small


def test_disk_memory_and_precision(given, tmp_path):
    found = Findings()
    machine.look_at_disk(found, str(tmp_path / "a" / "b"), 10, "checkpoints")
    machine.look_at_disk(found, str(tmp_path), 1e18, "checkpoints")
    machine.look_at_memory(found, 10)
    machine.look_at_memory(found, 10**15)
    machine.look_at_precision(found, TrainSettings(**given | {"mixed_precision": "fp16"}))
    assert [(f.subject, f.state) for f in found.found[:4]] == [
        ("disk", "ok"),
        ("disk", "missing"),
        ("memory", "ok"),
        ("memory", "note"),
    ]
    if not torch.cuda.is_available():
        assert states(found)["precision"] == "missing"
    assert list(tmp_path.iterdir()) == []


class FakeGpus:
    """As many GPUs of one size, as far as defaults ask."""

    def __init__(self, monkeypatch, count, gib, bf16=True):
        about = type("About", (), {"total_memory": int(gib * 2**30), "name": "Card"})()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: about)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)


def test_on_a_cpu_nothing_is_decided(given, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = TrainSettings(**given)
    fitted, decided = fitting.fit_to_machine(settings)
    assert decided == [] and fitted == replace(settings, num_workers=0)
    FakeGpus(monkeypatch, 3, 24)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    assert fitting.fit_to_machine(settings) == (fitted, [])


def test_defaults_that_fit_a_gpu(given, monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr(fitting, "available_cores", lambda: 16)
    monkeypatch.setattr(fitting, "find_fonts", lambda text: ["/fonts/Song.ttf"])
    FakeGpus(monkeypatch, 3, 24)
    settings = TrainSettings(**given | {"use_mock_dataset": False, "data_list": ("a.json",)})
    fitted, decided = fitting.fit_to_machine(settings)
    assert (fitted.num_workers, fitted.mixed_precision, fitted.gradient_checkpointing) == (4, "bf16", False)
    assert fitted.fonts == ("DejaVuSans.ttf", "/fonts/Song.ttf")
    assert len(decided) == 4 and "--mixed_precision bf16 was chosen for this machine." in decided
    whole = memory.estimate(replace(fitted, train_batch_size=64))["total"]
    FakeGpus(monkeypatch, 1, whole + 0.4, bf16=False)  # half a GiB is left to the driver
    fitted, _ = fitting.fit_to_machine(replace(settings, train_batch_size=64))
    assert fitted.mixed_precision == "fp16" and fitted.gradient_checkpointing
    kept = {"num_workers": 0, "mixed_precision": "no", "gradient_checkpointing": False, "fonts": ("x.ttf",)}
    assert fitting.fit_to_machine(replace(settings, **kept)) == (replace(settings, **kept), [])


def test_the_font_for_chinese_lines_holds_them():
    if found := find_fonts(fitting.CHINESE):
        assert {ord(sign) for sign in fitting.CHINESE} <= characters(found[0])


# -- the forecast -----------------------------------------------------------------------------------------


def test_time_and_cost_follow_from_flops():
    from anytext_lcm.checks.forecast import Forecast

    run = Forecast(per_picture=2e12, pictures=144, updates=1000, processes=3)
    assert run.total == 2e12 * 144_000
    assert run.hours(40) == pytest.approx(2e12 * 144_000 / (3 * 40e12) / 3600)
    said = run.lines(40, 1.5)
    assert said["work"] == "2 TFLOP a picture, 288 TFLOP an update of 144 pictures, 288 PFLOP in 1,000 updates"
    assert said["time"].startswith("about 0.7 hours with 3 x 40 TFLOP/s") and said["cost"].startswith("about 3 at 1.5")
    assert set(run.lines(None, None)) == {"work", "time"} and "--tflops" in run.lines(None, None)["time"]


def test_flops_of_a_step_are_those_of_the_real_step(given):
    """Against a step with numbers in it, counted by torch, which leaves out the CPU's kernel for attention."""
    from micro_network import micro_batch

    from anytext_lcm.adapter.lora import attach
    from anytext_lcm.training.step import DistillStep

    settings = TrainSettings(**given | {"latents": "stored"})
    counted = sum(flops_per_picture(settings).values())
    model = attach(micro_network(), 2, 2)
    step = DistillStep(model, guidance_scale=2.0, negative_prompt="").eval()
    batch = micro_batch(2)
    with torch.no_grad():
        moments = model.first_stage_model.encode(batch["img"].float())
        step.blank(batch)
    batch |= {"latent_moments": torch.cat(moments, dim=1)}
    model.embedding_manager.line_embeddings = lambda *_, **__: None

    def attention(q, k, v, *_, **__):  # queries by keys, weights by values
        return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])

    kernel = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    with FlopCounterMode(display=False, custom_mapping=kernel) as counter:
        step(batch, torch.Generator().manual_seed(0)).loss.backward()
    assert counted == pytest.approx(counter.get_total_flops() / 2, rel=0.05)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.first_stage_model.encode(batch["img"][:1].float())
    more = sum(flops_per_picture(replace(settings, latents=None)).values()) - counted
    assert more == pytest.approx(counter.get_total_flops())


def test_space_on_the_disk(given, tmp_path, teacher):
    from anytext_lcm.model.anytext2 import AnyText2

    short = given | {"max_train_steps": 2, "checkpointing_steps": 1, "gradient_accumulation_steps": 1}
    short |= {"sample_steps": 0, "mixed_precision": "no", "progress": False, "ema_decay": 0.9}
    short |= {"lora_rank": 64}  # so that weights take more than names
    run_distillation(short, None)
    settings = TrainSettings(**short)
    expected = checkpoint_bytes(settings, memory.estimate(settings))
    files = [path for path in (tmp_path / "run").glob("checkpoint-*/**/*") if path.suffix in (".pt", ".safetensors")]
    assert sum(path.stat().st_size for path in files) == pytest.approx(expected, rel=0.3)
    weights = [path.stat().st_size for path in files if path.suffix == ".safetensors"]
    assert expected / 8 <= min(weights)
    network = AnyText2.from_config(given["config"], device="meta")
    channels = network.latent_channels
    assert latent_bytes(network, SIDE, 10) == np.zeros((10, 2 * channels, SIDE // 8, SIDE // 8), np.float16).nbytes


def test_a_forecast_counts_all_processes(given):
    settings = TrainSettings(**given | {"gradient_accumulation_steps": 4})
    one, three = forecast(settings, 1), forecast(settings, 3)
    assert one.pictures == 8 and three.pictures == 24 and three.hours(1) == pytest.approx(one.hours(1))


# -- the commands -----------------------------------------------------------------------------------------


def test_doctor_with_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("anytext_lcm.checks.everything.add_estimate", lambda *_: None)  # seconds, tested elsewhere
    assert doctor.main([]) == 2
    printed = capsys.readouterr()
    errors = printed.err.splitlines()
    assert len(errors) == 2 and all(line.startswith("error: ") for line in errors)
    assert "vocab.json" in errors[0] and "models/anytext_v2.0.ckpt does not exist" in errors[1]
    assert "1,496.7 million weights" in printed.out and "AnyWord-3M" in printed.out
    assert list(tmp_path.iterdir()) == []


def test_doctor_and_dry_run_when_all_is_there(given, tmp_path, capsys, nothing_is_read):
    flags = [f"--{name}={value}" for name, value in given.items() if name != "use_mock_dataset"]
    flags += ["--use_mock_dataset"]
    for command, more in ((doctor, []), (train, ["--dry_run"])):
        assert command.main([*flags, *more, "--tflops", "1", "--price", "2"]) == 0
        out = capsys.readouterr().out
        for word in (
            "network",
            "tokenizer",
            "weights",
            "data",
            "memory",
            "24 GB: batch 2 fits",
            "disk",
            "work",
            "cost",
        ):
            assert word in out, word
        assert out.endswith("Nothing is missing.\n") and not (tmp_path / "run").exists()
    cache = [flag for flag in flags if "lora" not in flag and "output_dir" not in flag]
    assert cache_latents.main([*cache, "--latents", str(tmp_path / "latents"), "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "10.2 MB for 10,000 pictures in half precision" in out and "latents of 10,000 pictures" in out
    assert not (tmp_path / "latents").exists()


@pytest.mark.parametrize("command", [evaluate, benchmark])
def test_dry_runs_of_what_draws(teacher, tmp_path, capsys, nothing_is_read, command):
    """The checks of the run itself and what it takes; no weight is read as a number, and nothing is written."""
    from anytext_lcm.adapter.lora import attach, save_adapter

    adapter = save_adapter(attach(micro_network(), 2, 2), tmp_path / "adapter")
    more = (
        ["--lines", "4"] if command is evaluate else ["--data", records(tmp_path, ["Word", "more"]), "--samples", "3"]
    )
    flags = ["--config", str(teacher / "micro.yaml"), "--ckpt", str(teacher / "micro.safetensors"), "--dry_run", *more]
    flags += ["--adapter", str(adapter), "--output", str(tmp_path / "new" / "out"), "--guidance_scale", "3"]
    methods = ["--methods", "teacher-20", "student-4"]
    before = sorted(tmp_path.rglob("*"))
    assert command.main([*flags, *methods]) == 0
    out = capsys.readouterr().out
    assert out.endswith("Nothing is missing.\n") and sorted(tmp_path.rglob("*")) == before
    pictures = int(re.search(r"pictures +(\d+) by each of teacher-20, student-4", out)[1])
    assert pictures == 2 * 3 if command is benchmark else 2 <= pictures <= 4
    unet, control = memory.evaluation_flops(str(teacher / "micro.yaml"), SIDE)
    flops = pictures * (44 * unet + 3 * control)  # two branches of the teacher, one of the student
    assert f"{44 * pictures} evaluations of the UNet, {scaled(flops)}FLOP" in out
    assert f"rank 2, {len(read_adapter(adapter)[1]) // 2} layers that fit" in out
    assert command.main([*flags, "--methods", "student-4", "--negative_prompt", "grey"]) == 2
    assert capsys.readouterr().err.startswith("error: Without guidance a negative prompt has no effect")
    state = {key.replace("diffusion_model", "other"): value for key, value in read_adapter(adapter)[1].items()}
    save_file(state, adapter / WEIGHTS_FILE)
    wanted = [command.main([*more_flags, *methods]) for more_flags in (flags, [f for f in flags if f != "--dry_run"])]
    assert wanted == [2, 2] and capsys.readouterr().err.count("does not fit this network") == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--objective", "path"], "--objective path needs the teacher's stored paths"),
        (["--phases", "4"], "--phases has no effect on --objective lcm"),
        (["--patience", "3", "--panel_prompts", "0"], "--patience needs a panel to go by"),
        (["--validation_share", "0.1"], "--validation_share has no effect on mock data"),
        (["--fonts", "nope.ttf"], "--fonts has no effect on mock data"),
        (["--paths", "P"], "--use_mock_dataset has no effect beside --paths"),
        (["--resume_from_checkpoint", "nope"], "nope is no checkpoint to resume from"),
        (["--resume_from_checkpoint", "latest"], "holds no checkpoint to resume from"),
        (["--lora_targets", "zero_convs", "nope"], "Unknown LoRA target 'nope'"),
        (["--lora_targets", ""], "A LoRA target is empty; name a group"),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses(given, tmp_path, capsys, nothing_is_read, monkeypatch, more, words):
    """In the same words, and neither leaves anything behind."""
    monkeypatch.setattr("anytext_lcm.checks.everything.add_estimate", lambda *_: None)  # seconds, tested elsewhere
    flags = [f"--{name}={value}" for name, value in given.items() if name != "use_mock_dataset"]
    flags += ["--use_mock_dataset", "--mixed_precision", "no", *more]
    for command, own in ((train, ["--dry_run"]), (doctor, []), (train, [])):
        assert command.main([*flags, *own]) == 2
        assert f"error: {words}" in capsys.readouterr().err.replace(f"{tmp_path / 'run'} ", "")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_looks_at_the_folder_that_was_named(given, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("anytext_lcm.checks.everything.add_estimate", lambda *_: None)  # seconds, tested elsewhere
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "outputs" / "run"
    short = {"max_train_steps": 1, "gradient_accumulation_steps": 1, "sample_steps": 0, "mixed_precision": "no"}
    run_distillation(given | short | {"output_dir": str(run), "progress": False}, None)
    flags = ["--config", given["config"], "--teacher_ckpt", given["teacher_ckpt"], "--use_mock_dataset"]
    for command, own in ((train, ["--dry_run"]), (doctor, [])):
        assert command.main([*flags, *own, "--output_dir", str(run)]) == 2
        assert "run holds checkpoint-1 already" in capsys.readouterr().err
        assert command.main([*flags, *own, "--output_dir", str(run), "--resume_from_checkpoint", "latest"]) == 0
        assert "goes on from" in capsys.readouterr().out
        assert command.main([*flags, *own]) == 0  # outputs/run stands in for a folder to be named


def test_stored_latents_of_a_run_that_holds_records_out(given, tmp_path):
    writer = ShardWriter(tmp_path / "latents", Layout(3, {"a": Array(torch.float16, (1,))}, {}, 4))
    writer.write(0, {"a": torch.zeros(3, 1, dtype=torch.float16)})
    found = Findings()
    look_at_latents(found, str(tmp_path / "latents"), 4)
    look_at_latents(found, str(tmp_path / "latents"), 4, held_out=0.2)
    assert [finding.state for finding in found.found] == ["note", "ok"] and "0.2 of them" in found.found[1].text


def test_sizes_and_times_keep_three_digits():
    assert [f"{scaled(n)}B" for n in (12, 15_100_000, 999_700, 197e9)] == ["12 B", "15.1 MB", "1 MB", "197 GB"]
    said = [duration(n) for n in (0.2313, 99, 720, 7200, 16_006_320)]
    assert said == ["0.231 seconds", "99 seconds", "12 minutes", "2 hours", "4,446 hours"]


def test_estimate_says_time_disk_and_cards(given, capsys):
    flags = ["--estimate", "--config", given["config"], "--lora_rank", "2"]
    assert train.main([*flags, "--tflops", "2"]) == 0
    out = capsys.readouterr().out
    assert "24 GB: " in out and "12 GB: " in out and "for checkpoints" in out and "1 x 2 TFLOP/s" in out
    for more, words in (
        (["--tflops", "0"], "--tflops must lie in"),
        (["--price", "2"], "--price needs --tflops"),
        (["--tflops", "1", "--price", "-1"], "--price must lie in"),
    ):
        assert train.main([*flags, *more]) == 2 and words in capsys.readouterr().err


def test_every_missing_thing_has_a_sentence_of_its_own(given, tmp_path, capsys):
    flags = ["--config", given["config"], "--teacher_ckpt", "nowhere.ckpt", "--output_dir", str(tmp_path / "run")]
    assert train.main([*flags, "--data_list", "nowhere.json", *QUIET]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in errors] == [True, True]
    assert "nowhere.ckpt does not exist" in errors[0] and "nowhere.json" in errors[1]
    assert not (tmp_path / "run").exists()


def test_yaml_files_are_in_one_place():
    link = Path(__file__).parents[1] / "models_yaml"
    assert sorted(path.name for path in CONFIGS.iterdir()) == ["anytext2_sd15.yaml", "anytext2_tiny.yaml"]
    assert link.resolve() == CONFIGS and link.samefile(CONFIGS)
