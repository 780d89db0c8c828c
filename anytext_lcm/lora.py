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

from anytext_lcm.model.layers import CrossAttention
from anytext_lcm.outputs import whole_directory, whole_file

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_NAME = "default"  # PEFT's name for the only adapter
_PREFIX = "base_model.model."  # in front of every key that PEFT writes and reads
_TRAINED = ("model.diffusion_model.", "control_model.")  # the loss reaches nothing else
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")

# -- targets --------------------------------------------------------------------------------------------


def _bare(module: nn.Module) -> nn.Module:
    """The layer under an adapter, or the module itself."""
    return module.get_base_layer() if isinstance(module, LoraLayer) else module


def find_targets(model: nn.Module) -> dict[str, list[str]]:
    """Names of the modules worth adapting in this very model, by group, in the order of the model.

    They are found by class and place, so a small or a changed network gives its own list: the 1x1
    convolutions that lead out of WriteNet, and the four projections of every attention. `attnx` is AnyText2's
    second pair, attn1x and attn2x. Works with and without an adapter attached. Raises ValueError for a model
    without the two networks.
    """
    roots = {"writenet": "control_model", "unet": "model.diffusion_model"}
    try:
        networks = {name: model.get_submodule(path) for name, path in roots.items()}
        zero_convs = model.get_submodule("control_model.zero_convs")
        middle = model.get_submodule("control_model.middle_block_out")
    except AttributeError as error:
        raise ValueError(f"Not an AnyText2 network ({error}); build it with AnyText2.from_config.") from error

    def convolutions(path: str, module: nn.Module) -> list[str]:
        named = module.named_modules(prefix=path)
        own = [(name, m) for name, m in named if ".lora_" not in name and not name.endswith("base_layer")]
        return [name for name, m in own if isinstance(_bare(m), nn.Conv2d)]

    groups = {
        "zero_convs": convolutions("control_model.zero_convs", zero_convs),
        "middle_block_out": convolutions("control_model.middle_block_out", middle),
        "writenet_attention": [],
        "unet_attention": [],
        "unet_attnx": [],
    }
    for network, module in networks.items():
        for name, attention in module.named_modules(prefix=roots[network]):
            if isinstance(attention, CrossAttention):
                extra = name.endswith(("attn1x", "attn2x"))
                group = groups[f"{network}_attnx" if extra else f"{network}_attention"]
                group += [f"{name}.{projection}" for projection in PROJECTIONS]
    return groups


def find_unet_rest(model: nn.Module) -> list[str]:
    """What LCM-LoRA adapts in a UNet besides its attention: the layers of residual blocks and resampling, and the
    projections and feed-forward layers around attention; not the ends of the network, not its timestep embedding.

    A group to be named, "unet_rest", and not one of the default: the embedded network has attention at 8x8 only,
    so that without it nothing at 16x16 could be adapted but the control residuals.
    """
    root = "model.diffusion_model"
    ends = (f"{root}.time_embed.", f"{root}.input_blocks.0.", f"{root}.out.")
    attention = {name for names in find_targets(model).values() for name in names}
    return [
        name
        for name, module in model.get_submodule(root).named_modules(prefix=root)
        if isinstance(_bare(module), nn.Linear | nn.Conv2d)
        and ".lora_" not in name
        and not name.endswith("base_layer")
        and name not in attention
        and not name.startswith(ends)
    ]


def find_unet_decoder(model: nn.Module) -> list[str]:
    """Attention of the UNet's middle and output blocks, AttnX with it.

    A group to be named, "unet_decoder": with nothing adapted before the middle, student and teacher share the input
    blocks, the backward pass ends there, and WriteNet is the same for both. Upstream itself trains no more of the UNet.
    """
    groups = find_targets(model)
    blocks = ("model.diffusion_model.middle_block.", "model.diffusion_model.output_blocks.")
    return [name for name in groups["unet_attention"] + groups["unet_attnx"] if name.startswith(blocks)]


def _read_lists(targets: Sequence[str]) -> Iterator[str]:
    """The targets, with those of a file in the place of its name."""
    for target in targets:
        if not target.endswith(".txt"):
            yield target
            continue
        try:
            lines = Path(target).read_text(encoding="utf-8").split()
        except OSError as error:
            raise ValueError(f"The list of LoRA targets {target} cannot be read ({error.strerror}).") from error
        if not lines:
            raise ValueError(f"The list of LoRA targets {target} is empty.")
        yield from lines


def resolve_targets(model: nn.Module, targets: Sequence[str] | None = None) -> list[str]:
    """Group names, module names and lists of them in files -> sorted module names; None is every group of
    `find_targets`. The groups "unet_rest" (`find_unet_rest`) and "unet_decoder" (`find_unet_decoder`) have to be named.

    What ends in .txt is a file with one target a line, as `python -m anytext_lcm.inspect_modules` writes it.
    Raises ValueError for a file that cannot be read, for a module outside UNet and WriteNet, and for a name that is
    neither group nor module, which PEFT would pass over without a word as long as another one fits.
    """
    groups = find_targets(model)
    defaults = tuple(groups)
    groups |= {"unet_rest": find_unet_rest(model), "unet_decoder": find_unet_decoder(model)}
    chosen: set[str] = set()
    for target in defaults if targets is None else _read_lists(targets):
        if target in groups:
            if not groups[target]:
                raise ValueError(f"This network has nothing in the target group {target!r}; leave it out.")
            chosen.update(groups[target])
            continue
        try:
            module = _bare(model.get_submodule(target))
        except AttributeError:
            raise ValueError(
                f"Unknown LoRA target {target!r}: neither a module of this network nor one of the groups "
                f"{', '.join(groups)}."
            ) from None
        if not isinstance(module, nn.Linear | nn.Conv2d):
            raise ValueError(
                f"LoRA target {target!r} is a {type(module).__name__}; only Linear and Conv2d can be adapted."
            )
        if not target.startswith(_TRAINED):
            raise ValueError(f"LoRA target {target!r} would get no gradient; name one under {' or '.join(_TRAINED)}")
        chosen.add(target)
    if not chosen:
        raise ValueError(f"No LoRA target was named; choose from the groups {', '.join(groups)}.")
    return sorted(chosen)


