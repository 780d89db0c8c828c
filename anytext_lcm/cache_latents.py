"""Command: compute once what training reads again and again. `python -m anytext_lcm.cache_latents --latents FOLDER`,
or, on several GPUs, `accelerate launch -m anytext_lcm.cache_latents ...`.

A data set's pictures, encoded, for training with --latents; or, with --draw N, the guided teacher's own paths from
captions and lines alone, for training with --paths, which needs no pictures. The same command again goes on where one
was stopped.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from anytext_lcm.checks.forecast import scaled
from anytext_lcm.command import FAILURES, AlreadyReported, finite, named, new_parser, positive, run
from anytext_lcm.training.flags import add_flags, collect
from anytext_lcm.training.settings import TrainSettings, check_picture_size

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
    "guidance_scale",
    "negative_prompt",
    "num_workers",
    "train_batch_size",
    "seed",
    "progress",
)
WARM, MEASURED = 1, 3  # batches: the first one is slower than the others


def build_parser() -> argparse.ArgumentParser:
    """Training's own flags for network and data, and where the numbers go."""
    parser = new_parser(
        "cache_latents", "Encodes a data set's pictures once, or draws the teacher's paths, for training."
    )
    add_flags(parser, FLAGS)
    add = parser.add_argument
    add("--latents", type=named, required=True, help="folder to fill; one that was begun is completed")
    add(
        "--precision",
        choices=("fp16", "bf16", "fp32"),
        default="fp16",
        help="of what is stored, computed in fp32; fp16 halves the files and rounds by less than the posterior's own "
        "noise, bf16 by eight times as much (default: %(default)s)",
    )
    add("--draw", type=positive, metavar="N", help="draw N paths of the guided teacher instead of encoding pictures")
    add(
        "--captions",
        metavar="FILE",
        help="of --draw: prompts as for sample --batch, whose seeds are passed over, written in the font of --fonts; "
        "by default the mock data's rules",
    )
    add("--tflops", type=finite, help="of --draw: say the hours at so many 10^12 operations a second")
    add("--estimate", action="store_true", help="of --draw: print what it would take, and draw nothing")
    add("--dry_run", action="store_true", help="check all inputs and the disk, and write nothing")
    return parser


def work(args: argparse.Namespace) -> str | None:
    """Encode or draw what is not there yet. Of several processes the first one alone has something to print."""
    from anytext_lcm.checks.everything import look_at_inputs, tell
    from anytext_lcm.training.processes import fresh_accelerate_state, one_voice, settle

    chosen = collect(args)
    own = {name: chosen.pop(name) for name in ("latents", "draw", "captions", "tflops", "estimate")}
    precision, dry_run = chosen.pop("precision"), chosen.pop("dry_run")
    if own["draw"] is not None:
        if dry_run:
            raise ValueError("--dry_run has no effect on --draw, whose --estimate says what it takes; choose that.")
        if own["tflops"] is not None and own["tflops"] <= 0:
            raise ValueError(f"--tflops must be above 0, not {own['tflops']:g}.")
        if precision != "fp16":
            raise ValueError("--precision has no effect on --draw: paths are stored in half precision; leave it out.")
        return draw(chosen, **own)
    if given := [f"--{name}" for name in ("captions", "tflops", "estimate") if own[name]]:
        raise ValueError(f"{', '.join(given)} is of --draw N alone; add that or leave it out.")
    if dry_run:
        settings = TrainSettings(**chosen, output_dir=own["latents"])
        return tell(look_at_inputs(settings, latents_to=own["latents"], ask_disk=True))
    settle()
    try:
        with fresh_accelerate_state(), one_voice():
            return encode(chosen, own["latents"], precision)
    except FAILURES as error:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # the first of the processes to fail has printed it
            raise AlreadyReported from error
        raise


