"""Settings of a training run: name, type, default, bounds and reason in one place; flags and checks follow from them.

No torch here, so that `train --help` is quick.
"""

import argparse
import math
import operator
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from anytext_lcm.adapter.choices import MAX_RANK
from anytext_lcm.model.networks import EMBEDDED_GUIDANCE, checkpoint_for, defaults_for

OBJECTIVES = ("lcm", "teacher_x0")  # the names of lcm.objectives.OBJECTIVES, which needs torch
LOSSES = ("huber", "l2")
PRECISIONS = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}  # accelerate's names: torch's dtypes
# Settings of earlier versions that changed what is trained, and the value that every run has now.
REMOVED = {"loss_gain": 1.0, "guidance_spread": 0.0, "solver_steps": 50, "optimizer": "adamw"}


def _setting(
    default: Any,
    reason: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    choices: tuple[str, ...] = (),
    identity: bool = True,
) -> Any:
    """A field with its bounds and its reason. identity: a resumed run must have the same value."""
    bounds = {"at least": at_least, "above": above, "below": below, "at most": at_most}
    bounds = {words: bound for words, bound in bounds.items() if bound is not None}
    return field(default=default, metadata={"help": reason, "bounds": bounds, "choices": choices, "identity": identity})


_WITHIN = {"at least": operator.ge, "above": operator.gt, "below": operator.lt, "at most": operator.le}


def _check_value(setting: Field, value: Any, kind: type) -> None:
    """Raises ValueError for a number or a choice that is out of bounds."""
    choices, bounds = setting.metadata["choices"], setting.metadata["bounds"]
    if choices and value not in choices:
        raise ValueError(f"--{setting.name} {value!r} is unknown; choose {' or '.join(choices)}.")
    if kind not in (int, float):
        return
    numeric = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not (numeric and math.isfinite(value) and all(_WITHIN[w](value, bound) for w, bound in bounds.items())):
        limits = " and ".join(f"{words} {bound:g}" for words, bound in bounds.items())
        what = ("an integer" if kind is int else "a number") + (f", {limits}" if limits else "")
        raise ValueError(f"--{setting.name} must be {what}: {value!r} is not.")


@dataclass(frozen=True)
class NetworkSettings:
    """The network, its weights, and where the run goes."""

    config: str = _setting(MISSING, "yaml of the network, in upstream's format", identity=False)
    output_dir: str = _setting(MISSING, "gets checkpoint-N/ and logs/", identity=False)
    teacher_ckpt: str | None = _setting(
        None, "weights, .ckpt or .safetensors; the embedded network brings its own", identity=False
    )


@dataclass(frozen=True)
class DataSettings(NetworkSettings):
    """Which pictures a run sees."""

    use_mock_dataset: bool = _setting(False, "draw pictures instead of reading them")
    data_list: tuple[str, ...] | None = _setting(None, "JSONs of records in AnyWord-3M's layout")
    data_root: str | None = _setting(None, "folder of their pictures, if not the one they name", identity=False)
    index_dir: str | None = _setting(None, "where indices of the JSONs are kept, if not beside them", identity=False)
    wm_thresh: float = _setting(1.0, "leaves out records with a surer watermark; 1 keeps all, as upstream")
    edit_share: float = _setting(
        0.0, "share of records in editing mode; AnyText2 was trained without, the mock data have their own"
    )
    fonts: tuple[str, ...] | None = _setting(
        None, "fonts for the glyphs of records; by default DejaVu Sans, which has no Chinese"
    )
    strict: bool = _setting(
        False, "make the first bad record an error; otherwise it is mended or stepped over", identity=False
    )
    dataset_size: int = _setting(
        10_000, "pictures that the mock data set holds; they are drawn anew each time", at_least=1
    )
    image_size: int | None = _setting(None, "side of the pictures; by default what the yaml was made for")
    latents: str | None = _setting(
        None, "folder that python -m anytext_lcm.cache_latents filled for these data; spares the autoencoder"
    )
    num_workers: int = _setting(
        0, "processes that prepare batches; 4 a GPU keep one busy, 0 suits notebooks", at_least=0, identity=False
    )

    @property
    def picture_size(self) -> int:
        """Side of the pictures in pixels: the one asked for, or the network's own."""
        return self.image_size or defaults_for(self.config).size[0]