# -- attaching ------------------------------------------------------------------------------------------


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
        state[f"{_PREFIX}{name}.lora_A.weight"] = layer.lora_A[_NAME].weight
        state[f"{_PREFIX}{name}.lora_B.weight"] = layer.lora_B[_NAME].weight
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
    inject_adapter_in_model(config, model, adapter_name=_NAME)
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
                    weight.data = (weight.float() + layer.get_delta_weight(_NAME)).to(weight.dtype)
            yield model
    finally:
        for weight, data in zip(weights, before, strict=True):
            weight.data = data


def add_adapters(
    model: nn.Module, parts: Sequence[Mapping[str, tuple[Tensor, Tensor]]], trainable: bool = False
) -> nn.Module:
    """Puts several adapters into a bare model, in place, as one whose update is the sum of theirs. Returns the model.

    parts: for each adapter, (down (r, in, ...), up (out, r, ...)) by module name, everything that scales it already
    multiplied into `up`. Downs are stacked and ups put side by side, which is exact: [B1 B2][A1; A2] = B1 A1 + B2 A2
    ("cat" of PEFT's add_weighted_adapter). The rank is the sum of the largest rank of each part; what a part does not
    adapt is filled with zeros. Raises ValueError as `attach` does and for weights of another shape; the model is
    unchanged then.
    """
    ranks = [max((down.shape[0] for down, _ in part.values()), default=0) for part in parts]
    names = sorted({name for part in parts for name in part})
    rank, offsets = sum(ranks), [sum(ranks[:i]) for i in range(len(ranks))]
    shapes = _shapes(model, resolve_targets(model, names), rank)
    state = {key: torch.zeros(shape) for key, shape in shapes.items()}
    for part, offset in zip(parts, offsets, strict=True):
        for name, (down, up) in part.items():
            rows = slice(offset, offset + down.shape[0])
            a, b = state[f"{_PREFIX}{name}.lora_A.weight"], state[f"{_PREFIX}{name}.lora_B.weight"]
            if a[rows].numel() != down.numel() or b[:, rows].numel() != up.numel() or len(down) != up.shape[1]:
                raise ValueError(
                    f"An adapter does not fit this network: {name} has {tuple(down.shape)} and {tuple(up.shape)}."
                )
            a[rows], b[:, rows] = down.reshape(a[rows].shape), up.reshape(b[:, rows].shape)
    with torch.random.fork_rng(devices=[]):  # a fresh adapter draws numbers that are replaced below
        attach(model, rank, rank, names)
    for key, parameter in adapter_state(model).items():
        parameter.data.copy_(state[key])
        parameter.requires_grad_(trainable)
    return model


def merge(model: nn.Module) -> nn.Module:
    """Adds the adapter to the weights and takes its layers out, in place: the state dict is the checkpoint's
    again.

    Raises ValueError when there is no adapter or a merged weight is not finite.
    """
    layers = adapter_layers(model)
    if not layers:
        raise ValueError("There is no adapter to merge; load one with load_adapter.")
    for name, layer in layers.items():
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    del model.peft_config
    return model


# -- disk -----------------------------------------------------------------------------------------------


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
        with whole_directory(directory) as temporary:
            _write_weights(model, temporary / WEIGHTS_FILE, metadata)
            _write_config(model, temporary / CONFIG_FILE)
        return directory
    with whole_file(directory / WEIGHTS_FILE) as temporary:
        _write_weights(model, temporary, metadata)
    with whole_file(directory / CONFIG_FILE) as temporary:
        _write_config(model, temporary)
    return directory


def _write_weights(model: nn.Module, path: Path, metadata: Mapping[str, str] | None) -> None:
    state = {key: value.detach().float().cpu().contiguous() for key, value in adapter_state(model).items()}
    save_file(state, path, metadata={"format": "pt", **(metadata or {})})


def _write_config(model: nn.Module, path: Path) -> None:
    # PEFT keeps the targets as a set, shortened to name endings; the file gets every name, in an order that
    # stays.
    config = model.peft_config[_NAME].to_dict()
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
    foreign = [key for key in state if not key.startswith(_PREFIX) or not key.endswith(_ENDINGS)]
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
    names = sorted({key.removeprefix(_PREFIX).removesuffix(_ENDINGS[0]).removesuffix(_ENDINGS[1]) for key in state})
    try:
        shapes = _shapes(model, resolve_targets(model, names), config["r"])
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
            (layer.r[_NAME], layer.lora_alpha[_NAME]) == (config["r"], config["lora_alpha"])
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


def _shapes(model: nn.Module, names: Sequence[str], rank: int) -> dict[str, tuple[int, ...]]:
    """PEFT's keys and the shapes an adapter of this rank has on these modules."""
    shapes = {}
    for name in names:
        layer = _bare(model.get_submodule(name))
        if isinstance(layer, nn.Linear):
            down, up = (rank, layer.in_features), (layer.out_features, rank)
        else:
            down, up = (rank, layer.in_channels, *layer.kernel_size), (layer.out_channels, rank, 1, 1)
        shapes[f"{_PREFIX}{name}.lora_A.weight"], shapes[f"{_PREFIX}{name}.lora_B.weight"] = down, up
    return shapes
