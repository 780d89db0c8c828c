"""Every exported file is read back, by this package and by the library it is meant for, and answers the same."""

import json
import re
import sys
import tomllib
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
from micro_network import CHANNELS, CONTEXT, ROOT, SIDE, micro_batch, micro_config, micro_network
from omegaconf import OmegaConf
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from anytext_lcm import evaluate, export
from anytext_lcm import sample as sample_command
from anytext_lcm.adapter import formats, layouts, lora, mix
from anytext_lcm.adapter.card import TEMPLATE, UPSTREAM_SCRIPT, USES, describe_adapter, model_card
from anytext_lcm.adapter.choices import LAYOUTS
from anytext_lcm.adapter.formats import diffusers_names
from anytext_lcm.adapter.layouts import probe
from anytext_lcm.adapter.lora import Adapter
from anytext_lcm.adapter.mix import WeightedAdapter, load_adapters, merged_state
from anytext_lcm.drawing.draw import predictor, prepare
from anytext_lcm.drawing.png import read_settings
from anytext_lcm.lcm.samplers import finish, sample
from anytext_lcm.lcm.schedule import NoiseSchedule, lcm_timesteps
from anytext_lcm.model import loading
from anytext_lcm.model.anytext2 import SCHEDULE_BUFFERS, AnyText2
from anytext_lcm.model.networks import ASSETS

ALL = ["zero_convs", "writenet_attention", "unet_attention", "unet_attnx", "unet_rest"]


def adapted(rank=3, alpha=6, targets=ALL, seed=1):
    model = lora.attach(micro_network(), rank, alpha, targets)
    generator = torch.Generator().manual_seed(seed)
    for parameter in Adapter.of(model).state().values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def theirs_unet(model: AnyText2) -> UNet2DConditionModel:
    """diffusers' UNet of the micro network's shape and with its base weights; it has no AttnX."""
    unet = UNet2DConditionModel(
        sample_size=SIDE // 8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        layers_per_block=1,
        block_out_channels=(8, 16),
        cross_attention_dim=CONTEXT,
        attention_head_dim=2,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
    )
    names = diffusers_names(model.model.diffusion_model)
    own = {k.replace(".base_layer.", "."): v for k, v in model.model.diffusion_model.state_dict().items()}
    state = {}
    for ours, theirs in names.items():
        state |= {f"{theirs}.{kind}": own[f"{ours}.{kind}"] for kind in ("weight", "bias") if f"{ours}.{kind}" in own}
    missing, unexpected = unet.load_state_dict(state, strict=False)
    assert not missing and not unexpected  # the map names every layer of Stable Diffusion's UNet and no other
    return unet.eval().requires_grad_(False)


