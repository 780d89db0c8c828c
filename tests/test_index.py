"""Which JSON an index belongs to: its own path and content, here, in another process, and after a replacement."""

import json
import os
import pickle

import pytest
import torch
from PIL import Image

from anytext_lcm.data import index as index_module
from anytext_lcm.data.anyword import AnyWordDataset, ReadingRules
from anytext_lcm.data.batch import collate
from anytext_lcm.data.index import index_folder, open_index

RULES = ReadingRules(image_size=64, max_lines=1, jitter=False)
QUAD = [[8, 16], [56, 16], [56, 40], [8, 40]]


def write_set(path, text, count):
    """A JSON of `count` records with a picture and one line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64)).save(path.parent / "a.png")
    record = {
        "img_name": "a.png",
        "caption": text,
        "annotations": [{"polygon": QUAD, "text": text, "language": "Latin"}],
    }
    path.write_text(json.dumps({"data_root": ".", "data_list": [record] * count}))
    return path


def texts(dataset):
    return [dataset[i]["texts"][0] for i in range(len(dataset))]


@pytest.fixture
def two_sets(tmp_path):
    """Two JSONs of one name, size and time of change, with indices in one folder."""
    paths = [write_set(tmp_path / name / "data.json", text, 3) for name, text in (("a", "OPEN"), ("b", "SHUT"))]
    for path in paths:
        os.utime(path, ns=(10**18, 10**18))
    assert paths[0].stat().st_size == paths[1].stat().st_size
    return paths, tmp_path / "indices"


def test_jsons_of_one_name_keep_their_own_records(two_sets, monkeypatch):
    paths, folder = two_sets
    wanted = ["OPEN"] * 3 + ["SHUT"] * 3
    dataset = AnyWordDataset(paths, rules=RULES, index_dir=folder)
    assert texts(dataset) == texts(pickle.loads(pickle.dumps(dataset))) == wanted
    monkeypatch.setattr(index_module, "build_index", lambda *_: pytest.fail("an index was built again"))
    assert texts(AnyWordDataset(paths, rules=RULES, index_dir=folder)) == wanted
    assert texts(AnyWordDataset(paths[::-1], rules=RULES, index_dir=folder)) == wanted[::-1]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_are_not_forked_read_the_same(two_sets, method):
    paths, folder = two_sets
    dataset = AnyWordDataset(paths, rules=RULES, index_dir=folder)
    loader = torch.utils.data.DataLoader(dataset, 3, num_workers=1, collate_fn=collate, multiprocessing_context=method)
    assert [text for batch in loader for [text] in batch["texts"]] == texts(dataset)


def test_names_that_differ_in_their_ending_alone(tmp_path):
    one, other = write_set(tmp_path / "data.json", "OPEN", 1), write_set(tmp_path / "data.txt", "SHUT", 1)
    for folder in (None, tmp_path / "indices"):
        dataset = AnyWordDataset([one, other], rules=RULES, index_dir=folder)
        assert texts(pickle.loads(pickle.dumps(dataset))) == ["OPEN", "SHUT"]


@pytest.mark.parametrize("replaced", [True, False])
def test_a_json_of_equal_size_and_time_is_read_again(tmp_path, replaced):
    path = write_set(tmp_path / "data.json", "OPEN", 2)
    os.utime(path, ns=(10**18, 10**18))
    assert open_index(path)[0].caption == "OPEN"
    new = write_set(tmp_path / "new.json", "SHUT", 2)
    if replaced:
        os.utime(new, ns=(10**18, 10**18))
        os.replace(new, path)
    else:
        path.write_bytes(new.read_bytes())
        os.utime(path, ns=(10**18, 10**18))
    assert open_index(path)[0].caption == "SHUT"


def test_a_copy_with_its_index_is_not_built_again(tmp_path, monkeypatch):
    path = write_set(tmp_path / "data.json", "OPEN", 2)
    open_index(path)
    path.touch()
    monkeypatch.setattr(index_module, "build_index", lambda *_: pytest.fail("an index was built again"))
    assert open_index(path)[0].caption == "OPEN"


def test_an_index_that_was_rebuilt_is_not_taken_for_the_one_that_was_sent(tmp_path):
    path = write_set(tmp_path / "data.json", "OPEN", 2)
    sent = pickle.dumps(open_index(path))
    write_set(path, "SHUT", 2)
    open_index(path)
    with pytest.raises(ValueError, match="was rebuilt while it was in use; start again"):
        pickle.loads(sent)


@pytest.mark.parametrize(
    "change", [{"kept": "2"}, {"kept": 3}, {"kept": True}, {"problems": []}, {"records": None}], ids=str
)
def test_an_index_that_says_something_else_is_built_again(tmp_path, change):
    path = write_set(tmp_path / "data.json", "OPEN", 2)
    about = open_index(path).folder / "about.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | change))
    assert len(open_index(path)) == 2 and open_index(path).about.problems == {}


@pytest.mark.parametrize("name", ["about.json", "records.arrow", "problems.arrow"])
def test_a_damaged_index_is_built_again(tmp_path, name):
    path = write_set(tmp_path / "data.json", "OPEN", 2)
    damaged = open_index(path).folder / name
    if name == "problems.arrow":
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[:20])
    index = open_index(path)
    assert index[1].caption == "OPEN" and index.problems() == []


def test_what_is_out_of_date_is_swept(tmp_path):
    """The folder of a killed build, and the index as it was named before; another JSON's stays."""
    path = write_set(tmp_path / "data.json", "OPEN", 2)
    (tmp_path / ".data.json.index.k1ll3d__").mkdir()
    (tmp_path / ".data.json.index.k1ll3d__" / "records.arrow").write_bytes(b"half")
    former = tmp_path / "data.index"
    former.mkdir()
    (former / "about.json").write_text(json.dumps({"version": 1, "source": "data.txt"}))
    (former / "records.arrow").touch()
    open_index(path)
    assert former.exists()
    write_set(path, "SHUT", 2)
    (former / "about.json").write_text(json.dumps({"version": 1, "source": "data.json"}))
    open_index(path)
    left = {entry.name for entry in tmp_path.iterdir()}
    assert left == {"a.png", "data.json", "data.json.index", "data.json.index.lock"}
    assert index_folder(path) == tmp_path / "data.json.index"
