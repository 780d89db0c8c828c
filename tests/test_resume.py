"""A run that is killed anywhere and resumed is the unbroken run, bit for bit; a checkpoint is whole or not there."""

import errno
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import time

import pytest
import torch
from micro_network import micro_network
from processes import NoisyPictures, finish, start, start_ranks
from safetensors.torch import save_file

from anytext_lcm.adapter.stored import read_adapter
from anytext_lcm.training import checkpoints, data_order, loop, resume, watching
from anytext_lcm.training.checkpoints import find_resume, what_is_wrong_with
from anytext_lcm.training.loop import run_distillation
from anytext_lcm.training.settings import REMOVED, TrainSettings
from anytext_lcm.training.state_file import REQUIRED

STEPS = 3


def options(teacher, output, **changes):
    """A checkpoint at every update, an average, and of the checkpoints the last two."""
    return {
        "config": str(teacher / "micro.yaml"),
        "teacher_ckpt": str(teacher / "micro.safetensors"),
        "output_dir": str(output),
        "train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "lora_rank": 1,
        "lora_alpha": 1,
        "lora_targets": ("zero_convs", "unet_attnx"),
        "max_train_steps": STEPS,
        "checkpointing_steps": 1,
        "checkpoints_total_limit": 2,
        "ema_decay": 0.9,
        "sample_steps": 0,
        "guidance_scale": 2.0,
        "negative_prompt": "",
        "mixed_precision": "no",
        "progress": False,
    } | changes


def train(settings):
    run_distillation(settings, None, NoisyPictures())


def train_and_die(settings, place):
    """Kills itself at the `place`-th of the moments a checkpoint is made of: before and after each call that writes,
    flushes, renames or deletes, and in the middle of writing the optimiser's state."""
    moments = 0

    def moment():
        nonlocal moments
        moments += 1
        if moments == place:
            os.kill(os.getpid(), signal.SIGKILL)

    def dangerous(module, name):
        real = getattr(module, name)

        def call(*arguments, **more):
            moment()
            found = real(*arguments, **more)
            moment()
            return found

        setattr(module, name, call)

    save = torch.save

    def halfway(state, file):
        file.write(b"half of it")
        file.flush()
        moment()
        file.seek(0)
        file.truncate()
        save(state, file)

    torch.save = halfway
    for module, name in (
        (resume, "save_adapter"),
        (torch, "save"),
        (os, "fsync"),
        (os, "replace"),
        (shutil, "rmtree"),
    ):
        dangerous(module, name)
    train(settings)


