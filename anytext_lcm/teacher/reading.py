"""Reading lines out of latents: the network and the loss by which the embedded teacher learns to write legibly.

AnyText trains with a text perceptual loss (arXiv:2311.03054): what a recogniser reads in the predicted picture is
compared with the text that was asked for. Here the recogniser is small, trained on true mock pictures, and
sees only the linear part of the decoder: forward and backward take 0.01 s for 16 pictures on a CPU, with the whole
decoder 1.6 s. It takes no part in judging.
"""

import string
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anytext_lcm.model.recogniser import ctc_loss, decode_text

LETTERS = string.digits + string.ascii_lowercase  # class 0 is CTC's blank; case is ignored here as in judging
HEIGHT, WIDTH = 32, 128  # pixels of a line that is cut out
TURNED = 1.5  # a line this many times as high as wide is read from its side
MAX_LOSS = 6.0  # per letter, of one line: a line that is lost altogether must not drown the others


def letter_ids(text: str) -> list[int]:
    """Classes (from 1 on) of the letters and digits of `text`; all else is left out, as in judging."""
    return [LETTERS.index(c) + 1 for c in text.lower() if c in LETTERS]


def line_transform(quad: np.ndarray, side: int, margin: float = 0.1) -> np.ndarray:
    """The affine map (2, 3) float32 for F.affine_grid that cuts a line upright out of a picture of `side` pixels.

    quad: (4, 2) pixels, clockwise from the start of the text; `margin` of the shorter side is added all around.
    """
    quad = np.asarray(quad, dtype=np.float64)
    along = (quad[1] + quad[2] - quad[0] - quad[3]) / 4
    down = (quad[3] + quad[2] - quad[0] - quad[1]) / 4
    wide, high = np.linalg.norm(along), np.linalg.norm(down)
    extra = 2 * margin * min(wide, high)
    along, down = along * (1 + extra / wide), down * (1 + extra / high)
    if np.linalg.norm(down) > TURNED * np.linalg.norm(along):
        along, down = down, -along
    half = side / 2
    return np.column_stack([along / half, down / half, quad.mean(axis=0) / half - 1]).astype(np.float32)


def moved(transforms: Tensor, generator: torch.Generator) -> Tensor:
    """Transforms (N, 2, 3), each turned, stretched and shifted a little at random."""
    # Strokes must be legible, and not only fit the reader in one exact place.

    def spread(most: float) -> Tensor:
        return (2 * torch.rand(len(transforms), generator=generator) - 1).mul(most).to(transforms.device)

    angle, stretch = spread(0.06), torch.stack([1 + spread(0.06), 1 + spread(0.08)], dim=-1)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([cos, -sin], dim=-1), torch.stack([sin, cos], dim=-1)], dim=-2)
    shift = torch.stack([spread(0.015), spread(0.015)], dim=-1)
    return torch.cat([turn @ transforms[..., :2] * stretch[:, None], transforms[..., 2:] + shift[..., None]], dim=-1)


def cut_lines(pictures: Tensor, transforms: Tensor, picture_of: Tensor) -> Tensor:
    """Upright lines (N, 3, HEIGHT, WIDTH): line i is cut by transforms[i] (2, 3) out of pictures[picture_of[i]].

    pictures: (B, 3, H, W); picture_of: (N,) int64.
    """
    grid = F.affine_grid(transforms, [len(transforms), 3, HEIGHT, WIDTH], align_corners=False)
    return F.grid_sample(pictures[picture_of], grid, padding_mode="border", align_corners=False)


class _Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, int]):
        super().__init__()
        self.down = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm = nn.GroupNorm(8, out_channels)
        self.more = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False) if out_channels >= 64 else None
        self.more_norm = nn.GroupNorm(8, out_channels) if out_channels >= 64 else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.down(x)))
        return x if self.more is None else x + F.silu(self.more_norm(self.more(x)))


class Reader(nn.Module):
    """Lines (N, 3, HEIGHT, WIDTH) of any brightness -> CTC logits (N, WIDTH / 2, 37)."""

    WIDTHS = (32, 64, 96, 128, 160)

    def __init__(self):
        super().__init__()
        ends = zip((3, *self.WIDTHS), self.WIDTHS, strict=False)
        self.columns = nn.Sequential(*(_Block(a, b, (2, 2 if a == 3 else 1)) for a, b in ends))
        self.along = nn.ModuleList(nn.Conv1d(self.WIDTHS[-1], self.WIDTHS[-1], 5, padding=2) for _ in range(2))
        self.out = nn.Conv1d(self.WIDTHS[-1], 1 + len(LETTERS), 1)

    def forward(self, lines: Tensor) -> Tensor:
        lines = lines - lines.mean((2, 3), keepdim=True)
        x = self.columns(lines / (lines.std((1, 2, 3), keepdim=True) + 0.05)).mean(2)
        for conv in self.along:
            x = x + F.silu(conv(x))
        return self.out(x).transpose(1, 2)


def ctc(logits: Tensor, targets: Sequence[Sequence[int]]) -> Tensor:
    """CTC loss per letter (N,) of logits (N, T, classes)."""
    lengths = torch.tensor([len(ids) for ids in targets], device=logits.device)
    return ctc_loss(logits, targets) * logits.shape[1] / lengths


def evenly_spaced(logits: Tensor, targets: Sequence[Sequence[int]]) -> Tensor:
    """Warm-up loss (): cross entropy with the letters spread evenly over the line.

    CTC alone stays on its initial plateau. logits: (N, T, classes).
    """
    count = logits.shape[1]
    labels = torch.zeros(len(targets), count, dtype=torch.long)
    for row, ids in zip(labels, targets, strict=True):
        for k, letter in enumerate(ids):
            middle = count * (0.1 + 0.8 * (k + 0.5) / len(ids))
            row[int(middle - 2) : int(middle + 2)] = letter
    return F.cross_entropy(logits.float().transpose(1, 2), labels.to(logits.device))


def read(logits: Tensor) -> list[str]:
    """The text of each line by greedy CTC decoding of logits (N, T, 37)."""
    return [decode_text(row, " " + LETTERS) for row in logits]


class ReadingLoss(nn.Module):
    """Reading loss of lines in estimates of clean latents. The reader is frozen; the gradient goes through it.

    to_pictures: latents (B, z, h, w) -> pictures (B, 3, H, W). noise: the largest standard deviation of noise added to
    the latents, so that no strokes are drawn that only this reader sees.
    """

    def __init__(self, reader: Reader, to_pictures: Callable[[Tensor], Tensor], noise: float):
        super().__init__()
        self.reader, self.to_pictures, self.noise = reader.eval().requires_grad_(False), to_pictures, noise

    def forward(
        self,
        latents: Tensor,
        transforms: Tensor,
        picture_of: Tensor,
        texts: Sequence[Sequence[int]],
        generator: torch.Generator,
    ) -> Tensor:
        """CTC loss per letter of each line (N,), at most MAX_LOSS. Lines as in `cut_lines`, texts: their letter ids."""
        level = torch.rand(len(latents), 1, 1, 1, generator=generator).to(latents.device)
        grain = torch.randn(latents.shape, generator=generator).to(latents.device)
        pictures = self.to_pictures(latents + self.noise * level * grain)
        return ctc(self.reader(cut_lines(pictures, moved(transforms, generator), picture_of)), texts).clamp(
            max=MAX_LOSS
        )
