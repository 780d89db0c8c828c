"""Which networks there are, and what each is drawn with unless a flag says otherwise. It imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

ASSETS = Path(__file__).parents[1] / "assets"
CONFIGS = Path(__file__).parents[1] / "models_yaml"
EMBEDDED_CONFIG = CONFIGS / "anytext2_tiny.yaml"
FULL_CONFIG = CONFIGS / "anytext2_sd15.yaml"
EMBEDDED_CHECKPOINT = ASSETS / "teacher.safetensors"

EMBEDDED_GUIDANCE = 2.0  # as its yaml says
FULL_GUIDANCE = 7.5  # AnyText2's evaluation scripts
# AnyText2's demo.py
FULL_NEGATIVE_PROMPT = (
    "low-res, bad anatomy, extra digit, fewer digits, cropped, worst quality, low quality, watermark, "
    "unreadable text, messy words, distorted text, disorganized writing, advertising picture"
)


@dataclass(frozen=True)
class Defaults:
    """What a network is drawn with unless a flag says otherwise."""

    size: tuple[int, int]  # height and width of a picture, in pixels
    max_lines: int
    guidance_scale: float  # of the teacher
    negative_prompt: str
    multiple: int = 64  # height and width must be a multiple of it: the UNet halves latents once per level
    checkpoint: Path | None = None  # the weights that come with the yaml


def find_config(config: str | Path) -> Path:
    """Find a yaml: a file of this path, else one that comes with the package, as NAME.yaml or models_yaml/NAME.yaml.

    Raises FileNotFoundError when there is neither.
    """
    path = Path(config)
    if path.is_file():
        return path
    own = CONFIGS / path.name
    if path.parent in (Path("."), Path(CONFIGS.name)) and own.is_file():
        return own
    known = ", ".join(sorted(found.name for found in CONFIGS.glob("*.yaml")))
    raise FileNotFoundError(
        f"Configuration {path} does not exist or is not a file; name a yaml, or one of the package's: {known}."
    )


def defaults_for(config: str | Path) -> Defaults:
    """Read a yaml's `model.defaults`; AnyText2's own stand in for what is not there.

    Raises FileNotFoundError or ValueError; whether the weights exist is checked by `checkpoint_for`.
    """
    path = find_config(config)
    try:
        model = OmegaConf.load(path).model
        params = model.params
        side, levels = 8 * int(params.image_size), len(params.unet_config.params.channel_mult)
    except Exception as error:
        raise ValueError(
            f"Configuration {path} does not say model.params.image_size and unet_config.params.channel_mult."
        ) from error
    if not (8 <= side <= 4096 and 1 <= levels <= 8):
        raise ValueError(f"Configuration {path}: image_size must lie in 1..512, channel_mult have 1 to 8 levels.")
    multiple = 8 * 2 ** (levels - 1)
    given = _stated(OmegaConf.to_container(model).get("defaults"), f"Configuration {path}: model.defaults")
    checkpoint = given.get("checkpoint")
    return Defaults(
        (side, side),
        given.get("max_lines", 20),
        float(given.get("guidance_scale", FULL_GUIDANCE)),
        given.get("negative_prompt", FULL_NEGATIVE_PROMPT),
        multiple,
        None if checkpoint is None else (path.parent / checkpoint).resolve(),
    )


def is_anytext2(config: str | Path) -> bool:
    """Whether a yaml describes AnyText2 itself: the parameters of anytext2_sd15.yaml, wherever its tokenizer lies.

    Raises FileNotFoundError or ValueError as `defaults_for` does.
    """
    found = []
    for path in (Path(config), FULL_CONFIG):
        defaults_for(path)
        params = OmegaConf.to_container(OmegaConf.load(path).model.params)
        params.get("cond_stage_config", {}).get("params", {}).pop("version", None)
        found.append(params)
    return found[0] == found[1]


def _stated(given: Any, where: str) -> dict[str, Any]:
    """Check `model.defaults` of a yaml and return it. where: how the sentence of the ValueError begins."""
    kinds = {
        "guidance_scale": (int | float, lambda scale: 1 <= scale <= 100, "a number in 1..100"),
        "negative_prompt": (str, lambda _: True, "a string"),
        "max_lines": (int, lambda lines: 0 < lines <= 100, "an integer in 1..100"),
        "checkpoint": (str, bool, "the path of a file, relative to the yaml"),
    }
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise ValueError(f"{where} must map names to values, not {given!r}; the names are {', '.join(kinds)}.")
    if unknown := [str(name) for name in given if name not in kinds]:
        raise ValueError(f"{where} has no {', '.join(unknown)}; it may set {', '.join(kinds)}.")
    for name, value in given.items():
        kind, fits, words = kinds[name]
        if isinstance(value, bool) or not isinstance(value, kind) or not fits(value):
            raise ValueError(f"{where}.{name} must be {words}, not {value!r}.")
    return given


def checkpoint_for(config: str | Path, flag: str) -> Path:
    """Return the path of the weights that a yaml names in `model.defaults.checkpoint`.

    flag: the option that names others, for the message. Raises ValueError when the yaml names none, FileNotFoundError
    when they are not there.
    """
    checkpoint = defaults_for(config).checkpoint
    if checkpoint is None:
        raise ValueError(f"{config} comes without weights; name them with {flag}.")
    if not checkpoint.is_file():
        raise FileNotFoundError(
            f"{config} names the weights {checkpoint}, which do not exist; "
            f"correct its model.defaults.checkpoint, or name them with {flag}."
        )
    return checkpoint
