"""Launching from a notebook: what is settled before the fork, and a run in the background."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_resume import STEPS, assert_same_checkpoint, options

from anytext_lcm.training import launch
from anytext_lcm.training.logs import read_curves
from anytext_lcm.training.processes import await_younger_siblings

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    monkeypatch.setattr(launch, "_cpu_is_ours", False)
    for name in ("ACCELERATE_USE_CPU", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_options(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert launch.launch_options(3) == {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0"}
    assert "ACCELERATE_USE_CPU" not in os.environ
    for _ in range(2):
        launch.launch_options(4)
        assert os.environ["ACCELERATE_USE_CPU"] == "1"
    launch.launch_options(3)
    assert "ACCELERATE_USE_CPU" not in os.environ
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")  # a wish of the user's
    for processes in (3, 4, 3):
        launch.launch_options(processes)
        assert os.environ["ACCELERATE_USE_CPU"] == "1"


def test_what_cannot_be_launched(monkeypatch):
    with pytest.raises(ValueError, match="at least one process"):
        launch.launch_options(0)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(ValueError, match="used CUDA already.*restart the kernel"):
        launch.launch_options(3)


def mock(teacher, output, **changes):
    return options(teacher, output, use_mock_dataset=True, dataset_size=5, num_processes=2, **changes)


def test_killed_in_the_background_and_resumed(teacher, tmp_path):
    whole = launch.BackgroundRun(mock(teacher, tmp_path / "whole"), 2)
    whole.wait()
    run = launch.BackgroundRun(mock(teacher, tmp_path / "killed"), 2)
    while run.running and not (tmp_path / "killed" / "checkpoint-1").exists():
        time.sleep(0.01)
    run.kill()
    assert not run.running
    again = launch.BackgroundRun(mock(teacher, tmp_path / "killed", resume_from_checkpoint="latest"), 2)
    again.wait()
    assert_same_checkpoint(*(tmp_path / name / f"checkpoint-{STEPS}" for name in ("whole", "killed")))
    one, other = (read_curves(tmp_path / name) for name in ("whole", "killed"))
    assert one["loss"] == other["loss"] and one["loss"][0] == list(range(1, STEPS + 1))
    with pytest.raises(RuntimeError, match=f"{STEPS} steps already"):
        launch.BackgroundRun(mock(teacher, tmp_path / "killed", resume_from_checkpoint="latest"), 2).wait()


def started_and_left(settings, folder):
    """A notebook's process that starts a run and is killed."""
    run = launch.BackgroundRun(settings, 2, on_sample=None)
    (folder / "pid").write_text(str(run._process.pid))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_ends_with_the_notebook(teacher, tmp_path):
    settings = mock(teacher, tmp_path, max_train_steps=10_000, checkpointing_steps=10_000)
    notebook = multiprocessing.get_context("fork").Process(target=started_and_left, args=(settings, tmp_path))
    notebook.start()
    notebook.join(60)
    run = int((tmp_path / "pid").read_text())
    for _ in range(300):
        try:
            os.kill(run, 0)
        except ProcessLookupError:
            break
        if Path(f"/proc/{run}/stat").exists() and Path(f"/proc/{run}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        os.killpg(run, signal.SIGKILL)
        pytest.fail("the training went on without its notebook")


def tell_when_free(place, line, count, limit):
    await_younger_siblings(place, count, limit)
    line.send(time.monotonic())


def test_no_child_connects_before_the_last_is_forked():
    fork = multiprocessing.get_context("fork")
    ends, children = [], []
    for place in range(3):
        time.sleep(0.3)
        forked = time.monotonic()  # of the last of them, in the end
        here, there = fork.Pipe(duplex=False)
        child = fork.Process(target=tell_when_free, args=(place, there, 3, 30.0))
        child.start()
        ends.append(here), children.append(child)
    free = [end.recv() for end in ends]
    for child in children:
        child.join(10)
    assert all(forked < moment < forked + 10 for moment in free)


def test_a_child_whose_siblings_never_come_goes_on():
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)
    began = time.monotonic()
    child = fork.Process(target=tell_when_free, args=(0, there, 3, 0.5))
    child.start()
    assert 0.5 < here.recv() - began < 10
    child.join(10)


AFTER_TORCH = """
import json, sys, torch
torch.set_num_threads(2)
big = torch.randn(1200, 1200)
print(float((big @ big).sum()) < 1e9)
from accelerate import notebook_launcher
from anytext_lcm.training.launch import launch_options
from anytext_lcm.training.loop import run_distillation
notebook_launcher(run_distillation, (json.loads(sys.argv[1]),), num_processes=2, **launch_options(2))
"""


@pytest.mark.full
def test_a_parent_that_has_computed_with_threads_does_not_hang_its_children(teacher, tmp_path):
    settings = mock(teacher, tmp_path, max_train_steps=1)
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", AFTER_TORCH, json.dumps(settings)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
    try:
        said, _ = process.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, said
    assert (tmp_path / "checkpoint-1" / "adapter_model.safetensors").is_file()
