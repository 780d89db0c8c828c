"""The denoising UNet of AnyText2, and the half of it that WriteNet copies.

Module names are the checkpoint's (`model.diffusion_model`). Upstream: AnyText2's
`ldm/modules/diffusionmodules/openaimodel.py` and `cldm/cldm.py` (ControlledUnetModel).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anytext_lcm.model.config import TrunkConfig
from anytext_lcm.model.layers import (
    Downsample,
    ResBlock,
    SpatialTransformer,
    Upsample,
    group_norm,
    timestep_embedding,
    zero_module,
)


class Block(nn.Sequential):
    """Layers in a row. A ResBlock also takes the timestep embedding, a SpatialTransformer the context."""

    def forward(self, h: Tensor, emb: Tensor, context: Tensor, attnx_scale: float = 1.0) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                h = layer(h, emb)
            elif isinstance(layer, SpatialTransformer):
                h = layer(h, context, attnx_scale)
            else:
                h = layer(h)
        return h


class Stem(NamedTuple):
    """What a trunk computes before its first attention. It depends on picture and timestep and on no caption."""

    outputs: tuple[Tensor, ...]  # (B, channels, h, w) of each input block that is complete
    h: Tensor  # (B, channels, h, w) what the first attention gets

    def repeat(self, times: int) -> "Stem":
        """The stem of the batch stacked `times` times."""
        return Stem(tuple(torch.cat([output] * times) for output in self.outputs), torch.cat([self.h] * times))


class Trunk(nn.Module):
    """Timestep embedding, input blocks and middle block: what UNet and WriteNet have in common.

    `gradient_checkpointing` trades compute for memory: blocks run again in the backward pass. It is off until it is
    set, whatever the yaml's `use_checkpoint` says, because upstream's yaml always says yes.

    Raises ValueError where `norm_groups` or `num_heads` does not divide a width.
    """

    def __init__(self, config: TrunkConfig):
        super().__init__()
        self.trunk_config = config
        self.downsampling = 2 ** (len(config.channel_mult) - 1)
        self.gradient_checkpointing = False
        self.checkpoint = checkpoint  # `training/memory.py` counts with another one
        channels, emb_channels = config.model_channels, 4 * config.model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )
        self.input_blocks = nn.ModuleList([Block(nn.Conv2d(config.in_channels, channels, 3, padding=1))])
        width = channels
        self.block_channels = [width]  # of each input block's output, for skips and control residuals
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                layers: list[nn.Module] = [self._res_block(width, mult * channels)]
                width = mult * channels
                if 2**level in config.attention_resolutions:
                    layers.append(self._transformer(width, config.input_attnx))
                self.input_blocks.append(Block(*layers))
                self.block_channels.append(width)
            if level < len(config.channel_mult) - 1:
                self.input_blocks.append(Block(Downsample(width)))
                self.block_channels.append(width)
        self.middle_block = Block(
            self._res_block(width, width), self._transformer(width, config.mid_attnx), self._res_block(width, width)
        )

    def _res_block(self, inputs: int, outputs: int) -> ResBlock:
        return ResBlock(inputs, 4 * self.trunk_config.model_channels, outputs, self.trunk_config.norm_groups)

    def _transformer(self, channels: int, attnx: bool) -> SpatialTransformer:
        c = self.trunk_config
        return SpatialTransformer(channels, c.num_heads, c.context_dim, c.transformer_depth, attnx, c.norm_groups)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights; inputs are cast to it."""
        return self.time_embed[0].weight.dtype

    def embed(self, timesteps: Tensor) -> Tensor:
        """Embed timesteps (B,) as (B, 4 * model_channels); the sinusoids are float32 whatever the weights are."""
        return self.time_embed(timestep_embedding(timesteps, self.trunk_config.model_channels).to(self.dtype))

    def run(self, block: Block, h: Tensor, emb: Tensor, context: Tensor, attnx_scale: float = 1.0) -> Tensor:
        """Call `block(h, ...)`, with gradient checkpointing if it is on and a backward pass may follow."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self.checkpoint(block, h, emb, context, attnx_scale, use_reentrant=False)
        return block(h, emb, context, attnx_scale)

    def stem_layers(self) -> dict[str, nn.Module]:
        """The layers of the input blocks before the first attention, by their paths in the trunk."""
        found = {}
        for i, block in enumerate(self.input_blocks):
            for j, layer in enumerate(block):
                if isinstance(layer, SpatialTransformer):
                    return found
                found[f"input_blocks.{i}.{j}"] = layer
        return found

    def run_stem(self, h: Tensor, emb: Tensor, hint: Tensor | None = None) -> Stem:
        """Run `stem_layers` on h (B, in_channels, h, w); hint as in `run_inputs`."""
        outputs: list[Tensor] = []
        for i, block in enumerate(self.input_blocks):
            for layer in block:
                if isinstance(layer, SpatialTransformer):
                    return Stem(tuple(outputs), h)
                h = layer(h, emb) if isinstance(layer, ResBlock) else layer(h)
            h = h + hint if i == 0 and hint is not None else h
            outputs.append(h)
        return Stem(tuple(outputs), h)

    def run_inputs(
        self,
        h: Tensor,
        emb: Tensor,
        context: Tensor,
        attnx_scale: float = 1.0,
        hint: Tensor | None = None,
        stem: Stem | None = None,
    ) -> list[Tensor]:
        """Return the output of each input block, (B, channels, h, w) at its level.

        hint: added behind the first convolution. stem: of `run_stem` for the same h, emb and hint, if it is known.
        """
        outputs, blocks = [], list(self.input_blocks)
        if stem is not None:
            outputs, h = list(stem.outputs), stem.h
            blocks = blocks[len(outputs) :]
            if blocks:  # the stem ends inside of this block
                blocks[0] = blocks[0][[isinstance(layer, SpatialTransformer) for layer in blocks[0]].index(True) :]
        for i, block in enumerate(blocks, len(outputs)):
            h = self.run(block, h, emb, context, attnx_scale)
            h = h + hint if i == 0 and hint is not None else h
            outputs.append(h)
        return outputs

    def check_size(self, latents: Tensor) -> None:
        """Raise ValueError unless height and width can be halved once for each level but the first."""
        height, width = latents.shape[-2:]
        if height % self.downsampling or width % self.downsampling:
            raise ValueError(
                f"Latents are {height} x {width}, but this network needs multiples of {self.downsampling}: "
                "change the picture size."
            )


class UNetModel(Trunk):
    """Stable Diffusion 1.5's UNet with AnyText2's extra attention (AttnX), which adds control residuals to its skips.

    only_mid_control: add the residual of the middle block alone.
    """

    def __init__(self, config: TrunkConfig, only_mid_control: bool = False):
        super().__init__(config)
        self.only_mid_control = only_mid_control
        skips = list(self.block_channels)
        width = skips[-1]
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(config.channel_mult))):
            for i in range(config.num_res_blocks + 1):
                outputs = config.channel_mult[level] * config.model_channels
                layers: list[nn.Module] = [self._res_block(width + skips.pop(), outputs)]
                width = outputs
                if 2**level in config.attention_resolutions:
                    layers.append(self._transformer(width, level in config.output_attnx_levels))
                if level and i == config.num_res_blocks:
                    layers.append(Upsample(width))
                self.output_blocks.append(Block(*layers))
        self.out = nn.Sequential(
            group_norm(width, groups=config.norm_groups),
            nn.SiLU(),
            zero_module(nn.Conv2d(width, config.out_channels, 3, padding=1)),
        )

    def encode(
        self, x: Tensor, timesteps: Tensor, context: Tensor, attnx_scale: float = 1.0, stem: Stem | None = None
    ) -> list[Tensor]:
        """Run the input blocks and return the output of each, (B, channels, h, w) at its level; arguments of `forward`.

        Control residuals are added later, so two networks that differ only in what follows may share these.
        """
        self.check_size(x)
        return self.run_inputs(x.to(self.dtype), self.embed(timesteps), context.to(self.dtype), attnx_scale, stem=stem)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        control: Sequence[Tensor] | None = None,
        attnx_scale: float = 1.0,
        encoded: Sequence[Tensor] | None = None,
        stem: Stem | None = None,
    ) -> Tensor:
        """Predict what the network was trained on (noise or velocity): (B, out_channels, h, w) in x's dtype.

        Arguments
            x            latents (B, in_channels, h, w)
            timesteps    (B,) int64
            context      (B, m, context_dim), the image caption
            control      a residual for each input block, then one for the middle block; None: none
            attnx_scale  weight of AttnX
            encoded      what `encode` returns for the same x, timesteps and context, if it is known already
            stem         likewise what `run_stem` returns for the same x and timesteps

        Raises ValueError for sizes that do not halve and for a control list of another length.
        """
        # Upstream runs input blocks without AttnX without gradient; here they keep theirs for an adapter in them.
        if control is not None and len(control) != len(self.input_blocks) + 1:
            raise ValueError(
                f"control has {len(control)} residuals, this UNet takes {len(self.input_blocks) + 1}: "
                "one for each input block and one for the middle block."
            )
        skips = list(self.encode(x, timesteps, context, attnx_scale, stem) if encoded is None else encoded)
        emb, context = self.embed(timesteps), context.to(self.dtype)
        h = self.run(self.middle_block, skips[-1], emb, context, attnx_scale)
        if control is not None:
            h = h + control[-1]
            if not self.only_mid_control:
                skips = [skip + residual for skip, residual in zip(skips, control[:-1], strict=True)]
        for block in self.output_blocks:
            h = self.run(block, torch.cat([h, skips.pop()], dim=1), emb, context, attnx_scale)
        return self.out(h).to(x.dtype)
