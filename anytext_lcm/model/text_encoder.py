"""Captions to contexts: the CLIP text tower, its tokenizer, and the cutting of long captions into chunks.

Upstream: `ldm/modules/encoders/modules.py` (FrozenCLIPEmbedderT3). The tower is laid out as transformers' CLIPTextModel
of 2023, whose keys the checkpoint carries; later versions of transformers moved them.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONTEXT_LENGTH = 77
CHUNK = CONTEXT_LENGTH - 2  # the room between start and end token
PLACEHOLDER = "*"
TOKENIZER_PAIR = ("vocab.json", "merges.txt")


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(h.transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, width: int, intermediate: int):
        super().__init__()
        self.fc1 = nn.Linear(width, intermediate)
        self.fc2 = nn.Linear(intermediate, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        return self.fc2(h * torch.sigmoid(1.702 * h))  # CLIP's "quick GELU", not the erf one


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, intermediate: int):
        super().__init__()
        self.self_attn = _Attention(width, heads)
        self.layer_norm1 = nn.LayerNorm(width)
        self.mlp = _MLP(width, intermediate)
        self.layer_norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _Embeddings(nn.Module):
    def __init__(self, vocab_size: int, width: int):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(CONTEXT_LENGTH, width)


class _Encoder(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, intermediate: int):
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width, heads, intermediate) for _ in range(layers))


class TextModel(nn.Module):
    """CLIP's text tower: pre-norm layers, a causal mask, no padding mask; all last hidden states are used."""

    def __init__(self, vocab_size: int, width: int, layers: int, heads: int, intermediate: int):
        super().__init__()
        self.embeddings = _Embeddings(vocab_size, width)
        self.encoder = _Encoder(layers, width, heads, intermediate)
        self.final_layer_norm = nn.LayerNorm(width)

    def embed(self, ids: Tensor) -> Tensor:
        """Embed ids (B, 77) as (B, 77, D), before positions: placeholders are replaced here."""
        return self.embeddings.token_embedding(ids)

    def forward(self, token_embeds: Tensor) -> Tensor:
        """Encode token embeddings (B, 77, D) as context (B, 77, D)."""
        x = token_embeds + self.embeddings.position_embedding.weight[: token_embeds.shape[1]]
        for layer in self.encoder.layers:
            x = layer(x)
        return self.final_layer_norm(x)


class _Transformer(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.text_model = TextModel(**kwargs)


class TextEncoder(nn.Module):
    """`cond_stage_model`: the tower under `transformer.text_model`. The defaults are CLIP ViT-L/14's."""

    def __init__(
        self,
        vocab_size: int = 49408,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        intermediate: int = 3072,
        **_unused,
    ):
        super().__init__()
        self.transformer = _Transformer(
            vocab_size=vocab_size, width=width, layers=layers, heads=heads, intermediate=intermediate
        )
        self.start_id, self.end_id = vocab_size - 2, vocab_size - 1  # CLIP puts its two special tokens last

    @property
    def text_model(self) -> TextModel:
        """The tower, at the end of its path in the state dict."""
        return self.transformer.text_model

    def chunk(self, ids: Tensor) -> Tensor:
        """Cut ids (B, T) of image captions, start and end included, into (B, max(1, ceil((T - 2) / 75)), 77)."""
        body = ids[:, 1:-1]
        missing = -body.shape[1] % CHUNK if body.shape[1] else CHUNK
        body = F.pad(body, (0, missing), value=self.end_id).unflatten(1, (-1, CHUNK))
        start = body.new_full((*body.shape[:2], 1), self.start_id)
        end = body.new_full((*body.shape[:2], 1), self.end_id)
        return torch.cat([start, body, end], dim=-1)


def find_tokenizer(folder: str | Path, roots: Sequence[Path] = ()) -> Path:
    """Find a relative folder in the working directory, as upstream does, then in each of roots.

    Returns the folder of the working directory when it is in none of them.
    """
    folder = Path(folder)
    return next((found for found in (folder, *(root / folder for root in roots)) if found.is_dir()), folder)


def check_tokenizer(folder: str | Path) -> None:
    """Raise FileNotFoundError unless the folder has `tokenizer.json`, or `vocab.json` and `merges.txt`.

    transformers writes the one since version 5, both kinds from 4 on, and the pair before.
    """
    there = {name for name in ("tokenizer.json", *TOKENIZER_PAIR) if (Path(folder) / name).is_file()}
    if "tokenizer.json" not in there and not there.issuperset(TOKENIZER_PAIR):
        missing = next(name for name in TOKENIZER_PAIR if name not in there)
        raise FileNotFoundError(
            f"CLIP tokenizer: {Path(folder) / missing} is missing; put vocab.json and merges.txt, or tokenizer.json, "
            "of openai/clip-vit-large-patch14 into that folder, or name another one in the yaml under "
            "model.params.cond_stage_config.params.version."
        )


def clean(caption: str) -> str:
    """The caption as CLIP was trained with it and as upstream's tokenizer sees it: curly quotes straight, letters of
    full width narrow, ligatures apart, HTML entities and mojibake resolved (ftfy).

    A placeholder stays where it is; a star that cleaning makes of another character (U+FF0A, `&ast;`) becomes a space.
    """
    if caption.isascii() and "&" not in caption:
        return caption
    import ftfy

    return PLACEHOLDER.join(ftfy.fix_text(part).replace(PLACEHOLDER, " ") for part in caption.split(PLACEHOLDER))


class Tokenizer:
    """CLIP's byte-pair tokenizer, read from a local folder as `check_tokenizer` wants it, never fetched.

    Raises FileNotFoundError when a file is missing, ValueError where '*' is not one token.
    """

    def __init__(self, folder: str | Path):
        check_tokenizer(folder)
        from transformers import CLIPTokenizer

        self._bpe = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        self.end_id = self._bpe.eos_token_id
        ids = self._bpe(PLACEHOLDER, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ValueError(f"CLIP tokenizer in {folder}: the placeholder '*' must be one token, it is {len(ids)}.")
        self.placeholder_id = ids[0]

    def image_ids(self, captions: list[str]) -> Tensor:
        """Tokenize image captions, whole, padded with the end token to the longest: int64 (B, T)."""
        rows = [self._bpe(clean(c))["input_ids"] for c in captions]
        longest = max(len(r) for r in rows)
        return torch.tensor([r + [self.end_id] * (longest - len(r)) for r in rows], dtype=torch.int64)

    def text_ids(self, captions: list[str]) -> Tensor:
        """Tokenize text captions, cut or padded with the end token to 77: int64 (B, 77)."""
        # Not by the tokenizer's own truncation, which is a state of it that threads would change for each other.
        rows = [self._bpe(clean(c))["input_ids"] for c in captions]
        rows = [r if len(r) <= CONTEXT_LENGTH else [*r[: CONTEXT_LENGTH - 1], self.end_id] for r in rows]
        return torch.tensor([r + [self.end_id] * (CONTEXT_LENGTH - len(r)) for r in rows], dtype=torch.int64)