def assert_same(one, other, where=""):
    """Nested dicts, lists and tensors, to the last bit."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    else:
        assert one == other, where


def assert_same_checkpoint(one, other):
    """Adapter and average, optimiser, progress."""
    for name in ("", "ema"):
        pairs = [read_adapter(folder / name) for folder in (one, other)]
        assert_same(*pairs, name)
    states = [torch.load(folder / "training_state.pt", weights_only=True) for folder in (one, other)]
    assert_same(*states)


def whole(output):
    """The checkpoints that a resumed run would choose among, all of them checked byte by byte."""
    found = checkpoints.checkpoints(output)
    assert all(what_is_wrong_with(path) is None for path in found.values())
    return found


@pytest.fixture(scope="module")
def unbroken(teacher, tmp_path_factory):
    """The run nobody stopped, and how long it took."""
    output = tmp_path_factory.mktemp("unbroken")
    began = time.monotonic()
    assert finish([start(train, options(teacher, output))]) == [0]
    return output / f"checkpoint-{STEPS}", time.monotonic() - began


def kill_and_resume(teacher, folder, unbroken, kills, seed=0):
    """Runs are killed and resumed until `kills` have hit, half of them by the clock and half while saving; each run
    that gets to its end has to be the unbroken one."""
    rng, hits, tries, runs = random.Random(seed), 0, 0, 0
    wanted, seconds = unbroken
    output = folder / "0"
    while hits < kills:
        tries += 1
        assert tries < 4 * kills, "too few of the kills hit a run"
        begun = checkpoints.was_started(output)
        settings = options(teacher, output, resume_from_checkpoint="latest" if begun else None)
        if tries % 2:
            process = start(train_and_die, settings, rng.randint(1, 60))
            process.join()
        else:
            process = start(train, settings)
            time.sleep(rng.uniform(0, seconds))
            process.kill()
            process.join()
        assert process.exitcode in (0, -signal.SIGKILL), f"exit code {process.exitcode} after {hits} kills"
        hits += process.exitcode == -signal.SIGKILL
        if STEPS in whole(output):  # perhaps complete though killed: on with a new one
            assert_same_checkpoint(wanted, output / wanted.name)
            runs += 1
            output = folder / str(runs)
    if checkpoints.was_started(output):
        assert finish([start(train, options(teacher, output, resume_from_checkpoint="latest"))]) == [0]
        assert_same_checkpoint(wanted, output / wanted.name)
        left = sorted(path.name for path in output.iterdir())
        assert left == [
            f"checkpoint-{STEPS - 1}",
            f"checkpoint-{STEPS}",
            "logs",
            "run.yaml",
        ]  # nothing half-written is left


def test_ten_kills(teacher, tmp_path, unbroken):
    kill_and_resume(teacher, tmp_path, unbroken, kills=10)


@pytest.mark.full
def test_fifty_kills(teacher, tmp_path, unbroken):
    kill_and_resume(teacher, tmp_path, unbroken, kills=50, seed=1)


def train_after_other_draws(settings, keep_seeds=True):
    """In a process whose global generators stand somewhere else; without seeds they are not begun anew."""
    if not keep_seeds:
        data_order.seed_random_state = lambda seed: None
    torch.manual_seed(3)
    train(settings)


def test_the_place_in_the_run_decides_what_a_data_set_draws(teacher, tmp_path, unbroken):
    assert finish([start(train, options(teacher, tmp_path, max_train_steps=2))]) == [0]
    again = options(teacher, tmp_path, resume_from_checkpoint="latest")
    assert finish([start(train_after_other_draws, again)]) == [0]
    assert_same_checkpoint(unbroken[0], tmp_path / unbroken[0].name)


def test_a_run_without_these_seeds_would_be_another(teacher, tmp_path, unbroken):
    """Otherwise the tests above would show less than they say."""
    assert finish([start(train_after_other_draws, options(teacher, tmp_path), False)]) == [0]
    with pytest.raises(AssertionError):
        assert_same_checkpoint(unbroken[0], tmp_path / unbroken[0].name)


def test_with_a_worker_it_is_the_unbroken_run_too(teacher, tmp_path, unbroken):
    """The generators that the data set draws from are the worker's then."""
    assert finish([start(train, options(teacher, tmp_path / "two", num_workers=1, max_train_steps=2))]) == [0]
    again = options(teacher, tmp_path / "two", num_workers=2, resume_from_checkpoint="latest")
    assert finish([start(train, again)]) == [0]
    assert_same_checkpoint(unbroken[0], tmp_path / "two" / unbroken[0].name)


def test_two_processes_one_killed(teacher, tmp_path):
    """The other one ends by itself, and the run goes on as if nothing had been."""
    assert finish(start_ranks(2, train, options(teacher, tmp_path / "one"))) == [0, 0]
    output = tmp_path / "two"
    processes = start_ranks(2, train, options(teacher, output))
    while not (output / "checkpoint-1").exists() and processes[0].is_alive():
        time.sleep(0.01)
    processes[1].kill()
    codes = finish(processes, seconds=60)
    assert codes[1] == -signal.SIGKILL and codes[0] != 0
    if STEPS not in whole(output):
        assert finish(start_ranks(2, train, options(teacher, output, resume_from_checkpoint="latest"))) == [0, 0]
    assert_same_checkpoint(tmp_path / "one" / f"checkpoint-{STEPS}", output / f"checkpoint-{STEPS}")