@torch.no_grad()
def answers(model, unet=None):
    g = torch.Generator().manual_seed(4)
    x, t = torch.randn(2, CHANNELS, SIDE // 8, SIDE // 8, generator=g), torch.tensor([259, 999])
    context = torch.randn(2, 77, CONTEXT, generator=g)
    if unet is not None:
        return unet(x, t, context).sample
    return model.model.diffusion_model(x, t, context, attnx_scale=0.0)


class Loader(StableDiffusionLoraLoaderMixin):
    """A pipeline as far as its LoRA loader is concerned."""

    def __init__(self, unet):
        self.unet, self.text_encoder = unet, None
        self.components = {"unet": unet}


@pytest.mark.parametrize("write", [formats.write_kohya, formats.write_diffusers], ids=["kohya", "diffusers"])
def test_diffusers_own_loader(write, tmp_path):
    model = adapted()
    unet = theirs_unet(model)
    with Adapter.of(model).off():
        bare = answers(model)
    torch.testing.assert_close(answers(None, unet), bare, rtol=1e-4, atol=1e-4)
    path = write(model, tmp_path / "lora.safetensors")
    state, alphas, metadata = Loader.lora_state_dict(str(path), return_lora_metadata=True)
    Loader.load_lora_into_unet(state, alphas, unet, adapter_name="ours", metadata=metadata)
    on = answers(model)
    assert (on - bare).abs().max() > 0.01
    torch.testing.assert_close(answers(None, unet), on, rtol=1e-4, atol=1e-4)
    named = {n for n, m in unet.named_modules() if hasattr(m, "lora_A")}
    assert named == set(formats.split_layers(model)[0].values())


def test_names_of_the_full_unet():
    model = AnyText2.from_config(ROOT / "models_yaml" / "anytext2_sd15.yaml", device="meta")
    names = diffusers_names(model.model.diffusion_model)
    assert len(set(names.values())) == len(names)
    block = "transformer_blocks.0"
    for ours, theirs in {
        f"input_blocks.1.1.{block}.attn1.to_q": f"down_blocks.0.attentions.0.{block}.attn1.to_q",
        "input_blocks.3.0.op": "down_blocks.0.downsamplers.0.conv",
        "input_blocks.11.0.out_layers.3": "down_blocks.3.resnets.1.conv2",
        "middle_block.1.proj_in": "mid_block.attentions.0.proj_in",
        "middle_block.2.emb_layers.1": "mid_block.resnets.1.time_emb_proj",
        "output_blocks.2.1.conv": "up_blocks.0.upsamplers.0.conv",
        "output_blocks.5.2.conv": "up_blocks.1.upsamplers.0.conv",
        f"output_blocks.11.1.{block}.ff.net.0.proj": f"up_blocks.3.attentions.2.{block}.ff.net.0.proj",
        "output_blocks.3.0.skip_connection": "up_blocks.1.resnets.0.conv_shortcut",
    }.items():
        assert names[ours] == theirs
    assert not any("attn1x" in ours or "attn2x" in ours for ours in names)
    key = formats.kohya_name(names["middle_block.1.transformer_blocks.0.attn2.to_out.0"])
    assert key == "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0"


def test_what_a_unet_file_cannot_hold_is_said(tmp_path):
    model = adapted()
    known, rest = formats.split_layers(model)
    assert len(known) + len(rest) == len(Adapter.of(model).layers)
    assert all(name.startswith("control_model.") or ".attn1x." in name or ".attn2x." in name for name in rest)
    sentence = formats.describe_rest(rest)
    assert "WriteNet" in sentence and "AttnX" in sentence and formats.describe_rest([]) == ""
    with pytest.raises(ValueError, match="would be empty"):
        formats.write_kohya(adapted(targets=["zero_convs"]), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="no adapter"):
        formats.write_diffusers(micro_network(), tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_keys_and_headers(tmp_path):
    model = adapted()
    for write, start, ends in (
        (formats.write_kohya, "lora_unet_", {"lora_down.weight", "lora_up.weight", "alpha"}),
        (formats.write_diffusers, "unet.", {"lora.down.weight", "lora.up.weight"}),
    ):
        path = write(model, tmp_path / f"{start}.safetensors", {"step": 7}, torch.float16)
        state = load_file(path)
        assert all(key.startswith(start) for key in state)
        assert {end for end in ends if any(key.endswith(f".{end}") for key in state)} == ends
        assert {v.dtype for k, v in state.items() if not k.endswith("alpha")} == {torch.float16}
        assert formats.update_error(model, formats.read_lora_file(model, path)) < 2e-3  # half precision
        with safe_open(path, "pt") as file:
            header = file.metadata()
        assert json.loads(header["anytext_lcm"]) == {"step": 7}
        if write is formats.write_kohya:  # the scale of 6 / 3 is in the weights
            assert {float(v) for k, v in state.items() if k.endswith("alpha")} == {3.0}
            assert header["ss_network_dim"] == header["ss_network_alpha"] == "3"


# -- merged ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-2)])
def test_a_merged_checkpoint_answers_as_base_plus_adapter(ending, dtype, tolerance, tmp_path):
    model = adapted()
    on = probe(model)
    path = mix.write_merged(model, tmp_path / f"merged{ending}", dtype=dtype)
    assert all(torch.equal(a, b) for a, b in zip(on, probe(model), strict=True))  # the model is as it was
    loaded = micro_network(seed=9).load_checkpoint(path)
    assert layouts.distance(on, probe(loaded)) < tolerance
    raw = torch.load(path, weights_only=True)["state_dict"] if ending == ".ckpt" else load_file(path)
    assert list(raw) == list(micro_network().state_dict()) if ending == ".ckpt" else True
    assert set(raw) == set(micro_network().state_dict())
    assert all(raw[name].dtype == torch.float32 for name in SCHEDULE_BUFFERS)
    assert raw["control_model.fuse_block_za.weight"].dtype == dtype
    assert [path.name for path in tmp_path.iterdir()] == [f"merged{ending}"]


def test_what_cannot_be_merged(tmp_path):
    with pytest.raises(ValueError, match="no adapter"):
        merged_state(micro_network())
    with pytest.raises(ValueError, match="must end in"):
        mix.write_merged(adapted(), tmp_path / "merged.bin")
    model = adapted(targets=["zero_convs"])
    for parameter in Adapter.of(model).state().values():
        parameter.data.fill_(500)
    with pytest.raises(ValueError, match="not finite"):
        merged_state(model, torch.float16)
    merged_state(model)


# -- mixing ---------------------------------------------------------------------------------------------


def test_two_adapters_as_peft_mixes_them(tmp_path):
    first = lora.save_adapter(adapted(3, 6, ["unet_attention", "zero_convs"], 1), tmp_path / "first")
    style = lora.save_adapter(adapted(2, 1, ["unet_attention"], 2), tmp_path / "style")
    wrapped = PeftModel.from_pretrained(micro_network(), first, adapter_name="first")
    wrapped.load_adapter(style, adapter_name="style")
    wrapped.base_model.add_weighted_adapter(["first", "style"], [1.0, 0.8], "both", combination_type="cat")
    wrapped.base_model.set_adapter("both")
    peft = probe(wrapped.base_model.model)
    mine = load_adapters(micro_network(), [WeightedAdapter(first), WeightedAdapter(style, 0.8)])
    assert layouts.distance(peft, probe(mine)) < 1e-5
    assert layouts.distance(probe(load_adapters(micro_network(), [WeightedAdapter(first)])), peft) > 1e-3
    again = lora.load_adapter(micro_network(), lora.save_adapter(mine, tmp_path / "mixture"))
    assert layouts.distance(peft, probe(again)) < 1e-5  # and the mixture is an adapter like any other
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_a_mixture_is_fp32_on_a_half_precision_network(tmp_path):
    first = lora.save_adapter(adapted(3, 6, ["unet_attention", "zero_convs"], 1), tmp_path / "first")
    style = lora.save_adapter(adapted(2, 1, ["unet_attention"], 2), tmp_path / "style")
    adapters = [WeightedAdapter(first), WeightedAdapter(style, 0.8)]
    half, full = (Adapter.of(load_adapters(network, adapters)).state() for network in (half_network(), micro_network()))
    assert {value.dtype for value in half.values()} == {torch.float32}
    assert all(torch.equal(value, full[key]) for key, value in half.items()) and half.keys() == full.keys()


def half_network():
    model = micro_network()
    for child in model.children():
        child.bfloat16()
    return model


def test_another_scale_as_peft_scales_it(tmp_path):
    folder = lora.save_adapter(adapted(), tmp_path / "a")
    peft = lora.load_adapter(micro_network(), folder)
    for layer in Adapter.of(peft).layers.values():
        layer.set_scale("default", 0.5)
    mine = load_adapters(micro_network(), [WeightedAdapter(folder, 0.5)])
    assert layouts.distance(probe(peft), probe(mine)) < 1e-5
    nothing = load_adapters(micro_network(), [WeightedAdapter(folder, 0.0)])
    assert layouts.distance(probe(micro_network()), probe(nothing)) < 1e-6


def test_a_style_from_a_file(tmp_path):
    """kohya and diffusers files, a text encoder's weights among them, mix with a folder."""
    folder = lora.save_adapter(adapted(2, 2, ["zero_convs"], 3), tmp_path / "ours")
    style = adapted(3, 6, ["unet_attention", "unet_rest"], 4)
    peft = lora.save_adapter(style, tmp_path / "style")
    wanted = probe(load_adapters(micro_network(), [WeightedAdapter(folder), WeightedAdapter(peft, 0.7)]))
    for write in (formats.write_kohya, formats.write_diffusers):
        path = write(style, tmp_path / f"{write.__name__}.safetensors")
        state = load_file(path) | {"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0)}
        save_file(state, path)
        got = probe(load_adapters(micro_network(), [WeightedAdapter(folder), WeightedAdapter(path, 0.7)]))
        assert layouts.distance(wanted, got) < 1e-5


def test_older_names_of_diffusers(tmp_path):
    model = adapted(targets=["unet_attention"])
    path = formats.write_diffusers(model, tmp_path / "a.safetensors")
    state = {}
    for key, value in load_file(path).items():
        for projection in ("to_q", "to_k", "to_v", "to_out.0"):
            key = key.replace(f".{projection}.lora.", f".processor.{projection.removesuffix('.0')}_lora.")
        state[key] = value
    assert all(".processor." in key for key in state)
    save_file(state, path)
    assert formats.update_error(model, formats.read_lora_file(model, path)) < 1e-6


def test_files_that_do_not_fit(tmp_path):
    model, path = micro_network(), tmp_path / "x.safetensors"
    before = set(model.state_dict())
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    for state, words in (
        ({"some.weight": torch.ones(1)}, "no kohya or diffusers"),
        ({"lora_unet_nowhere.lora_down.weight": torch.ones(1, 8)}, "lacks"),
        ({f"{key}.lora_down.weight": torch.ones(1, 8)}, "one half"),
        ({"lora_te_x.alpha": torch.tensor(1.0)}, "no LoRA weights"),
        ({f"{key}.lora_down.weight": torch.ones(1, 5), f"{key}.lora_up.weight": torch.ones(8, 1)}, "does not fit"),
    ):
        save_file(state, path)
        with pytest.raises(ValueError, match=words):
            load_adapters(model, [WeightedAdapter(path)])
    path.write_bytes(b"cut")
    with pytest.raises(ValueError, match="no safetensors file"):
        load_adapters(model, [WeightedAdapter(path)])
    with pytest.raises(FileNotFoundError):
        load_adapters(model, [WeightedAdapter(tmp_path / "nowhere.safetensors")])
    with pytest.raises(ValueError, match="No adapter"):
        load_adapters(model, [])
    folder = lora.save_adapter(adapted(2, 2, ["zero_convs"]), tmp_path / "a")
    weights, config = folder / lora.WEIGHTS_FILE, folder / lora.CONFIG_FILE
    state, text = load_file(weights), config.read_text()
    half = next(key for key in state if ".lora_B." in key)
    save_file({key: value for key, value in state.items() if key != half}, weights)
    with pytest.raises(ValueError, match="one half"):
        load_adapters(model, [WeightedAdapter(folder, 0.5)])
    config.write_text(json.dumps(json.loads(text) | {"use_rslora": True}))
    with pytest.raises(ValueError, match="use_rslora"):
        load_adapters(model, [WeightedAdapter(folder, 0.5)])
    assert set(model.state_dict()) == before
    assert WeightedAdapter.parse("a@b/c@0.5") == WeightedAdapter(Path("a@b/c"), 0.5)
    assert WeightedAdapter.parse("plain") == WeightedAdapter(Path("plain"))
    for text in ("a@x", "a@nan", "a@1e9"):
        with pytest.raises(ValueError):
            WeightedAdapter.parse(text)


def saved_by_diffusers(folder, unet, **settings):
    """A LoRA of diffusers' UNet as diffusers itself writes it; returns the file."""
    unet.add_adapter(LoraConfig(init_lora_weights=False, **settings))
    state, metadata = get_peft_model_state_dict(unet), unet.peft_config["default"].to_dict()
    Loader.save_lora_weights(folder, unet_lora_layers=state, unet_lora_adapter_metadata=metadata)
    return folder / "pytorch_lora_weights.safetensors"


LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 8},
        {"r": 6, "lora_alpha": 1},
        {"r": 4, "lora_alpha": 4, "use_rslora": True},
        {"r": 4, "lora_alpha": 2, "rank_pattern": {LAYER: 2}, "alpha_pattern": {"attn2.to_q": 16}},
    ],
    ids=str,
)
def test_rank_and_alpha_in_the_header_of_diffusers(tmp_path, settings):
    unet = theirs_unet(micro_network())
    path = saved_by_diffusers(tmp_path, unet, target_modules=["to_q", "to_out.0"], **settings)
    assert not any(key.endswith("alpha") for key in load_file(path))
    mine = answers(load_adapters(micro_network(), [WeightedAdapter(path)]))
    assert (mine - answers(micro_network())).abs().max() > 0.01
    torch.testing.assert_close(mine, answers(None, unet), rtol=1e-4, atol=1e-4)


