"""Where FLOPs and seconds go: by part of the network, and by kernel. Imports torch and the room model."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from anytext_lcm.model.anytext2 import AnyText2


def now(device: str) -> float:
    """Seconds of a clock, once the device has done what it was asked for."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Ledger:
    """What `read` counts (FLOPs, seconds), by part: of nested parts the innermost has it."""

    def __init__(self, read: Callable[[], float]):
        self.read, self.totals, self.stack, self.last = read, Counter(), ["rest"], read()

    def _turn(self) -> None:
        reading = self.read()
        self.totals[self.stack[-1]] += reading - self.last
        self.last = reading

    def enter(self, name: str) -> None:
        self._turn()
        self.stack.append("recomputation" if "backward" in self.stack else name)

    def leave(self) -> None:
        self._turn()
        self.stack.pop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.enter(name)
        yield
        self.leave()

    @contextmanager
    def watch(self, *models: AnyText2) -> Iterator["Ledger"]:
        """Inside, the networks tell when they work. A UNet counts by its blocks: its two halves may be called apart.

        Checkpointing ends a block's recomputation by an exception, so the hooks that leave a part are always called.
        """
        handles = []
        for model in models:
            unet, control, stage = model.model.diffusion_model, model.control_model, model.first_stage_model
            blocks = (unet.time_embed, *unet.input_blocks, unet.middle_block, *unet.output_blocks, unet.out)
            parts = {
                "UNet": blocks,
                "WriteNet": (control, *control.input_blocks, control.middle_block),  # its blocks are run again alone
                "autoencoder": (stage.encoder, stage.decoder, stage.quant_conv, stage.post_quant_conv),
            }
            for call in ("condition", "uncondition"):
                setattr(model, call, self._within("texts and lines", getattr(model, call)))
            for name, modules in parts.items():
                for module in modules:
                    handles += [
                        module.register_forward_pre_hook(lambda *_, name=name: self.enter(self._named(name))),
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


def attention_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs of attention from the shapes (batch, heads, rows, width) of its inputs: its two matrix products."""
    batch, heads, rows, width = q
    return 2 * batch * heads * rows * k[2] * (width + v[3])


def flops_by_part(forward: Callable[[], Tensor], networks: Sequence[AnyText2]) -> dict[str, int]:
    """FLOPs of forward() and of the backward pass from the loss it returns: two a multiplication with its addition,
    matrix products and convolutions alone. One kernel of attention that torch's counter does not know is added.
    """
    known = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        ledger = Ledger(counter.get_total_flops)
        with ledger.watch(*networks):
            loss = forward()
            with ledger.part("backward"):
                loss.backward()
    return {name: flops for name, flops in ledger.totals.items() if flops}


def seconds_by_part(
    update: Callable[[Callable[[str], Any]], None], networks: Sequence[AnyText2], device: str, repeats: int
) -> dict[str, float]:
    """Seconds of one update by part, mean of `repeats`. update(around) enters around("backward") for its backward
    pass.
    """
    ledger = Ledger(lambda: now(device))
    with ledger.watch(*networks):
        for _ in range(repeats):
            update(ledger.part)
    return {name: seconds / repeats for name, seconds in ledger.totals.items()}


def profile(call: Callable[[], Any], device: str, top: int = 12) -> list[dict[str, Any]]:
    """The kernels that take longest: name, share of the time of all, calls."""
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
