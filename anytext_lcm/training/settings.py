"""Settings of a training run: name, type, default, bounds and reason in one place; flags and checks follow from them.

Those of watching a run are in `watch_settings.py`. No torch here, so that `train --help` is quick.
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from anytext_lcm.adapter.choices import MAX_RANK
from anytext_lcm.data.pictures import MAX_SIDE
from anytext_lcm.model.networks import EMBEDDED_GUIDANCE, checkpoint_for, defaults_for, find_config
from anytext_lcm.training.bounds import check_value, setting
from anytext_lcm.training.watch_settings import WatchSettings

# The names in lcm/objectives.py, which needs torch.
OBJECTIVES = ("lcm", "teacher_x0", "pcm", "tcd", "path")
PHASED = ("pcm", "path")
LOSSES = ("huber", "l2")
FITS = ("stretch", "crop", "pad")  # data.placing.FITS, which needs cv2
PRECISIONS = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}  # accelerate's names: torch's dtypes
# Settings of earlier versions that changed what is trained, and the value that every run has now. scenery: False was
# another kind of mock pictures, and nothing to a run on records.
REMOVED = {"loss_gain": 1.0, "guidance_spread": 0.0, "solver_steps": 50, "optimizer": "adamw", "scenery": True}


@dataclass(frozen=True)
class NetworkSettings:
    """The network, its weights, and where the run goes."""

    config: str = setting(
        MISSING,
        "yaml of the network: anytext2_tiny.yaml is the embedded one, anytext2_sd15.yaml the full size",
        identity=False,
        path=True,
    )
    output_dir: str = setting(MISSING, "gets checkpoint-N/ and logs/", identity=False, path=True)
    teacher_ckpt: str | None = setting(
        None, "weights, .ckpt or .safetensors; the embedded network brings its own", identity=False, path=True
    )


@dataclass(frozen=True)
class DataSettings(NetworkSettings):
    """Which pictures a run sees."""

    use_mock_dataset: bool = setting(False, "draw pictures instead of reading them")
    paths: str | None = setting(
        None,
        "folder that python -m anytext_lcm.cache_latents --draw filled: the teacher's own paths instead of pictures",
        path=True,
    )
    data_list: tuple[str, ...] | None = setting(None, "JSONs of records in AnyWord-3M's layout", path=True)
    data_root: str | None = setting(
        None, "folder of their pictures, if not the one they name", identity=False, path=True
    )
    index_dir: str | None = setting(
        None, "where indices of the JSONs are kept, if not beside them", identity=False, path=True
    )
    wm_thresh: float = setting(1.0, "leaves out records with a surer watermark; 1 keeps all, as upstream")
    edit_share: float = setting(
        0.0,
        "share of records in editing mode; AnyText2 was trained without, the mock data have their own",
        at_least=0,
        at_most=1,
    )
    validation_list: tuple[str, ...] | None = setting(
        None,
        "JSONs of records that are not trained on: panel and sample pictures take their prompts from them",
        path=True,
        identity=False,
    )
    validation_share: float = setting(
        0.0,
        "share of the pictures of --data_list, or captions of --paths, that is held out for that instead, chosen by a "
        "checksum of their names or texts",
        at_least=0,
        at_most=0.5,
    )
    fit: str = setting(
        "stretch",
        f"what becomes of pictures that are not square: {', '.join(FITS)}; upstream stretches them",
        choices=FITS,
    )
    fonts: tuple[str, ...] | None = setting(
        None,
        "fonts for the glyphs of records; by default DejaVu Sans, which has no Chinese, on a GPU with one of the "
        "system's that has",
        path=True,
    )
    strict: bool = setting(
        False, "make the first bad record an error; otherwise it is mended or stepped over", identity=False
    )
    dataset_size: int = setting(
        10_000, "pictures that the mock data set holds; they are drawn anew each time", at_least=1, at_most=10_000_000
    )
    image_size: int | None = setting(None, "side of the pictures; by default what the yaml was made for")
    latents: str | None = setting(
        None,
        "folder that python -m anytext_lcm.cache_latents filled for these data, or none; by default a run on a GPU "
        "encodes a small data set that it sees twice or more once, into output_dir/latents",
        path=True,
    )
    num_workers: int | None = setting(
        None,
        "processes that prepare batches; by default 4 for each GPU, as cores allow, and 0 on a CPU",
        at_least=0,
        at_most=1024,
        identity=False,
    )

    @property
    def holds_out(self) -> bool:
        """Whether there are held-out records."""
        return bool(self.validation_list or self.validation_share)

    @property
    def picture_size(self) -> int:
        """Side of the pictures in pixels: the one asked for, or the network's own."""
        return self.image_size or defaults_for(self.config).size[0]