def test_an_alpha_beside_the_weights_wins(tmp_path):
    unet = theirs_unet(micro_network())
    path = saved_by_diffusers(tmp_path, unet, r=4, lora_alpha=8, target_modules=["to_q"])
    with safe_open(path, "pt") as file:
        header = file.metadata()
    state = load_file(path)
    names = {key.partition(".lora")[0] for key in state}
    save_file(state | {f"{name}.alpha": torch.tensor(2.0) for name in names}, path, metadata=header)
    model = micro_network()
    with_alpha = formats.read_lora_file(model, path)
    save_file(state, path, metadata=header)
    for name, (_, up) in formats.read_lora_file(model, path).items():
        torch.testing.assert_close(with_alpha[name][1], up / 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"unet.r": 2}, "rank 2, its weights have rank 4"),
        ({"unet.r": True}, "lora_adapter_metadata: r must be"),
        ({"unet.lora_alpha": float("nan")}, "lora_alpha must be"),
        ({"unet.use_dora": True}, "use_dora"),
        ({"unet.init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"unet.rank_pattern": {"to_q": "x"}}, "rank_pattern"),
        ({"unet.alpha_pattern": {"(": 4}}, "alpha_pattern"),
        ({"unet.alpha_pattern": [1]}, "alpha_pattern"),
        ("[]", "cannot be read"),
        ("{", "cannot be read"),
    ],
    ids=str,
)
def test_headers_that_are_refused(tmp_path, changes, words):
    model, path = micro_network(), tmp_path / "x.safetensors"
    state = {f"unet.{LAYER}.lora.down.weight": torch.ones(4, 16), f"unet.{LAYER}.lora.up.weight": torch.ones(16, 4)}
    text = changes if isinstance(changes, str) else json.dumps({"unet.r": 4, "unet.lora_alpha": 8} | changes)
    save_file(state, path, metadata={"lora_adapter_metadata": text})
    with pytest.raises(ValueError, match=words) as error:
        load_adapters(model, [WeightedAdapter(path)])
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert set(model.state_dict()) == set(micro_network().state_dict())


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 0.0, -1.0, [1.0, 2.0]])
def test_an_alpha_tensor_that_is_no_number(tmp_path, alpha):
    key, path = formats.kohya_name(LAYER), tmp_path / "x.safetensors"
    state = {f"{key}.lora_down.weight": torch.ones(4, 16), f"{key}.lora_up.weight": torch.ones(16, 4)}
    save_file(state | {f"{key}.alpha": torch.tensor(alpha)}, path)
    with pytest.raises(ValueError, match="alpha"):
        load_adapters(micro_network(), [WeightedAdapter(path)])


