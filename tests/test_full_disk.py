"""A disk that is full: every writer of weights says so in a sentence that a command reports, and leaves nothing."""

import resource
import sys

import pytest
import torch
from micro_network import micro_network
from processes import finish, start

from anytext_lcm.adapter import formats
from anytext_lcm.adapter.lora import attach, save_adapter
from anytext_lcm.adapter.mix import write_merged
from anytext_lcm.command import in_words
from anytext_lcm.teacher.fitting import save
from anytext_lcm.training.shards import Array, Layout, ShardWriter

LIMIT = 4000  # bytes of a file, which is all that a process may write


def shards(model, path):
    writer = ShardWriter(path / "store", Layout(2, {"a": Array(torch.float32, (4000,))}, {}, 2))
    writer.write(0, {"a": torch.zeros(2, 4000)})


WRITERS = {
    "adapter": lambda model, path: save_adapter(model, path / "adapter"),
    "kohya": lambda model, path: formats.write_kohya(model, path / "kohya.safetensors"),
    "diffusers": lambda model, path: formats.write_diffusers(model, path / "diffusers.safetensors"),
    "merged": lambda model, path: write_merged(model, path / "merged.safetensors"),
    "merged as upstream": lambda model, path: write_merged(model, path / "merged.ckpt"),
    "shard": shards,
    "state of the teacher's training": lambda model, path: save(path / "state.pt", model.state_dict()),
}


def fails(write, model, path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
    try:
        write(model, path)
    except OSError as error:
        sys.exit(0 if "could not be written" in in_words(error) else 2)
    sys.exit(3)


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_said(name, tmp_path):
    process = start(fails, WRITERS[name], attach(micro_network(), 8, 8), tmp_path)
    assert finish([process]) == [0]
    assert [path.name for path in tmp_path.rglob("*") if path.name not in ("store", "manifest.json")] == []
