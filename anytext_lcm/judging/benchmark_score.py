"""The yardstick: pictures of any model, drawn for the same prompts, read and measured alike."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from fontTools import unicodedata as scripts
from tqdm import tqdm

from anytext_lcm.data.pictures import open_picture
from anytext_lcm.drawing.cores import available_cores
from anytext_lcm.judging import artefacts, intervals, likeness, reading
from anytext_lcm.judging.benchmark_lines import ENGLISH, is_chinese, upstream_crop, upstream_ned
from anytext_lcm.judging.benchmark_pictures import Scoring
from anytext_lcm.judging.benchmark_set import PANEL_SIDE, SIDE, Task, polygons_of
from anytext_lcm.judging.defaults import PANEL
from anytext_lcm.judging.judge import real_pictures

HEIGHTS = (0, 32, 48, 64, 96, 128)  # pixels of a picture of SIDE, where each range of heights begins
LENGTHS = (1, 5, 9, 13)  # characters
MEASURES = ("exact", "ned", "correct", "lenient_ned")


# -- scores ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """What was measured of a folder.

    lines     arrays (N,) with an entry per prompt, sample and line, in this order. exact and ned compare as upstream
              does: case, spaces and punctuation count. correct and lenient_ned compare letters and digits alone.
              group: the prompt
    grid      (P,) `artefacts.grid_energy` of each picture as it was drawn, and prompt (P,)
    features  (n, D) of the pictures that are compared with real ones, and featured (n,), the prompt of each; or None
    resized   how many pictures had another size
    """

    lines: Mapping[str, np.ndarray]
    grid: np.ndarray
    prompt: np.ndarray
    features: np.ndarray | None = None
    featured: np.ndarray | None = None
    resized: int = 0


def score_pictures(
    reader: reading.LineReader,
    tasks: Sequence[Task],
    paths: Mapping[str, Sequence[Path]],
    size: tuple[int, int],
    features: likeness.DetectorFeatures | None = None,
    compared: int = 0,
    label: str | None = None,
) -> Scores:
    """Read and measure the pictures of prompts.

    features: of so many (compared), the first sample of every prompt before the second. label: of a progress bar.
    Raises ValueError for a picture that cannot be read.
    """
    known = None if is_chinese([text for task in tasks for text, _ in task.lines]) else ENGLISH
    parts: dict[str, list[np.ndarray]] = {}
    grid, resized, seen, featured = [], 0, [], []
    for number, task in enumerate(tqdm(tasks, desc=label, leave=False, disable=None if label else True)):
        pictures = [open_picture(path) for path in paths[task.name]]
        grid.append(artefacts.grid_energy(pictures))
        resized += sum(picture.shape[:2] != size for picture in pictures)
        pictures = [resize(picture, size) for picture in pictures]
        chosen = [picture for k, picture in enumerate(pictures) if k * len(tasks) + number < compared]
        if features is not None and chosen:
            seen.append(features(chosen))
            featured += [number] * len(chosen)
        if not task.lines:
            continue
        polygons = polygons_of(task, size)
        read = reader.read_crops([upstream_crop(picture, polygon) for picture in pictures for polygon in polygons])
        wanted = [text for text, _ in task.lines] * len(pictures)
        plain = [(reading.normalise(a), reading.normalise(b)) for a, b in zip(wanted, read, strict=True)]
        found = {
            "exact": np.array([a == b for a, b in zip(wanted, read, strict=True)]),
            "ned": np.array([upstream_ned(a, b, known) for a, b in zip(wanted, read, strict=True)]),
            "correct": np.array([a == b for a, b in plain]),
            "lenient_ned": np.array([reading.ned(a, b) for a, b in plain]),
            "group": np.full(len(wanted), number),
        }
        for key, values in found.items():
            parts.setdefault(key, []).append(values)
    return Scores(
        lines={key: np.concatenate(values) for key, values in parts.items()},
        grid=np.concatenate(grid),
        prompt=np.repeat(np.arange(len(grid)), [len(energies) for energies in grid]),
        features=np.concatenate(seen) if seen else None,
        featured=np.array(featured) if seen else None,
        resized=resized,
    )


def resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture (h, w, 3) uint8 in another height and width; one that has them already is returned as it is."""
    if picture.shape[:2] == size:
        return picture
    smaller = picture.shape[0] > size[0] or picture.shape[1] > size[1]
    return cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def kinds_of_lines(tasks: Sequence[Task], samples: int) -> dict[str, np.ndarray]:
    """What each line is, in words, in the order of `Scores.lines`: arrays (N,) of str for height, length and script."""
    kinds: dict[str, list[str]] = {"height": [], "length": [], "script": []}
    for task in tasks:
        boxes = polygons_of(task, (SIDE, SIDE))
        for (text, _), box in list(zip(task.lines, boxes, strict=True)) * samples:
            kinds["height"].append(_range(reading.line_height(box), HEIGHTS))
            kinds["length"].append(_range(max(len(text), 1), LENGTHS, whole=True))
            kinds["script"].append(script_of(text))
    return {key: np.array(words) for key, words in kinds.items()}


def _range(value: float, starts: Sequence[int], whole: bool = False) -> str:
    """The range that holds a value, in words. whole: of whole numbers, which both ends belong to."""
    place = max(i for i, start in enumerate(starts) if value >= start)
    if place + 1 == len(starts):
        return f"from {starts[place]}"
    return f"{starts[place]} to {starts[place + 1] - whole}"


