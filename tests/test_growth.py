"""Nothing grows: memory, threads, open files and child processes over many updates, pictures and launches."""

import contextlib
import ctypes
import gc
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from micro_network import SIDE, micro_network
from test_resume import options

from anytext_lcm.drawing.draw import draw_prompts
from anytext_lcm.drawing.methods import teacher_method
from anytext_lcm.drawing.prompts import Prompt, parse_line
from anytext_lcm.model.networks import defaults_for
from anytext_lcm.training import launch
from anytext_lcm.training.loop import run_distillation

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]
MOST_MB = 25  # of growth that an allocator may show without a leak


def looked_at():
    """MB of this process that no file backs, threads, open files, children.

    Mapped libraries do not count: what is shared of them depends on the other processes of the machine.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc keeps what was freed, in amounts that vary by 60 MB
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    process, status = psutil.Process(), Path("/proc/self/status").read_text(encoding="utf-8")
    return (
        int(re.search(r"^RssAnon:\s+(\d+) kB", status, re.M)[1]) / 1e3,
        process.num_threads(),
        process.num_fds(),
        len(process.children(recursive=True)),
    )


def check(seen, what):
    """What was seen in the second half is no more than at its beginning."""
    first, last = np.array(seen[len(seen) // 2]), np.max(seen[len(seen) // 2 :], axis=0)
    print(f"\n{what}: MB, threads, files, children", *("{:.1f} {:g} {:g} {:g}".format(*row) for row in seen), sep="; ")
    assert last[0] - first[0] < MOST_MB and (last[1:] <= first[1:]).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_three_hundred_updates(teacher, tmp_path, workers):
    seen = []

    def watch(model, batch, settings, step):
        seen.append(looked_at())
        return {}

    more = {"use_mock_dataset": True, "max_train_steps": 300, "sample_steps": 30, "panel_prompts": 0}
    more |= {"checkpointing_steps": 30, "num_workers": workers}
    before = looked_at()
    run_distillation(options(teacher, tmp_path / "run", **more), watch)
    check(seen, f"300 updates, {workers} workers")
    threads, files, children = looked_at()[1:]
    assert threads <= seen[-1][1] and files <= before[2] + 2 and children <= before[3]  # its end leaves nothing


def test_two_hundred_pictures(teacher):
    model, seen = micro_network(), []
    defaults = replace(defaults_for(teacher / "micro.yaml"), size=(SIDE, SIDE))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # chunks side by side
    try:
        for turn in range(10):
            prompts = [Prompt(f"wall {turn} {i}", (parse_line("CAT@4,10,60,40#red"),)) for i in range(20)]
            assert len(draw_prompts(model, prompts, teacher_method(2, 2.0), defaults, 20 * turn)) == 20
            seen.append(looked_at())
    finally:
        torch.set_num_threads(threads)
    check(seen, "200 pictures")


def test_ten_launches(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_cpu_is_ours", False)
    for name in ("ACCELERATE_USE_CPU", "GLOO_SOCKET_IFNAME", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1" if name == "OMP_NUM_THREADS" else "")
        if name != "OMP_NUM_THREADS":
            monkeypatch.delenv(name)
    seen = []
    for turn in range(10):
        settings = options(teacher, tmp_path / str(turn), use_mock_dataset=True, num_processes=2, max_train_steps=1)
        launch.BackgroundRun(settings, 2).wait()
        seen.append(looked_at())
    check(seen, "10 launches of two processes")
    assert seen[-1][3] == seen[0][3]
