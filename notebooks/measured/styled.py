"""Fine-tune the teacher, keep four steps: a style LoRA and three ways to have it in a student that draws in few steps.

The style is a font and a ground that the teacher never saw. `python notebooks/measured/styled.py` trains the LoRA, then
(a) mixes it with the shipped adapter at several weights, (b) distils a new student from the teacher with the style in
its weights, (c) trains the shipped student itself on styled pictures, with and without a penalty for drifting from what
it drew of plain ones. It prints the distance to styled and to plain pictures and the lines read in 1, 4 and 8 steps.
What a run leaves in its folder is not trained again.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils.data import Dataset

from anytext_lcm.adapter.lora import adapter_state, attach, load_adapter, resolve_adapter, save_adapter
from anytext_lcm.adapter.mix import WeightedAdapter, load_adapters, merge, write_merged
from anytext_lcm.command import finite, natural, new_parser, positive, run
from anytext_lcm.data import layout
from anytext_lcm.data.batch import collate
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.data.scene import to_float
from anytext_lcm.drawing.cores import use_available_cores
from anytext_lcm.figures.text_table import text_table
from anytext_lcm.files import atomic_file
from anytext_lcm.judging.compare import run_method
from anytext_lcm.judging.intervals import bootstrap_mean
from anytext_lcm.judging.judge import REAL_SEED, real_pictures
from anytext_lcm.judging.likeness import DetectorFeatures, RealFeatures
from anytext_lcm.judging.panel import Panel, prepare_panel
from anytext_lcm.judging.reading import LineReader, score_lines
from anytext_lcm.lcm.consistency import l2
from anytext_lcm.lcm.schedule import NoiseSchedule, lcm_timesteps
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.loading import load_chosen
from anytext_lcm.model.networks import EMBEDDED_CONFIG, checkpoint_for, defaults_for
from anytext_lcm.training.checkpoints import EMA_FOLDER
from anytext_lcm.training.loop import run_distillation
from anytext_lcm.training.recipes import DEFAULTS, SHIPPED, recipe

FONT, DOT, DARKER = "DejaVuSansMono-Bold.ttf", 10, 0.55  # not among the mock data's fonts; the grid of dots in pixels
STEPS, WEIGHTS = (1, 4, 8), (0.6, 0.8, 1.0)


@contextmanager
def held_out_font() -> Iterator[None]:
    """Inside, mock pictures have the style's font alone."""
    with patch.object(layout, "FONTS", (FONT,)):
        yield


