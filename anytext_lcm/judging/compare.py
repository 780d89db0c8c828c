"""Draw a panel by several methods, judge what they drew, and report it: `draw_all`, `judge_all`, `report_of`."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
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
from anytext_lcm.drawing.methods import SOLVERS, Method, parse_method, reference_of
from anytext_lcm.drawing.solvers import make_scheduler
from anytext_lcm.judging import intervals
from anytext_lcm.judging.defaults import METHODS, REAL, RECONSTRUCTION
from anytext_lcm.judging.judge import REAL_SEED, Judgement
from anytext_lcm.judging.panel import PANEL_SEED, MethodResult, Panel, prepare_panel
from anytext_lcm.judging.tables import plain_table
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.networks import EMBEDDED_GUIDANCE

PACKAGES = ("torch", "numpy", "opencv-python-headless", "pillow", "peft", "rapidocr", "onnxruntime")


def compare_methods(
    model: AnyText2,
    panel: Panel,
    methods: Sequence[str] = METHODS,
    guidance_scale: float = EMBEDDED_GUIDANCE,
    negative_prompt: str = "",
    settings: Mapping[str, Any] | None = None,
    show: bool = True,
    more_adapters: Mapping[str, str | Path] | None = None,
    table: bool = True,
    own_adapters: Mapping[str, str | Path] | None = None,
) -> tuple[dict[str, Any], dict[str, MethodResult]]:
    """Draw and judge a panel by every method: the report, ready for JSON, and what was drawn.

    guidance_scale, negative_prompt: the teacher's. settings: more for the report. show: progress bars and, unless
    table is false, the table at the end. more_adapters: folders by label; the student's methods are drawn with each
    too, as student-4@LABEL, and the model's own adapter is put back. own_adapters: folders by name of the methods that
    are not drawn with the model's own. Raises ValueError for unknown methods and for adapters that do not fit.
    """
    chosen = resolve_methods(methods, guidance_scale)
    drawn = draw_all(model, panel, chosen, negative_prompt, more_adapters or {}, show, own_adapters or {})
    judged = judge_all(panel, drawn, show)
    asked = {**(settings or {}), "guidance_scale": guidance_scale, "negative_prompt": negative_prompt}
    report = report_of(panel, drawn, judged, asked, describe_hardware(model.device))
    if show and table:
        print(plain_table(report))
    return report, drawn.results


def resolve_methods(names: Sequence[str], guidance_scale: float) -> list[Method | str]:
    """Names -> methods, each once, "real" and "reconstruction" as they are. Raises ValueError."""
    unique = list(dict.fromkeys(names))
    if not unique:
        raise ValueError(f"No method was named; there are {', '.join(METHODS)}.")
    return [n if n in (REAL, RECONSTRUCTION) else parse_method(n, guidance_scale) for n in unique]


# -- draw -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DrawnPanel:
    """What the methods drew, by name; the one that others are compared with; the time that all of them share."""

    results: dict[str, MethodResult]
    reference: str | None
    preparing: Clock


def draw_all(
    model: AnyText2,
    panel: Panel,
    methods: Sequence[Method | str],
    negative_prompt: str,
    more_adapters: Mapping[str, str | Path],
    show: bool = False,
    own_adapters: Mapping[str, str | Path] = {},
) -> DrawnPanel:
    """Draw a panel by every method, then by the student's with more adapters. Arguments as in `compare_methods`.

    Raises ValueError, before anything is drawn, for an adapter of other modules or rank and for missing diffusers.
    """
    for method in methods:
        if isinstance(method, Method) and method.sampler in SOLVERS:
            # diffusers may be missing, and threads that import it side by side fail.
            make_scheduler(method, NoiseSchedule(model.alphas_cumprod))
    with _own_adapter(model):
        for folder in dict.fromkeys([*own_adapters.values(), *more_adapters.values()]):
            load_adapter(model, folder)
    clock = Clock()
    with clock("prepare", model.device):
        prepared = prepare_panel(model, panel, negative_prompt)
    results = []
    for method in methods:
        folder = own_adapters.get(method.name) if isinstance(method, Method) else None
        with nullcontext() if folder is None else _own_adapter(model):
            if folder is not None:
                load_adapter(model, folder)
            results.append(run_method(model, panel, method, prepared, show))
    students = [method for method in methods if isinstance(method, Method) and method.adapter]
    with _own_adapter(model):
        for label, folder in more_adapters.items():
            load_adapter(model, folder)
            named = [replace(method, name=f"{method.name}@{label}") for method in students]
            results += [run_method(model, panel, method, prepared, show) for method in named]
    return DrawnPanel({result.name: result for result in results}, reference_of(methods), clock)


def run_method(
    model: AnyText2 | None,
    panel: Panel,
    method: Method | str,
    prepared: Prepared | None = None,
    show: bool = False,
) -> MethodResult:
    """Draw a panel by one method: a Method or its name, "real" (the pictures the prompts were taken from) or
    "reconstruction" (those through the autoencoder, the best that any method can do).

    prepared: of `prepare_panel`, shared by methods. Raises ValueError for an unknown method or a student without an
    adapter.
    """
    if method == REAL:
        return MethodResult(REAL, panel.images, method={"name": REAL})
    if method == RECONSTRUCTION:
        clock = Clock()
        with clock("decode", model.device), torch.no_grad():
            rows = [slice(i, i + BATCH_SIZE) for i in range(0, len(panel), BATCH_SIZE)]
            noise = torch.Generator().manual_seed(panel.seed)
            latents = torch.cat([model.encode(panel.batch["img"][r], noise).cpu() for r in rows])
            images = decode(model, latents)
        return MethodResult(RECONSTRUCTION, images, 0, clock.wall, clock.cores, {"name": RECONSTRUCTION})
    method = parse_method(method) if isinstance(method, str) else method
    drawing = draw_prepared(model, prepared or prepare_panel(model, panel), method, show)
    clock = drawing.clock
    return MethodResult(method.name, drawing.images, drawing.evaluations, clock.wall, clock.cores, asdict(method))


@contextmanager
def _own_adapter(model: AnyText2) -> Iterator[None]:
    """Puts the weights of the model's adapter back at the end, if it has one."""
    own = {key: value.detach().clone() for key, value in adapter_state(model).items()}
    try:
        yield
    finally:
        for key, parameter in adapter_state(model).items():
            parameter.data.copy_(own[key])


