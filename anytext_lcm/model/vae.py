"""The autoencoder between pictures and latents, Stable Diffusion's KL-f8 (`first_stage_model`).

Module names are the checkpoint's. Upstream: `ldm/modules/diffusionmodules/model.py` and `ldm/models/autoencoder.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOGVAR_RANGE = (-30.0, 20.0)


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """norm, swish, conv, norm, swish, conv, plus the input (1x1 `nin_shortcut` if the widths differ)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int = 32):
        super().__init__()
        self.norm1 = _norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class AttnBlock(nn.Module):
    """Single-head self-attention over all pixels, with 1x1 convolutions as projections."""

    def __init__(self, channels: int, groups: int = 32):
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))  # (B, HW, C)
        h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Stride-2 convolution that pads right and bottom only: upstream's asymmetry, visible in every latent."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest x2, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Middle(nn.Module):
    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class _Level(nn.Module):
    """The residual blocks of one resolution; Encoder and Decoder add `downsample` or `upsample`."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, groups: int):
        super().__init__()
        widths = [in_channels] + [out_channels] * num_blocks
        self.block = nn.ModuleList(ResnetBlock(a, b, groups) for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x


class Encoder(nn.Module):
    """Pictures (B, 3, H, W) -> moments (B, 2z, H/f, W/f), f = 2 ** (levels - 1)."""

    def __init__(
        self, in_channels: int, ch: int, ch_mult: list[int], num_res_blocks: int, z_channels: int, groups: int
    ):
        super().__init__()
        widths = [ch * m for m in ch_mult]
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (a, b) in enumerate(zip([ch, *widths], widths, strict=False)):
            level = _Level(a, b, num_res_blocks, groups)
            if i < len(widths) - 1:
                level.downsample = Downsample(b)
            self.down.append(level)
        self.mid = _Middle(widths[-1], groups)
        self.norm_out = _norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], 2 * z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
            if hasattr(level, "downsample"):
                h = level.downsample(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latents (B, z, h, w) -> (B, out_ch, f*h, f*w). `up` is indexed by level; the coarsest (last) runs first."""

    def __init__(self, out_ch: int, ch: int, ch_mult: list[int], num_res_blocks: int, z_channels: int, groups: int):
        super().__init__()
        widths = [ch * m for m in ch_mult]
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1], groups)
        inputs = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList()
        for i, (a, b) in enumerate(zip(inputs, widths, strict=True)):
            level = _Level(a, b, num_res_blocks + 1, groups)
            if i > 0:
                level.upsample = Upsample(b)
            self.up.append(level)
        self.norm_out = _norm(widths[0], groups)
        self.conv_out = nn.Conv2d(widths[0], out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
            if hasattr(level, "upsample"):
                h = level.upsample(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class PatchEncoder(nn.Module):
    """Pictures (B, 3, H, W) -> moments (B, 2z, H/patch, W/patch), each linear in its own square of pixels.

    The embedded teacher uses it: principal components need no training, and a network that has to draw letters from
    their shape learns much sooner in latents that are linear in the pixels.
    """

    def __init__(self, in_channels: int, z_channels: int, patch: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 2 * z_channels, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class PatchDecoder(nn.Module):
    """Latents (B, z, h, w) -> (B, out_ch, patch*h, patch*w): the patch encoder's transpose plus a correction.

    The correction is a Decoder whose levels enlarge less than `patch`. The rest is folded out of channels at once
    (pixel shuffle), which spares the convolutions at the picture's full size. Raises ValueError where they do not
    match.
    """

    def __init__(self, out_ch: int, patch: int, ch_mult: list[int], z_channels: int, **decoder):
        super().__init__()
        grown = 2 ** (len(ch_mult) - 1)
        if patch % grown:
            raise ValueError(
                f"first_stage_config.ddconfig: patch {patch} must be a multiple of {grown}, the "
                f"factor of {len(ch_mult)} levels in ch_mult."
            )
        shuffle = patch // grown
        self.linear = nn.ConvTranspose2d(z_channels, out_ch, patch, stride=patch)
        self.correction = Decoder(out_ch * shuffle**2, ch_mult=ch_mult, z_channels=z_channels, **decoder)
        self.shuffle = nn.PixelShuffle(shuffle)

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z) + self.shuffle(self.correction(z))


class AutoencoderKL(nn.Module):
    """Stable Diffusion's autoencoder.

    ddconfig: upstream's keys (`ch`, `ch_mult`, `num_res_blocks`, `z_channels`, `in_channels`, `out_ch`, `double_z`,
    `attn_resolutions`, `resolution`, `dropout`), `norm_groups` (32 in upstream), and `patch`, with which PatchEncoder
    and PatchDecoder take the place of Encoder and Decoder. Raises ValueError for attention in the levels and for one
    moment per channel, which upstream's checkpoint does not have.
    """

    def __init__(self, ddconfig: dict, embed_dim: int, **_unused):
        super().__init__()
        cfg = dict(ddconfig)
        if cfg.get("attn_resolutions") or not cfg.get("double_z", True):
            raise ValueError(
                "first_stage_config.ddconfig: attn_resolutions must be empty and double_z true, as upstream."
            )
        z, groups = cfg["z_channels"], cfg.get("norm_groups", 32)
        common = dict(
            ch=cfg["ch"],
            ch_mult=list(cfg["ch_mult"]),
            num_res_blocks=cfg["num_res_blocks"],
            z_channels=z,
            groups=groups,
        )
        if "patch" in cfg:
            self.encoder = PatchEncoder(cfg["in_channels"], z, cfg["patch"])
            self.decoder = PatchDecoder(cfg["out_ch"], cfg["patch"], **common)
        else:
            self.encoder = Encoder(cfg["in_channels"], **common)
            self.decoder = Decoder(cfg["out_ch"], **common)
        self.quant_conv = nn.Conv2d(2 * z, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z, 1)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images (B, 3, H, W) in -1..1: mean and clamped log variance, (B, z, H/8, W/8) each, unscaled."""
        mean, logvar = self.quant_conv(self.encoder(images)).chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def decode(self, z: Tensor) -> Tensor:
        """Decode unscaled latents (B, z, h, w): images (B, 3, 8h, 8w), about -1..1, not clamped."""
        return self.decoder(self.post_quant_conv(z))


def sample_posterior(mean: Tensor, logvar: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw from N(mean, exp(logvar)), in the shape of mean; the noise is drawn fp32 on the generator's device."""
    device = generator.device if generator is not None else mean.device
    noise = torch.randn(mean.shape, generator=generator, device=device, dtype=torch.float32).to(mean)
    return mean + torch.exp(0.5 * logvar) * noise
