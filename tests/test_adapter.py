"""The adapter: where it goes, that it can be switched off exactly, and that PEFT and this package read each other."""

import gzip
import json
import os
import shutil

import pytest
import torch
from micro_network import CHANNELS, CONTEXT, ROOT, SIDE, micro_network
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from reference_weights import REFERENCE
from safetensors.torch import load_file, save_file

from anytext_lcm.adapter import lora, mix, targets
from anytext_lcm.adapter.card import describe_adapter
from anytext_lcm.adapter.lora import Adapter
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.networks import EMBEDDED_CONFIG
from anytext_lcm.training.settings import TrainSettings

GROUPS = {  # ours -> the reference list's
    "zero_convs": "A1 control zero_convs (12)",
    "middle_block_out": "A2 control middle_block_out (1)",
    "writenet_attention": "B1 control attn1+attn2 projections",
    "unet_attention": "C1 unet attn1+attn2 projections (all 16 blocks)",
    "unet_attnx": "D1 unet attn1x+attn2x projections",
}
MLP = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1"


def stir(model, seed=1):
    """Gives the adapter something to say: B starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in Adapter.of(model).state().values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.no_grad()
def outputs(model):
    g = torch.Generator().manual_seed(3)
    context, text = torch.randn(2, 2, 77, CONTEXT, generator=g)
    glyphs = (torch.rand(2, 1, SIDE, SIDE, generator=g) > 0.8).float()
    latents, masked = torch.randn(2, 2, CHANNELS, SIDE // 8, SIDE // 8, generator=g)
    residuals = model.control_model(glyphs, glyphs, masked, text)
    eps = model.model.diffusion_model(latents, torch.tensor([19, 999]), context, control=residuals)
    return [*residuals, eps]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture(scope="module")
def bare():
    """A network that no test changes."""
    return micro_network()


@pytest.fixture(scope="module")
def bare_outputs(bare):
    return outputs(bare)


# -- targets ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_targets_and_sizes_of_the_full_network():
    with gzip.open(REFERENCE / "lora_targets.json.gz", "rt") as file:
        reference = json.load(file)
    model = AnyText2.from_config(ROOT / "models_yaml" / "anytext2_sd15.yaml", device="meta")
    groups = targets.find_targets(model)
    assert list(groups) == list(GROUPS)
    for ours, theirs in GROUPS.items():
        assert groups[ours] == reference["module_names"][theirs], ours
    lora.attach(model, rank=64)
    assert targets.find_targets(model) == groups  # the same with an adapter on
    adapter = Adapter.of(model)
    state = adapter.state()
    assert len(adapter.layers) == 253 and sum(p.numel() for p in state.values()) == 26_992_640
    for ours, theirs in GROUPS.items():
        ends = {f"base_model.model.{name}.lora_{x}.weight" for name in groups[ours] for x in "AB"}
        size = sum(parameter.numel() for key, parameter in state.items() if key in ends)
        assert size == reference["groups"][theirs]["lora_params_rank64"], ours


def test_targets_of_a_small_network(bare):
    counts = {group: len(names) for group, names in targets.find_targets(bare).items()}
    assert counts == {
        "zero_convs": 4,
        "middle_block_out": 1,
        "writenet_attention": 24,
        "unet_attention": 56,
        "unet_attnx": 24,
    }


def test_the_rest_of_the_unet_is_a_group_to_be_named():
    model = micro_network()
    rest, usual = targets.find_unet_rest(model), {n for names in targets.find_targets(model).values() for n in names}
    root = "model.diffusion_model"
    kinds = torch.nn.Linear | torch.nn.Conv2d
    layers = {n for n, m in model.named_modules() if n.startswith(root) and isinstance(m, kinds)}
    left_out = layers - set(rest) - usual
    assert left_out == {f"{root}.{n}" for n in ("time_embed.0", "time_embed.2", "input_blocks.0.0", "out.2")}
    assert not usual & set(rest)
    assert targets.resolve_targets(model) == sorted(usual)
    both = targets.resolve_targets(model, ["unet_rest", "zero_convs"])
    assert both == sorted(rest + targets.find_targets(model)["zero_convs"])
    lora.attach(model, rank=2, alpha=2, targets=["unet_rest"])
    assert targets.find_unet_rest(model) == rest  # the same with an adapter on


def test_a_choice_of_targets():
    model = micro_network()
    name = "model.diffusion_model.output_blocks.0.1.transformer_blocks.0.ff.net.2"
    lora.attach(model, rank=2, alpha=4, targets=["middle_block_out", name])
    assert list(Adapter.of(model).layers) == ["control_model.middle_block_out.0", name]
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 4 and all(".lora_" in n for n in trained)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": -4}, "rank"),
        ({"rank": 2.5}, "rank"),
        ({"rank": 1025}, "from 1 to 1024"),
        ({"alpha": float("nan")}, "finite"),
        ({"alpha": float("inf")}, "finite"),
        ({"alpha": 0}, "alpha"),
        ({"targets": []}, "No LoRA target"),
        ({"targets": ["zero_convs", "unet_atention"]}, "unet_atention"),
        ({"targets": ["zero_convs", "model.diffusion_model.middle_block.9"]}, "middle_block.9"),
        ({"targets": ["model.diffusion_model.out.0"]}, "GroupNorm"),
        ({"targets": ["zero_convs", "embedding_manager.proj.0"]}, "proj.0' would get no gradient; name one under"),
        ({"targets": ["first_stage_model.quant_conv"]}, "would get no gradient"),
        ({"targets": [MLP]}, "would get no gradient"),
    ],
)
def test_what_attach_refuses(bare, options, words):
    before = set(bare.state_dict())
    with pytest.raises(ValueError, match=words):
        lora.attach(bare, **options)
    assert set(bare.state_dict()) == before


def test_peft_alone_would_pass_over_a_wrong_name():
    """Why attach checks: half of the list is a misspelling, and PEFT adapts the other half without a word."""
    config = LoraConfig(r=2, target_modules=["control_model.middle_block_out.0", "no.such.module"])
    assert get_peft_model(micro_network(), config).targeted_module_names == ["control_model.middle_block_out.0"]


def test_a_second_adapter_is_refused():
    with pytest.raises(ValueError, match="already"):
        lora.attach(lora.attach(micro_network(), 2, 2), 2, 2)
    with pytest.raises(ValueError, match="AnyText2"):
        targets.find_targets(torch.nn.Linear(2, 2))


# -- the object -------------------------------------------------------------------------------------------


def test_a_model_without_an_adapter_is_refused_in_one_sentence(bare):
    with pytest.raises(ValueError, match="has no adapter; attach or load one first") as error:
        Adapter.of(bare)
    assert "\n" not in str(error.value)
    assert lora.adapter_layers(bare) == lora.adapter_state(bare) == {}


def test_the_state_holds_the_parameters_that_are_trained():
    adapter = Adapter.of(stir(lora.attach(micro_network(), 2, 5)))
    state, named = adapter.state(), dict(adapter.model.named_parameters())
    trained = {id(p) for p in named.values() if p.requires_grad}
    assert {id(p) for p in state.values()} == trained and len(trained) == 2 * len(adapter.layers)
    assert list(state) == sorted(state) and (adapter.rank, adapter.alpha) == (2, 5)
    peft = get_peft_model_state_dict(adapter.model)  # PEFT's own, detached
    assert {f"base_model.model.{key}" for key in peft} == set(state)
    assert all(torch.equal(value, state[f"base_model.model.{key}"]) for key, value in peft.items())
    squares = sum(float(value.double().square().sum()) for value in peft.values())
    assert adapter.norm() == pytest.approx(squares**0.5, rel=1e-5)


def test_what_an_adapter_touches():
    adapter = Adapter.of(lora.attach(micro_network(), 2, 2, ["unet_decoder"]))
    assert not adapter.touches("control_model", "model.diffusion_model.input_blocks")
    assert adapter.touches("control_model", "model.diffusion_model.middle_block")
    assert adapter.touches("model") and not adapter.touches("model.diffusion_model.middle")  # whole names alone


# -- on and off -------------------------------------------------------------------------------------------


def test_a_fresh_adapter_changes_nothing(bare_outputs):
    for mine, bare in zip(outputs(lora.attach(micro_network(), 4, 4)), bare_outputs, strict=True):
        torch.testing.assert_close(mine, bare, rtol=0, atol=1e-6)


def test_off_is_the_bare_model_bit_for_bit(bare_outputs):
    model = stir(lora.attach(micro_network(), 4, 4))
    on = outputs(model)
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(on[1:], bare_outputs[1:], strict=True))
    adapter = Adapter.of(model)
    with adapter.off() as teacher:
        assert teacher is model and same(outputs(model), bare_outputs)
        with adapter.off(), lora.adapter_off(model):
            pass
        assert same(outputs(model), bare_outputs)  # still off
    assert same(outputs(model), on)


@pytest.mark.parametrize("switch", [Adapter.off, Adapter.merged])
def test_the_switch_ends_with_an_error_and_does_not_unfreeze(switch):
    adapter = Adapter.of(stir(lora.attach(micro_network(), 4, 4)))
    on = outputs(adapter.model)
    for parameter in adapter.state().values():
        parameter.requires_grad_(False)
    with pytest.raises(RuntimeError, match="inside"), switch(adapter):
        raise RuntimeError("inside")
    assert same(outputs(adapter.model), on)
    assert not any(parameter.requires_grad for parameter in adapter.model.parameters())


def test_without_an_adapter_there_is_nothing_to_switch_off(bare, bare_outputs):
    with lora.adapter_off(bare) as teacher:
        assert teacher is bare and same(outputs(bare), bare_outputs)


def test_alpha_over_rank_scales_the_update():
    def change(rank, alpha):
        model = lora.attach(micro_network(), rank, alpha, ["middle_block_out"])
        layer = Adapter.of(model).layers["control_model.middle_block_out.0"]
        torch.nn.init.ones_(layer.lora_A["default"].weight)
        torch.nn.init.ones_(layer.lora_B["default"].weight)
        x = torch.ones(1, 16, 1, 1)
        with torch.no_grad():
            return (layer(x) - layer.base_layer(x)).mean().item()

    assert change(2, 2) == pytest.approx(2 * 16, rel=1e-4)  # B A x = rank times channels
    assert change(4, 2) == pytest.approx(2 * 16, rel=1e-4) and change(2, 4) == pytest.approx(4 * 16, rel=1e-4)


def test_the_adapter_is_fp32_on_a_half_precision_network():
    model = micro_network()
    for child in model.children():
        child.bfloat16()
    lora.attach(model, 2, 2)
    assert {p.dtype for p in Adapter.of(model).state().values()} == {torch.float32}
    assert model.control_model.fuse_block_za.weight.dtype == torch.bfloat16
    assert all(output.isfinite().all() for output in outputs(model))


def test_merged_equals_attached(bare, bare_outputs):
    model = stir(lora.attach(micro_network(), 4, 4))
    keys, adapter = set(bare.state_dict()), Adapter.of(model)
    on = outputs(model)
    with adapter.merged():
        inside = outputs(model)
    with adapter.off():
        assert same(outputs(model), bare_outputs)  # nothing of it is left in the teacher
    assert same(outputs(model), on)
    assert mix.merge(model) is model
    assert set(model.state_dict()) == keys and not lora.adapter_layers(model)
    for merged, switched, attached in zip(outputs(model), inside, on, strict=True):
        torch.testing.assert_close(merged, attached, rtol=1e-4, atol=1e-4)
        assert torch.equal(merged, switched)
    with pytest.raises(ValueError, match="no adapter"):
        mix.merge(model)
    lora.attach(model, 2, 2)  # and a merged model can take the next one


def test_under_autocast_merged_weights_are_the_same():
    """The adapter's product is not rounded to half precision on its way into the weights."""
    adapter = Adapter.of(stir(lora.attach(micro_network(), 4, 4)))

    def merged():
        with adapter.merged():
            return [layer.get_base_layer().weight.clone() for layer in adapter.layers.values()]

    plain = merged()
    with torch.autocast("cpu", torch.bfloat16):
        assert same(merged(), plain)


