"""Several training processes from a notebook without a hang; notebook 04 shows it.

accelerate's `notebook_launcher` forks the notebook's process, so what that process did before decides whether the
children can work. Before torch is imported, set OMP_NUM_THREADS=1: a child with several OpenMP threads waits forever
for threads that stayed in the parent. Set PYTORCH_NVML_BASED_CUDA_CHECK=1 as well: a parent that has touched CUDA
cannot fork, and asking whether there is a GPU touches it, unless the driver is asked (NVML).
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import notebook_launcher

from anytext_lcm.training.loop import run_distillation
from anytext_lcm.training.processes import end_with_parent
from anytext_lcm.training.watching import OnSample, sample_pictures

_cpu_is_ours = False  # whether ACCELERATE_USE_CPU stands in the environment because `launch_options` put it there


def launch_options(processes: int) -> dict[str, Any]:
    """Further arguments of `notebook_launcher`; sets in the environment whether the processes use GPUs or the CPU.

    Raises ValueError where the children would hang or crash: after CUDA was used, or without a process.
    """
    # The system chooses the port by which they meet: with accelerate's fixed one a second notebook fails, and a second
    # launch after a failed one hangs.
    if processes < 1:
        raise ValueError(f"There must be at least one process, not {processes}.")
    if torch.cuda.is_initialized():
        raise ValueError(
            "This process has used CUDA already, and CUDA does not survive a fork: restart the kernel and launch "
            "before anything goes to the GPU, or launch from a shell with accelerate launch -m anytext_lcm.train."
        )
    global _cpu_is_ours
    if torch.cuda.device_count() < processes:  # asks the driver, which leaves CUDA untouched
        _cpu_is_ours = _cpu_is_ours or "ACCELERATE_USE_CPU" not in os.environ
        os.environ["ACCELERATE_USE_CPU"] = "1"  # else each process would train for itself
    elif _cpu_is_ours:  # set by an earlier launch with more processes; what the user set stays
        os.environ.pop("ACCELERATE_USE_CPU", None)
        _cpu_is_ours = False
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    return {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0"}


class BackgroundRun:
    """A training beside the notebook, to be watched or killed. It prints to output_dir/logs/launch.txt, and ends with
    the notebook's process.

    on_sample: as for `run_distillation`. Raises ValueError as `launch_options`.
    """

    def __init__(self, settings: Mapping[str, Any], processes: int, on_sample: OnSample | None = sample_pictures):
        options = launch_options(processes)
        self.log = Path(settings["output_dir"]) / "logs" / "launch.txt"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        fork = multiprocessing.get_context("fork")
        self._process = fork.Process(target=_launch, args=(dict(settings), processes, options, self.log, on_sample))
        self._process.start()

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def wait(self) -> None:
        """Return when the training is done; raise RuntimeError with the end of its output when it failed."""
        self._process.join()
        if self._process.exitcode:
            end = self.log.read_text(encoding="utf-8", errors="replace").strip()[-2000:]
            raise RuntimeError(f"The training ended with exit code {self._process.exitcode}:\n{end}")

    def kill(self) -> None:
        """Send SIGKILL to all of its processes at once, as when the machine is switched off."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):  # in its first moments it has no group of its own yet
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
        self._process.join()


def _launch(
    settings: dict[str, Any], processes: int, options: Mapping[str, Any], log: Path, on_sample: OnSample | None
) -> None:
    os.setsid()  # one group, so that one signal reaches all processes
    end_with_parent()
    with log.open("a", encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        try:
            notebook_launcher(run_distillation, (settings, on_sample), num_processes=processes, **options)
        except BaseException:
            traceback.print_exc()
            file.flush()
            os._exit(1)
        file.flush()
        os._exit(0)  # no exit handlers of the notebook's kernel