# -- judge ----------------------------------------------------------------------------------------------


def judge_all(panel: Panel, drawn: DrawnPanel, show: bool = False) -> dict[str, Judgement]:
    """Judge what every method drew, beside the reference's pictures from the same noise."""
    target = drawn.results[drawn.reference].images if drawn.reference else None
    bar = tqdm(drawn.results.items(), desc="judge", leave=False, disable=None if show else True)
    return {name: panel.judge(result.images, target) for name, result in bar}


# -- report ---------------------------------------------------------------------------------------------


def report_of(
    panel: Panel,
    drawn: DrawnPanel,
    judged: Mapping[str, Judgement],
    settings: Mapping[str, Any],
    hardware: Mapping[str, Any],
) -> dict[str, Any]:
    """The report, ready for JSON: one row of costs and measures per method, and what they were measured with."""
    prompts = len(panel) // panel.repeats
    rows = {
        name: {"method": dict(result.method), **_costs(result, len(panel), drawn), **judged[name].measures}
        for name, result in drawn.results.items()
    }
    _add_retention(rows, judged, drawn.reference, panel)
    preparing = {kind: getattr(drawn.preparing, kind)["prepare"] / len(panel) for kind in ("wall", "cores")}
    return {
        "anytext_lcm": __version__,
        "settings": {**settings, "batch_size": BATCH_SIZE},
        "panel": {
            **_source_of(panel, rows),
            "prompts": prompts,
            "lines": len(panel.groups) // panel.repeats,
            "sampling_seeds": panel.repeats,
            "seed": panel.seed,
            "noise_seeds": [panel.noise_seeds[0], panel.noise_seeds[-1]],
            "texts": panel.texts[:prompts],
        },
        "versions": {"python": platform.python_version()} | {p: metadata.version(p) for p in PACKAGES},
        "hardware": dict(hardware),
        "reference": drawn.reference,
        "prepare_seconds_a_picture": preparing,
        "equal_evaluations": _equal_evaluations(rows, judged, panel.groups),
        "methods": rows,
    }


