"""A saved adapter, read and checked: the one way in for every folder in PEFT's format. Next: `lora.py`."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from anytext_lcm.adapter.choices import MAX_RANK
from anytext_lcm.files import read_json
from anytext_lcm.model.checkpoint import DAMAGE

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
KEY_PREFIX = "base_model.model."  # in front of every key that PEFT writes and reads
HALVES = (".lora_A.weight", ".lora_B.weight")

# What this package reads of the header that it writes: texts, and numbers with their kind and the range of training.
TEXTS = ("objective", "network")
NUMBERS = {
    "guidance_scale": (int | float, 1, 100),
    "learning_rate": (int | float, 0, 1),
    "phases": (int, 1, 50),
    "step": (int, 0, math.inf),
    "text_factor": (int | float, 1, 1000),
}

# Values of init_lora_weights that leave the base weights alone. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA take a part out
# of them that the saved adapter does not hold.
PLAIN_INITS = (None, True, False, "gaussian", "eva", "orthogonal")
# Fields of PEFT's LoraConfig that do not change what the weights mean, whatever they hold.
NEUTRAL = {
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying"),
    *("eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern"),
    *("layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core"),
    *("peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config"),
    *("target_modules", "task_type", "use_rslora"),
}  # some are checked by name


def read_adapter(directory: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read configuration and weights of a saved adapter: plain LoRA of one rank, A (r, in, ...) and B (out, r, ...).

    Raises FileNotFoundError, or ValueError naming the file and the field for anything else: another method than LoRA, a
    variant of it, an initialisation that changes the base weights, a rank that the weights do not have or above
    MAX_RANK, half a pair, numbers that are not finite.
    """
    directory = Path(directory)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        _require_file(directory / name)
    path = directory / CONFIG_FILE
    try:
        config = read_json(path)
        config = {"r": config["r"], "lora_alpha": config["lora_alpha"], **config}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the configuration of a LoRA adapter ({error!r}).") from error
    check_config(config, path)
    for key in ("use_rslora", "rank_pattern", "alpha_pattern"):
        if config.get(key):
            raise ValueError(f"{path}: {key} is set, which this package does not read; train the adapter here anew.")
    path = directory / WEIGHTS_FILE
    state = read_tensors(path)
    _check_weights(state, config["r"], path)
    return config, state


