"""
Measure each variant in a process of its own: seconds, memory, FLOPs; check that their numbers agree.
"""

import gc
import multiprocessing
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from anytext_lcm.drawing.cores import Clock, describe_hardware, use_available_cores
from anytext_lcm.drawing.draw import Prepared, denoise, draw_prepared, prepare, to_uint8
from anytext_lcm.drawing.methods import student_method, teacher_method
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.timing.by_part import flops_by_part, now, profile, seconds_by_part
from anytext_lcm.timing.public_script import reference_denoise, reference_prepare
from anytext_lcm.timing.variants import (
    DECODER,
    FULL_CONFIG,
    MEASURED,
    VARIANTS,
    Options,
    Training,
    Variant,
    adapt,
    build,
    build_training,
    example_batch,
)
from anytext_lcm.training import memory
from anytext_lcm.training.data_order import seeded_generator
from anytext_lcm.training.settings import TrainSettings

# Same noise, same timesteps: what may differ is the order of summation, on either side.
LOSS_TOLERANCE, GRADIENT_TOLERANCE, LATENT_TOLERANCE = 1e-5, 1e-3, 1e-3


def compare(before: tuple[float, np.ndarray], after: tuple[float, np.ndarray]) -> dict[str, float]:
    """Loss of both, its difference, and the relative difference (L2) of the adapter's gradients; from
    `loss_and_gradient` of the reference and of our step.

    Raises ArithmeticError when the two do not agree to LOSS_TOLERANCE and GRADIENT_TOLERANCE.
    """
    (loss, gradient), (other, changed) = before, after
    result = {
        "reference loss": loss,
        "our loss": other,
        "difference": abs(loss - other),
        "gradient": float(np.linalg.norm(gradient - changed) / np.linalg.norm(gradient)),
    }
    if not (result["difference"] <= LOSS_TOLERANCE and result["gradient"] <= GRADIENT_TOLERANCE):
        raise ArithmeticError(
            f"The reference step and ours differ: losses {loss:.8f} and {other:.8f}, "
            f"gradients by {result['gradient']:.1e}; the times of two different things are not compared."
        )
    return result


def compare_sampling(model: AnyText2, prepared: Prepared, guidance_scale: float, steps: int = 4) -> float:
    """Largest difference of the latents after a few DDIM steps, relative to their largest number; fp32.

    Raises ArithmeticError when it exceeds LATENT_TOLERANCE.
    """
    before = reference_denoise(model, prepared, steps, guidance_scale)
    after = denoise(model, prepared, teacher_method(steps, guidance_scale, "leading"))
    difference = float((before - after).abs().max() / before.abs().max())
    if not difference <= LATENT_TOLERANCE:
        raise ArithmeticError(f"The reference sampler and ours differ by {difference:.1e} of the largest latent.")
    return difference


def count(training: Training) -> dict[str, float]:
    """FLOPs of forward and backward pass by part, for one picture; see `flops_by_part`."""
    generator = None if training.options.device == "meta" else seeded_generator(0)
    found = flops_by_part(lambda: training.forward(generator), training.networks)
    training.optimizer.zero_grad()
    return {name: flops / training.options.batch for name, flops in found.items()}


def count_on_shapes(variant: Variant, options: Options) -> dict[str, float]:
    """`count` of a network too large to run here, on torch's meta device. The recogniser, which reads pixels, is left
    out on both sides.
    """
    options = replace(options, device="meta", precision="no")
    model = adapt(build(options), options, variant.targets)
    teacher = build(options) if variant.reference else None
    for network in [model] + ([] if teacher is None else [teacher]):
        network._buffers["alphas_cumprod"] = NoiseSchedule.scaled_linear().alphas_cumprod  # its values are looked at
        network.embedding_manager.line_embeddings = lambda *_, **__: None
    return count(Training(variant, model, teacher, example_batch(options), options))


def expected_gib(variant: Variant, batch: int = 12) -> float:
    """At full size in fp16, as `training/memory.py` counts it on shapes; the reference encodes on the way and has a
    second copy of the network.
    """
    settings = TrainSettings(
        config=str(FULL_CONFIG),
        output_dir="",
        train_batch_size=batch,
        lora_targets=variant.targets,
        mixed_precision="fp16",
        gradient_checkpointing=variant.checkpointing,
        latents=None if variant.reference else "stored",
    )
    found = memory.estimate(settings)
    return found["total"] + variant.reference * found["base weights, one copy"]


def matmul_rate(options: Options) -> float:
    """FLOP/s of square matrix products in the precision of the run: the best of a few, what this device can do."""
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
    """Each call in turn, over and over, so that what disturbs the machine disturbs all; one turn before that warms up.

    A call is given the clock of its turn; one that does not use it is timed as a whole, in the phase "all".
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
    """Seconds a picture by phase, and in "total"; kind: wall or cores."""
    rows = [getattr(clock, kind) for clock in clocks]
    found = {phase: statistics.median(row[phase] for row in rows) / size for phase in rows[0]}
    return found | {"total": statistics.median(sum(row.values()) for row in rows) / size}


def _resident(peak: bool) -> int:
    """Bytes of this process in memory, now or at most. The kernel's mark: getrusage would count the parent's too."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        [line] = [line for line in lines if line.startswith("VmHWM:" if peak else "VmRSS:")]
        return 1024 * int(line.split()[1])
    except OSError:  # not Linux: the current size stands in for the largest one
        return psutil.Process().memory_info().rss


