"""The demo: distils, draws, judges, and leaves either all of its folder or what was there before."""

import json
import re
import shlex
from pathlib import Path

import pytest

from anytext_lcm import demo, sample
from anytext_lcm.adapter.lora import attach, load_adapter, save_adapter
from anytext_lcm.model import networks
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.training import recipes

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def embedded(teacher, monkeypatch):
    """The micro network in the place of the embedded one; it draws 128 px too."""
    monkeypatch.setattr(networks, "EMBEDDED_CONFIG", teacher / "micro.yaml")
    monkeypatch.setattr(networks, "EMBEDDED_CHECKPOINT", teacher / "micro.safetensors")
    monkeypatch.setattr(demo, "METHODS", ("teacher-2", "student-1"))


def instead(folder, steps, seed=0, processes=None):
    """What `distil` leaves behind, in no time."""
    checkpoint = folder / f"checkpoint-{steps}"
    save_adapter(attach(AnyText2.from_config(networks.EMBEDDED_CONFIG), 2, 2), checkpoint)
    (folder / "logs").mkdir()
    return checkpoint


def test_the_folder_holds_everything(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recipes, "distil", instead)
    output = tmp_path / "demo"
    assert demo.main(["--output", str(output), "--steps", "3", "--prompts", "2"]) == 0
    names = ["adapter", "chart.png", "grid.png", "logs", "report.json", "table.md", "zoom.png"]
    assert sorted(path.name for path in output.iterdir()) == names
    assert list(tmp_path.iterdir()) == [output]
    report = json.loads((output / "report.json").read_text())
    assert report["settings"]["adapter_steps"] == 3 and report["panel"]["prompts"] == 2
    printed = capsys.readouterr().out
    assert [name for name in ("teacher-2", "student-1") if f"\n{name} " in printed] == ["teacher-2", "student-1"]
    assert all(str(output / name) in printed for name in ("grid.png", "table.md"))
    command = next(line for line in printed.splitlines() if "-m anytext_lcm.sample" in line)
    given = sample.build_parser().parse_args(shlex.split(command)[3:])
    assert Path(given.adapter) == output / "adapter" and given.prompt and len(given.line) == 1
    load_adapter(AnyText2.from_config(networks.EMBEDDED_CONFIG), output / "adapter")


def test_four_numbers_of_teacher_and_student():
    """Of the stored comparison, as the documents have them; of objects, of which it may know nothing, two of ours."""
    report = json.loads((ROOT / "notebooks" / "measured" / "comparison.json").read_text(encoding="utf-8"))
    objects = {"teacher-50": 0.75, "student-1": 0.5}
    for method, share in objects.items():
        report["methods"][method]["objects_obeyed"] = {"value": share}
    lines = demo.closing(report, ROOT / "outputs", 3.0).splitlines()
    for method, share in objects.items():
        row = report["methods"][method]
        faster, near = row["speedup_cores"]["denoise"], row["distribution"]["kernel"]["value"]
        [line] = [line for line in lines if line.startswith(f"{method} ")]
        read = f"{row['accuracy']['value']:.2f}"
        assert re.search(rf" {faster:.1f} +{read} \[.*\] +{share:.2f} +{near:.2f}$", line), line


def test_a_failed_run_leaves_the_former_results(tmp_path, monkeypatch, capsys):
    def fails(folder, *_):
        folder.mkdir()
        raise ValueError("The training failed.")

    output = tmp_path / "demo"
    output.mkdir()
    (output / "report.json").write_text("former")
    monkeypatch.setattr(recipes, "distil", fails)
    assert demo.main(["--output", str(output), "--prompts", "2"]) == 2
    assert capsys.readouterr().err == "error: The training failed.\n"
    assert (output / "report.json").read_text() == "former"
    assert list(tmp_path.iterdir()) == [output]


def test_missing_teacher_is_said_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(networks, "EMBEDDED_CHECKPOINT", tmp_path / "none.safetensors")
    monkeypatch.setattr(recipes, "distil", None)
    assert demo.main(["--output", str(tmp_path / "demo"), "--prompts", "2"]) == 2
    assert "build_teacher" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.full)])
def test_distilling(tmp_path, monkeypatch, processes):
    monkeypatch.setattr(recipes, "DEFAULTS", recipes.DemoSettings(batch=2, rank=4, pictures=8))
    checkpoint = recipes.distil(tmp_path / "training", 1, processes=processes)
    assert (tmp_path / "training" / "logs").is_dir()
    load_adapter(AnyText2.from_config(networks.EMBEDDED_CONFIG), checkpoint)
