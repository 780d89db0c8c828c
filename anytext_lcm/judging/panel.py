"""
A fixed panel of prompts with its real pictures, and the judge of pictures drawn for it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from anytext_lcm.data.batch import collate
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.data.words import kind_of
from anytext_lcm.drawing.cores import available_cores
from anytext_lcm.drawing.draw import Prepared, prepare
from anytext_lcm.judging import colours, intervals, likeness, reading
from anytext_lcm.model.anytext2 import AnyText2

PANEL_SEED = 20_000  # of the prompts; training draws its own from the other split of words


REAL_SEED = 30_000  # of the real pictures that distributions are compared with: other texts and layouts


DISTRIBUTION_FROM = 8  # prompts; fewer say nothing about a distribution


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
        return np.stack(reading.as_uint8(self.batch["img"]))

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


def by_kind(scores: reading.LineScores, repeats: int = 1) -> list[dict[str, Any]]:
    """Lines right for each kind of text there is (`words.kind_of`), with how many there are; intervals over prompts.

    repeats: how often each line was drawn, from other noise.
    """
    kinds = np.array([kind_of(text) for text in scores.wanted])
    return [
        {"kind": kind, "lines": int((kinds == kind).sum()) // repeats}
        | asdict(intervals.bootstrap_mean(scores.correct[kinds == kind], scores.group[kinds == kind]))
        for kind in ("words", "numbers", "mixed")
        if (kinds == kind).any()
    ]


class PanelJudge:
    """Reader, features and real pictures, set up once for all methods of a panel."""

    def __init__(self, panel: Panel, real_seed: int = 0):
        self.panel = panel
        threads = min(4, available_cores())
        self.reader = reading.LineReader(threads)
        self.features = likeness.DetectorFeatures(threads)
        size = panel.images.shape[1]
        # As many to compare with as are drawn, and as many again for the floor.
        self.real = self.features(real_pictures(2 * len(panel), size, real_seed))
        self.masks = [colours.text_mask(polygons, (size, size)) for polygons in panel.polygons]
        self.real_sharpness = self._sharpness(panel.images)

    def _sharpness(self, images: np.ndarray) -> dict[str, float]:
        return {
            "laplacian_variance": float(likeness.sharpness(images, self.masks).mean()),
            "gradient_energy": float(likeness.gradient_energy(images, self.masks).mean()),
        }

    def __call__(
        self, images: np.ndarray, reference: np.ndarray | None = None
    ) -> tuple[reading.LineScores, dict[str, Any]]:
        """Pictures of the panel (B, H, W, 3) uint8 -> scores of its lines, and all measures as plain numbers.

        reference: the slow teacher's pictures from the same noise.
        """
        panel = self.panel
        scores = reading.score_lines(self.reader, images, panel.polygons, panel.texts, panel.prompt_of)
        sharp = self._sharpness(images)
        measures: dict[str, Any] = {
            "accuracy": asdict(intervals.bootstrap_mean(scores.correct, scores.group)),
            "exact": asdict(intervals.bootstrap_mean(scores.exact, scores.group)),
            "ned": asdict(intervals.bootstrap_mean(scores.ned, scores.group)),
            "by_height": [
                {"from": low, "to": None if np.isinf(high) else high, "lines": lines, **asdict(interval)}
                for low, high, lines, interval in intervals.accuracy_by_height(scores, repeats=panel.repeats)
            ],
            "by_kind": by_kind(scores, panel.repeats),
            "distribution": None,
            "sharpness": sharp | {f"{k}_to_real": v / self.real_sharpness[k] for k, v in sharp.items()},
            **self._colours(images),
            "read": list(scores.read),
        }
        features = self.features(images) if len(panel) >= DISTRIBUTION_FROM or panel.repeats > 1 else None
        if len(panel) >= DISTRIBUTION_FROM:
            measures["distribution"] = asdict(
                likeness.distribution_distance(features, self.real, groups=panel.prompt_of)
            )
        if panel.repeats > 1:
            measures["accuracy_by_seed"] = scores.correct.reshape(panel.repeats, -1).mean(axis=1).tolist()
            distance = likeness.diversity(features, panel.repeats, self.real.std(axis=0))
            measures["diversity"] = asdict(intervals.bootstrap_mean(distance, np.arange(len(distance))))
        if reference is not None:
            rmse, psnr = likeness.same_noise_distance(images, reference)
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
            background.append(colours.background_obeyed(image, meta["background"], self.masks[index]))
            # A caption with two colours does not say which line has which.
            if not meta["color_given"] and len(set(meta["text_colors"])) > 1:
                continue
            for polygon, name in zip(item["condition_polygons"], meta["text_colors"], strict=True):
                text.append(colours.text_colour_obeyed(image, polygon, name))
                prompts.append(everyone[index])
        measures = {"background_obeyed": asdict(intervals.bootstrap_mean(np.array(background), everyone))}
        if text:
            measures["text_colour_obeyed"] = asdict(intervals.bootstrap_mean(np.array(text), np.array(prompts)))
        return measures
