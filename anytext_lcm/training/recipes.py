"""The recipe of comparisons, the ablations that change one setting of it, and the shipped adapter's in one call.

The commands show its numbers in their `--help`, so torch is imported in the functions that train.
"""

import os
import socket
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytext_lcm.model import networks

if TYPE_CHECKING:
    from anytext_lcm.model.anytext2 import AnyText2


@dataclass(frozen=True)
class DemoSettings:
    """What fits a few minutes on two cores; the reason stands beside each number."""

    steps: int = 200  # after 300 the pictures were sharper than real ones, and farther away (the diary has the figures)
    batch: int = 8  # pictures an update, over all processes: many small steps beat few large ones here
    loss: str = "l2"  # with Huber fine channels of the latents drifted off, and pictures were sharper than real ones
    learning_rate: float = 3e-5  # with 2e-4 the text was lost after 200 updates, whichever the targets
    warmup: int = 20
    ema: float = 0.98  # at most; it begins low, and after 200 updates is 0.957, an average of about the last 20
    rank: int = 32
    # AnyText2's own groups reach nothing at 16x16 but the control residuals, since the attention is at 8x8; with the
    # rest of the UNet the pictures came nearer to real ones (the diary of 2026-11-29 has the figures).
    targets: tuple[str, ...] = (
        "zero_convs",
        "middle_block_out",
        "writenet_attention",
        "unet_attention",
        "unet_attnx",
        "unet_rest",
    )
    pictures: int = 20_000  # more than are seen, so that none is seen twice
    processes: int = 4  # at most; with one thread each they do not wait for each other


DEFAULTS = DemoSettings()

# In what the shipped adapter and the demo's differ from `recipe`. More steps of pcm do not drift as those of lcm do, so
# it bears a higher rate and longer training (the diary of 2026-11-30 has the figures).
SHIPPED = {"objective": "pcm", "learning_rate": 6e-5}
SHIPPED_STEPS = 600  # updates; the demo's fewer are as good in four steps and worse in one


def recipe(steps: int, processes: int = 1) -> dict[str, Any]:
    """Fields of TrainSettings for `steps` updates on `processes` processes, but for network, folder and seed."""
    return {
        "use_mock_dataset": True,
        "dataset_size": DEFAULTS.pictures,
        "lora_rank": DEFAULTS.rank,
        "lora_alpha": DEFAULTS.rank,
        "lora_targets": DEFAULTS.targets,
        "train_batch_size": DEFAULTS.batch // processes,
        "gradient_accumulation_steps": 1,
        "loss": DEFAULTS.loss,
        "learning_rate": DEFAULTS.learning_rate,
        "lr_warmup_steps": min(DEFAULTS.warmup, steps),
        "max_train_steps": steps,
        "checkpointing_steps": steps,
        "sample_steps": 0,
        "ema_decay": DEFAULTS.ema,
        "mixed_precision": "no",
        "num_processes": processes,
    }


RUNS = (
    "teacher_x0",
    "pcm",
    "tcd",
    "path",
    "path ends",
    "AnyText2's groups",
    "without zero convs",
    "attnx alone",
    "decoder alone",
    "rank 4",
    "rank 16",
    "rank 64",
    "Huber",
    "text counts 5 times",
    "fast control off",
    "cached latents",
)
"""The names of the ablations, see `changes`."""

# Cost of an update in forward passes of the UNet: the teacher's two branches, the student's pass with a backward pass
# of two more, and for `lcm` and its kin the target. A stored path costs its teacher 100 passes and has 50 points, two
# for each, so that `path` costs five where each point is used once. What an adapter's groups cost besides is in the
# measured seconds.
PASSES = {"lcm": 6, "teacher_x0": 5, "pcm": 6, "tcd": 6, "path": 5}
PATH_POINTS = 50


