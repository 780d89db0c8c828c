"""Command: training step and sampler against the way public scripts write them. `python -m anytext_lcm.speed`

On a CPU the embedded network, on a GPU the full-size one with random weights. Both sides work on the same weights,
pictures, LoRA targets, noise and timesteps. First the losses and gradients of both sides are compared. Then each
variant of the step runs in a process of its own, which gives its time, peak memory, FLOPs by part and profile. Writes
speed.json, speed.md and speed.png.
"""

import argparse
import copy
import gc
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from omegaconf import OmegaConf
from torch import Tensor

from anytext_lcm import memory, tables
from anytext_lcm.data.batch import collate
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.distill import DistillStep, seeded_generator
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.ledger import flops_by_part, now, profile, seconds_by_part
from anytext_lcm.lora import adapter_state, attach
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.outputs import check_writable, whole_file
from anytext_lcm.pipeline import (
    ASSETS,
    EMBEDDED_CONFIG,
    Clock,
    Prepared,
    default_device,
    defaults_for,
    denoise,
    describe_hardware,
    draw,
    load_chosen,
    prepare,
    student_method,
    teacher_method,
    to_uint8,
    use_available_cores,
)
from anytext_lcm.reference import reference_denoise, reference_prepare, reference_step
from anytext_lcm.settings import PRECISIONS

FULL_CONFIG = EMBEDDED_CONFIG.with_name("anytext2_sd15.yaml")
DECODER = ("unet_decoder",)
# Same noise, same timesteps: what may differ is the order of summation, on either side.
LOSS_TOLERANCE, GRADIENT_TOLERANCE, LATENT_TOLERANCE = 1e-5, 1e-3, 1e-3


@dataclass(frozen=True)
class Variant:
    """One way of training: the reference step or ours, which layers are adapted, what is kept for the backward pass."""

    reference: bool
    targets: tuple[str, ...] | None = None
    checkpointing: bool = False


VARIANTS = {
    "reference, checkpointed": Variant(True, checkpointing=True),
    "reference": Variant(True),
    "ours": Variant(False),
    "ours, checkpointed": Variant(False, checkpointing=True),
    "ours, decoder only": Variant(False, DECODER),
}

MEASURED = (
    "samples_per_second",
    "slowest_and_fastest",
    "core_seconds",
    "peak_gib",
    "flops",
    "seconds_by_part",
    "profile",
)

# -- what is measured -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What the command was asked for; `batch` pictures at once, `side` pixels."""

    config: str
    ckpt: str | None
    device: str
    precision: str
    batch: int
    rank: int
    repeats: int
    steps: int
    side: int

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision]

    @property
    def real(self) -> bool:
        """Whether there are weights to load."""
        return bool(self.ckpt) or defaults_for(self.config).checkpoint is not None

    @property
    def guidance(self) -> tuple[float, str]:
        """Guidance scale and negative prompt. None of the latter for random weights: the embedded tokenizer would make
        of it several times the tokens that CLIP's does.
        """
        network = defaults_for(self.config)
        return network.guidance_scale, network.negative_prompt if self.real else ""


def build(options: Options) -> AnyText2:
    """The bare teacher, fp32, its weights laid out as public scripts leave them: the embedded one, one from a
    checkpoint, or random weights of which none is zero, with the embedded tokenizer, since CLIP's vocabulary is not in
    the repository.
    """
    if options.real:
        return load_chosen(options.config, options.ckpt, options.device).to(memory_format=torch.contiguous_format)
    yaml = OmegaConf.load(options.config)
    yaml.model.params.cond_stage_config.params.version = str(ASSETS / "tokenizer")
    with torch.random.fork_rng(devices=[] if options.device in ("cpu", "meta") else None):
        torch.manual_seed(0)
        model = AnyText2.from_config(yaml, device=options.device)
        if options.device != "meta":
            for parameter in model.parameters():
                if not parameter.detach().any():
                    torch.nn.init.normal_(parameter, std=0.02)
    return model.requires_grad_(False)


def adapt(model: AnyText2, options: Options, targets: Sequence[str] | None) -> AnyText2:
    """Attaches an adapter whose B is not zero, so that student and teacher differ. In place."""
    device = model.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        attach(model, options.rank, options.rank, targets)
        for key, parameter in adapter_state(model).items():
            if ".lora_B." in key:
                torch.nn.init.normal_(parameter, std=0.01)
    return model.to(device)  # the adapter was made on the CPU


def example_batch(options: Options) -> dict[str, Any]:
    """Pictures of the mock data set, to be drawn from nothing as in AnyText2's own training; on the device."""
    dataset = MockDataset(4, image_size=options.side, edit_share=0.0)
    batch = collate([dataset[i % 4] for i in range(options.batch)])
    device = "cpu" if options.device == "meta" else options.device
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


