"""Every Linear and Conv2d of a network: its part, its role, and what LoRA would add."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from anytext_lcm.adapter.targets import find_targets
from anytext_lcm.figures.text_table import text_table
from anytext_lcm.model.checkpoint import OPTIONAL_KEYS

PARTS = {
    "model.diffusion_model": "UNet",
    "control_model": "WriteNet",
    "first_stage_model": "VAE",
    "cond_stage_model": "text tower",
    "embedding_manager": "embedding manager",
    "text_predictor": "recogniser",
}
"""The six networks by their place in the checkpoint; upstream calls WriteNet ControlNet."""

ZERO_CONVS = ("control_model.zero_convs.", "control_model.middle_block_out.")

# In UNet and WriteNet: a piece of the name, and what the layer does. The first that fits counts.
_ROLES = (
    (".attn1x.", "attnx"),
    (".attn2x.", "attnx"),
    (".attn1.", "attention"),
    (".attn2.", "attention"),
    (".ff.", "feed-forward"),
    (".proj_in", "into and out of attention"),
    (".proj_out", "into and out of attention"),
    (".time_embed.", "timestep"),
    (".emb_layers.", "timestep"),
    (".in_layers.", "residual block"),
    (".out_layers.", "residual block"),
    (".skip_connection", "residual block"),
    (".op", "resampling"),
    (".conv", "resampling"),
    (".glyph_block.", "hint"),
    (".position_block.", "hint"),
    (".fuse_block_za", "hint"),
)


@dataclass(frozen=True)
class Layer:
    """One Linear or Conv2d of the network."""

    name: str  # as in the checkpoint
    kind: str  # "Linear" or "Conv2d"
    shape: tuple[int, ...]  # of its weight: outputs first
    parameters: int  # with bias
    part: str  # one of PARTS
    role: str  # what it does there
    group: str  # the LoRA group it belongs to, "" for none


def part_of(name: str) -> str:
    """The network that a module or parameter name belongs to. Raises ValueError for a foreign name."""
    for prefix, part in PARTS.items():
        if name == prefix or name.startswith(prefix + "."):
            return part
    raise ValueError(f"{name!r} lies in none of AnyText2's networks: {', '.join(PARTS)}.")


def role_of(name: str) -> str:
    """What a Linear or Conv2d does, read off its name as the checkpoint spells it."""
    part = part_of(name)
    if name.startswith(ZERO_CONVS):
        return "zero conv"
    if part == "VAE":
        return name.split(".")[1].replace("_", " ")  # encoder, decoder, quant conv, post quant conv
    if part == "embedding manager":
        return {"font_predictor": "font recogniser", "position_encoder": "position encoder"}.get(
            name.split(".")[1], "projection"
        )
    if part == "recogniser":
        return name.split(".")[1]  # backbone, neck, head
    if part == "text tower":
        return "attention" if ".self_attn." in name else "feed-forward"
    return next((role for piece, role in _ROLES if piece in f".{name}."), "first and last convolution")


def list_layers(model: nn.Module) -> list[Layer]:
    """Every Linear and Conv2d of a network without an adapter, in the order of the model.

    Raises ValueError for what is not an AnyText2 network.
    """
    groups = {name: group for group, names in find_targets(model).items() for name in names}
    return [
        Layer(
            name=name,
            kind=type(module).__name__,
            shape=tuple(module.weight.shape),
            parameters=sum(p.numel() for p in module.parameters()),
            part=part_of(name),
            role=role_of(name),
            group=groups.get(name, ""),
        )
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, nn.Conv2d)
    ]


def count_by(layers: Sequence[Layer], *fields: str) -> dict[tuple[str, ...], tuple[int, int]]:
    """(number, parameters) of the layers for each combination of the named fields, in order of appearance."""
    counts: dict[tuple[str, ...], tuple[int, int]] = {}
    for layer in layers:
        key = tuple(getattr(layer, field) for field in fields)
        number, parameters = counts.get(key, (0, 0))
        counts[key] = number + 1, parameters + layer.parameters
    return counts


def part_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters of each network, with those of norms and embeddings."""
    return {part: sum(p.numel() for p in model.get_submodule(prefix).parameters()) for prefix, part in PARTS.items()}


def lora_parameters(layer: Layer, rank: int) -> int:
    """Parameters of an adapter of this rank on the layer: A is (rank, in, k, k), B is (out, rank, 1, 1)."""
    outputs, inputs, *kernel = layer.shape
    area = kernel[0] * kernel[1] if kernel else 1
    return rank * (inputs * area + outputs)