def updates_for(changed: Mapping[str, Any], steps: int) -> int:
    """The number of updates that costs as much as `steps` updates of the recipe."""
    return round(steps * PASSES["lcm"] / PASSES[changed.get("objective", "lcm")])


def paths_for(updates: int, batch: int = DEFAULTS.batch) -> int:
    """The number of paths whose points so many updates use once each."""
    return -(-updates * batch // PATH_POINTS)


def on_paths(folder: str) -> dict[str, Any]:
    """Settings that take the points of training from stored paths instead of from mock pictures."""
    return {"use_mock_dataset": False, "paths": folder}


def changes(
    model: "AnyText2", targets: Sequence[str], latents: str, paths: str, slow: str
) -> dict[str, dict[str, Any]]:
    """{run: settings that differ from the recipe's} of all RUNS.

    latents, paths: folders of the cached ones; slow: yaml of the network without fast control.
    """
    from anytext_lcm.adapter.targets import find_targets, resolve_targets

    trunk = "model.diffusion_model."
    decoder = tuple(
        name for name in resolve_targets(model, targets) if name.startswith((f"{trunk}middle", f"{trunk}output"))
    )
    own = tuple(name for name, found in find_targets(model).items() if found)
    kept = tuple(name for name in targets if name not in ("zero_convs", "middle_block_out"))
    return {
        **{name: {"objective": name} for name in ("teacher_x0", "pcm", "tcd")},
        "path": {"objective": "path"} | on_paths(paths),
        "path ends": {"objective": "path", "phases": 1} | on_paths(paths),
        "AnyText2's groups": {"lora_targets": own},
        "without zero convs": {"lora_targets": kept},
        "attnx alone": {"lora_targets": ("unet_attnx",)},
        "decoder alone": {"lora_targets": decoder},
        **{f"rank {rank}": {"lora_rank": rank, "lora_alpha": rank} for rank in (4, 16, 64)},
        "Huber": {"loss": "huber"},
        # Two ingredients of FlashGlyph: 5 is its own weight of text, and it feeds latents and timestep to WriteNet.
        "text counts 5 times": {"text_factor": 5.0},
        "fast control off": {"config": slow},
        "cached latents": {"latents": latents},
    }


def _processes() -> int:
    """The largest power of two within the cores: it divides the batch."""
    import torch

    from anytext_lcm.drawing import cores

    if torch.cuda.is_available():
        return 1
    return 1 << (min(cores.available_cores(), DEFAULTS.processes).bit_length() - 1)


def _train_rank(rank: int, world: int, port: int, settings: Mapping[str, Any]) -> None:
    """One of the processes that average their gradients; the first one shows progress."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        ACCELERATE_USE_CPU="1",
        OMP_NUM_THREADS="1",
    )
    import torch

    from anytext_lcm.training.loop import run_distillation

    warnings.simplefilter("ignore", FutureWarning)  # of torch about an option that accelerate passes on
    torch.set_num_threads(1)
    run_distillation(settings, None)


def distil(folder: Path, steps: int, seed: int = 0, processes: int | None = None) -> Path:
    """Trains an adapter for the embedded teacher on made-up pictures -> the folder of its average, below `folder`."""
    import torch

    from anytext_lcm.training.checkpoints import EMA_FOLDER
    from anytext_lcm.training.loop import run_distillation

    processes = _processes() if processes is None else processes
    settings = (
        recipe(steps, processes)
        | SHIPPED
        | {
            "config": str(networks.EMBEDDED_CONFIG),
            "teacher_ckpt": str(networks.EMBEDDED_CHECKPOINT),
            "output_dir": str(folder),
            "guidance_scale": networks.EMBEDDED_GUIDANCE,
            "negative_prompt": "",
            "seed": seed,
        }
    )
    if processes == 1:
        run_distillation(settings, None)
    else:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        torch.multiprocessing.spawn(_train_rank, args=(processes, port, settings), nprocs=processes)
    return folder / f"checkpoint-{steps}" / EMA_FOLDER
