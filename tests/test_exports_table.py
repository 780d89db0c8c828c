"""What exported files draw in other tools' samplers: the rows of notebooks/exports.py are what they are called."""

import json
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from anytext_lcm.adapter import formats
from anytext_lcm.adapter.lora import SHIPPED_ADAPTER, load_adapter
from anytext_lcm.model.loading import load_embedded_teacher

sys.path.insert(0, str(Path(__file__).parents[1] / "notebooks"))

import exports  # noqa: E402


@pytest.mark.slow
def test_every_file_is_drawn_by_each_sampler(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exports, "TEACHER_STEPS", 2)
    monkeypatch.setattr(exports, "UPSTREAM_STEPS", 5)
    assert exports.main(["--prompts", "2", "--device", "cpu", "--output", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "exports.json").read_text())
    rows = report["rows"]
    drawn = [(row["loaded"].partition(",")[0], row["method"]["sampler"], row["evaluations"]) for row in rows]
    assert drawn == [
        ("no adapter", "ddim", 4),
        ("no adapter", "lcm", 4),
        ("peft", "lcm", 4),
        ("merged", "lcm", 4),
        ("merged", "ddim", 4),
        ("merged", "ddim", 8),
        ("merged", "ddim", 10),
        ("UNet alone", "lcm", 4),
        ("UNet alone", "ddim", 4),
    ]
    assert all(
        row["method"]["spacing"] == "leading"
        for row in rows
        if row["loaded"] == "merged" and "DDIM" in row["method"]["name"]
    )
    peft, merged, alone = rows[2], rows[3], rows[7]
    assert merged["same_noise"]["rmse"] == pytest.approx(peft["same_noise"]["rmse"], rel=1e-2)  # the same pictures
    off = [abs(row["same_noise"]["rmse"] - peft["same_noise"]["rmse"]) for row in (merged, alone)]
    assert off[1] > 10 * off[0]  # the layers that the UNet's file lacks show, the merge does not
    path = formats.write_kohya(load_adapter(load_embedded_teacher("cpu"), SHIPPED_ADAPTER), tmp_path / "k.safetensors")
    with safe_open(path, "pt") as file:
        known = sum(key.endswith("lora_up.weight") for key in file.keys())
    assert alone["loaded"].startswith(f"UNet alone, {known} of ")
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.count("\n| ") == 11 and table.strip() in capsys.readouterr().out


def test_it_needs_an_adapter(capsys, tmp_path):
    assert exports.main(["--adapter", "none", "--output", str(tmp_path)]) == 2
    assert "nothing to export" in capsys.readouterr().err
