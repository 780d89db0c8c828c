"""Command: training step and sampler against the way public scripts write them. `python -m anytext_lcm.speed`

On a CPU the embedded network, on a GPU the full-size one with random weights. Both sides work on the same weights,
pictures, LoRA targets, noise and timesteps; that they answer the same is checked first. Then times (medians, the two
sides in turn), peak memory (each variant in a process of its own), FLOPs by part (torch's counter), a profile. Writes
speed.json, speed.md and speed.png. Imports torch, OmegaConf, psutil and the rooms that
train and draw, with reference, ledger, memory, tables, plots.
"""

import argparse
import copy
import gc
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from anytext_lcm import memory, tables
from anytext_lcm.data.batch import collate
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.distill import DistillStep, seeded_generator
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.ledger import Ledger, attention_flops, now, profile
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


def build(options: Options, device: str | None = None) -> AnyText2:
    """The bare teacher, fp32, its weights laid out as public scripts leave them: the embedded one, one from a
    checkpoint, or random weights of which none is zero, with the embedded tokenizer, since CLIP's vocabulary is not in
    the repository.
    """
    device = device or options.device
    if options.real:
        return load_chosen(options.config, options.ckpt, device).to(memory_format=torch.contiguous_format)
    yaml = OmegaConf.load(options.config)
    yaml.model.params.cond_stage_config.params.version = str(ASSETS / "tokenizer")
    with torch.random.fork_rng(devices=[] if device in ("cpu", "meta") else None):
        torch.manual_seed(0)
        model = AnyText2.from_config(yaml, device=device)
        if device != "meta":
            for parameter in model.parameters():
                if not parameter.detach().any():
                    torch.nn.init.normal_(parameter, std=0.02)
    return model.requires_grad_(False)


def adapt(model: AnyText2, options: Options, targets: Sequence[str] | None) -> AnyText2:
    """An adapter that already says something, so that student and teacher differ. In place."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        attach(model, options.rank, options.rank, targets)
        for key, parameter in adapter_state(model).items():
            if ".lora_B." in key:
                torch.nn.init.normal_(parameter, std=0.01)
    device = model.device
    for parameter in adapter_state(model).values():
        parameter.data = parameter.data.to(device)
    return model


def example_batch(options: Options, count: int | None = None) -> dict[str, Any]:
    """Pictures of the mock data set, to be drawn from nothing as in AnyText2's own training; on the device."""
    dataset = MockDataset(4, image_size=options.side, edit_share=0.0)
    batch = collate([dataset[i % 4] for i in range(count or options.batch)])
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


# -- are both the same? ---------------------------------------------------------------------------------


def compare(before: Training, after: Training) -> dict[str, float]:
    """Loss of both, its difference, and the relative difference (L2) of the adapter's gradients; fp32.

    Raises ArithmeticError when the two do not agree to LOSS_TOLERANCE and GRADIENT_TOLERANCE.
    """
    found = []
    for training in (before, after):
        training.optimizer.zero_grad()
        loss = training.loss(seeded_generator(7))
        loss.backward()
        found.append((float(loss.detach()), torch.cat([p.grad.flatten() for p in training.parameters]).double()))
        training.optimizer.zero_grad()
    (loss, gradient), (other, changed) = found
    result = {
        "reference loss": loss,
        "our loss": other,
        "difference": abs(loss - other),
        "gradient": float((gradient - changed).norm() / gradient.norm()),
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


# -- where it goes --------------------------------------------------------------------------------------


def count(training: Training) -> dict[str, float]:
    """FLOPs of forward and backward pass by part, for one picture: two a multiplication with its addition, matrix
    products and convolutions alone. One kernel of attention that torch's counter does not know is added.
    """
    known = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}
    models = [training.model] + ([] if training.teacher is None else [training.teacher])
    meta = training.model.device.type == "meta"
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        ledger = Ledger(counter.get_total_flops)
        with ledger.watch(*models):
            loss = training.forward(None if meta else seeded_generator(0))
            with ledger.part("backward"):
                loss.backward()
    training.optimizer.zero_grad()
    size = len(training.batch["img_caption"])
    return {name: flops / size for name, flops in ledger.totals.items() if flops}


