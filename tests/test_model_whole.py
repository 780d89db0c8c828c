"""The assembled network: sampling trajectories of upstream AnyText2, the full state dict, and the promises of
`AnyText2` and `Conditioning`."""

import gzip
import json
from dataclasses import replace

import pytest
import torch
from reference_weights import REFERENCE, X, load_reference, relative_error
from small_models import (
    FULL,
    CountedCalls,
    miniature,
    reference_model,
    reference_scene,
    small_batch,
    with_stored_tokens,
)

from anytext_lcm.lcm.samplers import sample
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.lcm.steps import guide
from anytext_lcm.model.anytext2 import SCHEDULE_BUFFERS, AnyText2, Conditioning
from anytext_lcm.model.checkpoint import load_strict
from anytext_lcm.model.vae import sample_posterior

SHAPE = (2, 4, 16, 16)


@pytest.fixture(scope="module")
def reference():
    return load_reference("14_ddim")


@pytest.fixture(scope="module")
def model():
    return with_stored_tokens(reference_model())


@pytest.fixture(scope="module")
def branches(model, reference):
    """The scene's conditioning and the unconditional one."""
    batch = {**reference_scene(), "masked_latents": X("ddim.masked_x", SHAPE, 0.91075)}
    with torch.no_grad():
        cond = model.condition(batch)
        return cond, model.uncondition(cond, str(reference["n_prompt"]))


@pytest.fixture(scope="module")
def small():
    return miniature()


def trajectory(model, cond, uncond=None, steps=20, guidance=9.0, strength=1.0, attnx=1.0, recompute=False):
    """DDIM from the reference's noise -> x after every step, x0 of every step, eps of both branches per step.

    The two branches are one batch. recompute: WriteNet at every step, with latents and timesteps.
    """
    both = cond if uncond is None else Conditioning.cat([cond, uncond])
    control = None if recompute else model.control(both, strength=strength)
    eps = []

    def predict(x, t):
        copies = len(both) // len(x)
        x, t = x.repeat(copies, 1, 1, 1), t.repeat(copies)
        residuals = model.control(both, x, t) if recompute else control
        parts = model.predict_noise(x, t, both, residuals, attnx).chunk(copies)
        eps.append(parts)
        return parts[0] if uncond is None else guide(*parts, guidance)

    schedule = NoiseSchedule(model.alphas_cumprod)
    path = list(sample(predict, X("ddim.x_T", SHAPE), schedule, steps, "ddim"))
    return torch.stack([step.latents for step in path]), torch.stack([step.x0 for step in path]), eps


# --- upstream's trajectories ----------------------------------------------------------------------------


def test_contexts(branches, reference):
    cond, _ = branches
    assert relative_error(cond.image_context[..., ::24], reference["img_ctx_every24th_ch"]) < 1e-5
    assert relative_error(cond.text_context[..., ::24], reference["txt_ctx_every24th_ch"]) < 1e-5


@torch.no_grad()
def test_control_residuals(model, branches, reference):
    for branch, name in zip(branches, ("cond", "uncond"), strict=True):
        digest = torch.tensor([[r.double().mean(), r.double().std()] for r in model.control(branch)])
        assert relative_error(digest, reference[f"control_{name}_digest_mean_std"]) < 5e-5


def test_twenty_guided_steps(model, branches, reference):
    with CountedCalls(model.control_model) as writenet:
        steps, clean, eps = trajectory(model, *branches)
    assert writenet.calls == 1  # both branches in one batch; upstream runs it once a branch
    assert relative_error(eps[0][0], reference["eps_step0_cond"]) < 5e-5
    assert relative_error(eps[0][1], reference["eps_step0_uncond"]) < 5e-5
    assert relative_error(eps[1][0], reference["eps_step1_cond"]) < 5e-5
    for i, x in enumerate(steps):
        assert relative_error(x, reference["x_steps"][i]) < 5e-5, f"after step {i}"
    assert relative_error(clean[::4], reference["pred_x0_steps_every4th"]) < 5e-5
    assert relative_error(steps[-1], reference["z_final"]) < 5e-5
    with torch.no_grad():
        image = model.decode(steps[-1])
    assert relative_error(image[..., ::2, ::2], reference["image_every2nd_pixel"]) < 5e-5