@dataclass(frozen=True)
class ObjectiveSettings:
    """What the student is asked to match."""

    objective: str = setting("lcm", f"what the student matches: {' or '.join(OBJECTIVES)}", choices=OBJECTIVES)
    phases: int | None = setting(
        None,
        "phases of the noise range, for pcm and path, which have 4 by default; 1 makes path's targets the paths' ends",
        at_least=1,
        at_most=50,
    )
    guidance_scale: float | None = setting(
        None,
        "the teacher's guidance, built into the student; by default 7.5, for the embedded network "
        f"{EMBEDDED_GUIDANCE:g}",
        at_least=1,
        at_most=100,
    )
    negative_prompt: str | None = setting(
        None, "what the teacher is guided away from, built in too; by default what the network is drawn with"
    )
    loss: str = setting("huber", f"distance of student and target: {' or '.join(LOSSES)}", choices=LOSSES)
    huber_c: float = setting(
        1e-3, "where the loss turns from quadratic to absolute; small, since latents are about 1", above=0
    )
    text_factor: float = setting(
        1.0, "times that the loss counts latents under lines of text; 1 counts all alike", at_least=1, at_most=1000
    )


@dataclass(frozen=True)
class AdapterSettings:
    """Size and place of the LoRA adapter."""

    lora_rank: int = setting(
        64, "rank of the adapter, as in LCM-LoRA: 108 MB in fp32 at full size", at_least=1, at_most=MAX_RANK
    )
    lora_alpha: float = setting(64, "scales the adapter by alpha / rank; equal to the rank it leaves it alone", above=0)
    lora_targets: tuple[str, ...] | None = setting(
        None,
        "target groups, modules, or .txt files that list them; by default the five groups of zero convolutions "
        "and attention",
    )


