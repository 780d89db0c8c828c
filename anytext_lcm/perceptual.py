"""An auxiliary loss on text: what the network's own recogniser makes of the student's lines and of the picture's.

The text perceptual loss of AnyText (arXiv:2311.03054): the predicted clean latents are decoded, each line
is cut out upright, and features of the frozen recogniser are compared with those of the true picture's line. An
experiment, off by default. The recogniser is AnyText2's `text_predictor`, which has no part in judging.

May import: torch and the room model.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from anytext_lcm.model.embedding_manager import font_crops
from anytext_lcm.model.recogniser import Recogniser, preprocess


def line_distance(
    recogniser: Recogniser, images: Tensor, wanted: Tensor, positions: Tensor, n_lines: Tensor, weight: Tensor
) -> Tensor:
    """Weighted mean over all lines of the squared distance of their features: fp32 scalar, 0 for equal pictures.

    images, wanted: (B, 3, H, W) in -1..1, the gradient goes to `images` alone; positions (B, L, H, W) 0/1, n_lines
    (B,); weight (B,) of each picture's lines. In fp32 whatever the recogniser is in; it should be in eval mode. Raises
    ValueError for pictures that do not fit the positions.
    """
    weights = {name: value.float() if value.is_floating_point() else value
               for name, value in (*recogniser.named_parameters(), *recogniser.named_buffers())}  # fmt: skip

    def features(pictures: Tensor) -> Tensor:
        crops = font_crops((pictures.float() + 1) / 2, positions, n_lines)
        return functional_call(recogniser, weights, (preprocess(crops),))["ctc_neck"].flatten(1)

    with torch.autocast(images.device.type, enabled=False):
        with torch.no_grad():
            target = features(wanted)
        distance = F.mse_loss(features(images), target, reduction="none").mean(dim=1)
        per_line = weight.float().repeat_interleave(n_lines.to(weight.device))
        return (distance * per_line).sum() / len(per_line)
