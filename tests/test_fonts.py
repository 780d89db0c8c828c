"""Font files that are none: one sentence, whatever is wrong with them and whichever way they come in."""

import json

import numpy as np
import pytest
from PIL import Image

from anytext_lcm.data import __main__ as data_command
from anytext_lcm.data.anyword import ReadingRules
from anytext_lcm.data.batch import Line, build_conditioning
from anytext_lcm.data.fonts import PLAIN_FONT, DrawingError, check_fonts, font_path
from anytext_lcm.judging.benchmark_set import check_font
from anytext_lcm.model.networks import EMBEDDED_CONFIG
from anytext_lcm.training.data_order import build_dataset
from anytext_lcm.training.settings import TrainSettings

QUAD = [[8, 8], [120, 8], [120, 60], [8, 60]]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * b"0" + b"\nsize 757076\n"
HTML = b"<!DOCTYPE html><html><head><title>404</title></head><body>Not found</body></html>"


def broken_fonts():
    whole = font_path(PLAIN_FONT).read_bytes()
    found = {"empty": b"", "lfs": LFS, "html": HTML, "zeros": bytes(5000), "two bytes": whole[:2]}
    found |= {f"cut at {share}": whole[: int(len(whole) * share)] for share in (0.001, 0.01, 0.3, 0.6, 0.9, 0.99)}
    return found


@pytest.mark.parametrize("kind", broken_fonts())
def test_a_file_that_is_no_font_is_refused_in_words(kind, tmp_path, capsys):
    path, content = tmp_path / "broken.ttf", broken_fonts()[kind]
    path.write_bytes(content)
    line = {"polygon": QUAD, "text": "Word", "language": "Latin", "valid": True}
    record = {"img_name": "1.png", "caption": "a wall", "annotations": [line]}
    (tmp_path / "data.json").write_text(json.dumps({"data_root": ".", "data_list": [record]}))
    Image.new("RGB", (64, 64)).save(tmp_path / "1.png")
    records, config = (str(tmp_path / "data.json"),), str(EMBEDDED_CONFIG)
    settings = TrainSettings(config=config, output_dir="out", data_list=records, fonts=(str(path),))
    for use in (
        lambda: check_fonts([path]),
        lambda: ReadingRules(fonts=(PLAIN_FONT, path)),
        lambda: build_dataset(settings),
        lambda: check_font([], path),
        lambda: build_conditioning([Line("Word", np.array(QUAD))], (128, 128), 1, font=path),
        lambda: build_conditioning([Line("Word", np.array(QUAD), hint_font=path)], (128, 128), 1),
    ):
        with pytest.raises(ValueError, match="Font .*broken.ttf cannot be read"):
            use()
    options = ["preview", "--data_list", str(tmp_path / "data.json"), "--fonts", str(path)]
    assert data_command.main([*options, "--output", str(tmp_path / "sheet.png")]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "broken.ttf cannot be read" in printed
    assert not (tmp_path / "sheet.png").exists()


def test_damage_within_a_font_is_a_drawing_error_at_worst(tmp_path):
    """Bytes overwritten anywhere: the font is refused, a line is refused, or it is drawn."""
    whole, rng, refused = font_path(PLAIN_FONT).read_bytes(), np.random.default_rng(0), 0
    for number in range(60):
        content, start = bytearray(whole), int(rng.integers(0, 2000 if number % 2 else len(whole)))
        content[start : start + 400] = rng.bytes(400)
        path = tmp_path / f"{number}.ttf"
        path.write_bytes(content)
        try:
            check_fonts([path])
            build_conditioning([Line("Word", np.array(QUAD), hint_font=path)], (128, 128), 1, font=path)
        except ValueError as error:  # a DrawingError is one
            refused += 1
            assert path.name in str(error) or isinstance(error, DrawingError)
    assert 0 < refused < 60