def count_on_shapes(variant: Variant, options: Options) -> dict[str, float]:
    """`count` of a network too large to run here, on torch's meta device. The recogniser, which reads pixels, is left
    out on both sides.
    """
    model = attach(build(options, "meta"), options.rank, options.rank, variant.targets).to("meta")
    teacher = build(options, "meta") if variant.reference else None
    for network in [model] + ([] if teacher is None else [teacher]):
        network._buffers["alphas_cumprod"] = NoiseSchedule.scaled_linear().alphas_cumprod  # its values are looked at
        network.embedding_manager.line_embeddings = lambda *_, **__: None
    return count(Training(variant, model, teacher, example_batch(options), options))


def seconds_by_part(training: Training, repeats: int) -> dict[str, float]:
    """Seconds of a whole update by part, for one picture."""
    ledger = Ledger(lambda: now(training.options.device))
    with ledger.watch(training.model, *([] if training.teacher is None else [training.teacher])):
        for _ in range(repeats):
            training(ledger.part)
    size = repeats * training.options.batch
    return {name: seconds / size for name, seconds in ledger.totals.items()}


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


# -- time and memory ------------------------------------------------------------------------------------


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


def alone(variant: Variant, options: Options) -> dict[str, Any]:
    """Peak memory of this process beyond what it had before it built its networks, its speed (median of the updates)
    and the kernels that take longest; None for what did not fit. On a GPU torch's own count of allocated memory.
    """
    cuda = options.device == "cuda"
    batch = example_batch(options)
    before = 0 if cuda else _resident(peak=False)
    try:
        model = build(options).to(options.dtype)
        teacher = copy.deepcopy(model) if variant.reference else None
        training = Training(variant, adapt(model, options, variant.targets), teacher, batch, options)
        gc.collect()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            _forget_peak()  # of building in fp32, which is not the step's
        clocks = interleave({"update": lambda clock: training()}, options.repeats, torch.device(options.device))
    except torch.OutOfMemoryError:
        return dict.fromkeys(("peak_gib", "samples_per_second", "slowest_and_fastest", "profile"))
    peak = torch.cuda.max_memory_allocated() if cuda else _resident(peak=True) - before
    return {
        "peak_gib": peak / 2**30,
        **_speeds(clocks["update"], options.batch),
        "profile": profile(training, options.device),
    }


def _speeds(clocks: Sequence[Clock], batch: int) -> dict[str, Any]:
    seconds = [clock.wall["all"] for clock in clocks]
    return {
        "samples_per_second": batch / statistics.median(seconds),
        "slowest_and_fastest": [batch / max(seconds), batch / min(seconds)],
    }


def in_own_process(name: str, options: Options) -> dict[str, Any]:
    """`alone` in a fresh process. Raises RuntimeError with its last words when it fails."""
    words = [f"--{key}={value}" for key, value in vars(options).items() if key != "side" and value is not None]
    command = [sys.executable, "-m", "anytext_lcm.speed", "--alone", name, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} alone failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def expected_gib(variant: Variant, batch: int, config: str = str(FULL_CONFIG), precision: str = "fp16",
                 rank: int = 64) -> float:
    """What `anytext_lcm.memory` counts on shapes; the reference encodes on the way and has a second copy."""
    found = memory.estimate(config, batch, rank, variant.targets, precision, variant.checkpointing,
                            latents=not variant.reference)
    return found["total"] + variant.reference * found["base weights, one copy"]


# -- the run --------------------------------------------------------------------------------------------


