"""Drawing: reproducible, independent of the batch, and the same as diffusers' loop over the same network."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from micro_network import SIDE, micro_network
from omegaconf import OmegaConf

from anytext_lcm.adapter import lora
from anytext_lcm.adapter.lora import Adapter, adapter_off, adapter_state, attach, save_adapter
from anytext_lcm.data.batch import Line
from anytext_lcm.data.fonts import PLAIN_FONT
from anytext_lcm.data.slots import Slots
from anytext_lcm.drawing import draw as draw_module
from anytext_lcm.drawing.draw import denoise, draw_prepared, draw_prompts, predictor, prepare, to_uint8
from anytext_lcm.drawing.methods import (
    SAMPLERS,
    Method,
    parse_method,
    student_method,
    teacher_method,
    untrained_method,
)
from anytext_lcm.drawing.noise import initial_noise
from anytext_lcm.drawing.prompts import Prompt, prompts_to_batch
from anytext_lcm.files import atomic_file, atomic_folder
from anytext_lcm.model import loading, networks
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.networks import EMBEDDED_CONFIG, Defaults, defaults_for
from anytext_lcm.training.settings import TrainSettings

SIZE = (SIDE, SIDE)
DEFAULTS = Defaults(SIZE, 2, 2.0, "")


def box(left, top, right, bottom):
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


PROMPTS = [
    Prompt("a red background", (Line("HELLO", box(5, 20, 59, 40), (246, 218, 60)),)),
    Prompt("blue text", (Line("cat", box(2, 5, 30, 20)), Line("42", box(30, 35, 60, 55), (40, 72, 200)))),
    Prompt("a dog", (Line("dog", box(10, 10, 50, 30), hint_font="DejaVuSerif.ttf"),)),
]


@pytest.fixture(scope="module")
def model():
    """Random weights, and an adapter whose B is not zero, so that it changes pictures."""
    model, generator = attach(micro_network(), rank=2, alpha=2), torch.Generator().manual_seed(1)
    for parameter in adapter_state(model).values():
        parameter.data.normal_(std=0.1, generator=generator)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def prepared(model):
    return prepare(model, prompts_to_batch(PROMPTS, SIZE, 2), [3, 4, 5])


@pytest.mark.parametrize("name", ["teacher-2", "student-2", "untrained-2"])
def test_same_seed_same_picture(model, name):
    method = parse_method(name)
    first = draw_prompts(model, PROMPTS[:1], method, DEFAULTS, seeds=[7])
    again = draw_prompts(model, PROMPTS[:1], method, DEFAULTS, seeds=[7])
    other = draw_prompts(model, PROMPTS[:1], method, DEFAULTS, seeds=[8])
    assert first.shape == (1, *SIZE, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("method", [teacher_method(2), student_method(3)], ids=lambda m: m.name)
def test_a_picture_does_not_depend_on_its_batch(model, method):
    together = prepare(model, prompts_to_batch(PROMPTS, SIZE, 2), [3, 4, 5])
    alone = prepare(model, prompts_to_batch(PROMPTS[1:2], SIZE, 2), [4])
    torch.testing.assert_close(
        denoise(model, together, method)[1:2], denoise(model, alone, method), rtol=1e-3, atol=1e-3
    )


def test_a_picture_does_not_depend_on_a_longer_caption_beside_it(model):
    """Each caption is told in its own number of chunks of 75 tokens, the second in two; the order is kept."""
    long = Prompt(" and ".join(["a red background with a blue circle"] * 12), PROMPTS[2].lines)
    assert model.tokenizer.image_ids([long.caption]).shape[1] > 77
    prompts, method = [PROMPTS[0], long, PROMPTS[1]], teacher_method(2)
    together = denoise(model, prepare(model, prompts_to_batch(prompts, SIZE, 2), [3, 4, 5]), method)
    for place, prompt in enumerate(prompts):
        alone = prepare(model, prompts_to_batch([prompt], SIZE, 2), [3 + place])
        torch.testing.assert_close(together[place : place + 1], denoise(model, alone, method), rtol=1e-3, atol=1e-3)


def test_a_star_in_a_caption_takes_no_line(model):
    starred, plain = (Prompt(f"a 5{mark}5 red background", PROMPTS[0].lines) for mark in "* ")
    batch = prompts_to_batch([starred], SIZE, 2)
    assert batch["img_caption"] == ["a 5 5 red background"] and batch["text_caption"][0].count("*") == 1
    pictures = [draw_prompts(model, [prompt], student_method(1), DEFAULTS) for prompt in (starred, plain)]
    assert np.array_equal(*pictures)


@pytest.mark.parametrize(("dtype", "merges"), [(torch.float32, True), (torch.bfloat16, False)])
def test_an_adapter_is_merged_where_the_sum_holds_it(dtype, merges, monkeypatch):
    """In bf16 pictures are those of the adapter beside its weights, bit for bit; it would be lost in the sum."""
    network = micro_network().to(dtype)
    attach(network, rank=2, alpha=2)
    for parameter in adapter_state(network).values():
        parameter.data.normal_(std=0.02, generator=torch.Generator().manual_seed(parameter.numel()))
    network.requires_grad_(False)
    used, merged = [], Adapter.merged

    def watched(adapter):
        used.append(adapter)
        return merged(adapter)

    monkeypatch.setattr(Adapter, "merged", watched)
    batch = prompts_to_batch([Prompt("a", (Line("A", box(4, 4, 60, 40)),))], (64, 64), 2)
    prepared = prepare(network, batch, [1])
    drawn = draw_prepared(network, prepared, student_method(2)).latents
    assert bool(used) == merges
    beside = denoise(network, prepared, student_method(2))
    if merges:
        torch.testing.assert_close(drawn, beside, rtol=1e-3, atol=1e-3)
    else:
        assert torch.equal(drawn, beside)


def test_threads_do_not_change_pictures(model, monkeypatch):
    monkeypatch.setattr(draw_module, "BATCH_SIZE", 1)
    before = torch.get_num_threads()
    pictures = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            pictures.append(draw_prompts(model, PROMPTS, student_method(2), DEFAULTS))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 1


def test_both_branches_in_one_batch_are_two_calls(model, prepared):
    x, t = torch.randn(3, *prepared.latent_shape), torch.full((3,), 501)
    cond, uncond = (
        model.predict_noise(x, t, branch, model.control(branch))
        for branch in (prepared.conditional, prepared.unconditional)
    )
    assert not torch.allclose(cond, uncond)
    mine = predictor(model, prepared, 3.0)(x, t)
    torch.testing.assert_close(mine, uncond + 3.0 * (cond - uncond), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(predictor(model, prepared, 1.0)(x, t), cond, rtol=1e-4, atol=1e-5)


def test_control_is_computed_once_a_branch(model, prepared, monkeypatch):
    calls = []
    control = model.control
    monkeypatch.setattr(model, "control", lambda c, **more: calls.append(len(c)) or control(c, **more))
    denoise(model, prepared, teacher_method(3))
    denoise(model, prepared, student_method(3))
    assert calls == [6, 3]


@torch.no_grad()
def test_extra_attention_and_residuals_are_weighed(model, prepared):
    """By hand: AnyText2 scales all residuals by `strength`, and its UNet takes `attnx_scale`."""
    x, t = torch.randn(3, *prepared.latent_shape), torch.full((3,), 501)
    cond = prepared.conditional
    residuals = [0.3 * residual for residual in model.control(cond)]
    expected = model.model.diffusion_model(x, t, cond.image_context, control=residuals, attnx_scale=0.6)
    if model.parameterization == "v":
        abar = model.alphas_cumprod[501]
        expected = abar.sqrt() * expected + (1 - abar).sqrt() * x
    torch.testing.assert_close(predictor(model, prepared, 1.0, 0.6, 0.3)(x, t), expected, rtol=1e-4, atol=1e-5)
    guided = [predictor(model, prepared, 2.0, *weights)(x, t) for weights in ((0.6, 0.3), (0.6, 1.0), (1.0, 0.3))]
    assert all(not torch.allclose(one, two) for one, two in combinations(guided, 2))
    weak = replace(student_method(1), strength=0.3)
    assert not torch.equal(denoise(model, prepared, weak), denoise(model, prepared, student_method(1)))


@pytest.mark.parametrize("field", ["attnx_scale", "strength"])
@pytest.mark.parametrize("value", [-0.1, 2.1, float("nan")])
def test_weights_outside_of_upstreams_sliders(field, value):
    with pytest.raises(ValueError, match=f"{field} must lie in 0..2"):
        replace(student_method(1), **{field: value})


def test_levels_are_rounded_or_cut_off_as_upstream():
    images = torch.linspace(-1.1, 1.1, 3 * 64).view(1, 3, 8, 8)
    upstream = (images.permute(0, 2, 3, 1).numpy() * 127.5 + 127.5).clip(0, 255).astype(np.uint8)
    assert np.array_equal(to_uint8(images, truncate=True), upstream)
    off = to_uint8(images).astype(int) - upstream
    assert off.min() == 0 and off.max() == 1


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_teacher_is_diffusers_ddim_over_predict_noise(model, prepared, spacing):
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        set_alpha_to_one=False,
        timestep_spacing=spacing,
    )
    scheduler.set_timesteps(3)
    one = prepared[:1]
    x = initial_noise(one.seeds, one.latent_shape)
    with adapter_off(model):
        predict = predictor(model, one, 2.0)
        for t in scheduler.timesteps:
            x = scheduler.step(predict(x, t.expand(1)), t, x).prev_sample
    mine = denoise(model, one, Method("t", "ddim", 3, 2.0, spacing=spacing))
    torch.testing.assert_close(mine, x, rtol=1e-3, atol=1e-3)


def test_methods_share_noise_and_the_teacher_ignores_the_adapter(model, prepared):
    bare = draw_prepared(model, prepared, untrained_method(1))
    adapted = draw_prepared(model, prepared, student_method(1))
    assert (bare.evaluations, teacher_method(4).evaluations) == (1, 8)
    assert set(bare.clock.wall) == set(bare.clock.cores) == {"denoise", "decode"}
    assert not torch.allclose(bare.latents, adapted.latents)
    for parameter in (state := adapter_state(model)).values():
        parameter.data.mul_(2)
    try:
        assert torch.equal(draw_prepared(model, prepared, untrained_method(1)).latents, bare.latents)
        assert not torch.allclose(draw_prepared(model, prepared, student_method(1)).latents, adapted.latents)
    finally:
        for parameter in state.values():
            parameter.data.div_(2)


def test_fresh_noise_of_ddim_belongs_to_the_picture_and_not_to_its_batch(model, prepared):
    method = teacher_method(2, 1.0, eta=1.0)
    together = denoise(model, prepared, method)
    torch.testing.assert_close(denoise(model, prepared[1:2], method), together[1:2], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(denoise(model, prepared, teacher_method(2, 1.0)), together, atol=0.1)


def test_a_black_photograph_is_no_hole():
    """Upstream's demo clips a photograph to 1..255, since holes are -1."""
    image = np.zeros((*SIZE, 3), np.uint8)
    image[0, 0] = 255
    masked = prompts_to_batch([Prompt("a", PROMPTS[0].lines, image)], SIZE, 2)["masked_img"][0]
    hint = prompts_to_batch([Prompt("a", PROMPTS[0].lines, image)], SIZE, 2)["hint"][0, 0].bool()
    assert (masked[:, hint] == -1).all() and (masked[:, ~hint] > -1).all() and (masked[:, 0, 0] == 1).all()
    assert masked[:, ~hint].min() == pytest.approx(1 / 127.5 - 1) and image[1, 1, 0] == 0


