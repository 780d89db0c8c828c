"""WriteNet: turns glyphs, positions and masked latents into the residuals that make the UNet write.

Imports torch, `model.layers` and `model.unet`. Module names are the checkpoint's own (`control_model`), so
the state dict is the layout. Upstream: AnyText2's `cldm/cldm.py` (ControlNet).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anytext_lcm.model.layers import zero_module
from anytext_lcm.model.unet import Trunk


def hint_stack(channels: int, widths: Sequence[int], patch: int = 0) -> nn.Sequential:
    """3x3 convolutions, each followed by SiLU; every second one, from the third on, halves the size.

    With `patch` the first one reads squares of patch x patch pixels at once and the others keep the size.
    """
    layers: list[nn.Module] = []
    for i, width in enumerate(widths):
        stride = 2 if not patch and i and i % 2 == 0 else 1
        if patch and i == 0:
            conv = nn.Conv2d(channels, width, patch, stride=patch)
        else:
            conv = nn.Conv2d(channels, width, 3, padding=1, stride=stride)
        layers += [conv, nn.SiLU()]
        channels = width
    return nn.Sequential(*layers)


class WriteNet(Trunk):
    """A copy of the UNet's first half that reads a drawn hint; one 1x1 convolution leads out of each block.

    With `fast_control` (as released) latents and timestep are replaced by zeros, so the residuals depend on
    the text caption and the hint alone and hold for every sampling step.

    `zero_conv_std` is for training from nothing: the outgoing convolutions and the hint's fuse layer start at
    N(0, std) instead of zero, so that both networks learn from the first step. `glyph_widths` and
    `position_widths` give the hint stacks; 2n + 1 widths shrink the picture by 2^n, which must be the
    autoencoder's factor, unless `hint_patch` is that factor: then the first convolution shrinks by it alone,
    and every pixel of the glyphs is there from the first step of a training from nothing. The arguments
    after them are keys of upstream's yaml that change nothing here.
    """

    def __init__(
        self,
        *,
        in_channels: int = 4,
        model_channels: int = 320,
        channel_mult: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (4, 2, 1),
        num_heads: int = 8,
        context_dim: int = 768,
        transformer_depth: int = 1,
        glyph_channels: int = 1,
        position_channels: int = 1,
        fast_control: bool = True,
        norm_groups: int = 32,
        zero_conv_std: float = 0.0,
        glyph_widths: Sequence[int] = (16, 16, 32, 32, 96, 96, 256),
        position_widths: Sequence[int] = (8, 8, 16, 16, 32, 32, 64),
        hint_patch: int = 0,
        glyph_scale: int = 1,
        use_spatial_transformer: bool = True,
        dims: int = 2,
        image_size: int | None = None,
        out_channels: int | None = None,
        hint_channels: int | None = None,
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
            norm_groups=norm_groups,
            use_spatial_transformer=use_spatial_transformer,
            dims=dims,
        )
        if glyph_scale != 1:
            raise ValueError(f"glyph_scale is {glyph_scale}: only 1 (glyphs of the picture's size) works.")
        if not hint_patch and (len(glyph_widths) != len(position_widths) or len(glyph_widths) % 2 == 0):
            raise ValueError(
                f"glyph_widths has {len(glyph_widths)} entries and position_widths {len(position_widths)}: "
                "both need the same odd number (seven for an autoencoder that shrinks by eight)."
            )
        self.fast_control = fast_control
        self.in_channels = in_channels
        self.glyph_block = hint_stack(glyph_channels, glyph_widths, hint_patch)
        self.position_block = hint_stack(position_channels, position_widths, hint_patch)

        def zero_conv(channels_in: int, channels_out: int, size: int) -> nn.Conv2d:
            conv = zero_module(nn.Conv2d(channels_in, channels_out, size, padding=size // 2))
            if zero_conv_std:
                nn.init.normal_(conv.weight, std=zero_conv_std)
            return conv

        fused = glyph_widths[-1] + position_widths[-1] + in_channels
        self.fuse_block_za = zero_conv(fused, model_channels, 3)
        self.zero_convs = nn.ModuleList(nn.Sequential(zero_conv(c, c, 1)) for c in self.block_channels)
        width = self.block_channels[-1]
        self.middle_block_out = nn.Sequential(zero_conv(width, width, 1))

    def hint(self, glyph: Tensor, position: Tensor, masked_latents: Tensor) -> Tensor:
        """The drawn condition as a feature map, (B, model_channels, h, w); arguments as in `forward`."""
        parts = [
            self.glyph_block(glyph.to(self.dtype)),
            self.position_block(position.to(self.dtype)),
            masked_latents.to(self.dtype),
        ]
        if not parts[0].shape[-2:] == parts[1].shape[-2:] == parts[2].shape[-2:]:
            raise ValueError(
                f"glyph {tuple(glyph.shape)}, position {tuple(position.shape)} and masked_latents "
                f"{tuple(masked_latents.shape)} do not fit: the hint stacks must shrink pictures to latents."
            )
        return self.fuse_block_za(torch.cat([part.to(parts[0].dtype) for part in parts], dim=1))

    def forward(
        self,
        glyph: Tensor,
        position: Tensor,
        masked_latents: Tensor,
        context: Tensor,
        x: Tensor | None = None,
        timesteps: Tensor | None = None,
    ) -> list[Tensor]:
        """Residuals for each input block of the UNet, then for its middle block.

        glyph: (B, glyph_channels, H, W), 1 where any glyph pixel is touched; position: (B, position_channels,
        H, W), the sum of the lines' masks, 2 where two overlap; masked_latents: (B, in_channels, h, w),
        scaled; context: (B, m, context_dim), the text caption. Latents x and timesteps (B,) are read only
        without `fast_control`, and then required. Raises ValueError where they are missing and on sizes that
        do not fit.
        """
        self.check_size(masked_latents)
        if self.fast_control:
            # One zero for the whole batch: embedding and first convolution broadcast over the samples.
            x = masked_latents.new_zeros(1, *masked_latents.shape[1:])
            timesteps = torch.zeros(1, dtype=torch.int64, device=masked_latents.device)
        elif x is None or timesteps is None:
            raise ValueError("This WriteNet was built with fast_control off: pass x and timesteps as well.")
        emb = self.embed(timesteps)
        context = context.to(self.dtype)
        hint = self.hint(glyph, position, masked_latents)
        h = x.to(self.dtype)
        residuals = []
        for i, (block, zero_conv) in enumerate(zip(self.input_blocks, self.zero_convs, strict=True)):
            h = self.run(block, h, emb, context)
            if i == 0:  # the hint enters behind the first convolution, so it is part of residual 0
                h = h + hint
            residuals.append(zero_conv(h))
        h = self.run(self.middle_block, h, emb, context)
        return [*residuals, self.middle_block_out(h)]