def training_header(folder: str | Path) -> dict[str, Any]:
    """What this package writes into the header of an adapter's weights; empty where another wrote them.

    Raises as `read_header`, and ValueError naming file and field for one of TEXTS and NUMBERS that training cannot have
    written.
    """
    path = Path(folder) / WEIGHTS_FILE
    header = read_header(path)
    try:
        training = json.loads(header.get("anytext_lcm", "{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(training, dict):
        return {}
    _check_header(training, path)
    return training


def _check_header(training: Mapping[str, Any], path: Path) -> None:
    for key in TEXTS:
        if not isinstance(value := training.get(key), str | None):
            raise ValueError(f"{path}: {key} in the header must be a text, not {value!r}; train the adapter anew.")
    for key, (kind, least, most) in NUMBERS.items():
        value = training.get(key)
        fits = isinstance(value, kind) and not isinstance(value, bool) and least <= value <= most  # refuses nan too
        if value is not None and not fits:
            number = "an integer" if kind is int else "a number"
            upward = "on" if most == math.inf else f"to {most}"
            raise ValueError(
                f"{path}: {key} in the header must be {number} from {least} {upward}, not {value!r}; "
                "train the adapter anew."
            )


def check_config(config: Mapping[str, Any], source: str | Path) -> None:
    """Raise ValueError, naming source and field, for LoRA settings that give another update than (alpha / r) B A.

    config: PEFT's LoraConfig as a dict. use_rslora, rank_pattern and alpha_pattern are left to the caller.
    """
    if (kind := config.get("peft_type") or "LORA") != "LORA":
        raise ValueError(f"{source}: peft_type is {kind!r}; only LORA adapters can be used here.")
    check_rank(config["r"], f"{source}: r")
    check_alpha(config["lora_alpha"], f"{source}: lora_alpha")
    if (bias := config.get("bias") or "none") != "none":
        raise ValueError(f"{source}: bias is {bias!r}, but an adapter here changes no biases; train it with 'none'.")
    init = config.get("init_lora_weights")
    if not any(init is plain or (isinstance(init, str) and init == plain) for plain in PLAIN_INITS):
        raise ValueError(
            f"{source}: init_lora_weights is {init!r}, which changes the base weights, and the file does not hold "
            "that change; convert the adapter to plain LoRA with PEFT (save_pretrained with "
            "path_initial_model_for_weight_conversion)."
        )
    if foreign := sorted(key for key, value in config.items() if key not in NEUTRAL and value):
        raise ValueError(
            f"{source}: {foreign[0]} is set, which this package does not read; train the adapter here anew."
        )


def check_rank(rank: Any, what: str) -> None:
    """Raise ValueError for anything but an integer in 1..MAX_RANK; `what` begins the sentence."""
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
        raise ValueError(f"{what} must be an integer from 1 to {MAX_RANK}, not {rank!r}.")


def check_alpha(alpha: Any, what: str) -> None:
    """Raise ValueError for anything but a positive, finite number; `what` begins the sentence."""
    number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not (number and 0 < alpha < 1e30 and math.isfinite(alpha)):
        raise ValueError(f"{what} must be a positive, finite number, not {alpha!r}.")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file. Raises as `read_header`, and ValueError for tensors that are not
    floating-point or not finite.
    """
    state = _read(path, lambda file: {key: file.get_tensor(key) for key in file.keys()})
    for key, value in state.items():
        if not value.is_floating_point() and not key.endswith(".alpha"):
            raise ValueError(f"{path}: {key!r} is {value.dtype}; only floating-point weights can be used.")
        if not bool(torch.isfinite(value.float()).all()):
            raise ValueError(f"{path}: {key!r} holds numbers that are not finite.")
    return state


def read_header(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file. Raises FileNotFoundError, or ValueError for another or a truncated
    file.
    """
    return _read(path, lambda file: file.metadata() or {})


def _require_file(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; name a directory that holds a saved adapter.")
    if not path.is_file():  # opening a pipe would wait for a writer
        raise ValueError(f"{path} cannot be read: it is no regular file; name a directory that holds a saved adapter.")


def _read(path: Path, read: Callable[[Any], Any]) -> Any:
    _require_file(path)
    try:
        with safe_open(path, "pt") as file:
            return read(file)
    except DAMAGE as error:
        raise ValueError(f"{path} cannot be read: it is truncated or no safetensors file ({error}).") from error


def layer_names(state: Mapping[str, Tensor]) -> list[str]:
    """The names of the adapted layers, sorted, from PEFT's keys of their weights."""
    return sorted({key.removeprefix(KEY_PREFIX).rpartition(".lora_")[0] for key in state})


def _check_weights(state: Mapping[str, Tensor], rank: int, path: Path) -> None:
    foreign = [key for key in state if not key.startswith(KEY_PREFIX) or not key.endswith(HALVES)]
    if foreign or not state:
        raise ValueError(f"{path} holds no PEFT LoRA weights ({len(foreign)} other keys, like {foreign[:1]}).")
    for name in layer_names(state):
        down, up = keys = [f"{KEY_PREFIX}{name}{half}" for half in HALVES]
        if missing := [key for key in keys if key not in state]:
            raise ValueError(f"{path} has only one half of {name}: {missing[0]} is missing.")
        if state[down].ndim < 2 or state[up].ndim < 2 or not len(state[down]) == state[up].shape[1] == rank:
            shapes = [tuple(state[key].shape) for key in keys]
            raise ValueError(
                f"{path} does not fit its configuration: r is {rank}, but {name} has {shapes[0]} and {shapes[1]}."
            )
