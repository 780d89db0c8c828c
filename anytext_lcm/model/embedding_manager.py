"""One vector per text line, put where a caption says '*' (AnyText2 cldm/embedding_manager.py).

line embedding = glyph + position + font + colour. Upstream keeps the vectors and a counter per sample in fields; here
both are passed in and returned, so nothing can go stale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anytext_lcm.model.crop import crop_image
from anytext_lcm.model.recogniser import Recogniser

POSITION_WIDTHS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class LineInputs:
    """What the embeddings of B pictures' lines are made of, in L line slots; slots beyond n_lines are not read.

    positions   (B, L, H, W), 0 or 1
    color       (B, L, 3), RGB 0..255, or 500 for unspecified
    n_lines     (B,) int64, 1..L
    gly_line    (B, L, 80, 512), 0 or 1; None where glyph_features stand in for it
    font_hint   (B, 1 or 3, H, W), 0..1, all 0 for no hint; None where font_features stand in for it
    glyph_features, font_features  (B, L, 40 * neck_dims) of `encode_glyphs` and `encode_fonts`
    """

    positions: Tensor
    color: Tensor
    n_lines: Tensor
    gly_line: Tensor | None = None
    font_hint: Tensor | None = None
    glyph_features: Tensor | None = None
    font_features: Tensor | None = None


class PositionEncoder(nn.Module):
    """A position mask of any size -> one vector: stride-2 convolutions with SiLU, then the mean over the picture."""

    def __init__(self, out_channels: int, widths: Sequence[int] = POSITION_WIDTHS):
        super().__init__()
        self.conv1 = nn.Conv2d(1, widths[0], 3, padding=1)
        self.conv_list = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1)
            for before, after in zip(widths[:-1], widths[1:], strict=True)
        )
        self.conv2 = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Encode masks x (N, 1, H, W), 0 or 1, as (N, out_channels)."""
        x = F.silu(self.conv1(x))
        for conv in self.conv_list:
            x = F.silu(conv(x))
        return F.silu(self.conv2(x)).mean((2, 3))


