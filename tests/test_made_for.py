"""Which sampling an adapter was made for: what its header says, what is drawn by default, what is said otherwise."""

import json

import numpy as np
import pytest
import torch
from micro_network import SIDE, micro_network
from PIL import Image
from safetensors.torch import save_file

from anytext_lcm import benchmark, evaluate, sample
from anytext_lcm.adapter import lora
from anytext_lcm.adapter.card import facts
from anytext_lcm.adapter.choices import SAMPLERS, MadeFor, made_for, read_made_for
from anytext_lcm.adapter.stored import WEIGHTS_FILE, training_header
from anytext_lcm.drawing.methods import STUDENT_SAMPLERS
from anytext_lcm.judging.compare import draw_all, resolve_methods
from anytext_lcm.judging.panel import Panel
from anytext_lcm.lcm.schedule import lcm_timesteps, phase_edges
from anytext_lcm.training.settings import OBJECTIVES


def test_every_objective_is_made_for_samplers_there_are():
    assert set(SAMPLERS) <= set(STUDENT_SAMPLERS)
    for objective in OBJECTIVES:
        suits = made_for(objective)
        assert set(suits.samplers) <= set(SAMPLERS) and 1 <= suits.steps[0] <= suits.steps[1] <= 50
        assert read_made_for({"objective": objective, "made_for": json.loads(json.dumps(suits.to_json()))}) == suits
    assert made_for("lcm").samplers[0] == made_for("pcm").samplers[0] == "lcm"
    assert made_for("teacher_x0").samplers[0] == "deterministic"
    assert made_for("pcm", 2).steps[0] == 2 and made_for("pcm").steps[0] == 4
    assert made_for("path", 1) == made_for("pcm", 1) == made_for("lcm") != made_for("path")


def test_no_jump_of_the_fewest_steps_crosses_an_edge():
    """Jumps across an edge were never trained; with one phase there is none but the end, and any number of steps."""
    for phases in range(2, 51):
        edges = set(phase_edges(phases).tolist())
        for steps in (made_for("pcm", phases).steps[0], made_for("path", phases).steps[0]):
            starts = [*lcm_timesteps(steps).tolist(), 0]
            assert all(not any(e < t and e > s for e in edges) for t, s in zip(starts, starts[1:], strict=False))


def test_an_older_header_is_read_by_its_objective(tmp_path):
    assert read_made_for({"objective": "lcm"}) == read_made_for({}) == made_for("lcm")
    assert read_made_for({"objective": "pcm", "phases": 8}).steps == (8, 16)
    header = {"objective": "tcd", "made_for": {"samplers": ["lcm"], "steps": [1, 2]}}
    save_file({"w": torch.zeros(1)}, tmp_path / WEIGHTS_FILE, {"anytext_lcm": json.dumps(header)})
    assert read_made_for(training_header(tmp_path)) == MadeFor(("lcm",), (1, 2))


@pytest.mark.parametrize("kept", [5000, 0, -1, None], ids=["cut", "empty", "a byte short", "a pointer"])
def test_the_header_of_a_damaged_file_is_refused_in_a_sentence(tmp_path, kept):
    path = tmp_path / WEIGHTS_FILE
    save_file({"w": torch.zeros(5000)}, path, {"anytext_lcm": "{}"})
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n"
    path.write_bytes(pointer if kept is None else path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{WEIGHTS_FILE} cannot be read: it is truncated or no safetensors file"):
        training_header(tmp_path)


def test_a_folder_in_the_place_of_the_weights_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{WEIGHTS_FILE} does not exist"):
        training_header(tmp_path)
    (tmp_path / WEIGHTS_FILE).mkdir()
    with pytest.raises(ValueError, match=f"{WEIGHTS_FILE} cannot be read: it is no regular file"):
        training_header(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"samplers": ["euler"], "steps": [1, 4]}, {"samplers": [], "steps": [1, 4]}, {"samplers": ["lcm"]}, 7]
)
def test_a_sampling_that_this_version_lacks_is_refused(wrong):
    with pytest.raises(ValueError, match="which is no sampling of this version"):
        read_made_for({"made_for": wrong})


def test_sample_takes_the_sampler_of_the_adapter(capsys):
    def chosen(suits, *flags):
        return sample.choose_method(sample.build_parser().parse_args(flags), suits, 4.0).name

    straight = made_for("teacher_x0")
    assert chosen(straight) == "student-4-deterministic" and chosen(made_for("lcm")) == "student-4"
    assert chosen(None) == "teacher-20" and chosen(straight, "--steps", "16") == "student-16-deterministic"
    assert chosen(made_for("pcm"), "--steps", "16") == "student-16" and capsys.readouterr().err == ""
    assert chosen(straight, "--sampler", "lcm", "--steps", "2") == "student-2"
    said = capsys.readouterr().err
    assert said == (
        "warning: the adapter was made for deterministic or lcm sampling in 4 to 16 steps, not for lcm in 2.\n"
    )
    assert chosen(made_for("lcm"), "--steps", "16") == "student-16" and "1 to 8 steps" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--steps", "0"], ["--steps", "51"], ["--sampler", "gamma", "--gamma", "1.1"]])
def test_what_cannot_be_sampled_is_refused_without_a_warning(flags, capsys):
    with pytest.raises(ValueError, match="not possible|gamma must lie"):
        sample.choose_method(sample.build_parser().parse_args(flags), made_for("lcm"), 4.0)
    assert capsys.readouterr().err == ""


