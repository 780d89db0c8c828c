"""The owner's commands for three GPUs, by processes on the CPU: cache the latents, train, go on, draw."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_checks import records
from test_resume import options

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "3", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m"]


def call(folder, *words):
    """Run python with these words; returns what it printed."""
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root, "ACCELERATE_USE_CPU": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_three_processes_from_data_to_a_picture(teacher, tmp_path):
    data = records(tmp_path, ["Word", "more", "text", "here"])
    network = ["--config", str(teacher / "micro.yaml"), "--teacher_ckpt", str(teacher / "micro.safetensors")]
    common = [*network, "--data_list", data, "--latents", "latents", "--no-progress"]
    call(tmp_path, "-m", "anytext_lcm.cache_latents", *common)
    small = options(teacher, "run", max_train_steps=2, num_processes=3)
    given = [f"--{name}={small[name]}" for name in ("train_batch_size", "lora_rank", "lora_alpha", "max_train_steps")]
    given += ["--sample_steps=0", "--num_processes=3", "--checkpointing_steps=1", "--output_dir=run"]
    assert "The adapter is in run/checkpoint-2" in call(tmp_path, *LAUNCH, "anytext_lcm.train", *common, *given)
    written = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text(encoding="utf-8"))
    assert (written["num_processes"], written["latents"], written["data_list"]) == (3, "latents", [data])

    on = ["-m", "anytext_lcm.train", "--run", "run/run.yaml", "--resume_from_checkpoint", "latest"]
    on += ["--resume_changed", "--num_processes", "1", "--max_train_steps", "3"]
    said = call(tmp_path, *on)
    assert "Another run from update 3 on: processes 3, now 1." in said and "run/checkpoint-3" in said
    draw = [*network[:2], "--ckpt", network[3], "--adapter", "run/checkpoint-3", "--device", "cpu"]
    draw += ["--prompt", "a wall", "--line", "cat@4,10,60,40"]
    assert "sample.png" in call(tmp_path, "-m", "anytext_lcm.sample", *draw)
    assert (tmp_path / "sample.png").stat().st_size > 1000
