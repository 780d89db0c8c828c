"""The line recogniser of PP-OCRv3: MobileNetV1Enhance, a small SVTR encoder, a CTC head.

AnyText2 uses it twice with separate weights: `text_predictor` turns a drawn glyph line into features, the
`font_predictor` inside the embedding manager does so for a crop of the font hint. Attribute names are those of the
state dict. Upstream: AnyText2 ocr_recog/RecModel.py, RecMv1_enhance.py, RecSVTR.py; PaddleOCR PP-OCRv3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE_HEIGHT = 48
IMAGE_WIDTH = 320
TIME_STEPS = 40  # the backbone divides the width of 320 by 8
ROTATE_ABOVE = 1.2  # height / width above which a crop is taken for vertical text

# PaddleOCR MobileNetV1Enhance: pointwise width at scale 1, depthwise kernel and stride, squeeze-excite
_BACKBONE = (
    (64, 3, 1, False),
    (128, 3, 1, False),
    (128, 3, 1, False),
    (256, 3, (2, 1), False),
    (256, 3, 1, False),
    (512, 3, (2, 1), False),
    (512, 5, 1, False),
    (512, 5, 1, False),
    (512, 5, 1, False),
    (512, 5, 1, False),
    (512, 5, 1, False),
    (1024, 5, (2, 1), True),
    (1024, 5, (1, 2), True),
)


class ConvBNHardSwish(nn.Module):
    """Convolution without bias, BatchNorm, hard-swish: the unit of the backbone."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int | tuple[int, int], groups: int = 1
    ):
        super().__init__()
        self._conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        self._batch_norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(self._batch_norm(self._conv(x)))


class SqueezeExcite(nn.Module):
    """Channel gates from the global mean; the gate is relu6(x + 3) / 6."""

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // reduction, 1)
        self.conv2 = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv2(F.relu(self.conv1(x.mean((2, 3), keepdim=True))))
        return x * F.hardsigmoid(gate)


class DepthwiseSeparable(nn.Module):
    """Depthwise convolution, optional squeeze-excite, pointwise convolution."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int | tuple[int, int], excite: bool):
        super().__init__()
        self._depthwise_conv = ConvBNHardSwish(in_channels, in_channels, kernel, stride, groups=in_channels)
        if excite:
            self._se = SqueezeExcite(in_channels)
        self.excite = excite
        self._pointwise_conv = ConvBNHardSwish(in_channels, out_channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self._depthwise_conv(x)
        if self.excite:
            x = self._se(x)
        return self._pointwise_conv(x)


class Backbone(nn.Module):
    """MobileNetV1Enhance: (B, 3, 48, 320) -> (B, out_channels, 1, 40)."""

    def __init__(self, scale: float = 0.5):
        super().__init__()
        channels = int(32 * scale)
        self.conv1 = ConvBNHardSwish(3, channels, 3, 2)
        blocks = []
        for width, kernel, stride, excite in _BACKBONE:
            out_channels = int(width * scale)
            blocks.append(DepthwiseSeparable(channels, out_channels, kernel, stride, excite))
            channels = out_channels
        self.block_list = nn.Sequential(*blocks)
        self.pool = nn.AvgPool2d(2)
        self.out_channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.block_list(self.conv1(x)))


class ConvBNSwish(nn.Module):
    """Convolution without bias, BatchNorm, swish: the unit of the neck."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)))


class Attention(nn.Module):
    """Global self-attention over the 40 time steps, q, k and v from one Linear in that order."""

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return F.dropout(self.proj(out.transpose(1, 2).reshape(batch, length, dim)), dropout)


class FeedForward(nn.Module):
    """Two linear layers with SiLU in between: (B, n, dim) -> (B, n, dim)."""

    def __init__(self, dim: int, hidden: int, dropout: float):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.silu(self.fc1(x)))))


