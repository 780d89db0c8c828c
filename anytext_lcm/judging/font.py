"""In which font is a line drawn, when its text and its colour are known?

The letters' box is found by their colour and compared with the same text drawn in each font and brought to that box, so
that size, stretch and place do not matter; what is left are weight, slant, serifs and the shapes of letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from anytext_lcm.data.fonts import load_font

HEIGHT, WIDTH = 40, 200  # of the box that letters are brought to, pixels
_RENDERED = 96  # font size of the drawings that are compared with


def font_fits(
    image: np.ndarray, quad: np.ndarray, text: str, color: Sequence[float], fonts: Sequence[str | Path]
) -> np.ndarray:
    """Correlation of the line's ink with the text in each font, (fonts,) float within -1..1, all 0 without ink.

    image (H, W, 3) uint8 RGB; quad (4, 2) around the line, clockwise from the start of the text; color RGB 0..255 of
    the letters. Raises DrawingError for a font that lacks a character.
    """
    ink = _upright_ink(image, quad, color)
    rows, columns = (np.flatnonzero((ink > 0.5).sum(axis) > 1) for axis in (1, 0))
    if len(rows) < 4 or len(columns) < 4:
        return np.zeros(len(fonts))
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    box = cv2.resize(box, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).ravel()
    return np.array([_correlation(box, _rendered(text, font)) for font in fonts])


def fonts_obeyed(
    images: Sequence[np.ndarray],
    quads: Sequence[Sequence[np.ndarray]],
    texts: Sequence[Sequence[str]],
    colors: Sequence[Sequence[Sequence[float]]],
    wanted: Sequence[Sequence[str]],
    fonts: Sequence[str],
) -> np.ndarray:
    """Of each picture, the share of its lines to which the wanted one of `fonts` fits best: (pictures,) float.

    Raises ValueError where the sequences differ in length.
    """
    shares = []
    for image, *lines in zip(images, quads, texts, colors, wanted, strict=True):
        best = [
            fonts[int(font_fits(image, quad, text, color, fonts).argmax())] == font
            for quad, text, color, font in zip(*lines, strict=True)
        ]
        shares.append(np.mean(best))
    return np.array(shares)


def _upright_ink(image: np.ndarray, quad: np.ndarray, color: Sequence[float]) -> np.ndarray:
    """How much of each pixel is ink, (3 * HEIGHT, w) float32: 1 has the colour, 0 is as far from it as the ground."""
    quad = np.asarray(quad, np.float32)
    wide, high = (np.linalg.norm(quad[1] - quad[0]), np.linalg.norm(quad[3] - quad[0]))
    height = 3 * HEIGHT
    width = max(int(round(height * wide / max(high, 1))), 8)
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    crop = cv2.warpPerspective(image, cv2.getPerspectiveTransform(quad, corners), (width, height))
    lab = cv2.cvtColor(np.concatenate([crop, np.zeros_like(crop[:1])]).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[:-1]
    own = cv2.cvtColor(np.asarray(color, np.float32).reshape(1, 1, 3) / 255, cv2.COLOR_RGB2LAB)[0, 0]
    away = np.linalg.norm(lab - own, axis=2)
    return (1 - np.clip(away / max(np.quantile(away, 0.7), 1.0), 0, 1)).astype(np.float32)


@lru_cache(maxsize=4096)
def _rendered(text: str, font: str | Path) -> np.ndarray:
    drawn = load_font(font, _RENDERED)
    left, top, right, bottom = drawn.getbbox(text)
    layer = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4), 0)
    ImageDraw.Draw(layer).text((2 - left, 2 - top), text, font=drawn, fill=255)
    mask = np.asarray(layer)
    x, y, w, h = cv2.boundingRect(mask)
    box = mask[y : y + h, x : x + w].astype(np.float32) / 255
    return cv2.resize(box, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).ravel()


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-9))
