"""Measures what few steps cost: the same prompts and the same noise for every method, judged by an
independent reader. `python -m anytext_lcm.evaluate --help`.

Imports torch, numpy and the rooms data, lcm, lora, model, outputs, pipeline, judge, sheet, plots, tables;
diffusers where its solvers are asked for.
"""

import argparse
import json
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from anytext_lcm import __version__, judge, plots, tables
from anytext_lcm.data.batch import collate
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.data.words import kind_of
from anytext_lcm.lcm.objectives import Predict
from anytext_lcm.lcm.samplers import Progress
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.lora import adapter_state, load_adapter
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.outputs import whole_directory
from anytext_lcm.pipeline import (
    BATCH_SIZE,
    EMBEDDED_CONFIG,
    EMBEDDED_GUIDANCE,
    TRAILING_BELOW,
    Clock,
    Method,
    Prepared,
    available_cores,
    decode,
    defaults_for,
    describe_hardware,
    draw,
    load_chosen,
    parse_method,
    prepare,
    reference_of,
    resolve_adapter,
    use_available_cores,
)
from anytext_lcm.sheet import contact_sheet

PANEL_SEED = 20_000  # of the prompts; training draws its own from the other split of words
REAL_SEED = 30_000  # of the real pictures that distributions are compared with: other texts and layouts
SHOWN_METHODS, ZOOM_LINES = 7, 8  # columns and rows that can still be read
DISTRIBUTION_FROM = 8  # prompts; fewer say nothing about a distribution
REAL, RECONSTRUCTION = "real", "reconstruction"
METHODS = (
    REAL,
    RECONSTRUCTION,
    "teacher-50",
    "teacher-8",
    "teacher-4",
    "teacher-2",
    "teacher-1",
    "untrained-4",
    "student-1",
    "student-2",
    "student-4",
    "student-8",
)
COMPARISON = (  # the README's table: every family at equal evaluations; guided steps count twice
    REAL,
    RECONSTRUCTION,
    *(f"teacher-{n}" for n in (50, 20, 8, 4, 2, 1)),
    *(f"teacher-{n}-eta1" for n in (50, 20, 8, 4, 2)),
    *(f"teacher-{n}-{solver}" for solver in ("dpm++", "unipc") for n in (8, 4, 2)),
    *(f"untrained-{n}" for n in (1, 2, 4, 8, 16)),
    *(f"student-{n}" for n in (1, 2, 4, 6, 8, 16)),
    *(f"student-{n}-deterministic" for n in (2, 4, 8)),
)
PACKAGES = ("torch", "numpy", "opencv-python-headless", "pillow", "peft", "rapidocr", "onnxruntime")

