"""Ctrl-C and a dead worker end a command in one sentence, and what was kept is said."""

import os
import signal
import sys
import time
from types import ModuleType

import psutil
import pytest
from processes import finish, start, start_ranks

from anytext_lcm import cache_latents, command, train
from anytext_lcm.training.processes import ignore_interrupts

ALWAYS = ["--use_mock_dataset", "--no-progress", "--train_batch_size", "1"]
LONG = [*ALWAYS, "--gradient_accumulation_steps", "1", "--lora_rank", "1", "--lora_targets", "zero_convs"]
LONG += ["--sample_steps", "0", "--checkpointing_steps", "1", "--checkpoints_total_limit", "2"]
LONG += ["--max_train_steps", "1000000", "--mixed_precision", "no"]


def network(teacher):
    return ["--config", str(teacher / "micro.yaml"), "--teacher_ckpt", str(teacher / "micro.safetensors")]


def call(main, arguments, folder):
    """Run a command with its words in files of `folder`, and leave with its exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    place = folder / f"said{os.environ.get('RANK', '')}"
    sys.stdout = sys.stderr = place.open("w", buffering=1)
    os.dup2(sys.stderr.fileno(), 2)
    sys.exit(main(arguments))


def await_path(path, processes, seconds=120):
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until and all(process.is_alive() for process in processes), "it did not get there"
        time.sleep(0.05)


def interrupt(processes):
    """Ctrl-C in a terminal: SIGINT for each process of the group, workers too."""
    everyone = [process.pid for process in processes]
    everyone += [child.pid for pid in everyone for child in psutil.Process(pid).children(recursive=True)]
    for pid in everyone:
        os.kill(pid, signal.SIGINT)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_says_from_where_it_goes_on(teacher, tmp_path, workers):
    run = tmp_path / "run"
    flags = [*network(teacher), *LONG, "--output_dir", str(run), "--num_workers", str(workers)]
    process = start(call, train.main, flags, tmp_path)
    await_path(run / "checkpoint-2", [process])
    interrupt([process])
    assert finish([process], 60) == [130]
    [said] = (tmp_path / "said").read_text().splitlines()
    newest = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert said == (
        f"stopped: {newest} is kept; the same command with --resume_from_checkpoint latest goes on from there."
    )
    assert not list(run.glob(".checkpoint-*"))


def test_a_worker_is_silent_when_the_process_it_serves_has_gone(capsys, monkeypatch):
    """The thread by which multiprocessing hands tensors over printed a traceback beside the sentence, now and then."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    before = signal.getsignal(signal.SIGINT)
    try:
        ignore_interrupts(0)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    for error in (ConnectionResetError(104, "reset"), BrokenPipeError(32, "pipe"), EOFError()):
        sys.excepthook(type(error), error, None)
    assert capsys.readouterr().err == ""
    sys.excepthook(ValueError, ValueError("else"), None)
    assert "ValueError: else" in capsys.readouterr().err


def test_of_several_processes_the_first_says_it(teacher, tmp_path):
    run = tmp_path / "run"
    processes = start_ranks(2, call, train.main, [*network(teacher), *LONG, "--output_dir", str(run)], tmp_path)
    await_path(run / "checkpoint-2", processes)
    interrupt(processes)
    assert finish(processes, 60) == [130, 130]
    [said] = (tmp_path / "said0").read_text().splitlines()
    assert said.startswith(f"stopped: {run / 'checkpoint-'}") and "goes on from there" in said
    assert (tmp_path / "said1").read_text() == ""


def test_a_training_without_a_checkpoint(tmp_path):
    args = train.build_parser().parse_args(["--config", "a", "--output_dir", str(tmp_path)])
    assert "has no checkpoint yet, so no update is kept" in train.newest(args)


def test_a_training_stopped_while_torch_is_imported(tmp_path, monkeypatch):
    """To import it once more would end the process, so a module that is not there whole is left alone."""
    args = train.build_parser().parse_args(["--config", "a", "--output_dir", str(tmp_path)])
    for half in (None, ModuleType("anytext_lcm.training.checkpoints")):
        monkeypatch.setitem(sys.modules, "anytext_lcm.training.checkpoints", half)
        assert train.newest(args) == f"the training had not begun; {tmp_path} is as it was."


def test_cached_latents_say_that_they_go_on(teacher, tmp_path):
    folder = tmp_path / "latents"
    flags = [*network(teacher), *ALWAYS, "--latents", str(folder), "--dataset_size", "1000000"]
    process = start(call, cache_latents.main, flags, tmp_path)
    await_path(folder / "shard-00000.safetensors", [process])
    interrupt([process])
    assert finish([process], 60) == [130]
    *before, said = (tmp_path / "said").read_text().splitlines()
    assert said == f"stopped: {folder} keeps the whole files; the same command goes on."
    assert "1000000 pictures of 64 x 64, fp16: 1.03 GB in 3907 files; 1.03 GB to write." in before
    assert any(line.startswith("About ") and "pictures a second" in line for line in before)
    assert all(path.name.startswith(("shard-", "manifest")) for path in folder.iterdir())


def test_any_command_ends_with_130(capsys):
    def stopped(args):
        raise KeyboardInterrupt

    assert command.run(command.new_parser("none", "Does nothing."), stopped, []) == 130
    assert capsys.readouterr().err == "stopped: files that were complete are kept, none is half-written.\n"


def test_a_killed_worker_is_one_sentence(teacher, tmp_path):
    run = tmp_path / "run"
    flags = [*network(teacher), *LONG, "--output_dir", str(run), "--num_workers", "2"]
    process = start(call, train.main, flags, tmp_path)
    await_path(run / "checkpoint-2", [process])
    psutil.Process(process.pid).children()[-1].kill()
    assert finish([process], 60) == [2]
    [said] = (tmp_path / "said").read_text().splitlines()
    assert said.startswith("error: A process that prepares batches (pid") and "fewer --num_workers" in said
    assert (run / "checkpoint-2").exists() or len(list(run.glob("checkpoint-*"))) == 2
