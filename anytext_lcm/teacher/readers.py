"""Two small networks that read, both trained with CTC: AnyText2's own recogniser on drawn lines, and the reader that
the writing stage asks, on lines cut out of latents.
"""

import string
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from anytext_lcm.data.fonts import TEXT_FONTS
from anytext_lcm.data.glyphs import draw_glyph_line
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.recogniser import ctc_loss, preprocess
from anytext_lcm.teacher.columns import Lines, scaled_parts
from anytext_lcm.teacher.reading import Reader, ctc, cut_lines, evenly_spaced, letter_ids, moved, read
from anytext_lcm.teacher.recipe import CONFIG, Rank, Recipe, parallel, rate, save

CHARACTERS = "".join(chr(c) for c in range(33, 127)) + " "  # class 0 is CTC's blank


def train_recogniser(rank: Rank, work: Path, recipe: Recipe) -> None:

    torch.manual_seed(recipe.seed)
    network = AnyText2.from_config(CONFIG).text_predictor.train().to(rank.device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    fonts = list(TEXT_FONTS)
    bar = tqdm(range(recipe.recogniser_steps), desc="recogniser", disable=not rank.main, mininterval=5)
    for step in bar:
        rng = rank.rng(2, step)
        alphabet = list(string.ascii_letters + string.digits)
        texts = ["".join(rng.choice(alphabet, size=rng.integers(2, 9))) for _ in range(recipe.recogniser_batch)]
        lines = [draw_glyph_line(t, fonts[rng.integers(len(fonts))]) for t in texts]
        images = [torch.from_numpy(line).float().expand(3, -1, -1) * 255 for line in lines]
        for group in optimiser.param_groups:
            group["lr"] = rate(step, recipe.recogniser_steps, 2e-3, 0.5, warmup=50)
        output = network(preprocess(images).to(rank.device))
        targets = [[CHARACTERS.index(c) + 1 for c in t] for t in texts]
        loss = ctc_loss(output["ctc"], targets).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        if step % 25 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    save(work / "recogniser.pt", network.state_dict())


def picture_maker(model: AnyText2):
    """Scaled latents -> pictures by the linear part of the decoder."""
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


def train_reader(rank: Rank, work: Path, recipe: Recipe) -> None:
    torch.manual_seed(recipe.seed)
    model = scaled_parts(work, rank.device)
    to_pictures = picture_maker(model)
    lines, latents = Lines(work), np.load(work / "latents.npy", mmap_mode="r")
    reader = Reader().to(rank.device)
    loss_of = parallel(_ReaderLoss(reader), rank)
    optimiser = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=1e-3)
    generator = torch.Generator().manual_seed(rank.index)
    kept_back = max(1, recipe.pictures // 50)  # the last pictures: what it reads in them is printed
    bar = tqdm(range(recipe.reader_steps), desc="reader", disable=not rank.main, mininterval=5)

    def cut(rows: np.ndarray, noise: float, move: bool) -> tuple[Tensor, list[list[int]]]:
        transforms, place, texts = lines.of(rows, rank.device)
        z = torch.from_numpy(latents[rows][:, 0].astype(np.float32)) * model.scale_factor
        z = z + noise * torch.rand(len(z), 1, 1, 1, generator=generator) * torch.randn(z.shape, generator=generator)
        transforms = moved(transforms, generator) if move else transforms
        with torch.no_grad():
            return cut_lines(to_pictures(z.to(rank.device)), transforms, place), texts

    for step in bar:
        rng = rank.rng(4, step)
        rows = rng.integers(recipe.pictures - kept_back, size=recipe.reader_batch)
        crops, texts = cut(rows, recipe.reader_noise, move=True)
        if rng.random() < 0.3:
            crops = F.avg_pool2d(crops, 3, 1, 1)  # estimates of clean latents are blurred
        for group in optimiser.param_groups:
            group["lr"] = rate(step, recipe.reader_steps, 2e-3, 0.6, warmup=100)
        loss = loss_of(crops, texts, step < recipe.reader_steps // 4)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 5.0)
        optimiser.step()
        if rank.main and step % 25 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    if rank.main:
        rows = np.arange(recipe.pictures - kept_back, recipe.pictures)[:256]
        crops, texts = cut(rows, 0.0, move=False)
        with torch.inference_mode():
            right = [a == b for a, b in zip(map(letter_ids, read(reader.eval()(crops))), texts, strict=True)]
        print(f"reader: {np.mean(right):.3f} of {len(right)} lines it did not train on", file=sys.stderr)
        save(work / "reader.pt", reader.state_dict())
