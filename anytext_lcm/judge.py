"""Judging pictures: is the text readable, are they spread like real ones, sharp, and in the asked colours?

The text is read by PP-OCRv6 and the spread is measured in an inner layer of its text detector; both networks
are files inside the rapidocr wheel, run here with onnxruntime, so nothing is downloaded. Neither takes part
in drawing, where AnyText2 has a recogniser of its own (PP-OCRv3).

Intervals resample whole prompts, because the lines of one picture stand or fall together.

May import: numpy, cv2, onnx, onnxruntime, rapidfuzz, anytext_lcm.data.
"""

from __future__ import annotations

import importlib.util
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
from rapidfuzz.distance import Levenshtein

from anytext_lcm.data.mock import COLORS

READ_HEIGHT = 48  # pixels: the height PP-OCR's recogniser is trained at
_READ_WIDTH = 320  # and the width it pads shorter lines to
_FEATURE_SIZE = 256
_TURNED = 1.5  # a line this much higher than wide is read lying


def as_uint8(images) -> list[np.ndarray]:
    """Pictures of any usual form as a list of (H, W, 3) uint8 RGB.

    images: tensor or array (B, 3, H, W), float in -1..1; or (H, W, 3) uint8 ones in an array or a sequence.
    Raises ValueError for anything else.
    """
    if hasattr(images, "detach"):
        images = images.detach().cpu().float().numpy()
    if isinstance(images, np.ndarray) and images.dtype.kind == "f":
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"Float pictures must be (B, 3, H, W) in -1..1, these are {images.shape}.")
        images = ((images.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8).transpose(0, 2, 3, 1)
    images = [np.asarray(image) for image in images]
    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"A picture must be (H, W, 3) uint8, this one is {image.shape} {image.dtype}.")
    return images


# ---- reading ----


@lru_cache(maxsize=1)
def _model_folder() -> Path:
    spec = importlib.util.find_spec("rapidocr")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("rapidocr is not installed, and its models judge the text: install it.")
    return Path(next(iter(spec.submodule_search_locations))) / "models"


def _model_file(kind: str) -> Path:
    found = sorted(_model_folder().glob(f"PP-OCR*_{kind}_*.onnx"))
    if not found:
        raise FileNotFoundError(
            f"{_model_folder()} holds no PP-OCR '{kind}' model: install the rapidocr of pyproject.toml."
        )
    return found[0]


