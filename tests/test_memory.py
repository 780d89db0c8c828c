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
from anytext_lcm.training.settings import TrainSettings


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


def test_activations_are_those_of_the_real_step(teacher):
    counts = {k: memory._count(str(teacher / "micro.yaml"), 2, None, "no", False, SIDE, k) for k in memory.KERNELS}
    kept = {kernel: counted["activations"] for kernel, counted in counts.items()}
    assert kept == pytest.approx({kernel: kept_for_real(2, kernel) for kernel in memory.KERNELS}, rel=0.02)
    assert 100_000 < kept["fused"] < kept["plain"]
    counted = counts["fused"]
    real = lora.attach(micro_network(), 2, 2)
    assert counted["adapter"] == sum(p.numel() for p in lora.adapter_state(real).values())
    assert counted["base"] == sum(4 * p.numel() for p in micro_network().parameters())


def test_saved_bytes_grow_with_rank_and_groups():
    def count(targets, rank):
        return memory.saved_bytes(on_meta(), SIDE, targets, rank, "plain")

    two, three, four = (count(None, rank) for rank in (2, 3, 4))
    assert three - two == four - three > 0  # linear in the rank
    assert count(["unet_attnx"], 2) < count(["unet_attnx", "unet_attention"], 2) < two
    with pytest.raises(ValueError, match="meta device"):
        memory.saved_bytes(micro_network(), SIDE)
    with pytest.raises(ValueError, match="'flash' is unknown; choose fused or plain"):
        memory.saved_bytes(on_meta(), SIDE, kernel="flash")


def test_what_costs_and_what_saves(teacher):
    common = {"config": str(teacher / "micro.yaml"), "output_dir": "", "train_batch_size": 4, "lora_rank": 2}

    def total(kernel="fused", **changes):
        return memory.estimate(TrainSettings(**common | changes), kernel)["total"]

    plain = memory.estimate(TrainSettings(**common))
    assert plain["total"] == total() == pytest.approx(sum(v for k, v in plain.items() if k != "total"))
    more = ({"train_batch_size": 8}, {"lora_rank": 8}, {"ema_decay": 0.9}, {"image_size": 128}, {"kernel": "plain"})
    for changes in more:
        assert total(**changes) > plain["total"], changes
    less = ({"gradient_checkpointing": True}, {"mixed_precision": "bf16"}, {"lora_targets": ("unet_attnx",)})
    for changes in less:
        assert total(**changes) < plain["total"], changes


def test_stored_latents_spare_the_autoencoder(teacher):
    """Its work counts where it needs more than the student's, as for a student that keeps next to nothing."""
    counted = {"base": 0, "adapter": 0, "activations": 1, "residuals": 1, "autoencoder": 10 * memory.GIB}
    common = {"config": str(teacher / "micro.yaml"), "output_dir": "", "train_batch_size": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_count", lambda *_: counted)
        with_pictures, with_latents = (memory.estimate(TrainSettings(**common, latents=x)) for x in (None, "stored"))
    assert with_pictures["autoencoder beyond that"] == pytest.approx(10)
    assert with_pictures["total"] - with_latents["total"] == pytest.approx(10)


def test_the_flag_prints_and_does_not_train(teacher, capsys):
    assert train.main(["--estimate", "--config", str(teacher / "micro.yaml"), "--lora_rank", "2"]) == 0
    said = capsys.readouterr().out
    assert "batch 12, rank 2, no:" in said and "activations" in said and "total" in said
    for bad, words in ((["--estimate"], "--config"), (["--estimate", "--config", "no.yaml"], "no.yaml does not exist")):
        assert train.main(bad) == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--train_batch_size", "0"], "at least 1 and at most 4096: 0 is not"),
        (["--train_batch_size", "-5"], "at least 1 and at most 4096: -5 is not"),
        (["--lora_rank", "1000000"], "at most 1024: 1000000 is not"),
        (["--image_size", "100"], "multiple of 16 pixels, not 100"),
        (["--image_size", "-16"], "multiple of 16 pixels, not -16"),
        (["--image_size", "-8"], "multiple of 16 pixels, not -8"),
        (["--image_size", "0"], "multiple of 16 pixels, not 0"),
    ],
)
def test_no_estimate_of_what_cannot_be(teacher, capsys, flags, words):
    assert train.main(["--estimate", "--config", str(teacher / "micro.yaml"), *flags]) == 2
    printed = capsys.readouterr()
    assert words in printed.err and printed.err.count("\n") == 1 and not printed.out


@pytest.mark.full
def test_full_size():
    """Batch 12 with gradient checkpointing: the figure of the README's table, of which the base is a part."""
    config = str(ROOT / "models_yaml" / "anytext2_sd15.yaml")
    asked = TrainSettings(config=config, output_dir="", mixed_precision="fp16", gradient_checkpointing=True)
    found = memory.estimate(asked)
    row = re.search(r"^\| 12 \| [\d.]+ GiB \| ([\d.]+) GiB", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert f"{found['total']:.1f}" == row[1]
    assert 2 < found["base weights, one copy"] < found["total"] / 2
