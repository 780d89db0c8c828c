"""How much of a perfect teacher's text can be read after a few steps, by how much its condition leaves open.

A trained teacher's few steps may be legible because the network is good or because the condition leaves nothing open. Here
no network is involved: all pictures that a condition allows are drawn, so that the mean of the clean latents given
noisy ones is a formula (`anytext_lcm.teaching.toy.Mixture`). DDIM along it draws what a perfect network would, without
guidance. Section 4 of notebook 06 shows one condition; `python notebooks/perfect_teacher.py --help` measures many.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from anytext_lcm.data import ink, layout
from anytext_lcm.data.colours import draw_text_colors
from anytext_lcm.data.fonts import ITALIC_FONTS, PLAIN_FONT, covers
from anytext_lcm.data.grounds import draw_ground
from anytext_lcm.data.strings import draw_text
from anytext_lcm.lcm.samplers import finish, sample
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.loading import load_embedded_teacher
from anytext_lcm.teaching.toy import Mixture

SIZE = 128  # pixels of a picture's side
STEPS = (1, 2, 4, 8, 50)
SPREAD = 0.05  # standard deviation around each picture, in latents of variance 1: next to nothing
WIDTHS = (0.95, 1.05)  # of the text, relative to the plain font's at the same height
SLANTS = (-4.0, 4.0)  # degrees; italic fonts stay as they are
LAYER_EM = 80  # letters are drawn at this size and then scaled


@dataclass(frozen=True)
class OpenCondition:
    """What is given of a picture with one upright line in its middle, and how far the line's place stays open."""

    background: np.ndarray  # (SIZE, SIZE, 3) float32, 0..255
    color: tuple[int, int, int]  # of the text
    text: str
    ink_size: tuple[float, float]  # width and height of the ink in the plain font, pixels
    reach: float  # how far the text's middle may lie from the picture's, pixels each way

    @property
    def polygon(self) -> np.ndarray:
        """Corners (4, 2) int around everything that the text may cover."""
        across, down = widest(*self.ink_size) / 2 + self.reach + 3, self.ink_size[1] / 2 + self.reach + 3
        middle = SIZE / 2
        return np.rint(ink.corners(middle - across, middle - down, middle + across, middle + down)).astype(int)

    def pictures(self, spacing: float = 1.0) -> np.ndarray:
        """Every picture that fits, (K, SIZE, SIZE, 3) uint8: all fonts, widths and slants, every `spacing` pixels.

        Raises ValueError for a spacing that is not positive.
        """
        if spacing <= 0:
            raise ValueError(f"Places {spacing} pixels apart cannot be drawn, give more than 0.")
        count = int(self.reach / spacing)
        offsets = spacing * np.arange(-count, count + 1)
        drawn = [
            coverage
            for font in layout.FONTS
            for width in WIDTHS
            for slant in ((0.0,) if font in ITALIC_FONTS else SLANTS)
            for coverage in self.coverages(font, width, slant, offsets)
        ]
        share = np.stack(drawn)[..., None].astype(np.float32) / 255
        return np.rint(self.background + share * (np.float32(self.color) - self.background)).astype(np.uint8)

    def coverages(self, font: str, width: float, slant: float, offsets: np.ndarray) -> list[np.ndarray]:
        """How much of each pixel the text covers, (SIZE, SIZE) uint8 per place, in one font, width and slant."""
        mask = ink.draw_ink(self.text, font, LAYER_EM)
        _, own_width, own_height, _ = ink.proportions(font, self.text)
        factor = width * (self.ink_size[0] / self.ink_size[1]) / (own_width / own_height)
        transform, _, height = ink.ink_frame(mask, factor, slant)
        transform, turn, middle = transform * (self.ink_size[1] / height), ink.rotation(0.0), SIZE / 2
        places = [np.array([middle + across, middle + down]) for down in offsets for across in offsets]
        return [ink.place_ink(mask, transform, turn, place, SIZE) for place in places]


def draw_condition(
    rng: np.random.Generator, reach: float = 1.0, heights: tuple[float, float] = (layout.MIN_HEIGHT, layout.MAX_HEIGHT)
) -> OpenCondition:
    """A random condition by the rules of the mock data, with a held-out text.

    heights: least and largest height of the font's box, pixels. Raises ValueError when no line fits.
    """
    if not 0 <= reach <= 16 or not 8 <= heights[0] <= heights[1] <= layout.MAX_HEIGHT:
        least, largest = heights
        raise ValueError(
            f"The reach must be 0..16 pixels, not {reach:g}, and heights rise within 8..{layout.MAX_HEIGHT:g} pixels, "
            f"not {least:g} to {largest:g}."
        )
    free = SIZE - 2 * (reach + 4)
    while True:
        ground, text = draw_ground(rng, SIZE), draw_text(rng, "test")
        colors = draw_text_colors(rng, ground.colors, ground.tones, 1)
        box, width, height, advance = ink.proportions(PLAIN_FONT, text)
        oblong = min(WIDTHS) * width >= layout.MIN_ASPECT * height
        if colors is None or not oblong or not all(covers(font, text) for font in layout.FONTS):
            continue
        # Letters as narrow for their height as the mock data's, no wider than the picture.
        narrowest = layout.MIN_ADVANCE * (heights[0] / layout.MIN_HEIGHT) * len(text) / advance
        low, high = max(heights[0] / box, narrowest), min(heights[1] / box, free / widest(width, height))
        if low < high:
            em = rng.uniform(low, high)
            return OpenCondition(ground.image, colors[0][2], text, (width * em, height * em), reach)