def test_one_layer_of_a_huge_rank_is_refused(tmp_path):
    """All layers of a mixture have one rank, so a file of 3 MB would ask for gigabytes."""
    key, path = formats.kohya_name(LAYER), tmp_path / "x.safetensors"
    save_file(
        {f"{key}.lora_down.weight": torch.ones(20_000, 16), f"{key}.lora_up.weight": torch.ones(16, 20_000)}, path
    )
    with pytest.raises(ValueError, match="from 1 to 1024, not 20000"):
        load_adapters(micro_network(), [WeightedAdapter(path)])
    halves = {f"{key}.lora_down.weight": torch.ones(600, 16), f"{key}.lora_up.weight": torch.ones(16, 600)}
    save_file(halves, path)
    with pytest.raises(ValueError, match="together must be an integer from 1 to 1024, not 1200"):
        load_adapters(micro_network(), [WeightedAdapter(path), WeightedAdapter(path)])


def test_paths_with_an_at_sign_and_capital_endings(tmp_path):
    path = tmp_path / "style@v2.SAFETENSORS"
    formats.write_kohya(adapted(), path)
    assert WeightedAdapter.parse(str(path)) == WeightedAdapter(path)
    assert WeightedAdapter.parse(f"{path}@0.5") == WeightedAdapter(path, 0.5)
    assert load_adapters(micro_network(), [WeightedAdapter.parse(str(path))])
    with pytest.raises(ValueError, match="There is no 'style@v3.safetensors'"):
        WeightedAdapter.parse("style@v3.safetensors")


