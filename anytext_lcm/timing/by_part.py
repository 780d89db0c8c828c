"""Where FLOPs and seconds go: by part of the network, and by kernel.

torch's FlopCounterMode counts by module, too, but neither seconds nor what gradient checkpointing computes again.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.flop_counter import FlopCounterMode

from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.unet import Trunk


def now(device: str) -> float:
    """Seconds of a clock, after the device has finished its queue."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class CostByPart:
    """Accumulates the counter `read()` (FLOPs, seconds) per part; nested parts are attributed to the innermost.

    What runs forward inside the part "backward" is counted as "recomputation", what is in no part as "rest".
    """

    def __init__(self, read: Callable[[], float]):
        self.read, self.totals, self.stack, self.last = read, Counter(), ["rest"], read()

    def _turn(self) -> None:
        reading = self.read()
        self.totals[self.stack[-1]] += reading - self.last
        self.last = reading

    def enter(self, name: str) -> None:
        """Begin a part."""
        self._turn()
        self.stack.append("recomputation" if "backward" in self.stack else name)

    def leave(self) -> None:
        """End the innermost part."""
        self._turn()
        self.stack.pop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part as a context."""
        self.enter(name)
        yield
        self.leave()

    @contextmanager
    def watch(self, *models: AnyText2) -> Iterator["CostByPart"]:
        """Inside the context, begin and end a part whenever a network of `models` works."""
        handles = []
        for model in models:
            unet, control, stage = model.model.diffusion_model, model.control_model, model.first_stage_model
            # Trunks count by their layers, since a part of their blocks may be called apart.
            hints = (control.glyph_block, control.position_block, control.fuse_block_za)
            parts = {
                "UNet": (*_layers(unet), *(layer for block in unet.output_blocks for layer in block), unet.out),
                "WriteNet": (*_layers(control), *hints, *control.zero_convs, control.middle_block_out),
                "autoencoder": (stage.encoder, stage.decoder, stage.quant_conv, stage.post_quant_conv),
            }
            for call in ("condition", "uncondition"):
                setattr(model, call, self._within("texts and lines", getattr(model, call)))
            for name, modules in parts.items():
                for module in modules:
                    handles += [
                        module.register_forward_pre_hook(lambda *_, name=name: self.enter(self._named(name))),
                        # Always: checkpointing ends a block's recomputation by an exception.
                        module.register_forward_hook(lambda *_: self.leave(), always_call=True),
                    ]
        self.last = self.read()
        try:
            yield self
        finally:
            self._turn()
            for handle in handles:
                handle.remove()
            for model in models:
                del model.condition, model.uncondition

    def _within(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return call(*arguments, **named)

        return counted

    @staticmethod
    def _named(name: str) -> str:
        if name != "UNet":
            return name
        return "UNet, student" if torch.is_grad_enabled() else "UNet, teacher and target"


def _layers(trunk: Trunk) -> list[Module]:
    """The layers of what UNet and WriteNet have in common."""
    blocks = (*trunk.input_blocks, trunk.middle_block)
    return [trunk.time_embed, *(layer for block in blocks for layer in block)]


def attention_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs of the two matrix products of attention, from the shapes (batch, heads, rows, width) of its inputs."""
    batch, heads, rows, width = q
    return 2 * batch * heads * rows * k[2] * (width + v[3])


def flops_by_part(forward: Callable[[], Tensor], networks: Sequence[AnyText2]) -> dict[str, int]:
    """FLOPs by part of forward() and of the backward pass from the loss () that it returns.

    Only matrix products and convolutions count; a multiplication and its addition are two FLOPs.
    """
    # A kernel that torch's counter leaves out.
    known = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        costs = CostByPart(counter.get_total_flops)
        with costs.watch(*networks):
            loss = forward()
            with costs.part("backward"):
                loss.backward()
    return {name: flops for name, flops in costs.totals.items() if flops}


def seconds_by_part(
    update: Callable[[Callable[[str], Any]], None], networks: Sequence[AnyText2], device: str, repeats: int
) -> dict[str, float]:
    """Seconds of one update by part, the mean of `repeats`.

    update(around) must do its backward pass within the context around("backward").
    """
    costs = CostByPart(lambda: now(device))
    with costs.watch(*networks):
        for _ in range(repeats):
            update(costs.part)
    return {name: seconds / repeats for name, seconds in costs.totals.items()}


def profile(call: Callable[[], Any], device: str, top: int = 12) -> list[dict[str, Any]]:
    """The `top` kernels that take longest: name, share of the time of all kernels (0..1), number of calls."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else []
    with torch.profiler.profile(activities=activities) as found:
        call()
        now(device)
    field = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    rows = found.key_averages()
    total = sum(getattr(row, field) for row in rows) or 1
    rows = sorted(rows, key=lambda row: -getattr(row, field))[:top]
    return [{"name": row.key, "share": round(getattr(row, field) / total, 4), "calls": row.count} for row in rows]