class SVTRBlock(nn.Module):
    """Pre-norm transformer block. (Upstream's flag `prenorm=False` selects exactly this order.)"""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, dropout: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.mixer = Attention(dim, num_heads, dropout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = FeedForward(dim, int(dim * mlp_ratio), dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SVTREncoder(nn.Module):
    """Bottleneck, two transformer blocks along the line, and a fusion with what came in."""

    def __init__(self, in_channels: int, dims: int, hidden_dims: int, num_heads: int, mlp_ratio: float, dropout: float):
        super().__init__()
        narrow = in_channels // 8
        self.conv1 = ConvBNSwish(in_channels, narrow, 3)
        self.conv2 = ConvBNSwish(narrow, hidden_dims, 1)
        self.svtr_block = nn.ModuleList(SVTRBlock(hidden_dims, num_heads, mlp_ratio, dropout) for _ in range(2))
        self.norm = nn.LayerNorm(hidden_dims, eps=1e-6)
        self.conv3 = ConvBNSwish(hidden_dims, in_channels, 1)
        self.conv4 = ConvBNSwish(2 * in_channels, narrow, 3)
        self.conv1x1 = ConvBNSwish(narrow, dims, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv2(self.conv1(x))
        batch, channels, height, width = z.shape
        tokens = z.flatten(2).transpose(1, 2)
        for block in self.svtr_block:
            tokens = block(tokens)
        z = self.norm(tokens).transpose(1, 2).reshape(batch, channels, height, width)
        return self.conv1x1(self.conv4(torch.cat((x, self.conv3(z)), dim=1)))


class Neck(nn.Module):
    """The encoder under its name in the state dict, read out as a sequence: (B, C, 1, 40) -> (B, 40, dims)."""

    def __init__(self, encoder: SVTREncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x).squeeze(2).transpose(1, 2)


class Head(nn.Module):
    """Neck features (B, 40, dims) -> logits (B, 40, num_classes)."""

    def __init__(self, dims: int, num_classes: int):
        super().__init__()
        self.fc = nn.Linear(dims, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Recogniser(nn.Module):
    """Reads one text line per image. The defaults are AnyText2's.

    scale multiplies the widths of the backbone. Raises ValueError unless 8 * scale is whole (0.25, 0.5) and num_heads
    divides hidden_dims.
    """

    def __init__(
        self,
        num_classes: int = 6625,
        scale: float = 0.5,
        neck_dims: int = 64,
        hidden_dims: int = 120,
        num_heads: int = 8,
        mlp_ratio: float = 2,
        dropout: float = 0.1,
    ):
        super().__init__()
        if scale <= 0 or int(8 * scale) != 8 * scale:
            raise ValueError(f"Recogniser: scale {scale} gives broken widths, use a multiple of 0.125.")
        if hidden_dims % num_heads:
            raise ValueError(
                f"Recogniser: hidden_dims {hidden_dims} cannot be split into {num_heads} heads, choose a multiple."
            )
        self.num_classes = num_classes
        self.neck_dims = neck_dims
        self.backbone = Backbone(scale)
        self.neck = Neck(SVTREncoder(self.backbone.out_channels, neck_dims, hidden_dims, num_heads, mlp_ratio, dropout))
        self.head = Head(neck_dims, num_classes)

    @property
    def feature_size(self) -> int:
        """Length of the flattened neck features of a line, 40 * neck_dims."""
        return TIME_STEPS * self.neck_dims

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Read x (B, 3, 48, 320) in -1..1: {"ctc_neck": (B, 40, neck_dims), "ctc": logits (B, 40, num_classes)}.

        Raises ValueError for another shape.
        """
        if x.ndim != 4 or tuple(x.shape[1:]) != (3, IMAGE_HEIGHT, IMAGE_WIDTH):
            raise ValueError(f"Recogniser: input {tuple(x.shape)} is not (B,3,48,320), use preprocess().")
        neck = self.neck(self.backbone(x))
        return {"ctc_neck": neck, "ctc": self.head(neck)}

    def neck_features(self, images: Sequence[Tensor] | Tensor) -> Tensor:
        """Compute features (N, 40 * neck_dims), time-major, of images as `preprocess` takes them."""
        # In one batch. Upstream sorts by aspect and takes six at a time: no difference in eval mode, while in train
        # mode the statistics of BatchNorm then depend on the neighbours.
        parameter = self.head.fc.weight
        x = preprocess(images).to(device=parameter.device, dtype=parameter.dtype)
        return self.neck(self.backbone(x)).flatten(1)


def preprocess(images: Sequence[Tensor] | Tensor) -> Tensor:
    """Bring text crops to the recogniser's format, (N, 3, 48, 320) float in -1..1 (AnyText2 cldm/recognizer.py).

    images: tensors (3, h, w) in 0..255 of any sizes, or one (N, 3, h, w). Tall crops (h > 1.2 w) are turned by 90
    degrees counter-clockwise. The height becomes 48 and the width at most 320; the rest up to 320 is 0, which is
    mid-grey: upstream pads after normalising, and the networks were trained on that.
    Raises ValueError for other shapes and for no images.
    """
    if isinstance(images, Tensor):
        if images.ndim != 4:
            raise ValueError(f"preprocess: a tensor of shape {tuple(images.shape)} is not (N,3,h,w).")
        groups = [images]
    else:
        groups = [image.unsqueeze(0) for image in images]
        if not groups:
            raise ValueError("preprocess: no images were given, pass at least one.")
    return torch.cat([_preprocess_equal(group) for group in groups])


def _preprocess_equal(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(
            f"preprocess: image of shape {tuple(images.shape[1:])} is not (3,h,w) with h, w of at least 1."
        )
    images = images if images.is_floating_point() else images.float()
    if images.shape[2] > ROTATE_ABOVE * images.shape[3]:
        images = torch.rot90(images, 1, (2, 3))
    height, width = images.shape[2:]
    width = min(IMAGE_WIDTH, math.ceil(IMAGE_HEIGHT * width / height))
    images = F.interpolate(images, (IMAGE_HEIGHT, width), mode="bilinear", align_corners=True)
    return F.pad(images / 127.5 - 1, (0, IMAGE_WIDTH - width))


def encode_text(text: str, characters: Sequence[str]) -> list[int]:
    """Turn text into class ids; characters the dictionary lacks become the last class, the space, as in upstream."""
    ids = {character: index for index, character in enumerate(characters) if index > 0}
    space = len(characters) - 1
    return [ids.get(character, space) for character in text]


def greedy_decode(ids: Sequence[int] | Tensor) -> tuple[list[int], list[int]]:
    """Decode the best class per time step (T,), or logits (T, classes).

    Returns the ids without repeats and blanks, and the time step of each.
    """
    if isinstance(ids, Tensor):
        ids = (ids.argmax(-1) if ids.ndim == 2 else ids).tolist()
    kept, steps = [], []
    previous = None
    for step, current in enumerate(ids):
        if current != 0 and current != previous:
            kept.append(int(current))
            steps.append(step)
        previous = current
    return kept, steps


def decode_text(ids: Sequence[int] | Tensor, characters: Sequence[str]) -> str:
    """Read the text of one image from its best classes (T,) or logits (T, classes), by greedy CTC decoding."""
    return "".join(characters[index] for index in greedy_decode(ids)[0])


def ctc_loss(logits: Tensor, targets: Sequence[Sequence[int]], weight: float = 1.0) -> Tensor:
    """Compute the CTC loss per image, (B,), divided by the number of time steps as in upstream (cldm/recognizer.py).

    logits (B, T, classes); targets: class ids of each image's text, without the blank (0).
    Raises ValueError unless there is one text per image.
    """
    if len(targets) != logits.shape[0]:
        raise ValueError(f"ctc_loss: {logits.shape[0]} images but {len(targets)} texts, give one for each.")
    steps = logits.shape[1]
    log_probs = logits.float().log_softmax(-1).transpose(0, 1)
    flat = torch.tensor([i for ids in targets for i in ids], dtype=torch.long, device=logits.device)
    lengths = torch.tensor([len(ids) for ids in targets], dtype=torch.long)
    input_lengths = torch.full((len(targets),), steps, dtype=torch.long)
    loss = F.ctc_loss(log_probs, flat, input_lengths, lengths, blank=0, reduction="none", zero_infinity=True)
    return loss * (weight / steps)