# -- card and command -----------------------------------------------------------------------------------

TRAINING = {
    "step": 150,
    "network": "anytext2_tiny.yaml",
    "objective": "lcm",
    "guidance_scale": 3.5,
    "negative_prompt": "",
    "learning_rate": 1e-4,
    "train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "use_mock_dataset": True,
}
INTERVAL = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
MEASURED = {
    "panel": {"prompts": 4, "lines": 5},
    "reference": "teacher-50",
    "methods": {
        name: {"evaluations": 4, "accuracy": INTERVAL, "ned": INTERVAL, "retention": INTERVAL}
        for name in ("teacher-50", "teacher-4", "student-4")
    },
}


@pytest.fixture
def folder(tmp_path):
    return lora.save_adapter(adapted(), tmp_path / "adapter", {"anytext_lcm": json.dumps(TRAINING)})


def test_model_card(folder):
    about = describe_adapter(folder)
    card = model_card(about, MEASURED, base_model="someone/anytext2")
    _, head, body = card.split("---\n", 2)
    head = yaml.safe_load(head)
    assert head["library_name"] == "peft" and head["pipeline_tag"] == "text-to-image"
    assert head["license"] == "apache-2.0" and head["base_model"] == "someone/anytext2"
    assert head["base_model_relation"] == "adapter" and "lora" in head["tags"]
    for words in ("w = 2.5", "| 150 |", "drawn by this package", "3, 6", "999, 499", "student-4", "0.500 [0.40, 0.60]"):
        assert words in body, words
    assert "teacher-4" not in body
    assert "Not measured" in model_card(about) and "base_model" not in model_card(about)
    with pytest.raises(ValueError, match="another form"):
        model_card(about, {"methods": {}})
    assert "Rank" in model_card(describe_adapter(folder) | {"training": {}})


HOSTILE = 'a: b # c | d\x1b[31m\nlicense: evil \u202e \ud800 "x" 文字'


def test_foreign_text_stays_one_cell_and_one_value(folder, tmp_path):
    """Newlines, pipes, control and bidirectional characters in flags and in an adapter's header."""
    training = TRAINING | {"network": HOSTILE, "objective": HOSTILE, "data_list": [HOSTILE]}
    card = model_card(describe_adapter(folder) | {"training": training}, None, HOSTILE, HOSTILE, HOSTILE)
    assert all(character.isprintable() or character == "\n" for character in card)
    card.encode("utf-8")
    head = yaml.safe_load(card.split("---\n")[1])
    usual = yaml.safe_load(model_card(describe_adapter(folder), base_model="x").split("---\n")[1])
    assert head.keys() == usual.keys() and head["license"] == head["base_model"]
    assert r"\x1b[31m\nlicense: evil \u202e \ud800" in head["license"] and "文字" in head["license"]
    rows = [line for line in card.partition("## Use")[0].splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in rows} == {3}