def widest(width: float, height: float) -> float:
    """Width of the widest shape of a text whose ink has this width and height in the plain font."""
    return max(WIDTHS) * width + np.tan(np.radians(max(SLANTS))) * height


@torch.no_grad()
def exact_teacher(model: AnyText2, pictures: np.ndarray) -> Mixture:
    """Exact denoiser for a uniform distribution over `pictures` (K, H, W, 3) uint8.

    A mixture of K narrow Gaussians at their latents; it works on flattened latents (B, C*h*w).
    """
    planes = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
    images = (planes.to(model.device).float() / 127.5 - 1).to(model.dtype)
    means = torch.cat([model.first_stage_model.encode(part)[0] for part in images.split(128)])
    means = model.scale_factor * means.flatten(1).float()
    weights = torch.full((len(means),), 1 / len(means), device=means.device)
    return Mixture(means, SPREAD, weights, NoiseSchedule(model.alphas_cumprod))


def pictures_left(teacher: Mixture, noise: Tensor) -> float:
    """How many pictures stay possible given noise (B, D) at t = 999: median of one over the sum of squared shares."""
    shares = teacher.shares(noise, torch.full((len(noise),), len(teacher.schedule) - 1, device=noise.device))
    return float((1 / shares.square().sum(-1)).median())


@torch.no_grad()
def draw(model: AnyText2, teacher: Mixture, noise: Tensor, steps: int) -> Tensor:
    """Pictures (B, 3, H, W) in -1..1 by DDIM from noise (B, C, h, w) along the exact teacher."""
    flat = finish(sample(teacher.predict, noise.flatten(1), teacher.schedule, steps, "ddim", spacing="trailing"))
    return model.decode(flat.view_as(noise))


def measure(
    model: AnyText2, conditions: Sequence[OpenCondition], spacing: float, noises: int = 2, progress: bool = True
) -> tuple[dict[int, Any], float, int]:
    """Share of lines read by number of steps, the median of `pictures_left`, and how many pictures a condition allows.

    The shares are `Interval`s by a bootstrap over conditions. `noises` pictures are drawn of each condition.
    """
    from anytext_lcm.drawing.noise import initial_noise  # here, since notebook 06 does not measure
    from anytext_lcm.judging.intervals import bootstrap_mean
    from anytext_lcm.judging.reading import LineReader, score_lines

    images, left, count = {steps: [] for steps in STEPS}, [], 0
    for index, condition in enumerate(tqdm(conditions, desc="conditions", disable=not progress)):
        teacher = exact_teacher(model, condition.pictures(spacing))
        shape = (model.latent_channels, SIZE // 8, SIZE // 8)
        noise = initial_noise([index * noises + k for k in range(noises)], shape).to(model.device)
        for steps, found in images.items():
            found.append(draw(model, teacher, noise, steps).cpu())
        left.append(pictures_left(teacher, noise.flatten(1)))
        count = len(teacher.means)
    polygons = [[condition.polygon] for condition in conditions for _ in range(noises)]
    texts = [[condition.text] for condition in conditions for _ in range(noises)]
    groups = [index for index in range(len(conditions)) for _ in range(noises)]
    reader, read = LineReader(), {}
    for steps, found in images.items():
        scores = score_lines(reader, torch.cat(found), polygons, texts, groups)
        read[steps] = bootstrap_mean(scores.correct, scores.group)
    return read, float(np.median(left)), count


def build_parser() -> argparse.ArgumentParser:
    """Flags of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add, reach = parser.add_argument, "pixels by which the text's place is open, each way; the mock data have 1"
    add("--reach", type=float, nargs="+", default=[1.0, 3.0, 6.0, 10.0], help=reach)
    add("--heights", type=float, nargs=2, default=[30.0, 46.0], metavar=("LEAST", "MOST"), help="of the font's box")
    add("--conditions", type=int, default=48, help="each drawn from two noises (default: %(default)s)")
    add("--seed", type=int, default=5, help="of the conditions (default: %(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a Markdown table, a line per reach. Exit code 0, or 2 with one sentence on stderr for bad flags."""
    from anytext_lcm.drawing.cores import use_available_cores

    args = build_parser().parse_args(arguments)
    try:
        if args.conditions < 1:
            raise ValueError(f"--conditions must be 1 or more, not {args.conditions}.")
        for reach in (min(args.reach), max(args.reach)):
            draw_condition(np.random.default_rng(args.seed), reach, tuple(args.heights))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    use_available_cores()
    model = load_embedded_teacher()
    columns = ["reach", "pictures", "still possible at t = 999", *(f"{n} step{'s' * (n > 1)}" for n in STEPS)]
    print("| " + " | ".join(columns) + " |")
    print("| ---: " * len(columns) + "|")
    for reach in args.reach:
        rng = np.random.default_rng(args.seed)
        conditions = [draw_condition(rng, reach, tuple(args.heights)) for _ in range(args.conditions)]
        read, left, count = measure(model, conditions, spacing=1.0 if reach <= 3 else 2.0)
        print(f"| {reach:g} | {count} | {left:.0f} | " + " | ".join(map(str, read.values())) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
