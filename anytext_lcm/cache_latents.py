"""Command: encode a data set's pictures once, for training with --latents. `python -m anytext_lcm.cache_latents
--config models_yaml/anytext2_sd15.yaml --teacher_ckpt FILE --data_list data.json --latents FOLDER`, or, on several
GPUs, `accelerate launch -m anytext_lcm.cache_latents ...`. The same command again goes on where one was stopped.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence

from anytext_lcm.command import FAILURES, AlreadyReported, new_parser, run
from anytext_lcm.training.settings import TrainSettings, add_flags, collect

FLAGS = (
    "config",
    "teacher_ckpt",
    "use_mock_dataset",
    "data_list",
    "data_root",
    "index_dir",
    "wm_thresh",
    "edit_share",
    "validation_share",
    "fit",
    "fonts",
    "strict",
    "dataset_size",
    "image_size",
    "num_workers",
    "train_batch_size",
    "seed",
    "progress",
)
WARM, MEASURED = 1, 3  # batches: the first one is slower than the others


def build_parser() -> argparse.ArgumentParser:
    """Training's own flags for network and data, and --latents for where they go."""
    parser = new_parser("cache_latents", "Encodes a data set's pictures once, for training with --latents.")
    add_flags(parser, FLAGS)
    parser.add_argument("--latents", required=True, help="folder to fill; one that was begun is completed")
    parser.add_argument(
        "--precision",
        choices=("fp16", "bf16", "fp32"),
        default="fp16",
        help="of what is stored, computed in fp32; fp16 halves the files and rounds by less than the posterior's own "
        "noise, bf16 by eight times as much (default: %(default)s)",
    )
    return parser


def work(args: argparse.Namespace) -> str | None:
    """Encode what is not there yet. Of several processes the first one alone has something to print."""
    from anytext_lcm.training.processes import fresh_accelerate_state, one_voice, settle

    settle()
    try:
        with fresh_accelerate_state(), one_voice():
            return encode(args)
    except FAILURES as error:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # the first of the processes to fail has printed it
            raise AlreadyReported from error
        raise


def encode(args: argparse.Namespace) -> str | None:
    """This process's share of the files. Collective. Raises ValueError or OSError."""
    from accelerate import Accelerator
    from tqdm import tqdm

    from anytext_lcm.drawing.cores import use_available_cores
    from anytext_lcm.training.data_order import build_dataset, name_of_data
    from anytext_lcm.training.latents import encode_shards, latent_layout
    from anytext_lcm.training.loop import load_teacher
    from anytext_lcm.training.processes import check_gpus
    from anytext_lcm.training.shards import ShardWriter, check_folder

    chosen = collect(args)
    folder, precision = chosen.pop("latents"), chosen.pop("precision")
    settings = TrainSettings.from_dict(chosen | {"output_dir": folder})
    check_folder(folder)
    check_gpus()
    here = Accelerator()
    if here.num_processes == 1:
        use_available_cores()
    dataset = build_dataset(settings)
    model = load_teacher(settings).to(here.device)
    layout = latent_layout(dataset, model, precision, name_of_data(settings, dataset))
    writer = ShardWriter(folder, layout)
    shards = writer.missing(here.process_index, here.num_processes)
    if here.is_main_process:
        tqdm.write(announce(writer), file=sys.stderr)
    here.wait_for_everyone()  # before the first file is written, or the first process would count it
    pictures = sum(len(layout.rows_of(shard)) for shard in shards)
    with tqdm(
        total=pictures, desc="encode", disable=None if settings.progress and here.is_main_process else True
    ) as bar:
        pace = Pace(pictures, here.is_main_process)

        def progress(count: int) -> None:
            bar.update(count)
            pace(count)

        encode_shards(writer, shards, dataset, model, settings.train_batch_size, settings.num_workers, progress)
    here.wait_for_everyone()
    if here.is_main_process:
        return f"{len(dataset)} pictures are encoded in {folder}; train with --latents {folder}"
    return None


def announce(writer) -> str:
    """What will be written. writer: a ShardWriter. Raises ValueError when the disk has no room for it."""
    layout, missing = writer.layout, len(writer.missing())
    [*_, (height, width)] = [array.shape[1:] for array in layout.arrays.values() if len(array.shape) == 3]
    left = layout.bytes * missing / layout.shards
    if left > (free := shutil.disk_usage(writer.folder).free):
        raise ValueError(
            f"{writer.folder} needs {size(left)} more and its disk has {size(free)} left; name another disk."
        )
    there = f", {layout.shards - missing} of them are there" if missing < layout.shards else ""
    pictures = f"{layout.rows} pictures of {8 * width} x {8 * height}, {layout.settings['precision']}"
    return f"{pictures}: {size(layout.bytes)} in {layout.shards} files{there}; {size(left)} to write."


def size(count: float) -> str:
    """Bytes in words: 197 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


class Pace:
    """Says once, after the first few batches, how long the rest takes. Called with the pictures of each batch."""

    def __init__(self, pictures: int, speaks: bool):
        """pictures: of this process. speaks: whether it is the process that prints."""
        self.left, self.speaks, self.batches, self.measured = pictures, speaks, 0, 0

    def __call__(self, count: int) -> None:
        self.batches, self.left = self.batches + 1, self.left - count
        if self.batches == WARM:
            self.began = time.perf_counter()
        elif self.batches <= WARM + MEASURED:
            self.measured += count
        if self.batches == WARM + MEASURED and self.speaks:
            rate = self.measured / max(time.perf_counter() - self.began, 1e-9)
            minutes = self.left / rate / 60
            took = f"{minutes:.1f} minutes" if minutes < 100 else f"{minutes / 60:.1f} hours"
            print(f"About {took} to go, at {rate:.3g} pictures a second in each process.", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 or, after Ctrl-C, 130 with one sentence on stderr."""
    return run(
        build_parser(), work, arguments, lambda args: f"{args.latents} keeps what is done; the same command goes on."
    )


if __name__ == "__main__":
    sys.exit(main())