def test_dark_colours_lose_the_same_faint_pixels_in_drawing_as_in_training():
    """The data set draws through `Slots.draw`, a prompt through `build_conditioning`: one function, one support."""
    polygon = np.array([[4, 10], [60, 14], [59, 34], [3, 30]])
    for color in ((0, 0, 0), (9, 9, 9), (250, 10, 10), None):
        slots = Slots(1, SIZE)
        slots.draw("maple", polygon, PLAIN_FONT, color)
        drawn = prompts_to_batch([Prompt("a", (Line("maple", polygon, color),))], SIZE, 1)["glyphs"][0, 0]
        assert np.array_equal(slots.glyphs[0], drawn.numpy())
    white, black = (
        prompts_to_batch([Prompt("a", (Line("maple", polygon, color),))], SIZE, 1)["glyphs"]
        for color in (None, (0, 0, 0))
    )
    assert (black > 0).sum() < (white > 0).sum()


def test_editing_shows_the_picture_to_the_model(model):
    image = np.full((*SIZE, 3), 90, np.uint8)
    images = (image, None, image + 9, None)
    mixed = [Prompt("a", PROMPTS[0].lines, image) for image in images]
    batch = prompts_to_batch(mixed, SIZE, 2)
    assert (batch["masked_img"][0][:, 25, 30] == -1).all() and batch["masked_img"][0][0, 0, 0] > -1
    together = prepare(model, batch, [1, 2, 3, 4]).conditional.masked_latents
    for index, prompt in enumerate(mixed):
        alone = prepare(model, prompts_to_batch([prompt], SIZE, 2), [index + 1])
        torch.testing.assert_close(together[index : index + 1], alone.conditional.masked_latents, rtol=1e-2, atol=5e-3)
    assert not torch.allclose(together[0], together[2])