def test_without_guidance(model, branches, reference):
    steps, _, _ = trajectory(model, branches[0])
    assert relative_error(steps[4::5], reference["cfg1_x_steps_every5th"]) < 5e-5


def test_guidance_of_one_is_the_conditional_branch(model, branches, reference):
    steps, _, _ = trajectory(model, *branches, steps=4, guidance=1.0)
    assert relative_error(steps, reference["S4_nocfg_x_steps"]) < 5e-5


def test_weaker_control_and_extra_attention(model, branches, reference):
    steps, _, _ = trajectory(model, *branches, strength=0.7, attnx=0.5)
    assert relative_error(steps[4::5], reference["strength0.7_attnx0.5_x_steps_every5th"]) < 5e-5


def test_slow_control_is_recomputed_in_both_branches(model, branches, reference):
    """Without fast_control upstream keeps the unconditional residuals of step 1; the reference is the one
    computed without that slip."""
    model.control_model.fast_control = False
    try:
        with CountedCalls(model.control_model) as writenet:
            steps, _, _ = trajectory(model, *branches, recompute=True)
        with pytest.raises(ValueError, match="pass x and timesteps"):
            model.control(branches[0])
    finally:
        model.control_model.fast_control = True
    assert writenet.calls == 20
    assert relative_error(steps[4::5], reference["slow_control_recomputed_x_steps_every5th"]) < 5e-5


# --- the state dict -------------------------------------------------------------------------------------


def test_full_model_is_the_published_state_dict():
    with gzip.open(REFERENCE / "manifest_full.json.gz", "rt") as file:
        manifest = json.load(file)
    model = AnyText2.from_config(FULL, device="meta")
    parameters = dict(model.named_parameters())
    mine = {
        key: {
            "shape": list(value.shape),
            "dtype": str(value.dtype).removeprefix("torch."),
            "kind": "parameter" if key in parameters else "buffer",
        }
        for key, value in model.state_dict().items()
    }
    assert mine == manifest
    assert len(mine) == 2047 and len(parameters) == 1842
    assert sum(p.numel() for p in parameters.values()) == 1_496_651_701
    counts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in (
            ("unet", model.model.diffusion_model),
            ("writenet", model.control_model),
            ("vae", model.first_stage_model),
            ("text", model.cond_stage_model),
            ("manager", model.embedding_manager),
            ("reader", model.text_predictor),
        )
    }
    assert counts == {
        "unet": 917_042_884,
        "writenet": 361_511_208,
        "vae": 83_653_863,
        "text": 123_060_480,
        "manager": 8_743_601,
        "reader": 2_639_665,
    }


def test_schedule_buffers(small):
    stored = load_reference("12_schedule")
    assert {key for key in small.state_dict() if "." not in key} == set(SCHEDULE_BUFFERS)
    assert relative_error(small.betas, stored["betas_f64"]) < 1e-6
    assert relative_error(small.alphas_cumprod, stored["alphas_cumprod_f32"]) < 1e-6
    assert relative_error(small.sqrt_alphas_cumprod, stored["alphas_cumprod_f64"] ** 0.5) < 1e-6
    t = torch.from_numpy(stored["timesteps_20"])
    assert relative_error(small.sqrt_one_minus_alphas_cumprod[t], stored["sqrt_one_minus_alphas_20"]) < 1e-6
    assert small.alphas_cumprod_prev[0] == 1
    assert torch.equal(small.alphas_cumprod_prev[1:], small.alphas_cumprod[:-1])


