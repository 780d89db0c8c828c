"""The estimate of memory against what the same step really keeps."""

import re

import pytest
import torch
import torch.nn.functional as F
from micro_network import ROOT, SIDE, micro_batch, micro_config, micro_network

from anytext_lcm import train
from anytext_lcm.adapter import lora
from anytext_lcm.model import layers
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.training import memory


def kept_for_real(rank, kernel):
    """Bytes that the student's forward pass of one picture keeps on the CPU in fp32. There training with few tokens
    writes attention out, so that is "plain"; "fused" replaces it by what a GPU's kernel keeps.
    """
    model = lora.attach(micro_network(), rank, rank)
    with torch.no_grad():
        cond = model.condition(micro_batch(1))
    keep = memory._Kept(model)
    with pytest.MonkeyPatch.context() as patch:
        if kernel == "fused":
            patch.setattr(layers, "_attend", F.scaled_dot_product_attention)
        with (
            memory._Casts(torch.float32, kernel == "fused"),
            torch.autograd.graph.saved_tensors_hooks(keep.add, lambda t: t),
        ):
            control = model.control(cond)
            model.predict_noise(torch.randn_like(cond.masked_latents), torch.tensor([499]), cond, control)
    return keep.bytes


def on_meta():
    return AnyText2.from_config(micro_config(), device="meta")


def test_activations_are_those_of_the_real_step(teacher):  # noqa: F811
    kept = {kernel: memory.saved_bytes(on_meta(), SIDE, rank=2, kernel=kernel) for kernel in memory.KERNELS}
    assert kept == pytest.approx({kernel: kept_for_real(2, kernel) for kernel in memory.KERNELS}, rel=0.02)
    assert 100_000 < kept["fused"] < kept["plain"]
    counted = memory._count(str(teacher / "micro.yaml"), 2, None, "no", False, None, "fused")
    assert counted["activations"] == kept["fused"]
    real = lora.attach(micro_network(), 2, 2)
    assert counted["adapter"] == sum(p.numel() for p in lora.adapter_state(real).values())
    assert counted["base"] == sum(4 * p.numel() for p in micro_network().parameters())


def test_saved_bytes_grow_with_rank_and_groups():
    def count(targets, rank):
        return memory.saved_bytes(on_meta(), SIDE, targets, rank, "plain")

    assert count(["unet_attnx"], 2) < count(["unet_attnx", "unet_attention"], 2) < count(None, 2)
    assert count(None, 3) - count(None, 2) == count(None, 4) - count(None, 3) > 0  # linear in the rank
    with pytest.raises(ValueError, match="meta device"):
        memory.saved_bytes(micro_network(), SIDE)
    with pytest.raises(ValueError, match="'flash' is unknown; choose fused or plain"):
        memory.saved_bytes(on_meta(), SIDE, kernel="flash")


def test_what_costs_and_what_saves(teacher):  # noqa: F811
    common = {"batch_size": 4, "rank": 2, "precision": "no"}

    def total(**changes):
        return memory.estimate(teacher / "micro.yaml", **common | changes)["total"]

    plain = memory.estimate(teacher / "micro.yaml", **common)
    assert plain["total"] == total() == pytest.approx(sum(v for k, v in plain.items() if k != "total"))
    for more in ({"batch_size": 8}, {"rank": 8}, {"ema": True}, {"image_size": 128}, {"kernel": "plain"}):
        assert total(**more) > plain["total"], more
    for less in ({"gradient_checkpointing": True}, {"precision": "bf16"}, {"targets": ["unet_attnx"]}):
        assert total(**less) < plain["total"], less


def test_the_flag_prints_and_does_not_train(teacher, capsys):  # noqa: F811
    assert train.main(["--estimate", "--config", str(teacher / "micro.yaml"), "--lora_rank", "2"]) == 0
    said = capsys.readouterr().out
    assert "batch 12, rank 2, no:" in said and "activations" in said and "total" in said
    for bad, words in ((["--estimate"], "--config"), (["--estimate", "--config", "no.yaml"], "no.yaml does not exist")):
        assert train.main(bad) == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--train_batch_size", "0"], "at least one picture, not 0"),
        (["--train_batch_size", "-5"], "at least one picture, not -5"),
        (["--image_size", "100"], "multiple of 16 pixels, not 100"),
        (["--image_size", "-16"], "multiple of 16 pixels, not -16"),
        (["--image_size", "-8"], "multiple of 16 pixels, not -8"),
        (["--image_size", "0"], "multiple of 16 pixels, not 0"),
    ],
)
def test_no_estimate_of_what_cannot_be(teacher, capsys, flags, words):  # noqa: F811
    assert train.main(["--estimate", "--config", str(teacher / "micro.yaml"), *flags]) == 2
    printed = capsys.readouterr()
    assert words in printed.err and printed.err.count("\n") == 1 and not printed.out


@pytest.mark.full
def test_full_size():
    """Batch 12 with gradient checkpointing: the figure of the README's table, of which the base is a part."""
    found = memory.estimate(ROOT / "models_yaml" / "anytext2_sd15.yaml", 12, 64, gradient_checkpointing=True)
    row = re.search(r"^\| 12 \| [\d.]+ GiB \| ([\d.]+) GiB", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert f"{found['total']:.1f}" == row[1]
    assert 2 < found["base weights, one copy"] < found["total"] / 2
