"""The comparison: a fixed panel, methods that share noise, measures that know good from bad."""

import json
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from micro_network import SIDE, micro_network
from PIL import Image

from anytext_lcm import ablate, evaluate
from anytext_lcm.adapter.lora import adapter_state, attach, save_adapter
from anytext_lcm.data.words import kind_of
from anytext_lcm.drawing.methods import parse_method, reference_of
from anytext_lcm.drawing.solvers import make_scheduler, solver_steps
from anytext_lcm.judging import compare as compare_module
from anytext_lcm.judging import reading, tables
from anytext_lcm.judging.compare import compare_methods, resolve_methods, run_method
from anytext_lcm.judging.defaults import COMPARISON
from anytext_lcm.judging.judge import by_kind, real_pictures
from anytext_lcm.judging.panel import MethodResult, Panel
from anytext_lcm.judging.report import write_report
from anytext_lcm.lcm.samplers import finish, sample
from anytext_lcm.lcm.schedule import NoiseSchedule

FILES = ["chart.png", "grid.png", "report.json", "table.md", "zoom.png"]


@pytest.fixture(scope="module")
def panel():
    return Panel.build(prompts=8)


@pytest.fixture(scope="module")
def model():
    model = attach(micro_network(), rank=2, alpha=2)
    generator = torch.Generator().manual_seed(2)
    for parameter in adapter_state(model).values():
        parameter.data.normal_(std=0.1, generator=generator)
    return model.requires_grad_(False)


def small_panel(prompts, repeats=1):
    """A panel of the size that the micro network draws."""
    return Panel.build(prompts=prompts, image_size=SIDE, repeats=repeats)


def test_panel_is_fixed_and_held_out(panel):
    again, other = Panel.build(prompts=8), Panel.build(prompts=8, seed=1)
    assert np.array_equal(panel.images, again.images) and panel.noise_seeds == again.noise_seeds
    assert not np.array_equal(panel.images, other.images)
    assert not set(panel.noise_seeds) & set(other.noise_seeds)
    assert Panel.build(prompts=3).texts == panel.texts[:3]
    longer = Panel.build(lines=10)
    assert len(longer.groups) in (10, 11) and longer.texts[:8] == panel.texts
    for item in longer.items:
        assert item["meta"]["split"] == "test" and item["meta"]["mode"] == "generate"
        assert not item["meta"]["font_hinted"] and not item["font_hint"].any()
    assert panel.images.shape == (8, 128, 128, 3) and panel.images.dtype == np.uint8
    real = real_pictures(8)
    assert not any(np.array_equal(a, b) for a in real for b in panel.images)


@pytest.mark.parametrize("kwargs", [{}, {"prompts": 1}, {"lines": 0}, {"prompts": 2, "lines": 2}, {"prompts": 2.5}])
def test_bad_panels(kwargs):
    with pytest.raises(ValueError):
        Panel.build(**kwargs)


def test_judge_knows_good_from_bad(panel):
    rng = np.random.default_rng(0)
    scores, good = panel.judge(panel.images, panel.images)
    blurred = np.stack([np.asarray(Image.fromarray(i).resize((16, 16)).resize((128, 128))) for i in panel.images])
    _, bad = panel.judge(blurred, panel.images)
    _, noise = panel.judge(rng.integers(0, 255, panel.images.shape).astype(np.uint8), panel.images)
    assert good["accuracy"]["value"] >= 0.8 and good["accuracy"]["value"] == scores.accuracy
    assert bad["accuracy"]["value"] < good["accuracy"]["value"] and bad["ned"]["value"] < good["ned"]["value"]
    assert good["sharpness"]["gradient_energy_to_real"] == pytest.approx(1.0)
    assert bad["sharpness"]["gradient_energy_to_real"] < 0.5
    assert (good["same_noise"]["rmse"], good["same_noise"]["psnr"]) == (0.0, None)
    same = bad["same_noise"]["interval"]
    assert 5 < same["low"] <= bad["same_noise"]["rmse"] <= same["high"]
    assert good["objects_obeyed"]["value"] > noise["objects_obeyed"]["value"]
    assert good["ink_obeyed"]["value"] > noise["ink_obeyed"]["value"]
    assert good["distribution"]["kernel"]["value"] < noise["distribution"]["kernel"]["value"]
    assert len(good["read"]) == len(panel.groups)
    kinds = good["by_kind"]
    assert sum(found["lines"] for found in kinds) == len(panel.groups)
    right = sum(found["lines"] * found["value"] for found in kinds)
    assert right == pytest.approx(scores.correct.sum()) and all(f["low"] <= f["value"] <= f["high"] for f in kinds)