def test_evaluate_warns_of_no_method_beside_one_that_cannot_be(capsys):
    args = evaluate.build_parser().parse_args(["--methods", "student-16", "student-51"])
    with pytest.raises(ValueError, match="51 steps are not possible"):
        evaluate.choose_methods(args, made_for("lcm"))
    assert capsys.readouterr().err == ""


def test_evaluate_draws_what_the_adapter_was_made_for(capsys):
    def chosen(suits, *flags):
        return evaluate.choose_methods(evaluate.build_parser().parse_args(flags), suits)

    students = [name for name in chosen(made_for("teacher_x0")) if "student" in name]
    assert students == [f"student-{n}-deterministic" for n in (1, 2, 4, 8)]
    assert [name for name in chosen(made_for("lcm")) if "student" in name] == [f"student-{n}" for n in (1, 2, 4, 8)]
    assert not any("student" in name for name in chosen(None)) and "teacher-50" in chosen(None)
    assert capsys.readouterr().err == ""
    assert chosen(made_for("tcd"), "--methods", "student-1", "student-4") == ["student-1", "student-4"]
    assert capsys.readouterr().err.count("\n") == 1  # of the first alone
    with pytest.raises(ValueError, match="no student without an adapter"):
        chosen(None, "--methods", "student-4")


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Two adapters of the micro network as the package's: names say nothing, headers do."""
    model = lora.attach(micro_network(), 2, 2)
    for name, suits in (("b", MadeFor(("lcm",), (1, 8))), ("a", MadeFor(("deterministic", "lcm"), (4, 16)))):
        for parameter in lora.adapter_state(model).values():
            parameter.data += 0.05
        header = {"objective": "lcm", "made_for": suits.to_json()}
        lora.save_adapter(model, tmp_path / "assets" / name, {"anytext_lcm": json.dumps(header)})
    monkeypatch.setattr(lora, "SHIPPED_ADAPTER", tmp_path / "assets" / "b")
    return tmp_path / "assets"


def test_the_shipped_adapter_for_the_steps(shipped, teacher, tmp_path, capsys):
    assert [*lora.shipped_adapters()] == [shipped / "b", shipped / "a"]
    chosen = {steps: lora.resolve_adapter("shipped", steps).name for steps in (1, 4, 8, 9, 16, 50)}
    assert chosen == {1: "b", 4: "b", 8: "b", 9: "a", 16: "a", 50: "a"} and lora.resolve_adapter("shipped").name == "b"
    network = ["--config", str(teacher / "micro.yaml"), "--ckpt", str(teacher / "micro.safetensors"), "--device", "cpu"]
    wish = ["--prompt", "a wall", "--line", "cat@4,10,60,40"]

    def drawn(*flags):
        assert sample.main([*network, *wish, "--output", str(tmp_path / "a.png"), *flags]) == 0
        return json.loads(Image.open(tmp_path / "a.png").text["anytext_lcm"])

    assert drawn("--steps", "2")["adapters"][0]["name"] == "b"
    many = drawn("--steps", "16")
    assert many["adapters"][0]["name"] == "a" and many["method"]["name"] == "student-16-deterministic"
    assert "warning" not in capsys.readouterr().err


def test_evaluate_draws_each_method_by_its_own_adapter(shipped):
    model = lora.load_adapter(micro_network(), shipped / "b")
    panel = Panel.build(prompts=2, image_size=SIDE)
    methods = resolve_methods(["student-1", "student-16-deterministic"], 3.0)
    own = {"student-16-deterministic": shipped / "a"}
    both = draw_all(model, panel, methods, "", {}, own_adapters=own).results
    for name, folder in (("student-1", "b"), ("student-16-deterministic", "a")):
        alone = lora.load_adapter(micro_network(), shipped / folder)
        found = draw_all(alone, panel, resolve_methods([name], 3.0), "", {}).results[name]
        assert np.array_equal(both[name].images, found.images)
    other = draw_all(model, panel, methods, "", {}).results["student-16-deterministic"]
    assert not np.array_equal(both["student-16-deterministic"].images, other.images)


def test_the_default_methods_take_the_sampler_of_their_own_adapter(shipped):
    args, found = evaluate.build_parser().parse_args([]), lora.shipped_adapters()
    few = {shipped / "b": MadeFor(("lcm",), (1, 2)), shipped / "a": found[shipped / "a"]}
    names = evaluate.choose_methods(args, MadeFor(("lcm",), (1, 2)), few)
    assert [n for n in names if "student" in n] == [
        "student-1",
        "student-2",
        "student-4-deterministic",
        "student-8-deterministic",
    ]


def test_benchmark_takes_one_of_them(shipped, capsys):
    assert benchmark.main(["--data", "x.json", "--methods", "student-4", "student-16"]) == 2
    assert "student-4, student-16 take different shipped adapters" in capsys.readouterr().err


def test_the_card_says_it():
    training = {"objective": "pcm", "phases": 8, "made_for": made_for("pcm", 8).to_json()}
    sizes = {"rank": 4, "alpha": 4.0, "layers": 2, "parameters": 10}
    rows = facts({"training": training} | sizes)
    assert rows["Objective"] == "pcm, phases 8" and rows["Made for"] == "`--sampler lcm`, 8 to 16 steps"
    assert (
        facts({"training": {"objective": "lcm", "text_factor": 5.0}} | sizes)["Objective"]
        == "lcm, text counted 5 times"
    )
    assert "Made for" not in facts({"training": {}} | sizes)
