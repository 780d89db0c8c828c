"""A second, plain implementation of an item, which the tests hold `anyword.make_item` to.

It follows AnyText2's t3_dataset.py step by step, with arrays of float64 in (H, W, channels) and every image drawn at
full size in colour. It is slow on purpose.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from anytext_lcm.data.anyword import ReadingRules
from anytext_lcm.data.captions import image_caption
from anytext_lcm.data.fonts import font_path
from anytext_lcm.data.records import Record


def literal_item(record: Record, picture: np.ndarray, rules: ReadingRules, rng: np.random.Generator) -> dict[str, Any]:
    """The item upstream would make, for records whose lines are all drawable and pictures of the right size.

    The draws come in the order of `anyword.make_item`, so one seed gives both the same jitter, fonts and hints.
    img (W, W, 3) float32, masked_img, hint, inv_mask, font_hint float64, lists of glyphs (W, W, 3), gly_line
    (80, 512, 1), positions (W, W, 1) float64.
    """
    side = rules.image_size
    image = picture.astype(np.float32) / 127.5 - 1.0
    edit = rng.random() < rules.edit_share
    valid = [a for a in record.annotations if a.valid]
    ignored = [a.points for a in record.annotations if not a.valid]
    if len(valid) > rules.max_lines:
        order = rng.permutation(len(valid))
        ignored += [valid[i].points for i in order[rules.max_lines :]]
        valid = [valid[i] for i in order[: rules.max_lines]]
    item: dict[str, Any] = {"img": image, "glyphs": [], "gly_line": [], "positions": [], "color": []}
    hints = []
    for annotation in valid:
        text, points = annotation.text[: rules.max_characters], annotation.points
        name = rules.fonts[int(rng.integers(0, len(rules.fonts)))] if rules.random_font else rules.fonts[0]
        font = ImageFont.truetype(str(font_path(name)), size=60)
        color = np.array((500, 500, 500) if annotation.color is None else annotation.color)
        item["glyphs"].append(_literal_glyph(font, text, points, color, side))
        item["gly_line"].append(_literal_line(font, text))
        item["positions"].append(_literal_position(points, side, rng.random() if rules.jitter else 0.0))
        told = not (annotation.color is not None and rng.random() < 1 - rules.color_share)
        item["color"].append(color if told else np.array((500, 500, 500)))
        if rules.hint_share and not rng.random() < 1 - rules.hint_share:
            keep, start = rng.uniform(*rules.hint_area), rng.uniform(0, 1)
            if rules.hint_shake:
                raise ValueError("The literal implementation has no shaken hints: turn hint_shake off.")
            hints.append(_literal_hint(image, points, keep, start))
    item["hint"] = np.clip(np.sum(item["positions"], axis=0), 0, 1)
    item["font_hint"] = np.clip(np.sum(hints, axis=0), 0, 1) if hints else np.zeros((side, side, 1))
    item["masked_img"] = np.clip(image - 10 * item["hint"], -1, 1) if edit else np.zeros_like(image) - 1
    inverse = np.zeros((side, side))
    for points in [] if edit else ignored:
        cv2.fillPoly(inverse, [points.reshape(-1, 1, 2)], color=255)
    item["inv_mask"] = inverse[..., None] / 255.0
    phrase = rules.phrases[int(rng.integers(0, len(rules.phrases)))]
    item["img_caption"] = image_caption(record.caption, record.wm_score, rules.caption_words, rng)
    item["text_caption"] = phrase + " , ".join("*" * len(valid)) + " . "
    item["n_lines"] = len(valid)
    for _ in range(rules.max_lines - len(valid)):
        item["glyphs"].append(np.zeros((side, side, 3)))
        item["gly_line"].append(np.zeros((80, 512, 1)))
        item["positions"].append(np.zeros((side, side, 1)))
        item["color"].append(np.array((500, 500, 500)))
    return item


def _literal_line(font: ImageFont.FreeTypeFont, text: str) -> np.ndarray:
    left, top, right, bottom = font.font_variant(size=50).getbbox(text)
    ratio = min(512 * 0.9 / max(right - left, 5), 80 * 0.9 / max(bottom - top, 5))
    scaled = font.font_variant(size=int(50 * ratio))
    left, top, right, bottom = scaled.getbbox(text)
    canvas = Image.new("1", (512, 80), 0)
    x, y = (512 - int(right - left)) // 2, (80 - int(bottom)) // 2 - int(top) // 2
    ImageDraw.Draw(canvas).text((x, y), text, font=scaled, fill="white")
    return np.array(canvas)[..., None].astype(np.float64)


def _literal_box(points: np.ndarray) -> tuple:
    """minAreaRect with the angle in (0, 90], as the opencv versions upstream is used with have it."""
    center, (w, h), angle = cv2.minAreaRect(points)
    while angle <= 0:
        angle, w, h = angle + 90, h, w
    return center, (w, h), angle


def _literal_glyph(font, text: str, points: np.ndarray, color: np.ndarray, side: int) -> np.ndarray:
    fill = (*(int(c) for c in np.clip(color, 10, 255)), 255)
    (cx, cy), (w, h), degrees = _literal_box(points)
    corners = cv2.boxPoints(((cx, cy), (w, h), degrees)).astype(np.int64)
    angle = -degrees + (90 if w < h else 0)
    box_w, box_h = np.ptp(corners[:, 0]), np.ptp(corners[:, 1])
    upright = min(abs(angle) % 90, 90 - abs(angle) % 90) < 10 and box_h >= box_w
    short, long = min(w, h), max(w, h)
    pen = ImageDraw.Draw(Image.new("RGB", (side, side), "white"))

    def measure(what: str, size_or_font) -> tuple[float, float, float]:
        used = font.font_variant(size=int(size_or_font)) if np.isscalar(size_or_font) else size_or_font
        left, top, right, bottom = pen.textbbox((0, 0), what, font=used)
        return right - left, bottom - top, top

    low, high = 1, short
    while low < high:
        middle = (low + high) // 2
        wide, tall, _ = measure(text, middle)
        low, high = (middle + 1, high) if wide <= long and tall <= short else (low, middle)
    fitted = font.font_variant(size=int(high - 1))
    layer = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    ink = ImageDraw.Draw(layer)
    if upright:
        heights = [measure(letter, fitted)[1] for letter in text]
        gap = (long - sum(heights)) // (len(text) - 1) if sum(heights) < long and len(text) > 1 else 0
        x = corners[:, 0].min() + box_w // 2 - measure(text, fitted)[1] // 2
        y = corners[:, 1].min()
        for letter, height in zip(text, heights, strict=True):
            ink.text((int(x), float(y)), letter, font=fitted, fill=fill)
            y += height + gap
        angle = 0
    else:
        spread = text
        for count in range(1, 100):
            wider = (" " * count).join(text)
            wide, tall, _ = measure(wider, fitted)
            if wide > long or tall > short:
                break
            spread = wider
        wide, tall, top = measure(spread, fitted)
        ink.text((cx - wide / 2, cy - tall / 2 - top), spread, font=fitted, fill=fill)
    turned = layer.rotate(angle, expand=True, center=(cx, cy))
    canvas = Image.new("RGB", (side, side))
    canvas.paste(turned, (int((side - turned.width) / 2), int((side - turned.height) / 2)), turned)
    return np.array(canvas).astype(np.float64) / 255.0


def _literal_position(points: np.ndarray, side: int, draw: float) -> np.ndarray:
    mask = np.zeros((side, side))
    cv2.fillPoly(mask, [points.reshape(-1, 1, 2)], color=255)
    small = min(cv2.minAreaRect(points)[1]) < 20 * side / 512
    kernel, mask8 = np.ones((3, 3), np.uint8), mask.astype(np.uint8)
    if draw < 0.7:
        pass
    elif draw < 0.8:
        mask = cv2.dilate(mask8, kernel, iterations=1)
    elif draw < 0.9 and not small:
        mask = cv2.erode(mask8, kernel, iterations=1)
    elif draw < 0.95:
        mask = cv2.dilate(mask8, kernel, iterations=2)
    elif not small:
        mask = cv2.erode(mask8, kernel, iterations=2)
    return mask[..., None] / 255.0


def _literal_hint(image: np.ndarray, points: np.ndarray, keep: float, start: float) -> np.ndarray:
    side = len(image)
    points = np.clip(points, 0, side - 1).astype(np.int32)
    inside = np.zeros((side, side), np.uint8)
    cv2.fillPoly(inside, [points.reshape(-1, 1, 2)], color=255)
    x, y, w, h = cv2.boundingRect(points)
    scaled = (image + 1.0) / 2.0
    grey = cv2.cvtColor((scaled[y : y + h, x : x + w] * 255).astype(np.uint8), cv2.COLOR_RGB2GRAY)
    bright = cv2.adaptiveThreshold(grey, 255, cv2.ADAPTIVE_THRESH_GAUSSIAN_C, cv2.THRESH_BINARY, 11, 2)
    strokes = np.zeros((side, side))
    strokes[y : y + h, x : x + w] = 1 - bright / 255.0
    center, (w, h), angle = _literal_box(points)
    axis = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    if w < h:
        axis = np.array([-axis[1], axis[0]])
    long, short = max(w, h), min(w, h)
    cut = long * (1 - keep)
    first = np.array(center) - axis * (long / 2 - start * (long - cut))
    middle, half, side_way = first + axis * cut / 2, axis * cut / 2, np.array([-axis[1], axis[0]]) * short / 2
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    corners = np.array([middle + a * half + b * side_way for a, b in signs]).astype(np.int32)
    cv2.fillPoly(inside, [corners], color=0)
    return (inside / 255.0 * strokes)[..., None]