class Training:
    """A variant with its networks and its batch: `loss` is a step without its update, a call a whole update."""

    def __init__(
        self, variant: Variant, model: AnyText2, teacher: AnyText2 | None, batch: dict[str, Any], options: Options
    ):
        """model: with its adapter; teacher: the second copy, which the reference alone needs."""
        self.variant, self.model, self.teacher, self.batch = variant, model, teacher, batch
        self.options, self.step = options, None
        if not variant.reference:
            guidance, negative = options.guidance
            self.step = DistillStep(model, guidance_scale=guidance, negative_prompt=negative).eval()
            vae = model.to(memory_format=torch.channels_last).first_stage_model  # as `load_teacher` lays it out
            with torch.no_grad():  # what `cache_latents` writes once a data set
                moments = vae.encode(batch["img"].to(model.device, model.dtype))
            self.step.blank(batch)  # encoded once a run, so not in the measured step
            self.batch = batch | {"latent_moments": torch.cat(moments, dim=1)}
        self.networks = [model] if teacher is None else [model, teacher]
        self.parameters = list(adapter_state(model).values())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-6, weight_decay=0.0)
        fp16 = options.precision == "fp16" and options.device == "cuda"
        self.scaler = torch.amp.GradScaler(options.device, enabled=fp16) if fp16 else None
        self.updates = 0

    def loss(self, generator: torch.Generator | None) -> Tensor:
        for trunk in (self.model.model.diffusion_model, self.model.control_model):
            trunk.gradient_checkpointing = self.variant.checkpointing
        if self.step is not None:
            return self.step(self.batch, generator).loss
        return reference_step(self.model, self.teacher, self.batch, generator, *self.options.guidance)

    def forward(self, generator: torch.Generator | None) -> Tensor:
        """`loss` in the precision of the run, as it is trained."""
        if self.options.precision == "no":
            return self.loss(generator)
        with torch.autocast(self.options.device, self.options.dtype):
            return self.loss(generator)

    def __call__(self, around: Callable[[str], Any] = nullcontext) -> None:
        """Forward, backward, clip, AdamW; around(name) is a context for the backward pass."""
        loss = self.forward(seeded_generator(0, self.updates))
        with around("backward"):
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad()
        self.updates += 1

    def loss_and_gradient(self) -> tuple[float, np.ndarray]:
        """Of one fixed step, fp32; the gradient of the whole adapter as one vector."""
        self.optimizer.zero_grad()
        loss = self.loss(seeded_generator(7))
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in self.parameters])
        self.optimizer.zero_grad()
        return float(loss.detach()), gradient.double().cpu().numpy()


def build_training(variant: Variant, options: Options, batch: dict[str, Any]) -> Training:
    """A variant with networks of its own in the precision of the run; the adapter is fp32."""
    model = build(options).to(options.dtype)
    teacher = copy.deepcopy(model) if variant.reference else None
    return Training(variant, adapt(model, options, variant.targets), teacher, batch, options)


# -- are both the same? ---------------------------------------------------------------------------------


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


# -- FLOPs at full size ---------------------------------------------------------------------------------


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
    """At full size in fp16, as `anytext_lcm.memory` counts it on shapes; the reference encodes on the way and has a
    second copy of the network.
    """
    found = memory.estimate(
        FULL_CONFIG, batch, 64, variant.targets, "fp16", variant.checkpointing, latents=not variant.reference
    )
    return found["total"] + variant.reference * found["base weights, one copy"]


# -- time and memory ------------------------------------------------------------------------------------


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
        drawing = draw(model, prepared, method)
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


# -- the report -----------------------------------------------------------------------------------------


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


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(tables.table(head, rows)) + "\n"


def _step_row(name: str, report: Mapping[str, Any]) -> list[str]:
    """A line of the table of steps; a variant that did not fit says so."""
    variants = report["training"]["variants"]
    row, first = variants[name], next(iter(variants.values()))["samples_per_second"]
    full = [f"{sum(report['full_size_flops'][name].values()) / 1e9:.0f}", f"{report['full_size_gib'][name]:.1f}"]
    if row["samples_per_second"] is None:
        return [name, *["does not fit"] * 7, *full]
    low, high = row["slowest_and_fastest"]
    return [
        name,
        f"{row['samples_per_second']:.3g}",
        f"{low:.3g} to {high:.3g}",
        f"{row['samples_per_second'] / first:.2f}x" if first else "",
        f"{row['core_seconds']:.3f}",
        f"{row['peak_gib']:.2f}",
        f"{sum(row['flops'].values()) / 1e9:.2f}",
        f"{row['share_of_matmul_rate']:.0%}",
        *full,
    ]


STEP_HEAD = (
    "step",
    "samples/s",
    "slowest to fastest",
    "faster",
    "core s",
    "peak GiB",
    "GFLOP",
    "of matmul rate",
    "GFLOP, full size",
    "GiB, full size",
)


