"""Is the text readable? Lines are cut out, read by PP-OCRv6 and compared with what they should say.

The network is a file inside the rapidocr wheel, run here with onnxruntime, so nothing is downloaded. It takes no part
in drawing, where AnyText2 has a recogniser of its own (PP-OCRv3).
"""

import importlib.util
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from rapidfuzz.distance import Levenshtein

from anytext_lcm.data.text import composed, is_visible

if TYPE_CHECKING:
    import onnxruntime

READ_HEIGHT = 48  # pixels: the height PP-OCR's recogniser is trained at
_READ_WIDTH = 320  # and the width it pads shorter lines to
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


@lru_cache(maxsize=1)
def _model_folder() -> Path:
    spec = importlib.util.find_spec("rapidocr")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("rapidocr is not installed, and its models judge the text: install it.")
    return Path(next(iter(spec.submodule_search_locations))) / "models"


def model_file(kind: str) -> Path:
    """PP-OCR's "det" or "rec" network in the rapidocr wheel. Raises FileNotFoundError."""
    found = sorted(_model_folder().glob(f"PP-OCR*_{kind}_*.onnx"))
    if not found:
        raise FileNotFoundError(
            f"{_model_folder()} holds no PP-OCR '{kind}' model: install the rapidocr of requirements.lock."
        )
    return found[0]


def onnx_session(model: str | bytes, threads: int | None) -> "onnxruntime.InferenceSession":
    """A session on the CPU. threads: None for up to four."""
    import onnxruntime  # takes a second, which charts and tables do without

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or min(4, os.cpu_count() or 1)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def line_quad(polygon: np.ndarray) -> np.ndarray:
    """The four corners (4, 2) float32 of a text line, clockwise from the start of the text.

    Four points start where the text starts; another polygon is replaced by the smallest rectangle around it, read along
    the edge nearest to left-to-right. Raises ValueError for under 3 points.
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


def line_height(polygon: np.ndarray) -> float:
    """The shorter side of a text line in pixels, at least 1. Raises ValueError as `line_quad`."""
    return min(_sides(line_quad(polygon)))


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
    """PP-OCR's recogniser on upright crops.

    Kept beside rapidocr's own pipeline, which pads lines by their batch, so that a reading depends on its neighbours.
    """

    def __init__(self, threads: int | None = None, batch_size: int = 32):
        self.session = onnx_session(str(model_file("rec")), threads)
        self.input_name = self.session.get_inputs()[0].name
        letters = self.session.get_modelmeta().custom_metadata_map["character"].splitlines()
        self.letters = ["", *letters, " "]  # class 0 is CTC's blank
        self.batch_size = batch_size

    def read_crops(self, crops: Sequence[np.ndarray]) -> list[str]:
        """Read upright crops (READ_HEIGHT, w, 3) uint8 RGB. Raises ValueError for another height."""
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
                    texts[index] = composed("".join(self.letters[k] for k in best[new]))
        return texts

    def read(self, images, polygons: Sequence[Sequence[np.ndarray]]) -> list[list[str]]:
        """Read the text in each polygon of each picture (pictures: as for `as_uint8`).

        Give the polygons of the prompt: a generator may place the text anywhere inside. Raises ValueError when there is
        not one list of polygons per picture.
        """
        images = as_uint8(images)
        if len(images) != len(polygons):
            raise ValueError(f"{len(images)} pictures, polygons for {len(polygons)}: give one list a picture.")
        pairs = zip(images, polygons, strict=True)
        crops = [rectify(image, polygon) for image, lines in pairs for polygon in lines]
        texts = iter(self.read_crops(crops))
        return [[next(texts) for _ in lines] for lines in polygons]


def normalise(text: str) -> str:
    """Letters, their combining marks and digits only, width and case ignored; a text without any is kept as it is.

    Marks that have no letter of their own stay, because vowels of Devanagari and tones of Thai are such marks.
    """
    text = unicodedata.normalize("NFKC", text).strip()
    folded = unicodedata.normalize("NFKC", text.casefold())
    return "".join(c for c in folded if c.isalnum() or (unicodedata.category(c)[0] == "M" and is_visible(c))) or text


def ned(wanted: str, read: str) -> float:
    """1 - edit distance / longer length: 1 for equal texts (two empty ones are), 0 for nothing in common."""
    return Levenshtein.normalized_similarity(wanted, read)


@dataclass(frozen=True)
class LineScores:
    """One entry per line. `correct` and `ned` compare letters and digits and ignore case; `exact` compares all."""

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
    """Read every line of every picture and compare it with what it should say.

    groups: the prompt of each picture; by default each picture has its own. Raises ValueError when a picture has not
    one text per polygon, or when there is no line at all.
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
        height=np.array([line_height(polygon) for lines in polygons for polygon in lines]),
        correct=np.array([a == b for a, b in pairs]),
        exact=np.array([a.strip() == b.strip() for a, b in zip(wanted, read, strict=True)]),
        ned=np.array([ned(a, b) for a, b in pairs]),
    )
