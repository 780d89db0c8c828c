"""Rebuilds the embedded teacher from nothing: `python -m anytext_lcm.build_teacher`.

Ten stages, each of which can be run alone; vae, diffusion, writing and decoder go on where they were interrupted:
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
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.teacher.autoencoder import train_autoencoder
from anytext_lcm.teacher.columns import (
    draw,
    encode_all,
    finish_data,
    finish_features,
    load_frozen,
    open_columns,
    prepare_features,
    scale_factor,
    write_json,
)
from anytext_lcm.teacher.decoder import train_decoder
from anytext_lcm.teacher.diffusion import train_diffusion
from anytext_lcm.teacher.font_reader import train_font_predictor
from anytext_lcm.teacher.readers import train_reader, train_recogniser
from anytext_lcm.teacher.recipe import CONFIG, Recipe, averaged, launch, save
from anytext_lcm.teacher.tasks import TASKS, recipe_of
from anytext_lcm.teacher.writing import train_writing

FEWEST_PICTURES = 100  # one step of the diffusion draws up to 96 different ones, on a GPU
STAGES = ("data", "vae", "recogniser", "fonts", "features", "diffusion", "reader", "writing", "decoder", "export")
DEFAULT_STAGES = {"mock": tuple(s for s in STAGES if s not in ("fonts", "decoder")), "scenery": STAGES}
_FEATURES = ("captions.json", "vae.pt", "recogniser.pt", "features.done")
READS = {  # files of the work folder; export says itself what it lacks
    "vae": ("captions.json",),
    "fonts": ("recogniser.pt",),
    "features": ("captions.json", "vae.pt", "recogniser.pt"),
    "diffusion": _FEATURES,
    "reader": _FEATURES,
    "writing": (*_FEATURES, "diffusion.pt", "reader.pt"),
    "decoder": ("captions.json", "vae.pt"),
}
MADE_BY = {"captions.json": "data", "features.done": "features"}  # the others are called after their stage


def claim(work: Path, **asked: Any) -> dict[str, Any]:
    """What a work folder was begun with, noted by its first run: a later one may leave it out (None), and nothing else.

    Raises ValueError when it asks for something else, which would be ignored where a stage is done already.
    """
    note = work / "begun_with.json"
    if not note.exists():
        write_json(note, asked)
        return asked
    before = json.loads(note.read_text(encoding="utf-8"))
    for name, value in asked.items():
        if value is not None and value != before.get(name):
            raise ValueError(
                f"{work} was begun with --{name} {before.get(name)}, not {value}; leave it out, or name another --work."
            )
    return before


def check_inputs(stage: str, work: Path) -> None:
    """Raises FileNotFoundError, naming the stage to run first, when what this one reads is not in the work folder."""
    for name in READS.get(stage, ()):
        if not (work / name).exists():
            maker = MADE_BY.get(name, Path(name).stem)
            raise FileNotFoundError(f"--stage {stage} reads {work / name}, which is not there; run {maker} first.")


def start_from(checkpoint: Path, work: Path, recipe: Recipe) -> None:
    """Lays finished weights out as the stages' states: autoencoder and recogniser are kept, the diffusion goes on."""
    model = AnyText2.from_config(CONFIG).load_checkpoint(checkpoint)

    def state(module: nn.Module, step: int) -> dict:
        average = {f"module.{k}": v for k, v in module.state_dict().items()} | {"n_averaged": torch.tensor(1)}
        return dict(raw=module.state_dict(), average=average, step=step)

    save(work / "vae.pt", state(model.first_stage_model, recipe.vae_steps))
    save(work / "recogniser.pt", model.text_predictor.state_dict())
    save(work / "diffusion.pt", state(model, 0))


def stage_data(work: Path, recipe: Recipe, world: int) -> None:
    if (work / "captions.json").exists() and (work / "lines.json").exists():
        return
    open_columns(work, recipe.pictures, mode="w+")
    launch(draw, work, recipe, world)
    finish_data(work, world)


def stage_features(work: Path, recipe: Recipe, world: int) -> None:
    if (work / "features.done").exists():
        return
    prepare_features(work, recipe)
    launch(encode_all, work, recipe, world)
    finish_features(work)


def load_average(work: Path) -> AnyText2:
    """The averaged weights of the last saved step, of the last of the two stages that there is. Raises
    FileNotFoundError when there is none.
    """
    states = [work / name for name in ("writing.pt", "diffusion.pt") if (work / name).exists()]
    if not states:
        raise FileNotFoundError(f"{work} holds neither writing.pt nor diffusion.pt; run the stages before export.")
    model = AnyText2.from_config(CONFIG)
    model.load_state_dict(averaged(states[0]))
    load_frozen(model, work)  # a decoder trained since
    model.scale_factor = scale_factor(work)
    return model.eval()


def stage_export(work: Path, target: Path) -> None:
    """Half-precision safetensors, written beside its final place and renamed."""
    from safetensors.torch import save_file

    model = load_average(work)
    state = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in model.state_dict().items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".partial")
    save_file(state, unfinished, metadata={"scale_factor": str(model.scale_factor)})
    unfinished.replace(target)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB; set scale_factor: {model.scale_factor} in {CONFIG}")


def build_parser() -> argparse.ArgumentParser:
    from anytext_lcm.pipeline import available_cores  # here, for each stage's processes import this module again

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
        check_inputs(stage, args.work)
        if stage == "data":
            stage_data(args.work, recipe, args.processes)
        elif stage == "vae":
            launch(train_autoencoder, args.work, recipe, args.processes)
        elif stage == "recogniser":
            if not (args.work / "recogniser.pt").exists():
                launch(train_recogniser, args.work, recipe, 1)
        elif stage == "fonts":
            if not (args.work / "fonts.pt").exists():
                launch(train_font_predictor, args.work, recipe, 1)
        elif stage == "features":
            stage_features(args.work, recipe, args.processes)
        elif stage == "diffusion":
            launch(train_diffusion, args.work, recipe, args.processes)
        elif stage == "reader":
            if not (args.work / "reader.pt").exists():
                launch(train_reader, args.work, recipe, args.processes)
        elif stage == "writing":
            launch(train_writing, args.work, recipe, args.processes)
        elif stage == "decoder":
            launch(train_decoder, args.work, recipe, args.processes)
        else:
            stage_export(args.work, args.target)
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