# -- the panel ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """A fixed list of prompts with the pictures they were taken from, and a noise seed for each.

    With several sampling seeds the whole list is there as often, one after the other, each time from other noise.
    """

    items: tuple[dict[str, Any], ...]  # of the mock data set
    noise_seeds: tuple[int, ...]
    seed: int
    repeats: int = 1

    @classmethod
    def build(
        cls,
        prompts: int | None = None,
        lines: int | None = None,
        seed: int = 0,
        image_size: int = 128,
        repeats: int = 1,
    ) -> "Panel":
        """So many prompts, or as many as give `lines` lines. All are drawn from nothing, without a font hint,
        with words that no training picture shows. seed: another panel and other noise. repeats: sampling seeds of each
        prompt. Raises ValueError.
        """
        if (prompts is None) == (lines is None):
            raise ValueError("Say either how many prompts or how many lines the panel shall have.")
        wanted = lines if prompts is None else prompts
        if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 2:
            raise ValueError(f"A panel needs 2 or more prompts or lines, not {wanted!r}.")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"A seed must be an integer from 0 on, not {seed!r}.")
        if isinstance(repeats, bool) or not isinstance(repeats, int) or not 1 <= repeats <= 10:
            raise ValueError(f"There can be 1 to 10 sampling seeds a prompt, not {repeats!r}.")
        source = _pictures(wanted, PANEL_SEED + seed, image_size)
        items, count = [], 0
        while (count if prompts is None else len(items)) < wanted:
            items.append(source[len(items)])
            count += items[-1]["n_lines"]
        starts = [seed * 1_000_000 + repeat * 100_000 for repeat in range(repeats)]
        noise_seeds = tuple(start + index for start in starts for index in range(len(items)))
        return cls(tuple(items) * repeats, noise_seeds, seed, repeats)

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def batch(self) -> dict[str, Any]:
        return collate(self.items)

    @cached_property
    def images(self) -> np.ndarray:
        """The real pictures (B, H, W, 3) uint8."""
        return np.stack(judge.as_uint8(self.batch["img"]))

    @property
    def texts(self) -> list[list[str]]:
        return [item["texts"] for item in self.items]

    @property
    def polygons(self) -> list[list[np.ndarray]]:
        """Where the text was asked for; a method may place it anywhere inside."""
        return [item["condition_polygons"] for item in self.items]

    @property
    def prompt_of(self) -> np.ndarray:
        """The prompt of each picture."""
        return np.arange(len(self)) % (len(self) // self.repeats)

    @property
    def groups(self) -> np.ndarray:
        """The prompt of each line."""
        return np.repeat(self.prompt_of, [len(texts) for texts in self.texts])

    def labels(self, count: int) -> list[list[str]]:
        """The texts of the first prompts and where their captions begin, for a contact sheet."""
        return [
            [*(f'"{text}"' for text in item["texts"]), *_wrapped(item["img_caption"], 22)[:4]]
            for item in self.items[:count]
        ]


def _pictures(size: int, seed: int, image_size: int) -> MockDataset:
    return MockDataset(size, seed, image_size=image_size, max_lines=2, split="test", edit_share=0.0, hint_share=0.0)


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def real_pictures(count: int, image_size: int = 128, seed: int = 0) -> np.ndarray:
    """Pictures (count, H, W, 3) uint8 of other texts and layouts than a panel of the same seed."""
    source = _pictures(count, REAL_SEED + seed, image_size)
    return np.stack([source.scene(index).image for index in range(count)])


# -- methods --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SolverMethod(Method):
    """The guided teacher under one of diffusers' fast solvers, the rivals that need no training.

    dpm++: DPM-Solver++(2M), arXiv:2211.01095; unipc: UniPC of order 2, arXiv:2302.04867. Both look at the network once
    a step (twice with guidance), as DDIM does, and keep what they saw before.
    """

    SAMPLERS: ClassVar[tuple[str, ...]] = ("dpm++", "unipc")

    def scheduler(self, schedule: NoiseSchedule) -> Any:
        """diffusers' object on our schedule. Raises ValueError when diffusers is not installed."""
        try:
            from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
        except ImportError as error:
            raise ValueError(
                f"{self.name} uses diffusers, which is not installed: install anytext_lcm[notebooks], "
                "or leave this method out."
            ) from error
        abar = schedule.alphas_cumprod.double().cpu().numpy()
        settings = {
            "trained_betas": 1 - abar / np.concatenate([[1.0], abar[:-1]]),
            "solver_order": 2,
            "timestep_spacing": self.spacing,
            "steps_offset": 1,
            "final_sigmas_type": "zero",
        }
        kind = DPMSolverMultistepScheduler if self.sampler == "dpm++" else UniPCMultistepScheduler
        scheduler = kind(**settings)
        scheduler.set_timesteps(self.steps)
        return scheduler

    @torch.no_grad()
    def sample(
        self,
        predict: Predict,
        noise: Tensor,
        schedule: NoiseSchedule,
        fresh: Sequence[torch.Generator],
        progress: Progress | None = None,
    ) -> Tensor:
        scheduler = self.scheduler(schedule)
        x = noise.float()
        for done, timestep in enumerate(scheduler.timesteps, 1):
            t = timestep.long().to(x.device).expand(len(x))
            x = scheduler.step(predict(x, t), timestep, x).prev_sample
            if progress is not None:
                progress(done, int(timestep), x)
        return x