@pytest.fixture
def network(teacher, tmp_path):
    """--config and a yaml of the micro network that names its weights."""
    config = micro_config()
    config.model.defaults = {"checkpoint": str(teacher / "micro.safetensors")}
    OmegaConf.save(config, tmp_path / "micro.yaml")
    return ["--config", tmp_path / "micro.yaml", "--device", "cpu"]


@pytest.mark.parametrize(
    "fields",
    [
        *({"guidance_scale": value} for value in ("x", True, float("nan"), 0.5)),
        *({"step": value} for value in ([], -1, 2.0)),
        *({"phases": value} for value in (-3, 51, "4")),
        *({key: 5} for key in ("objective", "network")),
    ],
    ids=str,
)
def test_a_header_of_another_form_is_refused_by_export(network, tmp_path, fields, capsys):
    header = {"anytext_lcm": json.dumps(TRAINING | fields)}
    folder = lora.save_adapter(adapted(), tmp_path / "adapter", header)
    command = ["--adapter", folder, "--output", tmp_path / "out", *network]
    assert export.main([str(word) for word in command]) == 2
    said = capsys.readouterr().err
    assert f"adapter_model.safetensors: {next(iter(fields))} in the header must be" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def python_of(markdown):
    """The Python between a card's fences."""
    return markdown.split("```python\n")[1].split("```")[0]


def test_each_card_says_where_its_layout_works(folder):
    about = describe_adapter(folder)
    more = {"file": "x.safetensors", "left_out": "Left out: 9."}
    cards = {layout: model_card(about, layout=layout, **more) for layout in LAYOUTS}
    scheduler = LCMScheduler()
    scheduler.set_timesteps(4)
    four = ", ".join(map(str, scheduler.timesteps.tolist()))
    for card in cards.values():
        assert four in card and "$" not in card.replace("$ ", "")
    ddim = DDIMScheduler(steps_offset=1, timestep_spacing="leading")
    ddim.set_timesteps(4)
    assert ", ".join(map(str, ddim.timesteps.tolist())) in cards["merged"] and "x.safetensors" in cards["merged"]
    for layout in ("kohya", "diffusers"):
        assert "writes no text" in cards[layout] and "Left out: 9." in cards[layout]
    table = [line for line in cards["kohya"].partition("## Use")[2].splitlines() if line.startswith("|")]
    assert "own code" not in " ".join(table)  # it makes its UNet diffusers', strictly; AttnX has no place there
    heads = {layout: yaml.safe_load(card.split("---\n")[1]) for layout, card in cards.items()}
    assert {layout: head.get("library_name") for layout, head in heads.items()} == {
        "peft": "peft",
        "diffusers": "diffusers",
        "merged": None,
        "kohya": None,
    }


def test_the_settings_of_comfyui_and_a1111_ask_near_the_trained_timesteps():
    """Their LCM sampling has the same 50 timesteps; "SGM uniform" divides 999..19 evenly and drops the end."""
    grid = np.arange(999, 0, -20)
    for steps in (4, 8):
        asked = np.linspace(999, 19, steps + 1)[:-1]
        nearest = grid[np.abs(grid[:, None] - asked).argmin(axis=0)]
        assert np.abs(nearest - lcm_timesteps(steps).numpy()).max() <= 20
        assert np.abs(asked - lcm_timesteps(steps).numpy()).max() <= 10 + 1e-6
    assert np.linspace(999, 19, 4)[-1] == 19  # A1111's own schedule: its last step starts where nothing is left to do


class UpstreamModel:
    """What AnyText2's ControlLDM offers a sampler: betas on its device, and apply_model(x, t, cond)."""

    def __init__(self):
        self.network, self.asked = micro_network(), []
        self.betas, self.prepared = self.network.betas, prepare(self.network, micro_batch(2), [0, 1])

    def apply_model(self, x, t, cond):
        assert cond == "conditioning" and t.dtype == torch.int64 and t.shape == (len(x),)
        self.asked.append(int(t[0]))
        return predictor(self.network, self.prepared, 1.0)(x, t)


class UpstreamWrapper:
    """AnyText2's AnyText2Model as far as the script uses it: callable, with a `model` and a `ddim_sampler`."""

    last = None

    def __init__(self, model_dir, use_translator, model_path):
        self.model, self.ddim_sampler, self.path = UpstreamModel(), None, model_path
        UpstreamWrapper.last = self

    def cuda(self, index):
        return self

    def __call__(self, wanted, mode, cfg_scale, ddim_steps, font_hint_image):
        assert mode == "gen" and cfg_scale == 1.0 and set(wanted) == {"img_prompt", "text_prompt", "draw_pos", "seed"}
        shape = self.model.prepared.latent_shape
        torch.manual_seed(wanted["seed"])
        options = {"eta": 0.0, "unconditional_guidance_scale": cfg_scale, "unconditional_conditioning": "un"}
        self.latents, _ = self.ddim_sampler.sample(ddim_steps, 2, shape, "conditioning", verbose=False, **options)
        return [np.zeros((4, 4, 3), np.uint8)] * 2, 0, "", ""


