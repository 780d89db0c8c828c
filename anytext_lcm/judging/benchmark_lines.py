"""The lines of AnyText-benchmark's pictures, cut out and compared as AnyText2's eval/eval_dgocr.py does."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from rapidfuzz.distance import Levenshtein

from anytext_lcm.data.glyphs import draw_position
from anytext_lcm.judging.reading import READ_HEIGHT
from anytext_lcm.model.crop import crop_image

WIDEST = 320  # pixels of a crop; a longer line is squeezed
TURNED = 1.2  # a line this much higher than wide is turned to lie
ENGLISH = frozenset(map(chr, range(32, 127)))
"""The letters of PaddleOCR's English dictionary, which upstream's measure tells apart."""


def upstream_crop(image: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """The line under a polygon (n, 2) of a picture (H, W, 3) 0..255, upright: (48, 320, 3) float32 0..255.

    The similarity of the smallest rectangle's integer corners, without a margin; the rest of the crop is black.
    """
    mask = 255 * draw_position(polygon, image.shape[:2])
    crop = crop_image(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float(), mask)
    height, width = crop.shape[1:]
    if height > TURNED * width:  # counter-clockwise
        crop, height, width = crop.transpose(1, 2).flip(1), width, height
    width = min(WIDEST, math.ceil(READ_HEIGHT * (width / height)))
    crop = F.interpolate(crop[None], size=(READ_HEIGHT, width), mode="bilinear", align_corners=True)[0]
    return F.pad(crop, (0, WIDEST - width)).permute(1, 2, 0).numpy()


def is_chinese(texts: Sequence[str]) -> bool:
    """Whether more than half of the lines hold a Chinese character, as in wukong_word."""
    return 2 * sum(any("\u4e00" <= letter <= "\u9fff" for letter in text) for text in texts) > len(texts)


def upstream_ned(wanted: str, read: str, known: frozenset[str] | None = None) -> float:
    """1 - edit distance / (longer length + 1e-5), case and spaces included.

    known: the dictionary's letters. All others count as one and the same, a space, as upstream numbers them.
    """
    if known is not None:
        wanted, read = ("".join(c if c in known else " " for c in text) for text in (wanted, read))
    return 1 - Levenshtein.distance(wanted, read) / (max(len(wanted), len(read)) + 1e-5)
