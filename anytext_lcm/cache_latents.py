"""Command: compute once what training reads again and again. `python -m anytext_lcm.cache_latents --latents FOLDER`

A data set's pictures, encoded, for training with --latents; or, with --draw N, the guided teacher's own paths from
captions and lines alone, for training with --paths, which needs no pictures.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from anytext_lcm.command import finite, new_parser, positive, run
from anytext_lcm.training.settings import TrainSettings, add_flags, check_picture_size, collect

FLAGS = (
    "config",
    "teacher_ckpt",
    "use_mock_dataset",
    "scenery",
    "data_list",
    "data_root",
    "index_dir",
    "wm_thresh",
    "edit_share",
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


def build_parser() -> argparse.ArgumentParser:
    """Training's own flags for network and data, and where the numbers go."""
    parser = new_parser(
        "cache_latents", "Encodes a data set's pictures once, or draws the teacher's paths, for training."
    )
    add_flags(parser, FLAGS)
    add = parser.add_argument
    add("--latents", required=True, help="folder to fill; older latents are replaced, paths are gone on with")
    add("--draw", type=positive, metavar="N", help="draw N paths of the guided teacher instead of encoding pictures")
    add("--captions", metavar="FILE", help="of --draw: prompts as for sample --batch; by default the mock data's rules")
    add("--tflops", type=finite, help="of --draw: say the hours at so many 10^12 operations a second")
    add("--estimate", action="store_true", help="of --draw: print what it would take, and draw nothing")
    return parser


def work(args: argparse.Namespace) -> str:
    """Encode every picture, or draw every path; each file appears complete or not at all."""
    chosen = collect(args)
    own = {name: chosen.pop(name) for name in ("latents", "draw", "captions", "tflops", "estimate")}
    if own["draw"] is None:
        if given := [f"--{name}" for name in ("captions", "tflops", "estimate") if own[name]]:
            raise ValueError(f"{', '.join(given)} is of --draw N alone; add that or leave it out.")
        return encode(chosen, own["latents"])
    if own["tflops"] is not None and own["tflops"] <= 0:
        raise ValueError(f"--tflops must be above 0, not {own['tflops']:g}.")
    return draw(chosen, **own)


def encode(chosen: dict, folder: str) -> str:
    """Encode every picture; the folder appears complete or not at all."""
    from tqdm import tqdm

    from anytext_lcm.drawing.cores import use_available_cores
    from anytext_lcm.model.loading import default_device
    from anytext_lcm.training.data_order import build_dataset
    from anytext_lcm.training.latents import write_latents
    from anytext_lcm.training.loop import load_teacher

    settings = TrainSettings.from_dict(chosen | {"output_dir": folder})
    use_available_cores()
    dataset, model = build_dataset(settings), load_teacher(settings).to(default_device())
    with tqdm(total=len(dataset), desc="encode", disable=None if settings.progress else True) as bar:
        write_latents(folder, dataset, model, settings.train_batch_size, settings.num_workers, bar.update)
    return f"{len(dataset)} pictures are encoded in {folder}; train with --latents {folder}"


def draw(chosen: dict, latents: str, draw: int, captions: str | None, tflops: float | None, estimate: bool) -> str:
    """Say what the paths take, then draw those that the folder lacks."""
    from tqdm import tqdm

    from anytext_lcm.drawing.cores import use_available_cores
    from anytext_lcm.model.anytext2 import AnyText2
    from anytext_lcm.model.loading import default_device
    from anytext_lcm.training.loop import load_teacher
    from anytext_lcm.training.path_store import Wishes, cost, write_paths

    if captions is not None and chosen["scenery"]:
        raise ValueError("--scenery has no effect beside --captions; leave one of them out.")
    settings = settings_to_draw(chosen, latents, estimate)
    channels = AnyText2.from_config(settings.config, device="meta").latent_channels
    said = cost(settings, draw, channels).words(tflops)
    if estimate:
        return said
    wishes = Wishes(settings, draw, None if captions is None else Path(captions))
    wishes.check()
    print(said, flush=True)
    use_available_cores()
    model = load_teacher(settings).to(default_device())
    with tqdm(total=draw, desc="draw", disable=None if settings.progress else True) as bar:
        write_paths(latents, settings, wishes, model, bar.update)
    return f"{draw} paths are in {latents}; train with --paths {latents}"


def settings_to_draw(chosen: dict, folder: str, estimate: bool) -> TrainSettings:
    """The settings of --draw, checked; for an estimate the weights need not be there. Raises ValueError."""
    if named := [f"--{name}" for name in ("use_mock_dataset", "data_list", "data_root", "edit_share") if chosen[name]]:
        raise ValueError(f"{', '.join(named)} has no effect on --draw, which needs no pictures; leave it out.")
    chosen = chosen | {"output_dir": folder, "paths": folder}
    if not estimate:
        return TrainSettings.from_dict(chosen)
    settings = TrainSettings(**chosen)
    settings.check_values()
    check_picture_size(settings.image_size, settings.config)
    return settings.with_guidance()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr."""
    return run(build_parser(), work, arguments, kept)


def kept(args: argparse.Namespace) -> str:
    """What is there after Ctrl-C."""
    if args.draw:
        return f"the whole files in {args.latents} are kept; the same command goes on from there."
    return f"{args.latents} holds what it held before; start again."


if __name__ == "__main__":
    sys.exit(main())