def solver_method(steps: int, sampler: str, guidance_scale: float = EMBEDDED_GUIDANCE) -> SolverMethod:
    """teacher-N-dpm++ or teacher-N-unipc. Raises ValueError for another sampler."""
    spacing = "trailing" if steps < TRAILING_BELOW else "leading"
    return SolverMethod(f"teacher-{steps}-{sampler}", sampler, steps, guidance_scale, spacing=spacing)


def parse_any(name: str, guidance_scale: float = EMBEDDED_GUIDANCE) -> Method:
    """As `parse_method`, and teacher-N-dpm++ and teacher-N-unipc. Raises ValueError."""
    found = re.fullmatch(r"teacher-(\d+)-(dpm\+\+|unipc)", name)
    if found is None:
        return parse_method(name, guidance_scale)
    return solver_method(int(found[1]), found[2], guidance_scale)


@dataclass(frozen=True)
class MethodResult:
    """What a method drew for a panel, and what it took."""

    name: str
    images: np.ndarray  # (B, H, W, 3) uint8
    evaluations: int = 0  # of the UNet, for one picture
    wall: Mapping[str, float] = field(default_factory=dict)  # seconds for the panel, by phase
    cores: Mapping[str, float] = field(default_factory=dict)  # seconds of all cores together


def prepare_panel(model: AnyText2, panel: Panel, negative_prompt: str = "") -> Prepared:
    return prepare(model, panel.batch, panel.noise_seeds, negative_prompt)


def run_method(
    model: AnyText2 | None,
    panel: Panel,
    method: Method | str,
    prepared: Prepared | None = None,
    show: bool = False,
) -> MethodResult:
    """Draws a panel. method: what `parse_any` takes, a Method, "real" (the pictures the prompts were taken
    from) or "reconstruction" (those through the autoencoder, the best that any method can do).

    prepared: of `prepare_panel`, to be shared by methods. Raises ValueError for an unknown method or a
    student without an adapter.
    """
    if method == REAL:
        return MethodResult(REAL, panel.images)
    if method == RECONSTRUCTION:
        clock = Clock()
        with clock("decode", model.device), torch.no_grad():
            rows = [slice(i, i + BATCH_SIZE) for i in range(0, len(panel), BATCH_SIZE)]
            noise = torch.Generator().manual_seed(panel.seed)
            latents = torch.cat([model.encode(panel.batch["img"][r], noise).cpu() for r in rows])
            images = decode(model, latents)
        return MethodResult(RECONSTRUCTION, images, 0, clock.wall, clock.cores)
    method = parse_any(method) if isinstance(method, str) else method
    drawing = draw(model, prepared or prepare_panel(model, panel), method, show)
    return MethodResult(method.name, drawing.images, drawing.evaluations, drawing.clock.wall, drawing.clock.cores)


# -- judging --------------------------------------------------------------------------------------------


