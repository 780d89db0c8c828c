"""The benchmark: its two sides agree, it notices when they do not, and costs by part add up. No figure is expected."""

import gc
import json
import os
import signal
import sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from micro_network import CHANNELS, SIDE, micro_batch, micro_network
from torch.utils.flop_counter import FlopCounterMode

from anytext_lcm import speed
from anytext_lcm.adapter import lora
from anytext_lcm.drawing.cores import Clock
from anytext_lcm.drawing.draw import BATCH_SIZE, prepare
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.loading import load_model
from anytext_lcm.timing import agree, measure, process
from anytext_lcm.timing import variants as variants_module
from anytext_lcm.timing.by_part import CostByPart, attention_flops
from anytext_lcm.timing.chart import speed_chart
from anytext_lcm.timing.report import format_report
from anytext_lcm.timing.variants import (
    ADDED,
    DECODER,
    MEASURED,
    PAIRS,
    VARIANTS,
    Options,
    Training,
    Variant,
    adapt,
    example_batch,
    other_side,
)
from anytext_lcm.training.data_order import seeded_generator
from anytext_lcm.training.loop import load_teacher
from anytext_lcm.training.settings import TrainSettings
from anytext_lcm.training.step import DistillStep


@pytest.fixture
def options(teacher):
    return Options(str(teacher / "micro.yaml"), None, "cpu", "no", 2, 2, 1, (2, 3), SIDE)


def trainings(options, targets=None, checkpointing=False, latents=False):
    """The reference and ours, on one network with an adapter; the network checkpoints as the one that ran last."""
    model, teacher = adapt(micro_network(), options, targets), micro_network()
    batch = micro_batch(2)
    return [
        Training(Variant(reference, targets, checkpointing, latents), model, teacher, batch, options)
        for reference in (True, False)
    ]


def compare(before, after):
    return agree.compare_steps(before.loss_and_gradient(), after.loss_and_gradient())


STEM_TARGETS = ("zero_convs", "unet_rest", "control_model.fuse_block_za", "model.diffusion_model.input_blocks.0.0")


@pytest.mark.parametrize("latents", [False, True])
@pytest.mark.parametrize("targets", [None, DECODER, STEM_TARGETS], ids=["default", "decoder", "stem"])
def test_the_reference_step_and_ours_agree(options, targets, latents):
    """Also where the adapter reaches what comes before the first attention, which is shared then no more."""
    found = compare(*trainings(options, targets, latents=latents))
    assert found["difference"] <= 1e-5 and found["gradient"] <= 1e-3 and found["reference loss"] > 0


def test_gradient_checkpointing_changes_no_gradient(options):
    [plain, _], [checkpointed, _] = trainings(options), trainings(options, checkpointing=True)
    assert compare(plain, checkpointed)["gradient"] < 1e-5


def test_another_computation_is_refused(options):
    """A step that takes other noise, one with other guidance."""
    before, after = trainings(options)
    after.step.guidance_scale += 1.0
    with pytest.raises(ArithmeticError, match="differ"):
        compare(before, after)
    before, after = trainings(options, DECODER)
    step = after.step.forward
    after.step.forward = lambda batch, generator: step(batch, torch.Generator().manual_seed(8))
    with pytest.raises(ArithmeticError, match="not compared"):
        compare(before, after)


def test_the_samplers_agree_and_another_guidance_is_refused(options, monkeypatch):
    model = micro_network()
    prepared = prepare(model, micro_batch(2), [0, 1])
    assert agree.compare_samplers(model, prepared, 2.0) <= 1e-3
    method = agree.teacher_method
    monkeypatch.setattr(agree, "teacher_method", lambda steps, guidance, spacing: method(steps, 2.1, spacing))
    with pytest.raises(ArithmeticError, match="samplers?"):
        agree.compare_samplers(model, prepared, 2.0)


