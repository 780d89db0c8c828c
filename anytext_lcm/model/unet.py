"""The denoising UNet of AnyText2, and the half of it that WriteNet copies.

Imports torch and `model.layers`. Module names are the checkpoint's own (`model.diffusion_model`), so the
state dict is the layout. Upstream: AnyText2's `ldm/modules/diffusionmodules/openaimodel.py` and
`cldm/cldm.py` (ControlledUnetModel).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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
    """Layers in a row, each given what it asks for: the timestep embedding, the context, or neither."""

    def forward(self, h: Tensor, emb: Tensor, context: Tensor, attnx_scale: float = 1.0) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                h = layer(h, emb)
            elif isinstance(layer, SpatialTransformer):
                h = layer(h, context, attnx_scale)
            else:
                h = layer(h)
        return h


class Trunk(nn.Module):
    """Timestep embedding, input blocks and middle block: what UNet and WriteNet have in common.

    `gradient_checkpointing` trades compute for memory: blocks are run again in the backward pass. Off until
    it is set, whatever `use_checkpoint` says, because upstream's yaml always says yes.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        model_channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        num_heads: int,
        context_dim: int,
        transformer_depth: int = 1,
        input_attnx: bool = False,
        mid_attnx: bool = False,
        norm_groups: int = 32,
        use_spatial_transformer: bool = True,
        dims: int = 2,
    ):
        super().__init__()
        if not use_spatial_transformer:
            raise ValueError("use_spatial_transformer must be true: AnyText2 has no other attention.")
        if dims != 2:
            raise ValueError(f"dims is {dims}: only two-dimensional networks (dims: 2) are built here.")
        self.model_channels = model_channels
        self.downsampling = 2 ** (len(channel_mult) - 1)
        self.gradient_checkpointing = False
        self.checkpoint = checkpoint  # `training/memory.py` counts with another one
        emb_channels = 4 * model_channels

        def res_block(inputs: int, outputs: int) -> ResBlock:
            return ResBlock(inputs, emb_channels, outputs, norm_groups)

        def transformer(channels: int, attnx: bool) -> SpatialTransformer:
            return SpatialTransformer(channels, num_heads, context_dim, transformer_depth, attnx, norm_groups)

        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )
        self.input_blocks = nn.ModuleList([Block(nn.Conv2d(in_channels, model_channels, 3, padding=1))])
        width = model_channels
        self.block_channels = [width]  # of each input block's output, for skips and control residuals
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                layers: list[nn.Module] = [res_block(width, mult * model_channels)]
                width = mult * model_channels
                if 2**level in attention_resolutions:  # counted as a downsampling factor, not in pixels
                    layers.append(transformer(width, input_attnx))
                self.input_blocks.append(Block(*layers))
                self.block_channels.append(width)
            if level < len(channel_mult) - 1:
                self.input_blocks.append(Block(Downsample(width)))
                self.block_channels.append(width)
        self.middle_block = Block(res_block(width, width), transformer(width, mid_attnx), res_block(width, width))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights; inputs are cast to it."""
        return self.time_embed[0].weight.dtype

    def embed(self, timesteps: Tensor) -> Tensor:
        """(B,) timesteps to (B, 4 * model_channels); the sinusoids are float32 whatever the weights are."""
        return self.time_embed(timestep_embedding(timesteps, self.model_channels).to(self.dtype))

    def run(self, block: Block, h: Tensor, emb: Tensor, context: Tensor, attnx_scale: float = 1.0) -> Tensor:
        """`block(h, ...)`, checkpointed if asked for and if there is a backward pass to come."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self.checkpoint(block, h, emb, context, attnx_scale, use_reentrant=False)
        return block(h, emb, context, attnx_scale)

    def check_size(self, latents: Tensor) -> None:
        """Raise ValueError unless height and width can be halved once a level."""
        height, width = latents.shape[-2:]
        if height % self.downsampling or width % self.downsampling:
            raise ValueError(
                f"Latents are {height} x {width}, but this network needs multiples of {self.downsampling}: "
                "change the picture size."
            )