def _session(model: str | bytes, threads: int | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or min(4, os.cpu_count() or 1)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def line_quad(polygon: np.ndarray) -> np.ndarray:
    """The four corners (4, 2) float32 of a text line, clockwise from the start of the text.

    Four points are taken to start where the text starts; another polygon is replaced by the smallest
    rectangle around it, read along the edge nearest to left-to-right. Raises ValueError for under 3 points.
    """
    points = np.asarray(polygon, dtype=np.float32)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
        raise ValueError(f"A polygon needs 3 or more (x, y) points, this one has shape {points.shape}.")
    if len(points) != 4:
        points = cv2.boxPoints(cv2.minAreaRect(points))
        along = np.roll(points, -1, axis=0) - points
        points = np.roll(points, -int(np.argmax(along[:, 0] / np.linalg.norm(along, axis=1))), axis=0)
    x, y = points.T
    if np.dot(x, np.roll(y, -1)) < np.dot(y, np.roll(x, -1)):  # counter-clockwise on the screen
        points = points[[0, 3, 2, 1]]
    return points


def _sides(quad: np.ndarray) -> tuple[float, float]:
    """Mean width and height of a quad in pixels."""
    edges = np.linalg.norm(np.roll(quad, -1, axis=0) - quad, axis=1)
    return max(1.0, float(edges[[0, 2]].mean())), max(1.0, float(edges[[1, 3]].mean()))


def rectify(image: np.ndarray, polygon: np.ndarray, height: int = READ_HEIGHT, margin: float = 0.1) -> np.ndarray:
    """The text line of `polygon` upright: (height, w, 3) uint8, with `margin` (in line heights) around it.

    A line much higher than wide is turned by 90 degrees, as PP-OCR does.
    """
    quad = line_quad(polygon)
    width_px, height_px = _sides(quad)
    along = (quad[[1, 2]] - quad[[0, 3]]).mean(axis=0) / width_px
    down = (quad[[3, 2]] - quad[[0, 1]]).mean(axis=0) / height_px
    extent = margin * min(width_px, height_px)
    outward = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])  # of each corner, along and down the line
    quad = quad + extent * outward @ np.stack([along, down])
    width_px, height_px = width_px + 2 * extent, height_px + 2 * extent
    if height_px > _TURNED * width_px:  # read a vertical line from its top, turned to lie
        quad, width_px, height_px = np.roll(quad, -1, axis=0), height_px, width_px
    width = int(np.clip(round(height * width_px / height_px), height // 3, 40 * height))
    corners = np.float32([[0, 0], [width, 0], [width, height], [0, height]])
    transform = cv2.getPerspectiveTransform(quad.astype(np.float32), corners)
    return cv2.warpPerspective(
        image, transform, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )


class LineReader:
    """PP-OCR's recogniser on upright crops; what it reads does not depend on what else is in the batch."""

    def __init__(self, threads: int | None = None, batch_size: int = 32):
        self.session = _session(str(_model_file("rec")), threads)
        self.input_name = self.session.get_inputs()[0].name
        letters = self.session.get_modelmeta().custom_metadata_map["character"].splitlines()
        self.letters = ["", *letters, " "]  # class 0 is CTC's blank
        self.batch_size = batch_size

    def read_crops(self, crops: Sequence[np.ndarray]) -> list[str]:
        """Upright crops (READ_HEIGHT, w, 3) uint8 RGB to their texts."""
        by_width: dict[int, list[int]] = {}
        for index, crop in enumerate(crops):
            if crop.shape[0] != READ_HEIGHT:
                raise ValueError(f"A crop must be {READ_HEIGHT} pixels high, this one is {crop.shape[0]}.")
            by_width.setdefault(max(_READ_WIDTH, -(-crop.shape[1] // 64) * 64), []).append(index)
        texts = [""] * len(crops)
        for width, indices in by_width.items():
            for start in range(0, len(indices), self.batch_size):
                chunk = indices[start : start + self.batch_size]
                batch = np.zeros((len(chunk), 3, READ_HEIGHT, width), dtype=np.float32)
                for row, index in enumerate(chunk):
                    bgr = crops[index][:, :, ::-1].astype(np.float32) / 127.5 - 1
                    batch[row, :, :, : bgr.shape[1]] = bgr.transpose(2, 0, 1)
                [probabilities] = self.session.run(None, {self.input_name: batch})
                for index, best in zip(chunk, probabilities.argmax(axis=2), strict=True):
                    new = np.flatnonzero(np.diff(best, prepend=-1))  # a repeated class is one letter
                    texts[index] = "".join(self.letters[k] for k in best[new])
        return texts

    def read(self, images, polygons: Sequence[Sequence[np.ndarray]]) -> list[list[str]]:
        """The text found in each polygon of each picture (pictures: as for `as_uint8`).

        Give the polygons the text was asked for in: a generator may place it anywhere inside.
        """
        images = as_uint8(images)
        if len(images) != len(polygons):
            raise ValueError(f"{len(images)} pictures, polygons for {len(polygons)}: give one list a picture.")
        pairs = zip(images, polygons, strict=True)
        crops = [rectify(image, polygon) for image, lines in pairs for polygon in lines]
        texts = iter(self.read_crops(crops))
        return [[next(texts) for _ in lines] for lines in polygons]


def normalise(text: str) -> str:
    """Letters and digits only, width and case ignored; a text without any is kept as it is."""
    text = unicodedata.normalize("NFKC", text).strip()
    return "".join(letter for letter in text.casefold() if letter.isalnum()) or text


def ned(wanted: str, read: str) -> float:
    """1 - edit distance / longer length: 1 for equal texts (two empty ones are), 0 for nothing in common."""
    return Levenshtein.normalized_similarity(wanted, read)


@dataclass(frozen=True)
class LineScores:
    """One entry a line. `correct` and `ned` look at letters and digits and ignore case; `exact` at all."""

    wanted: tuple[str, ...]
    read: tuple[str, ...]
    group: np.ndarray  # (N,) int: the prompt a line belongs to
    height: np.ndarray  # (N,) float: height of the line in pixels
    correct: np.ndarray  # (N,) bool
    exact: np.ndarray  # (N,) bool
    ned: np.ndarray  # (N,) float

    @property
    def accuracy(self) -> float:
        """Sentence accuracy: the share of lines read in full."""
        return float(self.correct.mean())


def score_lines(
    reader: LineReader,
    images,
    polygons: Sequence[Sequence[np.ndarray]],
    texts: Sequence[Sequence[str]],
    groups: Sequence[int] | None = None,
) -> LineScores:
    """Reads every line of every picture and compares it with what it should say.

    groups: which prompt each picture was drawn for; each picture its own when not given.
    Raises ValueError when a picture has not one text for each polygon, or when there is no line at all.
    """
    groups = list(range(len(texts))) if groups is None else list(groups)
    if not len(polygons) == len(texts) == len(groups):
        raise ValueError(
            f"{len(polygons)} lists of polygons, {len(texts)} of texts, {len(groups)} groups: one a picture."
        )
    for index, (lines, words) in enumerate(zip(polygons, texts, strict=True)):
        if len(lines) != len(words):
            raise ValueError(f"Picture {index} has {len(lines)} polygons for {len(words)} texts: pair them.")
    wanted = [word for words in texts for word in words]
    if not wanted:
        raise ValueError("There is no text line to judge: give pictures with at least one.")
    read = [word for words in reader.read(images, polygons) for word in words]
    pairs = [(normalise(a), normalise(b)) for a, b in zip(wanted, read, strict=True)]
    return LineScores(
        wanted=tuple(wanted),
        read=tuple(read),
        group=np.repeat(np.asarray(groups), [len(words) for words in texts]),
        height=np.array([min(_sides(line_quad(polygon))) for lines in polygons for polygon in lines]),
        correct=np.array([a == b for a, b in pairs]),
        exact=np.array([a.strip() == b.strip() for a, b in zip(wanted, read, strict=True)]),
        ned=np.array([ned(a, b) for a, b in pairs]),
    )


# ---- intervals ----


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95 % interval; n counts what was resampled."""

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

    student, teacher: (N,) values of the same N lines; groups: (N,) prompts. Both are resampled together, so
    that what is hard for both does not widen the interval. Raises ValueError when the teacher scores nothing.
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


# ---- distance between distributions ----


class DetectorFeatures:
    """Mean and deviation over space of an inner layer of PP-OCR's text detector: the last at stride 16."""

    def __init__(self, threads: int | None = None, batch_size: int = 16):
        model = onnx.load(str(_model_file("det")))
        layer = self._end_of_stride_16(model.graph)
        del model.graph.output[:]  # without its head the rest of the network is not run
        model.graph.output.append(onnx.helper.make_tensor_value_info(layer, onnx.TensorProto.FLOAT, None))
        self.session = _session(model.SerializeToString(), threads)
        self.input_name = self.session.get_inputs()[0].name
        self.batch_size = batch_size

    @staticmethod
    def _end_of_stride_16(graph: onnx.GraphProto) -> str:
        """What the fifth stride-2 convolution takes in has been halved four times."""
        halving = [
            node.input[0]
            for node in graph.node
            if node.op_type == "Conv"
            for attribute in node.attribute
            if attribute.name == "strides" and list(attribute.ints) == [2, 2]
        ]
        if len(halving) != 5:
            raise ValueError(
                f"The text detector halves its input {len(halving)} times, not 5: "
                "install the rapidocr of pyproject.toml."
            )
        return halving[4]

    def __call__(self, images) -> np.ndarray:
        """Pictures (as for `as_uint8`) to features (N, 384) float64; each is resized to 256 x 256 first."""
        images, size = as_uint8(images), (_FEATURE_SIZE, _FEATURE_SIZE)
        features = []
        for start in range(0, len(images), self.batch_size):
            chunk = []
            for image in images[start : start + self.batch_size]:
                how = cv2.INTER_AREA if min(image.shape[:2]) > _FEATURE_SIZE else cv2.INTER_LINEAR
                chunk.append(cv2.resize(image, size, interpolation=how)[:, :, ::-1])
            batch = np.stack(chunk).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
            [maps] = self.session.run(None, {self.input_name: np.ascontiguousarray(batch)})
            features.append(np.concatenate([maps.mean(axis=(2, 3)), maps.std(axis=(2, 3))], axis=1))
        return np.concatenate(features).astype(np.float64)


def kernel_distance(
    a: np.ndarray, b: np.ndarray, draws: int = 1000, seed: int = 0, groups: np.ndarray | None = None
) -> Interval:
    """Squared maximum mean discrepancy with kernel (x.y / D + 1)^3: the KID of arXiv:1801.01401.

    a, b: features (N, D), (M, D). Unbiased: 0 on average for equal distributions, hence at times below 0.
    The interval resamples pictures; one drawn twice is not compared with itself, which would bias it upward.
    groups (N,): pictures of a that belong together, as of one prompt from several noises; they are not compared with
    each other either, and are resampled together. Each picture is its own group when not given.
    """
    _check_features(a, b)
    _, group_of = np.unique(np.arange(len(a)) if groups is None else np.asarray(groups), return_inverse=True)
    if len(group_of) != len(a):
        raise ValueError(f"{len(group_of)} groups for {len(a)} pictures: give one each.")
    sizes = np.bincount(group_of)
    dim = a.shape[1]
    k_aa, k_bb, k_ab = ((x @ y.T / dim + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    k_aa[group_of[:, None] == group_of] = 0
    np.fill_diagonal(k_bb, 0)

    def discrepancy(w: np.ndarray, v: np.ndarray) -> np.ndarray:
        """One value for each row of weights of the groups w (draws, G) and of the pictures v (draws, M)."""
        alone = ((w * sizes) ** 2).sum(axis=1), (v**2).sum(axis=1)  # weight of the pairs that are left out
        w = w[:, group_of]
        value = -2 * ((w @ k_ab) * v).sum(axis=1) / (w.sum(axis=1) * v.sum(axis=1))
        for weights, kernel, left_out in ((w, k_aa, alone[0]), (v, k_bb, alone[1])):
            value += ((weights @ kernel) * weights).sum(axis=1) / (weights.sum(axis=1) ** 2 - left_out)
        return value

    rng, counts = np.random.default_rng(seed), (len(sizes), len(b))
    w, v = (rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(float) for n in counts)
    with np.errstate(invalid="ignore"):  # of very few pictures, a draw can be one alone: no pair, no value
        low, high = np.nanquantile(discrepancy(w, v), [0.025, 0.975])
    value = discrepancy(np.ones((1, len(sizes))), np.ones((1, len(b))))[0]
    return Interval(float(value), float(low), float(high), min(counts))


@dataclass(frozen=True)
class DistributionDistance:
    """Drawn pictures against real ones; the floor is other real ones against the same."""

    kernel: Interval
    kernel_floor: Interval
    n: int


def distribution_distance(
    drawn: np.ndarray, real: np.ndarray, seed: int = 0, groups: np.ndarray | None = None
) -> DistributionDistance:
    """Distances of features drawn (N, D) from one half of real (M, D), beside those of the other half.

    The latter are the floor: what two sets of real pictures are apart by chance. The three sets are cut to
    one size, so that their intervals are alike, and scaled by the deviations of the reference, so
    that no channel dominates. The real pictures must not be those whose prompts were drawn: shared texts and
    layouts would bring the distances below the floor. groups (N,): of drawn pictures, as in `kernel_distance`.
    Raises ValueError for fewer than 2 drawn or 4 real pictures.
    """
    n = min(len(drawn), len(real) // 2)
    if n < 2:
        raise ValueError(f"{len(drawn)} drawn and {len(real)} real pictures: give at least 2 and 4.")
    reference, floor = real[:n], real[n : 2 * n]
    centre, scale = reference.mean(axis=0), reference.std(axis=0) + 1e-6
    reference, floor, drawn = ((x - centre) / scale for x in (reference, floor, drawn[:n]))
    return DistributionDistance(
        kernel=kernel_distance(drawn, reference, seed=seed, groups=None if groups is None else groups[:n]),
        kernel_floor=kernel_distance(floor, reference, seed=seed),
        n=n,
    )


def diversity(features: np.ndarray, repeats: int, scale: np.ndarray | float = 1.0) -> np.ndarray:
    """How far pictures of one prompt from different noise are apart: (prompts,), mean distance of pairs, as root mean
    square over channels.

    features (repeats * prompts, D), one noise after the other. scale (D,): what a channel is measured in, the same for
    methods to be compared; the deviations over real pictures suit. Raises ValueError for one repeat.
    """
    if repeats < 2 or len(features) % repeats:
        raise ValueError(f"{len(features)} pictures are not {repeats} for each prompt, and 2 are needed.")
    scaled = (features / (scale + 1e-6)).reshape(repeats, -1, features.shape[1])
    pairs = [(i, j) for i in range(repeats) for j in range(i)]
    distances = [np.linalg.norm(scaled[i] - scaled[j], axis=1) for i, j in pairs]
    return np.mean(distances, axis=0) / np.sqrt(features.shape[1])


def _check_features(a: np.ndarray, b: np.ndarray) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"Features must be (N, D) and (M, D), N and M at least 2, not {a.shape}, {b.shape}.")


# ---- sharpness and likeness ----


def _luma(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)


def sharpness(images, masks: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """Variance of the Laplacian of luma (0..255), (B,); inside the masks (H, W) only, when given.

    Blur lowers it; so noise raises it: read it against that of real pictures, not alone.
    """
    return _over_pixels(images, masks, lambda luma: cv2.Laplacian(luma, cv2.CV_64F), np.var)


def gradient_energy(images, masks: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """Mean squared gradient of luma (0..255), central differences, (B,); less moved by noise."""
    return _over_pixels(images, masks, lambda luma: np.square(np.gradient(luma)).sum(axis=0), np.mean)


def _over_pixels(images, masks, transform, reduce) -> np.ndarray:
    images = as_uint8(images)
    values = []
    for index, image in enumerate(images):
        pixels = transform(_luma(image))
        values.append(reduce(pixels if masks is None else pixels[np.asarray(masks[index], dtype=bool)]))
    return np.array(values)


def same_noise_distance(student, teacher) -> tuple[np.ndarray, np.ndarray]:
    """How far pictures drawn from one noise are apart: RMSE (B,) in levels of 0..255, PSNR (B,) in dB.

    PSNR is infinite for equal pictures. Raises ValueError when the sets differ in number or size.
    """
    student, teacher = as_uint8(student), as_uint8(teacher)
    if [image.shape for image in student] != [image.shape for image in teacher]:
        raise ValueError("Student and teacher must have drawn equally many pictures of one size.")
    pairs = zip(student, teacher, strict=True)
    rmse = np.array([np.sqrt(np.mean((a.astype(float) - b) ** 2)) for a, b in pairs])
    with np.errstate(divide="ignore"):
        return rmse, 20 * np.log10(255 / rmse)


# ---- colours ----


Palette = Mapping[str, tuple[int, int, int]]


def _lab(rgb: np.ndarray) -> np.ndarray:
    """RGB 0..255 (..., 3) to CIELAB, where distances are roughly as seen."""
    flat = np.asarray(rgb, dtype=np.float32).reshape(1, -1, 3) / 255
    return cv2.cvtColor(flat, cv2.COLOR_RGB2LAB).reshape(*np.shape(rgb))


def nearest_colour(rgb: Sequence[float], palette: Palette = COLORS) -> str:
    """Name of the palette's colour nearest to RGB 0..255, in CIELAB."""
    names = list(palette)
    distance = np.linalg.norm(_lab(np.array([palette[name] for name in names])) - _lab(np.array(rgb)), axis=1)
    return names[int(distance.argmin())]


def text_mask(polygons: Sequence[np.ndarray], size: tuple[int, int], grow: int = 3) -> np.ndarray:
    """Where the lines are, `grow` pixels more on each side: bool of size (H, W)."""
    mask = np.zeros(size, dtype=np.uint8)
    for polygon in polygons:
        cv2.fillPoly(mask, [np.asarray(polygon, dtype=np.int32).reshape(-1, 1, 2)], 1)
    return cv2.dilate(mask, np.ones((2 * grow + 1, 2 * grow + 1), dtype=np.uint8)).astype(bool)


def background_colour(image: np.ndarray, exclude: np.ndarray | None = None) -> np.ndarray:
    """Median colour (3,) of a picture (H, W, 3) uint8 outside `exclude` (H, W), the text and objects."""
    keep = np.ones(image.shape[:2], dtype=bool) if exclude is None else ~np.asarray(exclude, dtype=bool)
    if not keep.any():
        raise ValueError("The mask of text and objects leaves no background to look at.")
    return np.median(image[keep], axis=0)


def background_obeyed(
    image: np.ndarray, name: str, exclude: np.ndarray | None = None, palette: Palette = COLORS
) -> bool:
    """Whether the background is nearer to the named colour than to the palette's others."""
    if name not in palette:
        raise ValueError(f"No colour is called {name!r}; there are {', '.join(palette)}.")
    return nearest_colour(background_colour(image, exclude), palette) == name


def stroke_colour(image: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Colour (3,) of the letters in a polygon of a picture (H, W, 3) uint8.

    The crop is split in two by 2-means; the letters are the part less like the crop's rim, and of it the half
    farthest from the rim counts, because the edges of thin letters are mixed with what is behind them.
    """
    crop = rectify(image, polygon, height=32, margin=0.15)
    pixels, rim = crop.reshape(-1, 3), np.zeros(crop.shape[:2], dtype=bool)
    rim[[0, 1, -2, -1]] = rim[:, [0, 1, -2, -1]] = True
    lab = _lab(pixels)
    behind = np.median(lab[rim.ravel()], axis=0)
    away = np.linalg.norm(lab - behind, axis=1)
    centres = np.stack([behind, lab[away.argmax()]])
    for _ in range(10):
        letters = np.linalg.norm(lab - centres[1], axis=1) < np.linalg.norm(lab - centres[0], axis=1)
        if letters.all() or not letters.any():  # one colour only: there are no letters to see
            return np.median(pixels, axis=0)
        centres = np.stack([lab[~letters].mean(axis=0), lab[letters].mean(axis=0)])
    core = letters & (away >= np.median(away[letters]))
    return np.median(pixels[core], axis=0)


def text_colour_obeyed(
    image: np.ndarray, polygon: np.ndarray, colour: str | Sequence[float], palette: Palette = COLORS
) -> bool:
    """Whether the letters' nearest named colour is the one asked for, given by name or as RGB 0..255."""
    if isinstance(colour, str) and colour not in palette:
        raise ValueError(f"No colour is called {colour!r}; there are {', '.join(palette)}.")
    wanted = colour if isinstance(colour, str) else nearest_colour(colour, palette)
    return nearest_colour(stroke_colour(image, polygon), palette) == wanted
