"""The teacher's paths on disk: drawn from captions and lines alone, gone on with, refused, and trained on."""

import json
import os
import shutil
import signal
import sys

import numpy as np
import pytest
import torch
from micro_network import CHANNELS, SIDE, micro_network
from processes import finish, start

from anytext_lcm import cache_latents, train
from anytext_lcm.adapter import lora
from anytext_lcm.adapter.card import describe_adapter, facts
from anytext_lcm.data.batch import collate
from anytext_lcm.drawing.draw import prepare
from anytext_lcm.drawing.noise import initial_noise
from anytext_lcm.lcm.paths import Paths
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.lcm.steps import DDIMSolver
from anytext_lcm.model import checkpoint
from anytext_lcm.training import path_store, shards, watching
from anytext_lcm.training.memory import evaluation_flops
from anytext_lcm.training.path_store import PathDataset
from anytext_lcm.training.settings import TrainSettings
from anytext_lcm.training.shards import MANIFEST, shard_path
from anytext_lcm.training.step import DistillStep

ENTRIES = [
    {"prompt": "a red sign", "lines": ["AB@4,8,60,28#yellow"]},
    {"prompt": "two words", "lines": ["ab@4,4,60,24", "12@4,36,60,60"]},
]


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(path_store, "SHARD_PATHS", 2)


def network(teacher):
    return ["--config", str(teacher / "micro.yaml"), "--teacher_ckpt", str(teacher / "micro.safetensors")]


def command(teacher, folder, *more):
    own = ["--latents", str(folder), "--draw", "5", "--guidance_scale", "3", "--negative_prompt", "", "--no-progress"]
    return network(teacher) + own + ["--train_batch_size", "2", *more]


def settings(teacher, folder, **changed):
    config, weights = (str(teacher / name) for name in ("micro.yaml", "micro.safetensors"))
    own = {"config": config, "teacher_ckpt": weights, "output_dir": str(folder / "out"), "paths": str(folder)}
    return TrainSettings.from_dict(own | {"guidance_scale": 3.0, "negative_prompt": "", "panel_prompts": 0} | changed)


