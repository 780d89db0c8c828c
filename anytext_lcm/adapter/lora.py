"""The LoRA adapter: where it goes, on, off, to disk and back. Imports torch, PEFT and the rooms below.

PEFT's layers are put into the model itself and the model stays an AnyText2. PEFT's own wrapper would hide it:
a PeftModel answers `.model` with what it wraps, and AnyText2 has a `.model` of its own.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anytext_lcm.adapter.targets import ADAPTER_NAME, resolve_targets, unwrapped
from anytext_lcm.files import atomic_file, atomic_folder
from anytext_lcm.model.networks import ASSETS

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


KEY_PREFIX = "base_model.model."  # in front of every key that PEFT writes and reads


def adapter_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Adapted layers by the name the module has without an adapter; empty when none is attached."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def adapts(model: nn.Module, *parts: str) -> bool:
    """Whether the adapter reaches into one of these modules, named by their path."""
    return any(name.startswith(tuple(f"{part}." for part in parts)) for name in adapter_layers(model))


def adapter_state(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters by PEFT's keys, sorted: what is trained and what is saved."""
    state = {}
    for name, layer in adapter_layers(model).items():
        state[f"{KEY_PREFIX}{name}.lora_A.weight"] = layer.lora_A[ADAPTER_NAME].weight
        state[f"{KEY_PREFIX}{name}.lora_B.weight"] = layer.lora_B[ADAPTER_NAME].weight
    return dict(sorted(state.items()))


def attach(model: nn.Module, rank: int = 64, alpha: float = 64, targets: Sequence[str] | None = None) -> nn.Module:
    """Puts a fresh adapter into the model, in place, and freezes everything else. Returns the model.

    W becomes W + (alpha / rank) B A; B starts at zero, so nothing changes yet (arXiv:2106.09685). A is drawn
    from torch's global generator. The adapter is fp32 whatever the network is in: an Adam step of 1e-4 is
    lost in half precision. targets: group names of `find_targets` or module names, None for all groups.
    Raises ValueError for a rank or alpha that is not positive, an unknown target, or a model that has an
    adapter already.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"The LoRA rank must be a positive integer, not {rank!r}; 64 is usual.")
    if not alpha > 0:
        raise ValueError(f"LoRA alpha must be positive, not {alpha!r}; alpha = rank leaves the update unscaled.")
    if adapter_layers(model):
        raise ValueError("The model has an adapter already; merge it or build the model anew.")
    names = resolve_targets(model, targets)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules=names)
    model.requires_grad_(False)
    inject_adapter_in_model(config, model, adapter_name=ADAPTER_NAME)
    attached = adapter_layers(model)
    if sorted(attached) != names:  # PEFT matches names by their ends as well
        raise ValueError(f"PEFT adapted {len(attached)} modules instead of the {len(names)} named ones.")
    for parameter in adapter_state(model).values():
        parameter.data = parameter.data.float()
    return model


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, the model is the bare teacher, bit for bit; without an adapter it is so already. May be nested.

    Sets PEFT's flag directly: its method also switches requires_grad, which would unfreeze a loaded adapter
    on the way back, and takes ten times as long.
    """
    layers = list(adapter_layers(model).values())
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield model
    finally:
        for layer, flag in zip(layers, before, strict=True):
            layer._disable_adapters = flag


@contextmanager
def adapter_merged(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, the adapter is part of the weights: the student without the adapter's own products, the same to rounding.

    Afterwards the layers have their own weights again, not a difference of sums: the teacher stays as it was, bit for
    bit. Not for training, and not to be nested.
    """
    layers = list(adapter_layers(model).values())
    weights = [layer.get_base_layer().weight for layer in layers]
    before = [weight.data for weight in weights]
    try:
        with torch.no_grad(), adapter_off(model):
            for layer, weight in zip(layers, weights, strict=True):
                with torch.autocast(weight.device.type, enabled=False):  # it would round the product to half precision
                    weight.data = (weight.float() + layer.get_delta_weight(ADAPTER_NAME)).to(weight.dtype)
            yield model
    finally:
        for weight, data in zip(weights, before, strict=True):
            weight.data = data


def save_adapter(model: nn.Module, directory: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Writes adapter_config.json and adapter_model.safetensors (fp32), in PEFT's own format. Returns the
    directory.

    PeftModel.from_pretrained and `load_adapter` both read it. A new directory appears complete or not at all;
    in an existing one each file is replaced at once. metadata goes into the header of the weights. Raises
    ValueError when there is no adapter.
    """
    directory = Path(directory)
    if not adapter_layers(model):
        raise ValueError("There is no adapter to save; attach one first.")
    if not directory.exists():
        with atomic_folder(directory) as temporary:
            _write_weights(model, temporary / WEIGHTS_FILE, metadata)
            _write_config(model, temporary / CONFIG_FILE)
        return directory
    with atomic_file(directory / WEIGHTS_FILE) as temporary:
        _write_weights(model, temporary, metadata)
    with atomic_file(directory / CONFIG_FILE) as temporary:
        _write_config(model, temporary)
    return directory


def _write_weights(model: nn.Module, path: Path, metadata: Mapping[str, str] | None) -> None:
    state = {key: value.detach().float().cpu().contiguous() for key, value in adapter_state(model).items()}
    save_file(state, path, metadata={"format": "pt", **(metadata or {})})


def _write_config(model: nn.Module, path: Path) -> None:
    # PEFT keeps the targets as a set, shortened to name endings; the file gets every name, in an order that
    # stays.
    config = model.peft_config[ADAPTER_NAME].to_dict()
    config |= {"target_modules": sorted(adapter_layers(model)), "inference_mode": True}
    text = json.dumps(config, indent=2, sort_keys=True, default=sorted)
    path.write_text(text + "\n", encoding="utf-8")


def read_adapter(directory: str | Path) -> tuple[dict, dict[str, Tensor]]:
    """Configuration and weights of a saved adapter. Raises FileNotFoundError or ValueError, naming the
    file.
    """
    directory = Path(directory)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory / name} does not exist; name a directory that holds a saved adapter.")
    try:
        config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
        config = {"r": config["r"], "lora_alpha": config["lora_alpha"], **config}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{directory / CONFIG_FILE} is not the configuration of a LoRA adapter ({error!r})."
        ) from error
    try:
        return config, load_file(directory / WEIGHTS_FILE)
    except Exception as error:  # safetensors raises a class of its own
        raise ValueError(
            f"{directory / WEIGHTS_FILE} cannot be read: it is truncated or not an adapter ({error})."
        ) from error