def by_kind(scores: judge.LineScores, repeats: int = 1) -> list[dict[str, Any]]:
    """Lines right for each kind of text there is (`words.kind_of`), with how many there are; intervals over prompts.

    repeats: how often each line was drawn, from other noise.
    """
    kinds = np.array([kind_of(text) for text in scores.wanted])
    return [
        {"kind": kind, "lines": int((kinds == kind).sum()) // repeats}
        | asdict(judge.bootstrap_mean(scores.correct[kinds == kind], scores.group[kinds == kind]))
        for kind in ("words", "numbers", "mixed")
        if (kinds == kind).any()
    ]


class PanelJudge:
    """Reader, features and real pictures, set up once for all methods of a panel."""

    def __init__(self, panel: Panel, real_seed: int = 0):
        self.panel = panel
        threads = min(4, available_cores())
        self.reader = judge.LineReader(threads)
        self.features = judge.DetectorFeatures(threads)
        size = panel.images.shape[1]
        # As many to compare with as are drawn, and as many again for the floor.
        self.real = self.features(real_pictures(2 * len(panel), size, real_seed))
        self.masks = [judge.text_mask(polygons, (size, size)) for polygons in panel.polygons]
        self.real_sharpness = self._sharpness(panel.images)

    def _sharpness(self, images: np.ndarray) -> dict[str, float]:
        return {
            "laplacian_variance": float(judge.sharpness(images, self.masks).mean()),
            "gradient_energy": float(judge.gradient_energy(images, self.masks).mean()),
        }

    def __call__(
        self, images: np.ndarray, reference: np.ndarray | None = None
    ) -> tuple[judge.LineScores, dict[str, Any]]:
        """Pictures of the panel (B, H, W, 3) uint8 -> scores of its lines, and all measures as plain numbers.

        reference: the slow teacher's pictures from the same noise.
        """
        panel = self.panel
        scores = judge.score_lines(self.reader, images, panel.polygons, panel.texts, panel.prompt_of)
        sharp = self._sharpness(images)
        measures: dict[str, Any] = {
            "accuracy": asdict(judge.bootstrap_mean(scores.correct, scores.group)),
            "exact": asdict(judge.bootstrap_mean(scores.exact, scores.group)),
            "ned": asdict(judge.bootstrap_mean(scores.ned, scores.group)),
            "by_height": [
                {"from": low, "to": None if np.isinf(high) else high, "lines": lines, **asdict(interval)}
                for low, high, lines, interval in judge.accuracy_by_height(scores, repeats=panel.repeats)
            ],
            "by_kind": by_kind(scores, panel.repeats),
            "distribution": None,
            "sharpness": sharp | {f"{k}_to_real": v / self.real_sharpness[k] for k, v in sharp.items()},
            **self._colours(images),
            "read": list(scores.read),
        }
        features = self.features(images) if len(panel) >= DISTRIBUTION_FROM or panel.repeats > 1 else None
        if len(panel) >= DISTRIBUTION_FROM:
            measures["distribution"] = asdict(judge.distribution_distance(features, self.real, groups=panel.prompt_of))
        if panel.repeats > 1:
            measures["accuracy_by_seed"] = scores.correct.reshape(panel.repeats, -1).mean(axis=1).tolist()
            distance = judge.diversity(features, panel.repeats, self.real.std(axis=0))
            measures["diversity"] = asdict(judge.bootstrap_mean(distance, np.arange(len(distance))))
        if reference is not None:
            rmse, psnr = judge.same_noise_distance(images, reference)
            measures["same_noise"] = {
                "rmse": float(rmse.mean()),
                "psnr": float(psnr.mean()) if np.isfinite(psnr).all() else None,  # None: equal pictures
            }
        return scores, measures

    def _colours(self, images: np.ndarray) -> dict[str, Any]:
        background, text, prompts = [], [], []
        everyone = self.panel.prompt_of
        for index, (image, item) in enumerate(zip(images, self.panel.items, strict=True)):
            meta = item["meta"]
            background.append(judge.background_obeyed(image, meta["background"], self.masks[index]))
            # A caption with two colours does not say which line has which.
            if not meta["color_given"] and len(set(meta["text_colors"])) > 1:
                continue
            for polygon, name in zip(item["condition_polygons"], meta["text_colors"], strict=True):
                text.append(judge.text_colour_obeyed(image, polygon, name))
                prompts.append(everyone[index])
        measures = {"background_obeyed": asdict(judge.bootstrap_mean(np.array(background), everyone))}
        if text:
            measures["text_colour_obeyed"] = asdict(judge.bootstrap_mean(np.array(text), np.array(prompts)))
        return measures


# -- comparing ------------------------------------------------------------------------------------------


def resolve_methods(names: Sequence[str], guidance_scale: float) -> list[Method | str]:
    """Names -> methods, each once, "real" and "reconstruction" as they are. Raises ValueError."""
    unique = list(dict.fromkeys(names))
    if not unique:
        raise ValueError(f"No method was named; there are {', '.join(METHODS)}.")
    return [n if n in (REAL, RECONSTRUCTION) else parse_any(n, guidance_scale) for n in unique]


def compare(
    model: AnyText2,
    panel: Panel,
    methods: Sequence[str] = METHODS,
    guidance_scale: float = EMBEDDED_GUIDANCE,
    negative_prompt: str = "",
    settings: Mapping[str, Any] | None = None,
    show: bool = True,
    more_adapters: Mapping[str, str | Path] | None = None,
) -> tuple[dict[str, Any], dict[str, MethodResult]]:
    """Draws and judges a panel by every method -> the report, ready for JSON, and what was drawn.

    Retention is the share of lines right over that of `reference_of` the methods, on the same lines.
    settings: what else the reader of the report should know. show: progress bars, and the table at the end.
    more_adapters: by label, as of another training seed or objective; the student's methods are drawn by each, as
    student-4@LABEL, and the model's own adapter is put back.
    """
    chosen = resolve_methods(methods, guidance_scale)
    reference = reference_of(chosen)
    for method in chosen:
        if isinstance(method, SolverMethod):
            # Before anything is drawn: diffusers may be missing, and threads that import it side by side fail.
            method.scheduler(NoiseSchedule(model.alphas_cumprod))
    with _own_adapter(model):  # one that does not fit shows here, not after the drawing
        for folder in (more_adapters or {}).values():
            load_adapter(model, folder)
    clock = Clock()
    with clock("prepare", model.device):
        prepared = prepare_panel(model, panel, negative_prompt)
    results: dict[str, MethodResult] = {}
    how: dict[str, dict[str, Any]] = {}
    for method in chosen:
        result = run_method(model, panel, method, prepared, show)
        results[result.name] = result
        how[result.name] = asdict(method) if isinstance(method, Method) else {"name": method}
    for method, result in _by_other_adapters(model, panel, chosen, prepared, more_adapters or {}, show):
        results[result.name] = result
        how[result.name] = asdict(method)

    judged = PanelJudge(panel, panel.seed)
    target = results[reference].images if reference else None
    rows, scores = {}, {}
    for name, result in tqdm(results.items(), desc="judge", leave=False, disable=None if show else True):
        scores[name], measures = judged(result.images, target)
        costs = _costs(result, len(panel), results.get(reference), clock)
        rows[name] = {"method": how[name], **costs, **measures}
    if reference and scores[reference].correct.any():
        for name, row in rows.items():
            row["retention"] = asdict(
                judge.paired_bootstrap(scores[name].correct, scores[reference].correct, panel.groups)
            )
            row["retention_by_height"] = [
                {"from": low, "to": None if np.isinf(high) else high, **asdict(interval)}
                for low, high, interval in judge.retention_by_height(scores[name], scores[reference])
            ]
    pairs = _equal_evaluations([m for m in how.values() if "sampler" in m], rows, scores, panel.groups)
    if reference and panel.repeats > 1:
        for row in rows.values():
            row["diversity_to_reference"] = row["diversity"]["value"] / max(rows[reference]["diversity"]["value"], 1e-9)
    report = {
        "anytext_lcm": __version__,
        "settings": {
            **(settings or {}),
            "guidance_scale": guidance_scale,
            "negative_prompt": negative_prompt,
            "batch_size": BATCH_SIZE,
        },
        "panel": {
            "split": "test",
            "prompts": len(panel) // panel.repeats,
            "lines": len(panel.groups) // panel.repeats,
            "sampling_seeds": panel.repeats,
            "seed": panel.seed,
            "prompts_seed": PANEL_SEED + panel.seed,
            "real_seed": REAL_SEED + panel.seed,
            "noise_seeds": [panel.noise_seeds[0], panel.noise_seeds[-1]],
            "texts": panel.texts[: len(panel) // panel.repeats],
        },
        "versions": {"python": platform.python_version()} | {p: metadata.version(p) for p in PACKAGES},
        "hardware": describe_hardware(model.device),
        "reference": reference,
        "prepare_seconds_a_picture": {kind: getattr(clock, kind)["prepare"] / len(panel) for kind in ("wall", "cores")},
        "equal_evaluations": pairs,
        "methods": rows,
    }
    if show:
        print(format_table(report))
    return report, results


def _by_other_adapters(
    model: AnyText2,
    panel: Panel,
    methods: Sequence[Method | str],
    prepared: Prepared,
    folders: Mapping[str, str | Path],
    show: bool,
) -> Iterator[tuple[Method, MethodResult]]:
    """The student's methods by each of the adapters. Raises ValueError for an adapter of other modules or rank than
    the model's.
    """
    with _own_adapter(model):
        for label, folder in folders.items():
            load_adapter(model, folder)
            for method in methods:
                if isinstance(method, Method) and method.adapter:
                    method = replace(method, name=f"{method.name}@{label}")
                    yield method, run_method(model, panel, method, prepared, show)


@contextmanager
def _own_adapter(model: AnyText2) -> Iterator[None]:
    """Puts the weights of the model's adapter back at the end, if it has one."""
    own = {key: value.detach().clone() for key, value in adapter_state(model).items()}
    try:
        yield
    finally:
        for key, parameter in adapter_state(model).items():
            parameter.data.copy_(own[key])


def _equal_evaluations(
    methods: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Mapping[str, Any]],
    scores: Mapping[str, judge.LineScores],
    groups: np.ndarray,
) -> list[dict[str, Any]]:
    """Each of the student's methods beside every one without training that asks the UNet as often: the difference in
    the share of lines right, paired over prompts, and both distances to real pictures.
    """
    students = [m["name"] for m in methods if m["adapter"]]
    rivals = [m["name"] for m in methods if not m["adapter"]]
    pairs = []
    for student in students:
        for rival in rivals:
            if rows[student]["evaluations"] != rows[rival]["evaluations"]:
                continue
            difference = scores[student].correct.astype(float) - scores[rival].correct
            distances = [rows[name]["distribution"] for name in (student, rival)]
            pairs.append(
                {
                    "student": student,
                    "rival": rival,
                    "evaluations": rows[student]["evaluations"],
                    "accuracy_difference": asdict(judge.bootstrap_mean(difference, groups)),
                    "kernel": [d and d["kernel"]["value"] for d in distances],
                }
            )
    return pairs


def _costs(result: MethodResult, prompts: int, reference: MethodResult | None, preparing: Clock) -> dict[str, Any]:
    """Evaluations, seconds a picture by phase, and how much faster than the reference: denoising, with decoding, and
    end to end with what is encoded once for all methods.
    """
    costs: dict[str, Any] = {
        "evaluations": result.evaluations,
        "seconds_a_picture": {phase: seconds / prompts for phase, seconds in result.wall.items()},
        "core_seconds_a_picture": {phase: seconds / prompts for phase, seconds in result.cores.items()},
    }
    if reference is not None and "denoise" in result.wall:
        for kind in ("wall", "cores"):
            before, after = (getattr(r, kind) for r in (reference, result))
            once = getattr(preparing, kind)["prepare"]
            costs[f"speedup_{kind}"] = {
                "denoise": before["denoise"] / max(after["denoise"], 1e-9),
                "with_decoding": sum(before.values()) / max(sum(after.values()), 1e-9),
                "end_to_end": (once + sum(before.values())) / max(once + sum(after.values()), 1e-9),
            }
    return costs


def format_table(report: Mapping[str, Any]) -> str:
    """The report as one table, for a terminal."""
    on_cpu = report["hardware"]["device"] == "cpu"
    times, speed = ("core_seconds_a_picture", "speedup_cores") if on_cpu else ("seconds_a_picture", "speedup_wall")

    def interval(values: Mapping[str, float] | None) -> str:
        return "-" if values is None else f"{values['value']:.3f} [{values['low']:.2f}, {values['high']:.2f}]"

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    head = [
        "method",
        "evals",
        "s",
        "faster",
        "lines right",
        "retention",
        "NED",
        "kernel",
        "RMSE",
        "sharp",
        "background",
        "text colour",
    ]
    several = report["panel"].get("sampling_seeds", 1) > 1
    head += ["diversity"] if several else []
    table = [head]
    for name, row in report["methods"].items():
        colour = row.get("text_colour_obeyed")
        table.append(
            [
                name,
                str(row["evaluations"] or "-"),
                number(row[times].get("denoise"), ".3f"),
                number(row.get(speed, {}).get("denoise"), ".1f"),
                interval(row["accuracy"]),
                interval(row.get("retention")),
                f"{row['ned']['value']:.3f}",
                number(row["distribution"] and row["distribution"]["kernel"]["value"], ".3f"),
                number(row.get("same_noise", {}).get("rmse"), ".1f"),
                f"{row['sharpness']['gradient_energy_to_real']:.2f}",
                f"{row['background_obeyed']['value']:.2f}",
                number(colour and colour["value"], ".2f"),
                *([f"{row['diversity']['value']:.2f}"] if several else []),
            ]
        )
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in table
    ]
    panel, distribution = report["panel"], next(iter(report["methods"].values()))["distribution"]
    floor = number(distribution and distribution["kernel_floor"]["value"], ".3f")
    legend = (
        f"{panel['prompts']} prompts, {panel['lines']} lines, 95 % intervals over prompts; the same noise for "
        f"all; s: {'seconds of one core' if on_cpu else 'seconds'} a picture without decoding;\n"
        f"retention, faster and RMSE (levels of 255) against {report['reference']}; kernel distance to "
        f"unseen real pictures, which are {floor} apart themselves;\n"
        "sharp: gradient energy at the text over that of the real pictures."
    )
    if several:
        legend += (
            f"\n{panel['sampling_seeds']} sampling seeds a prompt; diversity: distance of a prompt's pictures from "
            "different noise, in deviations of real pictures."
        )
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], legend])