@pytest.fixture(scope="module")
def drawn(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "paths"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(path_store, "SHARD_PATHS", 2)
        assert cache_latents.main(command(teacher, folder)) == 0
    return folder


def test_a_path_is_the_guided_teacher_s_ddim_in_float64(teacher, drawn):
    data = PathDataset(settings(teacher, drawn))
    assert len(data) == 5 and data.reader.layout.shards == 3
    item, model = data[3], micro_network()
    assert item["path"].shape == (51, CHANNELS, SIDE // 8, SIDE // 8) and item["path"].dtype == torch.float16
    assert "img" not in item and (item["masked_img"] == -1).all()
    seeds = [3]
    prepared = prepare(model, collate([item]), seeds)
    x = initial_noise(seeds, prepared.latent_shape).half().double()
    abar = model.alphas_cumprod.double()
    with torch.no_grad():
        controls = [model.control(branch) for branch in (prepared.conditional, prepared.unconditional)]
        for step, t in enumerate(range(999, 0, -20), 1):
            at = torch.full((1,), t)
            eps = [
                model.predict_noise(x.float(), at, branch, control).double()
                for branch, control in zip((prepared.conditional, prepared.unconditional), controls, strict=True)
            ]
            eps = eps[1] + 3 * (eps[0] - eps[1])
            x0 = (x - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()
            np.testing.assert_allclose(item["path"][step].double(), x0[0], rtol=2e-3, atol=5e-3)
            s = max(t - 20, 0)
            x = abar[s].sqrt() * x0 + (1 - abar[s]).sqrt() * eps
    ends = Paths(DDIMSolver(NoiseSchedule(model.alphas_cumprod)), item["path"][None]).end
    np.testing.assert_allclose(ends, x, rtol=2e-3, atol=5e-3)


def test_a_killed_run_goes_on_to_the_same_files(teacher, drawn, tmp_path, capsys):
    folder = tmp_path / "again"
    calls = []
    original = path_store._draw

    def dies(rows, *arguments):
        calls.append(rows)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(rows, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(path_store, "_draw", dies)
        assert cache_latents.main(command(teacher, folder)) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert [shard_path(folder, n).is_file() for n in range(3)] == [True, False, False]
    first = shard_path(folder, 0).stat().st_mtime_ns
    assert cache_latents.main(command(teacher, folder)) == 0
    assert shard_path(folder, 0).stat().st_mtime_ns == first
    for n in range(3):
        assert shard_path(folder, n).read_bytes() == shard_path(drawn, n).read_bytes()


def test_what_it_takes_is_said_first(teacher, tmp_path, capsys):
    more = ["--estimate", "--tflops", "0.5"]
    assert cache_latents.main(command(teacher, tmp_path / "none", *more)) == 0 and not (tmp_path / "none").exists()
    said = capsys.readouterr().out
    unet, control = evaluation_flops(str(teacher / "micro.yaml"), SIDE)
    hours = 5 * 2 * (50 * unet + control) / 0.5e12 / 3600
    assert "5 paths of 50 steps take 500 evaluations of the UNet" in said and f"{hours:.3g} hours" in said
    assert f"{5 * 51 * CHANNELS * (SIDE // 8) ** 2 * 2 / 2**30:.3g} GiB" in said
    folder = tmp_path / "kept"
    cache_latents.main(command(teacher, folder))
    out = capsys.readouterr().out
    assert out.index("500 evaluations") < out.index("5 paths are in")


def test_captions_of_a_file_are_drawn_again_and_again(teacher, tmp_path, capsys):
    (tmp_path / "wishes.json").write_text(json.dumps(ENTRIES))
    folder = tmp_path / "paths"
    assert cache_latents.main(command(teacher, folder, "--captions", str(tmp_path / "wishes.json"))) == 0
    data = PathDataset(settings(teacher, folder))
    assert [data[n]["img_caption"] for n in range(5)] == ["a red sign", "two words"] * 2 + ["a red sign"]
    assert not torch.equal(data[0]["path"], data[2]["path"])  # the same prompt from other noise
    (folder / path_store.CAPTIONS).write_text(json.dumps(ENTRIES[:1]))
    with pytest.raises(ValueError, match="is not the file that the paths"):
        PathDataset(settings(teacher, folder))
    (tmp_path / "wishes.json").write_text(json.dumps([*ENTRIES, {"prompt": "x", "lines": ["AB@4,8,600,28"]}]))
    capsys.readouterr()
    wrong = command(teacher, tmp_path / "new", "--captions", str(tmp_path / "wishes.json"))
    assert cache_latents.main(wrong) == 2 and "Entry 2" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_captions_are_written_in_the_font_that_is_named(teacher, tmp_path, capsys):
    entries = [{"prompt": "a sign", "lines": ["\u2312\u2313@4,8,60,28"]}]  # DejaVu Sans lacks these
    (tmp_path / "wishes.json").write_text(json.dumps(entries))
    wishes, folder = ("--captions", str(tmp_path / "wishes.json")), tmp_path / "paths"
    assert cache_latents.main(command(teacher, folder, *wishes)) == 2
    assert "choose a font that covers" in capsys.readouterr().err
    assert cache_latents.main(command(teacher, folder, *wishes, "--fonts", "DejaVuSansMono.ttf")) == 0
    data = PathDataset(settings(teacher, folder))
    assert len(data) == 5 and data[0]["gly_line"].any()
    (folder / path_store.FONT).write_bytes(b"another")
    with pytest.raises(ValueError, match="captions.ttf is not the file that the paths"):
        PathDataset(settings(teacher, folder))
    assert cache_latents.main(command(teacher, tmp_path / "new", "--fonts", "DejaVuSerif.ttf")) == 2
    assert "--fonts has no effect on --draw without --captions" in capsys.readouterr().err
    assert cache_latents.main(command(teacher, tmp_path / "new", *wishes, "--use_mock_dataset")) == 2
    assert "--use_mock_dataset has no effect on --draw, which needs no pictures" in capsys.readouterr().err
    two = ("--fonts", "DejaVuSerif.ttf", "DejaVuSans.ttf")
    assert cache_latents.main(command(teacher, tmp_path / "new", *wishes, *two)) == 2
    assert "one font, not 2" in capsys.readouterr().err


def test_a_share_of_the_captions_is_held_out_for_panel_and_pictures(teacher, tmp_path, capfd, monkeypatch):
    entries = [{"prompt": f"wall {n}", "lines": [f"W{n}@4,8,60,28"]} for n in range(8)]
    (tmp_path / "wishes.json").write_text(json.dumps(entries))
    folder = tmp_path / "paths"
    wishes = ["--captions", str(tmp_path / "wishes.json")]
    own = ["--latents", str(folder), "--draw", "9", "--guidance_scale", "3", "--negative_prompt", "", "--no-progress"]
    assert cache_latents.main(network(teacher) + own + ["--train_batch_size", "3", *wishes]) == 0
    data = PathDataset(settings(teacher, folder, validation_share=0.5))
    trained = {data[n]["img_caption"] for n in range(len(data))}
    held = {data.held_out[n]["img_caption"] for n in range(len(data.held_out))}
    assert trained | held == {f"wall {n}" for n in range(8)} and not trained & held and len(held) >= 2
    assert all(
        torch.equal(data[n]["path"], PathDataset(settings(teacher, folder))[row]["path"])
        for n, row in enumerate(data.rows)
    )
    assert len(PathDataset(settings(teacher, folder, validation_share=0.01)).held_out) == 2  # what a panel needs
    flags = network(teacher) + ["--paths", str(folder), "--guidance_scale", "3", "--negative_prompt", ""]
    flags += ["--train_batch_size", "1", "--gradient_accumulation_steps", "1", "--lora_rank", "2", "--lora_alpha", "2"]
    flags += ["--mixed_precision", "no", "--max_train_steps", "1", "--no-progress", "--sample_steps", "1"]
    seen, draw = [], watching.write_sheet
    monkeypatch.setattr(
        watching, "write_sheet", lambda path, batch, drawn: seen.append(batch) or draw(path, batch, drawn)
    )
    assert train.main([*flags, "--output_dir", str(tmp_path / "a"), "--validation_share", "0.5"]) == 0
    assert set(seen[0]["img_caption"]) <= held and (tmp_path / "a" / "samples" / "000001.png").is_file()
    assert "No panel is read" not in capfd.readouterr().err
    assert train.main([*flags, "--output_dir", str(tmp_path / "b"), "--validation_share", "0.25", "--dry_run"]) == 0
    assert f"{folder}: 7 paths of the teacher, 2 captions are held out" in capfd.readouterr().out
    flags += ["--panel_prompts", "2", "--output_dir", str(tmp_path / "b")]
    assert train.main([*flags, "--patience", "1"]) == 2
    assert "hold captions out with --validation_share" in capfd.readouterr().err


def test_a_caption_that_is_there_twice_is_trained_on_or_held_out(teacher, tmp_path):
    entries = [{"prompt": f"wall {n % 3}", "lines": [f"W{n % 3}@4,8,60,28"]} for n in range(12)]
    (tmp_path / "wishes.json").write_text(json.dumps(entries))
    wishes = path_store.Wishes(settings(teacher, tmp_path), 12, tmp_path / "wishes.json")
    for share in (0.01, 0.3, 0.5):
        places, alone = wishes.held_out(share)
        held = {alone[n]["img_caption"] for n in range(len(alone))}
        trained = {wishes[place]["img_caption"] for place in range(12) if place not in places}
        assert len(held) == 2 and len(trained) == 1 and not held & trained


def test_rules_hold_out_words_of_their_own(teacher, drawn):
    with pytest.raises(ValueError, match="leave --validation_share out"):
        PathDataset(settings(teacher, drawn, validation_share=0.1))
    items = watching.panel_items(settings(teacher, drawn, panel_prompts=2), None)
    assert len(items) == 2 and watching.panel_items(settings(teacher, drawn, panel_prompts=2), None, True) == []


REFUSED = {
    "another guidance": ({"guidance_scale": 4.0}, "computed with guidance_scale 3.0, now it is 4.0"),
    "another negative prompt": ({"negative_prompt": "blurry"}, "negative_prompt"),
    "a data set besides": ({"use_mock_dataset": True}, "--use_mock_dataset has no effect beside --paths"),
    "phases of lcm": ({"phases": 4}, "--phases has no effect on --objective lcm"),
    "too many phases": ({"phases": 60, "objective": "pcm"}, "--phases must be an integer"),
    "another size": ({"image_size": 128}, "are of 64 px, the run has 128"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(teacher, drawn, tmp_path, capsys, name):
    changed, words = REFUSED[name]
    flags = network(teacher) + ["--paths", str(drawn), "--output_dir", str(tmp_path / "out"), "--mixed_precision", "no"]
    own = {"guidance_scale": 3.0, "negative_prompt": "", "panel_prompts": 0} | changed
    for key, value in own.items():
        flags += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    assert train.main([*flags, "--sample_steps", "0", "--max_train_steps", "1"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_another_guidance_is_found_before_weights_are_loaded(teacher, drawn, tmp_path, capsys):
    flags = network(teacher) + ["--paths", str(drawn), "--output_dir", str(tmp_path / "out"), "--dry_run"]
    assert train.main([*flags, "--negative_prompt", "", "--guidance_scale", "4"]) == 2
    assert "computed with guidance_scale 3.0, now it is 4.0" in capsys.readouterr().err


def test_a_damaged_store_is_refused(teacher, drawn, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(drawn, folder)
    path = shard_path(folder, 1)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="shard-00001.safetensors is truncated.*go on with the command"):
        PathDataset(settings(teacher, folder))
    about = json.loads((folder / MANIFEST).read_text())
    about["settings"]["teacher"] = "0" * 16
    path.write_bytes(shard_path(drawn, 1).read_bytes())
    (folder / MANIFEST).write_text(json.dumps(about))
    mine = settings(teacher, folder)
    with pytest.raises(ValueError, match="computed with teacher 0000000000000000"):
        PathDataset(mine).check(mine, micro_network())
    about["settings"]["scenery"] = True  # of the time of two kinds of mock pictures
    (folder / MANIFEST).write_text(json.dumps(about))
    assert len(PathDataset(mine)) == len(PathDataset(settings(teacher, drawn)))
    about["settings"]["scenery"] = False
    (folder / MANIFEST).write_text(json.dumps(about))
    with pytest.raises(ValueError, match="of mock pictures of an earlier version; draw them with"):
        PathDataset(mine)
    with pytest.raises(FileNotFoundError, match="holds no paths"):
        PathDataset(settings(teacher, tmp_path))
    with pytest.raises(ValueError, match="needs the teacher's stored paths"):
        settings(teacher, folder, objective="path", paths=None, use_mock_dataset=True)


@pytest.mark.parametrize("objective", ["path", "lcm", "pcm", "teacher_x0"])
def test_a_step_on_paths_is_that_of_the_stored_point(teacher, drawn, objective):
    """The loss of a step, written out from the stored path; the teacher is never evaluated."""
    data = PathDataset(settings(teacher, drawn))
    batch = collate([data[0], data[4]])
    model = lora.attach(micro_network(), 4, 4)
    for parameter in lora.adapter_state(model).values():
        parameter.data += 0.05
    step = DistillStep(model, objective=objective, guidance_scale=3.0)
    seen = []
    model.model.diffusion_model.register_forward_hook(lambda *_: seen.append(1))
    parts = step(batch, torch.Generator().manual_seed(5))
    assert len(seen) == {"path": 1, "teacher_x0": 1}.get(objective, 2)
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        cond = model.condition(batch, g)
        index = torch.randint(50, (2,), generator=g)
        t = 20 * (index + 1) - 1
        path = Paths(step.solver, torch.stack(batch["path"]))
        eps = model.predict_noise(path.at(t), t, cond, model.control(cond))
        x0 = step.schedule.x0_from_eps(path.at(t), eps, t)
    assert torch.equal(parts.start_timesteps, t) and torch.equal(parts.teacher_x0, path.x0(index))
    torch.testing.assert_close(parts.x0, x0, rtol=1e-3, atol=1e-3)
    if objective == "path":
        e = torch.tensor([max(edge for edge in (0, 259, 499, 759) if edge < time) for time in t.tolist()])
        torch.testing.assert_close(parts.target, path.at(e))
    parts.loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in lora.adapter_state(model).values())


def test_a_run_on_paths_trains_and_says_what_it_was_made_for(teacher, drawn, tmp_path, capsys):
    flags = network(teacher) + ["--paths", str(drawn), "--objective", "path", "--output_dir", str(tmp_path)]
    flags += ["--guidance_scale", "3", "--negative_prompt", "", "--panel_prompts", "0", "--sample_steps", "0"]
    flags += ["--max_train_steps", "2", "--train_batch_size", "2", "--mixed_precision", "no", "--no-progress"]
    assert train.main([*flags, "--gradient_accumulation_steps", "1", "--lora_rank", "2", "--lora_alpha", "2"]) == 0
    found = describe_adapter(tmp_path / "checkpoint-2")
    assert found["training"]["made_for"] == {"samplers": ["lcm", "deterministic"], "steps": [4, 16]}
    assert found["training"]["paths"] is True and found["training"]["objective"] == "path"
    assert facts(found)["Made for"] == "`--sampler lcm`, 4 to 16 steps"


def test_a_resumed_run_has_the_same_paths(teacher, drawn, tmp_path, capsys):
    """Paths of the same teacher from other noise are another data set."""
    other, out = tmp_path / "other", tmp_path / "out"
    assert cache_latents.main(command(teacher, other, "--seed", "5")) == 0
    own = ["--guidance_scale", "3", "--negative_prompt", "", "--panel_prompts", "0", "--sample_steps", "0"]
    own += ["--train_batch_size", "1", "--gradient_accumulation_steps", "1", "--lora_rank", "2", "--lora_alpha", "2"]
    flags = [*network(teacher), *own, "--mixed_precision", "no", "--no-progress", "--output_dir", str(out)]
    assert train.main([*flags, "--paths", str(drawn), "--max_train_steps", "1"]) == 0
    shutil.copytree(drawn, tmp_path / "moved")
    again = [*flags, "--resume_from_checkpoint", "latest"]
    assert train.main([*again, "--paths", str(tmp_path / "moved"), "--max_train_steps", "2"]) == 0
    capsys.readouterr()
    assert train.main([*again, "--paths", str(other), "--max_train_steps", "3"]) == 2
    error = capsys.readouterr().err
    assert "stored paths '5 of seed 0, mock_seed 0', now '5 of seed 5, mock_seed 5'" in error and error.count("\n") == 1
    assert not (out / "checkpoint-3").exists()
    assert train.main([*again, "--paths", str(other), "--max_train_steps", "3", "--resume_changed"]) == 0
    assert "Another run from update 3 on: stored paths" in capsys.readouterr().err


def test_a_disk_that_does_not_hold_the_paths_is_found_first(teacher, drawn, tmp_path, capsys, monkeypatch):
    """And what is there already needs no space again."""
    assert cache_latents.main([*command(teacher, tmp_path / "many"), "--draw", "9" * 20]) == 2
    error = capsys.readouterr().err
    assert "B more and its disk has" in error and error.count("\n") == 1 and not (tmp_path / "many").exists()
    free = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    assert cache_latents.main(command(teacher, tmp_path / "one")) == 2 and not (tmp_path / "one").exists()
    assert cache_latents.main(command(teacher, drawn)) == 0


def draws(flags):
    sys.exit(cache_latents.main(flags))


def dies_while_it_writes(flags):
    """As under the kernel's out-of-memory killer: the second file is half there."""

    def write(state, path, metadata=None):
        if shard_path(path.parent, 0).is_file():
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        checkpoint.write_state_dict(state, path, metadata)

    shards.write_state_dict = write
    draws(flags)


def test_after_sigkill_two_processes_at_once_end_with_the_same_files(teacher, drawn, tmp_path):
    folder = tmp_path / "paths"
    assert finish([start(dies_while_it_writes, command(teacher, folder))]) == [-signal.SIGKILL]
    assert any(path.name.startswith(".shard-00001") for path in folder.iterdir())
    with pytest.raises(ValueError, match="not complete: shard-00001.safetensors is missing; go on with the command"):
        PathDataset(settings(teacher, folder))
    assert finish([start(draws, command(teacher, folder)) for _ in range(2)]) == [0, 0]
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in drawn.iterdir())
    for path in drawn.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