@pytest.mark.parametrize(
    "prompts, size, match",
    [
        ([Prompt("a", PROMPTS[0].lines * 3)], SIZE, "do not fit 2 slots"),
        ([Prompt("a", ())], SIZE, "no line of text"),
        ([Prompt("a", (Line("你好", box(0, 0, 50, 25)),))], SIZE, "no glyph for"),
        ([Prompt("a", (Line("x", box(0, 0, 100, 25)),))], SIZE, "leaves the picture"),
        (PROMPTS[:1], (60, 64), "multiple of 8"),
        ([Prompt("a", PROMPTS[0].lines, np.zeros((32, 32, 3), np.uint8))], SIZE, "picture to edit"),
        ([], SIZE, "at least one item"),
    ],
)
def test_bad_prompts(prompts, size, match):
    with pytest.raises(ValueError, match=match):
        prompts_to_batch(prompts, size, 2)


def test_bad_methods_and_seeds(model, prepared):
    for make, match in (
        (lambda: student_method(51), "1 to 50"),
        (lambda: student_method(0), "1 to 50"),
        (lambda: teacher_method(1000), "1 to 999"),
        (lambda: teacher_method(4, float("nan")), "guidance scale"),
        (lambda: Method("m", "euler", 4), "ddim"),
        (lambda: teacher_method(4, eta=1.5), "eta must lie in 0..1"),
        (lambda: parse_method("student-4-eta1"), "unknown"),
        (lambda: parse_method("teacher-4-emphasis1.2"), "unknown"),
        (lambda: Method("m", "lcm", 2.5), "integer"),
        (lambda: parse_method("student-4-leading"), "unknown"),
        (lambda: parse_method("teacher-200-karras"), "200 steps are too many for the spacing karras"),
        (lambda: parse_method("teacher-200-logsnr"), "200 steps are too many for the spacing logsnr"),
        (lambda: parse_method("student"), "teacher-N"),
        (lambda: prepare(model, prompts_to_batch(PROMPTS, SIZE, 2), [1]), "1 seeds for 3"),
        (lambda: prepare(model, prompts_to_batch(PROMPTS[:1], SIZE, 2), [-1]), "from 0 on"),
        (lambda: denoise(micro_network(), prepared, student_method(1)), "has none"),
        (lambda: draw_module.to_uint8(torch.full((1, 3, 8, 8), float("nan"))), "not finite"),
    ):
        with pytest.raises(ValueError, match=match):
            make()