class UNetModel(Trunk):
    """Stable Diffusion 1.5's UNet with AnyText2's extra attention (AttnX) and room for control residuals.

    `attention_resolutions` are downsampling factors, `output_attnx_level` level indices with 0 the finest.
    Arguments after `norm_groups` are keys of upstream's yaml that change nothing here.
    """

    def __init__(
        self,
        *,
        in_channels: int = 4,
        out_channels: int = 4,
        model_channels: int = 320,
        channel_mult: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (4, 2, 1),
        num_heads: int = 8,
        context_dim: int = 768,
        transformer_depth: int = 1,
        input_attnx: bool = False,
        mid_attnx: bool = False,
        output_attnx: bool = False,
        output_attnx_level: Sequence[int] = (),
        only_mid_control: bool = False,
        norm_groups: int = 32,
        use_spatial_transformer: bool = True,
        dims: int = 2,
        image_size: int | None = None,
        use_checkpoint: bool = False,
        legacy: bool = False,
    ):
        super().__init__(
            in_channels=in_channels,
            model_channels=model_channels,
            channel_mult=channel_mult,
            num_res_blocks=num_res_blocks,
            attention_resolutions=attention_resolutions,
            num_heads=num_heads,
            context_dim=context_dim,
            transformer_depth=transformer_depth,
            input_attnx=input_attnx,
            mid_attnx=mid_attnx,
            norm_groups=norm_groups,
            use_spatial_transformer=use_spatial_transformer,
            dims=dims,
        )
        self.only_mid_control = only_mid_control
        emb_channels = 4 * model_channels
        skips = list(self.block_channels)
        width = skips[-1]
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(channel_mult))):
            attnx = output_attnx and level in output_attnx_level
            for i in range(num_res_blocks + 1):
                outputs = channel_mult[level] * model_channels
                layers: list[nn.Module] = [ResBlock(width + skips.pop(), emb_channels, outputs, norm_groups)]
                width = outputs
                if 2**level in attention_resolutions:
                    transformer = (width, num_heads, context_dim, transformer_depth, attnx, norm_groups)
                    layers.append(SpatialTransformer(*transformer))
                if level and i == num_res_blocks:
                    layers.append(Upsample(width))
                self.output_blocks.append(Block(*layers))
        self.out = nn.Sequential(
            group_norm(width, groups=norm_groups),
            nn.SiLU(),
            zero_module(nn.Conv2d(width, out_channels, 3, padding=1)),
        )

    def encode(self, x: Tensor, timesteps: Tensor, context: Tensor, attnx_scale: float = 1.0) -> list[Tensor]:
        """What each input block answers; arguments as in `forward`.

        Control residuals are added later, so two networks that differ in what follows may share these.
        """
        self.check_size(x)
        emb, context, h = self.embed(timesteps), context.to(self.dtype), x.to(self.dtype)
        encoded = []
        for block in self.input_blocks:
            h = self.run(block, h, emb, context, attnx_scale)
            encoded.append(h)
        return encoded

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        control: Sequence[Tensor] | None = None,
        attnx_scale: float = 1.0,
        encoded: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Predict the noise in latents x.

        x: (B, in_channels, h, w); timesteps: (B,); context: (B, m, context_dim), the image caption; control:
        one residual for each input block, then the middle one (the list is left as it is), or None; encoded:
        the answer of `encode` for the same x, timesteps and context, when it is known already. Returns
        (B, out_channels, h, w) in x's dtype. Raises ValueError on sizes that do not halve and on a control
        list of another length.

        Upstream runs the input blocks without gradient when they hold no AttnX; here they keep theirs,
        because an adapter may sit in them.
        """
        if control is not None and len(control) != len(self.input_blocks) + 1:
            raise ValueError(
                f"control has {len(control)} residuals, this UNet takes {len(self.input_blocks) + 1}: "
                "one for each input block and one for the middle block."
            )
        skips = list(self.encode(x, timesteps, context, attnx_scale) if encoded is None else encoded)
        emb, context = self.embed(timesteps), context.to(self.dtype)
        h = self.run(self.middle_block, skips[-1], emb, context, attnx_scale)
        if control is not None:
            h = h + control[-1]
            if not self.only_mid_control:
                skips = [skip + residual for skip, residual in zip(skips, control[:-1], strict=True)]
        for block in self.output_blocks:
            h = self.run(block, torch.cat([h, skips.pop()], dim=1), emb, context, attnx_scale)
        return self.out(h).to(x.dtype)
