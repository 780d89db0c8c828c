"""The settings of a training run, checked before anything is loaded, and their flags. Imports torch, lcm, pipeline."""

import argparse
import math
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch

from anytext_lcm.lcm.objectives import OBJECTIVES
from anytext_lcm.lcm.schedule import lcm_timesteps
from anytext_lcm.pipeline import EMBEDDED_CHECKPOINT, EMBEDDED_CONFIG, EMBEDDED_GUIDANCE, defaults_for

LOSSES = ("huber", "l2")
# Settings of earlier versions that changed what is trained, and the value that every run has now.
REMOVED = {"loss_gain": 1.0, "guidance_spread": 0.0, "solver_steps": 50, "optimizer": "adamw"}
PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def _setting(default: Any, reason: str) -> Any:
    return field(default=default, metadata={"help": reason})


@dataclass(frozen=True)
class TrainSettings:
    """Everything a run depends on; the reason beside a default is also the help of its flag."""

    config: str = field(metadata={"help": "yaml of the network, in upstream's format"})
    output_dir: str = field(metadata={"help": "gets checkpoint-N/ and logs/"})
    teacher_ckpt: str | None = _setting(
        None, "weights, .ckpt or .safetensors; the embedded network brings its own"
    )
    # data
    use_mock_dataset: bool = _setting(False, "draw pictures instead of reading them")
    data_list: tuple[str, ...] | None = _setting(None, "JSONs of records in AnyWord-3M's layout")
    data_root: str | None = _setting(None, "folder of their pictures, if not the one they name")
    index_dir: str | None = _setting(None, "where indices of the JSONs are kept, if not beside them")
    wm_thresh: float = _setting(1.0, "leaves out records with a surer watermark; 1 keeps all, as upstream")
    edit_share: float = _setting(
        0.0, "share of records in editing mode; AnyText2 was trained without, the mock data have their own"
    )
    fonts: tuple[str, ...] | None = _setting(
        None, "fonts for the glyphs of records; by default DejaVu Sans, which has no Chinese"
    )
    strict: bool = _setting(False, "make the first bad record an error; otherwise it is mended or stepped over")
    dataset_size: int = _setting(
        10_000, "pictures that the mock data set holds; they are drawn anew each time"
    )
    image_size: int | None = _setting(None, "side of the pictures; by default what the yaml was made for")
    latents: str | None = _setting(
        None, "folder that python -m anytext_lcm.cache_latents filled for these data; spares the autoencoder"
    )
    num_workers: int = _setting(0, "processes that prepare batches; 4 a GPU keep one busy, 0 suits notebooks")
    # objective
    objective: str = _setting("lcm", f"what the student matches: {' or '.join(OBJECTIVES)}")
    guidance_scale: float | None = _setting(
        None, "the teacher's guidance, built into the student; by default 7.5, for the embedded network "
        f"{EMBEDDED_GUIDANCE:g}",
    )
    negative_prompt: str | None = _setting(
        None, "what the teacher is guided away from, built in too; by default what the network is drawn with"
    )
    loss: str = _setting("huber", f"distance of student and target: {' or '.join(LOSSES)}")
    huber_c: float = _setting(
        1e-3, "where the loss turns from quadratic to absolute; small, since latents are about 1"
    )
    # adapter
    lora_rank: int = _setting(64, "rank of the adapter, as in LCM-LoRA: 108 MB in fp32 at full size")
    lora_alpha: float = _setting(
        64, "scales the adapter by alpha / rank; equal to the rank it leaves it alone"
    )
    lora_targets: tuple[str, ...] | None = _setting(
        None, "target groups, modules, or .txt files that list them; by default the five groups of zero convolutions "
        "and attention",
    )
    # optimisation
    train_batch_size: int = _setting(12, "pictures a step and process; 12 at 512 px were meant for 24 GB")
    gradient_accumulation_steps: int = _setting(4, "batches an update; on three GPUs that makes 144 pictures")
    learning_rate: float = _setting(1e-4, "LCM-LoRA's; larger ones overexpose")
    lr_warmup_steps: int = _setting(
        0, "updates of rising rate; the adapter starts at zero and needs none, long runs may use 500"
    )
    max_grad_norm: float = _setting(1.0, "longest gradient; rare batches at high timesteps exceed it")
    ema_decay: float = _setting(
        0.0, "decay of a moving average of the adapter, saved beside it in ema/; 0 is none, until one is shown to win"
    )
    max_skipped: int = _setting(
        10, "updates in a row whose loss or gradient may be not finite; fp16 skips a few while its scale settles"
    )
    max_train_steps: int = _setting(50_000, "updates")
    mixed_precision: str | None = _setting(
        None, "no, fp16 or bf16; by default what accelerate was configured for"
    )
    gradient_checkpointing: bool = _setting(False, "less memory for a sixth more time")
    seed: int = _setting(0, "decides adapter, order of data, noise and timesteps")
    # watching
    checkpointing_steps: int = _setting(500, "updates between checkpoints; the last one is always saved")
    checkpoints_total_limit: int = _setting(
        0, "latest checkpoints to keep, 0 for all; one takes 0.3 GB at full size, 0.4 with an average"
    )
    resume_from_checkpoint: str | None = _setting(None, "a checkpoint directory, or latest")
    sample_steps: int = _setting(500, "updates between sample pictures, 0 for none")
    panel_prompts: int = _setting(
        16, "prompts of a fixed panel whose text is read at every sample, 2 or more, 0 for none; tells training "
        "from overtraining, which the loss does not",
    )
    patience: int = _setting(0, "panels in a row without a better reading that end the run, 0 for any number")
    num_inference_steps: int = _setting(4, "steps the student takes in sample pictures")
    num_processes: int | None = _setting(
        None, "processes there must be; stops a launch that fell apart into single runs"
    )
    progress: bool = _setting(True, "show a progress bar")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainSettings":
        """Raises ValueError for a name that is none, for a missing one, and for values that cannot be."""
        names = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - names):
            raise ValueError(
                f"Unknown training settings {', '.join(unknown)}; see TrainSettings for their names."
            )
        if missing := sorted({"config", "output_dir"} - set(values)):
            raise ValueError(f"The training settings lack {', '.join(missing)}.")
        return cls(**values).resolve()

    def resolve(self) -> "TrainSettings":
        """Fills in what depends on the network, and checks the rest; raises as `check` does."""
        network = defaults_for(self.config)
        checkpoint = self.teacher_ckpt
        if checkpoint is None:
            if Path(self.config).resolve() != EMBEDDED_CONFIG.resolve():
                raise ValueError(f"{self.config} comes without weights; name them with --teacher_ckpt.")
            checkpoint = str(EMBEDDED_CHECKPOINT)
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
        """Raises ValueError or FileNotFoundError with what is wrong, before anything is loaded."""
        for name in (
            "dataset_size", "lora_rank", "train_batch_size", "gradient_accumulation_steps",
            "max_train_steps", "checkpointing_steps", "num_inference_steps", "max_skipped",
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"--{name} must be a positive integer, not {value!r}.")
        for name in (
            "num_workers", "lr_warmup_steps", "sample_steps", "checkpoints_total_limit", "panel_prompts", "patience",
            "seed",
        ):  # fmt: skip
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name} must not be negative, it is {getattr(self, name)}.")
        for name in ("learning_rate", "lora_alpha", "max_grad_norm", "huber_c"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name} must be a positive number, not {getattr(self, name)!r}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema_decay must lie in 0..1 without 1, not {self.ema_decay!r}; 0.999 is usual.")
        if not math.isfinite(self.guidance_scale):
            raise ValueError(
                f"--guidance_scale must be a number, not {self.guidance_scale!r}; 1 is no guidance."
            )
        if self.panel_prompts == 1:
            raise ValueError("--panel_prompts must be 0 or 2 or more: one prompt is no panel.")
        if self.patience and not (self.panel_prompts and self.sample_steps):
            raise ValueError("--patience needs a panel to go by; set --panel_prompts and --sample_steps.")
        for name, known in (("objective", OBJECTIVES), ("loss", LOSSES)):
            if getattr(self, name) not in known:
                raise ValueError(f"--{name} {getattr(self, name)!r} is unknown; choose {' or '.join(known)}.")
        if self.mixed_precision not in (None, *PRECISIONS):
            raise ValueError(
                f"--mixed_precision {self.mixed_precision!r} is unknown; choose {', '.join(PRECISIONS)}."
            )
        lcm_timesteps(self.num_inference_steps)
        for name in ("config", "teacher_ckpt"):
            if not Path(getattr(self, name)).is_file():
                raise FileNotFoundError(f"--{name} {getattr(self, name)} does not exist.")

    def identity(self) -> dict[str, Any]:
        """What must stay the same for a resumed run to be the run it resumes."""
        free = (
            "config", "teacher_ckpt", "output_dir", "num_workers", "max_train_steps", "checkpointing_steps",
            "resume_from_checkpoint", "sample_steps", "num_inference_steps", "num_processes", "progress",
            "gradient_checkpointing", "mixed_precision", "data_root", "index_dir", "strict", "max_skipped",
            "checkpoints_total_limit", "panel_prompts", "patience",
        )  # fmt: skip
        kept = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if k not in free}
        return kept | {"latents": True if self.latents else None}  # wherever they lie