def test_kinds_of_text():
    said = ("Ocean", "BAKE", "007", "k7Q", "Xqzt", "a1b2c3")
    assert [kind_of(text) for text in said] == ["words", "words", "numbers", "mixed", "mixed", "mixed"]
    scores = reading.LineScores(
        said, said, np.arange(6), np.full(6, 20.0), np.array([1, 0, 1, 0, 0, 1], bool), np.ones(6, bool), np.ones(6)
    )
    found = {f["kind"]: (f["lines"], f["value"]) for f in by_kind(scores)}
    assert found == {"words": (2, 0.5), "numbers": (1, 1.0), "mixed": (3, pytest.approx(1 / 3))}
    report = {"reference": None, "methods": {"teacher-50": {"by_kind": by_kind(scores)}}}
    head, _, row = tables.by_kind(report).splitlines()
    assert head == "| method | words (2 lines) | numbers (1 lines) | mixed (3 lines) |"
    assert row.startswith("| teacher-50 | 0.500 [0.00, 1.00] | 1.000 [1.00, 1.00] | 0.333 [")
    assert tables.by_kind({"methods": {"teacher-50": {}}}) == ""  # of an earlier version


def test_methods_share_noise_and_real_ones_need_none(model, panel):
    small = small_panel(2)
    bare = run_method(model, small, "untrained-1")
    again = run_method(model, small, "untrained-1")
    assert np.array_equal(bare.images, again.images) and bare.evaluations == 1
    student = run_method(model, small, "student-1")
    assert not np.array_equal(student.images, bare.images)
    real, reconstructed = run_method(model, small, "real"), run_method(model, small, "reconstruction")
    assert np.array_equal(real.images, small.images) and real.evaluations == 0 and not real.wall
    assert reconstructed.images.shape == real.images.shape and set(reconstructed.wall) == {"decode"}
    with pytest.raises(ValueError, match="unknown"):
        run_method(model, small, "magic-4")


def test_compare_reports_everything(model, capsys):
    small = small_panel(3)
    names = ("real", "teacher-3", "teacher-1", "student-1")
    report, results = compare_methods(model, small, names, 2.0, settings={"adapter": "random"})
    assert list(results) == list(report["methods"]) == list(names)
    json.dumps(report, allow_nan=False)
    assert report["reference"] == "teacher-3"
    assert report["settings"]["adapter"] == "random" and report["settings"]["guidance_scale"] == 2.0
    assert {"torch", "numpy", "rapidocr"} <= set(report["versions"])
    assert {"cpu", "cores", "threads"} <= set(report["hardware"])
    teacher, student = report["methods"]["teacher-3"], report["methods"]["student-1"]
    assert (teacher["evaluations"], student["evaluations"]) == (6, 1)
    assert teacher["same_noise"]["rmse"] == 0 and teacher["speedup_wall"]["denoise"] == 1
    assert student["speedup_cores"]["denoise"] > 1 and student["distribution"] is None
    assert report["prepare_seconds_a_picture"]["cores"] > 0
    assert student["speedup_cores"]["with_decoding"] > student["speedup_cores"]["end_to_end"] > 1
    assert student["seconds_a_picture"]["denoise"] > 0 and student["seconds_a_picture"]["decode"] > 0
    assert 0 <= student["accuracy"]["low"] <= student["accuracy"]["value"] <= student["accuracy"]["high"] <= 1
    table = capsys.readouterr().out
    assert all(name in table for name in names)
    assert "3 prompts" in table and "teacher-3" in table


