"""Which layers an adapter changes: groups of them by name, and lists in files. Next: `lora.py`."""

from collections.abc import Iterator, Sequence
from errno import ENOENT
from pathlib import Path

from torch import nn

from anytext_lcm.model.layers import CrossAttention

TRAINED_PARTS = ("model.diffusion_model.", "control_model.")  # the loss reaches nothing else
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def unwrapped(module: nn.Module) -> nn.Module:
    """The layer under an adapter, or the module itself."""
    return getattr(module, "base_layer", module)


def find_targets(model: nn.Module) -> dict[str, list[str]]:
    """Names of the modules worth adapting in this model, by group, in the order of the model.

    They are found by class and place, so a small or a changed network gives its own list: the 1x1 convolutions that
    lead out of WriteNet, and the four projections of every attention. `attnx` is AnyText2's second pair, attn1x and
    attn2x. Works with and without an adapter attached. Raises ValueError for a model without the two networks.
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
        return [name for name, m in own if isinstance(unwrapped(m), nn.Conv2d)]

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
    """What LCM-LoRA adapts in a UNet besides its attention, the group "unet_rest", in the order of the model.

    Layers of residual blocks and of resampling, projections and feed-forward layers around attention; not the two ends
    of the network and not its timestep embedding. Not one of the default groups. The embedded network needs it: it has
    attention at 8x8 only, so at 16x16 the default groups adapt nothing but the control residuals.
    """
    root = "model.diffusion_model"
    ends = (f"{root}.time_embed.", f"{root}.input_blocks.0.", f"{root}.out.")
    attention = {name for names in find_targets(model).values() for name in names}
    return [
        name
        for name, module in model.get_submodule(root).named_modules(prefix=root)
        if isinstance(unwrapped(module), nn.Linear | nn.Conv2d)
        and ".lora_" not in name
        and not name.endswith("base_layer")
        and name not in attention
        and not name.startswith(ends)
    ]


def find_unet_decoder(model: nn.Module) -> list[str]:
    """Attention and AttnX of the UNet's middle and output blocks, the group "unet_decoder".

    Not one of the default groups. Nothing before the middle is adapted, so student and teacher share WriteNet and the
    input blocks, and the backward pass ends at the middle. Upstream trains no more of the UNet than this.
    """
    groups = find_targets(model)
    blocks = ("model.diffusion_model.middle_block.", "model.diffusion_model.output_blocks.")
    return [name for name in groups["unet_attention"] + groups["unet_attnx"] if name.startswith(blocks)]


def read_lists(targets: Sequence[str]) -> Iterator[str]:
    """The targets, with the content of a list file in the place of its name. Raises ValueError for one that cannot be
    read, and for an empty file or name.
    """
    for target in targets:
        if not target.strip():
            raise ValueError("A LoRA target is empty; name a group, a module or a .txt file that lists them.")
        if not target.endswith(".txt"):
            yield target
            continue
        try:
            if not Path(target).is_file():  # reading a pipe would wait for a writer
                raise FileNotFoundError(ENOENT, "there is no such file")
            lines = Path(target).read_text(encoding="utf-8-sig").split()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise ValueError(f"The list of LoRA targets {target} cannot be read ({reason}).") from error
        if not lines:
            raise ValueError(f"The list of LoRA targets {target} is empty.")
        yield from lines


def resolve_targets(model: nn.Module, targets: Sequence[str] | None = None) -> list[str]:
    """Group names, module names and list files -> sorted module names.

    None stands for every group of `find_targets`; "unet_rest" and "unet_decoder" have to be named. A target that ends
    in .txt is a file with one target per line, as `inspect_modules` writes it. Raises ValueError for a file that cannot
    be read, for a module outside UNet and WriteNet, and for a name that is neither a group nor a module; PEFT skips
    such a name silently as long as another one fits.
    """
    groups = find_targets(model)
    defaults = tuple(groups)
    groups |= {"unet_rest": find_unet_rest(model), "unet_decoder": find_unet_decoder(model)}
    chosen: set[str] = set()
    for target in defaults if targets is None else read_lists(targets):
        if target in groups:
            if not groups[target]:
                raise ValueError(f"This network has nothing in the target group {target!r}; leave it out.")
            chosen.update(groups[target])
            continue
        try:
            module = unwrapped(model.get_submodule(target))
        except AttributeError:
            raise ValueError(
                f"Unknown LoRA target {target!r}: neither a module of this network nor one of the groups "
                f"{', '.join(groups)}."
            ) from None
        if not isinstance(module, nn.Linear | nn.Conv2d):
            raise ValueError(
                f"LoRA target {target!r} is a {type(module).__name__}; only Linear and Conv2d can be adapted."
            )
        if not target.startswith(TRAINED_PARTS):
            raise ValueError(
                f"LoRA target {target!r} would get no gradient; name one under {' or '.join(TRAINED_PARTS)}"
            )
        chosen.add(target)
    if not chosen:
        raise ValueError(f"No LoRA target was named; choose from the groups {', '.join(groups)}.")
    return sorted(chosen)
