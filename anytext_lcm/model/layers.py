"""Building blocks of the denoising trunk: residual blocks, attention, resampling, timestep embedding.

Module names are the checkpoint's. Upstream: AnyText2's `ldm/modules/attention.py` and, in
`ldm/modules/diffusionmodules/`, `openaimodel.py` and `util.py`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Embed timesteps (B,), integer or fractional, as (B, dim) float32; an odd `dim` ends in a column of zeros.

    Cosines, then sines, of t at `dim // 2` geometric frequencies from 1 down to almost 1 / max_period.
    """
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    frequencies = torch.exp(-math.log(max_period) * index / half)
    angles = timesteps.float()[:, None] * frequencies  # (B, half)
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
    return F.pad(embedding, (0, dim % 2))


def zero_module(module: nn.Module) -> nn.Module:
    """Set all parameters of `module` to zero and return it, so that the branch it ends starts as no change."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def group_norm(channels: int, eps: float = 1e-5, groups: int = 32) -> nn.GroupNorm:
    """Build a group norm; raises ValueError where `groups` does not divide `channels`."""
    if channels % groups:
        raise ValueError(
            f"norm_groups is {groups} but a layer has {channels} channels: choose a divisor of every width "
            "(model_channels times each entry of channel_mult)."
        )
    return nn.GroupNorm(groups, channels, eps=eps)


class ResBlock(nn.Module):
    """Two 3x3 convolutions with the timestep embedding added in between, plus the input.

    x: (B, in_channels, h, w), emb: (B or 1, emb_channels). Returns (B, out_channels, h, w).
    """

    def __init__(self, in_channels: int, emb_channels: int, out_channels: int, norm_groups: int = 32):
        super().__init__()
        self.in_layers = nn.Sequential(
            group_norm(in_channels, groups=norm_groups),
            nn.SiLU(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(
            group_norm(out_channels, groups=norm_groups),
            nn.SiLU(),
            nn.Identity(),  # in place of upstream's dropout of 0, so that the convolution keeps index 3
            zero_module(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Module):
    """Halves height and width with a stride-2 convolution, padded alike on all sides."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Doubles height and width by repeating pixels, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


MANY_SCORES = 2**19  # per head: 1024 x 1024 are more, 4096 pixels by one caption's 77 tokens are fewer


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of (B, heads, tokens, head size) each.

    Uses the fused kernel, except when training on a CPU with few tokens, where the explicit formula is faster.
    """
    # The kernel's backward made the embedded UNet's step 25 % slower than the formula (2 heads of 32, 256 tokens, torch
    # 2.13). With 4096 tokens each way the formula takes two to three times as long, and keeps the scores in memory.
    few = q.shape[-2] * k.shape[-2] <= MANY_SCORES
    if not (few and q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad):
        return F.scaled_dot_product_attention(q, k, v)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return torch.softmax(scores, dim=-1).to(v.dtype) @ v


class CrossAttention(nn.Module):
    """Multi-head attention of tokens x to `context`, or to themselves if it is None.

    x: (B, n, dim), context: (B, m, context_dim). Returns (B, n, dim). Nothing is masked, padding included.
    """

    def __init__(self, dim: int, context_dim: int | None = None, num_heads: int = 8):
        super().__init__()
        if dim % num_heads:
            raise ValueError(
                f"num_heads is {num_heads} but an attention is {dim} wide: choose a divisor of all widths."
            )
        context_dim = dim if context_dim is None else context_dim
        self.num_heads = num_heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (
            tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, n or m, dim / heads)
            for tokens in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out(_attend(q, k, v).transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """One half of a projection, gated by the exact (erf) GELU of the other half."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.proj = nn.Linear(dim_in, 2 * dim_out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU four times as wide as the tokens, then a projection back."""

    def __init__(self, dim: int):
        super().__init__()
        # net.1 stands in place of upstream's dropout of 0, so that the projection keeps index 2.
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention to the context, feed-forward, each added to its normalised input.

    With `attnx` a second pair of attentions (AnyText2's AttnX) follows the first, weighted by `attnx_scale`. Upstream's
    comment calls the pair parallel; its code, and this one, runs it after the first, on the updated tokens.
    x: (B, n, dim), context: (B, m, context_dim). Returns (B, n, dim).
    """

    def __init__(self, dim: int, num_heads: int, context_dim: int, attnx: bool = False):
        super().__init__()
        self.attn1 = CrossAttention(dim, None, num_heads)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, context_dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.attnx = attnx
        if attnx:
            self.attn1x = CrossAttention(dim, None, num_heads)
            self.attn2x = CrossAttention(dim, context_dim, num_heads)

    def forward(self, x: Tensor, context: Tensor, attnx_scale: float = 1.0) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        if self.attnx:
            x = x + attnx_scale * self.attn1x(self.norm1(x))
            x = x + attnx_scale * self.attn2x(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, plus the map itself.

    x: (B, channels, h, w), context: (B, m, context_dim). Returns the shape of x.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        context_dim: int,
        depth: int = 1,
        attnx: bool = False,
        norm_groups: int = 32,
    ):
        super().__init__()
        self.norm = group_norm(channels, eps=1e-6, groups=norm_groups)  # 1e-6 here, 1e-5 in ResBlock
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, num_heads, context_dim, attnx) for _ in range(depth)
        )
        self.proj_out = zero_module(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Tensor, attnx_scale: float = 1.0) -> Tensor:
        height = x.shape[2]
        h = self.proj_in(self.norm(x))
        h = h.permute(0, 2, 3, 1).flatten(1, 2)  # (B, h*w, channels), rows one after another
        for block in self.transformer_blocks:
            h = block(h, context, attnx_scale)
        h = h.unflatten(1, (height, -1)).permute(0, 3, 1, 2)
        return x + self.proj_out(h)
