"""
Draw a panel by several methods and compare them.
"""

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from anytext_lcm import __version__
from anytext_lcm.adapter.lora import adapter_state, load_adapter
from anytext_lcm.drawing.cores import Clock, describe_hardware
from anytext_lcm.drawing.draw import BATCH_SIZE, Prepared, decode, draw_prepared
from anytext_lcm.drawing.methods import Method, SolverMethod, parse_any, reference_of
from anytext_lcm.judging import intervals, reading
from anytext_lcm.judging.defaults import METHODS, REAL, RECONSTRUCTION
from anytext_lcm.judging.panel import PANEL_SEED, REAL_SEED, MethodResult, Panel, PanelJudge, prepare_panel
from anytext_lcm.judging.report import format_table
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.networks import EMBEDDED_GUIDANCE

PACKAGES = ("torch", "numpy", "opencv-python-headless", "pillow", "peft", "rapidocr", "onnxruntime")


def run_method(
    model: AnyText2 | None,
    panel: Panel,
    method: Method | str,
    prepared: Prepared | None = None,
    show: bool = False,
) -> MethodResult:
    """Draws a panel. method: what `parse_any` takes, a Method, "real" (the pictures the prompts were taken
    from) or "reconstruction" (those through the autoencoder, the best that any method can do).

    prepared: of `prepare_panel`, to be shared by methods. Raises ValueError for an unknown method or a
    student without an adapter.
    """
    if method == REAL:
        return MethodResult(REAL, panel.images)
    if method == RECONSTRUCTION:
        clock = Clock()
        with clock("decode", model.device), torch.no_grad():
            rows = [slice(i, i + BATCH_SIZE) for i in range(0, len(panel), BATCH_SIZE)]
            noise = torch.Generator().manual_seed(panel.seed)
            latents = torch.cat([model.encode(panel.batch["img"][r], noise).cpu() for r in rows])
            images = decode(model, latents)
        return MethodResult(RECONSTRUCTION, images, 0, clock.wall, clock.cores)
    method = parse_any(method) if isinstance(method, str) else method
    drawing = draw_prepared(model, prepared or prepare_panel(model, panel), method, show)
    return MethodResult(method.name, drawing.images, drawing.evaluations, drawing.clock.wall, drawing.clock.cores)


def resolve_methods(names: Sequence[str], guidance_scale: float) -> list[Method | str]:
    """Names -> methods, each once, "real" and "reconstruction" as they are. Raises ValueError."""
    unique = list(dict.fromkeys(names))
    if not unique:
        raise ValueError(f"No method was named; there are {', '.join(METHODS)}.")
    return [n if n in (REAL, RECONSTRUCTION) else parse_any(n, guidance_scale) for n in unique]