def test_retention_when_the_teacher_reads(model, monkeypatch):
    """Real pictures stand in for the teacher's, blank ones for the student's."""
    small = small_panel(4)

    def pretend(model, panel, method, prepared=None, show=False):
        blank = method.name.startswith("student")
        images = np.zeros_like(panel.images) if blank else panel.images
        return MethodResult(method.name, images, 1, {"denoise": 1.0}, {"denoise": 1.0}, asdict(method))

    monkeypatch.setattr(compare_module, "run_method", pretend)
    monkeypatch.setattr(compare_module, "prepare_panel", lambda *_: None)
    report, _ = compare_methods(model, small, ("teacher-50", "student-4"), show=False)
    assert report["methods"]["teacher-50"]["retention"]["value"] == 1
    assert report["methods"]["student-4"]["retention"]["value"] == 0
    assert all(bucket["value"] == 1 for bucket in report["methods"]["teacher-50"]["retention_by_height"])
    buckets = report["methods"]["student-4"]["retention_by_height"]
    assert buckets and all(bucket["value"] == 0 and bucket["from"] >= 0 for bucket in buckets)


def test_another_adapter_that_does_not_fit_stops_before_the_drawing(model, tmp_path, monkeypatch):
    other = micro_network()
    folder = save_adapter(attach(other, rank=3, alpha=3), tmp_path / "other")
    monkeypatch.setattr(compare_module, "run_method", lambda *_, **__: pytest.fail("something was drawn"))
    before = {key: value.clone() for key, value in adapter_state(model).items()}
    with pytest.raises(ValueError, match="differs from the attached one"):
        compare_methods(model, small_panel(2), ("real", "student-1"), show=False, more_adapters={"x": folder})
    assert all(torch.equal(value, before[key]) for key, value in adapter_state(model).items())


def test_rivals_at_equal_evaluations(model, monkeypatch, tmp_path):
    """Real pictures stand in for the student's, blank ones for everybody else's."""
    small = Panel.build(prompts=9)

    def pretend(model, panel, method, prepared=None, show=False):
        images = panel.images if method.name.startswith("student") else np.zeros_like(panel.images)
        times = {"denoise": 1.0}
        return MethodResult(method.name, images, method.evaluations, times, times, asdict(method))

    monkeypatch.setattr(compare_module, "run_method", pretend)
    monkeypatch.setattr(compare_module, "prepare_panel", lambda *_: None)
    names = ("teacher-50", "teacher-2", "untrained-4", "student-4", "student-8", "teacher-4-unipc", "teacher-1")
    report, results = compare_methods(model, small, names, 2.0, show=False)
    pairs = {(p["student"], p["rival"]): p for p in report["equal_evaluations"]}
    assert set(pairs) == {("student-4", "teacher-2"), ("student-4", "untrained-4"), ("student-8", "teacher-4-unipc")}
    for pair in pairs.values():
        assert pair["accuracy_difference"]["value"] == report["methods"]["student-4"]["accuracy"]["value"] > 0.5
        assert pair["kernel"][0] < pair["kernel"][1]
    text = tables.markdown(report)
    assert "At equal evaluations" in text and "| more |" in text and "| nearer |" in text
    write_report(tmp_path, report, results, small)
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == text


def test_the_tables_of_a_report(model):
    """Every row of a table has as many cells as its head."""
    small = small_panel(4, repeats=2)
    report, _ = compare_methods(model, small, ("real", "teacher-2", "student-1"), 2.0, show=False)
    text = tables.markdown(report)
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]
    assert len(blocks) >= 2 and all(len({row.count("|") for row in block}) == 1 for block in blocks)
    assert "**teacher-2**" in text and "| diversity |" in text and "2 sampling seeds each" in text


