"""Writing a data set and reading it back, and the command that looks, writes and measures."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from anytext_lcm.data import __main__ as command
from anytext_lcm.data import benchmark
from anytext_lcm.data.anyword import AnyWordDataset, ReadingRules
from anytext_lcm.data.batch import FIELDS, TEXT_FIELDS, TEXT_PHRASES, collate, validate
from anytext_lcm.data.convert import record_of, write_anyword
from anytext_lcm.data.index import ROWS, RecordIndex
from anytext_lcm.data.index_memory import index_memory
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.data.packed import expand
from anytext_lcm.figures.contact_sheet import GAP, HEAD, LABEL


@pytest.mark.parametrize("edit_share", [0.0, 1.0])
def test_written_and_read_back_a_batch_is_the_same(tmp_path, edit_share):
    """Every field, byte for byte; the reader is told to draw nothing that the writer did not."""
    mock = MockDataset(6, seed=3, split="test", edit_share=edit_share, hint_share=0)
    path = write_anyword(mock, tmp_path / "set")
    rules = ReadingRules(
        image_size=128,
        max_lines=2,
        edit_share=edit_share,
        hint_share=0,
        jitter=False,
        caption_words=0,
        phrases=TEXT_PHRASES[:1],
    )
    read = AnyWordDataset(path, rules=rules, strict=True)
    assert len(read) == 6
    own = collate([mock[i] for i in range(6)])
    back = expand(collate([read[i] for i in range(6)]))
    validate(back)
    for name in FIELDS:
        if name != "glyphs":
            assert torch.equal(back[name], own[name]), name
    for name in set(TEXT_FIELDS) - {"polygons"}:
        assert back[name] == own[name], name
    assert str(back["polygons"]) == str(own["condition_polygons"])
    # A coloured glyph loses its faintest pixels, as upstream's do; the others are the same.
    same = back["glyphs"] == own["glyphs"]
    assert (back["glyphs"][~same] == 0).all() and (own["glyphs"][~same] <= 12).all()


def test_writing_is_whole_or_not_at_all(tmp_path):
    class Breaks(MockDataset):
        def __getitem__(self, index):
            if index == 2:
                raise RuntimeError("the disk is full")
            return super().__getitem__(index)

    with pytest.raises(RuntimeError):
        write_anyword(Breaks(3), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="'gif' is unknown: choose png or jpg"):
        write_anyword(MockDataset(1), tmp_path / "set", image_format="gif")
    with pytest.raises(ValueError, match="ignored regions"):
        record_of(MockDataset(1)[0] | {"inv_mask": np.ones((1, 128, 128), np.uint8)}, "a.png")


def test_preview_of_the_mock_data(tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert command.main(["preview", "--mock", "9", "--count", "2", "--output", str(sheet)]) == 0
    said = capsys.readouterr().out
    assert "mock data: 9 items" in said and all(name in said for name in (*FIELDS, *TEXT_FIELDS))
    assert Image.open(sheet).size == (LABEL + 6 * (128 + GAP) + GAP, HEAD + 2 * (128 + GAP) + GAP)


def test_preview_counts_and_names_what_is_wrong(tmp_path, capsys):
    line = {"polygon": [[4, 20], [60, 20], [60, 44], [4, 44]], "text": "Word", "language": "Latin"}
    records = [
        {"img_name": "a.png", "annotations": [line, line | {"valid": False}]},
        {"img_name": "b.png", "annotations": [line | {"text": 5, "language": "Latin"}, line]},
        "no record",
    ]
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"data_root": ".", "data_list": records}))
    arguments = ["preview", "--data_list", str(path), "--image_size", "64", "--output", str(tmp_path / "s.png")]
    assert command.main([*arguments, "--check_pictures"]) == 0
    said = capsys.readouterr().out
    assert "3 records, 2 kept; 4 lines, at most 2 in a picture; 2 lines ignored; languages Latin 2" in said
    assert "problems record 1, text 1" in said and "record 2, record: it is 'no record'" in said
    assert "pictures that cannot be read: 1 of 2" in said and "record 1, picture" in said
    assert command.main([*arguments, "--strict"]) == 2
    assert "record 1, text: annotation 0: 5" in capsys.readouterr().err


def test_convert_and_preview_by_command(tmp_path, capsys):
    assert command.main(["convert", "--mock", "2", "--output", str(tmp_path / "set"), "--format", "jpg"]) == 0
    assert sorted(p.name for p in (tmp_path / "set" / "imgs").iterdir()) == ["00000000.jpg", "00000001.jpg"]
    dataset = AnyWordDataset(tmp_path / "set" / "data.json", rules=ReadingRules(image_size=128))
    assert dataset[1]["texts"] == MockDataset(2)[1]["texts"]


def test_benchmark_weighs_and_times_items(tmp_path):
    dataset = benchmark.example_set(tmp_path)
    found = benchmark.measure_items(dataset, 2, batch_size=1)
    arrays = [value for name, value in dataset[0].items() if isinstance(value, np.ndarray)]
    assert sum(a.nbytes for a in arrays) / 1e6 <= found["MB"] <= 3
    assert 1 / found["items/s"] == pytest.approx((found["ms to read and make"] + found["ms to collate"]) / 1e3)


def test_benchmark_by_command(capsys):
    assert command.main(["benchmark", "--items", "2", "--records", "100"]) == 0
    said = dict(line.rsplit(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert float(said["records"]) == 100 and float(said["MB on disk"]) > 0 and float(said["items/s"]) > 0


def test_an_index_made_large_reads_as_its_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "ROWS", 64)
    monkeypatch.setattr("anytext_lcm.data.index.ROWS", 64)
    path = benchmark.large_set(tmp_path, 150, lambda _: None)
    index = RecordIndex(tmp_path / "large.json.index")
    assert len(index) == 150 and index[149] == index[21] and index[63].number == 63 and ROWS != 64
    found = index_memory(path, reads=5)
    assert found["records"] == 150 and found["annotations of the last"] == 5 and found["seconds to open"] < 5