def half_precision(monkeypatch, scale):
    """fp16 with its scaler on the CPU, where accelerate has none; the run asks for "no" and gets it."""
    real = loop.start_accelerator

    def accelerator(settings):
        found = real(settings)
        found.state._mixed_precision, found.native_amp = "fp16", True
        found.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return found

    monkeypatch.setattr(loop, "start_accelerator", accelerator)


def test_fp16_skips_while_its_scale_settles_and_resumes_exactly(teacher, tmp_path, monkeypatch):
    scale = 2.0**26  # the first gradients overflow
    half_precision(monkeypatch, scale)
    longer = {"max_train_steps": 6, "checkpointing_steps": 2}
    train(options(teacher, tmp_path / "one", **longer))
    last = tmp_path / "one" / "checkpoint-6"
    state = torch.load(last / "training_state.pt", weights_only=True)
    assert 0 < state["progress"]["skipped"] < 6 and state["progress"]["skipped_in_row"] == 0
    assert state["scaler"]["scale"] == scale / 2 ** state["progress"]["skipped"]
    weights = read_adapter(last)[1]
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert any(value.any() for key, value in weights.items() if "lora_B" in key)
    train(options(teacher, tmp_path / "two", max_train_steps=2))
    train(options(teacher, tmp_path / "two", **longer, resume_from_checkpoint="latest"))
    assert_same_checkpoint(last, tmp_path / "two" / last.name)


# -- damage -----------------------------------------------------------------------------------------------


def damage(path, how):
    if how == "gone":
        path.unlink()
    elif how == "short":
        path.write_bytes(path.read_bytes()[:-1])
    else:  # one bit
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["gone", "short", "flipped"])
def test_a_damaged_checkpoint_is_never_chosen(teacher, tmp_path, unbroken, how, capsys):
    for name in ("adapter_model.safetensors", "training_state.pt", "ema/adapter_config.json"):
        output = tmp_path / name.replace("/", "-")
        shutil.copytree(unbroken[0].parent, output)
        damage(output / f"checkpoint-{STEPS}" / name, how)
        latest = TrainSettings.from_dict(options(teacher, output, resume_from_checkpoint="latest"))
        assert find_resume(latest) == output / f"checkpoint-{STEPS - 1}"
        said = capsys.readouterr().err
        reason = {"gone": "is not in it", "short": "has ", "flipped": "has changed"}[how]
        assert f"checkpoint-{STEPS} is passed over: {name} {reason}" in said
        named = options(teacher, output, resume_from_checkpoint=str(output / f"checkpoint-{STEPS}"))
        with pytest.raises(FileNotFoundError, match=f"{name} (is not in it|has )"):
            find_resume(TrainSettings.from_dict(named))


def test_a_checkpoint_without_its_state_is_not_in_the_way(teacher, tmp_path, unbroken, capfd):
    """It is passed over, and put aside when the run comes to its step again."""
    assert finish([start(train, options(teacher, tmp_path, max_train_steps=2))]) == [0]
    damage(tmp_path / "checkpoint-2" / "training_state.pt", "gone")
    capfd.readouterr()
    assert finish([start(train, options(teacher, tmp_path, resume_from_checkpoint="latest"))]) == [0]
    said = capfd.readouterr().err
    assert "checkpoint-2 is passed over: training_state.pt is not in it" in said
    assert_same_checkpoint(unbroken[0], tmp_path / unbroken[0].name)
    [aside] = tmp_path.glob("checkpoint-2.damaged-*")
    assert aside.name in said and (aside / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("how", ["short", "flipped"])
def test_a_folder_of_damaged_checkpoints_starts_anew(teacher, tmp_path, unbroken, how, capsys):
    """With the flag or without, whatever the damage; with one that is whole it is refused without the flag."""
    output = shutil.copytree(unbroken[0].parent, tmp_path / "run")
    fresh = TrainSettings.from_dict(options(teacher, output))
    latest = TrainSettings.from_dict(options(teacher, output, resume_from_checkpoint="latest"))
    damage(output / f"checkpoint-{STEPS}" / "training_state.pt", how)
    with pytest.raises(ValueError, match="already; resume from latest"):
        find_resume(fresh)
    damage(output / f"checkpoint-{STEPS - 1}" / "training_state.pt", how)
    assert find_resume(fresh) is None and find_resume(latest) is None
    assert "holds no complete checkpoint; it starts anew" in capsys.readouterr().err
    shutil.rmtree(output / "logs")  # as of a folder that was copied without
    with pytest.raises(FileNotFoundError, match="leave the flag out to start"):
        find_resume(latest)
    assert find_resume(fresh) is None


def test_a_damaged_later_checkpoint_does_not_push_out_a_new_one(tmp_path, unbroken):
    output = shutil.copytree(unbroken[0].parent, tmp_path / "run")
    shutil.copytree(unbroken[0], output / "checkpoint-9")
    damage(output / "checkpoint-9" / "training_state.pt", "flipped")
    checkpoints.prune(output, limit=1, best=0, last=STEPS)
    assert sorted(checkpoints.checkpoints(output)) == [STEPS, 9]


def test_a_mistyped_folder_is_refused_and_stays_unmade(teacher, tmp_path):
    settings = options(teacher, tmp_path / "mistyped", resume_from_checkpoint="latest")
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="holds no checkpoint to resume from"):
            train(settings)
    assert not (tmp_path / "mistyped").exists()