def compare_methods(
    model: AnyText2,
    panel: Panel,
    methods: Sequence[str] = METHODS,
    guidance_scale: float = EMBEDDED_GUIDANCE,
    negative_prompt: str = "",
    settings: Mapping[str, Any] | None = None,
    show: bool = True,
    more_adapters: Mapping[str, str | Path] | None = None,
) -> tuple[dict[str, Any], dict[str, MethodResult]]:
    """Draws and judges a panel by every method -> the report, ready for JSON, and what was drawn.

    Retention is the share of lines right over that of `reference_of` the methods, on the same lines.
    settings: what else the reader of the report should know. show: progress bars, and the table at the end.
    more_adapters: by label, as of another training seed or objective; the student's methods are drawn by each, as
    student-4@LABEL, and the model's own adapter is put back.
    """
    chosen = resolve_methods(methods, guidance_scale)
    reference = reference_of(chosen)
    for method in chosen:
        if isinstance(method, SolverMethod):
            # Before anything is drawn: diffusers may be missing, and threads that import it side by side fail.
            method.scheduler(NoiseSchedule(model.alphas_cumprod))
    with _own_adapter(model):  # one that does not fit shows here, not after the drawing
        for folder in (more_adapters or {}).values():
            load_adapter(model, folder)
    clock = Clock()
    with clock("prepare", model.device):
        prepared = prepare_panel(model, panel, negative_prompt)
    results: dict[str, MethodResult] = {}
    how: dict[str, dict[str, Any]] = {}
    for method in chosen:
        result = run_method(model, panel, method, prepared, show)
        results[result.name] = result
        how[result.name] = asdict(method) if isinstance(method, Method) else {"name": method}
    for method, result in _by_other_adapters(model, panel, chosen, prepared, more_adapters or {}, show):
        results[result.name] = result
        how[result.name] = asdict(method)

    judged = PanelJudge(panel, panel.seed)
    target = results[reference].images if reference else None
    rows, scores = {}, {}
    for name, result in tqdm(results.items(), desc="judge", leave=False, disable=None if show else True):
        scores[name], measures = judged(result.images, target)
        costs = _costs(result, len(panel), results.get(reference), clock)
        rows[name] = {"method": how[name], **costs, **measures}
    if reference and scores[reference].correct.any():
        for name, row in rows.items():
            row["retention"] = asdict(
                intervals.paired_bootstrap(scores[name].correct, scores[reference].correct, panel.groups)
            )
            row["retention_by_height"] = [
                {"from": low, "to": None if np.isinf(high) else high, **asdict(interval)}
                for low, high, interval in intervals.retention_by_height(scores[name], scores[reference])
            ]
    pairs = _equal_evaluations([m for m in how.values() if "sampler" in m], rows, scores, panel.groups)
    if reference and panel.repeats > 1:
        for row in rows.values():
            row["diversity_to_reference"] = row["diversity"]["value"] / max(rows[reference]["diversity"]["value"], 1e-9)
    report = {
        "anytext_lcm": __version__,
        "settings": {
            **(settings or {}),
            "guidance_scale": guidance_scale,
            "negative_prompt": negative_prompt,
            "batch_size": BATCH_SIZE,
        },
        "panel": {
            "split": "test",
            "prompts": len(panel) // panel.repeats,
            "lines": len(panel.groups) // panel.repeats,
            "sampling_seeds": panel.repeats,
            "seed": panel.seed,
            "prompts_seed": PANEL_SEED + panel.seed,
            "real_seed": REAL_SEED + panel.seed,
            "noise_seeds": [panel.noise_seeds[0], panel.noise_seeds[-1]],
            "texts": panel.texts[: len(panel) // panel.repeats],
        },
        "versions": {"python": platform.python_version()} | {p: metadata.version(p) for p in PACKAGES},
        "hardware": describe_hardware(model.device),
        "reference": reference,
        "prepare_seconds_a_picture": {kind: getattr(clock, kind)["prepare"] / len(panel) for kind in ("wall", "cores")},
        "equal_evaluations": pairs,
        "methods": rows,
    }
    if show:
        print(format_table(report))
    return report, results


def _by_other_adapters(
    model: AnyText2,
    panel: Panel,
    methods: Sequence[Method | str],
    prepared: Prepared,
    folders: Mapping[str, str | Path],
    show: bool,
) -> Iterator[tuple[Method, MethodResult]]:
    """The student's methods by each of the adapters. Raises ValueError for an adapter of other modules or rank than
    the model's.
    """
    with _own_adapter(model):
        for label, folder in folders.items():
            load_adapter(model, folder)
            for method in methods:
                if isinstance(method, Method) and method.adapter:
                    method = replace(method, name=f"{method.name}@{label}")
                    yield method, run_method(model, panel, method, prepared, show)


@contextmanager
def _own_adapter(model: AnyText2) -> Iterator[None]:
    """Puts the weights of the model's adapter back at the end, if it has one."""
    own = {key: value.detach().clone() for key, value in adapter_state(model).items()}
    try:
        yield
    finally:
        for key, parameter in adapter_state(model).items():
            parameter.data.copy_(own[key])


def _equal_evaluations(
    methods: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Mapping[str, Any]],
    scores: Mapping[str, reading.LineScores],
    groups: np.ndarray,
) -> list[dict[str, Any]]:
    """Each of the student's methods beside every one without training that asks the UNet as often: the difference in
    the share of lines right, paired over prompts, and both distances to real pictures.
    """
    students = [m["name"] for m in methods if m["adapter"]]
    rivals = [m["name"] for m in methods if not m["adapter"]]
    pairs = []
    for student in students:
        for rival in rivals:
            if rows[student]["evaluations"] != rows[rival]["evaluations"]:
                continue
            difference = scores[student].correct.astype(float) - scores[rival].correct
            distances = [rows[name]["distribution"] for name in (student, rival)]
            pairs.append(
                {
                    "student": student,
                    "rival": rival,
                    "evaluations": rows[student]["evaluations"],
                    "accuracy_difference": asdict(intervals.bootstrap_mean(difference, groups)),
                    "kernel": [d and d["kernel"]["value"] for d in distances],
                }
            )
    return pairs


def _costs(result: MethodResult, prompts: int, reference: MethodResult | None, preparing: Clock) -> dict[str, Any]:
    """Evaluations, seconds a picture by phase, and how much faster than the reference: denoising, with decoding, and
    end to end with what is encoded once for all methods.
    """
    costs: dict[str, Any] = {
        "evaluations": result.evaluations,
        "seconds_a_picture": {phase: seconds / prompts for phase, seconds in result.wall.items()},
        "core_seconds_a_picture": {phase: seconds / prompts for phase, seconds in result.cores.items()},
    }
    if reference is not None and "denoise" in result.wall:
        for kind in ("wall", "cores"):
            before, after = (getattr(r, kind) for r in (reference, result))
            once = getattr(preparing, kind)["prepare"]
            costs[f"speedup_{kind}"] = {
                "denoise": before["denoise"] / max(after["denoise"], 1e-9),
                "with_decoding": sum(before.values()) / max(sum(after.values()), 1e-9),
                "end_to_end": (once + sum(before.values())) / max(once + sum(after.values()), 1e-9),
            }
    return costs