@pytest.mark.parametrize("steps", [4, 8])
def test_the_script_for_upstreams_code_draws_as_lcm(tmp_path, monkeypatch, steps):
    """Run with stubs of AnyText2's own modules, on the micro network: equal to this package's sampler."""
    source = UPSTREAM_SCRIPT.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 40 and max(map(len, source.splitlines())) <= 120
    Image.new("RGB", (8, 8)).save(tmp_path / "positions.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ms_wrapper", SimpleNamespace(AnyText2Model=UpstreamWrapper))
    monkeypatch.setattr(sys, "argv", ["upstream_lcm.py", "x.safetensors", "a", 'b "c"', "positions.png", str(steps)])
    exec(compile(source, "upstream_lcm.py", "exec"), {"__name__": "__main__"})
    assert (tmp_path / "0.png").is_file() and (tmp_path / "1.png").is_file()
    wrapper = UpstreamWrapper.last
    model = wrapper.model
    assert wrapper.path == "x.safetensors" and model.asked == lcm_timesteps(steps).tolist()
    torch.manual_seed(0)
    noise, predict = torch.randn(2, *model.prepared.latent_shape), predictor(model.network, model.prepared, 1.0)
    ours = finish(sample(predict, noise, NoiseSchedule.scaled_linear(), steps, "lcm"))
    torch.testing.assert_close(wrapper.latents, ours, rtol=1e-3, atol=1e-3)


def test_the_snippet_for_diffusers_runs(tmp_path, monkeypatch):
    """As the card has it, with a Stable Diffusion of the micro network's size on the CPU."""
    model = adapted(targets=["unet_attention"])
    formats.write_diffusers(model, tmp_path / "pytorch_lora_weights.safetensors")
    text = CLIPTextConfig(
        vocab_size=1024, hidden_size=CONTEXT, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(4,) * 4, norm_num_groups=2, latent_channels=CHANNELS, **blocks),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer.from_pretrained(ASSETS / "tokenizer", model_max_length=77),
        unet=theirs_unet(micro_network()),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", lambda *_, **__: pipe)
    card = model_card({"rank": 1, "alpha": 1, "layers": 1, "parameters": 1, "training": {}}, layout="diffusers")
    code = python_of(card).replace('"cuda"', '"cpu"').replace('"this/folder"', repr(str(tmp_path)))
    exec(code, names := {})
    assert pipe.scheduler.timesteps.tolist() == lcm_timesteps(4).tolist()
    loaded = {name for name, module in pipe.unet.named_modules() if hasattr(module, "lora_A")}
    assert loaded == set(formats.split_layers(model)[0].values()) and names["picture"].size == (SIDE, SIDE)


def test_the_snippet_for_peft_runs(folder, network, teacher, tmp_path, monkeypatch):
    """As the card has it, with the micro network's files under the card's names; and PEFT reads the folder."""
    monkeypatch.chdir(tmp_path)
    Path(network[1]).rename("anytext2_sd15.yaml")
    Path("models").mkdir()
    torch.save(load_file(teacher / "micro.safetensors"), "models/anytext_v2.0.ckpt")
    card = model_card(describe_adapter(folder), layout="peft")
    exec(python_of(card).replace('"this/folder"', repr(str(folder))), names := {})
    bare = loading.load_model("anytext2_sd15.yaml", "models/anytext_v2.0.ckpt", "cpu")
    wrapped = PeftModel.from_pretrained(bare, folder).base_model.model
    assert layouts.distance(probe(wrapped), probe(names["model"])) < 1e-5
    assert "PeftModel.from_pretrained" in card


def test_the_commands_of_the_cards_run(network, folder, tmp_path):
    """`sample` on the PEFT folder draws in four steps; `evaluate` on the merged file takes the words of its card."""
    about = describe_adapter(folder)
    card = model_card(about, layout="peft")
    words = re.search(r"`python -m anytext_lcm.sample (.*?) \.\.\.`", card)[1].split()
    words[words.index("this/folder")] = folder
    more = ["--prompt", "a wall", "--line", "cat@4,10,60,40", "--output", tmp_path / "drawn.png"]
    assert sample_command.main([str(word) for word in (*words, *network, *more)]) == 0
    method = read_settings(tmp_path / "drawn.png")["method"]
    assert (method["steps"], method["guidance_scale"], method["adapter"]) == (4, 1.0, True)
    card = model_card(about, layout="merged", file="merged.safetensors")
    words = re.search(r"`evaluate (.*?)`", card)[1].split()
    args = evaluate.build_parser().parse_args(words)
    assert (args.ckpt, args.adapter, args.methods) == ("merged.safetensors", ["none"], ["untrained-4"])


