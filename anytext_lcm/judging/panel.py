"""A fixed panel of prompts with their real pictures, and the judgement of pictures drawn for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from anytext_lcm.data.batch import collate
from anytext_lcm.data.packed import expand
from anytext_lcm.drawing.draw import Prepared, prepare
from anytext_lcm.figures.contact_sheet import prompt_label
from anytext_lcm.judging.judge import Judgement, PanelJudge, unseen_scenes
from anytext_lcm.judging.reading import as_uint8
from anytext_lcm.model.anytext2 import AnyText2

PANEL_SEED = 20_000  # of the prompts; training draws its own from the other split of words
NOISE_STEP = 100_000  # between the noise seeds of a prompt's pictures


@dataclass(frozen=True)
class Panel:
    """A fixed list of prompts with the pictures they were taken from, and one noise seed per picture.

    With several sampling seeds the whole list stands there as often, one after the other, each time with other noise.
    `build` takes the scenes of the mock data set; `own_panel.py` takes records or prompts of one's own.
    """

    items: tuple[dict[str, Any], ...]
    noise_seeds: tuple[int, ...]
    seed: int
    repeats: int = 1
    edit_share: float = 0.0  # of the scenes
    source: str = "scenes"  # or words for what else the prompts are
    others: np.ndarray | None = None  # (M, H, W, 3) uint8 of records that are not in the panel, to compare with
    has_pictures: bool = True  # whether the prompts come with real pictures

    @classmethod
    def build(
        cls,
        prompts: int | None = None,
        lines: int | None = None,
        seed: int = 0,
        image_size: int = 128,
        repeats: int = 1,
        edit_share: float = 0.0,
        hint_share: float = 0.0,
    ) -> "Panel":
        """Build a panel of so many prompts, or of as many as give `lines` lines, from `unseen_scenes`.

        seed: another panel and other noise. repeats: sampling seeds per prompt, 1 to 10. edit_share,
        hint_share: 0..1 of prompts that edit a picture, that hint at a font. Raises ValueError.
        """
        if (prompts is None) == (lines is None):
            raise ValueError("Give either the number of prompts or the number of lines of the panel.")
        wanted = lines if prompts is None else prompts
        if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 2:
            raise ValueError(f"A panel needs 2 or more prompts or lines, not {wanted!r}.")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"A seed must be an integer from 0 on, not {seed!r}.")
        if isinstance(repeats, bool) or not isinstance(repeats, int) or not 1 <= repeats <= 10:
            raise ValueError(f"A prompt can have 1 to 10 sampling seeds, not {repeats!r}.")
        for what, share in (("edit_share", edit_share), ("hint_share", hint_share)):
            if not 0 <= share <= 1:
                raise ValueError(f"{what} must lie in 0..1, not {share!r}.")
        source = unseen_scenes(wanted, PANEL_SEED + seed, image_size, edit_share, hint_share)
        items, count = [], 0
        while (count if prompts is None else len(items)) < wanted:
            items.append(source[len(items)])
            count += items[-1]["n_lines"]
        return cls.of_items(items, seed, repeats, edit_share=edit_share)

    @classmethod
    def of_items(
        cls,
        items: Sequence[dict[str, Any]],
        seed: int = 0,
        repeats: int = 1,
        noise_seeds: Sequence[int] | None = None,
        **more: Any,
    ) -> "Panel":
        """A panel of these items of a data set. noise_seeds: one per picture, by default those of `seed`. more: fields.

        Raises ValueError for repeats outside 1..10.
        """
        if isinstance(repeats, bool) or not isinstance(repeats, int) or not 1 <= repeats <= 10:
            raise ValueError(f"A prompt can have 1 to 10 sampling seeds, not {repeats!r}.")
        if noise_seeds is None:
            starts = [seed * 1_000_000 + repeat * NOISE_STEP for repeat in range(repeats)]
            noise_seeds = [start + index for start in starts for index in range(len(items))]
        return cls(tuple(items) * repeats, tuple(noise_seeds), seed, repeats, **more)

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def batch(self) -> dict[str, Any]:
        return expand(collate(self.items))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return tuple(self.batch["masked_img"].shape[-2:])

    @cached_property
    def images(self) -> np.ndarray:
        """The real pictures (B, H, W, 3) uint8. Raises ValueError when the prompts come without."""
        if not self.has_pictures:
            raise ValueError(f"The {self.source} come without pictures.")
        return np.stack(as_uint8(self.batch["img"]))

    @property
    def texts(self) -> list[list[str]]:
        return [item["texts"] for item in self.items]

    @property
    def polygons(self) -> list[list[np.ndarray]]:
        """Where the text was asked for; a method may place it anywhere inside."""
        return [item.get("condition_polygons", item["polygons"]) for item in self.items]

    @property
    def prompt_of(self) -> np.ndarray:
        """The prompt of each picture (B,) int."""
        return np.arange(len(self)) % (len(self) // self.repeats)

    @property
    def groups(self) -> np.ndarray:
        """The prompt of each line (N,) int."""
        return np.repeat(self.prompt_of, [len(texts) for texts in self.texts])

    @cached_property
    def _judge(self) -> PanelJudge:
        return PanelJudge(self)

    def judge(self, images: np.ndarray, reference: np.ndarray | None = None) -> Judgement:
        """Judge pictures (B, H, W, 3) uint8 drawn for the panel: scores of the lines, and all measures as numbers.

        reference: the slow teacher's pictures from the same noise. Reader and real pictures are set up at the first
        call.
        """
        return self._judge(images, reference)

    def labels(self, count: int) -> list[list[str]]:
        """The texts of the first prompts and the beginning of their captions, for a contact sheet."""
        return [prompt_label(item["texts"], item["img_caption"]) for item in self.items[:count]]


@dataclass(frozen=True)
class MethodResult:
    """What a method drew for a panel, and what it took."""

    name: str
    images: np.ndarray  # (B, H, W, 3) uint8
    evaluations: int = 0  # of the UNet per picture
    wall: Mapping[str, float] = field(default_factory=dict)  # seconds for the panel, by phase
    cores: Mapping[str, float] = field(default_factory=dict)  # seconds of all cores together
    method: Mapping[str, Any] = field(default_factory=dict)  # settings of the method, for the report


def prepare_panel(model: AnyText2, panel: Panel, negative_prompt: str = "") -> Prepared:
    """`prepare` for a panel and its noise seeds."""
    return prepare(model, panel.batch, panel.noise_seeds, negative_prompt)