def _projection(in_features: int, out_features: int) -> nn.Sequential:
    # Upstream zeroes this Linear before its training. LayerNorm of all zeros passes gradients on times
    # 1/sqrt(eps) = 316, so a fresh network here keeps torch's usual start; a checkpoint replaces it anyway.
    return nn.Sequential(nn.Linear(in_features, out_features), nn.LayerNorm(out_features))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; on exit every sub-module is in the mode it was in."""
    training = [child for child in module.modules() if child.training]
    module.eval()
    try:
        yield
    finally:
        for child in training:
            child.training = True


class EmbeddingManager(nn.Module):
    """Builds line embeddings and writes them over the placeholder tokens.

    token_dim       width of the text encoder
    recogniser      keyword arguments of `Recogniser`, for the font predictor inside; the text predictor, which is
                    passed to the calls, must be built alike
    placeholder_id  token id of '*'
    position_widths of the position encoder

    An absent font is encoded as a black crop and an absent colour as (500, 500, 500), as the released network was
    trained. Upstream's enable_flag, which would leave the two parts out, raises ValueError.
    """

    def __init__(
        self,
        token_dim: int = 768,
        recogniser: Mapping[str, Any] | None = None,
        placeholder_id: int = 265,
        enable_flag: bool = False,
        position_widths: Sequence[int] = POSITION_WIDTHS,
    ):
        super().__init__()
        if enable_flag:
            raise ValueError("enable_flag must be false: AnyText2 was trained without it.")
        self.token_dim = token_dim
        self.placeholder_id = placeholder_id
        self.font_predictor = Recogniser(**(recogniser or {}))
        self.position_encoder = PositionEncoder(token_dim, position_widths)
        self.style_proj = _projection(self.font_predictor.feature_size, token_dim)
        self.color_proj = _projection(3, token_dim)
        self.proj = _projection(self.font_predictor.feature_size, token_dim)

    @torch.no_grad()
    def encode_glyphs(self, text_predictor: Recogniser, gly_line: Tensor, n_lines: Tensor) -> Tensor:
        """Compute features of glyph lines (B, L, 80, 512), 0 or 1: (B, L, 40 * neck_dims), unused rows 0.

        The recogniser is frozen: it runs in eval mode without gradient, so the result may be cached.
        """
        used = _used_lines(gly_line, n_lines, "gly_line")
        lines = gly_line[used].float().mul(255)[:, None].expand(-1, 3, -1, -1)
        with _evaluating(text_predictor):
            features = text_predictor.neck_features(lines)
        return _scatter(features, used)

    def encode_fonts(self, font_hint: Tensor, positions: Tensor, n_lines: Tensor) -> Tensor:
        """Compute features of the font hint under each line: (B, L, 40 * neck_dims), unused rows 0.

        Arguments as in `LineInputs`. The font predictor runs in the mode (train or eval) that it is in.
        """
        used = _used_lines(positions, n_lines, "positions")
        crops = font_crops(font_hint, positions, n_lines)
        return _scatter(self.font_predictor.neck_features(crops), used)

    def line_embeddings(self, inputs: LineInputs, text_predictor: Recogniser | None = None) -> list[Tensor]:
        """Compute one (n_lines, token_dim) tensor per picture, rows in the order of the lines.

        text_predictor is needed where inputs have no glyph_features. Raises ValueError for shapes that do not belong
        together or something missing.
        """
        parts = self.line_embedding_parts(inputs, text_predictor)
        rows = parts["glyph"] + parts["position"] + parts["font"] + parts["color"]
        return list(rows.split(inputs.n_lines.tolist()))

    def line_embedding_parts(self, inputs: LineInputs, text_predictor: Recogniser | None = None) -> dict[str, Tensor]:
        """Compute the four summands of `line_embeddings`, (sum of n_lines, token_dim) each, pictures outer."""
        used = _used_lines(inputs.positions, inputs.n_lines, "positions")
        glyph_features, font_features = self._features(inputs, text_predictor)
        for name, value in (
            ("glyph_features", glyph_features),
            ("font_features", font_features),
            ("color", inputs.color),
        ):
            if value.shape[:2] != used.shape:
                raise ValueError(
                    f"line_embeddings: {name} {tuple(value.shape)} does not match the {tuple(used.shape)} "
                    "samples and lines of positions."
                )
        weight = self.proj[0].weight

        def rows(value: Tensor) -> Tensor:
            return value[used.to(value.device)].to(device=weight.device, dtype=weight.dtype)

        return {
            "glyph": self.proj(rows(glyph_features)),
            "position": self.position_encoder(rows(inputs.positions)[:, None]),
            "font": self.style_proj(rows(font_features)),
            "color": self.color_proj(rows(inputs.color)),  # raw 0..500, unnormalised: so the network was trained
        }

    def _features(self, inputs: LineInputs, text_predictor: Recogniser | None) -> tuple[Tensor, Tensor]:
        """Of glyph lines and of fonts, computed where they are not given."""
        glyphs, fonts = inputs.glyph_features, inputs.font_features
        if glyphs is None:
            if text_predictor is None or inputs.gly_line is None:
                raise ValueError("line_embeddings: give text_predictor and gly_line, or glyph_features.")
            glyphs = self.encode_glyphs(text_predictor, inputs.gly_line, inputs.n_lines)
        if fonts is None:
            if inputs.font_hint is None:
                raise ValueError("line_embeddings: give font_hint (all zero for no hint), or font_features.")
            fonts = self.encode_fonts(inputs.font_hint, inputs.positions, inputs.n_lines)
        return glyphs, fonts

    def replace(
        self,
        token_ids: Tensor,
        token_embeds: Tensor,
        embeddings: Sequence[Tensor],
        counters: Sequence[int],
    ) -> tuple[Tensor, list[int]]:
        """Write line embeddings over the placeholder tokens of a chunk of captions.

        Arguments
            token_ids     (B, T)
            token_embeds  (B, T, D)
            embeddings    (n_lines, D) per sample
            counters      lines each sample has used up in earlier chunks, 0 at the start of a caption

        Every placeholder takes the next line. A single line left over serves all placeholders of the chunk, as in
        upstream; otherwise too few lines raise ValueError. Returns new embeddings (B, T, D) and new counters, for the
        next chunk; the inputs stay as they are.
        """
        batch = token_ids.shape[0]
        if token_embeds.shape[:2] != token_ids.shape or len(embeddings) != batch or len(counters) != batch:
            raise ValueError(
                f"replace: {tuple(token_ids.shape)} token ids, {tuple(token_embeds.shape)} token embeddings, "
                f"{len(embeddings)} lists of line embeddings and {len(counters)} counters, not one batch."
            )
        result = token_embeds.clone()
        new_counters = list(counters)
        for sample in range(batch):
            where = (token_ids[sample] == self.placeholder_id).nonzero()[:, 0]
            wanted = len(where)
            if not wanted:
                continue
            left = embeddings[sample][counters[sample] :]
            if len(left) == 1:
                left = left.expand(wanted, -1)
            if len(left) < wanted:
                raise ValueError(
                    f"replace: the caption of sample {sample} has {wanted} placeholders '*' but {len(left)} "
                    f"of its {len(embeddings[sample])} text lines left, write one '*' per line."
                )
            result[sample, where] = left[:wanted].to(result)
            new_counters[sample] = counters[sample] + wanted
        return result, new_counters


def font_crops(font_hint: Tensor, positions: Tensor, n_lines: Tensor) -> list[Tensor]:
    """Cut the font hint under each used line out upright: one (3, h, w) 0..255 per line; arguments of `LineInputs`."""
    used = _used_lines(positions, n_lines, "positions")
    if (
        font_hint.ndim != 4
        or font_hint.shape[1] not in (1, 3)
        or len(font_hint) != len(positions)
        or font_hint.shape[2:] != positions.shape[2:]
    ):
        raise ValueError(
            f"font_crops: font_hint {tuple(font_hint.shape)} does not fit positions "
            f"{tuple(positions.shape)}, give (B,1,H,W) or (B,3,H,W) of the same B, H, W."
        )
    hints = font_hint.float().mul(255).expand(-1, 3, -1, -1)
    masks = (positions > 0.5).to("cpu", torch.uint8).mul(255).numpy()
    return [crop_image(hints[sample], masks[sample, line]) for sample, line in used.nonzero().tolist()]


def _used_lines(lines: Tensor, n_lines: Tensor, name: str) -> Tensor:
    """Which of the (B, L) line slots are filled, on the device of `lines`."""
    if lines.ndim != 4 or n_lines.shape != lines.shape[:1]:
        raise ValueError(f"{name} {tuple(lines.shape)} and n_lines {tuple(n_lines.shape)} are not (B,L,H,W) and (B,).")
    slots = lines.shape[1]
    if int(n_lines.min()) < 1 or int(n_lines.max()) > slots:
        raise ValueError(f"n_lines {n_lines.tolist()} must lie between 1 and the {slots} line slots of {name}.")
    return torch.arange(slots, device=lines.device) < n_lines.to(lines.device)[:, None]


def _scatter(rows: Tensor, used: Tensor) -> Tensor:
    """Put rows (N, F) into their slots of (B, L, F), zero elsewhere; differentiable in rows."""
    dense = rows.new_zeros(*used.shape, rows.shape[-1])
    return dense.masked_scatter(used.to(rows.device)[..., None], rows)