# -- disk -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = stir(lora.attach(micro_network(), 4, 8))
    return lora.save_adapter(model, tmp_path_factory.mktemp("adapters") / "one"), outputs(model)


def test_saved_and_loaded(saved):
    directory, on = saved
    assert sorted(path.name for path in directory.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert [path.name for path in directory.parent.iterdir()] == ["one"]  # nothing temporary is left
    model = micro_network()
    state = torch.get_rng_state()
    lora.load_adapter(model, directory)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for mine, theirs in zip(outputs(model), on, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    lora.load_adapter(model, directory, trainable=True)  # over itself
    assert all(parameter.requires_grad for parameter in Adapter.of(model).state().values())
    assert same(outputs(model), on)


def test_the_files(saved):
    directory, _ = saved
    config = json.loads((directory / "adapter_config.json").read_text())
    names = sorted(sum(targets.find_targets(micro_network()).values(), []))
    assert config["target_modules"] == names and config["r"] == 4 and config["lora_alpha"] == 8
    state = load_file(directory / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32} and len(state) == 2 * len(names)
    again = lora.save_adapter(lora.load_adapter(micro_network(), directory), directory.parent / "two", {"steps": "5"})
    assert (again / "adapter_config.json").read_bytes() == (directory / "adapter_config.json").read_bytes()


def test_peft_reads_what_we_write(saved):
    directory, on = saved
    wrapped = PeftModel.from_pretrained(micro_network(), directory)
    for mine, theirs in zip(outputs(wrapped.base_model.model), on, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_we_read_what_peft_writes(tmp_path):
    names = targets.resolve_targets(micro_network())
    wrapped = get_peft_model(micro_network(), LoraConfig(r=3, lora_alpha=6, target_modules=names))
    on = outputs(stir(wrapped.base_model.model))
    wrapped.save_pretrained(tmp_path)
    for mine, theirs in zip(outputs(lora.load_adapter(micro_network(), tmp_path)), on, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_files_follow_the_umask(saved, tmp_path, mask):
    model = lora.load_adapter(micro_network(), saved[0])
    before = os.umask(mask)
    try:
        for _ in range(2):  # a new folder, and over the files of an old one
            folder = lora.save_adapter(model, tmp_path / "out")
            assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~mask}
    finally:
        os.umask(before)


def test_an_existing_directory_keeps_its_other_files(saved, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    model = lora.load_adapter(micro_network(), saved[0])
    lora.save_adapter(model, tmp_path)
    names = ["adapter_config.json", "adapter_model.safetensors", "notes.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_adapters_that_do_not_fit(saved, tmp_path):
    directory, _ = saved
    with pytest.raises(FileNotFoundError, match="adapter_config.json"):
        lora.load_adapter(micro_network(), tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no adapter"):
        lora.save_adapter(micro_network(), tmp_path / "none")
    with pytest.raises(ValueError, match="differs"):
        lora.load_adapter(lora.attach(micro_network(), 2, 2), directory)

    def changed(config=None, state=None, raw=None):
        lora.save_adapter(lora.load_adapter(micro_network(), directory), tmp_path / "bad")
        path = tmp_path / "bad" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
        weights = tmp_path / "bad" / "adapter_model.safetensors"
        if state:
            save_file(state(load_file(weights)), weights)
        if raw is not None:
            weights.write_bytes(raw)
        return tmp_path / "bad"

    before = set(micro_network().state_dict())
    for options, words in (
        ({"config": {"r": 8}}, "r is 8"),
        ({"config": {"use_rslora": True}}, "use_rslora"),
        (
            {"state": lambda s: {k.replace("output_blocks", "outputs"): v for k, v in s.items()}},
            "does not fit",
        ),
        ({"state": lambda s: {k.removeprefix("base_model.model."): v for k, v in s.items()}}, "no PEFT LoRA"),
        ({"state": lambda s: dict(list(s.items())[1:])}, "one half"),
        ({"raw": b"cut"}, "truncated"),
    ):
        model = micro_network()
        with pytest.raises(ValueError, match=words):
            lora.load_adapter(model, changed(**options))
        assert set(model.state_dict()) == before


def test_targets_from_a_file(bare, tmp_path):
    """What the inspection writes goes back in, alone or beside other names."""
    model = bare
    written = tmp_path / "target_modules_list.txt"
    written.write_text("\n".join(targets.find_targets(model)["unet_attnx"]) + "\n")
    assert targets.resolve_targets(model, [str(written)]) == sorted(targets.find_targets(model)["unet_attnx"])
    both = targets.resolve_targets(model, [str(written), "zero_convs"])
    assert both == targets.resolve_targets(model, ["unet_attnx", "zero_convs"])
    with pytest.raises(ValueError, match="cannot be read"):
        targets.resolve_targets(model, [str(tmp_path / "none.txt")])
    written.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        targets.resolve_targets(model, [str(written)])


# -- what is refused --------------------------------------------------------------------------------------

BAD_FIELDS = [
    *({"r": value} for value in (2, 10**9, -1, 0, True, 4.0, "4", None)),
    *({"lora_alpha": value} for value in (float("nan"), float("inf"), 0, -8, True, "8", None)),
    *({key: True} for key in ("use_dora", "use_rslora", "use_qalora", "lora_bias", "kasa_config", "use_bdlora")),
    *({"peft_type": kind} for kind in ("LOHA", "IA3", "LOKR", "VERA")),
    *({"bias": kind} for kind in ("all", "lora_only")),
    *({"init_lora_weights": kind} for kind in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", 1)),
    {"rank_pattern": {"to_q": 2}},
    {"alpha_pattern": {"to_q": 2}},
    {"modules_to_save": ["out"]},
    {"target_parameters": ["weight"]},
    {"trainable_token_indices": [1]},
    {"layer_replication": [[0, 1]]},
    {"some_future_variant": True},
]


def altered(directory, target, config=None, change=None):
    """A copy of a saved adapter with fields of its configuration, or its tensors, changed."""
    shutil.copytree(directory, target)
    path = target / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
    if change is not None:
        state = load_file(target / "adapter_model.safetensors")
        change(state)
        save_file(state, target / "adapter_model.safetensors")
    return target


def ways_in(model, folder):
    """Every way an adapter's folder comes in."""
    yield lambda: lora.load_adapter(model, folder)
    yield lambda: mix.load_adapters(model, [mix.WeightedAdapter(folder)])
    yield lambda: mix.load_adapters(model, [mix.WeightedAdapter(folder, 0.5)])
    yield lambda: describe_adapter(folder)


@pytest.mark.parametrize("fields", BAD_FIELDS, ids=str)
def test_one_validation_for_every_way_in(bare, saved, tmp_path, fields):
    before = set(bare.state_dict())
    folder = altered(saved[0], tmp_path / "bad", fields)
    for way in ways_in(bare, folder):
        with pytest.raises(ValueError) as error:
            way()
        said = str(error.value)
        assert "adapter_config.json" in said or "adapter_model.safetensors" in said
        assert next(iter(fields)) in said or "r is" in said and "\n" not in said
    assert set(bare.state_dict()) == before


def put(state, key, value):
    state[key] = value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop(min(s)), "one half"),
        (lambda s: put(s, min(s), s[min(s)][:2]), "r is 4"),
        (lambda s: put(s, min(s), s[min(s)].flatten()), "r is 4"),
        (lambda s: s[min(s)].view(-1)[:1].fill_(float("nan")), "not finite"),
        (lambda s: s[max(s)].view(-1)[:1].fill_(float("inf")), "not finite"),
        (lambda s: put(s, min(s), s[min(s)].to(torch.int8)), "int8"),
        (lambda s: put(s, "base_model.model.x.lora_magnitude_vector", torch.ones(1)), "1 other keys"),
    ],
)
def test_weights_that_are_no_plain_lora(bare, saved, tmp_path, change, words):
    before = set(bare.state_dict())
    for way in ways_in(bare, altered(saved[0], tmp_path / "bad", change=change)):
        with pytest.raises(ValueError, match=words):
            way()
    assert set(bare.state_dict()) == before


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "eva"])
def test_plain_inits_load(saved, tmp_path, init):
    folder = altered(saved[0], tmp_path / "fine", {"init_lora_weights": init, "lora_dropout": 0.1})
    assert same(
        outputs(lora.load_adapter(micro_network(), folder)), outputs(lora.load_adapter(micro_network(), saved[0]))
    )


def test_a_byte_order_mark_is_no_fault(bare, saved, tmp_path):
    folder = altered(saved[0], tmp_path / "marked")
    path = folder / "adapter_config.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert describe_adapter(folder)["rank"] == 4
    names = targets.find_targets(bare)["zero_convs"]
    (tmp_path / "list.txt").write_text("\n".join(names), encoding="utf-8-sig")
    assert targets.resolve_targets(bare, [str(tmp_path / "list.txt")]) == names


@pytest.mark.parametrize("rank", [0, 1025, 99_999_999])
def test_a_training_of_such_a_rank_is_refused_before_anything_is_loaded(rank, tmp_path):
    with pytest.raises(ValueError, match="--lora_rank must be an integer, at least 1 and at most 1024"):
        TrainSettings.from_dict({"config": str(EMBEDDED_CONFIG), "output_dir": str(tmp_path), "lora_rank": rank})
