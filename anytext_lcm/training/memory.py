"""The memory that a training needs, counted on shapes: `python -m anytext_lcm.train --estimate`.

The student's forward pass runs on torch's meta device, where tensors have a shape and no memory, and the sizes of all
that is kept for the backward pass are added up. Fragmentation and the workspaces of the GPU's libraries are a guess.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from anytext_lcm.adapter.lora import adapter_state, attach
from anytext_lcm.model.anytext2 import AnyText2, Conditioning
from anytext_lcm.model.networks import find_config
from anytext_lcm.training.settings import PRECISIONS, TrainSettings, check_picture_size

GIB = 2**30
RUNTIME = 1.5 * GIB  # CUDA's context, cuDNN's and cuBLAS's workspaces: a guess
KERNELS = ("fused", "plain")

_LOW = {"conv2d", "linear", "matmul", "bmm", "scaled_dot_product_attention"}  # in half precision under autocast
_FULL = {"group_norm", "layer_norm", "softmax"}  # in fp32 under autocast


class _Attention(torch.autograd.Function):
    """Keeps what the fused kernel keeps: inputs, output and one number per row.

    On the meta device torch itself would use the plain formula, which keeps the whole matrix of weights.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError("Only the forward pass is counted.")


class _Casts(TorchFunctionMode):
    """Autocast as on a GPU, which the meta device lacks: products in dtype, norms in fp32.

    fused: attention keeps what the fused kernel keeps.
    """

    def __init__(self, dtype: torch.dtype, fused: bool = True):
        super().__init__()
        self.dtype, self.fused = dtype, fused

    def __torch_function__(self, func: Any, types: Any, args: Sequence = (), kwargs: Mapping | None = None) -> Any:
        name = getattr(func, "__name__", "")
        wanted = self.dtype if name in _LOW else torch.float32 if name in _FULL else None
        if wanted is not None and self.dtype != torch.float32:
            args = [a.to(wanted) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
            kwargs = {
                k: v.to(wanted) if isinstance(v, Tensor) and v.is_floating_point() else v
                for k, v in (kwargs or {}).items()
            }
        if self.fused and name == "scaled_dot_product_attention":
            return _Attention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _Kept:
    """Tensors kept for the backward pass; each storage counts once, weights do not."""

    def __init__(self, model: torch.nn.Module):
        self.model_storages = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
        self.alive: dict[int, Tensor] = {}

    def add(self, tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in self.model_storages:
            self.alive.setdefault(key, tensor)  # alive, so that no later storage takes its number
        return tensor

    @property
    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.alive.values())


def _counted_checkpoint(keep: _Kept, inside: list[int]) -> Callable[..., Any]:
    """A stand-in for torch's checkpoint: keeps a block's inputs, and appends to `inside` what the block itself keeps
    while it is run again.
    """

    def checkpoint(block: Any, *arguments: Any, use_reentrant: bool = False) -> Any:
        for argument in arguments:
            if isinstance(argument, Tensor):
                keep.add(argument)
        own = _Kept(block)
        with torch.autograd.graph.saved_tensors_hooks(own.add, lambda t: t):
            out = block(*arguments)
        inside.append(own.bytes)
        return out

    return checkpoint


def _picture(model: AnyText2, side: int) -> tuple[Tensor, Conditioning]:
    """Latents and conditioning of one picture of `side` pixels, shapes only."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta", dtype=model.dtype)

    latents = (1, model.latent_channels, side // 8, side // 8)
    image, text = (
        empty(1, 77, network.middle_block[1].transformer_blocks[0].attn2.to_k.in_features)  # CLIP's 77 tokens
        for network in (model.model.diffusion_model, model.control_model)
    )
    glyphs, positions = empty(1, 1, side, side), empty(1, 1, side, side)
    return empty(*latents), Conditioning(image, text, glyphs, positions, empty(*latents))


def saved_bytes(
    model: AnyText2,
    picture_size: int,
    targets: Sequence[str] | None = None,
    rank: int = 64,
    kernel: str = "fused",
) -> int:
    """Bytes that autograd keeps of one forward pass of WriteNet and UNet with an adapter, for one picture.

    Every storage counts once, weights do not.

    model: a bare network on the meta device, in the precision and with the gradient checkpointing to be counted. It is
    given the adapter, so build a fresh one for each call. picture_size: pixels of a side. kernel: "fused", as on a GPU,
    or "plain", the formula written out, which keeps its matrix of weights; training on a CPU uses it for few tokens.
    Raises ValueError for another device or kernel, and for a network that has an adapter.
    """
    if model.device.type != "meta":
        raise ValueError("Only a network on the meta device can be counted without computing; build it there.")
    if kernel not in KERNELS:
        raise ValueError(f"The kernel {kernel!r} is unknown; choose {' or '.join(KERNELS)}.")
    attach(model, rank, rank, targets)
    model.to("meta")  # the adapter was made on the CPU
    latents, cond = _picture(model, picture_size)
    keep, inside = _Kept(model), [0]
    for trunk in (model.model.diffusion_model, model.control_model):
        trunk.checkpoint = _counted_checkpoint(keep, inside)
    with (
        torch.enable_grad(),
        _Casts(model.dtype, kernel == "fused"),
        torch.autograd.graph.saved_tensors_hooks(keep.add, lambda t: t),
    ):
        timestep = torch.zeros(1, dtype=torch.int64, device="meta")
        eps = model.predict_noise(latents, timestep, cond, model.control(cond, latents, timestep))
    assert eps.shape == latents.shape
    return keep.bytes + max(inside)


@lru_cache(maxsize=8)
def evaluation_flops(config: str, side: int) -> tuple[int, int]:
    """Floating-point operations of one evaluation of the UNet, and of WriteNet's residuals, for one picture.

    Only matrix products and convolutions count; a multiplication and its addition are two. side: in pixels. Raises
    ValueError or FileNotFoundError for a configuration that is wrong.
    """
    model = AnyText2.from_config(config, device="meta").requires_grad_(False)
    latents, cond = _picture(model, side)
    timestep = torch.zeros(1, dtype=torch.int64, device="meta")
    counted = []
    with torch.no_grad():
        for networks in (
            lambda: model.control(cond, latents, timestep),
            lambda: model.predict_noise(latents, timestep, cond, None),
        ):
            with FlopCounterMode(display=False) as counter:
                networks()
            counted.append(counter.get_total_flops())
    return counted[1], counted[0]


@lru_cache(maxsize=64)
def _count(
    config: str,
    rank: int,
    targets: tuple[str, ...] | None,
    precision: str,
    checkpointing: bool,
    side: int,
    kernel: str,
) -> dict[str, int]:
    """Bytes of the parts that do not depend on the batch, and of those of one picture."""
    yaml, dtype = OmegaConf.load(find_config(config)).model.params, getattr(torch, PRECISIONS[precision])
    model = AnyText2.from_config(config, device="meta").to(dtype).requires_grad_(False)
    base = sum(p.numel() * p.element_size() for p in model.parameters())
    with torch.no_grad():
        latents, cond = _picture(model, side)
        control = model.control(cond, latents, torch.zeros(1, dtype=torch.int64, device="meta"))
    for trunk in (model.model.diffusion_model, model.control_model):
        trunk.gradient_checkpointing = checkpointing
    activations = saved_bytes(model, side, targets, rank, kernel)
    stage = yaml.first_stage_config.params.ddconfig
    widest = stage.ch * (side // stage.get("patch", 1)) ** 2 * dtype.itemsize
    return {
        "base": base,
        "adapter": sum(p.numel() for p in adapter_state(model).values()),
        "activations": activations,
        # the teacher's two branches and the target's copy beside the student's own
        "residuals": 3 * sum(r.numel() * r.element_size() for r in control),
        "autoencoder": 3 * widest,
    }


def estimate(settings: TrainSettings, kernel: str = "fused") -> dict[str, float]:
    """GiB on each GPU by part, "total" last. kernel: as in `saved_bytes`.

    The settings need be neither complete nor checked: weights and data are not read. Raises ValueError or
    FileNotFoundError for a configuration, batch, side, rank, target or kernel that is wrong.
    """
    batch = settings.train_batch_size
    if batch < 1:
        raise ValueError(f"The batch must hold at least one picture, not {batch}.")
    check_picture_size(settings.image_size, settings.config)
    targets = None if settings.lora_targets is None else tuple(settings.lora_targets)
    found = _count(
        str(settings.config),
        settings.lora_rank,
        targets,
        settings.mixed_precision or "no",
        bool(settings.gradient_checkpointing),
        settings.picture_size,
        kernel,
    )
    weights = 4 * found["adapter"]  # fp32 whatever the network is in
    parts = {
        "base weights, one copy": found["base"],
        "adapter, its gradient and average": (3 if settings.ema_decay else 2) * weights,
        "optimiser": 2 * weights,
        "control residuals": batch * found["residuals"],
        "activations": batch * found["activations"],
        "runtime and workspaces (a guess)": RUNTIME,
    }
    # The autoencoder works before the student does: the larger of the two phases counts. Stored latents need none.
    encoding = 0 if settings.latents_folder else batch * found["autoencoder"]
    more = encoding - parts["control residuals"] - parts["activations"]
    if more > 0:
        parts["autoencoder beyond that"] = more
    sizes = {name: size / GIB for name, size in parts.items()}
    return sizes | {"total": sum(sizes.values())}


def table(sizes: Mapping[str, float]) -> str:
    """The parts in GiB, one per line."""
    width = max(map(len, sizes))
    return "\n".join(f"{name:<{width}}  {size:7.2f} GiB" for name, size in sizes.items())
