"""A whole AnyText2 of 0.1 million weights for 64 px pictures: every part is there, and a training step takes
milliseconds.
"""

from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from anytext_lcm.model.anytext2 import AnyText2

ROOT = Path(__file__).parents[1]
SIDE, CHANNELS, CONTEXT = 64, 4, 16  # 8x8 latents of 4 channels


def micro_config():
    config = OmegaConf.load(ROOT / "models_yaml" / "anytext2_tiny.yaml")
    del config.model.defaults  # they are another network's
    params = config.model.params
    params.image_size, params.channels = SIDE // 8, CHANNELS
    trunk = dict(in_channels=CHANNELS, model_channels=8, context_dim=CONTEXT, norm_groups=4, num_heads=2)
    trunk |= dict(channel_mult=[1, 2], attention_resolutions=[1, 2])
    params.unet_config.params.update(trunk | dict(out_channels=CHANNELS, image_size=SIDE // 8))
    hints = dict(glyph_widths=[4] * 7, position_widths=[4] * 7)
    params.control_stage_config.params.update(trunk | hints | dict(image_size=SIDE // 8))
    vae = dict(ch=4, ch_mult=[1, 1, 1, 1], norm_groups=2, z_channels=CHANNELS, resolution=SIDE)
    params.first_stage_config.params.embed_dim = CHANNELS
    params.first_stage_config.params.ddconfig.update(vae)
    text = params.cond_stage_config.params
    text.update(dict(width=CONTEXT, layers=1, heads=2, intermediate=16))
    text.version = str(ROOT / text.version)
    manager = params.embedding_manager_config.params
    manager.update(dict(token_dim=CONTEXT, position_widths=[4, 4, 4, 4, 4]))
    manager.recogniser.update(dict(num_classes=12, scale=0.125, neck_dims=4, hidden_dims=8, num_heads=2))
    return config


def micro_network(seed: int = 0) -> AnyText2:
    """Fresh weights, frozen, and nothing zero, so that every part has a say."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AnyText2.from_config(micro_config())
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.1)
    return model.requires_grad_(False)


def micro_batch(size: int = 2, seed: int = 0) -> dict:
    """A batch of the contract with random pictures: two lines a picture, one in the last."""
    rng = np.random.default_rng(seed)
    lines = torch.full((size,), 2)
    lines[-1] = 1
    used = (torch.arange(2) < lines[:, None]).view(size, 2, 1, 1)
    positions = torch.zeros(size, 2, SIDE, SIDE, dtype=torch.uint8)
    positions[:, 0, 8:24, 8:56], positions[:, 1, 36:52, 8:56] = 1, 1
    noisy = torch.from_numpy(rng.random((size, 2, SIDE, SIDE)) > 0.6)
    return {
        "img": torch.from_numpy(rng.uniform(-1, 1, (size, 3, SIDE, SIDE)).astype(np.float32)),
        "masked_img": torch.full((size, 3, SIDE, SIDE), -1.0),
        "hint": (positions * used).amax(1, keepdim=True),
        "inv_mask": torch.zeros(size, 1, SIDE, SIDE, dtype=torch.uint8),
        "glyphs": (positions * noisy * used * 255).to(torch.uint8),
        "positions": (positions * used).to(torch.uint8),
        "gly_line": (torch.from_numpy(rng.random((size, 2, 80, 512)) > 0.8) & used).to(torch.uint8),
        "font_hint": torch.zeros(size, 1, SIDE, SIDE, dtype=torch.uint8),
        "color": torch.full((size, 2, 3), 500.0) * used[..., 0],
        "n_lines": lines,
        "img_caption": ["red text on a white background"] * size,
        "text_caption": ["Text says " + " , ".join("*" * int(n)) + " . " for n in lines],
        "texts": [["one", "two"][:n] for n in lines.tolist()],
        "language": [["Latin"] * n for n in lines.tolist()],
    }
