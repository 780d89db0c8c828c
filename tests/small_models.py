"""Whole models for the tests: the reference outputs' small one, and one that is small in every direction."""

from copy import deepcopy
from functools import cache
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from reference_weights import X, fill, load_reference

from anytext_lcm.model.anytext2 import AnyText2

YAMLS = Path(__file__).parents[1] / "models_yaml"
FULL, EMBEDDED = YAMLS / "anytext2_sd15.yaml", YAMLS / "anytext2_tiny.yaml"


def reference_config(**changes: object) -> DictConfig:
    """The shipped yaml with the reference outputs' widths. changes: dotted paths under model.params, with
    `__` for each dot."""
    config = OmegaConf.load(FULL)
    params = config.model.params
    params.unet_config.params.model_channels = 32
    params.control_stage_config.params.model_channels = 32
    params.first_stage_config.params.ddconfig.ch = 32
    params.cond_stage_config.params.update(layers=2, intermediate=1536)
    for name, value in changes.items():
        OmegaConf.update(params, name.replace("__", "."), value)
    return config


@cache
def reference_model() -> AnyText2:
    """The model behind the reference files 13 and 14, with the rule's weights, frozen. All callers share it."""
    return fill(AnyText2.from_config(reference_config(), device="cpu")).requires_grad_(False)


def miniature(**changes: object) -> AnyText2:
    """The embedded teacher's layout at a fraction of its width, with the rule's weights, frozen."""
    return deepcopy(_miniature(**changes))


@cache
def _miniature(**changes: object) -> AnyText2:
    config = OmegaConf.load(EMBEDDED)
    params = config.model.params
    for part in (params.unet_config, params.control_stage_config):
        part.params.update(model_channels=16, context_dim=32, num_heads=2)
        part.params.update(channel_mult=[1, 2], attention_resolutions=[1, 2])
    params.first_stage_config.params.ddconfig.update(ch=8, ch_mult=[1, 1, 1, 1])
    params.cond_stage_config.params.update(version=str(YAMLS.parent / "anytext_lcm/assets/tokenizer"))
    params.cond_stage_config.params.update(width=32, layers=1, heads=2, intermediate=64)
    params.embedding_manager_config.params.update(token_dim=32, position_widths=[4, 4, 4, 4, 4])
    params.embedding_manager_config.params.recogniser.update(scale=0.125, neck_dims=4, hidden_dims=8, num_heads=2)
    for name, value in changes.items():
        OmegaConf.update(params, name.replace("__", "."), value)
    return fill(AnyText2.from_config(config)).requires_grad_(False)


def small_batch(size: int = 64) -> dict:
    """Two pictures of `size` x `size`: the first with one line, the second with two."""
    positions = torch.zeros(2, 2, size, size, dtype=torch.uint8)
    for sample, line in ((0, 0), (1, 0), (1, 1)):
        top = size // 16 + line * size // 2
        positions[sample, line, top : top + size // 4, size // 16 : -size // 8] = 1
    on = (X("batch.glyph", (2, 2, size, size)) > 1).to(torch.uint8)
    return {
        "img": X("batch.img", (2, 3, size, size), 0.4).clamp(-1, 1),
        "masked_img": X("batch.masked", (2, 3, size, size), 0.4).clamp(-1, 1),
        "hint": positions.amax(1, keepdim=True),
        "inv_mask": torch.zeros(2, 1, size, size, dtype=torch.uint8),
        "glyphs": 255 * positions * on,
        "positions": positions,
        "gly_line": (X("batch.gly_line", (2, 2, 80, 512)) > 1).to(torch.uint8),
        "font_hint": 255 * (X("batch.font", (2, 1, size, size)) > 1).to(torch.uint8),
        "color": torch.tensor([[[250.0, 10, 30], [0, 0, 0]], [[500, 500, 500], [1, 2, 200]]]),
        "n_lines": torch.tensor([1, 2]),
        "img_caption": ["a red sign", "a picture of two words on a wall"],
        "text_caption": ["Text says * . ", "Text says * , * . "],
    }


def reference_scene() -> dict[str, torch.Tensor]:
    """The scene of file 14 as a batch: stored line first, wanted sample first."""
    stored = load_reference("14_ddim")

    def lines_second(name: str) -> torch.Tensor:
        return torch.from_numpy(stored[name]).transpose(0, 1)

    return {
        "glyphs": lines_second("glyphs_u8").amax(-1),
        "positions": lines_second("positions_u8")[..., 0],
        "gly_line": lines_second("gly_line_u8")[..., 0],
        "font_hint": torch.from_numpy(stored["font_hint_u8"]).permute(0, 3, 1, 2),
        "color": lines_second("colors_255").float(),
        "n_lines": torch.from_numpy(stored["n_lines"]),
        "img_caption": stored["img_captions"].tolist(),
        "text_caption": stored["txt_captions"].tolist(),
    }


class StoredTokens:
    """Stands in for CLIP's tokenizer, whose vocabulary is not in the repository: ids stored with the references.

    Knows the reference captions, the negative prompt of file 14 and the empty caption alone.
    """

    placeholder_id, end_id = 265, 49407

    def __init__(self):
        text, sampling = load_reference("13_text_encoder"), load_reference("14_ddim")
        self._image = {
            tuple(text["img_captions"]): torch.from_numpy(text["img_ids"]),
            tuple(text["long_captions"]): torch.from_numpy(text["long_ids"]),
            (str(sampling["n_prompt"]),): torch.from_numpy(sampling["n_prompt_ids"])[None],
            ("",): torch.tensor([[49406, 49407]]),
        }
        self._text = {
            tuple(text["txt_captions"]): torch.from_numpy(text["txt_ids"]),
            ("",): torch.tensor([[49406] + [49407] * 76]),
        }

    def image_ids(self, captions: list[str]) -> torch.Tensor:
        return self._image[tuple(captions)]

    def text_ids(self, captions: list[str]) -> torch.Tensor:
        return self._text[tuple(captions)]


class CountedCalls:
    """Counts the calls of a module while used as a context manager."""

    def __init__(self, module: torch.nn.Module):
        self.module, self.calls = module, 0

    def __enter__(self) -> "CountedCalls":
        self._hook = self.module.register_forward_hook(lambda *_: setattr(self, "calls", self.calls + 1))
        return self

    def __exit__(self, *_):
        self._hook.remove()


def with_stored_tokens(model: AnyText2) -> AnyText2:
    model._tokenizer = StoredTokens()
    return model
