"""More kinds of text for the mock pictures: up to five lines, vertical ones, Chinese, fonts of one's own.

`MockDataset(size, text_style=varied_text(), max_lines=5, image_size=512)` draws them. The rules that keep text readable
are those of `layout` and `colours`: lines apart from each other, far from their ground in luma, no smaller than given.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from anytext_lcm.data import ink, layout
from anytext_lcm.data.fonts import TEXT_FONTS, covering_fonts, covers, find_fonts, load_font
from anytext_lcm.data.records import chinese_kind
from anytext_lcm.data.strings import LETTERS_AND_DIGITS, draw_text
from anytext_lcm.data.words import split_of

CHINESE_WORDS = tuple(
    """
    北京 上海 广州 深圳 咖啡 面包 牛奶 水果 苹果 香蕉 大米 茶叶 书店 学校 医院 银行 邮局 超市 公园
    车站 机场 地铁 火车 飞机 音乐 电影 新闻 天气 春天 夏天 秋天 冬天 太阳 月亮 星星 大海
    高山 河流 森林 花园 红色 蓝色 绿色 白色 黑色 朋友 老师 学生
    欢迎光临 新年快乐 生日快乐 一路平安 万事如意 今日特价 营业时间 安全出口 請勿吸煙 歡迎光臨 圖書館 電話 機場 車站 飯店
    """.split()
)
"""Words and phrases that the mock data write in Chinese, simplified and some traditional."""

CHINESE_SAMPLE = "国中文北京"
_BOX = {True: "国", False: "bdfghjklpqyABCQ0"}  # text that spans a font's box: Chinese or not
_TRIES = 40  # crowded draws of so many lines before one line fewer is drawn


@dataclass(frozen=True)
class TextStyle:
    """What kinds of lines a mock picture has. Lengths are pixels of a 128-pixel picture, and scale with it.

    line_counts     numbers of lines, one is drawn; those above the data set's max_lines are not
    heights         least and largest height of a font's box
    rotated_share   share of lines that are turned, by up to max_angle degrees either way
    vertical_share  share of lines written from top to bottom, letters upright
    chinese_share   share of lines in Chinese
    fonts           fonts of Latin text, names or files
    chinese_fonts   fonts of Chinese text

    Raises ValueError for a value outside its range and for a font that lacks characters.
    """

    line_counts: tuple[int, ...] = (1, 2, 3, 4, 5)
    heights: tuple[float, float] = (10.0, 24.0)
    rotated_share: float = 0.3
    max_angle: float = 30.0
    vertical_share: float = 0.2
    chinese_share: float = 0.0
    fonts: tuple[str | Path, ...] = TEXT_FONTS
    chinese_fonts: tuple[str | Path, ...] = ()

    def __post_init__(self) -> None:
        if not self.line_counts or min(self.line_counts) < 1:
            raise ValueError(f"line_counts {self.line_counts} must be numbers of lines, at least 1.")
        if not 6 <= self.heights[0] <= self.heights[1] <= 60:
            raise ValueError(f"heights {self.heights} must rise within 6..60 pixels of a picture of 128.")
        for name in ("rotated_share", "vertical_share", "chinese_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be 0..1.")
        if not 0 <= self.max_angle <= 45:
            raise ValueError(f"max_angle is {self.max_angle}, it must be 0..45 degrees.")
        for font in self.fonts if self.chinese_share < 1 else ():
            covering_fonts(LETTERS_AND_DIGITS, [font])
        if self.chinese_share and not self.chinese_fonts:
            raise ValueError("Chinese lines need chinese_fonts: name a font file, or see fonts.find_fonts.")
        for font in self.chinese_fonts if self.chinese_share else ():
            if not any(covers(font, word) for word in CHINESE_WORDS):
                covering_fonts(CHINESE_WORDS[0], [font])

    def place_lines(
        self, rng: np.random.Generator, size: int, max_lines: int, split: str
    ) -> tuple[list[layout.Block], np.ndarray]:
        """Draw the lines of a picture of size x size and place them, inside and without overlap, as `layout.place_all`.

        Of a crowded number of lines one fewer is drawn. Raises ValueError where not even one has room.
        """
        counts = [count for count in self.line_counts if count <= max_lines] or [max_lines]
        n_lines = counts[int(rng.integers(len(counts)))]
        while n_lines:
            for _ in range(_TRIES):
                placed = layout.place_all(n_lines, size, lambda taken: self._place(rng, size, split, taken))
                if placed is not None:
                    return placed
            n_lines -= 1
        raise ValueError(f"No line of {self.heights[0]} pixels has room in the picture: lower heights.")

    def _place(self, rng: np.random.Generator, size: int, split: str, taken: np.ndarray) -> layout.Block | None:
        scale = size / 128.0
        chinese, vertical = rng.random() < self.chinese_share, rng.random() < self.vertical_share
        turned = not vertical and rng.random() < self.rotated_share
        angle = rng.uniform(-self.max_angle, self.max_angle) if turned else 0.0
        fonts = self.chinese_fonts if chinese else self.fonts
        font = fonts[int(rng.integers(len(fonts)))]
        text = _chinese_text(rng, split, font) if chinese else draw_text(rng, split)
        wished = rng.uniform(*self.heights) * scale
        em = int(wished / _box_em(font, chinese) * ink.SUPERSAMPLING)
        mask = _stacked(text, font, em) if vertical else ink.draw_ink(text, font, em)
        transform, width, height = ink.ink_frame(mask, 1.0, 0.0)
        width, height = width + 2 * layout.MARGIN * scale, height + 2 * layout.MARGIN * scale
        slack = rng.uniform(0, layout.MAX_SLACK * scale, 4)
        wide, high = width + slack[0] + slack[2], height + slack[1] + slack[3]
        # A squarish polygon would be taken for vertical text, and the other way round.
        if (high < layout.MIN_ASPECT * wide) if vertical else (wide < layout.MIN_ASPECT * high):
            return None
        turn = ink.rotation(angle)
        placed = ink.find_place(rng, size, taken, width, height, slack, turn, layout.GAP * scale)
        if placed is None:
            return None
        middle, quad, condition_quad = placed
        return layout.Block(
            text=text,
            font=font,
            font_height=round(em / ink.SUPERSAMPLING * _box_em(font, chinese), 2),
            angle=round(float(angle), 2),
            coverage=ink.place_ink(mask, transform, turn, middle, size),
            quad=quad,
            condition_quad=condition_quad,
            language=chinese_kind(text) if chinese else "Latin",
        )


def varied_text(**options) -> TextStyle:
    """Make a TextStyle of all kinds of lines, with Chinese if a font of this machine has it, so machines may differ."""
    if "chinese_fonts" not in options and (found := find_fonts(CHINESE_SAMPLE)):
        options["chinese_fonts"] = (found[0],)
    if options.get("chinese_fonts"):
        options.setdefault("chinese_share", 0.25)
    return TextStyle(**options)


def _chinese_text(rng: np.random.Generator, split: str, font: str | Path) -> str:
    words = _words_of(font, split)
    return words[int(rng.integers(len(words)))]


@lru_cache(maxsize=64)
def _words_of(font: str | Path, split: str) -> tuple[str, ...]:
    """Those of CHINESE_WORDS that the font can write, of this split unless there are none."""
    able = [word for word in CHINESE_WORDS if covers(font, word)]
    return tuple(word for word in able if split_of(word) == split) or tuple(able)


@lru_cache(maxsize=256)
def _box_em(font: str | Path, chinese: bool) -> float:
    """Height of the font's box in em."""
    _, top, _, bottom = load_font(font, 64).getbbox(_BOX[chinese])
    return (bottom - top) / 64


def _stacked(text: str, font: str | Path, size: int) -> np.ndarray:
    """The letters one below the other, centred, in a frame cut to their ink, uint8 coverage."""
    drawn = load_font(font, size)
    boxes = [drawn.getbbox(letter) for letter in text]
    gap = max(size // 10, 1)
    width = int(max(right - left for left, _, right, _ in boxes)) + 4
    height = int(sum(bottom - top + gap for _, top, _, bottom in boxes)) + 4
    layer = Image.new("L", (width, height), 0)
    pen, y = ImageDraw.Draw(layer), 2.0
    for letter, (left, top, right, bottom) in zip(text, boxes, strict=True):
        pen.text(((width - (right - left)) / 2 - left, y - top), letter, font=drawn, fill=255)
        y += bottom - top + gap
    mask = np.asarray(layer)
    x, y, w, h = cv2.boundingRect(mask)
    return mask[y : y + h, x : x + w]