def test_the_weights_to_blame_for_pictures_that_are_not_finite(model):
    broken = torch.full((1, model.latent_channels, 8, 8), float("nan"))
    with pytest.raises(ValueError, match="not finite; use fp32, less guidance or another checkpoint"):
        draw_module.decode(micro_network(), broken)
    with pytest.raises(ValueError, match="not finite; use fp32, less guidance or another adapter or checkpoint"):
        draw_module.decode(model, broken)


def test_method_names():
    assert parse_method("teacher-50", 3.0) == teacher_method(50, 3.0)
    assert parse_method("teacher-50").spacing == "leading" and parse_method("teacher-4").spacing == "trailing"
    assert parse_method("teacher-4-leading").spacing == "leading"
    assert parse_method("teacher-4-leading-eta0.5").eta == 0.5 and parse_method("teacher-4").eta == 0
    assert parse_method("teacher-4-dpm++-karras").spacing == "karras" and parse_method("teacher-4-unipc").spacing
    names = ("teacher-4-leading", "teacher-50-eta1", "teacher-4-dpm++", "student-8", "untrained-1")
    for name in (*names, "teacher-4-karras", "teacher-4-unipc-logsnr"):
        assert parse_method(name).name == name


def test_the_table_of_samplers_holds_for_names_and_loops():
    for flag, row in SAMPLERS.items():
        name = f"{'teacher' if row.teacher else 'student'}-4{row.ending.format(gamma=0.3)}"
        method = parse_method(name)
        assert (method.name, method.sampler, method.adapter) == (name, row.loop, not row.teacher), flag
    for name in ("student-4-dpm++", "student-4-leading", "teacher-4-dpm++-eta1", "teacher-4-unipc-w1"):
        with pytest.raises(ValueError, match="unknown"):
            parse_method(name)