def stem_flops(model, batch):
    """FLOPs for one picture before the first attention: of WriteNet, of the UNet."""
    cond = model.condition(batch)
    x, t = torch.randn_like(cond.masked_latents), torch.tensor([499, 19])
    found = []
    for call in (lambda: model.control_stem(cond), lambda: model.noise_stem(x, t)):
        with FlopCounterMode(display=False) as counter:
            call()
        found.append(counter.get_total_flops() / len(cond))
    return found


def test_costs_by_part_give_each_flop_to_one_part(options):
    """Ours computes WriteNet's stem once for three calls, the UNet's at x_t once for three branches."""
    reference, ours = (measure.count(training) for training in trainings(options, latents=True))
    assert "autoencoder" not in ours  # nothing that a run has not encoded before
    reference, ours = (measure.count(training) for training in trainings(options))
    [checkpointed, _] = trainings(options, checkpointing=True)
    decoder = measure.count(trainings(options, DECODER)[1])
    again = measure.count(checkpointed)
    control, unet = stem_flops(micro_network(), micro_batch(2))
    assert control > 0 < unet
    assert again["recomputation"] <= again["UNet, student"] + again["WriteNet"] / 4 and "recomputation" not in reference
    assert again["backward"] == pytest.approx(reference["backward"], rel=1e-3) and again["recomputation"] > 0
    shared = 3 / 4 * reference["WriteNet"] - 2 * control  # of four whole calls three, and of these two without a stem
    assert ours["WriteNet"] == pytest.approx(shared, rel=0.05)  # the adapter's own products
    assert decoder["WriteNet"] < 0.52 * reference["WriteNet"]
    assert decoder["UNet, student"] < ours["UNet, student"] and decoder["backward"] < ours["backward"]
    assert reference["autoencoder"] == pytest.approx(2 * ours["autoencoder"])  # the empty picture is encoded once a run
    for part in ("UNet, teacher and target", "UNet, student"):
        assert ours[part] == pytest.approx(reference[part] - unet, rel=0.02)


def test_attention_counts_as_the_two_products_that_it_is():
    q, k = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4)
    with FlopCounterMode(display=False) as counter:
        torch.softmax(q @ k.transpose(-1, -2), dim=-1) @ k
    assert attention_flops(q.shape, k.shape, k.shape) == counter.get_total_flops()


def test_nested_parts_are_counted_once():
    clock = iter(range(100))
    costs = CostByPart(lambda: next(clock))
    with costs.part("outer"):
        with costs.part("inner"):
            pass
    assert costs.totals == {"rest": 1, "outer": 2, "inner": 1}


def test_medians_are_of_a_picture():
    clocks = [Clock({"a": wall, "b": 1.0}, {"a": 0.0, "b": 0.0}) for wall in (1.0, 9.0, 3.0)]
    assert measure.medians(clocks, "wall", 2) == {"a": 1.5, "b": 0.5, "total": 2.0}