def test_schedule_stays_fp32_when_the_network_does_not(small):
    half = miniature().to(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.model.diffusion_model.time_embed[0].weight.dtype == torch.bfloat16
    for name in SCHEDULE_BUFFERS:
        assert torch.equal(getattr(half, name), getattr(small, name)), name
    assert half.float().dtype == torch.float32


# --- conditioning ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_condition_leaves_nothing_behind(small):
    small.tokenizer  # noqa: B018  the one thing that is made on first use
    before = {key: value.clone() for key, value in small.state_dict().items()}
    fields = {name: sorted(vars(module)) for name, module in small.named_modules()}
    values = {name: value for name, value in vars(small).items() if not name.startswith("_")}
    runs = [small.condition(small_batch(), torch.Generator().manual_seed(4)) for _ in range(2)]
    small.uncondition(runs[0], "ugly")
    small.control(runs[0])
    for name in Conditioning.__dataclass_fields__:
        assert torch.equal(getattr(runs[0], name), getattr(runs[1], name)), name
    other = small.condition(small_batch(), torch.Generator().manual_seed(5))
    assert not torch.equal(other.masked_latents, runs[0].masked_latents)
    assert torch.equal(other.text_context, runs[0].text_context)
    assert all(torch.equal(before[key], value) for key, value in small.state_dict().items())
    assert {name: sorted(vars(module)) for name, module in small.named_modules()} == fields
    assert {name: value for name, value in vars(small).items() if not name.startswith("_")} == values


@torch.no_grad()
def test_condition_does_not_change_the_batch(small):
    batch = small_batch()
    small.condition(batch)
    for name, value in small_batch().items():
        assert torch.equal(batch[name], value) if isinstance(value, torch.Tensor) else batch[name] == value


@torch.no_grad()
def test_glyphs_are_binary_positions_are_summed_and_masked_latents_are_scaled(small):
    batch = small_batch()
    batch["positions"][1, 1] = batch["positions"][1, 0]
    cond = small.condition(batch, torch.Generator().manual_seed(1))
    assert cond.glyphs.unique().tolist() == [0, 1]
    assert torch.equal(cond.glyphs[:, 0] != 0, (batch["glyphs"] != 0).any(1))
    assert cond.positions.unique().tolist() == [0, 1, 2]
    mean, logvar = small.first_stage_model.encode(batch["masked_img"])
    by_hand = small.scale_factor * sample_posterior(mean, logvar, torch.Generator().manual_seed(1))
    assert torch.equal(cond.masked_latents, by_hand)


@torch.no_grad()
def test_given_masked_latents_spare_the_encoder(small):
    batch = {**small_batch(), "masked_latents": X("given", (2, 16, 8, 8))}
    del batch["masked_img"]
    with CountedCalls(small.first_stage_model.encoder) as encoder:
        cond = small.condition(batch)
    assert encoder.calls == 0
    assert torch.equal(cond.masked_latents, batch["masked_latents"])


def test_missing_fields_are_named(small):
    batch = small_batch()
    del batch["masked_img"], batch["glyphs"]
    with pytest.raises(ValueError, match="batch lacks glyphs, masked_img;"):
        small.condition(batch)


@torch.no_grad()
def test_unconditional_branch_keeps_the_hint(small):
    cond = small.condition(small_batch())
    uncond = small.uncondition(cond, "blurred")
    for name in ("glyphs", "positions", "masked_latents"):
        assert getattr(uncond, name) is getattr(cond, name)
    assert uncond.text_context.shape == cond.text_context.shape
    assert torch.equal(uncond.text_context[0], uncond.text_context[1])
    assert not torch.equal(uncond.image_context, small.uncondition(cond).image_context)
    assert torch.equal(small.uncondition(cond).image_context, small.uncondition(cond).text_context)


@torch.no_grad()
def test_joining_contexts_of_different_length_changes_nothing(small):
    a = small.condition(small_batch(), torch.Generator().manual_seed(1))
    b = replace(a, image_context=X("ctx154", (2, 154, 32)), text_context=X("ctx77", (2, 77, 32)))
    both = Conditioning.cat([a, b])
    assert both.image_context.shape == (4, 154, 32) and len(both) == 4
    latents, t = X("cat.x", (2, 16, 8, 8)), torch.tensor([19, 980])
    joint = small.predict_noise(latents.repeat(2, 1, 1, 1), t.repeat(2), both, small.control(both))
    for part, mine in zip((a, b), joint.chunk(2), strict=True):
        alone = small.predict_noise(latents, t, part, small.control(part))
        assert relative_error(mine, alone) < 1e-5
    for part, again in zip((a, b), both.chunk(2), strict=True):
        assert torch.equal(again.text_context, part.text_context)
        assert torch.equal(again.masked_latents, part.masked_latents)
    assert torch.equal(both[1:3].glyphs, torch.cat([a.glyphs[1:], b.glyphs[:1]]))


# --- networks -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_residuals_depend_on_neither_latents_nor_timestep(small):
    cond = small.condition(small_batch(), torch.Generator().manual_seed(1))
    plain = small.control(cond)
    for t in (0, 999):
        given = small.control(cond, latents=X(f"any{t}", (2, 16, 8, 8)), timesteps=torch.tensor([t, t]))
        assert all(torch.equal(a, b) for a, b in zip(plain, given, strict=True))
    assert len(plain) == len(small.model.diffusion_model.input_blocks) + 1


@torch.no_grad()
def test_v_is_converted_to_eps():
    """The same weights, read as v and as eps: x0 = a x - s v and eps = (x - a x0) / s give a v + s x."""
    eps_model, v_model = (miniature(parameterization=kind) for kind in ("eps", "v"))
    cond = v_model.condition(small_batch(), torch.Generator().manual_seed(1))
    x, t = X("v.x", (2, 16, 8, 8)), torch.tensor([300, 999])
    output = eps_model.predict_noise(x, t, cond, None)  # what the network says
    abar = v_model.alphas_cumprod[t].double().view(-1, 1, 1, 1)
    x0 = abar.sqrt() * x - (1 - abar).sqrt() * output
    eps = (x - abar.sqrt() * x0) / (1 - abar).sqrt()
    assert relative_error(v_model.predict_noise(x, t, cond, None), eps) < 1e-5
    with pytest.raises(ValueError, match="parameterization must be one of"):
        miniature(parameterization="x0")


@torch.no_grad()
def test_encode_and_decode_scale(small):
    image = small_batch()["img"]
    scaled = miniature(scale_factor=0.25)
    z = small.encode(image, torch.Generator().manual_seed(2))
    assert z.dtype == torch.float32 and z.shape == (2, 16, 8, 8)
    torch.testing.assert_close(scaled.encode(image, torch.Generator().manual_seed(2)), 0.25 / small.scale_factor * z)
    torch.testing.assert_close(scaled.decode(0.25 * z), small.first_stage_model.decode(z))


@torch.no_grad()
def test_the_whole_network_runs_in_bf16(small):
    model = miniature().to(torch.bfloat16)
    cond = model.condition(small_batch(), torch.Generator().manual_seed(1))
    assert cond.image_context.dtype == torch.bfloat16
    x, t = X("bf16.x", (2, 16, 8, 8)), torch.tensor([19, 519])
    eps = model.predict_noise(x, t, cond, model.control(cond))
    assert eps.dtype == torch.float32 and model.decode(x).dtype == torch.float32
    fp32 = small.condition(small_batch(), torch.Generator().manual_seed(1))
    assert relative_error(eps, small.predict_noise(x, t, fp32, small.control(fp32))) < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_built_without_memory_takes_loaded_tensors(small, dtype):
    empty = miniature().to("meta").to(dtype)
    loaded = small.state_dict()
    load_strict(empty, loaded)
    for key, value in empty.state_dict().items():
        assert torch.equal(value, loaded[key].to(value.dtype)), key
    assert not any(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    assert empty.dtype == dtype and empty.alphas_cumprod.dtype == torch.float32