def encode(chosen: dict, folder: str, precision: str) -> str | None:
    """This process's share of the files. Collective. Raises ValueError or OSError."""
    from accelerate import Accelerator
    from tqdm import tqdm

    from anytext_lcm.checks.everything import require_inputs
    from anytext_lcm.drawing.cores import use_available_cores
    from anytext_lcm.training.data_order import build_dataset, name_of_data
    from anytext_lcm.training.fitting import fit_to_machine
    from anytext_lcm.training.latents import encode_shards, latent_layout
    from anytext_lcm.training.loop import load_teacher
    from anytext_lcm.training.processes import check_gpus
    from anytext_lcm.training.shards import ShardWriter, check_folder

    chosen["output_dir"] = folder
    require_inputs(chosen, latents_to=folder)
    settings, _ = fit_to_machine(TrainSettings.from_dict(chosen))
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
    """What will be written. writer: a ShardWriter. Raises ValueError when the disk does not hold it."""
    layout, missing = writer.layout, len(writer.missing())
    [*_, (height, width)] = [array.shape[1:] for array in layout.arrays.values() if len(array.shape) == 3]
    left = layout.bytes * missing / layout.shards
    require_space(writer.folder, left)
    there = f", {layout.shards - missing} of them are there" if missing < layout.shards else ""
    pictures = f"{layout.rows} pictures of {8 * width} x {8 * height}, {layout.settings['precision']}"
    return f"{pictures}: {scaled(layout.bytes)}B in {layout.shards} files{there}; {scaled(left)}B to write."


def require_space(folder: Path, need: float) -> None:
    """Raise ValueError when the disk of a folder, which need not exist, has less than so many bytes left."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    if need > (free := shutil.disk_usage(there).free):
        raise ValueError(
            f"{folder} needs {scaled(need)}B more and its disk has {scaled(free)}B left; name another disk."
        )


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


def draw(chosen: dict, latents: str, draw: int, captions: str | None, tflops: float | None, estimate: bool) -> str:
    """Say what the paths take, then draw those that the folder lacks."""
    from tqdm import tqdm

    from anytext_lcm.drawing.cores import use_available_cores
    from anytext_lcm.model.anytext2 import AnyText2
    from anytext_lcm.model.loading import default_device
    from anytext_lcm.training.loop import load_teacher
    from anytext_lcm.training.path_store import Wishes, cost, write_paths
    from anytext_lcm.training.shards import check_folder

    font = font_of_captions(chosen["fonts"], captions)
    settings = settings_to_draw(chosen | {"fonts": None}, latents, estimate)
    channels = AnyText2.from_config(settings.config, device="meta").latent_channels
    takes = cost(settings, draw, channels)
    said = takes.words(tflops)
    if estimate:
        return said
    check_folder(latents)
    require_space(Path(latents), takes.bytes - sum(file.stat().st_size for file in Path(latents).glob("shard-*")))
    wishes = Wishes(settings, draw, None if captions is None else Path(captions), font)
    wishes.check()
    print(said, flush=True)
    use_available_cores()
    model = load_teacher(settings).to(default_device())
    with tqdm(total=draw, desc="draw", disable=None if settings.progress else True) as bar:
        write_paths(latents, settings, wishes, model, bar.update)
    return f"{draw} paths are in {latents}; train with --paths {latents}"


def font_of_captions(fonts: Sequence[str] | None, captions: str | None) -> str | None:
    """The font that --captions are written in, None for the usual one. Raises FileNotFoundError or ValueError."""
    from anytext_lcm.data.fonts import check_fonts

    if not fonts:
        return None
    if captions is None:
        raise ValueError("--fonts has no effect on --draw without --captions; leave it out or name these.")
    if len(fonts) > 1:
        raise ValueError(f"--draw writes captions in one font, not {len(fonts)}; name one with --fonts.")
    check_fonts(fonts)
    return fonts[0]


def settings_to_draw(chosen: dict, folder: str, estimate: bool) -> TrainSettings:
    """The settings of --draw, checked; for an estimate the weights need not be there. Raises ValueError."""
    if others := [f"--{name}" for name in ("use_mock_dataset", "data_list", "data_root", "edit_share") if chosen[name]]:
        raise ValueError(f"{', '.join(others)} has no effect on --draw, which needs no pictures; leave it out.")
    chosen = chosen | {"output_dir": folder, "paths": folder}
    if not estimate:
        return TrainSettings.from_dict(chosen)
    settings = TrainSettings(**chosen)
    settings.check_values()
    check_picture_size(settings.image_size, settings.config)
    return settings.with_guidance()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 or, after Ctrl-C, 130 with one sentence on stderr."""
    return run(build_parser(), work, arguments, kept)


def kept(args: argparse.Namespace) -> str:
    """What is there after Ctrl-C."""
    return f"{args.latents} keeps the whole files; the same command goes on."


if __name__ == "__main__":
    sys.exit(main())