def _source_of(panel: Panel, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Where the prompts come from, and what "distance to real" is to."""
    if panel.source == "scenes":
        seeds = {"prompts_seed": PANEL_SEED + panel.seed, "real_seed": REAL_SEED + panel.seed}
        return {"source": "scenes", "split": "test", **seeds}
    if found := next(iter(rows.values()))["distribution"]:
        real = f"{found['n']} other {panel.source}"
    else:
        there = 0 if panel.others is None else len(panel.others)
        real = f"none: there are {there} other pictures" if panel.has_pictures else "none: the prompts have no pictures"
    return {"source": panel.source, "real": real}


def _costs(result: MethodResult, pictures: int, drawn: DrawnPanel) -> dict[str, Any]:
    """Evaluations, seconds per picture by phase, and how many times as fast as the reference: denoising, with decoding,
    and end to end with what is encoded once for all methods.
    """
    costs: dict[str, Any] = {
        "evaluations": result.evaluations,
        "seconds_a_picture": {phase: seconds / pictures for phase, seconds in result.wall.items()},
        "core_seconds_a_picture": {phase: seconds / pictures for phase, seconds in result.cores.items()},
    }
    if drawn.reference and "denoise" in result.wall:
        for kind in ("wall", "cores"):
            before, after = (getattr(r, kind) for r in (drawn.results[drawn.reference], result))
            once = getattr(drawn.preparing, kind)["prepare"]
            costs[f"speedup_{kind}"] = {
                "denoise": before["denoise"] / max(after["denoise"], 1e-9),
                "with_decoding": sum(before.values()) / max(sum(after.values()), 1e-9),
                "end_to_end": (once + sum(before.values())) / max(once + sum(after.values()), 1e-9),
            }
    return costs


def _add_retention(
    rows: Mapping[str, dict[str, Any]], judged: Mapping[str, Judgement], reference: str | None, panel: Panel
) -> None:
    """Add what each method keeps of the reference's lines right, and of its diversity, on the same lines."""
    if reference is None:
        return
    right = judged[reference].scores
    for name, row in rows.items():
        if right.correct.any():
            own = judged[name].scores
            row["retention"] = asdict(intervals.paired_bootstrap(own.correct, right.correct, panel.groups))
            row["retention_by_height"] = [
                {"from": low, "to": None if np.isinf(high) else high, **asdict(interval)}
                for low, high, interval in intervals.retention_by_height(own, right)
            ]
        if panel.repeats > 1:
            own, slow = (found["diversity"] and found["diversity"]["value"] for found in (row, rows[reference]))
            row["diversity_to_reference"] = None if own is None else own / max(slow, 1e-9)


def _equal_evaluations(
    rows: Mapping[str, Mapping[str, Any]], judged: Mapping[str, Judgement], groups: np.ndarray
) -> list[dict[str, Any]]:
    """Each of the student's methods beside every one without training of as many evaluations: the difference in the
    share of lines right, paired over prompts, and both distances to real pictures.
    """
    drawn = {name: row["method"]["adapter"] for name, row in rows.items() if "sampler" in row["method"]}
    students, rivals = ([name for name, adapter in drawn.items() if adapter == own] for own in (True, False))
    pairs = []
    for student, rival in (
        (s, r) for s in students for r in rivals if rows[s]["evaluations"] == rows[r]["evaluations"]
    ):
        difference = judged[student].scores.correct.astype(float) - judged[rival].scores.correct
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