def test_a_run_stopped_before_its_first_event_starts_anew(teacher, tmp_path, capsys):
    with checkpoints.exclusive(tmp_path):
        pass
    assert find_resume(TrainSettings.from_dict(options(teacher, tmp_path, resume_from_checkpoint="latest"))) is None
    assert "holds no complete checkpoint; it starts anew" in capsys.readouterr().err


def test_no_manifest_no_checkpoint(teacher, tmp_path, unbroken):
    shutil.copytree(unbroken[0], tmp_path / "checkpoint-9")
    (tmp_path / "checkpoint-9" / "manifest.json").write_text(json.dumps({"files": {}}))
    assert checkpoints.checkpoints(tmp_path) == {} and "is not in it" in what_is_wrong_with(tmp_path / "checkpoint-9")


def full_from(step, limit):
    """From this step on no file of the process may grow beyond `limit` bytes: a disk that is full."""
    real = loop.save_checkpoint

    def save(state, settings):
        if state.progress.step == step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return real(state, settings)

    loop.save_checkpoint = save


def train_on_a_full_disk(settings, limit, words):
    full_from(2, limit)
    try:
        train(settings)
    except ValueError as error:
        os.write(words, str(error).encode())


def test_a_full_disk_keeps_the_last_good_checkpoint(teacher, tmp_path, unbroken):
    size = (unbroken[0] / "training_state.pt").stat().st_size
    read, write = os.pipe()
    assert finish([start(train_on_a_full_disk, options(teacher, tmp_path), size // 2, write)]) == [0]
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    assert "checkpoint-2 could not be written" in said and "the last good one is checkpoint-1" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "logs", "run.yaml"]
    assert finish([start(train, options(teacher, tmp_path, resume_from_checkpoint="latest"))]) == [0]
    assert_same_checkpoint(unbroken[0], tmp_path / unbroken[0].name)


def test_no_space_left_is_said_in_words(teacher, tmp_path, monkeypatch):
    def fsync(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ValueError, match=r"checkpoint-1 could not be written \(No space left.*no earlier one"):
        train(options(teacher, tmp_path, max_train_steps=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "run.yaml"]


# -- runs that are not this one ---------------------------------------------------------------------------


def test_another_base_rank_or_average_is_refused(teacher, tmp_path, unbroken):
    output = unbroken[0].parent
    other = tmp_path / "other.safetensors"
    save_file({k: v.contiguous().clone() for k, v in micro_network(seed=1).state_dict().items()}, other)
    more = {"resume_from_checkpoint": "latest", "max_train_steps": STEPS + 1}
    for changes, words in (
        ({"teacher_ckpt": str(other)}, "trained on other base weights"),
        ({"lora_rank": 2}, "lora_rank 1, now 2"),
        ({"ema_decay": 0.0}, "ema_decay 0.9, now 0.0"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps 2, now 1"),
    ):
        with pytest.raises(ValueError, match=words):
            train(options(teacher, output, **more, **changes))
    assert sorted(whole(output)) == [STEPS - 1, STEPS]


def change_state(checkpoint, change):
    """Writes the checkpoint's training state again, as `change` leaves it, with a manifest that fits."""
    file = checkpoint / "training_state.pt"
    state = torch.load(file, weights_only=True)
    change(state)
    torch.save(state, file)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest["files"][file.name] = {"bytes": file.stat().st_size, "sha256": digest}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def first_moments(state):
    return state["optimizer"]["state"][0]


BROKEN_STATES = {
    **{f"{key} is missing": lambda s, key=key: s.pop(key) for key in REQUIRED},
    **{f"{key} in training_state": lambda s, key=key: s.update({key: torch.zeros(2)}) for key in REQUIRED},
    **{
        f"progress.{key} is missing": lambda s, key=key: s["progress"].pop(key)
        for key in ("step", "skipped", "skipped_in_row", "best_score", "best_step", "panels_since_best")
    },
    "progress.step in": lambda s: s["progress"].update(step="2"),
    "progress.skipped in": lambda s: s["progress"].update(skipped=True),
    "progress.best_score in": lambda s: s["progress"].update(best_score="x"),
    "progress.best_step in": lambda s: s["progress"].update(best_step=-1),
    "progress.more in": lambda s: s["progress"].update(more=1),
    "settings.seed in": lambda s: s["settings"].update(seed=torch.zeros(3)),
    "scaler.scale is missing": lambda s: s.update(scaler={"growth_factor": 2.0}),
    "optimizer.state is missing": lambda s: s["optimizer"].pop("state"),
    "optimizer.state in": lambda s: s["optimizer"].update(state=[]),
    "optimizer.param_groups is missing": lambda s: s["optimizer"].pop("param_groups"),
    "param_groups in .* lists no parameters": lambda s: s["optimizer"].update(param_groups=[1]),
    "param_groups in .* lists no numbers": lambda s: s["optimizer"]["param_groups"][0].update(params=["a"]),
    "holds 9999, which": lambda s: s["optimizer"]["state"].update({9999: first_moments(s)}),
    "moments of parameter 0 are missing": lambda s: s["optimizer"]["state"].pop(0),
    "moments of parameter 1 are missing": lambda s: s["optimizer"]["state"][1].pop("exp_avg"),
    "moments of parameter 2 are missing": lambda s: s["optimizer"]["state"][2].update(exp_avg_sq=None),
    "moments of parameter 3 are missing": lambda s: s["optimizer"]["state"].update({3: 7}),
    r"optimizer.state\[0\].step is missing": lambda s: first_moments(s).pop("step"),
}


@pytest.mark.parametrize("words", BROKEN_STATES)
def test_a_state_that_lacks_something_is_passed_over(teacher, tmp_path, unbroken, words, capsys):
    output = shutil.copytree(unbroken[0].parent, tmp_path / "run")
    change_state(output / f"checkpoint-{STEPS}", BROKEN_STATES[words])
    latest = TrainSettings.from_dict(options(teacher, output, resume_from_checkpoint="latest"))
    assert find_resume(latest) == output / f"checkpoint-{STEPS - 1}"
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and re.search(f"checkpoint-{STEPS} is passed over: .*{words}", said), said
    named = options(teacher, output, resume_from_checkpoint=str(output / f"checkpoint-{STEPS}"))
    with pytest.raises(FileNotFoundError, match=words):
        find_resume(TrainSettings.from_dict(named))


def test_a_state_of_other_parameters_is_refused(teacher, tmp_path, unbroken):
    """Its keys and types are right, so that only the run can see it."""
    output = shutil.copytree(unbroken[0].parent, tmp_path / "run")
    more = options(teacher, output, resume_from_checkpoint="latest", max_train_steps=STEPS + 1)
    for change in (
        lambda s: first_moments(s).update(exp_avg=torch.zeros(5)),
        lambda s: s["optimizer"]["param_groups"][0]["params"].reverse(),
    ):
        change_state(output / f"checkpoint-{STEPS}", change)
        with pytest.raises(ValueError, match="the optimizer's state is of other parameters"):
            train(more)
        change_state(output / f"checkpoint-{STEPS}", lambda s: s.update(torch.load(unbroken[0] / "training_state.pt")))
    change_state(output / f"checkpoint-{STEPS}", lambda s: s.update(ema_updates=None))
    with pytest.raises(ValueError, match="is not the average of this run's adapter"):
        train(more)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"files": []}',
        '{"files": null}',
        '{"files": {"a": 3}}',
        '{"files": {"": {}}}',
        "[" * 9999,
    ],
)
def test_a_manifest_of_another_form_is_passed_over(teacher, tmp_path, unbroken, text, capsys):
    output = shutil.copytree(unbroken[0].parent, tmp_path / "run")
    (output / f"checkpoint-{STEPS}" / "manifest.json").write_text(text)
    latest = TrainSettings.from_dict(options(teacher, output, resume_from_checkpoint="latest"))
    assert find_resume(latest) == output / f"checkpoint-{STEPS - 1}"
    assert f"checkpoint-{STEPS} is passed over" in capsys.readouterr().err


def test_a_resumed_run_may_have_another_learning_rate(teacher, tmp_path, unbroken, capsys):
    """As the advice after updates that are not finite says."""
    output = shutil.copytree(unbroken[0].parent, tmp_path / "run")
    again = {"resume_from_checkpoint": "latest", "max_train_steps": STEPS + 1, "learning_rate": 1e-3}
    last = run_distillation(options(teacher, output, **again), None, NoisyPictures())
    said = capsys.readouterr().err
    assert "learning rate is 0.001 from update 4 on, before it was 0.01: another run from here on" in said
    state = torch.load(last / "training_state.pt", weights_only=True)
    assert state["settings"]["learning_rate"] == 1e-3 == state["optimizer"]["param_groups"][0]["lr"]


def test_another_run_from_there_on_when_asked(teacher, tmp_path, unbroken, capsys):
    """Other settings and another number of processes, with a flag, and the log says so; never another adapter."""
    output = shutil.copytree(unbroken[0].parent, tmp_path / "run")
    again = {"resume_from_checkpoint": "latest", "max_train_steps": STEPS + 1}
    changed = options(teacher, output, **again, train_batch_size=2, loss="l2")
    with pytest.raises(ValueError, match="train_batch_size 1, now 2; use the same to resume, or say --resume_changed"):
        run_distillation(changed, None, NoisyPictures())
    with pytest.raises(ValueError, match="lora_rank 1, now 2; use the same to resume.$"):
        run_distillation(changed | {"resume_changed": True, "lora_rank": 2}, None, NoisyPictures())
    assert "loss: huber\n" in (output / "run.yaml").read_text()  # of the run that was, not of those refused
    last = run_distillation(changed | {"resume_changed": True}, None, NoisyPictures())
    said = capsys.readouterr().err
    assert "Another run from update 4 on: loss 'huber', now 'l2'; train_batch_size 1, now 2." in said
    assert last.name == f"checkpoint-{STEPS + 1}" and "loss: l2\n" in (output / "run.yaml").read_text()
    assert torch.load(last / "training_state.pt", weights_only=True)["settings"]["train_batch_size"] == 2
    two = options(teacher, output, **again | {"max_train_steps": STEPS + 2}, train_batch_size=2, loss="l2")
    assert 0 not in finish(start_ranks(2, train, two))
    assert finish(start_ranks(2, train, two | {"resume_changed": True})) == [0, 0]
    state = torch.load(output / f"checkpoint-{STEPS + 2}" / "training_state.pt", weights_only=True)
    assert state["processes"] == 2 and state["progress"]["step"] == STEPS + 2


def test_names_that_only_look_like_checkpoints(teacher, tmp_path, unbroken):
    output = shutil.copytree(unbroken[0].parent, tmp_path / "run")
    for name in ("checkpoint-²", "checkpoint-٣", "checkpoint-", "checkpoint--1", "checkpoint-1e3"):
        shutil.copytree(unbroken[0], output / name)
    (output / "checkpoint-99").write_text("a file")
    latest = TrainSettings.from_dict(options(teacher, output, resume_from_checkpoint="latest"))
    assert find_resume(latest) == output / f"checkpoint-{STEPS}" and sorted(whole(output)) == [STEPS - 1, STEPS]


def test_settings_that_are_no_longer_there(teacher, tmp_path, unbroken):
    """An older checkpoint resumes if it was trained as every run is now, and is refused in a sentence otherwise."""
    common = {"loss_gain": 1.0, "guidance_spread": 0.0, "solver_steps": 50, "optimizer": "adamw"}
    assert common | {"scenery": True} == REMOVED
    train(options(teacher, tmp_path, max_train_steps=2))
    checkpoint = tmp_path / "checkpoint-2"
    again = options(teacher, tmp_path, resume_from_checkpoint="latest")
    for changed in ({"loss_gain": 5.0}, {"guidance_spread": 2.0}, {"solver_steps": 100}, {"optimizer": "adamw8bit"}):
        change_state(checkpoint, lambda state, found=common | changed: state["settings"].update(found))
        [(name, value)] = changed.items()
        with pytest.raises(ValueError, match=f"was trained with {name} {value!r}, which this version no longer has"):
            train(again)
    mock = common | {"use_mock_dataset": True, "scenery": False}
    change_state(checkpoint, lambda state: state["settings"].update(mock))
    with pytest.raises(ValueError, match="was trained with scenery False, which this version no longer has"):
        train(again)
    change_state(checkpoint, lambda state: state["settings"].update(mock | {"use_mock_dataset": False}))
    train(again)
    assert_same_checkpoint(unbroken[0], tmp_path / unbroken[0].name)


def test_a_checkpoint_that_holds_random_states_resumes(teacher, tmp_path, unbroken):
    """As those of earlier versions do; nothing reads them."""
    train(options(teacher, tmp_path, max_train_steps=2))
    change_state(tmp_path / "checkpoint-2", lambda state: state.update(random=[{"torch": torch.get_rng_state()}]))
    train(options(teacher, tmp_path, resume_from_checkpoint="latest"))
    assert_same_checkpoint(unbroken[0], tmp_path / unbroken[0].name)


def hold(output, ready):
    with checkpoints.exclusive(output):
        os.write(ready, b"!")
        time.sleep(600)


def test_a_folder_in_use_is_refused(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "LOCK_SECONDS", 0.1)
    read, write = os.pipe()
    holder = start(hold, tmp_path, write)
    os.read(read, 1)
    try:
        with pytest.raises(ValueError, match="Another run is writing to"):
            train(options(teacher, tmp_path, max_train_steps=1))
    finally:
        holder.kill()
        holder.join()
    train(options(teacher, tmp_path, max_train_steps=1))  # a killed run holds nothing


def test_the_best_checkpoint_outlives_the_limit_and_patience_ends_the_run(teacher, tmp_path, capsys):
    readings = {2: 0.5, 3: 0.5, 4: 0.4}  # a tie is no better
    settings = options(
        teacher,
        tmp_path,
        sample_steps=1,
        patience=2,
        panel_prompts=2,
        checkpointing_steps=1,
        max_train_steps=9,
        checkpoints_total_limit=1,
    )
    real = TrainSettings.from_dict(settings)
    assert real.patience == 2

    def look(model, batch, settings, step):
        return {"panel/ned": readings.get(step, 0.1)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watching, "ReadingPanel", lambda *_: lambda model: {})
        last = run_distillation(settings, look, NoisyPictures())
    assert last.name == "checkpoint-4" and sorted(whole(tmp_path)) == [2, 4]
    assert "no better than at 2; the best adapter is in checkpoint-2" in capsys.readouterr().out
