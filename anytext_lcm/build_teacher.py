"""Rebuilds the embedded teacher from nothing: `python -m anytext_lcm.build_teacher`.

Eleven stages, each of which can be run alone; vae, diffusion, writing and decoder go on where they were interrupted:
    tokenizer   the tokenizer of `anytext_lcm/assets`, when captions have new words; not run by default
    data        pictures and conditioning of the mock task, drawn once into memory-mapped columns
    vae         a linear encoder from principal components, then its decoder on text-centred crops
    recogniser  CTC on drawn lines; one set of weights for both of AnyText2's predictors, frozen afterwards
    fonts       the second copy of the recogniser learns to tell fonts apart (scenery task)
    features    latents and recogniser features of every picture, so that the diffusion runs on what is left
    diffusion   UNet, WriteNet, text tower and the trainable part of the embedding manager, on v
    reader      CTC on lines cut out of true latents
    writing     the diffusion goes on, and what it makes of its own half-drawn pictures must be legible to the reader
    decoder     the decoder alone once more, on pictures of all kinds (scenery task)
    export      the half-precision file of `anytext_lcm/assets`

Runs on all CPU cores as single-threaded processes that average gradients (two OpenMP threads of one process slow each
other down on a busy machine), or on one GPU. The stages are in `anytext_lcm/teacher`.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from anytext_lcm.teacher.recipe import DEFAULT_STAGES, FEWEST_PICTURES, STAGES, TASKS, Recipe, recipe_of
from anytext_lcm.teacher.stages import claim, run_stage, start_from


def build_parser() -> argparse.ArgumentParser:
    from anytext_lcm.drawing.cores import available_cores  # here, for each stage's processes import this module again

    parser = argparse.ArgumentParser(prog="python -m anytext_lcm.build_teacher", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("outputs/teacher"), help="columns and checkpoints go here")
    parser.add_argument("--stage", nargs="+", choices=STAGES, help="default: all that the task has")
    parser.add_argument("--task", choices=TASKS, help="what is drawn; default: mock, or as the work folder was begun")
    parser.add_argument("--steps", type=int, help=f"diffusion steps, default: {Recipe.diffusion_steps}")
    parser.add_argument("--lr", type=float, help="of the diffusion at its peak; default: the task's")
    parser.add_argument("--decay", type=float, help="share of the steps over which it falls; default: the task's")
    parser.add_argument("--pictures", type=int, help=f"default: {Recipe.pictures}, or as the work folder was begun")
    parser.add_argument("--seed", type=int,
        help=f"another one gives other pictures; default: {Recipe.seed}, or as the work folder was begun")  # fmt: skip
    parser.add_argument("--vae_steps", type=int, help=f"default: {Recipe.vae_steps}")
    parser.add_argument("--decoder_steps", type=int, help=f"default: {Recipe.decoder_steps}")
    parser.add_argument("--writing_steps", type=int, help=f"default: {Recipe.writing_steps}")
    parser.add_argument("--processes", type=int, default=1 if torch.cuda.is_available() else available_cores())
    parser.add_argument("--target", type=Path, default=Path("anytext_lcm/assets/teacher.safetensors"))
    parser.add_argument("--start_from", type=Path, help="weights that a new work folder goes on from")
    return parser


def run(args: argparse.Namespace) -> None:
    """The stages that were asked for. Raises ValueError or OSError."""
    for name, least in (("processes", 1), ("pictures", FEWEST_PICTURES)):
        if (value := getattr(args, name)) is not None and value < least:
            raise ValueError(f"--{name} must be {least} or more, not {value}.")
    if args.start_from is not None and not args.start_from.is_file():
        raise FileNotFoundError(f"--start_from {args.start_from} does not exist.")
    args.work.mkdir(parents=True, exist_ok=True)
    start = None if args.start_from is None else str(args.start_from)
    begun = claim(args.work, pictures=args.pictures, seed=args.seed, start_from=start, task=args.task)
    recipe = recipe_of(
        begun.get("task") or "mock",
        seed=begun["seed"],
        pictures=begun["pictures"],
        vae_steps=args.vae_steps,
        decoder_steps=args.decoder_steps,
        diffusion_steps=args.steps,
        writing_steps=args.writing_steps,
        diffusion_lr=args.lr,
        decay=args.decay,
    )
    if begun["start_from"] is not None and not (args.work / "diffusion.pt").exists():
        start_from(Path(begun["start_from"]), args.work, recipe)
    for stage in args.stage or DEFAULT_STAGES[recipe.task]:
        began = time.monotonic()
        run_stage(stage, args.work, recipe, args.processes, args.target)
        print(f"{stage}: {(time.monotonic() - began) / 60:.1f} minutes", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr for what is asked and cannot be."""
    args = build_parser().parse_args(argv)
    try:
        run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
