"""Measure each variant in a process of its own: seconds, memory, FLOPs. The report of `python -m anytext_lcm.speed`."""

import gc
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from anytext_lcm.drawing.cores import Clock, describe_hardware, use_available_cores
from anytext_lcm.drawing.draw import draw_prepared, prepare, to_uint8
from anytext_lcm.drawing.methods import Method, student_method, teacher_method
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.model.networks import FULL_CONFIG
from anytext_lcm.timing.agree import check_steps, compare_samplers
from anytext_lcm.timing.by_part import flops_by_part, now, profile, seconds_by_part
from anytext_lcm.timing.process import forget_peak, in_own_process, peak_bytes, resident_bytes
from anytext_lcm.timing.public_script import reference_denoise, reference_prepare
from anytext_lcm.timing.variants import (
    ADDED,
    MEASURED,
    VARIANTS,
    Options,
    Training,
    Variant,
    adapt,
    build,
    build_training,
    example_batch,
    other_side,
)
from anytext_lcm.training import memory
from anytext_lcm.training.data_order import seeded_generator
from anytext_lcm.training.settings import TrainSettings


def count(training: Training) -> dict[str, float]:
    """FLOPs per picture of forward and backward pass, by part; see `flops_by_part`."""
    generator = None if training.options.device == "meta" else seeded_generator(0)
    found = flops_by_part(lambda: training.forward(generator), training.networks)
    training.forget_gradient()
    return {name: flops / training.options.batch for name, flops in found.items()}


def count_on_shapes(variant: Variant, options: Options) -> dict[str, float]:
    """`count` of a network too large to run here, on torch's meta device.

    The recogniser is left out on both sides: it looks at the values of pixels.
    """
    options = replace(options, device="meta", precision="no")
    model = adapt(build(options), options, variant.targets)
    teacher = build(options) if variant.reference else None
    for network in [model] + ([] if teacher is None else [teacher]):
        network._buffers["alphas_cumprod"] = NoiseSchedule.scaled_linear().alphas_cumprod  # read as numbers
        network.embedding_manager.line_embeddings = lambda *_, **__: None
    return count(Training(variant, model, teacher, example_batch(options), options))


def expected_gib(variant: Variant, batch: int = 12) -> float:
    """Memory in GiB at full size in fp16, as `training/memory.py` counts it on shapes.

    The reference has a second copy of the network.
    """
    settings = TrainSettings(
        config=str(FULL_CONFIG),
        output_dir="",
        train_batch_size=batch,
        lora_targets=variant.targets,
        mixed_precision="fp16",
        gradient_checkpointing=variant.checkpointing,
        latents="stored" if variant.latents else None,
    )
    found = memory.estimate(settings)
    return found["total"] + variant.reference * found["base weights, one copy"]


def matmul_rate(options: Options) -> float:
    """FLOP/s of square matrix products in the precision of the run, the best of six: what this device can do."""
    side = 8192 if options.device == "cuda" else 1024
    a = torch.randn(side, side, device=options.device, dtype=options.dtype)
    best = float("inf")
    for _ in range(6):
        began = now(options.device)
        a @ a
        best = min(best, now(options.device) - began)
    return 2 * side**3 / best