@dataclass(frozen=True)
class ObjectiveSettings:
    """What the student is asked to match."""

    objective: str = _setting("lcm", f"what the student matches: {' or '.join(OBJECTIVES)}", choices=OBJECTIVES)
    guidance_scale: float | None = _setting(
        None,
        "the teacher's guidance, built into the student; by default 7.5, for the embedded network "
        f"{EMBEDDED_GUIDANCE:g}",
    )
    negative_prompt: str | None = _setting(
        None, "what the teacher is guided away from, built in too; by default what the network is drawn with"
    )
    loss: str = _setting("huber", f"distance of student and target: {' or '.join(LOSSES)}", choices=LOSSES)
    huber_c: float = _setting(
        1e-3, "where the loss turns from quadratic to absolute; small, since latents are about 1", above=0
    )


@dataclass(frozen=True)
class AdapterSettings:
    """Size and place of the LoRA adapter."""

    lora_rank: int = _setting(
        64, "rank of the adapter, as in LCM-LoRA: 108 MB in fp32 at full size", at_least=1, at_most=MAX_RANK
    )
    lora_alpha: float = _setting(
        64, "scales the adapter by alpha / rank; equal to the rank it leaves it alone", above=0
    )
    lora_targets: tuple[str, ...] | None = _setting(
        None,
        "target groups, modules, or .txt files that list them; by default the five groups of zero convolutions "
        "and attention",
    )


@dataclass(frozen=True)
class OptimisationSettings:
    """Batches, rate, precision, length."""

    train_batch_size: int = _setting(12, "pictures a step and process; 12 at 512 px were meant for 24 GB", at_least=1)
    gradient_accumulation_steps: int = _setting(
        4, "batches an update; on three GPUs that makes 144 pictures", at_least=1
    )
    learning_rate: float = _setting(1e-4, "LCM-LoRA's; larger ones overexpose", above=0)
    lr_warmup_steps: int = _setting(
        0, "updates of rising rate; the adapter starts at zero and needs none, long runs may use 500", at_least=0
    )
    max_grad_norm: float = _setting(1.0, "longest gradient; rare batches at high timesteps exceed it", above=0)
    ema_decay: float = _setting(
        0.0,
        "decay of a moving average of the adapter, saved beside it in ema/; 0 is none, until one is shown to win",
        at_least=0,
        below=1,
    )
    max_skipped: int = _setting(
        10,
        "updates in a row whose loss or gradient may be not finite; fp16 skips a few while its scale settles",
        at_least=1,
        identity=False,
    )
    max_train_steps: int = _setting(50_000, "updates", at_least=1, identity=False)
    mixed_precision: str | None = _setting(
        None,
        "no, fp16 or bf16; by default what accelerate was configured for",
        choices=tuple(PRECISIONS),
        identity=False,
    )
    gradient_checkpointing: bool = _setting(False, "less memory for a sixth more time", identity=False)
    seed: int = _setting(0, "decides adapter, order of data, noise and timesteps", at_least=0)


@dataclass(frozen=True)
class WatchSettings:
    """Checkpoints, sample pictures, the panel."""

    checkpointing_steps: int = _setting(
        500, "updates between checkpoints; the last one is always saved", at_least=1, identity=False
    )
    checkpoints_total_limit: int = _setting(
        0,
        "latest checkpoints to keep, 0 for all; one takes 0.3 GB at full size, 0.4 with an average",
        at_least=0,
        identity=False,
    )
    resume_from_checkpoint: str | None = _setting(None, "a checkpoint directory, or latest", identity=False)
    sample_steps: int = _setting(500, "updates between sample pictures, 0 for none", at_least=0, identity=False)
    panel_prompts: int = _setting(
        16,
        "prompts of a fixed panel whose text is read at every sample, 2 or more, 0 for none; tells training "
        "from overtraining, which the loss does not",
        at_least=0,
        identity=False,
    )
    patience: int = _setting(
        0, "panels in a row without a better reading that end the run, 0 for any number", at_least=0, identity=False
    )
    num_inference_steps: int = _setting(4, "steps the student takes in sample pictures", at_least=1, identity=False)
    num_processes: int | None = _setting(
        None, "processes there must be; stops a launch that fell apart into single runs", identity=False
    )
    progress: bool = _setting(True, "show a progress bar", identity=False)


