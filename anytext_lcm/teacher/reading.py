"""Reading lines out of latents: the network and the loss by which the embedded teacher learns to write legibly.

AnyText trains with a text perceptual loss (arXiv:2311.03054): what a recogniser makes of the predicted
picture is compared with the text that was asked for. Here the recogniser is small, trained on the mock task's true
pictures alone, and sees the linear part of the decoder: forward and backward 0.01 s for 16 pictures on a CPU, where the
whole takes 1.6 s. It has no part in judging.

May import: torch, numpy and the room model.
"""

import string
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anytext_lcm.model.recogniser import ctc_loss, decode_text

LETTERS = string.digits + string.ascii_lowercase  # class 0 is CTC's blank; case is not told apart, nor is it judged
HEIGHT, WIDTH = 32, 128  # of a line that is cut out, in pixels
TURNED = 1.5  # a line so many times as high as wide is read from its side
LONGEST = 6.0  # a line's loss counts up to here: one that is lost altogether must not drown the others


def letter_ids(text: str) -> list[int]:
    """Classes (from 1 on) of the letters and digits of `text`; all else is left out, as the judge leaves it out."""
    return [LETTERS.index(c) + 1 for c in text.lower() if c in LETTERS]


def line_transform(quad: np.ndarray, side: int, margin: float = 0.1) -> np.ndarray:
    """(2, 3) float32 for F.affine_grid: from a line cut upright to the picture of `side` x `side` pixels.

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
    """(N, 2, 3) turned, stretched and shifted a little at random: strokes must be legible, not right in one place."""

    def spread(most: float) -> Tensor:
        return (2 * torch.rand(len(transforms), generator=generator) - 1).mul(most).to(transforms.device)

    angle, stretch = spread(0.06), torch.stack([1 + spread(0.06), 1 + spread(0.08)], dim=-1)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([cos, -sin], dim=-1), torch.stack([sin, cos], dim=-1)], dim=-2)
    shift = torch.stack([spread(0.015), spread(0.015)], dim=-1)
    return torch.cat([turn @ transforms[..., :2] * stretch[:, None], transforms[..., 2:] + shift[..., None]], dim=-1)


def cut_lines(pictures: Tensor, transforms: Tensor, picture_of: Tensor) -> Tensor:
    """(N, 3, HEIGHT, WIDTH): line i upright, cut by transforms[i] (2, 3) out of pictures (B, 3, H, W) number
    picture_of[i].
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
    """(N,) CTC loss a letter of logits (N, T, classes)."""
    lengths = torch.tensor([len(ids) for ids in targets], device=logits.device)
    return ctc_loss(logits, targets) * logits.shape[1] / lengths


def evenly_spaced(logits: Tensor, targets: Sequence[Sequence[int]]) -> Tensor:
    """Cross entropy with letters spread evenly over the line: by this a reader leaves the plateau CTC begins on."""
    count = logits.shape[1]
    labels = torch.zeros(len(targets), count, dtype=torch.long)
    for row, ids in zip(labels, targets, strict=True):
        for k, letter in enumerate(ids):
            middle = count * (0.1 + 0.8 * (k + 0.5) / len(ids))
            row[int(middle - 2) : int(middle + 2)] = letter
    return F.cross_entropy(logits.float().transpose(1, 2), labels.to(logits.device))


def read(logits: Tensor) -> list[str]:
    """What greedy CTC decoding reads in each of (N, T, 37)."""
    return [decode_text(row, " " + LETTERS) for row in logits]


class ReadingLoss(nn.Module):
    """How badly lines can be read in estimates of clean latents.

    reader: kept as it is, the gradient goes through it; to_pictures: latents (B, z, h, w) -> pictures (B, 3, H, W);
    noise: up to so much is added to the latents, lest strokes be hidden in what no reader of another make would see.
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
        """(N,) loss a letter of each line, at most LONGEST; the lines are those of `cut_lines`, texts their ids."""
        level = torch.rand(len(latents), 1, 1, 1, generator=generator).to(latents.device)
        grain = torch.randn(latents.shape, generator=generator).to(latents.device)
        pictures = self.to_pictures(latents + self.noise * level * grain)
        return ctc(self.reader(cut_lines(pictures, moved(transforms, generator), picture_of)), texts).clamp(max=LONGEST)
