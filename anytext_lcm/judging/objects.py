"""Are the objects there that the caption names: a region of the named colour that has the named shape?

A pixel belongs to an object when the object's colour is the nearest of the palette, and nearer than anything the ground
is made of. The largest connected piece of such pixels is compared with the best fitting circle, square and triangle.
A smudge fits none of them, and a shape of another colour leaves no piece.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from anytext_lcm.data.colours import COLORS

NEAR = 36.0  # distance in CIELAB up to which a pixel may have an object's colour
SLACK = 6.0  # by which another colour of the palette may be nearer: an object's colour is a shade of the named one
SMALLEST, LARGEST = 0.012, 0.35  # share of the picture that an object may cover
OVERLAP = 0.8  # intersection over union with the best fitting shape; circle and square have 0.85 of each other


@dataclass(frozen=True)
class Found:
    """The largest piece of an object's colour.

    area     share of the picture, 0..1
    overlap  intersection over union with the best fitting shape of each kind, 0..1
    """

    area: float
    overlap: Mapping[str, float]

    @property
    def kind(self) -> str:
        """The shape that fits best."""
        return max(self.overlap, key=self.overlap.__getitem__)

    def obeys(self, kind: str) -> bool:
        """Whether it is a shape of that kind, as large as an object may be."""
        return SMALLEST <= self.area <= LARGEST and self.kind == kind and self.overlap[kind] >= OVERLAP


def objects_obeyed(
    images: Sequence[np.ndarray],
    objects: Sequence[Sequence[tuple[str, str]]],
    grounds: Sequence[Sequence[str]],
    excluded: Sequence[np.ndarray],
) -> np.ndarray:
    """Of each picture, the share of its objects that are there: (pictures,) float, nan where none was asked for.

    images    (H, W, 3) uint8 RGB
    objects   for each picture (colour name, shape) pairs
    grounds   for each picture the names of the colours that its ground is made of
    excluded  (H, W) bool, where text is: such pixels count neither for nor against
    Raises ValueError where the sequences differ in length, and for an unknown colour or shape.
    """
    if not len(images) == len(objects) == len(grounds) == len(excluded):
        raise ValueError(
            f"{len(images)} pictures, {len(objects)} lists of objects, {len(grounds)} grounds, {len(excluded)} masks: "
            "give one of each a picture."
        )
    shares = []
    for image, wanted, ground, mask in zip(images, objects, grounds, excluded, strict=True):
        right = []
        for name, kind in _checked(wanted):
            others = [*_between(ground), *(COLORS[other] for other, _ in wanted if other != name)]
            right.append(find_object(image, name, others, mask).obeys(kind))
        shares.append(np.mean(right) if right else np.nan)
    return np.array(shares)


def find_object(image: np.ndarray, name: str, others: Sequence[Sequence[float]], excluded: np.ndarray) -> Found:
    """The largest piece of the named colour in a picture (H, W, 3) uint8, and how well each shape fits it.

    others: RGB 0..255 of what else is in the picture, which pixels must not be nearer to.
    """
    lab = _lab(image.reshape(-1, 3))
    own = np.linalg.norm(lab - _lab([COLORS[name]]), axis=1)
    palette = [color for other, color in COLORS.items() if other != name]
    nearest_named = np.linalg.norm(lab[:, None] - _lab(palette), axis=2).min(1)
    belongs = (own < NEAR) & (own < nearest_named + SLACK)
    if len(others):
        belongs &= own < np.linalg.norm(lab[:, None] - _lab(others), axis=2).min(1)
    belongs = belongs.reshape(image.shape[:2]) & ~excluded
    piece = _largest_piece(cv2.morphologyEx(belongs.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)))
    if not piece.any():
        return Found(0.0, dict.fromkeys(SHAPES, 0.0))
    return Found(float(piece.mean()), {kind: _best_overlap(piece, ~excluded, shape) for kind, shape in SHAPES.items()})


# -- shapes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A shape of radius 1: which points (x, y) are inside, its area, how far its centroid lies below the middle."""

    inside: Callable[[np.ndarray, np.ndarray], np.ndarray]
    area: float
    drop: float


SHAPES: Mapping[str, Shape] = {
    "circle": Shape(lambda x, y: x * x + y * y <= 1, np.pi, 0.0),
    "square": Shape(lambda x, y: np.maximum(np.abs(x), np.abs(y)) <= 1, 4.0, 0.0),
    # As wide as 1.9 and as high as 1.75, its top at -1.
    "triangle": Shape(lambda x, y: (y <= 0.75) & (np.abs(x) <= 0.95 / 1.75 * (y + 1)), 0.5 * 1.9 * 1.75, 1 / 6),
}


def _best_overlap(piece: np.ndarray, counts: np.ndarray, shape: Shape) -> float:
    """Largest intersection over union of a piece (H, W) bool with the shape of any place and size, where it counts."""
    ys, xs = np.nonzero(piece)
    radius = np.sqrt(len(ys) / shape.area)
    guess = np.array([xs.mean(), ys.mean() - shape.drop * radius, radius])
    reach = int(2 * max(np.ptp(xs), np.ptp(ys), 4))
    top, left = max(int(ys.mean()) - reach, 0), max(int(xs.mean()) - reach, 0)
    window = np.s_[top : int(ys.mean()) + reach, left : int(xs.mean()) + reach]
    piece, counts = piece[window], counts[window]
    y, x = np.mgrid[: piece.shape[0], : piece.shape[1]]

    def overlap(place: np.ndarray) -> float:
        drawn = shape.inside((x - (place[0] - left)) / place[2], (y - (place[1] - top)) / place[2]) & counts
        return (drawn & piece).sum() / max((drawn | piece).sum(), 1)

    best, step = overlap(guess), max(radius / 4, 1.0)
    while step >= 0.4:
        moves = [guess + step * direction for direction in _DIRECTIONS if guess[2] + step * direction[2] > 1]
        values = [overlap(move) for move in moves]
        if max(values) > best:
            best, guess = max(values), moves[int(np.argmax(values))]
        else:
            step /= 2
    return float(best)


_DIRECTIONS = np.concatenate([np.eye(3), -np.eye(3)])


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    if count < 2:
        return np.zeros(mask.shape, bool)
    return labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())


# -- colours --------------------------------------------------------------------------------------------


def _between(names: Sequence[str]) -> list[np.ndarray]:
    """The colours of a ground: the named ones, and of two those of a gradient between them."""
    ends = [np.asarray(COLORS[name], np.float32) for name in names]
    if len(ends) != 2:
        return ends
    return [ends[0] + share * (ends[1] - ends[0]) for share in np.linspace(0, 1, 9)]


def _lab(rgb: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """(n, 3) RGB 0..255 to CIELAB."""
    flat = np.asarray(rgb, np.float32).reshape(1, -1, 3) / 255
    return cv2.cvtColor(flat, cv2.COLOR_RGB2LAB)[0]


def _checked(wanted: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    for name, kind in wanted:
        if name not in COLORS or kind not in SHAPES:
            raise ValueError(f"There is no {name} {kind}: colours are {', '.join(COLORS)}, shapes {', '.join(SHAPES)}.")
    return wanted
