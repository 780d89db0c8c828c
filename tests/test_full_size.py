"""AnyText2 at full size with made-up weights, on the CPU: does it load, draw and train, and in how much memory?

Marked `full`: `make test-full` runs these, `make test` does not. They want 6 GB of disk, half of it for a moment,
and 13 GB of memory; of one core they take about 20 s to make the file, 15 s to load it, 85 s for the picture and
140 s for the training step. Each piece of work has a process of its own, whose peak is its own; the figures are
printed (`pytest -m full -rP tests/test_full_size.py` shows them).
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FULL = Path(__file__).parent / "full"
pytestmark = [pytest.mark.full, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full_size")
    path = folder / "made_up.ckpt"
    subprocess.run([sys.executable, FULL / "make_checkpoint.py", path, "--dtype", "fp16"], check=True)
    yield path
    shutil.rmtree(folder)  # pytest would keep the last three


def measure(what, checkpoint, *options):
    """Figures of one piece of work, printed and returned."""
    command = [sys.executable, FULL / "measure.py", what, checkpoint, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    line = done.stdout.strip().splitlines()[-1]
    print(f"{what}: {line}")
    return json.loads(line)


def test_a_half_precision_checkpoint_loads_strictly_and_is_held_once(checkpoint):
    figures = measure("load", checkpoint)
    assert figures["keys"] == 2047
    assert figures["parameters"] == 1_496_651_701
    assert figures["dtypes"] == ["torch.float32", "torch.int64"]
    assert figures["on_meta"] == 0 and figures["finite"]
    assert figures["peak_own_gb"] < 7.5  # the weights are 6.0 GB in fp32


@pytest.mark.parametrize(("precision", "gigabytes"), [("fp32", 6.0), ("bf16", 3.0)])
def test_the_command_holds_its_weights_once(checkpoint, precision, gigabytes):
    """`python -m anytext_lcm.sample`, the largest resident set with all mapped pages."""
    figures = measure("command", checkpoint, "--precision", precision, "--side", "64")
    assert figures["code"] == 0 and figures["picture_bytes"] > 0
    assert figures["weights_gb"] == pytest.approx(gigabytes, rel=0.01)
    assert figures["loading_gb"] < 1.1 * figures["weights_gb"]


def test_two_steps_draw_a_picture_of_512_pixels(checkpoint):
    figures = measure("sample", checkpoint)
    assert figures["image"] == [1, 3, 512, 512]
    assert figures["residuals"] == 13
    assert figures["finite"]


def test_one_distillation_step_moves_the_adapter(checkpoint):
    figures = measure("step", checkpoint)
    assert figures["adapter_tensors"] == 2 * 253
    assert figures["adapter_parameters"] == 26_992_640
    assert figures["without_gradient"] == 0
    assert figures["moved"] >= 253  # B of every pair; A's gradient is zero as long as B is
    assert 0 < figures["gradient_norm"] < float("inf")


def test_every_layout_of_an_adapter_reads_back_as_what_was_written(checkpoint):
    figures = measure("export", checkpoint)
    assert set(figures["errors"]) == {"peft", "kohya", "diffusers", "merged"}
    assert figures["errors"]["peft"] == 0  # fp32, to the last bit
    assert all(0 < figures["errors"][layout] < 2e-3 for layout in ("kohya", "diffusers", "merged"))  # fp16 files
    assert figures["keys"] == 2047
    assert figures["left_out"] > 0  # what UNet files have no name for