def lora_groups(layers: Sequence[Layer], rank: int = 64) -> dict[str, tuple[int, int]]:
    """(modules, adapter parameters) of each LoRA group."""
    counts: dict[str, tuple[int, int]] = {}
    for layer in layers:
        if layer.group:
            number, parameters = counts.get(layer.group, (0, 0))
            counts[layer.group] = number + 1, parameters + lora_parameters(layer, rank)
    return counts


def training_memory(
    layers: Sequence[Layer], weights: int, groups: Sequence[str], rank: int, kept: int, batch_size: int = 1
) -> dict[str, float]:
    """GB that one fp32 process of a distillation needs, by purpose, without the workspace of its kernels.

    layers: of the network; weights: number of its parameters; groups: LoRA groups; kept: bytes per picture, as
    `training.memory.saved_bytes` counts them. Adam keeps two numbers per parameter. Raises ValueError for an unknown
    group.
    """
    sizes = lora_groups(layers, rank)
    if unknown := sorted(set(groups) - set(sizes)):
        raise ValueError(f"Unknown LoRA groups {', '.join(unknown)}; there are {', '.join(sizes)}.")
    adapter = 4 * sum(sizes[group][1] for group in groups) / 1e9
    return {
        "frozen weights": 4 * weights / 1e9,
        "adapter": adapter,
        "its gradient": adapter,
        "Adam": 2 * adapter,
        "kept for the backward pass": kept * batch_size / 1e9,
    }


@dataclass(frozen=True)
class CheckpointReport:
    """A checkpoint file beside the network it should fit."""

    keys: int
    dtypes: dict[str, int]  # "float16" -> number of tensors
    missing: tuple[str, ...]  # in the network, not in the file
    unexpected: tuple[str, ...]  # in the file, not in the network
    reshaped: tuple[str, ...]  # in both, of different shapes: "name (2, 3) instead of (3, 3)"

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.reshaped)

    def __str__(self) -> str:
        types = ", ".join(f"{number:,} {dtype}" for dtype, number in self.dtypes.items())
        lines = [f"checkpoint: {self.keys:,} tensors ({types})"]
        for name in ("missing", "unexpected", "reshaped"):
            found = getattr(self, name)
            lines += [f"{name}: {len(found)}" + (f", like {found[0]}" if found else "")]
        return "\n".join(lines)


def compare_checkpoint(model: nn.Module, state: dict[str, Tensor]) -> CheckpointReport:
    """What differs between a network and a state dict (see `read_state_dict`); nothing is loaded."""
    own = model.state_dict()
    dtypes: dict[str, int] = {}
    for value in state.values():
        name = str(value.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + 1
    return CheckpointReport(
        keys=len(state),
        dtypes=dict(sorted(dtypes.items())),
        missing=tuple(name for name in own if name not in state),
        unexpected=tuple(name for name in state if name not in own and name not in OPTIONAL_KEYS),
        reshaped=tuple(
            f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
            for name, value in own.items()
            if name in state and state[name].shape != value.shape
        ),
    )


# -- as text ----------------------------------------------------------------------------------------------


def layer_table(layers: Sequence[Layer]) -> str:
    """One line per layer."""
    rows = [(a.name, a.kind, "x".join(map(str, a.shape)), a.part, a.role, a.group or "-") for a in layers]
    return text_table(("name", "type", "weight", "part", "role", "LoRA group"), rows)


def part_table(model: nn.Module, layers: Sequence[Layer]) -> str:
    """Layers and parameters of each network."""
    counts = count_by(layers, "part", "kind")
    rows = [
        (part, *(counts.get((part, kind), (0, 0))[0] for kind in ("Linear", "Conv2d")), parameters)
        for part, parameters in part_parameters(model).items()
    ]
    _, *columns = zip(*rows, strict=True)
    return text_table(("part", "Linear", "Conv2d", "parameters"), [*rows, ("all", *map(sum, columns))])


def role_table(layers: Sequence[Layer]) -> str:
    """What the Linear and Conv2d layers do, and how many parameters they have."""
    rows = [(*key, *counts) for key, counts in count_by(layers, "part", "role", "kind").items()]
    return text_table(("part", "role", "type", "layers", "parameters"), rows)


def lora_table(layers: Sequence[Layer], rank: int = 64) -> str:
    """Modules, parameters and size on disk (fp32) of each LoRA group."""
    groups = lora_groups(layers, rank)
    groups["all"] = sum(number for number, _ in groups.values()), sum(size for _, size in groups.values())
    rows = [(name, number, size, f"{size * 4 / 1e6:.1f} MB") for name, (number, size) in groups.items()]
    return text_table(("LoRA group", "modules", f"parameters at rank {rank}", "fp32"), rows)
