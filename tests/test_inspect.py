"""The census of a network: complete, in the right drawers, and the same numbers as counted elsewhere."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from micro_network import micro_config, micro_network
from omegaconf import OmegaConf
from safetensors.torch import save_file
from small_models import EMBEDDED, FULL

from anytext_lcm import inspect_modules
from anytext_lcm.adapter import census
from anytext_lcm.adapter.lora import adapter_state, attach
from anytext_lcm.adapter.targets import find_targets
from anytext_lcm.model.anytext2 import AnyText2

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(scope="module")
def full():
    model = AnyText2.from_config(FULL, device="meta")
    return model, census.list_layers(model)


def test_parts_hold_every_parameter(full):
    model, layers = full
    parts = census.part_parameters(model)
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters()) == 1_496_651_701
    assert set(parts) == {layer.part for layer in layers}
    for part, number in parts.items():  # what is missing from the layers are norms and embeddings
        assert 0.6 * number < sum(layer.parameters for layer in layers if layer.part == part) <= number


def test_shapes_are_those_of_the_published_checkpoint(full):
    _, layers = full
    manifest = json.loads(gzip.decompress((REFERENCE / "manifest_full.json.gz").read_bytes()))
    text = json.dumps(manifest)
    assert all(f'"{layer.name}.weight"' in text for layer in layers)
    assert len({layer.name for layer in layers}) == len(layers) == 415 + 316


def test_roles_of_well_known_layers(full):
    _, layers = full
    found = {layer.name: layer for layer in layers}
    for name, role, group in (
        ("control_model.zero_convs.3.0", "zero conv", "zero_convs"),
        ("control_model.middle_block_out.0", "zero conv", "middle_block_out"),
        ("control_model.fuse_block_za", "hint", ""),
        ("model.diffusion_model.middle_block.1.transformer_blocks.0.attn1x.to_q", "attnx", "unet_attnx"),
        ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k", "attention", "unet_attention"),
        ("model.diffusion_model.input_blocks.3.0.op", "resampling", ""),
        ("model.diffusion_model.out.2", "first and last convolution", ""),
        ("text_predictor.head.fc", "head", ""),
    ):
        assert (found[name].role, found[name].group) == (role, group), name
    by_role = census.count_by(layers, "part", "role")
    assert by_role["UNet", "attnx"][0] == 4 * 2 * 7  # middle, and three blocks each on output levels 2 and 1
    assert by_role["UNet", "attention"][0] == 4 * 2 * 16
    assert by_role["WriteNet", "zero conv"][0] == 13


def test_lora_groups_as_counted_apart(full):
    _, layers = full
    reference = json.loads(gzip.decompress((REFERENCE / "lora_targets.json.gz").read_bytes()))
    groups = census.lora_groups(layers, rank=64)
    expected = sorted((g["modules"], g["lora_params_rank64"]) for g in reference["groups"].values())
    assert sorted(groups.values()) == expected
    assert sum(parameters for _, parameters in groups.values()) == 26_992_640


@pytest.mark.parametrize("rank", [1, 5])
def test_lora_size_is_what_attach_makes(rank):
    model = micro_network()
    layers = census.list_layers(model)
    attach(model, rank=rank)
    assert sum(census.lora_parameters(layer, rank) for layer in layers if layer.group) == sum(
        p.numel() for p in adapter_state(model).values()
    )


def test_lora_size_of_a_3x3_convolution():
    layer = census.Layer("control_model.fuse_block_za", "Conv2d", (320, 324, 3, 3), 0, "WriteNet", "hint", "")
    assert census.lora_parameters(layer, 4) == 4 * 324 * 9 + 320 * 4


def test_foreign_networks_and_names_are_refused():
    with pytest.raises(ValueError, match="Not an AnyText2 network"):
        census.list_layers(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="none of AnyText2's networks"):
        census.part_of("model2.layer")


def test_command_writes_the_targets(tmp_path, capsys):
    out = tmp_path / "deep" / "target_modules_list.txt"
    assert inspect_modules.main(["--config", str(EMBEDDED), "--output", str(out), "--lora_rank", "8"]) == 0
    names = out.read_text().split("\n")
    model = AnyText2.from_config(EMBEDDED, device="meta")
    assert names.pop() == "" and names == sorted(n for group in find_targets(model).values() for n in group)
    assert list(out.parent.iterdir()) == [out]  # nothing temporary is left
    printed = capsys.readouterr().out
    assert "control_model.zero_convs.0.0" in printed and "parameters at rank 8" in printed
    assert inspect_modules.main(["--config", str(EMBEDDED), "--output", str(out), "--summary"]) == 0
    assert "control_model.zero_convs.0.0" not in capsys.readouterr().out


def test_command_bears_a_closed_pipe(tmp_path):
    command = [sys.executable, "-m", "anytext_lcm.inspect_modules", "--config", str(EMBEDDED), "--output"]
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run([*command, tmp_path / "list.txt"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (run.returncode, run.stderr) == (0, "")


# -- memory and checkpoints


def test_training_memory_by_hand(full):
    _, layers = full
    parts = census.training_memory(layers, 1000, ["zero_convs", "unet_attnx"], 64, kept=5, batch_size=3)
    adapter = 4 * (1_228_800 + 6_995_968) / 1e9
    assert parts == pytest.approx(
        {
            "frozen weights": 4e-6,
            "adapter": adapter,
            "its gradient": adapter,
            "Adam": 2 * adapter,
            "kept for the backward pass": 15e-9,
        }
    )
    with pytest.raises(ValueError, match="unet_atention"):
        census.training_memory(layers, 1, ["unet_atention"], 64, 0)


def test_a_checkpoint_beside_its_network(tmp_path, capsys):
    model = micro_network()
    state = dict(model.state_dict())
    report = census.compare_checkpoint(model, state)
    assert report.fits and report.keys == len(state) and sum(report.dtypes.values()) == len(state)
    name = "model.diffusion_model.out.2.weight"
    other = {**state, name: state[name][:1].half(), "extra": torch.zeros(1)}
    del other["model.diffusion_model.out.2.bias"]
    report = census.compare_checkpoint(model, other)
    assert report.missing == ("model.diffusion_model.out.2.bias",) and report.unexpected == ("extra",)
    assert len(report.reshaped) == 1 and report.reshaped[0].startswith(name) and not report.fits
    assert report.dtypes["float16"] == 1 and "missing: 1, like model" in str(report)
    config, file = tmp_path / "micro.yaml", tmp_path / "micro.safetensors"
    OmegaConf.save(micro_config(), config)
    save_file({k: v.contiguous() for k, v in state.items()}, file)
    command = ["--config", str(config), "--output", str(tmp_path / "list.txt"), "--summary", "--ckpt"]
    assert inspect_modules.main([*command, str(file)]) == 0
    assert f"checkpoint: {len(state):,} tensors" in capsys.readouterr().out
    save_file({k: v.contiguous() for k, v in other.items()}, file)
    assert inspect_modules.main([*command, str(file)]) == 2
    assert "does not fit" in capsys.readouterr().err
