"""The store of shards: whole files or none, several writers, and rows read from disk by whoever asks."""

import json
import multiprocessing
import os
import pickle
import signal

import pytest
import torch
from processes import FORK, finish, start
from safetensors.torch import load_file, save_file

from anytext_lcm.training import shards
from anytext_lcm.training.shards import MANIFEST, Array, Layout, ShardReader, ShardWriter, shard_path

ARRAYS = {"moments": Array(torch.float16, (2, 3)), "checksum": Array(torch.int64)}
SETTINGS = {"autoencoder": "abc", "precision": "fp16"}
LAYOUT = Layout(10, ARRAYS, SETTINGS, shard_rows=4)


def numbers(rows):
    moments = torch.tensor([[[row + i + j / 8 for j in range(3)] for i in range(2)] for row in rows])
    return {"moments": moments, "checksum": torch.tensor([1 << 40 | row for row in rows])}


def fill(folder, rank=0, world=1, layout=LAYOUT):
    writer = ShardWriter(folder, layout)
    for shard in writer.missing(rank, world):
        writer.write(shard, numbers(layout.rows_of(shard)))


@pytest.fixture
def store(tmp_path):
    fill(tmp_path / "store")
    return tmp_path / "store"


def test_rows_come_back_in_their_places(store):
    reader = ShardReader(store)
    assert len(reader) == 10 and LAYOUT.shards == 3 and LAYOUT.bytes == 10 * (2 * 3 * 2 + 8)
    wanted = numbers(range(10))
    for index, row in enumerate(reader):
        assert row["moments"].dtype == torch.float16 and torch.equal(row["moments"], wanted["moments"][index].half())
        assert row["checksum"] == wanted["checksum"][index]
    assert torch.equal(torch.stack([row["checksum"] for row in reader]), wanted["checksum"])
    assert list(reader.row(3, "checksum")) == ["checksum"]
    assert load_file(shard_path(store, 2))["moments"].shape == (2, 2, 3)  # any reader of safetensors gets them
    with pytest.raises(IndexError):
        reader.row(10)


def test_processes_write_files_of_their_own(tmp_path):
    store = tmp_path / "store"
    assert [ShardWriter(store, LAYOUT).missing(rank, 2) for rank in range(2)] == [[0, 2], [1]]
    assert finish([start(fill, store, rank, 2) for rank in range(2)]) == [0, 0]
    assert torch.equal(torch.stack([row["checksum"] for row in ShardReader(store)]), numbers(range(10))["checksum"])


def killed_while_writing(folder):
    writer = ShardWriter(folder, LAYOUT)
    writer.write(1, numbers(LAYOUT.rows_of(1)))

    def save(state, path):
        path.write_bytes(b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)

    shards.write_state_dict = save  # in this process alone
    writer.write(0, numbers(LAYOUT.rows_of(0)))


def test_a_killed_run_goes_on_and_its_half_file_is_swept(tmp_path):
    store = tmp_path / "store"
    process = start(killed_while_writing, store)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    [left] = store.glob(".shard-00000.*")
    with pytest.raises(ValueError, match=r"is not complete: shard-00000.safetensors is missing"):
        ShardReader(store)
    before = shard_path(store, 1).stat().st_mtime_ns
    mine = store / ".shard-00000.mine.safetensors"
    mine.touch()
    writer = ShardWriter(store, LAYOUT)
    assert writer.missing() == [0, 2] and not left.exists() and mine.exists()
    fill(store)
    assert len(ShardReader(store)) == 10 and shard_path(store, 1).stat().st_mtime_ns == before


def test_numbers_that_are_not_finite_are_refused_with_their_file(store):
    path = shard_path(store, 1)
    state = load_file(path)
    state["moments"][2, 0, 0] = torch.nan
    save_file(state, path)
    reader = ShardReader(store)
    reader.row(5)
    with pytest.raises(
        ValueError, match=f"Row 6 of .*{path.name} has numbers in 'moments' that are not finite; delete"
    ):
        reader.row(6)


@pytest.mark.parametrize("change", [{"precision": "fp32"}, {"autoencoder": "xyz"}, {"more": 1}])
def test_another_run_is_refused(store, change):
    with pytest.raises(ValueError, match="was computed with .* now it is .*; name another folder, or delete") as error:
        ShardWriter(store, Layout(10, ARRAYS, SETTINGS | change, 4))
    assert next(iter(change)) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="with rows 10, now it is 11"):
        ShardWriter(store, Layout(11, ARRAYS, SETTINGS, 4))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds other files"):
        ShardWriter(tmp_path, LAYOUT)
    with pytest.raises(ValueError, match="is a file"):
        ShardWriter(tmp_path / "thesis.txt", LAYOUT)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(FileNotFoundError, match="holds no store"):
        ShardReader(tmp_path)


def test_a_truncated_file_is_named_and_written_again(store):
    path = shard_path(store, 1)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"shard-00001.safetensors is truncated: it has \d+ bytes instead of \d+"):
        ShardReader(store)
    assert ShardWriter(store, LAYOUT).missing() == [1]
    for content in (b"", b"\xff" * 64, shard_path(store, 2).read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="shard-00001.safetensors (cannot be read|holds other arrays)"):
            ShardReader(store)
    fill(store)
    assert torch.equal(ShardReader(store).row(5)["moments"], numbers([5])["moments"][0].half())


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"[" * 99_999, b'{"format": 2}', b'{"format": 1, "rows": "x"}', b"\xff"]
)
def test_a_damaged_manifest_is_a_sentence(store, content):
    (store / MANIFEST).write_bytes(content)
    for open_again in (lambda: ShardReader(store), lambda: ShardWriter(store, LAYOUT)):
        with pytest.raises(ValueError, match=r"manifest.json cannot be read") as error:
            open_again()
        assert "\n" not in str(error.value)


def test_the_manifest_is_plain_json(store):
    about = json.loads((store / MANIFEST).read_text())
    assert about["arrays"] == {"moments": ["F16", [2, 3]], "checksum": ["I64", []]} and about["settings"] == SETTINGS


def test_other_arrays_are_not_written(tmp_path):
    writer = ShardWriter(tmp_path / "store", LAYOUT)
    with pytest.raises(ValueError, match="Shard 2 needs arrays"):
        writer.write(2, numbers(range(4)))
    assert writer.missing() == [0, 1, 2]


def tell(reader, index, sender):
    sender.send(float(reader.row(index)["moments"].sum()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same(store, method):
    """Of a reader that has files open already, as that of a DataLoader's workers."""
    reader = ShardReader(store)
    wanted = float(reader.row(6)["moments"].sum())
    assert len(pickle.dumps(reader)) < 2000
    context = FORK if method == "fork" else multiprocessing.get_context(method)
    receiver, sender = context.Pipe()
    process = context.Process(target=tell, args=(reader, 6, sender))
    process.start()
    assert receiver.poll(120) and receiver.recv() == wanted
    process.join()
