"""The stages one after the other: what each reads, which function does it, and the work folder they share."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anytext_lcm.files import atomic_file
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.checkpoint import write_state_dict
from anytext_lcm.model.networks import ASSETS
from anytext_lcm.teacher.autoencoder import train_autoencoder
from anytext_lcm.teacher.columns import create_columns, draw, finish_data, write_json
from anytext_lcm.teacher.decoder import train_decoder
from anytext_lcm.teacher.diffusion import train_diffusion
from anytext_lcm.teacher.features import encode_all, finish_features, load_frozen, prepare_features, scale_factor
from anytext_lcm.teacher.fitting import averaged, save
from anytext_lcm.teacher.font_reader import train_font_predictor
from anytext_lcm.teacher.processes import launch
from anytext_lcm.teacher.readers import train_reader, train_recogniser
from anytext_lcm.teacher.recipe import CONFIG, Recipe
from anytext_lcm.teacher.tokenizer import write_tokenizer
from anytext_lcm.teacher.writing import train_writing

_TRAINING = {
    "vae": train_autoencoder,
    "recogniser": train_recogniser,
    "fonts": train_font_predictor,
    "diffusion": train_diffusion,
    "reader": train_reader,
    "writing": train_writing,
    "decoder": train_decoder,
}
_IN_ONE_GO = ("recogniser", "fonts", "reader")  # they write their file at the end, and are done when it is there
_ALONE = ("recogniser", "fonts")  # too short for several processes

_FEATURES = ("captions.json", "vae.pt", "recogniser.pt", "features.done")
_READS = {  # files of the work folder; export checks its own
    "vae": ("captions.json",),
    "fonts": ("recogniser.pt",),
    "features": ("captions.json", "vae.pt", "recogniser.pt"),
    "diffusion": _FEATURES,
    "reader": _FEATURES,
    "writing": (*_FEATURES, "diffusion.pt", "reader.pt"),
    "decoder": ("captions.json", "vae.pt"),
}
NOTE = "begun_with.json"  # what a work folder was begun with
_MADE_BY = {"captions.json": "data", "features.done": "features"}  # other files are named after their stage


def run_stage(stage: str, work: Path, recipe: Recipe, processes: int, target: Path) -> None:
    """Run one of `recipe.STAGES`, unless it is done already. Raises FileNotFoundError when an input is missing."""
    check_inputs(stage, work)
    if stage == "tokenizer":
        write_tokenizer(ASSETS / "tokenizer")
    elif stage == "data":
        stage_data(work, recipe, processes)
    elif stage == "features":
        stage_features(work, recipe, processes)
    elif stage == "export":
        stage_export(work, target)
    elif stage not in _IN_ONE_GO or not (work / f"{stage}.pt").exists():
        launch(_TRAINING[stage], work, recipe, 1 if stage in _ALONE else processes)


def check_inputs(stage: str, work: Path) -> None:
    """Raise FileNotFoundError, naming the stage to run first, when the work folder lacks what this one reads."""
    for name in _READS.get(stage, ()):
        if not (work / name).exists():
            maker = _MADE_BY.get(name, Path(name).stem)
            raise FileNotFoundError(f"--stage {stage} reads {work / name}, which is not there; run {maker} first.")


def claim(work: Path, **asked: Any) -> dict[str, Any]:
    """Note in a new work folder what it is begun with; return what an older one was begun with.

    A later run may leave an option out (None). Raises ValueError when it asks for another value, which would be ignored
    where a stage is done already.
    """
    note = work / NOTE
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


def start_from(checkpoint: Path, work: Path, recipe: Recipe) -> None:
    """Lay finished weights out as states of the stages: all but the diffusion are done, and that goes on."""
    model = AnyText2.from_config(CONFIG).load_checkpoint(checkpoint)

    def state(module: nn.Module, step: int) -> dict:
        average = {f"module.{k}": v for k, v in module.state_dict().items()} | {"n_averaged": torch.tensor(1)}
        return dict(raw=module.state_dict(), average=average, step=step)

    save(work / "vae.pt", state(model.first_stage_model, recipe.vae_steps))
    save(work / "recogniser.pt", model.text_predictor.state_dict())
    save(work / "fonts.pt", model.embedding_manager.font_predictor.state_dict())
    save(work / "diffusion.pt", state(model, 0))


def stage_data(work: Path, recipe: Recipe, world: int) -> None:
    """Draw the pictures, unless they are there."""
    if (work / "captions.json").exists() and (work / "lines.json").exists():
        return
    create_columns(work, recipe.pictures)
    launch(draw, work, recipe, world)
    finish_data(work, world)


def stage_features(work: Path, recipe: Recipe, world: int) -> None:
    """Compute latents and features of all pictures, unless they are there."""
    if (work / "features.done").exists():
        return
    prepare_features(work, recipe)
    launch(encode_all, work, recipe, world)
    finish_features(work)


def load_average(work: Path) -> AnyText2:
    """The network with the averaged weights of the last stage that has a state.

    Raises FileNotFoundError when none has one.
    """
    states = [work / name for name in ("writing.pt", "diffusion.pt") if (work / name).exists()]
    if not states:
        raise FileNotFoundError(f"{work} holds neither writing.pt nor diffusion.pt; run the stages before export.")
    model = AnyText2.from_config(CONFIG)
    model.load_state_dict(averaged(states[0]))
    load_frozen(model, work)  # a decoder or font predictor may be newer than the diffusion
    model.scale_factor = scale_factor(work)
    return model.eval()


def stage_export(work: Path, target: Path) -> None:
    """Write the half-precision file of the package, and print the scale factor that the yaml must hold."""
    model = load_average(work)
    state = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in model.state_dict().items()}
    with atomic_file(target) as temporary:
        write_state_dict(state, temporary, {"scale_factor": str(model.scale_factor)})
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB; set scale_factor: {model.scale_factor} in {CONFIG}")