def script_of(text: str) -> str:
    """The one script of a text's letters, by its Unicode name; "several scripts", or "no letters"."""
    found = {scripts.script(letter) for letter in text} - {"Zyyy", "Zinh", "Zzzz"}  # digits, signs, accents
    if not found:
        return "no letters"
    return scripts.script_name(found.pop()) if len(found) == 1 else "several scripts"


# -- intervals -------------------------------------------------------------------------------------------


def judge(scoring: Scoring, show: bool = True) -> dict[str, Any]:
    """Score every folder: the part of the report that says how many prompts, of what size, and a row for each folder.

    Intervals are over prompts, and differences to the reference are paired; ready for JSON. show: progress bars.
    """
    threads, compared = min(4, available_cores()), scoring.compared
    reader = reading.LineReader(threads)
    features = likeness.DetectorFeatures(threads) if compared else None
    real, row_of_real = None, None
    if compared:
        real, row_of_real = _real_features(scoring, features, 2 * compared)
    scores = {
        name: score_pictures(
            reader, scoring.tasks, found.paths, scoring.size, features, compared, name if show else None
        )
        for name, found in scoring.found.items()
    }
    kinds = kinds_of_lines(scoring.tasks, scoring.samples)
    rows = summarise(scores, scoring.reference, kinds, scoring.samples)
    for name, found in scores.items():
        far = None if real is None else real.distance(found.features, found.featured)
        rows[name] |= {"distance": None if far is None else asdict(far.kernel), "resized": found.resized}
    return {
        "prompts": len(scoring.tasks),
        "lines": sum(len(task.lines) for task in scoring.tasks),
        "samples": scoring.samples,
        "read_at": list(scoring.size),
        "left_out": dict(scoring.left_out),
        "reference": scoring.reference,
        "real": row_of_real,
        "methods": rows,
    }


def _real_features(
    scoring: Scoring, features: likeness.DetectorFeatures, count: int
) -> tuple[likeness.RealFeatures, dict[str, Any]]:
    """So many real pictures, to compare with, and what the report says of them. They are looked at a few at a time."""
    seen, grid = [], []
    for pictures in _real_pictures(scoring, count):
        grid.append(artefacts.grid_energy(pictures))
        seen.append(features([resize(picture, scoring.size) for picture in pictures]))
    real, energy = likeness.RealFeatures(np.concatenate(seen)), np.concatenate(grid)
    found = in_levels(intervals.bootstrap_mean(energy, np.arange(len(energy))))
    return real, {"pictures": len(energy), "distance": asdict(real.floor), "grid": found}


def _real_pictures(scoring: Scoring, count: int, chunk: int = 16) -> Iterator[list[np.ndarray]]:
    if scoring.real == PANEL:
        yield list(real_pictures(count, PANEL_SIDE))
        return
    files = scoring.real_chosen
    for start in range(0, len(files), chunk):
        yield [open_picture(path) for path in files[start : start + chunk]]


def summarise(
    scores: Mapping[str, Scores], reference: str | None, kinds: Mapping[str, np.ndarray], samples: int
) -> dict[str, Any]:
    """Intervals of each folder, and its differences to the reference and retention of it; ready for JSON.

    kinds: as of `kinds_of_lines`; a kind's number of lines counts each once.
    """
    rows: dict[str, Any] = {}
    base = None if reference is None else scores[reference]
    for name, found in scores.items():
        lines, group = found.lines, found.lines["group"]
        row: dict[str, Any] = {key: asdict(intervals.bootstrap_mean(lines[key], group)) for key in MEASURES}
        row["grid"] = in_levels(intervals.bootstrap_mean(found.grid, found.prompt))
        for kind, words in kinds.items():
            row[f"by_{kind}"] = [
                {"kind": word, "lines": int(inside.sum()) // samples}
                | asdict(intervals.bootstrap_mean(lines["exact"][inside], group[inside]))
                for word in _in_order(words)
                for inside in [words == word]
            ]
        if base is not None:
            row["difference"] = {
                key: asdict(intervals.bootstrap_mean(lines[key].astype(float) - base.lines[key], group))
                for key in MEASURES
            }
            row["difference"]["grid_energy"] = asdict(intervals.bootstrap_mean(found.grid - base.grid, found.prompt))
            if base.lines["exact"].any():
                row["retention"] = asdict(intervals.paired_bootstrap(lines["exact"], base.lines["exact"], group))
        rows[name] = row
    return rows


def _in_order(words: np.ndarray) -> list[str]:
    """Each word once: ranges by where they begin, scripts by how many lines they have."""
    counts = Counter(words.tolist())
    starts = {word: next((int(part) for part in word.split() if part.isdecimal()), 0) for word in counts}
    return sorted(counts, key=lambda word: (starts[word], -counts[word], word))


def in_levels(energy: intervals.Interval) -> dict[str, Any]:
    """An interval of energies as one of grey levels: their square roots, with the sign kept."""
    value, low, high = (float(np.sign(e) * np.sqrt(abs(e))) for e in (energy.value, energy.low, energy.high))
    return asdict(intervals.Interval(value, low, high, energy.n))