def _forget_peak() -> None:
    """From here on the kernel's mark is of what follows. Linux; elsewhere there is no mark to forget."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def in_own_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """work(*arguments) in a fresh process, which inherits neither memory nor caches. Raises what it raises, and
    RuntimeError when the process was killed.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(work, *arguments).result()
        except BrokenProcessPool as error:
            raise RuntimeError("A variant's process was killed, most likely for lack of memory.") from error


def loss_and_gradient(variant: Variant, options: Options) -> tuple[float, np.ndarray]:
    use_available_cores()
    return build_training(variant, options, example_batch(options)).loss_and_gradient()


def measure_step(variant: Variant, options: Options) -> dict[str, Any]:
    """Speed, peak memory, FLOPs and seconds by part, and the kernels that take longest, of one variant; None for each
    when it did not fit. Memory is that of this process beyond what it had before it built its networks; on a GPU
    torch's own count of what was allocated.
    """
    use_available_cores()
    cuda = options.device == "cuda"
    batch = example_batch(options)
    before = 0 if cuda else _resident(peak=False)
    try:
        training = build_training(variant, options, batch)
        gc.collect()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            _forget_peak()  # of building in fp32, which is not the step's
        [clocks] = interleave({"": lambda _: training()}, options.repeats, torch.device(options.device)).values()
        peak = torch.cuda.max_memory_allocated() if cuda else _resident(peak=True) - before
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


def measure_sampling(options: Options) -> dict[str, Any]:
    """Times of upstream's sampler and of ours by phase, all in turn. Raises ArithmeticError when they differ."""
    use_available_cores()
    model = adapt(build(options), options, None).to(memory_format=torch.channels_last)
    device = torch.device(options.device)
    batch, seeds = example_batch(options), list(range(options.batch))
    bare = build(options)
    guidance, negative = options.guidance
    with torch.no_grad():
        few = {key: value[:2] for key, value in batch.items()}
        difference = compare_sampling(bare, prepare(bare, few, seeds[: len(few["img"])], negative), guidance)
    bare.to(options.dtype)
    model.to(options.dtype)

    @torch.no_grad()
    def reference(clock: Clock, keep: bool) -> None:
        with clock("prepare", device):
            prepared = reference_prepare(bare, batch, seeds, negative)
        with clock("denoise", device):
            latents = reference_denoise(bare, prepared, options.steps, guidance, keep)
        with clock("decode", device):
            to_uint8(bare.decode(latents))

    @torch.no_grad()
    def ours(clock: Clock, method: Any) -> None:
        with clock("prepare", device):
            prepared = prepare(model, batch, seeds, negative)
        drawing = draw_prepared(model, prepared, method)
        for kind in ("wall", "cores"):
            getattr(clock, kind).update(getattr(drawing.clock, kind))

    methods = (teacher_method(options.steps, guidance, "leading"), student_method(8), student_method(4))
    calls: dict[str, Callable[[Clock], None]] = {
        f"upstream-{options.steps}": lambda clock: reference(clock, keep=True),
        f"upstream-{options.steps}, WriteNet in each call": lambda clock: reference(clock, keep=False),
    }
    calls |= {method.name.removesuffix("-leading"): lambda clock, m=method: ours(clock, m) for method in methods}
    clocks = interleave(calls, max(1, options.repeats // 2), device)
    rows = {
        name: {"seconds": medians(found, "wall", options.batch), "core_seconds": medians(found, "cores", options.batch)}
        for name, found in clocks.items()
    }
    first = next(iter(rows.values()))
    for kind, key in (("denoise", "denoise"), ("end_to_end", "total")):
        for row in rows.values():
            row[f"speedup_{kind}"] = first["seconds"][key] / row["seconds"][key]
    return {"latents_differ_by": difference, "methods": rows}


def check_steps(options: Options) -> dict[str, dict[str, float]]:
    """`compare` of the reference and our step, with all targets and with the decoder's, on two pictures in fp32."""
    small = replace(options, batch=min(2, options.batch), precision="no")
    return {
        name: compare(*(in_own_process(loss_and_gradient, Variant(by, targets), small) for by in (True, False)))
        for name, targets in (("all targets", None), ("decoder only", DECODER))
    }


def measure(options: Options, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The whole report. Raises ArithmeticError when both sides differ, RuntimeError when a process is killed."""
    report = {
        "hardware": describe_hardware(torch.device(options.device)),
        "torch": torch.__version__,
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        **vars(options),
        "config": Path(options.config).name,
    }
    checks, rate, rows = check_steps(options), in_own_process(matmul_rate, options), {}
    say("The steps agree.")
    for name, variant in VARIANTS.items():
        rows[name] = row = in_own_process(measure_step, variant, options)
        if row["flops"] is not None:
            row["share_of_matmul_rate"] = sum(row["flops"].values()) * row["samples_per_second"] / rate
        say(f"{name}: {row['samples_per_second'] or 0:.3f} samples/s")
    report["training"] = {"checks": checks, "matmul_flops": rate, "variants": rows}
    report["sampling"] = in_own_process(measure_sampling, options)
    say("The samplers agree.")
    full = replace(options, config=str(FULL_CONFIG), ckpt=None, batch=12, side=512)
    report["full_size_flops"] = {name: count_on_shapes(variant, full) for name, variant in VARIANTS.items()}
    report["full_size_gib"] = {name: expected_gib(variant) for name, variant in VARIANTS.items()}
    say("FLOPs and memory at full size are counted.")
    return report
