"""The sizes of UNet and WriteNet, read from a model's yaml once."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class TrunkConfig:
    """Sizes of the UNet, and of its first half, which WriteNet copies. The defaults are Stable Diffusion 1.5's.

    in_channels, out_channels  of the latents
    model_channels         width of the finest level
    channel_mult           width of each level, finest first, in units of model_channels
    num_res_blocks         residual blocks per level
    attention_resolutions  downsampling factors (not pixels) of the levels that have attention
    num_heads              of every attention
    context_dim            width of the caption's tokens
    transformer_depth      transformer blocks per attention layer
    norm_groups            groups of every group norm; must divide every width
    input_attnx, mid_attnx AnyText2's extra attention (AttnX) in the input blocks, in the middle block
    output_attnx_levels    levels whose output blocks have AttnX, 0 is the finest
    """

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (4, 2, 1)
    num_heads: int = 8
    context_dim: int = 768
    transformer_depth: int = 1
    norm_groups: int = 32
    input_attnx: bool = False
    mid_attnx: bool = False
    output_attnx_levels: tuple[int, ...] = ()


@dataclass(frozen=True)
class WriteNetConfig:
    """What WriteNet has beside the trunk. The defaults are AnyText2's.

    glyph_channels, position_channels  of the two drawn pictures
    glyph_widths, position_widths  widths of the hint stacks. 2n + 1 of them shrink the picture by 2^n, which must be
                   the autoencoder's factor
    hint_patch     if given, the autoencoder's factor: the first convolution shrinks by it alone, so that every pixel
                   of the glyphs is there from the first step of a training from nothing
    fast_control   read zeros in place of latents and timestep, so that the residuals hold for every sampling step
    zero_conv_std  start the outgoing convolutions at N(0, std) in place of zero, so that both networks of a training
                   from nothing learn from the first step
    """

    glyph_channels: int = 1
    position_channels: int = 1
    glyph_widths: tuple[int, ...] = (16, 16, 32, 32, 96, 96, 256)
    position_widths: tuple[int, ...] = (8, 8, 16, 16, 32, 32, 64)
    hint_patch: int = 0
    fast_control: bool = True
    zero_conv_std: float = 0.0

    def __post_init__(self) -> None:
        glyph, position = len(self.glyph_widths), len(self.position_widths)
        if not self.hint_patch and (glyph != position or glyph % 2 == 0):
            raise ValueError(
                f"glyph_widths has {glyph} entries and position_widths {position}: "
                "both need the same odd number (seven for an autoencoder that shrinks by eight)."
            )


# Keys of upstream's yaml: these have one value here, and those change nothing.
_FIXED = {"use_spatial_transformer": True, "dims": 2, "glyph_scale": 1}
_UNREAD = {"image_size", "use_checkpoint", "legacy", "hint_channels"}
_TRUNK = {field.name for field in fields(TrunkConfig)} - {"output_attnx_levels"}  # of the yaml's `output_attnx_level`
_COPIED = _TRUNK - {"out_channels", "input_attnx", "mid_attnx"}  # WriteNet has no AttnX and no output
_OWN = {field.name for field in fields(WriteNetConfig)}


def read_configs(unet: Mapping[str, Any], writenet: Mapping[str, Any]) -> tuple[TrunkConfig, WriteNetConfig]:
    """Read the `params` of `unet_config` and `control_stage_config` of upstream's yaml.

    Raises TypeError for a key that is unknown (as a constructor does), ValueError for a value that cannot be built and
    where the two blocks differ in the trunk.
    """
    unet = dict(unet)
    levels = unet.pop("output_attnx_level", ())
    levels = tuple(levels) if unet.pop("output_attnx", False) else ()
    trunk = TrunkConfig(**_known(unet, _TRUNK, "unet_config"), output_attnx_levels=levels)
    params = _known(dict(writenet), _COPIED | _OWN | {"out_channels"}, "control_stage_config")
    for name in sorted(_COPIED):
        given = params.get(name, getattr(TrunkConfig, name))
        if given != getattr(trunk, name):
            raise ValueError(
                f"{name} is {given} in control_stage_config and {getattr(trunk, name)} in unet_config: "
                "give both the same value, since WriteNet copies the UNet's first half."
            )
    return trunk, WriteNetConfig(**{name: value for name, value in params.items() if name in _OWN})


def _known(params: Mapping[str, Any], names: set[str], block: str) -> dict[str, Any]:
    """The params in `names`, lists as tuples; refuses unknown keys and values that are not built."""
    for name, value in params.items():
        if name in _FIXED and value != _FIXED[name]:
            raise ValueError(f"{name} of {block} is {value}, only {_FIXED[name]} is built here, as AnyText2 has it.")
        if name not in names | _UNREAD | set(_FIXED):
            raise TypeError(f"{block} has no setting {name!r}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in params.items() if name in names}
