"""The condition of both networks, and how a batch becomes the inputs it is encoded from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from anytext_lcm.model.embedding_manager import LineInputs


@dataclass(frozen=True)
class Conditioning:
    """Everything the two networks know of B pictures of H x W pixels.

    image_context   (B, 77k, D), the image caption in k chunks; feeds the UNet
    text_context    (B, 77, D), the text caption; feeds WriteNet
    glyphs          (B, 1, H, W), 1 where any line has ink, else 0
    positions       (B, 1, H, W), the sum of the lines' masks: 2 where two overlap
    masked_latents  (B, C, h, w), of the picture with holes, scaled; h = H/8, w = W/8
    """

    image_context: Tensor
    text_context: Tensor
    glyphs: Tensor
    positions: Tensor
    masked_latents: Tensor

    def __len__(self) -> int:
        return self.glyphs.shape[0]

    def __getitem__(self, rows) -> "Conditioning":
        return Conditioning(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})

    def chunk(self, parts: int) -> list["Conditioning"]:
        """Split the batch evenly: undoes `cat` of conditionings of one size."""
        split = {name: getattr(self, name).chunk(parts) for name in self.__dataclass_fields__}
        return [Conditioning(**{name: values[i] for name, values in split.items()}) for i in range(parts)]

    @staticmethod
    def cat(parts: list["Conditioning"]) -> "Conditioning":
        """Join batches; image contexts of different length are tiled to a common one."""
        # Tiling is exact: softmax over keys that are all repeated equally often gives the same average of values.
        length = math.lcm(*(p.image_context.shape[1] for p in parts))
        parts = [
            replace(p, image_context=p.image_context.repeat(1, length // p.image_context.shape[1], 1)) for p in parts
        ]
        names = Conditioning.__dataclass_fields__
        return Conditioning(**{name: torch.cat([getattr(p, name) for p in parts]) for name in names})


def check_fields(batch: Mapping) -> None:
    """Raise ValueError naming the fields that a batch lacks to be conditioned on."""
    needed = {"positions", "glyphs", "color", "n_lines", "img_caption", "text_caption"}
    needed |= set() if "masked_latents" in batch else {"masked_img"}
    if missing := sorted(needed - set(batch)):
        raise ValueError(f"The batch lacks {', '.join(missing)}; anytext_lcm.data.batch makes complete batches.")


def line_inputs(batch: Mapping[str, Tensor]) -> LineInputs:
    """Take what line embeddings are made of from a batch (fields of `anytext_lcm.data.batch`)."""
    return LineInputs(
        positions=batch["positions"],
        color=batch["color"],
        n_lines=batch["n_lines"],
        gly_line=batch.get("gly_line"),
        font_hint=batch["font_hint"].float() / 255 if "font_hint" in batch else None,
        glyph_features=batch.get("glyph_features"),
        font_features=batch.get("font_features"),
    )


def is_blank(images: Tensor) -> Tensor:
    """Find the masked pictures (B, 3, H, W) that are -1 everywhere, to be drawn whole: bool (B,)."""
    return (images == -1).flatten(1).all(dim=1)
