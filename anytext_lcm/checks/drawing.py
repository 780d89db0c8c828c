"""What a command that draws many pictures needs, and what it will take: the report of its --dry_run."""

from collections.abc import Sequence
from pathlib import Path

from anytext_lcm.checks.forecast import duration, scaled
from anytext_lcm.checks.found import Findings
from anytext_lcm.checks.machine import look_at_gpus, look_at_memory
from anytext_lcm.checks.network import look_at_adapters, look_at_network
from anytext_lcm.drawing.methods import Method
from anytext_lcm.model.loading import PRECISIONS


def look_at_drawing(config: str, checkpoint: str | None, adapters: Sequence[Path], precision: str) -> Findings:
    """Look at network, adapters and machine; takes seconds and loads no network. Arguments as in `require_network`."""
    found = Findings()
    model = look_at_network(found, config, checkpoint, "--ckpt")
    look_at_gpus(found)
    if model is not None:
        look_at_adapters(found, model, adapters)
        look_at_memory(found, sum(p.numel() for p in model.parameters()) * PRECISIONS[precision].itemsize)
    return found


def add_work(found: Findings, config: str, side: int, methods: Sequence[Method | str], pictures: int) -> None:
    """Add what drawing takes. side: of a picture in pixels; pictures: of each method; words for methods draw nothing.

    The text encoder and the autoencoder are left out.
    """
    from anytext_lcm.training.memory import evaluation_flops

    drawn = [method for method in methods if isinstance(method, Method)]
    calls = pictures * sum(method.evaluations for method in drawn)
    unet, control = evaluation_flops(config, side)
    total = calls * unet + pictures * control * sum(2 if method.guided else 1 for method in drawn)
    found.note("pictures", f"{pictures:,} by each of {', '.join(method.name for method in drawn) or 'no method'}")
    time = f"{duration(total / 1e12)} divided by the TFLOP/s that the device sustains"
    found.note("work", f"{calls:,} evaluations of the UNet, {scaled(total)}FLOP: {time}")
