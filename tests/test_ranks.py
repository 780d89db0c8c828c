"""Several processes train as one, on data of their own, and none of them outlives the others."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import NoisyPictures, finish, free_port, start, start_ranks
from test_resume import options, train  # noqa: F401

from anytext_lcm import train as command
from anytext_lcm.training import step as training_step
from anytext_lcm.training.loop import run_distillation
from anytext_lcm.training.step import DistillStep

ROOT = Path(__file__).parents[1]


class EvenPictures(NoisyPictures):
    """The same without chance, so that it does not matter which process draws a picture."""

    def __getitem__(self, index):
        with torch.random.fork_rng():
            torch.manual_seed(index)
            return super().__getitem__(index)


def train_and_tell(settings, folder):
    """One update; each process leaves what it saw and the gradients that the processes agreed on."""
    rank, seen = os.environ.get("RANK", "0"), []
    average, forward = training_step.average_gradients, DistillStep.forward

    def remember(accelerator, parameters, batches):
        average(accelerator, parameters, batches)
        gradients = torch.cat([p.grad.flatten() for p in parameters])
        torch.save({"gradients": gradients, "seen": seen}, folder / f"{rank}.pt")

    def look(step, batch, generator=None):
        parts = forward(step, batch, generator)
        first = float(parts.noisy_latents[0, 0, 0, 0])
        seen.append((float(batch["img"].mean()), parts.start_timesteps.tolist(), first))
        return parts

    training_step.average_gradients, DistillStep.forward = remember, look
    run_distillation(settings, None, EvenPictures())


def test_three_processes_have_the_gradient_of_one(teacher, tmp_path):  # noqa: F811
    """Of one that accumulates three times as many batches; and each of the three sees pictures of its own."""
    told = {}
    for name, world, accumulation in (("three", 3, 2), ("one", 1, 6)):
        folder = tmp_path / name
        folder.mkdir()
        settings = options(teacher, folder / "run", max_train_steps=1, gradient_accumulation_steps=accumulation)
        if world == 1:
            assert finish([start(train_and_tell, settings, folder)]) == [0]
        else:
            assert finish(start_ranks(world, train_and_tell, settings | {"num_processes": world}, folder)) == [0] * 3
        told[name] = [torch.load(path) for path in sorted(folder.glob("*.pt"))]
    [one], three = told["one"], told["three"]
    scale = one["gradients"].norm()
    assert scale > 0
    for rank in three:
        assert torch.equal(rank["gradients"], three[0]["gradients"])
        assert (rank["gradients"] - one["gradients"]).norm() / scale < 1e-6
    dealt = [three[place % 3]["seen"][place // 3] for place in range(6)]
    assert dealt == one["seen"]  # the same batches, dealt out in turn
    assert len({noise for _, _, noise in dealt}) == 6 and len({image for image, _, _ in dealt[:3]}) == 3


def test_accumulated_batches_have_the_gradient_of_a_large_one():
    """With the same noise for each picture; weights of the mean apart, which an empty inv_mask leaves equal."""
    from micro_network import micro_batch
    from test_training import grads, student

    model, batch = student(), micro_batch(4)
    latents = model.encode(batch["img"], torch.Generator().manual_seed(1))
    batch = {k: v for k, v in batch.items() if k not in ("img", "masked_img", "inv_mask")}
    batch |= {"latents": latents, "masked_latents": latents}
    step = DistillStep(model, huber_c=1.0)  # with 1e-3 it divides by differences near zero and shows fp32's last digits
    noise, index = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2)), torch.tensor([3, 40, 11, 27])

    def run(rows):
        part = {k: v[rows] for k, v in batch.items()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randint", lambda *a, **k: index[rows])
            patch.setattr(torch, "randn", lambda *a, **k: noise[rows])
            return step(part).loss

    run(slice(0, 4)).backward()
    large = {key: gradient.clone() for key, gradient in grads(model).items()}
    model.zero_grad()
    for rows in (slice(0, 2), slice(2, 4)):
        (run(rows) / 2).backward()
    flat = [torch.cat([g.flatten() for g in found.values()]) for found in (large, grads(model))]
    assert (flat[0] - flat[1]).norm() / flat[0].norm() < 1e-5


# -- ends -------------------------------------------------------------------------------------------------


class Lost(NoisyPictures):
    """Process 1 finds that a picture is gone."""

    def __getitem__(self, index):
        if os.environ.get("RANK") == "1" and self.asked > 3:
            raise RuntimeError("the picture is gone")
        self.asked += 1
        return super().__getitem__(index)

    asked = 0


def train_on_lost(settings):
    run_distillation(settings, None, Lost())


def test_a_process_that_fails_ends_the_run_and_says_why_once(teacher, tmp_path, capfd):  # noqa: F811
    settings = options(teacher, tmp_path, max_train_steps=100_000, checkpointing_steps=100_000)
    began = time.monotonic()
    assert finish(start_ranks(3, train_on_lost, settings), seconds=120) == [1, 1, 1]
    said = capfd.readouterr().err
    assert said.count("Traceback") == 1 and "[rank 1]" in said and "the picture is gone" in said
    assert time.monotonic() - began < 120


def test_settings_that_cannot_be_are_said_once(teacher, tmp_path, capfd):  # noqa: F811
    settings = options(teacher, tmp_path, num_processes=2)
    assert finish(start_ranks(3, train, settings)) == [1, 1, 1]
    said = capfd.readouterr().err
    assert said.count("error:") == 1 and "Expected 2 processes" in said and "Traceback" not in said


def test_what_a_node_lacks_is_said_by_its_first_process(teacher, tmp_path, monkeypatch, capsys):  # noqa: F811
    flags = [
        "--config",
        str(teacher / "micro.yaml"),
        "--teacher_ckpt",
        str(teacher / "micro.safetensors"),
        "--output_dir",
        str(tmp_path),
        "--data_list",
        str(tmp_path / "missing.json"),
    ]
    for place, times in (("0", 1), ("1", 0)):
        for name, value in {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": place, "LOCAL_WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        assert command.main(flags) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == said.count("missing.json") == times, said


def test_more_processes_than_gpus(teacher, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    with pytest.raises(ValueError, match="3 processes were launched for 1 GPUs"):
        train(options(teacher, tmp_path))


def launch(settings, pids):
    """Stands in for a launcher, and gives the numbers of the processes it started."""
    processes = start_ranks(2, train, settings, TORCHELASTIC_RUN_ID="none")
    os.write(pids, " ".join(str(process.pid) for process in processes).encode())
    time.sleep(600)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")
def test_no_process_outlives_its_launcher(teacher, tmp_path):  # noqa: F811
    read, write = os.pipe()
    settings = options(teacher, tmp_path, max_train_steps=100_000, checkpointing_steps=2)
    launcher = start(launch, settings, write)
    pids = [int(pid) for pid in os.read(read, 100).split()]
    while not (tmp_path / "checkpoint-2").exists() and all(map(is_running, pids)):
        time.sleep(0.05)
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.join()
    end = time.monotonic() + 60
    while any(map(is_running, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(is_running, pids))


# -- launchers --------------------------------------------------------------------------------------------


def accelerate_launch(arguments, settings):
    """`accelerate launch ... -m anytext_lcm.train ...` on the CPU, started and not waited for."""
    flags = []
    for name, value in settings.items():
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            flags += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "1",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(ROOT),
    }
    options = ["--multi_gpu", "--mixed_precision", "no", "--dynamo_backend", "no", *arguments]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", "anytext_lcm.train", *flags]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def mock(teacher, output, world):  # noqa: F811
    return options(teacher, output, num_processes=world, use_mock_dataset=True, dataset_size=5, max_train_steps=1)


@pytest.mark.full
def test_two_nodes_and_a_taken_port(teacher, tmp_path):  # noqa: F811
    """Two nodes of one process each, on loopback; then one node whose port somebody has taken."""
    port = str(free_port())
    both = ["--num_machines", "2", "--num_processes", "2"]
    both += ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
    settings = mock(teacher, tmp_path / "nodes", 2)
    nodes = [accelerate_launch([*both, "--machine_rank", str(rank)], settings) for rank in (0, 1)]
    said = [node.communicate(timeout=500)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert (tmp_path / "nodes" / "checkpoint-1" / "adapter_model.safetensors").is_file()
    assert "".join(said).count("The adapter is in") == 1

    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        here = ["--num_machines", "1", "--num_processes", "2", "--main_process_port", str(taken.getsockname()[1])]
        node = accelerate_launch(here, mock(teacher, tmp_path / "taken", 2))
        said = node.communicate(timeout=500)[0]
    assert node.returncode == 0, said
    assert (tmp_path / "taken" / "checkpoint-1" / "adapter_model.safetensors").is_file()
