"""Confidence intervals by the bootstrap over prompts: the lines of one picture stand or fall together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anytext_lcm.judging.reading import LineScores


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95 % interval; n is the number of groups that were resampled."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def _group_sums(groups: np.ndarray, *columns: np.ndarray) -> np.ndarray:
    """Sums of each column over each group: (G, columns)."""
    if any(len(column) != len(groups) for column in columns) or len(groups) == 0:
        raise ValueError(f"{[len(column) for column in columns]} values for {len(groups)} lines: give one a line.")
    _, index = np.unique(groups, return_inverse=True)
    return np.stack([np.bincount(index, weights=column.astype(float)) for column in columns], axis=1)


def _resample(sums: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Sums (draws, columns) over as many groups as there are, drawn with replacement."""
    rng, count = np.random.default_rng(seed), len(sums)
    chunks = [min(1000, draws - start) for start in range(0, draws, 1000)]
    return np.concatenate([rng.multinomial(count, np.full(count, 1 / count), size=k) @ sums for k in chunks])


def bootstrap_mean(values, groups, draws: int = 10_000, seed: int = 0) -> Interval:
    """Mean of `values` (N,) with its percentile interval over groups (N,), resampled whole."""
    sums = _group_sums(np.asarray(groups), np.asarray(values), np.ones(len(values)))
    drawn = _resample(sums, draws, seed)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return Interval(float(sums[:, 0].sum() / sums[:, 1].sum()), float(low), float(high), len(sums))


def paired_bootstrap(student, teacher, groups, draws: int = 10_000, seed: int = 0) -> Interval:
    """Retention: mean of the student over mean of the teacher on the same lines, with its interval.

    student, teacher: (N,) values of the same N lines; groups: (N,) prompts. Both are resampled together, so that what
    is hard for both does not widen the interval. Raises ValueError when the teacher scores nothing.
    """
    sums = _group_sums(np.asarray(groups), np.asarray(student), np.asarray(teacher))
    total = sums.sum(axis=0)
    if total[1] <= 0:
        raise ValueError("The teacher scores 0 on all lines: there is nothing to retain.")
    drawn = _resample(sums, draws, seed)
    drawn = drawn[drawn[:, 1] > 0]
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return Interval(float(total[0] / total[1]), float(low), float(high), len(sums))


def accuracy_by_height(
    scores: LineScores, edges: Sequence[float] = (0, 16, 20, 24, 32, np.inf), repeats: int = 1
) -> list[tuple[float, float, int, Interval]]:
    """(from, to, lines, accuracy) for each range of line heights in pixels that has any line; `to` is excluded.

    The interval is of `bootstrap_mean` over prompts. repeats: how often each line was drawn, from other noise; the
    number of lines counts it once.
    """
    buckets = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (scores.height >= low) & (scores.height < high)
        if inside.any():
            lines = int(inside.sum()) // repeats
            buckets.append((low, high, lines, bootstrap_mean(scores.correct[inside], scores.group[inside])))
    return buckets


def retention_by_height(
    student: LineScores, teacher: LineScores, edges: Sequence[float] = (0, 16, 20, 24, 32, np.inf)
) -> list[tuple[float, float, Interval]]:
    """(from, to, retention) for each range of line heights in pixels in which the teacher has a line right; `to` is
    excluded. Both have to be scores of the same lines; intervals as of `paired_bootstrap`.
    """
    buckets = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (teacher.height >= low) & (teacher.height < high)
        if teacher.correct[inside].any():
            columns = (student.correct[inside], teacher.correct[inside], teacher.group[inside])
            buckets.append((low, high, paired_bootstrap(*columns)))
    return buckets