def test_the_comparison_is_at_equal_evaluations():
    methods = [m for m in resolve_methods(COMPARISON, 2.0) if not isinstance(m, str)]
    by_kind = {}
    for method in methods:
        by_kind.setdefault(method.name.partition("-")[0] + method.sampler, set()).add(method.evaluations)
    assert by_kind["teacherdpm++"] == by_kind["teacherunipc"] <= by_kind["teacherddim"]
    assert {1, 2, 4, 6, 8, 16} == by_kind["studentlcm"] and len({m.name for m in methods}) == len(methods)


def test_labels_of_adapters(model, tmp_path):
    folder = save_adapter(model, tmp_path / "adapter")
    first, others = evaluate.read_adapters([str(folder), f"x0={folder}", str(folder)])
    assert first == folder and others == {"x0": folder, "3": folder}


def test_methods_by_name():
    methods = resolve_methods(["real", "teacher-4", "teacher-8", "teacher-8", "student-4"], 3.0)
    assert len(methods) == 4 and reference_of(methods) == "teacher-8"
    assert reference_of(resolve_methods(["real", "student-4"], 3.0)) is None
    # A deterministic one, whose noise the student shares.
    others = ["teacher-50-eta1", "teacher-8"]
    assert reference_of(resolve_methods(others, 3.0)) == "teacher-8"
    with pytest.raises(ValueError, match="No method"):
        resolve_methods([], 1.0)


def test_several_sampling_seeds():
    one, three = small_panel(4), small_panel(4, repeats=3)
    assert len(three) == 12 and three.noise_seeds[:4] == one.noise_seeds and len(set(three.noise_seeds)) == 12
    assert three.texts == one.texts * 3 and three.prompt_of.tolist() == [0, 1, 2, 3] * 3
    assert np.array_equal(three.groups, np.tile(one.groups, 3))
    same = three.judge(three.images).measures
    assert same["diversity"]["value"] == 0 and len(same["accuracy_by_seed"]) == 3
    assert np.mean(same["accuracy_by_seed"]) == pytest.approx(same["accuracy"]["value"])
    single = one.judge(one.images).measures
    assert same["by_height"] == single["by_height"] and same["by_kind"] == single["by_kind"]
    assert same["accuracy"]["n"] == 4  # prompts are resampled, not pictures
    assert same["ink_obeyed"]["n"] == single["ink_obeyed"]["n"]
    noisy = three.images.copy()
    noisy[4:] = np.random.default_rng(0).integers(0, 255, noisy[4:].shape)
    assert three.judge(noisy).measures["diversity"]["value"] > 0.1
    with pytest.raises(ValueError, match="1 to 10"):
        Panel.build(prompts=4, repeats=0)


def test_sampling_seeds_in_the_report(model, tmp_path, monkeypatch):
    small = small_panel(2, repeats=2)
    names = ("real", "teacher-2", "student-1")
    report, results = compare_methods(model, small, names, 2.0, show=False)
    json.dumps(report, allow_nan=False)
    assert report["panel"]["prompts"] == 2 and report["panel"]["sampling_seeds"] == 2
    assert len(report["panel"]["texts"]) == 2
    assert report["methods"]["teacher-2"]["diversity_to_reference"] == 1.0
    assert results["teacher-2"].images.shape[0] == 4
    assert not np.array_equal(results["student-1"].images[0], results["student-1"].images[2])
    table = tables.plain_table(report)
    assert "diversity" in table and "2 sampling seeds" in table
    write_report(tmp_path, report, results, small)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