def format_report(report: Mapping[str, Any]) -> str:
    """The report in Markdown."""
    variants, full = report["training"]["variants"], report["full_size_flops"]
    hardware, load = report["hardware"], report["load_before"]
    machine = hardware.get("gpu") or f"{hardware['cpu']}, {hardware['threads']} threads"
    sampling = [
        [
            name,
            *(f"{row['seconds'][phase]:.3f}" for phase in ("prepare", "denoise", "decode")),
            f"{row['speedup_denoise']:.1f}x",
            f"{row['speedup_end_to_end']:.1f}x",
        ]
        for name, row in report["sampling"]["methods"].items()
    ]
    parts = dict.fromkeys(part for flops in full.values() for part in flops)
    text = [
        f"{report['config']}, {report['side']} px, batch {report['batch']}, rank {report['rank']}, precision "
        f"{report['precision']}, torch {report['torch']}, on {machine}"
        + (f"; load average before {load:.1f}.\n" if load is not None else ".\n"),
        f"Training, for one picture, each step in a process of its own, median of {report['repeats']} updates; faster "
        "than the first line. Full size is counted on shapes, its memory in fp16 at batch 12:\n",
        _table(STEP_HEAD, [_step_row(name, report) for name in variants]),
        "Sampling, seconds a picture:\n",
        _table(["method", "prepare", "denoise", "decode", "faster, denoise", "faster, end to end"], sampling),
        "GFLOP for one picture at full size, by part:\n",
        _table(
            ["part", *full],
            [[part, *(f"{flops.get(part, 0) / 1e9:.0f}" for flops in full.values())] for part in parts],
        ),
    ]
    for name in ("reference, checkpointed", "ours"):
        rows = [[row["name"], f"{row['share']:.1%}", str(row["calls"])] for row in variants[name]["profile"] or ()]
        text += [f"Where the time goes in one update, {name}:\n", _table(["kernel", "share", "calls"], rows)]
    return "\n".join(text)


def _fitting(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report without the steps that did not fit, for the chart."""
    variants = {name: row for name, row in report["training"]["variants"].items() if row["samples_per_second"]}
    return {**report, "training": {**report["training"], "variants": variants}}


# -- the command ----------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anytext_lcm.speed", description=__doc__.splitlines()[0].removeprefix("Command: ")
    )
    parser.add_argument("--config", help="network; by default the embedded one, on a GPU the full-size one")
    parser.add_argument("--ckpt", help="its weights; without them random ones, but for the embedded network")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="by default a GPU where there is one")
    parser.add_argument("--precision", choices=PRECISIONS, help="by default no on a CPU, bf16 on a GPU")
    parser.add_argument("--batch", type=int, help="pictures at once; by default 4, on a GPU 12")
    parser.add_argument("--rank", type=int, default=64, help="of the adapter")
    parser.add_argument("--repeats", type=int, default=7, help="timed turns of each step; half as many of the samplers")
    parser.add_argument("--steps", type=int, default=50, help="of the teacher's sampler")
    parser.add_argument("--out", default="outputs/speed", help="folder of speed.json, speed.md and speed.png")
    return parser


def read_options(arguments: argparse.Namespace) -> Options:
    """Raises ValueError or FileNotFoundError for what the flags ask and cannot be."""
    device = arguments.device or default_device().type
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("There is no GPU here; nothing was measured.")
    cuda = device == "cuda"
    config = arguments.config or str(FULL_CONFIG if cuda else EMBEDDED_CONFIG)
    batch = (12 if cuda else 4) if arguments.batch is None else arguments.batch
    given = vars(arguments) | {"batch": batch}
    for name in ("batch", "rank", "repeats", "steps"):
        if given[name] < 1:
            raise ValueError(f"--{name} must be a positive integer, not {given[name]}.")
    precision = arguments.precision or ("bf16" if cuda else "no")
    if precision == "fp16" and not cuda:
        raise ValueError("--precision fp16 needs a GPU; use bf16 or no on a CPU.")
    side = defaults_for(config).size[0]
    return Options(
        config, arguments.ckpt, device, precision, batch, arguments.rank, arguments.repeats, arguments.steps, side
    )


def main(words: Sequence[str] | None = None) -> int:
    """Exit code 0; 2 with one sentence on stderr for what the flags ask and cannot be, 1 when the two sides differ."""
    arguments = build_parser().parse_args(words)
    use_available_cores()
    try:
        options = read_options(arguments)
        folder = check_writable(Path(arguments.out) / "speed.json")
        report = measure(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (ArithmeticError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    from anytext_lcm.plots import speed_chart  # matplotlib, for this alone

    table = format_report(report)
    for name, text in (("speed.json", json.dumps(report, indent=2) + "\n"), ("speed.md", table)):
        with whole_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    with whole_file(folder / "speed.png") as temporary:
        speed_chart(_fitting(report)).savefig(temporary)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