def dotted(image: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) uint8 with a grid of dark dots behind its text, whose coverage (H, W) is 0..255."""
    step = DOT * len(image) / 128
    y, x = (np.mod(np.arange(n) + 0.5, step) - step / 2 for n in image.shape[:2])
    dots = (y[:, None] ** 2 + x[None] ** 2 < (0.3 * step) ** 2) * (1 - coverage / 255)
    return np.rint(image * (1 - (1 - DARKER) * dots[..., None])).astype(np.uint8)


class Styled(Dataset):
    """The mock data drawn from nothing, in the style."""

    draws_anew_each_epoch = False

    def __init__(self, count: int, seed: int, size: int, split: str = "train"):
        self.plain = MockDataset(count, seed, size, split=split, edit_share=0.0, hint_share=0.0)

    def __len__(self) -> int:
        return len(self.plain)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with held_out_font():
            return self.plain[index] | {"img": to_float(self.picture(index))}

    def picture(self, index: int) -> np.ndarray:
        with held_out_font():
            scene = self.plain.scene(index)
        return dotted(scene.image, scene.coverage)


# -- training -----------------------------------------------------------------------------------------------


class Tuning:
    """One picture's loss after another, for an adapter that is attached to the model."""

    def __init__(self, model: AnyText2, data: Dataset, batch: int, seed: int):
        self.model, self.data, self.batch = model, data, batch
        self.schedule, self.generator = NoiseSchedule(model.alphas_cumprod), torch.Generator().manual_seed(seed)
        self.place = 0

    def condition(self, data: Dataset) -> tuple[torch.Tensor, Any]:
        """Latents and conditioning of the next pictures."""
        rows = range(self.place, self.place + self.batch)
        batch = collate([data[row % len(data)] for row in rows])
        with torch.no_grad():
            latents = self.model.encode(batch["img"], self.generator)
            blank = self.model.blank_moments(*batch["masked_img"].shape[-2:])
            return latents, self.model.condition(batch, self.generator, blank)

    def noised(self, latents: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        chosen = timesteps[torch.randint(len(timesteps), (len(latents),), generator=self.generator)]
        noise = torch.randn(latents.shape, generator=self.generator).to(latents.device)
        t = chosen.to(latents.device)
        return self.schedule.add_noise(latents, noise, t), t, noise

    def x0(self, x: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
        eps = self.model.predict_noise(x, t, cond, self.model.control(cond))
        return self.schedule.x0_from_eps(x, eps, t)

    def velocity_loss(self) -> torch.Tensor:
        """The teacher's own loss, in v."""
        latents, cond = self.condition(self.data)
        x, t, noise = self.noised(latents, torch.arange(1000))
        alpha, sigma = self.schedule.alpha_sigma(t, x)
        found = (alpha * x - self.x0(x, t, cond)) / sigma
        return l2(found, self.schedule.v_from_x0_eps(latents, noise, t))

    def drift_loss(self, plain: Dataset, frozen: dict[str, torch.Tensor], weight: float) -> torch.Tensor:
        """Clean latents of styled pictures at the timesteps of few steps, and those of plain ones as they were."""
        few = lcm_timesteps(8)
        latents, cond = self.condition(self.data)
        x, t, _ = self.noised(latents, few)
        loss = l2(self.x0(x, t, cond), latents)
        if weight == 0:
            return loss
        latents, cond = self.condition(plain)
        x, t, _ = self.noised(latents, few)
        with torch.no_grad(), worn(self.model, frozen):
            before = self.x0(x, t, cond)
        return loss + weight * l2(self.x0(x, t, cond), before)

    def run(self, loss_of: Callable[[], torch.Tensor], updates: int, rate: float) -> None:
        """Train the attached adapter, in place."""
        weights = list(adapter_state(self.model).values())
        optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
        for _ in range(updates):
            loss = loss_of()
            self.place += self.batch
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if not torch.isfinite(loss):
                raise FloatingPointError("The loss is no number: lower --rate.")


@contextmanager
def worn(model: AnyText2, weights: dict[str, torch.Tensor]) -> Iterator[None]:
    """Inside, the adapter has other weights."""
    state = adapter_state(model)
    own = {key: parameter.data for key, parameter in state.items()}
    try:
        for key, parameter in state.items():
            parameter.data = weights[key]
        yield
    finally:
        for key, parameter in state.items():
            parameter.data = own[key]


def train_style(args: argparse.Namespace, data: Styled, folder: Path) -> None:
    """The style LoRA, on the UNet's blocks alone."""
    model = attach(load_chosen(args.config, args.ckpt), args.rank, args.rank, ("unet_attention", "unet_rest"))
    tuning = Tuning(model, data, args.batch, args.seed)
    tuning.run(tuning.velocity_loss, args.updates, args.style_rate)
    save_adapter(model, folder)


def distil_anew(args: argparse.Namespace, data: Styled, folder: Path, style: Path) -> None:
    """A student of the teacher that has the style in its weights."""
    teacher = folder.with_name("styled.safetensors")
    write_merged(load_adapter(load_chosen(args.config, args.ckpt), style), teacher)
    own = {"config": args.config, "teacher_ckpt": str(teacher), "output_dir": str(folder), "seed": args.seed}
    own |= {"guidance_scale": defaults_for(args.config).guidance_scale, "train_batch_size": args.batch}
    run_distillation(recipe(args.updates) | SHIPPED | own | {"progress": False}, None, data)


def tune_student(args: argparse.Namespace, data: Styled, folder: Path, weight: float) -> None:
    """The shipped student on styled pictures, held to its plain ones by the penalty's weight."""
    model = load_adapter(load_chosen(args.config, args.ckpt), args.adapter, trainable=True)
    frozen = {key: parameter.detach().clone() for key, parameter in adapter_state(model).items()}
    tuning = Tuning(model, data, args.batch, args.seed)
    tuning.run(lambda: tuning.drift_loss(data.plain, frozen, weight), args.updates, args.rate)
    save_adapter(model, folder)


# -- judging ------------------------------------------------------------------------------------------------


class Judge:
    """Distance to styled and to plain real pictures, and lines read, on one panel of plain prompts."""

    def __init__(self, args: argparse.Namespace):
        size = defaults_for(args.config).size[0]
        self.panel = Panel.build(prompts=args.prompts, seed=args.panel, image_size=size)
        self.reader, self.features = LineReader(1), DetectorFeatures(1)
        count = 2 * len(self.panel)
        styled = Styled(count, REAL_SEED + args.panel, size, "test")
        pictures = {
            "styled": np.stack([styled.picture(row) for row in range(count)]),
            "plain": real_pictures(count, size, args.panel),
        }
        self.real = {name: RealFeatures(self.features(found)) for name, found in pictures.items()}

    def __call__(self, model: AnyText2, method: str, negative: str) -> dict[str, Any]:
        panel = self.panel
        images = run_method(model, panel, method, prepare_panel(model, panel, negative)).images
        features, scores = self.features(images), score_lines(
            self.reader, images, panel.polygons, panel.texts, panel.prompt_of
        )  # fmt: skip
        distances = {name: asdict(real.distance(features).kernel) for name, real in self.real.items()}
        return distances | {"read": asdict(bootstrap_mean(scores.correct, scores.group))}


def candidates(args: argparse.Namespace, folder: Path) -> dict[str, Callable[[], AnyText2]]:
    """A model for each row of the table, made when it is asked for."""
    style, shipped = folder / "style", args.adapter
    distilled = folder / "distilled" / f"checkpoint-{args.updates}" / EMA_FOLDER

    def bare() -> AnyText2:
        return load_chosen(args.config, args.ckpt)

    def mixed(weight: float) -> AnyText2:
        return load_adapters(bare(), [WeightedAdapter(shipped, 1.0), WeightedAdapter(style, weight)])

    rows: dict[str, Callable[[], AnyText2]] = {"shipped, no style": lambda: load_adapter(bare(), shipped)}
    rows |= {f"(a) mixed, style at {w:g}": (lambda w=w: mixed(w)) for w in WEIGHTS}
    rows["(b) distilled from the styled teacher"] = lambda: load_adapter(merge(load_adapter(bare(), style)), distilled)
    for weight in (0.0, args.drift):
        rows[f"(c) tuned, drift penalty {weight:g}"] = lambda w=weight: load_adapter(bare(), folder / f"tuned-{w:g}")
    return rows


def work(args: argparse.Namespace) -> str:
    """Train what the folder lacks, then draw, judge and write styled.json and table.md; returns the table."""
    args.ckpt = args.ckpt or str(checkpoint_for(args.config, "--ckpt"))
    args.adapter, folder = resolve_adapter(args.adapter), Path(args.output)
    defaults, style = defaults_for(args.config), folder / "style"
    use_available_cores()
    data = Styled(DEFAULTS.pictures, args.seed, defaults.size[0])
    if not style.exists():
        train_style(args, data, style)
    if not (folder / "distilled" / f"checkpoint-{args.updates}").exists():
        distil_anew(args, data, folder / "distilled", style)
    for weight in (0.0, args.drift):
        if not (place := folder / f"tuned-{weight:g}").exists():
            tune_student(args, data, place, weight)
    judge, found = Judge(args), {}
    styled = merge(load_adapter(load_chosen(args.config, args.ckpt), style))
    found["styled teacher, fifty steps"] = {"50": judge(styled, "teacher-50", defaults.negative_prompt)}
    for name, build in candidates(args, folder).items():
        model = build()
        found[name] = {str(n): judge(model, f"student-{n}", defaults.negative_prompt) for n in STEPS}
        print(f"{name} is judged", flush=True)
    for name, text in (("styled.json", json.dumps(found, indent=1) + "\n"), ("table.md", table(found))):
        with atomic_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return table(found)


def table(found: dict[str, dict[str, Any]]) -> str:
    """A row for each way and number of steps."""
    rows = [
        [
            name,
            steps,
            *("{value:.3f} [{low:.3f}, {high:.3f}]".format(**row[key]) for key in ("styled", "plain", "read")),
        ]
        for name, by_steps in found.items()
        for steps, row in by_steps.items()
    ]
    head = ["", "steps", "distance to styled pictures", "distance to plain pictures", "lines read"]
    return text_table(head, rows, markdown=True, align="lr") + "\n"


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("styled", "Compares ways to have a style LoRA in a student of few steps.")
    parser.prog = "python notebooks/measured/styled.py"
    add = parser.add_argument
    add("--output", default="outputs/styled", help="folder of all trainings and the table (default: %(default)s)")
    add("--adapter", default="shipped", help="the student of the plain teacher (default: %(default)s)")
    add("--updates", type=positive, default=200, help="of each training (default: %(default)s)")
    add("--batch", type=positive, default=8, help="default: %(default)s")
    add("--rank", type=positive, default=16, help="of the style (default: %(default)s)")
    add("--style_rate", type=finite, default=2e-4, help="of the style's training (default: %(default)s)")
    add("--rate", type=finite, default=3e-5, help="of the student's tuning (default: %(default)s)")
    add("--drift", type=finite, default=1.0, help="weight of the penalty (default: %(default)s)")
    add("--prompts", type=positive, default=128, help="of the panel (default: %(default)s)")
    add("--panel", type=natural, default=11, help="its seed (default: %(default)s)")
    add("--seed", type=natural, default=0, help="of the trainings (default: %(default)s)")
    add("--config", default=str(EMBEDDED_CONFIG), help="yaml of the network (default: the embedded one)")
    add("--ckpt", help="weights of the teacher (default: those that come with the yaml)")
    return parser


if __name__ == "__main__":
    sys.exit(run(build_parser(), work))