@pytest.mark.parametrize("sampler", ["dpm++", "unipc"])
@pytest.mark.parametrize(("steps", "spacing"), [(1, ""), (4, ""), (20, ""), (4, "-karras"), (8, "-logsnr")])
def test_fast_solvers_are_diffusers_over_our_network(sampler, steps, spacing):
    """On the schedule as diffusers makes it from its own settings, and close to DDIM's limit."""
    schedule = NoiseSchedule.scaled_linear()
    kinds = {"dpm++": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}
    method = parse_method(f"teacher-{steps}-{sampler}{spacing}", 2.0)
    assert method.name == f"teacher-{steps}-{sampler}{spacing}" and method.evaluations == 2 * steps
    theirs = kinds[sampler](
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading" if steps == 20 else "trailing",
        use_karras_sigmas=spacing == "-karras",
        use_exponential_sigmas=spacing == "-logsnr",
    )
    theirs.set_timesteps(steps)

    def predict(x, t):  # data from N(0.3, 0.7^2)
        alpha, sigma = schedule.alpha_sigma(t, x)
        return sigma * (x - alpha * 0.3) / (alpha**2 * 0.49 + sigma**2)

    noise = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    x = noise
    for t in theirs.timesteps:
        x = theirs.step(predict(x, t.expand(2)), t, x).prev_sample
    path = list(solver_steps(predict, noise, schedule, method))
    mine = path[-1].latents
    torch.testing.assert_close(mine, x, rtol=1e-3, atol=1e-3)
    apart = [abs(step.timestep - t) for step, t in zip(path, theirs.timesteps.tolist(), strict=True)]
    assert max(apart) <= (1 if spacing else 0)  # one where 998.6 is rounded on one side alone
    if steps == 20:
        limit = finish(sample(predict, noise, schedule, 500, "ddim"))
        far = (finish(sample(predict, noise, schedule, 20, "ddim", spacing="leading")) - limit).abs().max()
        assert (mine - limit).abs().max() < far  # of higher order than DDIM


def test_fast_solvers_draw_pictures(model):
    small = small_panel(2)
    result = run_method(model, small, "teacher-2-dpm++")
    assert result.evaluations == 4 and result.images.shape == small.images.shape
    assert reference_of(resolve_methods(["teacher-50-unipc", "teacher-4"], 2.0)) == "teacher-4"


def test_fast_solvers_without_diffusers(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match="not installed"):
        make_scheduler(parse_method("teacher-4-unipc"), NoiseSchedule.scaled_linear())


@pytest.mark.parametrize("command", [evaluate, ablate])
def test_more_lines_than_fit_in_memory_are_refused_at_once(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Panel, "build", lambda **_: pytest.fail("the panel was begun"))
    for lines, words in (("10001", "at most 10,000, not 10,001: all pictures"), ("many", "a whole number, not 'many'")):
        assert command.main(["--lines", lines, "--output", str(tmp_path / "out")]) == 2
        assert f"error: argument --lines: must be {words}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_command(model, teacher, tmp_path, capsys):
    folder = save_adapter(model, tmp_path / "adapter")
    command = ["--adapter", str(folder), "--lines", "2", "--methods", "teacher-2", "student-1"]
    command += ["--config", str(teacher / "micro.yaml"), "--ckpt", str(teacher / "micro.safetensors")]
    command += ["--output", str(tmp_path / "out")]
    assert evaluate.main(command) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["methods"]) == ["teacher-2", "student-1"] and report["panel"]["lines"] >= 2
    for parameter in (state := adapter_state(model)).values():
        parameter.data.mul_(2)
    try:  # and by the adapter of another training seed; the report in the folder is replaced, being its own
        other = save_adapter(model, tmp_path / "other")
    finally:
        for parameter in state.values():
            parameter.data.div_(2)
    assert evaluate.main(["--adapter", str(folder), str(other), f"x0={folder}", *command[2:]]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["methods"]) == ["teacher-2", "student-1", "student-1@2", "student-1@x0"]
    distances = [report["methods"][name]["same_noise"] for name in ("student-1", "student-1@2", "student-1@x0")]
    assert distances[0] == distances[2] != distances[1]
    capsys.readouterr()
