"""
Stages that build the embedded teacher: claim the folder, data, features, export.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.teacher.columns import (
    draw,
    encode_all,
    finish_data,
    finish_features,
    open_columns,
    prepare_features,
    scale_factor,
    write_json,
)
from anytext_lcm.teacher.recipe import CONFIG, Recipe, averaged, launch, save

FEWEST_PICTURES = 100  # one step of the diffusion draws up to 96 different ones, on a GPU


STAGES = ("data", "vae", "recogniser", "features", "diffusion", "reader", "writing", "decoder", "export")
DEFAULT_STAGES = {"mock": tuple(stage for stage in STAGES if stage != "decoder"), "scenery": STAGES}


_FEATURES = ("captions.json", "vae.pt", "recogniser.pt", "features.done")


READS = {  # files of the work folder; export says itself what it lacks
    "vae": ("captions.json",),
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
        if value is not None and value != before[name]:
            raise ValueError(
                f"{work} was begun with --{name} {before[name]}, not {value}; leave it out, or name another --work."
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
    if (work / "decoder.pt").exists():
        model.first_stage_model.load_state_dict(averaged(work / "decoder.pt"))
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