_ENDINGS = (".lora_A.weight", ".lora_B.weight")


def check_plain(config: Mapping, state: Mapping[str, Tensor], directory: str | Path) -> None:
    """Raises ValueError unless a saved adapter (see `read_adapter`) is plain LoRA and nothing else."""
    for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save"):
        if config.get(key):
            raise ValueError(f"The adapter in {directory} uses {key}, which this package does not; train it here anew.")
    foreign = [key for key in state if not key.startswith(KEY_PREFIX) or not key.endswith(_ENDINGS)]
    if foreign or not state:
        raise ValueError(
            f"The adapter in {directory} holds no PEFT LoRA weights ({len(foreign)} other keys, like {foreign[:1]})."
        )


def load_adapter(model: nn.Module, directory: str | Path, trainable: bool = False) -> nn.Module:
    """Puts a saved adapter into the model, in place; over the attached one where both adapt the same modules.
    Returns the model.

    Which modules are adapted is read off the weights, so adapters that PEFT wrote itself do as well. Raises
    FileNotFoundError for missing files and ValueError for an adapter of another network or rank; the model is
    unchanged then.
    """
    config, state = read_adapter(directory)
    check_plain(config, state, directory)
    names = sorted({key.removeprefix(KEY_PREFIX).removesuffix(_ENDINGS[0]).removesuffix(_ENDINGS[1]) for key in state})
    try:
        shapes = update_shapes(model, resolve_targets(model, names), config["r"])
    except ValueError as error:
        raise ValueError(f"The adapter in {directory} does not fit this network: {error}") from error
    wrong = [
        key
        for key in shapes.keys() | state.keys()
        if key not in state or key not in shapes or shapes[key] != tuple(state[key].shape)
    ]
    if wrong:
        raise ValueError(
            f"The adapter in {directory} does not fit this network: "
            f"{len(wrong)} weights differ in shape, like {min(wrong)}."
        )
    if attached := adapter_layers(model):
        same = sorted(attached) == names and all(
            (layer.r[ADAPTER_NAME], layer.lora_alpha[ADAPTER_NAME]) == (config["r"], config["lora_alpha"])
            for layer in attached.values()
        )
        if not same:
            raise ValueError(
                f"The adapter in {directory} differs from the attached one in targets, rank or alpha; "
                "use a fresh model."
            )
    else:
        with torch.random.fork_rng(devices=[]):  # a fresh adapter draws numbers that the loaded one replaces
            attach(model, config["r"], config["lora_alpha"], names)
    for key, parameter in adapter_state(model).items():
        parameter.data.copy_(state[key])
        parameter.requires_grad_(trainable)
    return model


def update_shapes(model: nn.Module, names: Sequence[str], rank: int) -> dict[str, tuple[int, ...]]:
    """PEFT's keys and the shapes an adapter of this rank has on these modules."""
    shapes = {}
    for name in names:
        layer = unwrapped(model.get_submodule(name))
        if isinstance(layer, nn.Linear):
            down, up = (rank, layer.in_features), (layer.out_features, rank)
        else:
            down, up = (rank, layer.in_channels, *layer.kernel_size), (layer.out_channels, rank, 1, 1)
        shapes[f"{KEY_PREFIX}{name}.lora_A.weight"], shapes[f"{KEY_PREFIX}{name}.lora_B.weight"] = down, up
    return shapes


SHIPPED_ADAPTER = ASSETS / "adapter"


def resolve_adapter(name: str | Path) -> Path | None:
    """A folder, "shipped" or "none" -> where the adapter is, None for none. Raises FileNotFoundError."""
    if str(name) == "none":
        return None
    folder = SHIPPED_ADAPTER if str(name) == "shipped" else Path(name)
    if not (folder / "adapter_config.json").is_file():
        hint = "make one with `make demo` or `python -m anytext_lcm.train`, or say none for the teacher"
        raise FileNotFoundError(f"There is no adapter in {folder}; {hint}.")
    return folder
