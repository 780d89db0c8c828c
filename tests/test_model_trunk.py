"""The denoising trunk against reference outputs of upstream AnyText2: embedding, blocks, WriteNet, UNet."""

import gzip
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from reference_weights import REFERENCE, X, fill, load_reference, relative_error, weights_for

from anytext_lcm.model.config import TrunkConfig, WriteNetConfig, read_configs
from anytext_lcm.model.layers import (
    MANY_SCORES,
    BasicTransformerBlock,
    CrossAttention,
    Downsample,
    ResBlock,
    SpatialTransformer,
    Upsample,
    group_norm,
    timestep_embedding,
)
from anytext_lcm.model.unet import UNetModel
from anytext_lcm.model.writenet import WriteNet

TINY = dict(model_channels=32)  # every other size is Stable Diffusion's, as in the references
SHIPPED = dict(mid_attnx=True, output_attnx_levels=(2, 1))
CHANNELS = [32, 32, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128, 128]
SIZES = [16, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2, 2]
# Smaller still, and different wherever the constructors allow it: what the embedded teacher looks like.
SMALL = dict(
    in_channels=16,
    model_channels=16,
    channel_mult=(1, 2, 3),
    num_res_blocks=1,
    attention_resolutions=(2, 4),
    num_heads=2,
    context_dim=24,
    norm_groups=8,
)


@pytest.fixture(scope="module")
def unet():
    return fill(UNetModel(TrunkConfig(**TINY, **SHIPPED)), "model.diffusion_model.")


@pytest.fixture(scope="module")
def unet_inputs():
    t = torch.from_numpy(load_reference("05_unet")["t"])
    return X("unet.x", (2, 4, 16, 16)), t, X("unet.ctx", (2, 77, 768))


@pytest.fixture(scope="module")
def control():
    shapes = [(2, c, s, s) for c, s in zip(CHANNELS, SIZES, strict=True)]
    return [X(f"unet.control.{i:02d}", shape, 4.0) for i, shape in enumerate(shapes)]


@pytest.fixture(scope="module")
def writenet():
    return fill(WriteNet(TrunkConfig(**TINY)), "control_model.")


@pytest.fixture(scope="module")
def hint_inputs():
    """glyph, position, masked latents and context of the reference scene, built from its line slots."""
    scene = load_reference("04_writenet")
    glyph = torch.from_numpy(scene["glyphs_u8"].any(axis=(0, -1)))[:, None].float()
    position = torch.from_numpy(scene["positions_u8"].sum(axis=(0, -1)))[:, None].float()
    return glyph, position, X("writenet.masked_x", (2, 4, 16, 16)), X("writenet.ctx", (2, 77, 768))


def small_pair(**options):
    """A small UNet and WriteNet with rule weights, and inputs for them."""
    trunk = TrunkConfig(**{**SMALL, "out_channels": 16, **SHIPPED, **options})
    unet = fill(UNetModel(trunk), "model.diffusion_model.")
    writenet = fill(WriteNet(trunk), "control_model.")
    latents, context = X("small.x", (2, 16, 8, 8)), X("small.ctx", (2, 7, 24))
    glyph = (X("small.glyph", (2, 1, 64, 64)) > 1).float()
    return unet, writenet, latents, torch.tensor([10, 731]), context, glyph


# --- the rule behind the references ---------------------------------------------------------------------


def test_weight_rule_gives_the_published_fingerprints():
    fingerprints = json.loads((REFERENCE / "weight_fingerprints.json").read_text())
    assert fingerprints
    for key, expected in fingerprints.items():
        weights = weights_for(key, expected["shape"]).flatten().double()
        assert weights[:3].tolist() == expected["first3"], key
        assert weights[-1].item() == expected["last"], key
        assert weights.sum().item() == pytest.approx(expected["sum64"], rel=1e-9, abs=1e-9), key


# --- blocks ---------------------------------------------------------------------------------------------


def embedding_error(dim):
    """Of whole and fractional timesteps, against the reference arrays."""
    reference, worst = load_reference("01_timestep_embedding"), 0.0
    for times, name in (("t", f"emb_{dim}"), ("t_frac", f"emb_frac_{dim}")):
        mine = timestep_embedding(torch.from_numpy(reference[times]), dim)
        assert mine.dtype == torch.float32
        worst = max(worst, relative_error(mine, reference[name]))
    return worst


