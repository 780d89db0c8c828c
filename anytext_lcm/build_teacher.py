"""Command: rebuild the embedded teacher from nothing. `python -m anytext_lcm.build_teacher`

Each stage can be run alone; vae, diffusion, writing and decoder continue where they were interrupted:
    tokenizer   the tokenizer of `anytext_lcm/assets`, when captions have new words; not run by default
    data        mock pictures and their conditioning, drawn once into memory-mapped columns
    vae         a linear encoder from principal components, then its decoder on text-centred crops
    recogniser  CTC on drawn lines; one set of weights for both of AnyText2's predictors, frozen afterwards
    fonts       the second copy of the recogniser learns to tell fonts apart
    features    latents and recogniser features of every picture, so that the diffusion runs on what is left
    diffusion   UNet, WriteNet, text tower and the trainable part of the embedding manager, on v
    reader      CTC on lines cut out of true latents
    writing     the diffusion continues, and what it makes of its own half-drawn pictures must be legible to the reader
    decoder     the decoder alone once more, on pictures of all kinds
    export      the half-precision file of `anytext_lcm/assets`

Runs on all CPU cores as single-threaded processes that average gradients (two OpenMP threads of one process slow each
other down on a busy machine), or on one GPU. The stages are in `anytext_lcm/teacher`.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from anytext_lcm.command import finite, named, natural, new_parser, positive, run
from anytext_lcm.teacher.recipe import DEFAULT_STAGES, FEWEST_PICTURES, STAGES, Recipe


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("build_teacher", "Rebuilds the embedded teacher from nothing.")
    add = parser.add_argument
    add(
        "--work",
        type=_path_to_write,
        default=Path("outputs/teacher"),
        help="gets columns and checkpoints (default: %(default)s)",
    )
    add("--stage", nargs="+", choices=STAGES, help="default: all but tokenizer")
    add("--steps", type=positive, help=f"diffusion steps (default: {Recipe.diffusion_steps})")
    add("--lr", type=finite, help=f"of the diffusion at its peak (default: {Recipe.diffusion_lr})")
    add("--decay", type=finite, help=f"share of the steps over which it falls (default: {Recipe.decay})")
    add("--pictures", type=int, help=f"default: {Recipe.pictures}, or as the work folder was begun")
    add(
        "--seed",
        type=natural,
        help=f"another one gives other pictures (default: {Recipe.seed}, or as the work folder was begun)",
    )
    add("--vae_steps", type=positive, help=f"default: {Recipe.vae_steps}")
    add("--decoder_steps", type=positive, help=f"default: {Recipe.decoder_steps}")
    add("--writing_steps", type=positive, help=f"default: {Recipe.writing_steps}")
    add("--processes", type=positive, help="default: as many as cores, 1 on a GPU")
    add(
        "--target",
        type=_path_to_write,
        default=Path("anytext_lcm/assets/teacher.safetensors"),
        help="default: %(default)s",
    )
    add("--start_from", type=Path, help="weights that a new work folder starts from")
    return parser


def _path_to_write(text: str) -> Path:
    return Path(named(text))


def work(args: argparse.Namespace) -> None:
    """Run the stages that were asked for. Raises ValueError or OSError."""
    if args.pictures is not None and args.pictures < FEWEST_PICTURES:
        raise ValueError(f"--pictures must be {FEWEST_PICTURES} or more, not {args.pictures}.")
    if args.start_from is not None and not args.start_from.is_file():
        raise FileNotFoundError(f"--start_from {args.start_from} does not exist.")
    from anytext_lcm.checks.network import require_network
    from anytext_lcm.teacher.stages import CONFIG, NOTE, claim, run_stage, start_from

    if args.start_from is not None and not (args.work / NOTE).exists():  # or the note would hold what cannot be read
        require_network(str(CONFIG), str(args.start_from), "--start_from", [])
    args.work.mkdir(parents=True, exist_ok=True)
    start = None if args.start_from is None else str(args.start_from)
    begun = claim(args.work, pictures=args.pictures, seed=args.seed, start_from=start)
    numbers = {
        "seed": begun["seed"],
        "pictures": begun["pictures"],
        "vae_steps": args.vae_steps,
        "decoder_steps": args.decoder_steps,
        "diffusion_steps": args.steps,
        "writing_steps": args.writing_steps,
        "diffusion_lr": args.lr,
        "decay": args.decay,
    }
    recipe = replace(Recipe(), **{name: number for name, number in numbers.items() if number is not None})
    if begun["start_from"] is not None and not (args.work / "diffusion.pt").exists():
        start_from(Path(begun["start_from"]), args.work, recipe)
    processes = args.processes or usual_processes()
    for stage in args.stage or DEFAULT_STAGES:
        began = time.monotonic()
        run_stage(stage, args.work, recipe, processes, args.target)
        print(f"{stage}: {(time.monotonic() - began) / 60:.1f} minutes", file=sys.stderr)


def usual_processes() -> int:
    """One on a GPU, else one per core that this process may use."""
    import torch

    from anytext_lcm.drawing.cores import available_cores

    return 1 if torch.cuda.is_available() else available_cores()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr."""
    return run(build_parser(), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
