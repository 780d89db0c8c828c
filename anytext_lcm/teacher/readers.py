"""Two small networks that read: AnyText2's own recogniser, and the reader that the writing stage asks.

Both are trained with CTC: the recogniser on drawn lines, the reader on lines cut out of latents.
"""

import string
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anytext_lcm.data.fonts import TEXT_FONTS
from anytext_lcm.data.glyphs import draw_glyph_line
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.recogniser import ctc_loss, preprocess
from anytext_lcm.teacher.batches import Lines
from anytext_lcm.teacher.features import scaled_parts
from anytext_lcm.teacher.fitting import Plan, TrainingState, fit, save
from anytext_lcm.teacher.processes import Rank, parallel
from anytext_lcm.teacher.reading import Reader, ctc, cut_lines, evenly_spaced, letter_ids, moved, read
from anytext_lcm.teacher.recipe import CONFIG, Recipe

CHARACTERS = "".join(chr(c) for c in range(33, 127)) + " "  # class 0 is CTC's blank
LR = 2e-3


def train_recogniser(rank: Rank, work: Path, recipe: Recipe) -> None:
    """Stage `recogniser`: one set of weights for both of AnyText2's predictors; writes recogniser.pt."""
    torch.manual_seed(recipe.seed)
    network = AnyText2.from_config(CONFIG).text_predictor.train().to(rank.device)
    state = TrainingState(network, [torch.optim.AdamW(network.parameters(), lr=LR)])

    def loss_of(step: int) -> tuple[Tensor, dict]:
        images, targets = drawn_lines(rank.rng(2, step), recipe.recogniser_batch)
        output = network(preprocess(images).to(rank.device))
        return ctc_loss(output["ctc"], targets).mean(), {}

    fit(rank, state, Plan("recogniser", recipe.recogniser_steps, LR, decay=0.5, warmup=50, clip=5.0), loss_of)
    save(work / "recogniser.pt", network.state_dict())


def drawn_lines(rng: np.random.Generator, count: int) -> tuple[list[Tensor], list[list[int]]]:
    """Random letters and digits in random fonts: pictures (3, h, w) in 0..255, and their classes."""
    fonts, alphabet = list(TEXT_FONTS), list(string.ascii_letters + string.digits)
    texts = ["".join(rng.choice(alphabet, size=rng.integers(2, 9))) for _ in range(count)]
    lines = [draw_glyph_line(text, fonts[rng.integers(len(fonts))]) for text in texts]
    images = [torch.from_numpy(line).float().expand(3, -1, -1) * 255 for line in lines]
    return images, [[CHARACTERS.index(c) + 1 for c in text] for text in texts]


def picture_maker(model: AnyText2) -> Callable[[Tensor], Tensor]:
    """The linear part of the decoder: scaled latents (B, z, h, w) -> pictures (B, 3, 8h, 8w)."""
    vae = model.first_stage_model
    return lambda latents: vae.decoder.linear(vae.post_quant_conv(latents / model.scale_factor))


class _ReaderLoss(nn.Module):
    def __init__(self, reader: Reader):
        super().__init__()
        self.reader = reader

    def forward(self, lines: Tensor, texts: list[list[int]], first: bool) -> Tensor:
        logits = self.reader(lines)
        loss = ctc(logits, texts).mean()
        return 0.3 * loss + evenly_spaced(logits, texts) if first else loss


class LatentLines:
    """Lines cut out of the pictures that the linear decoder makes of true latents."""

    def __init__(self, work: Path, rank: Rank):
        self.device, self.model = rank.device, scaled_parts(work, rank.device)
        self.to_pictures = picture_maker(self.model)
        self.lines, self.latents = Lines(work), np.load(work / "latents.npy", mmap_mode="r")
        self.generator = torch.Generator().manual_seed(rank.index)

    @torch.no_grad()
    def cut(self, rows: np.ndarray, noise: float, move: bool) -> tuple[Tensor, list[list[int]]]:
        """Lines (N, 3, HEIGHT, WIDTH) of these pictures and their letter ids.

        noise: largest standard deviation of noise on the latents. move: turn, stretch and shift each cut a little.
        """
        transforms, place, texts = self.lines.of(rows, self.device)
        z = torch.from_numpy(self.latents[rows][:, 0].astype(np.float32)) * self.model.scale_factor
        level = torch.rand(len(z), 1, 1, 1, generator=self.generator)
        z = z + noise * level * torch.randn(z.shape, generator=self.generator)
        transforms = moved(transforms, self.generator) if move else transforms
        return cut_lines(self.to_pictures(z.to(self.device)), transforms, place), texts


def train_reader(rank: Rank, work: Path, recipe: Recipe) -> None:
    """Stage `reader`: writes reader.pt, and prints what share of held-out lines it reads."""
    torch.manual_seed(recipe.seed)
    lines, reader = LatentLines(work, rank), Reader().to(rank.device)
    loss = parallel(_ReaderLoss(reader), rank)
    state = TrainingState(reader, [torch.optim.AdamW(reader.parameters(), lr=LR, weight_decay=1e-3)])
    held_out = max(1, recipe.pictures // 50)  # the last pictures

    def loss_of(step: int) -> tuple[Tensor, dict]:
        rng = rank.rng(4, step)
        rows = rng.integers(recipe.pictures - held_out, size=recipe.reader_batch)
        crops, texts = lines.cut(rows, recipe.reader_noise, move=True)
        if rng.random() < 0.3:
            crops = F.avg_pool2d(crops, 3, 1, 1)  # estimates of clean latents are blurred
        return loss(crops, texts, step < recipe.reader_steps // 4), {}

    fit(rank, state, Plan("reader", recipe.reader_steps, LR, decay=0.6, warmup=100, clip=5.0), loss_of)
    if rank.main:
        rows = np.arange(recipe.pictures - held_out, recipe.pictures)[:256]
        crops, texts = lines.cut(rows, 0.0, move=False)
        with torch.inference_mode():
            right = [a == b for a, b in zip(map(letter_ids, read(reader.eval()(crops))), texts, strict=True)]
        print(f"reader: {np.mean(right):.3f} of {len(right)} held-out lines", file=sys.stderr)
        save(work / "reader.pt", reader.state_dict())