def measure_training(options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """Checks, times, parts, FLOPs and profiles of all variants."""
    bare = build(options)
    networks = {  # the layout of the weights is ours, so the reference has its own
        (reference, targets): adapt(copy.deepcopy(bare), options, targets)
        for reference, targets in ((True, None), (False, None), (False, DECODER))
    }
    few = example_batch(options, min(2, options.batch))

    def trainings(batch: dict[str, Any]) -> dict[str, Training]:
        return {
            name: Training(v, networks[v.reference, v.targets], bare if v.reference else None, batch, options)
            for name, v in VARIANTS.items()
        }

    small = trainings(few)
    plain = Training(Variant(True, DECODER), networks[False, DECODER], bare, few, options)
    checks = {
        "all targets": compare(small["reference"], small["ours"]),
        "decoder only": compare(plain, small["ours, decoder only"]),
    }
    say("The steps agree.")
    for model in (bare, *networks.values()):
        model.to(options.dtype)
        for parameter in adapter_state(model).values():
            parameter.data = parameter.data.float()
    variants = trainings(example_batch(options))
    rate = matmul_rate(options)
    device = torch.device(options.device)
    calls = {name: lambda clock, run=run: run() for name, run in variants.items()}
    clocks = interleave(calls, options.repeats, device)
    rows: dict[str, dict[str, Any]] = {}
    for name, training in variants.items():
        wall, cores = (medians(clocks[name], kind, options.batch)["total"] for kind in ("wall", "cores"))
        flops = count(training)
        rows[name] = {
            **_speeds(clocks[name], options.batch),
            "core_seconds": cores,
            "flops": flops,
            "share_of_matmul_rate": sum(flops.values()) / wall / rate,
            "seconds_by_part": seconds_by_part(training, max(1, options.repeats // 2)),
        }
        say(f"{name}: {1 / wall:.2f} samples/s")
    profiles = {name: profile(variants[name], options.device) for name in ("reference, checkpointed", "ours")}
    return {"checks": checks, "matmul_flops": rate, "variants": rows, "profile": profiles}


def measure_sampling(options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """Times of upstream's sampler and of ours, by phase."""
    model = adapt(build(options), options, None).to(memory_format=torch.channels_last)
    device = torch.device(options.device)
    batch, seeds = example_batch(options), list(range(options.batch))
    bare = build(options)
    guidance, negative = options.guidance
    with torch.no_grad():
        few = {key: value[:2] for key, value in batch.items()}
        difference = compare_sampling(bare, prepare(bare, few, seeds[: len(few["img"])], negative), guidance)
    say("The samplers agree.")
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


def _circumstances(options: Options) -> dict[str, Any]:
    return {
        "hardware": describe_hardware(torch.device(options.device)),
        "torch": torch.__version__,
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        **vars(options),
        "config": Path(options.config).name,
    }


def measure_apart(options: Options, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Speed, memory and profile of every variant in a process of its own, one after the other, then the samplers: for
    a network of which several do not fit side by side. That the steps agree is not checked here.

    Raises RuntimeError when a process fails, ArithmeticError when the samplers differ.
    """
    report = _circumstances(options) | {"variants": {}}
    for name in VARIANTS:
        report["variants"][name] = found = in_own_process(name, options)
        say(f"{name}: {found['samples_per_second'] or 0:.3f} samples/s")
    return report | {"sampling": measure_sampling(options, say)}


def measure(options: Options, batches: Sequence[int] = (), say: Callable[[str], None] = print) -> dict[str, Any]:
    """The whole report. batches: of the memory table, on a GPU. Raises ArithmeticError when both sides differ."""
    report = _circumstances(options) | {"training": measure_training(options, say)}
    gc.collect()
    report["sampling"] = measure_sampling(options, say)
    gc.collect()
    if options.device == "cuda":
        torch.cuda.empty_cache()
    for name in VARIANTS:
        report["training"]["variants"][name]["peak_gib"] = in_own_process(name, options)["peak_gib"]
    report["batches"] = [
        {
            "variant": name,
            "batch": batch,
            "expected_gib": expected_gib(VARIANTS[name], batch, options.config, options.precision, options.rank),
            **in_own_process(name, replace(options, batch=batch)),
        }
        for batch in batches
        for name in ("ours", "ours, decoder only")
    ]
    full = replace(
        options, config=str(FULL_CONFIG), ckpt=None, device="meta", batch=12, side=512, precision="no"
    )
    report["full_size_flops"] = {name: count_on_shapes(variant, full) for name, variant in VARIANTS.items()}
    report["full_size_gib"] = {name: expected_gib(variant, 12) for name, variant in VARIANTS.items()}
    say("FLOPs and memory at full size are counted.")
    return report


# -- tables ---------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(tables.table(head, rows)) + "\n"


def _heading(report: Mapping[str, Any]) -> str:
    hardware, load = report["hardware"], report["load_before"]
    machine = hardware.get("gpu") or f"{hardware['cpu']}, {hardware['threads']} threads"
    return (
        f"{report['config']}, {report['side']} px, batch {report['batch']}, rank {report['rank']}, precision "
        f"{report['precision']}, torch {report['torch']}, on {machine}"
        + (f"; load average before {load:.1f}.\n" if load is not None else ".\n")
    )


def _sampling_table(methods: Mapping[str, Any]) -> list[str]:
    return [
        "Sampling, seconds a picture:\n",
        _table(
            ["method", "prepare", "denoise", "decode", "faster, denoise", "faster, end to end"],
            [
                [
                    name, *(f"{row['seconds'][phase]:.3f}" for phase in ("prepare", "denoise", "decode")),
                    f"{row['speedup_denoise']:.1f}x", f"{row['speedup_end_to_end']:.1f}x",
                ]
                for name, row in methods.items()
            ],
        ),
    ]  # fmt: skip


def _profile_tables(profiles: Mapping[str, Any]) -> list[str]:
    text = []
    for name, rows in profiles.items():
        text += [
            f"Where the time goes in one update, {name}:\n",
            _table(["kernel", "share", "calls"], [[r["name"], f"{r['share']:.1%}", str(r["calls"])] for r in rows]),
        ]
    return text


def format_apart(report: Mapping[str, Any]) -> str:
    """What `measure_apart` gives, in Markdown; what did not fit says so."""
    variants = report["variants"]
    slowest = variants["reference, checkpointed"]

    def row(name: str, found: Mapping[str, Any]) -> list[str]:
        if found["peak_gib"] is None:
            return [name, *["does not fit"] * 5]
        low, high = found["slowest_and_fastest"]
        ratios = ["", ""]
        if slowest["peak_gib"] is not None:
            ratios = [
                f"{found['samples_per_second'] / slowest['samples_per_second']:.2f}x",
                f"{found['peak_gib'] / slowest['peak_gib']:.2f}x",
            ]
        seconds, span = 1 / found["samples_per_second"], f"{1 / high:.2f} to {1 / low:.2f}"
        return [name, f"{seconds:.2f}", span, ratios[0], f"{found['peak_gib']:.2f}", ratios[1]]

    head = ["step", "s a picture, median", "fastest to slowest", "faster", "peak GiB", "of the first line's"]
    profiles = {name: variants[name]["profile"] for name in ("reference, checkpointed", "ours")}
    return "\n".join([
        _heading(report),
        f"Training, each in a process of its own, {report['repeats']} updates; compared with the first line:\n",
        _table(head, [row(name, found) for name, found in variants.items()]),
        *_sampling_table(report["sampling"]["methods"]),
        *_profile_tables({name: rows for name, rows in profiles.items() if rows}),
    ])  # fmt: skip


def format_report(report: Mapping[str, Any]) -> str:
    """The report in Markdown."""
    variants = report["training"]["variants"]
    slowest = variants["reference, checkpointed"]["samples_per_second"]
    full = {name: sum(flops.values()) / 1e9 for name, flops in report["full_size_flops"].items()}
    text = [
        _heading(report),
        "Training, for one picture; faster than the first line. Full size is counted on shapes, its memory in fp16 at "
        "batch 12:\n",
        _table(
            ["step", "samples/s", "faster", "core s", "peak GiB", "GFLOP", "of matmul rate", "GFLOP, full size",
             "GiB, full size"],
            [
                [
                    name, f"{row['samples_per_second']:.2f}", f"{row['samples_per_second'] / slowest:.2f}x",
                    f"{row['core_seconds']:.3f}",
                    "does not fit" if row["peak_gib"] is None else f"{row['peak_gib']:.2f}",
                    f"{sum(row['flops'].values()) / 1e9:.2f}",
                    f"{row['share_of_matmul_rate']:.0%}", f"{full[name]:.0f}",
                    f"{report['full_size_gib'][name]:.1f}",
                ]
                for name, row in variants.items()
            ],
        ),
        *_sampling_table(report["sampling"]["methods"]),
    ]  # fmt: skip
    names = list(dict.fromkeys(part for flops in report["full_size_flops"].values() for part in flops))
    text += [
        "GFLOP for one picture at full size, by part:\n",
        _table(
            ["part", *full],
            [
                [part, *(f"{flops.get(part, 0) / 1e9:.0f}" for flops in report["full_size_flops"].values())]
                for part in names
            ],
        ),
    ]
    text += _profile_tables(report["training"]["profile"])
    if report["batches"]:
        text += [
            "Memory by batch:\n",
            _table(
                ["step", "batch", "expected GiB", "peak GiB", "samples/s"],
                [
                    [
                        row["variant"], str(row["batch"]), f"{row['expected_gib']:.1f}",
                        *("does not fit" if v is None else f"{v:.2f}"
                          for v in (row["peak_gib"], row["samples_per_second"])),
                    ]
                    for row in report["batches"]
                ],
            ),
        ]  # fmt: skip
    return "\n".join(text)


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
    parser.add_argument("--batches", type=int, nargs="*", default=[3, 6, 12], help="of the memory table, on a GPU")
    parser.add_argument("--rank", type=int, default=64, help="of the adapter")
    parser.add_argument("--repeats", type=int, default=7, help="timed turns of each step; half as many of the samplers")
    parser.add_argument("--steps", type=int, default=50, help="of the teacher's sampler")
    parser.add_argument("--out", default="outputs/speed", help="folder of speed.json, speed.md and speed.png")
    parser.add_argument("--apart", action="store_true", help="every variant in a process of its own, for a network of "
        "which several do not fit side by side: apart.json and apart.md")  # fmt: skip
    parser.add_argument("--alone", choices=VARIANTS, help="one variant in this process: prints its peak memory, its "
        "speed and its profile as JSON")  # fmt: skip
    return parser


def read_options(arguments: argparse.Namespace) -> Options:
    """Raises ValueError or FileNotFoundError for what the flags ask and cannot be."""
    device = arguments.device or default_device().type
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("There is no GPU here; nothing was measured.")
    cuda = device == "cuda"
    config = arguments.config or str(FULL_CONFIG if cuda else EMBEDDED_CONFIG)
    batch = (12 if cuda else 4) if arguments.batch is None else arguments.batch
    for name, value in (("batch", batch), ("rank", arguments.rank), ("repeats", arguments.repeats),
                        ("steps", arguments.steps), *(("batches", b) for b in arguments.batches)):  # fmt: skip
        if value < 1:
            raise ValueError(f"--{name} must be a positive integer, not {value}.")
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
        if arguments.alone:
            print(json.dumps(alone(VARIANTS[arguments.alone], options)))
            return 0
        folder = check_writable(Path(arguments.out) / "speed.json")
        if arguments.apart:
            report = measure_apart(options)
        else:
            report = measure(options, arguments.batches if options.device == "cuda" else ())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (ArithmeticError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    kind, table = ("apart", format_apart(report)) if arguments.apart else ("speed", format_report(report))
    for name, text in ((f"{kind}.json", json.dumps(report, indent=2) + "\n"), (f"{kind}.md", table)):
        with whole_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if not arguments.apart:
        from anytext_lcm.plots import speed_chart

        with whole_file(folder / "speed.png") as temporary:
            speed_chart(report).savefig(temporary)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