def write_report(
    folder: Path, report: Mapping[str, Any], results: Mapping[str, MethodResult], panel: Panel, rows: int = 8
) -> None:
    """Write report.json; table.md; grid.png, the first prompts by the best known methods; chart.png, accuracy and the
    distance to real pictures against evaluations, unless no method asks the UNet; zoom.png, the text enlarged with what
    was read.
    """
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    (folder / "table.md").write_text(tables.markdown(report), encoding="utf-8")
    if plots.report_curves(report, "evaluations"):
        chart = plots.report_charts(report)
        chart.savefig(folder / "chart.png", dpi=2 * plots.DPI, metadata={"Software": None})
    first = [REAL, report["reference"], "teacher-8", "teacher-4", "student-8", "student-4", "student-2", "student-1"]
    chosen = sorted(results, key=lambda name: first.index(name) if name in first else len(first))[:SHOWN_METHODS]
    rows = min(rows, len(panel) // panel.repeats)
    scale = max(1, 128 // panel.images.shape[2])  # smaller pictures leave no room for their captions
    shown = {name: results[name].images for name in results if name in chosen}
    right = {name: f"{report['methods'][name]['accuracy']['value']:.0%} of lines right" for name in shown}
    columns = {f"{name}\n{right[name]}": images for name, images in shown.items()}
    Image.fromarray(contact_sheet(columns, panel.labels(rows), scale)).save(folder / "grid.png")
    plots.text_zoom(report, shown, panel.polygons, panel.texts, ZOOM_LINES).savefig(
        folder / "zoom.png", dpi=2 * plots.DPI, metadata={"Software": None}
    )


# -- command --------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anytext_lcm.evaluate",
        description="Measures a student against its teacher: readability, likeness, colours, time.",
    )
    add = parser.add_argument
    add(
        "--adapter",
        nargs="+",
        default=["shipped"],
        metavar="DIR|shipped|none",
        help="default: shipped; after the first, others of another training seed or objective, as LABEL=DIR, by which "
        "the student's methods are drawn too; without a label they are counted from 2",
    )
    add(
        "--lines",
        type=int,
        default=256,
        help="lines of text in the panel; 256 give 3 to 5 points either way (default: %(default)s)",
    )
    add(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="teacher-N, teacher-N-leading, teacher-N-eta1, teacher-N-dpm++, teacher-N-unipc, "
        "student-N, student-N-deterministic, student-N-gamma0.3, student-N-w0.5, untrained-N, "
        f"{REAL}, {RECONSTRUCTION} (default: {' '.join(METHODS)})",
    )
    add(
        "--comparison",
        action="store_true",
        help="the methods of the README's table, which need diffusers; instead of --methods",
    )
    add("--seed", type=int, default=0, help="another seed is another panel and other noise")
    add(
        "--sampling_seeds",
        type=int,
        default=1,
        help="pictures of each prompt from different noise; from 2 on diversity is measured (default: %(default)s)",
    )
    add("--guidance_scale", type=float, help="the teacher's; default: what suits the network")
    add("--negative_prompt", help="the teacher's; default: what suits the network")
    add("--output", default="outputs/evaluation", help="folder for report, table and grid (default: %(default)s)")
    add("--config", default=str(EMBEDDED_CONFIG), help="yaml of the network; default: the embedded one")
    add("--ckpt", help="weights of the teacher; default: the embedded ones")
    add("--device", help="default: the GPU if there is one")
    return parser


def _adapters(names: Sequence[str]) -> tuple[Path | None, dict[str, Path]]:
    """The first adapter, None for none, and the others by label. Raises FileNotFoundError or ValueError."""
    first = resolve_adapter(names[0])
    others: dict[str, Path] = {}
    for number, name in enumerate(names[1:], 2):
        label, mark, folder = name.partition("=")
        label, folder = (label, folder) if mark else (str(number), name)
        if "none" in (names[0], folder):
            raise ValueError("none stands alone: it is the teacher, and no other adapter can be compared with it here.")
        if not re.fullmatch(r"[\w.]+", label) or label in others:
            raise ValueError(f"The label {label!r} of an adapter must be a word of its own, as in x0=DIR.")
        others[label] = resolve_adapter(folder)
    return first, others


def run(args: argparse.Namespace) -> Path:
    """Checks what can be checked before the weights are loaded, then draws, judges and writes."""
    defaults = defaults_for(args.config)
    guidance = defaults.guidance_scale if args.guidance_scale is None else args.guidance_scale
    negative = defaults.negative_prompt if args.negative_prompt is None else args.negative_prompt
    adapter, others = _adapters(args.adapter)
    if args.comparison and args.methods is not None:
        raise ValueError("--comparison names the methods itself: drop it or --methods.")
    names = args.methods
    if names is None:
        usual = COMPARISON if args.comparison else METHODS
        names = [name for name in usual if adapter or not name.startswith("student")]
    if adapter is None and any(name.startswith("student") for name in names):
        raise ValueError("There is no student without an adapter: name one, or leave its methods out.")
    resolve_methods(names, guidance)
    panel = Panel.build(lines=args.lines, seed=args.seed, image_size=defaults.size[0], repeats=args.sampling_seeds)
    output = Path(args.output)
    with whole_directory(output) as folder:
        use_available_cores()
        model = load_chosen(args.config, args.ckpt, args.device)
        if adapter is not None:
            load_adapter(model, adapter)
        settings = {
            "config": Path(args.config).name,
            "ckpt": Path(args.ckpt).name if args.ckpt else "embedded",
            "date": date.today().isoformat(),
            "adapter": args.adapter[0] if len(args.adapter) == 1 else args.adapter,
        }
        report, results = compare(model, panel, names, guidance, negative, settings, more_adapters=others)
        write_report(folder, report, results, panel)
    return output


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr for what is asked and cannot be."""
    args = build_parser().parse_args(arguments)
    try:
        print(run(args))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
