"""Command: how well a perfect teacher would read after a few steps, the more the less its condition tells.

A trained teacher's few steps may be legible because the network is good or because the task leaves nothing open. To
tell the two apart, the network is taken away: with every picture known that a condition allows (data/openings.py), the
mean of the clean latents given noisy ones is a formula (toy.Mixture), and DDIM along it draws what a perfect network
would. There is no guidance, which is for networks that are not.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from anytext_lcm.data.openings import Opening, draw_opening
from anytext_lcm.judge import Interval, LineReader, bootstrap_mean, score_lines
from anytext_lcm.lcm.samplers import sample_ddim
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.pipeline import initial_noise, load_embedded_teacher, use_available_cores
from anytext_lcm.toy import Mixture

STEPS = (1, 2, 4, 8, 50)
SPREAD = 0.05  # of each picture's own bell, in latents of variance 1: next to nothing
_BATCH = 128


@torch.no_grad()
def perfect_teacher(model: AnyText2, pictures: np.ndarray) -> Mixture:
    """The exact teacher of a condition that leaves these pictures open, all alike: (K, H, W, 3) uint8 -> K narrow bells
    at their latents, (K, C*h*w), which it takes and answers flat.
    """
    planes = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
    images = (planes.to(model.device).float() / 127.5 - 1).to(model.dtype)
    means = torch.cat([model.first_stage_model.encode(part)[0] for part in images.split(_BATCH)])
    means = model.scale_factor * means.flatten(1).float()
    weights = torch.full((len(means),), 1 / len(means), device=means.device)
    return Mixture(means, SPREAD, weights, NoiseSchedule(model.alphas_cumprod))


def left_open(teacher: Mixture, noise: Tensor) -> float:
    """How many pictures stay possible at the first look at noise (B, D): one over the sum of squared shares, median."""
    shares = teacher.shares(noise, torch.full((len(noise),), len(teacher.schedule) - 1, device=noise.device))
    return float((1 / shares.square().sum(-1)).median())


@torch.no_grad()
def draw(model: AnyText2, teacher: Mixture, noise: Tensor, steps: int) -> Tensor:
    """DDIM from noise (B, C, h, w) along the exact teacher, decoded: (B, 3, H, W) in -1..1."""
    flat = sample_ddim(teacher.predict, noise.flatten(1), teacher.schedule, steps, spacing="trailing")
    return model.decode(flat.view_as(noise))


def measure(
    model: AnyText2, openings: Sequence[Opening], spacing: float, noises: int = 2, progress: bool = True
) -> tuple[dict[int, Interval], float, int]:
    """Share of lines read by number of steps, with a bootstrap interval over openings; the median of `left_open`; and
    how many pictures an opening allows.
    """
    images, polygons, texts, groups = {steps: [] for steps in STEPS}, [], [], []
    alike, count = [], 0
    for index, opening in enumerate(tqdm(openings, desc="openings", disable=not progress)):
        teacher = perfect_teacher(model, opening.pictures(spacing))
        shape = (model.latent_channels, opening.background.shape[0] // 8, opening.background.shape[1] // 8)
        noise = initial_noise([index * noises + k for k in range(noises)], shape).to(model.device)
        for steps, found in images.items():
            found.append(draw(model, teacher, noise, steps).cpu())
        alike.append(left_open(teacher, noise.flatten(1)))
        count = len(teacher.means)
        polygons += [[opening.polygon]] * noises
        texts += [[opening.text]] * noises
        groups += [index] * noises
    reader, read = LineReader(), {}
    for steps, found in images.items():
        scores = score_lines(reader, torch.cat(found), polygons, texts, groups)
        read[steps] = bootstrap_mean(scores.correct, scores.group)
    return read, float(np.median(alike)), count


def build_parser() -> argparse.ArgumentParser:
    """Flags of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m anytext_lcm.ideal", description=__doc__.splitlines()[0].removeprefix("Command: ")
    )
    parser.add_argument("--reach", type=float, nargs="+", default=[1.0, 3.0, 6.0, 10.0],
                        help="pixels by which the text's place is open, each way; the mock task has 1")  # fmt: skip
    parser.add_argument("--heights", type=float, nargs=2, default=[30.0, 46.0], metavar=("LEAST", "LARGEST"),
                        help="of the font's box, pixels")  # fmt: skip
    parser.add_argument("--openings", type=int, default=48, help="conditions, each drawn from two noises")
    parser.add_argument("--seed", type=int, default=5, help="of the conditions")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr for what the flags ask and cannot be."""
    args = build_parser().parse_args(arguments)
    if args.openings < 1:
        print(f"error: --openings must be 1 or more, not {args.openings}.", file=sys.stderr)
        return 2
    use_available_cores()
    model = load_embedded_teacher()
    columns = ["reach", "pictures", "alike at the first look", *(f"{n} step{'s' * (n > 1)}" for n in STEPS)]
    print("| " + " | ".join(columns) + " |")
    print("| ---: " * len(columns) + "|")
    for reach in args.reach:
        rng = np.random.default_rng(args.seed)
        try:
            openings = [draw_opening(rng, reach, tuple(args.heights)) for _ in range(args.openings)]
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        read, alike, count = measure(model, openings, spacing=1.0 if reach <= 3 else 2.0)
        print(f"| {reach:g} | {count} | {alike:.0f} | " + " | ".join(map(str, read.values())) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