def test_the_whole_command(teacher, tmp_path, capsys, monkeypatch):
    """On the micro network, one variant of the step really measured; it stands in for all but one that does not fit."""
    in_own_process = measure.in_own_process

    @cache
    def measured(options):
        return in_own_process(measure.measure_step, VARIANTS["ours"], options)

    def here(work, *arguments):
        if work is not measure.measure_step:
            return work(*arguments)
        variant, options = arguments
        return dict.fromkeys(MEASURED) if variant == VARIANTS["reference, checkpointed"] else dict(measured(options))

    monkeypatch.setattr(measure, "in_own_process", here)
    monkeypatch.setattr(measure, "matmul_rate", lambda options: 1e9)
    monkeypatch.setattr(measure, "count_on_shapes", lambda variant, options: {"UNet": 2e9, "backward": 1e9})
    monkeypatch.setattr(measure, "expected_gib", lambda variant: 1.0)
    small = ["--config", str(teacher / "micro.yaml"), "--batch", "2", "--rank", "2", "--repeats", "1"]
    small += ["--steps", "2", "3"]
    assert speed.main([*small, "--device", "cpu", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "speed.json").read_text())
    assert set(report["training"]["checks"]) == {"", "latents stored", "decoder only"} < set(PAIRS)
    assert all(check["difference"] <= 1e-5 for check in report["training"]["checks"].values())
    variants = report["training"]["variants"]
    ours = variants["ours"]
    low, high = ours["slowest_and_fastest"]
    assert 0 < low <= ours["samples_per_second"] <= high and ours["peak_gib"] > 0 and ours["core_seconds"] > 0
    assert ours["profile"][0]["share"] > 0 and ours["flops"]["UNet, student"] > 0 < ours["seconds_by_part"]["backward"]
    assert ours["share_of_matmul_rate"] == pytest.approx(sum(ours["flops"].values()) * ours["samples_per_second"] / 1e9)
    methods = report["sampling"]["methods"]
    assert list(methods) == ["upstream-2", "upstream-3", "teacher-2", "teacher-3", "student-8", "student-4"]
    assert methods["upstream-3"]["faster"]["upstream-3"] == {"denoise": 1, "end_to_end": 1}
    seconds = {name: row["seconds"]["denoise"] for name, row in methods.items()}
    expected = seconds["upstream-2"] / seconds["student-4"]
    assert methods["student-4"]["faster"]["upstream-2"]["denoise"] == pytest.approx(expected)
    assert set(report["training"]["pairs"]) == {name for name in VARIANTS if name.startswith("ours")}
    assert report["training"]["pairs"]["ours"]["faster"] == 1 and report["training"]["added"].keys() == ADDED.keys()
    assert report["training"]["pairs"]["ours, checkpointed"]["faster"] is None
    table = (tmp_path / "speed.md").read_text()
    assert "| reference, checkpointed | does not fit |" in table and "| ours | " in table and "| UNet | 2 |" in table
    assert "| ours, checkpointed : reference, checkpointed | – |" in table
    steps, samplers = speed_chart(speed.without_misfits(report)).axes
    fitting = [row for row in variants.values() if row["samples_per_second"]]
    ends = [max(bars[i].get_x() + bars[i].get_width() for bars in steps.containers) for i in range(len(fitting))]
    assert ends == pytest.approx([1000 / row["samples_per_second"] for row in fitting])  # as long as the table says
    assert len(fitting) == len(VARIANTS) - 1 and len(samplers.texts) == 6
    assert (tmp_path / "speed.png").stat().st_size > 0
    assert "samples/s" in capsys.readouterr().out


def test_one_part_of_the_report_alone(teacher, tmp_path, capsys):
    """The samplers without the training step, which takes long at full size on a CPU; table and chart have no more."""
    small = ["--config", str(teacher / "micro.yaml"), "--batch", "1", "--rank", "2", "--repeats", "1", "--steps", "1"]
    assert speed.main([*small, "--device", "cpu", "--parts", "sampling", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "speed.json").read_text())
    assert "training" not in report and list(report["sampling"]["methods"])[0] == "upstream-1"
    table = (tmp_path / "speed.md").read_text()
    assert "| student-4 |" in table and "samples/s" not in table and table.strip() in capsys.readouterr().out
    assert len(speed_chart(report).axes) == 1 and (tmp_path / "speed.png").stat().st_size > 0


def stored_row(i):
    """A step twice, three times, ... as fast as the first, with half, a third, ... of its memory."""
    return {
        "samples_per_second": 0.5 * i,
        "slowest_and_fastest": [0.25 * i, 1.0 * i],
        "core_seconds": 0.1,
        "peak_gib": 8.0 / i,
        "flops": {"UNet": 4e9, "backward": 1e9},
        "share_of_matmul_rate": 0.25,
        "seconds_by_part": {"UNet": 1.0},
        "profile": [{"name": "conv", "share": 0.5, "calls": 3}],
    }


def test_a_ratio_pairs_what_does_the_same_otherwise():
    for name, variant in VARIANTS.items():
        other = VARIANTS[other_side(name)]
        assert other.reference and other == replace(variant, reference=True)
    for name, base in ADDED.items():  # one switch at a time, ours on both sides
        one, two = (vars(VARIANTS[which]) for which in (name, base))
        assert not VARIANTS[base].reference and sum(one[key] != two[key] for key in one) == 1