def test_timestep_embedding():
    """MKL rounds exp another way on each kind of CPU, and t = 999 times half a unit in the last place is 3e-5; the
    reference has the rounding that MKL calls compatible, which has to be asked for before it is loaded.
    """
    code = "import test_model_trunk as t; print(*map(t.embedding_error, (32, 33, 320)))"
    environment = os.environ | {"MKL_CBWR": "COMPATIBLE"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    errors = [float(word) for word in done.stdout.split()]
    assert len(errors) == 3 and max(errors) < 1e-6


@pytest.mark.parametrize("dim", [32, 33, 320])
def test_timestep_embedding_on_this_cpu(dim):
    """Against fp64; a frequency is off by the fp32 rounding of its logarithm and of exp."""
    half, t = dim // 2, torch.tensor([0, 1, 7, 250, 499, 999])
    logarithm = -math.log(10000.0) * torch.arange(half, dtype=torch.float64) / half
    angles = t[:, None] * logarithm.exp()
    mine = timestep_embedding(t, dim)
    allowed = 1e-6 + angles * (logarithm.abs() + 1) * 2**-23
    for part, exact in ((mine[:, :half], angles.cos()), (mine[:, half : 2 * half], angles.sin())):
        assert ((part - exact).abs() <= allowed).all()
    assert mine.shape == (6, dim) and not mine[:, 2 * half :].any()


@torch.no_grad()
def test_resblock_and_resampling():
    reference = load_reference("02_resblock")
    emb_a, emb_b = X("resblock_a.emb", (2, 128)), X("resblock_b.emb", (2, 128))
    a = fill(ResBlock(32, 128, 64), "resblock_a.")
    b = fill(ResBlock(64, 128, 64), "resblock_b.")
    x_a, x_b = X("resblock_a.x", (2, 32, 16, 16)), X("resblock_b.x", (2, 64, 16, 16))
    down, up = fill(Downsample(32), "downsample."), fill(Upsample(32), "upsample.")
    outputs = {
        "a_out": a(x_a, emb_a),
        "b_out": b(x_b, emb_b),
        "b_small_out": b(0.003 * x_b, emb_b),  # so small that the first norm's eps shows
        "down_out": down(X("downsample.x", (2, 32, 16, 16))),
        "up_out": up(X("upsample.x", (2, 32, 16, 16))),
    }
    assert set(outputs) == set(reference)
    for name, mine in outputs.items():
        assert relative_error(mine, reference[name]) < 1e-5, name


@torch.no_grad()
def test_transformer_blocks():
    reference = load_reference("03_transformer")
    x, ctx = X("btb.x", (2, 64, 64)), X("btb.ctx", (2, 77, 768))
    plain = fill(BasicTransformerBlock(64, 8, 768), "btb.")
    attnx = fill(BasicTransformerBlock(64, 8, 768, attnx=True), "btb.")
    outputs = {"btb_plain": plain(x, ctx), "btb_small": attnx(0.003 * x, ctx)}
    outputs |= {f"btb_attnx_{scale}": attnx(x, ctx, scale) for scale in (0.0, 0.5, 1.0)}
    x, ctx = X("st.x", (2, 64, 8, 8)), X("st.ctx", (2, 77, 768))
    plain = fill(SpatialTransformer(64, 8, 768), "st.")
    attnx = fill(SpatialTransformer(64, 8, 768, attnx=True), "st.")
    outputs |= {"st_plain": plain(x, ctx), "st_small": plain(0.003 * x, ctx)}
    outputs |= {f"st_attnx_{scale}": attnx(x, ctx, scale) for scale in (0.0, 0.5, 1.0)}
    assert set(outputs) == set(reference)
    for name, mine in outputs.items():
        assert relative_error(mine, reference[name]) < 1e-5, name
    assert torch.equal(outputs["btb_attnx_0.0"], outputs["btb_plain"])
    assert torch.equal(outputs["st_attnx_0.0"], outputs["st_plain"])


# --- WriteNet -------------------------------------------------------------------------------------------


def test_scene_is_binarised_and_summed_as_upstream_does(hint_inputs):
    reference = load_reference("04_writenet")
    assert torch.equal(hint_inputs[0], torch.from_numpy(reference["glyph_binary_u8"]).float())
    assert torch.equal(hint_inputs[1], torch.from_numpy(reference["positions_sum_u8"]).float())
    assert hint_inputs[1].max() == 2  # two lines overlap, and nothing clips their sum


@torch.no_grad()
def test_hint_stacks(writenet, hint_inputs):
    reference = load_reference("04_writenet")
    glyph, position, masked_latents, _ = hint_inputs
    outputs = {
        "enc_glyph_every16th_channel": writenet.glyph_block(glyph)[:, ::16],
        "enc_pos_every8th_channel": writenet.position_block(position)[:, ::8],
        "guided_hint": writenet.hint(glyph, position, masked_latents),
    }
    for name, mine in outputs.items():
        assert relative_error(mine, reference[name]) < 1e-5, name


@torch.no_grad()
@pytest.mark.parametrize("fast", [True, False])
def test_residuals(fast, hint_inputs):
    reference = load_reference("04_writenet")
    net = fill(WriteNet(TrunkConfig(**TINY), WriteNetConfig(fast_control=fast)), "control_model.")
    x, t = X("writenet.x", (2, 4, 16, 16)), torch.from_numpy(reference["t"])
    residuals = net(*hint_inputs, x=x, timesteps=t)
    assert len(residuals) == 13
    for i, mine in enumerate(residuals):
        assert relative_error(mine, reference[f"{'fast' if fast else 'slow'}_{i:02d}"]) < 1e-5, i


@torch.no_grad()
def test_fast_control_ignores_latents_and_timesteps(writenet, hint_inputs):
    """Then one call serves a whole sampling run, and student and target of a training step."""
    without = writenet(*hint_inputs)
    with_both = writenet(*hint_inputs, x=X("writenet.x", (2, 4, 16, 16)), timesteps=torch.tensor([10, 731]))
    assert all(torch.equal(a, b) for a, b in zip(without, with_both, strict=True))


@torch.no_grad()
def test_samples_do_not_see_each_other(writenet, hint_inputs):
    together = writenet(*hint_inputs)
    alone = writenet(*(part[1:] for part in hint_inputs))
    for a, b in zip(together, alone, strict=True):
        assert relative_error(a[1:], b) < 1e-5


def test_slow_control_wants_latents_and_timesteps(hint_inputs):
    with pytest.raises(ValueError, match="pass x and timesteps"):
        WriteNet(TrunkConfig(**TINY), WriteNetConfig(fast_control=False))(*hint_inputs)


@torch.no_grad()
def test_zero_convs_start_at_zero_or_at_noise(hint_inputs):
    assert all(r.abs().max() == 0 for r in WriteNet(TrunkConfig(**TINY))(*hint_inputs))
    noisy = WriteNet(TrunkConfig(**TINY), WriteNetConfig(zero_conv_std=0.05))
    assert all(r.abs().max() > 0 for r in noisy(*hint_inputs))
    assert noisy.middle_block_out[0].weight.std().item() == pytest.approx(0.05, rel=0.05)
    assert noisy.middle_block_out[0].bias.abs().max() == 0


# --- UNet -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_unet_outputs(unet, unet_inputs, control):
    reference = load_reference("05_unet")
    x, t, ctx = unet_inputs
    control_before = [c.clone() for c in control]
    attnx = dict(input_attnx=True, mid_attnx=True, output_attnx_levels=(3, 2, 1, 0))
    only_mid = fill(UNetModel(TrunkConfig(**TINY, **SHIPPED), only_mid_control=True), "model.diffusion_model.")
    no_attnx = fill(UNetModel(TrunkConfig(**TINY)), "model.diffusion_model.")
    everywhere = fill(UNetModel(TrunkConfig(**TINY, **attnx)), "model.diffusion_model.")
    outputs = {
        "plain": unet(x, t, ctx),
        "control": unet(x, t, ctx, control),
        "control_midonly": only_mid(x, t, ctx, control),
        "control_attnx0.5": unet(x, t, ctx, control, attnx_scale=0.5),
        "ctx154": unet(x, t, X("unet.ctx154", (2, 154, 768))),
        "flags_none": no_attnx(x, t, ctx, control),
        "flags_all": everywhere(x, t, ctx, control),
    }
    assert set(outputs) == set(reference) - {"t", "digest_names", "digest_mean_std_first_last"}
    for name, mine in outputs.items():
        assert relative_error(mine, reference[name]) < 2e-5, name
    assert torch.equal(unet(x, t, ctx, control, attnx_scale=0.0), outputs["flags_none"])
    assert all(torch.equal(a, b) for a, b in zip(control, control_before, strict=True))


@torch.no_grad()
def test_unet_block_digests(unet, unet_inputs, control):
    reference = load_reference("05_unet")
    digests = {}

    def record(name):
        def hook(module, inputs, output):
            flat = output.double().flatten()
            digests[name] = [flat.mean().item(), flat.std().item(), flat[0].item(), flat[-1].item()]

        return hook

    blocks = {f"in{i:02d}": block for i, block in enumerate(unet.input_blocks)}
    blocks["mid"] = unet.middle_block
    blocks |= {f"out{i:02d}": block for i, block in enumerate(unet.output_blocks)}
    handles = [block.register_forward_hook(record(name)) for name, block in blocks.items()]
    unet(*unet_inputs, control)
    for handle in handles:
        handle.remove()
    assert list(digests) == list(reference["digest_names"])
    mine, expected = np.array(list(digests.values())), reference["digest_mean_std_first_last"]
    scale = np.abs(expected).max(axis=1, keepdims=True)
    assert (np.abs(mine - expected) / scale).max() < 2e-5


# --- layout ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix, build",
    [("model.diffusion_model.", UNetModel), ("control_model.", WriteNet)],
    ids=["unet", "writenet"],
)
def test_full_size_layout_is_the_checkpoints(prefix, build):
    manifest = json.loads(gzip.decompress((REFERENCE / "manifest_full.json.gz").read_bytes()))
    expected = {key: tuple(entry["shape"]) for key, entry in manifest.items() if key.startswith(prefix)}
    with torch.device("meta"):
        network = build(TrunkConfig(**SHIPPED))
    mine = {prefix + key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert mine == expected
    assert not list(network.buffers())


SHARED = dict(model_channels=32, channel_mult=[1, 2], num_heads=2)
UPSTREAMS = dict(image_size=32, use_spatial_transformer=True, use_checkpoint=True, legacy=False, dims=2)


def test_the_yaml_s_two_blocks_become_one_trunk():
    own = dict(glyph_channels=1, glyph_scale=1, hint_channels=3, glyph_widths=[4, 4, 4], position_widths=[2, 2, 2])
    attnx = dict(output_attnx=True, output_attnx_level=[2, 1], mid_attnx=True)
    trunk, writenet = read_configs(SHARED | UPSTREAMS | attnx, SHARED | UPSTREAMS | own)
    assert trunk == TrunkConfig(
        model_channels=32, channel_mult=(1, 2), num_heads=2, mid_attnx=True, output_attnx_levels=(2, 1)
    )
    assert writenet == WriteNetConfig(glyph_widths=(4, 4, 4), position_widths=(2, 2, 2))
    assert read_configs(SHARED | {"output_attnx_level": [1]}, SHARED)[0].output_attnx_levels == ()


@pytest.mark.parametrize(
    "unet, writenet, error, message",
    [
        ({"adm_in_channels": 1}, {}, TypeError, "unet_config has no setting 'adm_in_channels'"),
        ({}, {"adm_in_channels": 1}, TypeError, "control_stage_config has no setting 'adm_in_channels'"),
        ({}, {"mid_attnx": True}, TypeError, "control_stage_config has no setting 'mid_attnx'"),
        ({"dims": 3}, {}, ValueError, "dims of unet_config is 3, only 2"),
        ({}, {"glyph_scale": 2}, ValueError, "glyph_scale of control_stage_config is 2, only 1"),
        ({}, {"use_spatial_transformer": False}, ValueError, "use_spatial_transformer of control_stage_config"),
        ({}, {"num_heads": 4}, ValueError, "num_heads is 4 in control_stage_config and 2 in unet_config"),
        ({"context_dim": 64}, {}, ValueError, "context_dim is 768 in control_stage_config and 64 in unet_config"),
    ],
)
def test_settings_that_are_not_built_are_named(unet, writenet, error, message):
    with pytest.raises(error, match=message):
        read_configs(SHARED | unet, SHARED | writenet)


@torch.no_grad()
@pytest.mark.parametrize("channel_mult", [(1,), (1, 2), (1, 2, 2, 3, 3)])
@pytest.mark.parametrize("num_res_blocks", [1, 2])
def test_other_depths_fit_together(channel_mult, num_res_blocks):
    options = dict(channel_mult=channel_mult, num_res_blocks=num_res_blocks, norm_groups=4)
    unet, writenet, _, t, context, _ = small_pair(**options)
    latents, glyph = X("deep.x", (2, 16, 16, 32)), torch.ones(2, 1, 128, 256)
    residuals = writenet(glyph, glyph, latents, context)
    assert len(residuals) == len(unet.input_blocks) + 1 == len(channel_mult) * (num_res_blocks + 1) + 1
    assert unet(latents, t, context, residuals).shape == latents.shape


def test_attention_sits_at_the_named_downsampling_factors():
    unet, writenet, *_ = small_pair()  # factors 2 and 4 of 1, 2, 4

    def has_attention(block):
        return any(isinstance(layer, SpatialTransformer) for layer in block)

    expected = [False, False, False, True, False, True]
    assert [has_attention(block) for block in unet.input_blocks] == expected
    assert [has_attention(block) for block in writenet.input_blocks] == expected
    assert [has_attention(block) for block in unet.output_blocks] == [True] * 4 + [False] * 2
    assert has_attention(unet.middle_block)


@torch.no_grad()
def test_hint_widths_decide_the_shrinking():
    own = WriteNetConfig(glyph_widths=(4, 4, 8, 8, 12), position_widths=(2, 2, 4, 4, 6))
    net = WriteNet(TrunkConfig(**SMALL), own)
    picture, latents = torch.ones(1, 1, 32, 32), torch.ones(1, 16, 8, 8)  # five widths: a factor of four
    assert net(picture, picture, latents, torch.ones(1, 7, 24))[0].shape == (1, 16, 8, 8)
    with pytest.raises(ValueError, match="do not fit"):
        net(picture, picture, torch.ones(1, 16, 4, 4), torch.ones(1, 7, 24))


def test_wrong_sizes_are_named():
    unet, _, latents, t, context, _ = small_pair()
    with pytest.raises(ValueError, match="multiples of 4"):
        unet(latents[..., :6], t, context)
    with pytest.raises(ValueError, match="control has 3 residuals"):
        unet(latents, t, context, [latents] * 3)
    with pytest.raises(ValueError, match="norm_groups is 32"):
        group_norm(48)
    with pytest.raises(ValueError, match="num_heads is 7"):
        UNetModel(TrunkConfig(**{**SMALL, "num_heads": 7}))
    with pytest.raises(ValueError, match="same odd number"):
        WriteNetConfig(glyph_widths=(4, 4), position_widths=(4, 4))


# --- training and precision -----------------------------------------------------------------------------


def test_gradient_checkpointing_changes_nothing_but_memory():
    def output_and_gradients(checkpointing):
        unet, writenet, latents, t, context, glyph = small_pair()
        unet.gradient_checkpointing = writenet.gradient_checkpointing = checkpointing
        unet.time_embed.requires_grad_(False)  # a frozen part, as under LoRA
        runs = []
        for network in (unet, writenet):
            network.middle_block[0].out_layers[3].register_forward_hook(lambda *_: runs.append(1))
        output = unet(latents, t, context, writenet(glyph, glyph, latents, context), attnx_scale=0.5)
        output.square().mean().backward()
        assert len(runs) == (4 if checkpointing else 2)  # each network's middle block, again in the backward
        named = [*unet.named_parameters(), *writenet.named_parameters(prefix="control")]
        return output, {name: p.grad for name, p in named if p.grad is not None}

    plain, gradients = output_and_gradients(False)
    checkpointed, checkpointed_gradients = output_and_gradients(True)
    assert torch.equal(plain, checkpointed)
    assert gradients.keys() == checkpointed_gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, checkpointed_gradients[name], rtol=1e-4, atol=1e-6), name


