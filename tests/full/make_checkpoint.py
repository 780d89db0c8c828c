"""Writes a checkpoint of full size with made-up weights: every key of the published one, and nothing learnt.

    python tests/full/make_checkpoint.py made_up.ckpt --dtype fp16

Tensors live in a scratch file beside the target while they are saved, so memory stays small; twice the size of
the checkpoint (3 GB in fp16, 6 GB in fp32) is needed on disk until the end.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anytext_lcm.model.anytext2 import AnyText2, schedule_buffers

FULL = Path(__file__).parents[2] / "models_yaml" / "anytext2_sd15.yaml"
NUMPY = {"fp16": np.float16, "fp32": np.float32}
POOL = 1 << 22  # normals drawn once; each tensor reads them from a place of its own


def _fill(key: str, out: np.ndarray, pool: np.ndarray, offset: int) -> None:
    """Fills a tensor so that signals neither vanish nor explode on their way through the network.

    pool: normals, POOL of them twice in a row, so that every offset below POOL has POOL after it.
    """
    if out.ndim < 2:
        out[...] = 1 if key.endswith((".weight", "running_var")) else 0  # normalisation
        return
    scale = math.sqrt(1 / math.prod(out.shape[1:]))
    flat = out.reshape(-1)
    for start in range(0, flat.size, POOL):
        part = flat[start : start + POOL]
        np.multiply(pool[offset : offset + part.size], scale, out=part, casting="same_kind")


def make_checkpoint(path: str | Path, dtype: str = "fp16", wrap: bool = True, seed: int = 0) -> int:
    """A pickled checkpoint in dtype (fp16 or fp32), under `state_dict` if wrap. Returns the number of keys."""
    path = Path(path)
    shapes = {k: (tuple(v.shape), v.dtype) for k, v in AnyText2.from_config(FULL, "meta").state_dict().items()}
    scratch = path.with_suffix(".scratch")
    total = sum(math.prod(shape) for shape, kind in shapes.values() if kind.is_floating_point)
    store = np.memmap(scratch, NUMPY[dtype], "w+", shape=(total,))
    rng = np.random.default_rng(seed)
    pool = np.tile(rng.standard_normal(POOL, dtype=np.float32), 2)
    exact = schedule_buffers(1000, 0.00085, 0.012)
    state: dict[str, Tensor] = {}
    try:
        position = 0
        for key, (shape, kind) in shapes.items():
            if not kind.is_floating_point:
                state[key] = torch.zeros(shape, dtype=kind)
                continue
            size = math.prod(shape)
            view = store[position : position + size].reshape(shape)
            position += size
            if key in exact:
                view[:] = exact[key].numpy()
            else:
                _fill(key, view, pool, int(rng.integers(POOL)))
            state[key] = torch.from_numpy(view)
        torch.save({"state_dict": state} if wrap else state, path)
    finally:
        state.clear()
        del store
        scratch.unlink()
    return len(shapes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="file to write, usually .ckpt")
    parser.add_argument("--dtype", choices=NUMPY, default="fp16")
    parser.add_argument("--bare", action="store_true", help="leave the 'state_dict' wrapper out")
    arguments = parser.parse_args()
    count = make_checkpoint(arguments.path, arguments.dtype, not arguments.bare)
    print(f"{count} keys, {Path(arguments.path).stat().st_size / 1e9:.2f} GB in {arguments.path}")