def test_noise_of_a_seed_is_the_same_in_every_process():
    """Stored numbers: neither the process nor the batch nor Python's hashing has a say."""
    wanted = [[-0.291403, -0.437671, -0.562137, -0.922233], [0.452283, -0.039191, -0.451489, 0.596010]]
    noise = initial_noise([7, 123456], (1, 2, 2)).flatten(1)
    torch.testing.assert_close(noise, torch.tensor(wanted), rtol=1e-4, atol=1e-5)


def test_the_students_other_samplers():
    assert parse_method("student-4") == student_method(4) and parse_method("student-4").sampler == "lcm"
    deterministic, gamma = parse_method("student-4-deterministic"), parse_method("student-8-gamma0.3")
    assert (deterministic.sampler, deterministic.gamma, deterministic.evaluations) == ("tcd", 0.0, 4)
    assert (gamma.gamma, gamma.adapter) == (0.3, True)
    guided = parse_method("student-4-gamma1-w0.5")
    assert (guided.guidance_scale, guided.evaluations, guided.gamma) == (1.5, 8, 1.0)
    names = ("student-4-deterministic", "student-8-gamma0.3", "student-4-w0.5", "untrained-4-gamma1-w0.5")
    assert [parse_method(name).name for name in names] == list(names)
    for name in ("teacher-4-gamma0.3", "teacher-4-w1", "student-4-gamma2", "student-4-w-2", "student-4-gamma"):
        with pytest.raises(ValueError):
            parse_method(name)


@pytest.mark.parametrize("name", ["student-3-deterministic", "student-3-gamma0.5"])
def test_gamma_sampling_does_not_depend_on_the_batch(model, prepared, name):
    together, alone = denoise(model, prepared, parse_method(name)), denoise(model, prepared[1:2], parse_method(name))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(together, denoise(model, prepared, student_method(3)), atol=1e-2)


@pytest.mark.parametrize("size", [(64, 64), (64, 192), (256, 128)])
def test_any_multiple_of_64_pixels(size):
    model = attach(micro_network(), 2, 2)
    height, width = size
    lines = (Line("cat", box(4, 4, width - 4, 40)), Line("42", box(4, 40, 60, 62)))
    photo = np.full((*size, 3), 120, np.uint8)
    for image in (None, photo):
        prompts = [Prompt("a dog", lines, image), Prompt("a red sign", lines[:1], image)]
        pictures = draw_prompts(model, prompts, student_method(1), Defaults(size, 2, 2.0, ""))
        assert pictures.shape == (2, *size, 3)


