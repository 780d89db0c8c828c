"""Ctrl-C while `sample` and `evaluate` draw: one line, exit code 130, nothing half-written, no wait."""

import json
import os
import signal
import time
from importlib import import_module

import pytest
import torch
from processes import finish, start
from test_commands import RECORD
from test_interrupts import await_path, call

from anytext_lcm.drawing import draw as drawing


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["sample", "evaluate", "benchmark"])
def test_a_drawing_is_stopped_in_a_line(teacher, tmp_path, name, threads):
    """Within the drawing, which would take minutes; the threads that draw do not finish their pictures first."""
    drawing = ["--config", str(teacher / "micro.yaml"), "--ckpt", str(teacher / "micro.safetensors")]
    if name == "sample":
        drawing += ["--adapter", "none", "--prompt", "a wall", "--line", "cat@4,10,60,40", "--steps", "999"]
        drawing += ["--count", "16", "--output", str(tmp_path / "out.png")]
    elif name == "benchmark":
        (tmp_path / "set.json").write_text(json.dumps({"data_root": ".", "data_list": [RECORD]}))
        drawing += ["--adapter", "none", "--data", str(tmp_path / "set.json"), "--methods", "teacher-999"]
        drawing += ["--samples", "16", "--output", str(tmp_path / "out")]
    else:
        drawing += ["--adapter", "none", "--lines", "16", "--methods", "teacher-999"]
        drawing += ["--output", str(tmp_path / "out")]
    process = start(draw, import_module(f"anytext_lcm.{name}").main, drawing, tmp_path, threads)
    await_path(tmp_path / "begun", [process])
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    assert finish([process], 60) == [130]
    assert time.monotonic() - began < 10
    kept, files = "files that were complete are kept, none is half-written.", {"said", "begun"}
    if name == "benchmark":
        kept = f"{tmp_path / 'out'} keeps the pictures that were complete; the same command goes on from there."
        files |= {"set.json", "out", "out/teacher-999", "out/teacher-999/settings.json"}
    *_, said = (tmp_path / "said").read_text().splitlines()  # evaluate says before whose pictures the panel has
    assert said == f"stopped: {kept}"
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == files


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