@dataclass(frozen=True)
class OptimisationSettings:
    """Batches, rate, precision, length."""

    train_batch_size: int = setting(
        12, "pictures a step and process; 12 at 512 px were meant for 24 GB", at_least=1, at_most=4096
    )
    gradient_accumulation_steps: int = setting(
        4, "batches an update; on three GPUs that makes 144 pictures", at_least=1
    )
    learning_rate: float = setting(1e-4, "LCM-LoRA's; larger ones overexpose", above=0, at_most=1)
    lr_warmup_steps: int = setting(
        0, "updates of rising rate; the adapter starts at zero and needs none, long runs may use 500", at_least=0
    )
    max_grad_norm: float = setting(1.0, "longest gradient; rare batches at high timesteps exceed it", above=0)
    ema_decay: float = setting(
        0.0,
        "decay of a moving average of the adapter, saved beside it in ema/; 0 is none, until one is shown to win",
        at_least=0,
        below=1,
    )
    max_skipped: int = setting(
        10,
        "updates in a row whose loss or gradient may be not finite; fp16 skips a few while its scale settles",
        at_least=1,
        identity=False,
    )
    max_train_steps: int = setting(50_000, "updates", at_least=1, identity=False)
    mixed_precision: str | None = setting(
        None,
        "no, fp16 or bf16; by default what accelerate was configured for, or on a GPU bf16 or else fp16",
        choices=tuple(PRECISIONS),
        identity=False,
    )
    gradient_checkpointing: bool | None = setting(
        None, "less memory for a sixth more time; by default where a GPU's memory needs it", identity=False
    )
    seed: int = setting(0, "decides adapter, order of data, noise and timesteps", at_least=0, at_most=2**63 - 1)


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
        checkpoint = self.teacher_ckpt
        if checkpoint is None:
            checkpoint = str(checkpoint_for(self.config, "--teacher_ckpt"))
        settings = replace(self.with_guidance(), teacher_ckpt=checkpoint)
        settings.check()
        return settings

    def with_guidance(self) -> "TrainSettings":
        """Return settings with the network's own guidance and negative prompt where none is given."""
        network, guidance, negative = defaults_for(self.config), self.guidance_scale, self.negative_prompt
        return replace(
            self,
            guidance_scale=network.guidance_scale if guidance is None else guidance,
            negative_prompt=network.negative_prompt if negative is None else negative,
        )

    def check(self) -> None:
        """Raise ValueError or FileNotFoundError for the first wrong value, before anything is loaded."""
        self.check_together()
        find_config(self.config)
        if not Path(self.teacher_ckpt).is_file():
            raise FileNotFoundError(f"--teacher_ckpt {self.teacher_ckpt} does not exist.")

    def check_together(self) -> None:
        """Raise ValueError for the first value that is wrong, by itself or beside others; weights need not be there."""
        from anytext_lcm.adapter.targets import read_lists  # imports torch
        from anytext_lcm.lcm.schedule import lcm_timesteps

        self.check_values()
        check_picture_size(self.image_size, self.config)
        self.check_objective()
        if self.use_mock_dataset or self.paths:
            of_paths = {"validation_share"} if self.paths else set()  # of their captions
            names = [f"--{n}" for n in RECORDS_ONLY if n not in of_paths and getattr(self, n) != _DEFAULTS[n]]
            if names:
                raise ValueError(f"{', '.join(names)} has no effect on mock data; leave it out or name --data_list.")
        elif self.data_list and self.dataset_size != _DEFAULTS["dataset_size"]:
            raise ValueError("--dataset_size has no effect on records, all are used; leave it out.")
        self.check_held_out()
        if self.panel_prompts == 1:
            raise ValueError("--panel_prompts must be 0 or 2 or more: one prompt is no panel.")
        if self.patience and not (self.panel_prompts and self.sample_steps):
            raise ValueError("--patience needs a panel to go by; set --panel_prompts and --sample_steps.")
        if self.patience and self.data_list and not self.holds_out:
            raise ValueError("--patience needs a panel to go by; hold records out with --validation_list or _share.")
        lcm_timesteps(self.num_inference_steps)
        list(read_lists(self.lora_targets or ()))

    def check_held_out(self) -> None:
        """Raise ValueError for two kinds of held-out records at once, and for a share of nothing."""
        if self.validation_list and self.validation_share:
            raise ValueError("--validation_list and --validation_share both name held-out records; give one of them.")
        if self.validation_share and not (self.data_list or self.paths):
            raise ValueError("--validation_share is a share of --data_list, or of the captions of --paths; name it.")

    def check_objective(self) -> None:
        """Raise ValueError for an objective, phases and paths that do not go together."""
        if self.phases is not None and self.objective not in PHASED:
            raise ValueError(
                f"--phases has no effect on --objective {self.objective}; leave it out, or choose "
                f"{' or '.join(PHASED)}."
            )
        if self.objective == "path" and self.paths is None:
            raise ValueError(
                "--objective path needs the teacher's stored paths: draw them with python -m "
                "anytext_lcm.cache_latents --draw N, and name their folder with --paths."
            )
        if self.paths is None:
            return
        if named := [f"--{name}" for name in ("use_mock_dataset", "data_list", "latents") if getattr(self, name)]:
            raise ValueError(f"{', '.join(named)} has no effect beside --paths, which needs no pictures; leave it out.")

    def check_values(self) -> None:
        """Raise ValueError for the first value that is outside its bounds, whatever the others are."""
        for found, kind in setting_kinds():
            value = getattr(self, found.name)
            if value is not None and value is not MISSING:
                check_value(found, value, kind)

    def identity(self) -> dict[str, Any]:
        """Settings that a resumed run must share with the run it resumes, as JSON values."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata["identity"]}
        kept = {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}
        latents = {None: None, NO_LATENTS: False}.get(self.latents, True)
        return kept | {"latents": latents, "paths": True if self.paths else None}  # their folders may have moved

    @property
    def latents_folder(self) -> str | None:
        """The folder of stored latents that was named."""
        return None if self.latents == NO_LATENTS else self.latents


NO_LATENTS = "none"  # for `latents`: store none
RECORDS_ONLY = ("data_root", "index_dir", "wm_thresh", "edit_share", "validation_list", "validation_share", "fit")
RECORDS_ONLY += ("fonts", "strict")
_DEFAULTS = {known.name: known.default for known in fields(TrainSettings)}


def check_picture_size(side: int | None, config: str | Path) -> None:
    """Raise ValueError for a side of the pictures, in pixels, that the network cannot have. None is its own."""
    multiple = defaults_for(config).multiple
    if side is not None and (side < 1 or side % multiple):
        raise ValueError(f"The pictures' side must be a positive multiple of {multiple} pixels, not {side}.")
    if side is not None and side > MAX_SIDE:
        raise ValueError(f"The pictures' side must be at most {MAX_SIDE} pixels, not {side}.")


def setting_kinds() -> list[tuple[Field, type]]:
    """Each field with its type: `int` for `int | None`, `tuple` for a tuple."""
    hints = get_type_hints(TrainSettings)
    found = []
    for known in fields(TrainSettings):
        hint = hints[known.name]
        kinds = [kind for kind in get_args(hint) if kind is not type(None)] or [hint]
        found.append((known, get_origin(kinds[0]) or kinds[0]))
    return found