# -- flags ----------------------------------------------------------------------------------------------

LISTS = ("lora_targets", "data_list", "fonts")
CHOICES = {
    "objective": tuple(OBJECTIVES), "mixed_precision": tuple(PRECISIONS), "loss": LOSSES
}  # fmt: skip


def add_flags(parser: argparse.ArgumentParser, names: Collection[str], needed: bool = True) -> None:
    """One flag for each of these fields of TrainSettings, with its default and the reason for it."""
    hints = get_type_hints(TrainSettings)
    for setting in fields(TrainSettings):
        if setting.name not in names:
            continue
        options: dict[str, Any] = {"help": setting.metadata["help"].replace("%", "%%")}
        if setting.default is MISSING:
            options["required"] = needed
        else:
            options["default"] = setting.default
            if setting.default is not None and not isinstance(setting.default, bool):
                options["help"] += f" (default: {setting.default!r})"
        kinds = [
            kind
            for kind in (get_args(hints[setting.name]) or [hints[setting.name]])
            if kind is not type(None)
        ]
        if hints[setting.name] is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif setting.name in LISTS:
            options["nargs"] = "+"
        else:
            options["type"] = kinds[0]
        if setting.name in CHOICES:
            options["choices"] = CHOICES[setting.name]
        parser.add_argument(f"--{setting.name}", **options)


def collect(parsed: argparse.Namespace) -> dict[str, Any]:
    """Parsed flags as fields of TrainSettings."""
    return {k: tuple(v) if k in LISTS and v is not None else v for k, v in vars(parsed).items()}
