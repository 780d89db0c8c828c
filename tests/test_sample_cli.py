"""The command that draws one picture: what it writes, and one sentence for what it cannot do."""

import numpy as np
import pytest
from PIL import Image

from anytext_lcm import pipeline, sample
from anytext_lcm.data.mock import COLORS
from anytext_lcm.lora import attach, save_adapter
from anytext_lcm.model.anytext2 import AnyText2

LINE = "HELLO@10,40,118,80#yellow"


@pytest.fixture
def embedded(monkeypatch):
    """Random weights in place of the embedded ones, and how often they were asked for."""
    asked = []

    def fresh(config, checkpoint=None, device=None):
        import torch

        asked.append(config)
        torch.manual_seed(3)
        return AnyText2.from_config(pipeline.EMBEDDED_CONFIG)

    monkeypatch.setattr(sample, "load_chosen", fresh)
    return asked


def run(*arguments):
    return sample.main(["--prompt", "a red background", *map(str, arguments)])


def test_teacher_and_student_pictures(embedded, tmp_path, capsys):
    model = attach(AnyText2.from_config(pipeline.EMBEDDED_CONFIG), rank=2, alpha=2)
    folder = save_adapter(model, tmp_path / "adapter")
    pictures = []
    for name, options in (
        ("t", ["--adapter", "none", "--steps", 2]),
        ("s", ["--adapter", folder, "--steps", 1]),
        ("again", ["--adapter", folder, "--steps", 1]),
    ):
        target = tmp_path / "new" / f"{name}.png"
        assert run("--line", LINE, "--output", target, *options) == 0
        assert capsys.readouterr().out.strip() == str(target)
        pictures.append(np.array(Image.open(target)))
    assert pictures[0].shape == (128, 128, 3)
    assert np.array_equal(pictures[1], pictures[2])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["again.png", "s.png", "t.png"]


def test_editing(embedded, tmp_path):
    Image.new("RGB", (128, 64), (9, 99, 9)).save(tmp_path / "in.png")
    code = run(
        "--line", "HELLO@10,10,118,50", "--image", tmp_path / "in.png", "--height", 64, "--adapter", "none",
        "--steps", 1, "--output", tmp_path / "out.png",
    )  # fmt: skip
    assert code == 0
    assert Image.open(tmp_path / "out.png").size == (128, 64)


@pytest.mark.parametrize(
    "options, words",
    [
        ([], "no line of text"),
        (["--line", "HELLO"], "where it goes"),
        (["--line", "HELLO@1,2,3"], "where it goes"),
        (["--line", "HELLO@80,40,10,80"], "is empty"),
        (["--line", "@10,40,118,80"], "text of a line is empty"),
        (["--line", "HELLO@10,40,118,80#mauve"], "Colour 'mauve' is unknown"),
        (["--line", "x" * 21 + "@10,40,118,80"], "limit is 20"),
        (["--line", "HELLO@10,40,518,80"], "leaves the picture"),
        (["--line", "HELLO@10,40,118,41"], "too small"),
        (["--line", "你好@10,40,118,80"], "no glyph"),
        (["--line", LINE, "--line", LINE, "--line", LINE], "do not fit 2 slots"),
        (["--line", LINE, "--steps", 0], "1 to"),
        (["--line", LINE, "--seed", -1], "seed"),
        (["--line", LINE, "--guidance_scale", "nan"], "guidance scale"),
        (["--line", LINE, "--guidance_scale", "1", "--negative_prompt", "blur"], "no effect"),
        (["--line", LINE, "--adapter", "nowhere"], "no adapter in nowhere"),
        (["--line", LINE, "--width", 100], "multiple of 8"),
        (["--line", LINE, "--font", "nowhere.ttf"], "nowhere.ttf"),
        (["--line", LINE, "--font_hint", "nowhere.ttf"], "nowhere.ttf"),
        (["--line", LINE, "--image", "nowhere.png"], "nowhere.png does not exist"),
        (["--line", LINE, "--image", __file__], "cannot be read"),
        (["--line", LINE, "--output", "picture"], "ending of a picture"),
        (["--line", LINE, "--output", "/dev/null/a.png"], "Nothing can be written"),
        (["--line", LINE, "--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
    ],
)
def test_one_sentence_and_code_2(embedded, options, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("--adapter", "none", *options) == 2
    printed = capsys.readouterr()
    assert words in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert embedded == []  # said before the weights were loaded
    assert list(tmp_path.iterdir()) == []


def test_weights_must_be_named(capsys):
    config = pipeline.EMBEDDED_CONFIG.with_name("anytext2_sd15.yaml")
    with pytest.raises(ValueError, match="--ckpt"):
        pipeline.load_chosen(config, None)
    with pytest.raises(FileNotFoundError, match="nowhere.ckpt"):
        pipeline.load_chosen(pipeline.EMBEDDED_CONFIG, "nowhere.ckpt")


def test_lines_and_colours():
    line = sample.parse_line("a@b#1@0,0,60,0,60,30,0,30##FF8000")
    assert line.text == "a@b#1" and line.color == (255, 128, 0) and line.polygon.shape == (4, 2)
    assert sample.parse_line(LINE).color == COLORS["yellow"]
    assert sample.parse_line("x@1,2,30,40").color is None
    assert sample.parse_line("x@1,2,30,40").polygon.tolist() == [[1, 2], [30, 2], [30, 40], [1, 40]]
