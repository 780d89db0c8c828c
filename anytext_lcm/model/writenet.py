"""WriteNet: turns glyphs, positions and masked latents into the residuals that make the UNet write.

Module names are the checkpoint's (`control_model`). Upstream: AnyText2's `cldm/cldm.py` (ControlNet).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from anytext_lcm.model.config import TrunkConfig, WriteNetConfig
from anytext_lcm.model.layers import zero_module
from anytext_lcm.model.unet import Stem, Trunk


def hint_stack(channels: int, widths: Sequence[int], patch: int = 0) -> nn.Sequential:
    """3x3 convolutions, each followed by SiLU: (B, channels, H, W) -> (B, widths[-1], h, w).

    Every second one, from the third on, halves the size. With `patch` the first one reads squares of patch x patch
    pixels at once and the others keep the size.
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

    trunk: the UNet's; AttnX is left out. own: hint stacks, start, and whether `fast_control` makes the residuals depend
    on text caption and hint alone (as released).
    """

    def __init__(self, trunk: TrunkConfig, own: WriteNetConfig | None = None):
        super().__init__(replace(trunk, input_attnx=False, mid_attnx=False, output_attnx_levels=()))
        own = WriteNetConfig() if own is None else own
        self.fast_control = own.fast_control
        self.glyph_block = hint_stack(own.glyph_channels, own.glyph_widths, own.hint_patch)
        self.position_block = hint_stack(own.position_channels, own.position_widths, own.hint_patch)

        def zero_conv(channels_in: int, channels_out: int, size: int) -> nn.Conv2d:
            conv = zero_module(nn.Conv2d(channels_in, channels_out, size, padding=size // 2))
            if own.zero_conv_std:
                nn.init.normal_(conv.weight, std=own.zero_conv_std)
            return conv

        fused = own.glyph_widths[-1] + own.position_widths[-1] + trunk.in_channels
        self.fuse_block_za = zero_conv(fused, trunk.model_channels, 3)
        self.zero_convs = nn.ModuleList(nn.Sequential(zero_conv(c, c, 1)) for c in self.block_channels)
        width = self.block_channels[-1]
        self.middle_block_out = nn.Sequential(zero_conv(width, width, 1))

    def hint(self, glyph: Tensor, position: Tensor, masked_latents: Tensor) -> Tensor:
        """Encode the drawn condition as a feature map (B, model_channels, h, w); arguments as in `forward`."""
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

    def stem(self, glyph: Tensor, position: Tensor, masked_latents: Tensor) -> Stem:
        """What comes before the first attention, the same for every caption; arguments as in `forward`.

        Raises ValueError without `fast_control`, where it would depend on latents and timesteps too.
        """
        if not self.fast_control:
            raise ValueError("The stem of a WriteNet without fast_control depends on latents and timesteps.")
        self.check_size(masked_latents)
        x, timesteps = self._nothing(masked_latents)
        return self.run_stem(x.to(self.dtype), self.embed(timesteps), self.hint(glyph, position, masked_latents))

    @staticmethod
    def _nothing(masked_latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents and timestep of fast control: one zero for the whole batch, broadcast over the samples."""
        x = masked_latents.new_zeros(1, *masked_latents.shape[1:])
        return x, torch.zeros(1, dtype=torch.int64, device=masked_latents.device)

    def forward(
        self,
        glyph: Tensor,
        position: Tensor,
        masked_latents: Tensor,
        context: Tensor,
        x: Tensor | None = None,
        timesteps: Tensor | None = None,
        stem: Stem | None = None,
    ) -> list[Tensor]:
        """Compute the residuals for each input block of the UNet, then for its middle block.

        Arguments
            glyph           (B, glyph_channels, H, W), 1 where any glyph pixel is touched
            position        (B, position_channels, H, W), the sum of the lines' masks, 2 where two overlap
            masked_latents  (B, in_channels, h, w), scaled
            context         (B, m, context_dim), the text caption
            x, timesteps    latents (B, in_channels, h, w) and (B,) int64; read only without `fast_control`
            stem            what `stem` returns for these pictures, if it is known

        Raises ValueError where x or timesteps is needed and missing, and for sizes that do not fit.
        """
        self.check_size(masked_latents)
        if self.fast_control:
            x, timesteps = self._nothing(masked_latents)
        elif x is None or timesteps is None:
            raise ValueError("This WriteNet was built with fast_control off: pass x and timesteps as well.")
        emb, context = self.embed(timesteps), context.to(self.dtype)
        # The hint enters behind the first convolution, so it is part of residual 0.
        hint = self.hint(glyph, position, masked_latents) if stem is None else None
        outputs = self.run_inputs(x.to(self.dtype), emb, context, hint=hint, stem=stem)
        h = self.run(self.middle_block, outputs[-1], emb, context)
        residuals = [zero_conv(output) for output, zero_conv in zip(outputs, self.zero_convs, strict=True)]
        return [*residuals, self.middle_block_out(h)]