def test_the_tables_say_how_much_faster_than_the_other_side():
    rows = {name: stored_row(i) for i, name in enumerate(VARIANTS, 1)}
    flops = {name: {"UNet": 7e9 if VARIANTS[name].reference else 3.5e9} for name in VARIANTS}
    gib = {name: 9.0 if VARIANTS[name].reference else 3.0 for name in VARIANTS}
    found = measure.compare(rows, flops, gib, "ours", "reference")
    assert list(found.values()) == pytest.approx([2, 1, 1, 1 / 2, 2, 1 / 3])
    report = {
        "config": "c.yaml",
        "side": 64,
        "batch": 2,
        "rank": 4,
        "precision": "no",
        "torch": "2",
        "repeats": 3,
        "load_before": None,
        "hardware": {"cpu": "a CPU", "threads": 1},
        "training": {"variants": rows, "pairs": {"ours": found}, "added": {"ours, checkpointed": found}},
        "sampling": {"methods": {}},
        "full_size_flops": flops,
        "full_size_gib": gib,
    }
    table = format_report(report)
    assert "| ours : reference | 2.00x | 1.00x | 1.00x | 0.50x | 2.00x | 0.33x |" in table
    assert "| ours, checkpointed : ours | 2.00x |" in table
    assert "| reference | 0.5 | 0.25 to 1 | 0.100 | 8.00 | 5.00 | 25% | 7 | 9.0 |" in table
    assert table.count("| conv | 50.0% | 3 |") == 2 and "; load average" not in table


def test_a_process_of_its_own_raises_what_its_work_raises():
    assert process.in_own_process(os.getpid) != os.getpid()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        process.in_own_process(os.listdir, "/nowhere")
    with pytest.raises(RuntimeError, match="was killed, most likely for lack of memory"):
        process.in_own_process(signal.raise_signal, signal.SIGKILL)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's mark is Linux's")
def test_the_peak_is_of_what_follows():
    gc.collect()  # not between the marks: what other tests left would be given back there
    large = torch.ones(30_000_000)
    del large
    before = process.peak_bytes()
    process.forget_peak()
    forgotten = process.peak_bytes()
    assert forgotten < before - 60e6
    large = torch.ones(20_000_000)
    assert process.peak_bytes() > forgotten + 60e6 and len(large)


@pytest.mark.slow
def test_flops_are_counted_on_shapes_as_on_numbers(options, monkeypatch):
    """All parts but the recogniser; the micro network predicts noise here, since v looks values up."""
    build = variants_module.build

    def eps(*arguments):
        model = build(*arguments)
        model.parameterization = "eps"
        return model

    monkeypatch.setattr(measure, "build", eps)
    for name in ("reference, checkpointed", "ours, decoder only"):  # every branch is in one of the two
        variant = VARIANTS[name]
        teacher, model = eps(options), adapt(eps(options), options, variant.targets)
        batch = example_batch(options)
        real = measure.count(Training(variant, model, teacher if variant.reference else None, batch, options))
        shapes = measure.count_on_shapes(variant, options)
        for part in ("UNet, student", "UNet, teacher and target", "WriteNet", "backward", "autoencoder"):
            assert shapes[part] == pytest.approx(real[part], rel=0.02), (name, part)


def test_merged_for_sampling_and_bitwise_back(options):
    model = adapt(micro_network(), options, None)
    cond = model.condition(micro_batch(2))
    x, t = torch.randn_like(cond.masked_latents), torch.tensor([499, 19])

    def predict():
        with torch.no_grad():
            return model.predict_noise(x, t, cond, model.control(cond))

    student = predict()
    with lora.adapter_off(model):
        teacher = predict()
    with lora.Adapter.of(model).merged():
        torch.testing.assert_close(predict(), student, rtol=1e-4, atol=1e-4)
    assert torch.equal(predict(), student) and not torch.allclose(student, teacher)
    with lora.adapter_off(model):
        assert torch.equal(predict(), teacher)


