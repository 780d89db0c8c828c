"""All measures of the pictures of one panel: reading, distance to real pictures, sharpness, colours."""

from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from anytext_lcm.data.mock import MockDataset
from anytext_lcm.data.words import kind_of
from anytext_lcm.drawing.cores import available_cores
from anytext_lcm.judging import colours, intervals, likeness, obedience, reading

if TYPE_CHECKING:
    from anytext_lcm.judging.panel import Panel

REAL_SEED = 30_000  # of the real pictures that distributions are compared with: other texts and layouts
DISTRIBUTION_FROM = 8  # prompts; fewer say nothing about a distribution


class Judgement(NamedTuple):
    """What the judge found: scores per line, and all measures as plain numbers, ready for JSON."""

    scores: reading.LineScores
    measures: dict[str, Any]


def unseen_scenes(
    count: int, seed: int, image_size: int, edit_share: float = 0.0, hint_share: float = 0.0
) -> MockDataset:
    """Scenes with words that no training picture shows, by default drawn from nothing and without a font hint."""
    return MockDataset(count, seed, image_size, split="test", edit_share=edit_share, hint_share=hint_share)


def real_pictures(count: int, image_size: int = 128, seed: int = 0, edit_share: float = 0.0) -> np.ndarray:
    """Pictures (count, H, W, 3) uint8 of other texts and layouts than a panel of the same seed and share."""
    source = unseen_scenes(count, REAL_SEED + seed, image_size, edit_share)
    return np.stack([source.scene(index).image for index in range(count)])


class PanelJudge:
    """Reader, features and real pictures, set up once for all methods of a panel: what `Panel.judge` asks."""

    def __init__(self, panel: "Panel"):
        self.panel, self.prompt_of = panel, panel.prompt_of
        self._threads = min(4, available_cores())
        self.masks = [colours.text_mask(polygons, panel.size) for polygons in panel.polygons]
        self.real_energy = likeness.gradient_energy(panel.images, self.masks) if panel.has_pictures else None
        self.real_sharpness = self._sharpness(panel.images, self.real_energy) if panel.has_pictures else None

    @cached_property
    def reader(self) -> reading.LineReader:
        return reading.LineReader(self._threads)

    @cached_property
    def features(self) -> likeness.DetectorFeatures:
        return likeness.DetectorFeatures(self._threads)

    @cached_property
    def real(self) -> likeness.RealFeatures | None:
        """As many pictures to compare with as are drawn, and as many again for the floor; of records those there are.

        None when they are too few to say anything about a distribution.
        """
        panel = self.panel
        if panel.source == "scenes":
            pictures = real_pictures(2 * len(panel), panel.size[0], panel.seed, panel.edit_share)
        elif panel.others is None or len(panel.others) < 2 * DISTRIBUTION_FROM:
            return None
        else:
            pictures = panel.others
        return likeness.RealFeatures(self.features(pictures))

    def __call__(self, images: np.ndarray, reference: np.ndarray | None = None) -> Judgement:
        """Judge pictures of the panel (B, H, W, 3) uint8. reference: the slow teacher's from the same noise."""
        panel = self.panel
        scores = reading.score_lines(self.reader, images, panel.polygons, panel.texts, self.prompt_of)
        energy = likeness.gradient_energy(images, self.masks)
        sharp = self._sharpness(images, energy)
        measures = {
            **read_measures(scores, panel.repeats),
            "distribution": None,
            "sharpness": sharp | self._to_real(sharp, energy),
            **obedience.measures(panel, images, self.masks),
            "read": list(scores.read),
            **self._spread(images, scores),
        }
        if reference is not None:
            rmse, psnr = likeness.same_noise_distance(images, reference)
            measures["same_noise"] = {
                "rmse": float(rmse.mean()),
                "interval": asdict(intervals.bootstrap_mean(rmse, self.prompt_of)),
                "psnr": float(psnr.mean()) if np.isfinite(psnr).all() else None,  # None: equal pictures
            }
        return Judgement(scores, measures)

    def _sharpness(self, images: np.ndarray, energy: np.ndarray) -> dict[str, float]:
        return {
            "laplacian_variance": float(likeness.sharpness(images, self.masks).mean()),
            "gradient_energy": float(energy.mean()),
        }

    def _to_real(self, sharp: dict[str, float], energy: np.ndarray) -> dict[str, Any]:
        """Ratios to the real pictures' sharpness, None where there are none."""
        real = self.real_sharpness
        if real is None:
            return {f"{name}_to_real": None for name in sharp} | {"to_real": None}
        ratio = asdict(intervals.paired_bootstrap(energy, self.real_energy, self.prompt_of))
        return {f"{name}_to_real": value / real[name] for name, value in sharp.items()} | {"to_real": ratio}

    def _spread(self, images: np.ndarray, scores: reading.LineScores) -> dict[str, Any]:
        """Distance to real pictures, and with several noises per prompt what differs between them."""
        repeats = self.panel.repeats
        far = len(self.panel) >= DISTRIBUTION_FROM and self.real is not None
        features = self.features(images) if far or repeats > 1 else None
        measures: dict[str, Any] = {}
        if far:
            same = slice(self.real.n)  # as many drawn ones, where there are fewer real ones
            measures["distribution"] = asdict(self.real.distance(features[same], self.prompt_of[same]))
        if repeats > 1:
            measures["accuracy_by_seed"] = scores.correct.reshape(repeats, -1).mean(axis=1).tolist()
            if self.real is None:  # its deviations are the unit
                measures["diversity"] = None
            else:
                distance = likeness.diversity(features, repeats, self.real.deviation)
                measures["diversity"] = asdict(intervals.bootstrap_mean(distance, np.arange(len(distance))))
        return measures


def read_measures(scores: reading.LineScores, repeats: int = 1) -> dict[str, Any]:
    """Shares of lines right and NED, with intervals over prompts: of all lines, by height, by what they say."""
    return {
        **{key: asdict(intervals.bootstrap_mean(getattr(scores, name), scores.group)) for key, name in _READ.items()},
        "by_height": [
            {"from": low, "to": None if np.isinf(high) else high, "lines": lines, **asdict(interval)}
            for low, high, lines, interval in intervals.accuracy_by_height(scores, repeats=repeats)
        ],
        "by_kind": by_kind(scores, repeats),
    }


_READ = {"accuracy": "correct", "exact": "exact", "ned": "ned"}  # measure: field of LineScores


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
