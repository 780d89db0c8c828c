"""A training says what of its data cannot be used, and does not start when nothing is left."""

import json

import pytest
from PIL import Image

from anytext_lcm import train
from anytext_lcm.training.data_order import build_dataset
from anytext_lcm.training.settings import TrainSettings

QUAD = [[8, 16], [56, 16], [56, 40], [8, 40]]
FLAT = [10, 10, 100, 40]


def write_set(folder, *lines):
    """A JSON of one record per line, given as its annotation."""
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    records = [{"img_name": "a.png", "caption": "a wall", "annotations": [line]} for line in lines]
    path = folder / "data.json"
    path.write_text(json.dumps({"data_root": ".", "data_list": records}), encoding="utf-8")
    return path


def line(polygon=QUAD, text="Word", **more):
    return {"polygon": polygon, "text": text, "language": "Latin", **more}


def settings(teacher, path):
    return TrainSettings(str(teacher / "micro.yaml"), "out", data_list=(str(path),))


def test_counts_and_an_example_of_each_kind(teacher, tmp_path, capsys, monkeypatch):
    path = write_set(tmp_path, line(), line(FLAT), line("flat"), line(text=5))
    assert len(build_dataset(settings(teacher, path))) == 4
    assert capsys.readouterr().err.splitlines() == [
        f"{path}: problems in 4 records: polygon 2, text 1",
        f"{path}, record 1, polygon: annotation 0: a point is 10",
        f"{path}, record 3, text: annotation 0: 5",
    ]
    monkeypatch.setenv("RANK", "1")
    build_dataset(settings(teacher, path))
    assert capsys.readouterr().err == ""


def test_sound_data_need_no_word(teacher, tmp_path, capsys):
    build_dataset(settings(teacher, write_set(tmp_path, line(), line())))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "lines, words",
    [
        ([line(FLAT)] * 4, "record 0, polygon: annotation 0: a point is 10"),
        ([line(text="")], "record 0, text"),
        ([line(valid=False)] * 2, "no record has an annotation with a text that is valid"),
        ([line([])], "no record has an annotation"),
        ([line(text="\u6c49\u8bed", language="Chinese")], "can be drawn: No font of DejaVuSans.ttf has"),
    ],
)
def test_data_without_a_usable_line_are_refused(lines, words, teacher, tmp_path, capsys, monkeypatch):
    path = write_set(tmp_path, *lines)
    monkeypatch.chdir(tmp_path)
    command = ["--config", str(teacher / "micro.yaml"), "--teacher_ckpt", str(teacher / "micro.safetensors")]
    assert train.main([*command, "--output_dir", "out", "--data_list", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "No line of text of" in said and words in said
    assert not (tmp_path / "out").exists()