def test_missing_files(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "EMBEDDED_CHECKPOINT", tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="build_teacher"):
        loading.load_embedded_teacher()
    with pytest.raises(FileNotFoundError, match="no adapter in"):
        lora.resolve_adapter(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        defaults_for(tmp_path / "x.yaml")
    rest = "unet_config: {params: {channel_mult: [1, 1]}}"
    for text in ("model: {}", *(f"model: {{params: {{image_size: {n}, {rest}}}}}" for n in ("0", "-1", "9" * 30))):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(ValueError, match="image_size"):
            defaults_for(tmp_path / "x.yaml")


def test_defaults_and_adapters(model, tmp_path):
    unet = AnyText2.from_config(EMBEDDED_CONFIG, device="meta").model.diffusion_model
    multiple = 8 * unet.downsampling
    weights = networks.EMBEDDED_CHECKPOINT.resolve()
    wanted = Defaults((128, 128), 2, networks.EMBEDDED_GUIDANCE, "", multiple, weights)
    assert defaults_for(EMBEDDED_CONFIG) == wanted
    full = defaults_for(EMBEDDED_CONFIG.with_name("anytext2_sd15.yaml"))
    assert full.size == (512, 512) and full.guidance_scale == 7.5 and full.multiple == 64
    assert full.max_lines == 20 and full.negative_prompt.startswith("low-res") and full.checkpoint is None
    assert lora.resolve_adapter("none") is None
    assert lora.resolve_adapter(save_adapter(model, tmp_path / "a")) == tmp_path / "a"


def test_a_copied_yaml_keeps_its_defaults_and_its_weights_are_looked_for_beside_it(tmp_path):
    config = OmegaConf.load(EMBEDDED_CONFIG)
    mine = tmp_path / "configs" / "mine.yaml"
    mine.parent.mkdir()
    mine.write_bytes(EMBEDDED_CONFIG.read_bytes())
    found, own = defaults_for(mine), defaults_for(EMBEDDED_CONFIG)
    assert (found.guidance_scale, found.max_lines, found.negative_prompt) == (2.0, 2, "")
    assert replace(found, checkpoint=own.checkpoint) == own
    wanted = {"config": str(mine), "output_dir": str(tmp_path)}
    for load, flag in (
        (lambda: loading.load_chosen(mine, None, "cpu"), "--ckpt"),
        (lambda: TrainSettings(**wanted).resolve(), "--teacher_ckpt"),
    ):
        with pytest.raises(FileNotFoundError, match=rf"{tmp_path.name}/assets/teacher.safetensors, which .* {flag}\.$"):
            load()
    target = tmp_path / "assets" / "teacher.safetensors"
    target.parent.mkdir(parents=True)
    target.write_bytes(networks.EMBEDDED_CHECKPOINT.read_bytes())
    assert TrainSettings(**wanted).resolve().teacher_ckpt == str(target)
    config.model.defaults.checkpoint = str(target)
    config.model.params.cond_stage_config.params.version = str(networks.ASSETS / "tokenizer")
    OmegaConf.save(config, mine)
    loaded = loading.load_chosen(mine, None, "cpu").state_dict()
    embedded = loading.load_embedded_teacher("cpu").state_dict()
    assert all(torch.equal(value, embedded[name]) for name, value in loaded.items())


@pytest.mark.parametrize(
    ("defaults", "words"),
    [
        ({"guidance": 4}, "has no guidance; it may set guidance_scale, "),
        ({"guidance_scale": "four"}, "guidance_scale must be a number in 1..100, not 'four'"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a number in 1..100, not nan"),
        ({"guidance_scale": True}, "guidance_scale must be a number in 1..100, not True"),
        ({"guidance_scale": 0}, "guidance_scale must be a number in 1..100, not 0"),
        ({"negative_prompt": None}, "negative_prompt must be a string, not None"),
        ({"max_lines": 0}, "max_lines must be an integer in 1..100, not 0"),
        ({"max_lines": 10**9}, "max_lines must be an integer in 1..100, not 1000000000"),
        ({"max_lines": 2.0}, "max_lines must be an integer in 1..100, not 2.0"),
        ({"checkpoint": ""}, "checkpoint must be the path of a file"),
        (["max_lines"], "must map names to values"),
    ],
)
def test_bad_defaults_are_refused_in_one_sentence(tmp_path, defaults, words):
    config = OmegaConf.load(EMBEDDED_CONFIG)
    config.model.defaults = defaults
    OmegaConf.save(config, tmp_path / "bad.yaml")
    with pytest.raises(ValueError, match=words) as refused:
        defaults_for(tmp_path / "bad.yaml")
    assert str(refused.value).startswith(f"Configuration {tmp_path / 'bad.yaml'}: model.defaults")
    assert "\n" not in str(refused.value)


def test_loaded_model_keeps_its_schedule_in_fp32(tmp_path):
    from safetensors.torch import save_file

    fresh = AnyText2.from_config(EMBEDDED_CONFIG)
    save_file({k: v.contiguous() for k, v in fresh.state_dict().items()}, tmp_path / "w.safetensors")
    loaded = loading.load_model(EMBEDDED_CONFIG, tmp_path / "w.safetensors", "cpu", "bf16")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.alphas_cumprod, fresh.alphas_cumprod)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_files_appear_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "a.txt"
    with pytest.raises(RuntimeError), atomic_file(target) as path:
        path.write_text("half")
        raise RuntimeError
    assert not target.parent.exists()
    with atomic_file(target) as path:
        path.write_text("whole")
    assert target.read_text() == "whole" and len(list(target.parent.iterdir())) == 1
    with pytest.raises(ValueError, match="is a folder"), atomic_file(target.parent):
        pass
    with pytest.raises(ValueError, match="Nothing can be written"), atomic_file(target / "b.txt"):
        pass


def test_folders_are_replaced_whole(tmp_path):
    target = tmp_path / "out"
    for text in ("one", "two"):
        with atomic_folder(target) as folder:
            (folder / "report.json").write_text(text)
        assert (target / "report.json").read_text() == text
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as folder:
        (folder / "report.json").write_text("three")
        raise KeyboardInterrupt
    assert (target / "report.json").read_text() == "two"
    assert list(tmp_path.iterdir()) == [target]
    (tmp_path / "mine").mkdir()
    with atomic_folder(tmp_path / "mine") as folder:
        (folder / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="other files"), atomic_folder(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine" / "thesis.txt").exists()
    with pytest.raises(ValueError, match="is a file"), atomic_folder(tmp_path / "mine" / "thesis.txt"):
        pass