def test_the_decoders_group_leaves_what_is_shared_alone():
    model = lora.attach(micro_network(), 2, 2, ["unet_decoder"])
    assert not lora.Adapter.of(model).touches("control_model", "model.diffusion_model.input_blocks")
    assert lora.Adapter.of(model).touches("model.diffusion_model.middle_block")
    assert lora.Adapter.of(model).touches("model.diffusion_model.output_blocks")


def test_both_loaders_lay_convolutions_out_for_speed_and_compute_the_same(teacher, tmp_path):
    config, weights = str(teacher / "micro.yaml"), str(teacher / "micro.safetensors")
    plain = AnyText2.from_config(config).load_checkpoint(weights).eval()
    settings = TrainSettings.from_dict(dict(config=config, teacher_ckpt=weights, output_dir=str(tmp_path)))
    picture = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    with torch.no_grad():
        cond = plain.condition(micro_batch(2), torch.Generator().manual_seed(0))
        latents, timesteps = torch.randn(2, plain.latent_channels, 8, 8), torch.tensor([10, 900])
        for model in (load_model(config, weights, "cpu"), load_teacher(settings)):
            convolutions = [w for w in model.parameters() if w.dim() == 4]
            assert convolutions and all(w.is_contiguous(memory_format=torch.channels_last) for w in convolutions)
            for call in (
                lambda m: m.predict_noise(latents, timesteps, cond, m.control(cond)),
                lambda m: m.first_stage_model.encode(picture)[0],
                lambda m: m.decode(latents),
            ):
                expected = call(plain)
                assert expected.std() > 1e-3
                torch.testing.assert_close(call(model), expected, rtol=1e-4, atol=1e-5)


def count_encodings(model):
    """A list that gets the number of pictures of each call of the encoder."""
    sizes = []
    model.first_stage_model.encoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    return sizes


@pytest.mark.parametrize("blank", [(0, 2), (), (0, 1, 2, 3), (3,)])
def test_what_is_drawn_from_nothing_is_encoded_once(blank):
    model, images = micro_network(), torch.rand(4, 3, SIDE, SIDE)
    images[list(blank)] = -1
    wanted = model.first_stage_model.encode(images)
    known = model.blank_moments(SIDE, SIDE)
    assert all(moment.shape == (1, CHANNELS, SIDE // 8, SIDE // 8) and not moment.requires_grad for moment in known)
    edited, sizes = [4 - len(blank)] if len(blank) < 4 else [], count_encodings(model)
    for given, expected in ((None, [1] * bool(blank) + edited), (known, edited)):
        sizes.clear()
        for found, moments in zip(model.masked_moments(images, given), wanted, strict=True):
            torch.testing.assert_close(found, moments, rtol=1e-4, atol=1e-4)
        assert sizes == expected


def test_a_run_encodes_the_empty_picture_once_and_a_size():
    """A run of the training step, and a drawing of several chunks; nothing stays in the model for the next one."""
    model, batch = lora.attach(micro_network(), 2, 2), micro_batch(2)
    del batch["img"]
    batch["latents"] = torch.randn(2, CHANNELS, SIDE // 8, SIDE // 8)
    sizes = count_encodings(model)
    for _ in range(2):
        step = DistillStep(model)
        losses = [step(batch, seeded_generator(1)).loss.item() for _ in range(3)]
        assert losses[0] == losses[1] == losses[2] and sizes == [1]
        sizes.clear()
    with torch.no_grad():  # another autoencoder: a new run sees it
        model.first_stage_model.quant_conv.bias.add_(1.0)
    assert DistillStep(model)(batch, seeded_generator(1)).loss.item() != losses[0]
    sizes.clear()
    many = micro_batch(2 * BATCH_SIZE + 1)
    prepare(model, many, range(2 * BATCH_SIZE + 1))
    assert sizes == [1]
    many["masked_img"][:] = 0.5
    sizes.clear()
    prepare(model, many, range(2 * BATCH_SIZE + 1))
    assert sizes == [BATCH_SIZE, BATCH_SIZE, 1]
