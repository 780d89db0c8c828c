"""Command: encode a data set's pictures once, for training with --latents. `python -m anytext_lcm.cache_latents
--config models_yaml/anytext2_sd15.yaml --teacher_ckpt FILE --data_list data.json --latents FOLDER`
"""

import argparse
import sys
from collections.abc import Sequence

from anytext_lcm.command import new_parser, run
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
    "fonts",
    "strict",
    "dataset_size",
    "image_size",
    "num_workers",
    "train_batch_size",
    "seed",
    "progress",
)


def build_parser() -> argparse.ArgumentParser:
    """Training's own flags for network and data, and --latents for where they go."""
    parser = new_parser("cache_latents", "Encodes a data set's pictures once, for training with --latents.")
    add_flags(parser, FLAGS)
    parser.add_argument("--latents", required=True, help="folder to fill; an older one of the same kind is replaced")
    parser.add_argument("--dry_run", action="store_true", help="check all inputs and the disk, and write nothing")
    return parser


def work(args: argparse.Namespace) -> str:
    """Encode every picture; the folder appears complete or not at all."""
    from tqdm import tqdm

    from anytext_lcm.checks.everything import look_at_inputs, require_inputs, tell
    from anytext_lcm.drawing.cores import use_available_cores
    from anytext_lcm.model.loading import default_device
    from anytext_lcm.training.data_order import build_dataset
    from anytext_lcm.training.fitting import fit_to_machine
    from anytext_lcm.training.latents import write_latents
    from anytext_lcm.training.loop import load_teacher

    chosen = collect(args)
    folder, dry_run = chosen.pop("latents"), chosen.pop("dry_run")
    chosen["output_dir"] = folder
    if dry_run:
        return tell(look_at_inputs(TrainSettings(**chosen), latents_to=folder))
    require_inputs(chosen, latents_to=folder)
    settings, _ = fit_to_machine(TrainSettings.from_dict(chosen))
    use_available_cores()
    dataset, model = build_dataset(settings), load_teacher(settings).to(default_device())
    with tqdm(total=len(dataset), desc="encode", disable=None if settings.progress else True) as bar:
        write_latents(folder, dataset, model, settings.train_batch_size, settings.num_workers, bar.update)
    return f"{len(dataset)} pictures are encoded in {folder}; train with --latents {folder}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr."""
    return run(build_parser(), work, arguments, lambda args: f"{args.latents} holds what it held before; start again.")


if __name__ == "__main__":
    sys.exit(main())