def test_the_templates_of_the_cards_are_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["anytext_lcm"]
    for file in (TEMPLATE, UPSTREAM_SCRIPT, *USES.values()):
        assert any(file.relative_to(ROOT / "anytext_lcm").match(pattern) for pattern in patterns)


def test_command(folder, network, tmp_path, capsys):
    (tmp_path / "report.json").write_text(json.dumps(MEASURED))
    command = ["--adapter", folder, "--output", tmp_path / "out", "--report", tmp_path / "report.json"]
    command = [str(word) for word in (*command, *network, "--base_model", "someone/anytext2")]
    assert export.main(command) == 0
    printed = capsys.readouterr().out
    assert printed.count("read back") == 4 and "Left out" in printed
    report = json.loads((tmp_path / "out" / "export.json").read_text())
    assert set(report["files"]) == set(LAYOUTS) and all(e < 1e-5 for e in report["errors"].values())
    for name in report["files"].values():
        assert (tmp_path / "out" / name).exists()
        assert (tmp_path / "out" / name).is_dir() or (tmp_path / "out" / name).with_name("README.md").is_file()
    peft = tmp_path / "out" / "peft"
    config = json.loads((peft / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "someone/anytext2"
    assert describe_adapter(peft)["training"] == TRAINING and (peft / "README.md").is_file()
    on = probe(lora.load_adapter(micro_network(), folder))
    wrapped = PeftModel.from_pretrained(micro_network(), peft)
    assert layouts.distance(on, probe(wrapped.base_model.model)) < 1e-5
    merged = micro_network(seed=5).load_checkpoint(tmp_path / "out" / report["files"]["merged"])
    assert layouts.distance(on, probe(merged)) < 1e-5
    more = ["--layouts", "merged", "--precision", "fp16", "--checkpoint_format", "ckpt", "--adapter_scale", "0.5"]
    assert export.main([*command, *more, "--mix", f"{folder}@0.5"]) == 0  # two halves; its own folder is replaced
    about = json.loads((tmp_path / "out" / "export.json").read_text())["about"]
    assert [part["scale"] for part in about["mixed_from"]] == [0.5, 0.5]
    merged = tmp_path / "out" / "merged" / "anytext2_lcm.ckpt"
    names = sorted(path.name for path in merged.parent.iterdir())
    assert names == ["README.md", "anytext2_lcm.ckpt", "upstream_lcm.py"] and not (tmp_path / "out" / "kohya").exists()
    assert layouts.distance(on, probe(micro_network(seed=5).load_checkpoint(merged))) < 1e-2


def test_card_of_a_mixture_is_of_the_mixture(folder, network, tmp_path):
    """Two adapters of rank 3 side by side are one of rank 6, with twice the parameters."""
    before = describe_adapter(folder)
    command = ["--adapter", folder, "--mix", f"{folder}@0.5", "--layouts", "peft", "--output", tmp_path / "out"]
    assert export.main([str(word) for word in (*command, *network)]) == 0
    card = (tmp_path / "out" / "peft" / "README.md").read_text()
    after = describe_adapter(tmp_path / "out" / "peft")
    assert after["rank"] == 2 * before["rank"] and after["parameters"] == 2 * before["parameters"]
    assert f"| Rank, alpha | {after['rank']}, {after['alpha']:g} |" in card
    assert f"| Adapted layers | {after['layers']} ({after['parameters'] / 1e6:.2f} M parameters) |" in card


def test_a_probe_knows_two_networks_apart():
    assert layouts.distance(probe(micro_network()), probe(micro_network())) == 0
    assert layouts.distance(probe(micro_network()), probe(micro_network(seed=1))) > 0.01
    assert all(np.isfinite(x.numpy()).all() for x in probe(micro_network()))


def test_a_file_for_a_network_of_another_size_does_not_pass_for_stable_diffusions(tmp_path):
    """Its card says so, and its header names no base that tools would offer it for."""
    model = adapted()
    assert formats.is_of_stable_diffusion(AnyText2.from_config("anytext2_sd15.yaml", "meta"))
    about = {"rank": 1, "alpha": 1, "layers": 1, "parameters": 1, "training": {}}
    options = layouts.ExportOptions(layouts=layouts.UNET_ONLY, check=False)
    report = layouts.export(model, tmp_path, partial(model_card, about), options=options)
    assert layouts.OTHER_SIZE in report["left_out"]["note"]
    for layout in layouts.UNET_ONLY:
        card = (tmp_path / report["files"][layout]).with_name("README.md").read_text(encoding="utf-8")
        assert layouts.OTHER_SIZE in " ".join(card.split())
    with safe_open(tmp_path / report["files"]["kohya"], "pt") as file:
        header = file.metadata()
    assert "ss_network_module" in header and "ss_base_model_version" not in header
