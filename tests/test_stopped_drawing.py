"""Ctrl-C while `sample` and `evaluate` draw: one line, exit code 130, nothing half-written, no wait."""

import os
import signal
import time
from importlib import import_module

import pytest
import torch
from processes import finish, start
from test_interrupts import await_path, call

from anytext_lcm.drawing import draw as drawing


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["sample", "evaluate"])
def test_a_drawing_is_stopped_in_a_line(teacher, tmp_path, name, threads):
    """Within the drawing, which would take minutes; the threads that draw do not finish their pictures first."""
    drawing = ["--config", str(teacher / "micro.yaml"), "--ckpt", str(teacher / "micro.safetensors")]
    if name == "sample":
        drawing += ["--adapter", "none", "--prompt", "a wall", "--line", "cat@4,10,60,40", "--steps", "999"]
        drawing += ["--count", "16", "--output", str(tmp_path / "out.png")]
    else:
        drawing += ["--adapter", "none", "--lines", "16", "--methods", "teacher-999"]
        drawing += ["--output", str(tmp_path / "out")]
    process = start(draw, import_module(f"anytext_lcm.{name}").main, drawing, tmp_path, threads)
    await_path(tmp_path / "begun", [process])
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    assert finish([process], 60) == [130]
    assert time.monotonic() - began < 10
    assert (tmp_path / "said").read_text() == "stopped: files that were complete are kept, none is half-written.\n"
    assert {path.name for path in tmp_path.iterdir()} == {"said", "begun"}


def draw(main, arguments, folder, threads):
    """`call` on so many cores; a file says that the first step is done."""
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    predictor = drawing.predictor

    def noting(*arguments):
        (folder / "begun").touch()
        return predictor(*arguments)

    drawing.predictor = noting
    call(main, arguments, folder)
