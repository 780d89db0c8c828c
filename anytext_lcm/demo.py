"""The whole story in a few minutes on a laptop: distil the embedded teacher, draw with both, judge, compare.
`make demo`, or `python -m anytext_lcm.demo --help`.
"""

import argparse
import os
import shutil
import socket
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anytext_lcm import pipeline
from anytext_lcm.checkpoints import EMA_FOLDER
from anytext_lcm.distill import run_distillation
from anytext_lcm.evaluate import Panel, compare, write_report
from anytext_lcm.lora import CONFIG_FILE, WEIGHTS_FILE, load_adapter
from anytext_lcm.outputs import whole_directory

METHODS = ("real", "teacher-50", "teacher-8", "teacher-4", "untrained-4", "student-4", "student-8")
GRID_ROWS = 8


@dataclass(frozen=True)
class DemoSettings:
    """What fits a few minutes on two cores; the reason stands beside each number."""

    steps: int = 200  # after 300 the pictures were sharper than real ones, and farther away (the card has the figures)
    batch: int = 8  # pictures an update, over all processes: many small steps beat few large ones here
    loss: str = "l2"  # with Huber fine channels of the latents drifted off, and pictures were sharper than real ones
    learning_rate: float = 3e-5  # with 2e-4 the text was lost after 200 updates, whichever the targets
    warmup: int = 20
    ema: float = 0.98  # at most; it begins low, and after 200 updates is 0.957, an average of about the last 20
    rank: int = 32
    # The seed's groups reach nothing at 16x16 but the control residuals, since the attention is at 8x8; with the rest
    # of the UNet the pictures came nearer to real ones (the README has the figures).
    targets: tuple[str, ...] = (
        "zero_convs", "middle_block_out", "writenet_attention", "unet_attention", "unet_attnx", "unet_rest",
    )  # fmt: skip
    pictures: int = 20_000  # more than are seen, so that none is seen twice
    processes: int = 4  # at most; with one thread each they do not wait for each other


DEFAULTS = DemoSettings()


def _processes() -> int:
    """The largest power of two within the cores: it divides the batch."""
    if torch.cuda.is_available():
        return 1
    return 1 << (min(pipeline.available_cores(), DEFAULTS.processes).bit_length() - 1)


def _train_rank(rank: int, world: int, port: int, settings: Mapping[str, Any]) -> None:
    """One of the processes that average their gradients; the first one shows progress."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world), ACCELERATE_USE_CPU="1", OMP_NUM_THREADS="1",
    )  # fmt: skip
    warnings.simplefilter("ignore", FutureWarning)  # of torch about an option that accelerate passes on
    torch.set_num_threads(1)
    run_distillation(settings, None)


def distil(folder: Path, steps: int, seed: int = 0, processes: int | None = None) -> Path:
    """Trains an adapter for the embedded teacher on made-up pictures -> the folder of its average, below `folder`."""
    processes = _processes() if processes is None else processes
    settings = {
        "config": str(pipeline.EMBEDDED_CONFIG),
        "teacher_ckpt": str(pipeline.EMBEDDED_CHECKPOINT),
        "output_dir": str(folder),
        "use_mock_dataset": True,
        "dataset_size": DEFAULTS.pictures,
        "guidance_scale": pipeline.EMBEDDED_GUIDANCE,
        "negative_prompt": "",
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
        "seed": seed,
        "num_processes": processes,
    }
    if processes == 1:
        run_distillation(settings, None)
    else:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        torch.multiprocessing.spawn(_train_rank, args=(processes, port, settings), nprocs=processes)
    return folder / f"checkpoint-{steps}" / EMA_FOLDER


def _positive(text: str) -> int:
    """An integer from 1 on, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 1 on")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anytext_lcm.demo",
        description="Distils the embedded teacher, draws with teacher and student, and judges both.",
    )
    add = parser.add_argument
    add("--output", default="outputs/demo",
        help="gets grid.png, tables, charts, report.json and adapter/; replaced when all went well "
        "(default: %(default)s)")  # fmt: skip
    add("--steps", type=_positive, default=DEFAULTS.steps, help="updates of the adapter (default: %(default)s)")
    add("--prompts", type=_positive, default=64, help="prompts to draw and judge, 2 or more (default: %(default)s)")
    add("--seed", type=int, default=0, help="of training, prompts and noise (default: %(default)s)")
    return parser


def run(args: argparse.Namespace) -> Path:
    """Writes into a folder beside --output and renames it at the end."""
    panel = Panel.build(prompts=args.prompts, seed=args.seed)
    output = Path(args.output)
    with whole_directory(output) as folder:
        pipeline.use_available_cores()
        model = pipeline.load_embedded_teacher()
        began = time.monotonic()
        print(f"Distilling the embedded teacher: {args.steps} steps.", flush=True)
        checkpoint = distil(folder / "training", args.steps, args.seed)
        (folder / "adapter").mkdir()
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copy(checkpoint / name, folder / "adapter")
        shutil.move(folder / "training" / "logs", folder / "logs")
        shutil.rmtree(folder / "training")
        seconds = time.monotonic() - began
        load_adapter(model, folder / "adapter")

        print(f"Drawing and judging {args.prompts} prompts by {len(METHODS) - 1} methods.", flush=True)
        settings = {
            "config": pipeline.EMBEDDED_CONFIG.name,
            "adapter_steps": args.steps,
            "adapter_seconds": round(seconds, 1),
            "seed": args.seed,
        }
        report, results = compare(model, panel, METHODS, pipeline.EMBEDDED_GUIDANCE, settings=settings)
        write_report(folder, report, results, panel, GRID_ROWS)
    return output


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr for what is asked and cannot be."""
    args = build_parser().parse_args(arguments)
    began = time.monotonic()
    try:
        output = run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    minutes = (time.monotonic() - began) / 60
    print(f"{output / 'grid.png'} shows the pictures, {output / 'report.json'} holds all measures; "
          f"the student's adapter is in {output / 'adapter'} ({minutes:.1f} minutes).")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