# dataclass takes the fields of the last base first
@dataclass(frozen=True)
class TrainSettings(WatchSettings, OptimisationSettings, AdapterSettings, ObjectiveSettings, DataSettings):
    """Everything a run depends on, by flat names. The reason beside a default is also the help of its flag."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainSettings":
        """Build, complete and check settings. Raises ValueError for an unknown or missing name, and as `check`."""
        names = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - names):
            raise ValueError(f"Unknown training settings {', '.join(unknown)}; see TrainSettings for their names.")
        if missing := sorted({"config", "output_dir"} - set(values)):
            raise ValueError(f"The training settings lack {', '.join(missing)}.")
        return cls(**values).resolve()

    def resolve(self) -> "TrainSettings":
        """Return settings with what depends on the network filled in, and checked. Raises as `check`."""
        network = defaults_for(self.config)
        checkpoint = self.teacher_ckpt
        if checkpoint is None:
            checkpoint = str(checkpoint_for(self.config, "--teacher_ckpt"))
        guidance, negative = self.guidance_scale, self.negative_prompt
        settings = replace(
            self,
            teacher_ckpt=checkpoint,
            guidance_scale=network.guidance_scale if guidance is None else guidance,
            negative_prompt=network.negative_prompt if negative is None else negative,
        )
        settings.check()
        return settings

    def check(self) -> None:
        """Raise ValueError or FileNotFoundError for the first wrong value, before anything is loaded."""
        from anytext_lcm.lcm.schedule import lcm_timesteps  # imports torch

        for setting, kind in _kinds():
            value = getattr(self, setting.name)
            if value is not None:
                _check_value(setting, value, kind)
        if self.panel_prompts == 1:
            raise ValueError("--panel_prompts must be 0 or 2 or more: one prompt is no panel.")
        if self.patience and not (self.panel_prompts and self.sample_steps):
            raise ValueError("--patience needs a panel to go by; set --panel_prompts and --sample_steps.")
        lcm_timesteps(self.num_inference_steps)
        for name in ("config", "teacher_ckpt"):
            if not Path(getattr(self, name)).is_file():
                raise FileNotFoundError(f"--{name} {getattr(self, name)} does not exist.")

    def identity(self) -> dict[str, Any]:
        """Settings that a resumed run must share with the run it resumes, as JSON values."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata["identity"]}
        kept = {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}
        return kept | {"latents": True if self.latents else None}  # their folder may have moved


def _kinds() -> list[tuple[Field, type]]:
    """Each field with its type: `int` for `int | None`, `tuple` for a tuple."""
    hints = get_type_hints(TrainSettings)
    found = []
    for setting in fields(TrainSettings):
        hint = hints[setting.name]
        kinds = [kind for kind in get_args(hint) if kind is not type(None)] or [hint]
        found.append((setting, get_origin(kinds[0]) or kinds[0]))
    return found


def add_flags(parser: argparse.ArgumentParser, names: Collection[str], needed: bool = True) -> None:
    """Add one flag for each named field of TrainSettings, with its default and reason.

    needed: whether fields without a default are required flags.
    """
    # Not transformers.HfArgumentParser: its import takes most of a second, it has no flags for tuples, and it makes
    # a flag of every field where `cache_latents` wants some.
    for setting, kind in _kinds():
        if setting.name not in names:
            continue
        options: dict[str, Any] = {"help": setting.metadata["help"].replace("%", "%%")}
        if setting.default is MISSING:
            options["required"] = needed
        else:
            options["default"] = setting.default
            if setting.default is not None and kind is not bool:
                options["help"] += f" (default: {setting.default!r})"
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif kind is tuple:
            options["nargs"] = "+"
        else:
            options["type"] = kind
        if setting.metadata["choices"]:
            options["choices"] = setting.metadata["choices"]
        parser.add_argument(f"--{setting.name}", **options)


def collect(parsed: argparse.Namespace) -> dict[str, Any]:
    """Parsed flags as fields of TrainSettings: lists become tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in vars(parsed).items()}
