"""Ablations: train runs that each change one setting of the recipe, then judge them all on one panel.

The runs are `recipes.RUNS`. All cost the same compute and draw from the same noise.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from anytext_lcm import __version__
from anytext_lcm.adapter.choices import read_made_for
from anytext_lcm.adapter.lora import load_adapter
from anytext_lcm.adapter.stored import training_header
from anytext_lcm.drawing.cores import describe_hardware
from anytext_lcm.drawing.methods import Method, student_method, teacher_method, untrained_method
from anytext_lcm.figures.text_table import text_table
from anytext_lcm.files import atomic_file, check_writable
from anytext_lcm.judging.compare import run_method
from anytext_lcm.judging.intervals import paired_bootstrap
from anytext_lcm.judging.panel import Panel, prepare_panel
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.loading import default_device
from anytext_lcm.model.networks import EMBEDDED_CONFIG, defaults_for, find_config
from anytext_lcm.training.checkpoints import EMA_FOLDER, checkpoints
from anytext_lcm.training.data_order import build_dataset
from anytext_lcm.training.latents import write_latents
from anytext_lcm.training.loop import load_teacher, run_distillation
from anytext_lcm.training.path_store import Wishes, write_paths
from anytext_lcm.training.recipes import DEFAULTS, RUNS, changes, paths_for, recipe, updates_for
from anytext_lcm.training.settings import TrainSettings

DEFAULT, UNTRAINED, NO_AVERAGE = "default", "untrained", "no average"
STUDENT_STEPS, TEACHER_STEPS = (4, 8), 50
SLOW = "fast_control_off.yaml"


def train(settings: TrainSettings) -> dict[str, Any]:
    """Train one run. Returns its entry: updates, seconds and CPU seconds, or why it gave up."""
    if settings.latents_folder:
        write_latents(settings.latents_folder, build_dataset(settings), load_teacher(settings))
    if settings.paths:
        count = paths_for(settings.max_train_steps, settings.train_batch_size * settings.gradient_accumulation_steps)
        write_paths(settings.paths, settings, Wishes(settings, count, None), load_teacher(settings))
    began, cpu = time.perf_counter(), time.process_time()
    entry: dict[str, Any] = {"updates": settings.max_train_steps}
    try:
        run_distillation(asdict(settings), None)
    except FloatingPointError as error:
        return entry | {"failed": str(error)}
    return entry | {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def write_slow(config: str, path: Path) -> None:
    """Write the yaml of the same network without fast control, to be read from any folder."""
    from omegaconf import OmegaConf

    yaml = OmegaConf.load(find_config(config))
    yaml.model.params.control_stage_config.params.fast_control = False
    checkpoint = defaults_for(config).checkpoint
    if checkpoint is not None:
        yaml.model.defaults.checkpoint = str(checkpoint)
    yaml.model.params.cond_stage_config.params.version = AnyText2.from_config(config, "meta").tokenizer_folder
    with atomic_file(path) as temporary:
        OmegaConf.save(yaml, temporary)


def judge(
    settings: TrainSettings,
    adapters: Mapping[str, Path | None],
    panel: Panel,
    configs: Mapping[str, str],
) -> dict[str, Any]:
    """Judge all runs on one panel, from the same noise: {"teacher": measures, "runs": {name: {steps: measures}}}.

    adapters: None is the untrained student. configs: yaml of the network of a run, by default the settings'.
    "retention" is against the teacher, "over_default" against the default run, both on the same lines; None where the
    other has no line right.
    """
    model = load_teacher(settings).to(default_device())
    prepared = prepare_panel(model, panel, settings.negative_prompt)  # no adapter reaches it
    teacher = run_method(model, panel, teacher_method(TEACHER_STEPS, settings.guidance_scale), prepared)
    reference, measures = panel.judge(teacher.images)
    right, runs = {}, {}
    for name, adapter in adapters.items():
        network = replace(settings, config=configs.get(name, settings.config))
        model = load_teacher(network).to(default_device())
        if adapter is not None:
            load_adapter(model, adapter)
        runs[name] = {}
        for steps in STUDENT_STEPS:
            method = untrained_method(steps) if adapter is None else _suited(adapter, steps)
            scores, found = panel.judge(run_method(model, panel, method, prepared).images)
            right[name, steps] = scores.correct
            others = {"retention": reference.correct}
            if name != DEFAULT and (DEFAULT, steps) in right:
                others["over_default"] = right[DEFAULT, steps]
            for key, other in others.items():
                found[key] = asdict(paired_bootstrap(scores.correct, other, panel.groups)) if other.any() else None
            runs[name][str(steps)] = found
        print(f"{name} is judged.", flush=True)
    return {"teacher": measures, "runs": runs}


def _suited(adapter: Path, steps: int) -> Method:
    """The student by the sampler that its objective trains for."""
    sampler = read_made_for(training_header(adapter)).samplers[0]
    return student_method(steps, gamma=0.0 if sampler == "deterministic" else None)


def run_folder(output: Path, name: str) -> Path:
    """Where a run of an ablation goes."""
    return output / name.replace(" ", "_")


def check_untrained(folders: Sequence[Path]) -> None:
    """Raise ValueError for folders of runs that were trained before: an ablation does not go on with them."""
    if trained := [f"{folder} ({[*found.values()][-1].name})" for folder in folders if (found := checkpoints(folder))]:
        raise ValueError(
            f"An earlier ablation trained {', '.join(trained)}, and none goes on with another's runs: name another "
            "--output, or delete these folders."
        )


def ablate(
    output: str | Path,
    chosen: Sequence[str] = RUNS,
    steps: int = DEFAULTS.steps,
    lines: int = 256,
    seed: int = 0,
    **changed: Any,
) -> dict[str, Any]:
    """Train the default and the chosen runs, then judge all. Writes and returns results.json, and writes table.md.

    steps: updates of the default; the others cost the same. lines: of text in the panel. changed: training settings
    other than the recipe's. Raises ValueError for an unknown run and for a folder that holds trained runs already.
    """
    if unknown := sorted(set(chosen) - set(RUNS)):
        raise ValueError(f"There is no run {', '.join(unknown)}; choose among {', '.join(RUNS)}.")
    if lines < 16:
        raise ValueError(f"--lines must be 16 or more, not {lines}: fewer pictures say nothing about a distribution.")
    output = Path(output)
    common = {"config": str(EMBEDDED_CONFIG), "output_dir": str(output / DEFAULT), "seed": seed}
    most = updates_for({"objective": "teacher_x0"}, steps) * DEFAULTS.batch  # so none is seen twice
    common = recipe(steps) | {"dataset_size": most} | common | changed
    settings = TrainSettings.from_dict(common)
    check_untrained([run_folder(output, name) for name in (DEFAULT, *chosen)])
    check_writable(output / "results.json")
    panel = Panel.build(lines=lines, seed=seed, image_size=defaults_for(settings.config).size[0])
    places = (str(output / name) for name in ("latents", "paths", SLOW))
    asked = changes(load_teacher(settings), settings.lora_targets, *places)
    if any("config" in asked[name] for name in chosen):
        write_slow(settings.config, output / SLOW)
    plan: dict[str, dict[str, Any]] = {DEFAULT: {}} | {name: asked[name] for name in chosen}
    runs: dict[str, Any] = {}
    adapters: dict[str, Path | None] = {}
    configs: dict[str, str] = {}
    for name, differs in plan.items():
        folder, updates = run_folder(output, name), updates_for(differs, steps)
        own = common | differs | {"output_dir": str(folder), "max_train_steps": updates, "checkpointing_steps": updates}
        runs[name] = train(TrainSettings.from_dict(own)) | {"changes": differs}
        if "failed" not in runs[name]:
            adapters[name] = folder / f"checkpoint-{updates}" / EMA_FOLDER
            configs[name] = own["config"]
    if DEFAULT in adapters:
        adapters[NO_AVERAGE] = adapters[DEFAULT].parent
        runs[NO_AVERAGE] = {"updates": steps, "changes": {"ema_decay": 0.0}}
    adapters[UNTRAINED], runs[UNTRAINED] = None, {"updates": 0}
    found = judge(settings, adapters, panel, configs)
    for name, read in found["runs"].items():
        runs[name]["read"] = read
    results = {
        "anytext_lcm": __version__,
        "hardware": describe_hardware(default_device()),
        "recipe": settings.identity(),
        "panel": {"lines": len(panel.groups), "prompts": len(panel), "seed": seed},
        "teacher": found["teacher"],
        "runs": runs,
    }
    for file, text in (("results.json", json.dumps(results, indent=1)), ("table.md", format_table(results))):
        with atomic_file(output / file) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return results


def _interval(values: Mapping[str, float] | None) -> str:
    return "-" if values is None else f"{values['value']:.3f} [{values['low']:.3f}, {values['high']:.3f}]"


def format_table(results: Mapping[str, Any]) -> str:
    """The runs as a table in Markdown: the default first, then by NED in four steps."""
    runs, panel, teacher = results["runs"], results["panel"], results["teacher"]
    rows = []
    read = [name for name in runs if "read" in runs[name]]
    for name in sorted(read, key=lambda n: (n != DEFAULT, -runs[n]["read"]["4"]["ned"]["value"])):
        cpu = runs[name].get("cpu_seconds")
        row = [name, str(runs[name]["updates"]), "-" if cpu is None else f"{cpu:.0f}"]
        for steps in map(str, STUDENT_STEPS):
            of = runs[name]["read"][steps]
            values = (of["accuracy"], of["retention"], of.get("over_default"), of["distribution"]["kernel"])
            row += map(_interval, values)
        rows.append(row)
    each = ("right", "retention", "over the default", "kernel distance")
    head = ["run", "updates", "CPU s", *(f"{name}, {steps} steps" for steps in STUDENT_STEPS for name in each)]
    failed = [f"\n{name} failed: {run['failed']}" for name, run in runs.items() if "failed" in run]
    distance = teacher["distribution"]
    return "\n".join(
        [
            text_table(head, rows, markdown=True, align="lr"),
            *failed,
            "",
            f"{panel['lines']} lines of {panel['prompts']} prompts, 95 % intervals over prompts. The teacher's "
            f"{TEACHER_STEPS} steps: right {_interval(teacher['accuracy'])}, kernel distance "
            f"{_interval(distance['kernel'])}; other real pictures {_interval(distance['kernel_floor'])}.",
        ]
    )