def interleave(
    calls: Mapping[str, Callable[[Clock], None]], repeats: int, device: torch.device
) -> dict[str, list[Clock]]:
    """The clocks of `repeats` turns by name. The calls take turns, so that a disturbance of the machine hits them all.

    A call gets the clock of its turn. When it does not use it, it is timed as a whole, in the phase "all". One turn
    before the others warms up and is not kept.
    """
    clocks: dict[str, list[Clock]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            clock, whole = Clock(), Clock()
            with whole("all", device):
                call(clock)
            if turn:
                clocks[name].append(clock if clock.wall else whole)
    return clocks


def medians(clocks: Sequence[Clock], kind: str, size: int) -> dict[str, float]:
    """Median seconds per picture by phase and in "total". kind: "wall" or "cores"; size: pictures of a call."""
    rows = [getattr(clock, kind) for clock in clocks]
    found = {phase: statistics.median(row[phase] for row in rows) / size for phase in rows[0]}
    return found | {"total": statistics.median(sum(row.values()) for row in rows) / size}


def measure_step(variant: Variant, options: Options) -> dict[str, Any]:
    """The numbers MEASURED of one variant, all None when it does not fit into memory.

    The peak is that of this process beyond what it had before it built its networks; on a GPU torch's own count.
    """
    use_available_cores()
    cuda = options.device == "cuda"
    batch = example_batch(options)
    before = 0 if cuda else resident_bytes()
    try:
        training = build_training(variant, options, batch)
        gc.collect()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            forget_peak()  # of building in fp32, which is not part of the step
        [clocks] = interleave({"": lambda _: training()}, options.repeats, torch.device(options.device)).values()
        peak = torch.cuda.max_memory_allocated() if cuda else peak_bytes() - before
        turns = max(1, options.repeats // 2)
        parts = seconds_by_part(training, training.networks, options.device, turns)
        seconds = [clock.wall["all"] for clock in clocks]
        return {
            "samples_per_second": options.batch / statistics.median(seconds),
            "slowest_and_fastest": [options.batch / max(seconds), options.batch / min(seconds)],
            "core_seconds": medians(clocks, "cores", options.batch)["total"],
            "peak_gib": peak / 2**30,
            "flops": count(training),
            "seconds_by_part": {name: spent / options.batch for name, spent in parts.items()},
            "profile": profile(training, options.device),
        }
    except torch.OutOfMemoryError:
        return dict.fromkeys(MEASURED)


class _Samplers:
    """Upstream's sampler and ours on one batch, as calls that take the clock of their turn."""

    def __init__(self, options: Options):
        self.options, self.device = options, torch.device(options.device)
        self.batch, self.seeds = example_batch(options), list(range(options.batch))
        self.guidance, self.negative = options.guidance
        self.model = adapt(build(options), options, None).to(memory_format=torch.channels_last)
        self.bare = build(options)

    @torch.no_grad()
    def difference(self) -> float:
        """`compare_samplers` on two pictures. Raises ArithmeticError when they differ."""
        few = {key: value[:2] for key, value in self.batch.items()}
        prepared = prepare(self.bare, few, self.seeds[: len(few["img"])], self.negative)
        return compare_samplers(self.bare, prepared, self.guidance)

    def calls(self) -> dict[str, Callable[[Clock], None]]:
        """In the precision of the run, by the names of the report; upstream's come first."""
        self.bare.to(self.options.dtype)
        self.model.to(self.options.dtype)
        teachers = [teacher_method(steps, self.guidance, "leading") for steps in self.options.steps]
        return {
            **{upstream_name(n): lambda clock, n=n: self._reference(clock, n) for n in self.options.steps},
            **{
                method.name.removesuffix("-leading"): lambda clock, method=method: self._ours(clock, method)
                for method in (*teachers, student_method(8), student_method(4))
            },
        }

    @torch.no_grad()
    def _reference(self, clock: Clock, steps: int) -> None:
        with clock("prepare", self.device):
            prepared = reference_prepare(self.bare, self.batch, self.seeds, self.negative)
        with clock("denoise", self.device):
            latents = reference_denoise(self.bare, prepared, steps, self.guidance)
        with clock("decode", self.device):
            to_uint8(self.bare.decode(latents))

    @torch.no_grad()
    def _ours(self, clock: Clock, method: Method) -> None:
        with clock("prepare", self.device):
            prepared = prepare(self.model, self.batch, self.seeds, self.negative)
        drawing = draw_prepared(self.model, prepared, method)
        clock.wall.update(drawing.clock.wall)
        clock.cores.update(drawing.clock.cores)


def measure_sampling(options: Options) -> dict[str, Any]:
    """Times of upstream's sampler and of ours by phase, all in turn. Raises ArithmeticError when they differ."""
    use_available_cores()
    samplers = _Samplers(options)
    difference = samplers.difference()
    clocks = interleave(samplers.calls(), max(1, options.repeats // 2), samplers.device)
    rows = {
        name: {"seconds": medians(found, "wall", options.batch), "core_seconds": medians(found, "cores", options.batch)}
        for name, found in clocks.items()
    }
    for row in rows.values():
        row["faster"] = {
            name: {
                phase: rows[name]["seconds"][key] / row["seconds"][key]
                for phase, key in (("denoise", "denoise"), ("end_to_end", "total"))
            }
            for name in map(upstream_name, options.steps)
        }
    return {"latents_differ_by": difference, "methods": rows}


def upstream_name(steps: int) -> str:
    """What the report calls upstream's sampler in so many steps."""
    return f"upstream-{steps}"


def compare(
    rows: Mapping[str, Mapping[str, Any]],
    flops: Mapping[str, Mapping[str, float]],
    gib: Mapping[str, float],
    name: str,
    other: str,
) -> dict[str, float | None]:
    """How many times as fast, as thrifty of core seconds and of FLOPs, and as large a variant is as another.

    None where one of them did not fit. flops and gib: at full size, counted on shapes.
    """
    one, two = rows[name], rows[other]
    found = dict.fromkeys(("faster", "fewer_core_seconds", "fewer_flops", "memory"))
    if one["samples_per_second"] is not None and two["samples_per_second"] is not None:
        found = {
            "faster": one["samples_per_second"] / two["samples_per_second"],
            "fewer_core_seconds": two["core_seconds"] / one["core_seconds"],
            "fewer_flops": sum(two["flops"].values()) / sum(one["flops"].values()),
            "memory": one["peak_gib"] / two["peak_gib"],
        }
    return found | {
        "fewer_flops_full_size": sum(flops[other].values()) / sum(flops[name].values()),
        "memory_full_size": gib[name] / gib[other],
    }


def measure(options: Options, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The parts of the report that options ask for, for JSON; `say` gets a sentence after each.

    Raises ArithmeticError when both sides differ, RuntimeError when a process was killed.
    """
    report = {
        "hardware": describe_hardware(torch.device(options.device)),
        "torch": torch.__version__,
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        **vars(options),
        "config": Path(options.config).name,
    }
    if "training" in options.parts:
        report |= measure_training(options, say)
    if "sampling" in options.parts:
        report["sampling"] = in_own_process(measure_sampling, options)
        say("The samplers agree.")
    return report


def measure_training(options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """What a report says of the training step: measured here, and counted at full size. Raises as `measure`."""
    checks, rate, rows = check_steps(options), in_own_process(matmul_rate, options), {}
    say("The steps agree.")
    for name, variant in VARIANTS.items():
        rows[name] = row = in_own_process(measure_step, variant, options)
        if row["flops"] is not None:
            row["share_of_matmul_rate"] = sum(row["flops"].values()) * row["samples_per_second"] / rate
        say(f"{name}: {row['samples_per_second'] or 0:.3f} samples/s")
    full = replace(options, config=str(FULL_CONFIG), ckpt=None, batch=12, side=512)
    flops = {name: count_on_shapes(variant, full) for name, variant in VARIANTS.items()}
    gib = {name: expected_gib(variant) for name, variant in VARIANTS.items()}
    say("FLOPs and memory at full size are counted.")
    ratios = partial(compare, rows, flops, gib)
    pairs = {name: ratios(name, other_side(name)) for name in VARIANTS if name.startswith("ours")}
    added = {name: ratios(name, base) for name, base in ADDED.items()}
    return {
        "training": {"checks": checks, "matmul_flops": rate, "variants": rows, "pairs": pairs, "added": added},
        "full_size_flops": flops,
        "full_size_gib": gib,
    }