def test_every_parameter_learns():
    """Upstream cuts the gradient of input blocks and time embedding; adapters in there would never move."""
    unet, writenet, latents, t, context, glyph = small_pair()
    unet(latents, t, context, writenet(glyph, glyph, latents, context)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in unet.parameters())
    # With x = 0 the first convolution of WriteNet passes its bias alone.
    still = [name for name, p in writenet.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert still == ["input_blocks.0.0.weight"]


@torch.no_grad()
@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
def test_bf16_stays_close(autocast):
    unet, writenet, latents, t, context, glyph = small_pair()
    exact = unet(latents, t, context, writenet(glyph, glyph, latents, context))
    if not autocast:
        unet.bfloat16(), writenet.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        mine = unet(latents, t, context, writenet(glyph.byte(), glyph.byte(), latents, context))
    assert mine.dtype == latents.dtype  # the caller's, whatever the weights are
    assert (mine - exact).pow(2).mean().sqrt() < 0.05 * exact.pow(2).mean().sqrt()


@pytest.mark.parametrize("tokens", [256, 1024])
def test_attention_in_training_keeps_no_large_matrix_of_scores(tokens):
    """Written out where that is faster; the answer and the gradient are those of the formula either way."""
    attention = CrossAttention(16, num_heads=2)
    x = torch.randn(1, tokens, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        found = attention(x)
    assert (max(kept) >= 2 * tokens**2) == (tokens**2 <= MANY_SCORES)
    q, k, v = (w(x).unflatten(-1, (2, -1)).transpose(1, 2) for w in (attention.to_q, attention.to_k, attention.to_v))
    weights = (q @ k.mT / 8**0.5).softmax(-1)
    expected = attention.to_out((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(out.square().sum(), x)[0] for out in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
