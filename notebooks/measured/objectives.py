"""Objectives at equal compute beside the rivals that need no training: one command, which goes on after it was killed.

`python notebooks/measured/objectives.py --output outputs/objectives` trains every objective from several seeds, chooses
each rival's spacing on a small panel of its own, then draws and judges every method on the main panel. Each training,
each method's pictures and each judgement is a file of its own that appears whole; what is there is not done again. One
process works for each core.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from anytext_lcm.adapter.lora import load_adapter
from anytext_lcm.command import natural, new_parser, positive, run
from anytext_lcm.drawing.cores import available_cores, describe_hardware
from anytext_lcm.drawing.methods import parse_method
from anytext_lcm.figures.text_table import text_table
from anytext_lcm.files import atomic_file, check_writable
from anytext_lcm.judging.compare import run_method
from anytext_lcm.judging.defaults import REAL, RECONSTRUCTION
from anytext_lcm.judging.panel import Panel, prepare_panel
from anytext_lcm.model.loading import default_device, load_chosen
from anytext_lcm.model.networks import EMBEDDED_CONFIG, checkpoint_for, defaults_for
from anytext_lcm.training.checkpoints import EMA_FOLDER, checkpoints, was_started
from anytext_lcm.training.loop import load_teacher, run_distillation
from anytext_lcm.training.path_store import SHARD_PATHS, Wishes, write_paths
from anytext_lcm.training.recipes import DEFAULTS, on_paths, paths_for, recipe, updates_for
from anytext_lcm.training.settings import TrainSettings
from anytext_lcm.training.shards import shard_path

OBJECTIVES = {  # settings that differ from the recipe's
    "lcm": {},
    "pcm": {"objective": "pcm"},
    "tcd": {"objective": "tcd"},
    "path": {"objective": "path"},
    "path-ends": {"objective": "path", "phases": 1},
    "teacher_x0": {"objective": "teacher_x0"},
    "pcm-on-paths": {"objective": "pcm"},
    "pcm-few-pictures": {"objective": "pcm"},
}
ON_PATHS = ("path", "path-ends", "pcm-on-paths")  # points from the teacher's stored paths, without pictures
FEW = ("pcm-few-pictures",)  # as many real pictures as there are paths
STEPS, ENDINGS = (1, 2, 4, 8, 16), {"fresh noise": "", "deterministic": "-deterministic"}
RIVALS, SPACINGS = ("", "-dpm++", "-unipc"), ("-trailing", "-karras", "-logsnr")
REFERENCE, TUNING_SEED, TUNING_PROMPTS = "teacher-50", 100, 48  # the seed is far from the main panel's
MEASURES = {  # heading of a table: where its numbers are in a judgement
    "lines right": ("accuracy",),
    "objects": ("objects_obeyed",),
    "colour by number": ("ink_obeyed",),
    "ground": ("background_obeyed",),
    "distance to real": ("distribution", "kernel"),
    "sharpness": ("sharpness", "to_real"),
    "diversity": ("diversity",),
    "same-noise distance": ("same_noise", "interval"),
}


@dataclass(frozen=True)
class Plan:
    """What is measured. A folder belongs to one plan."""

    config: str
    ckpt: str
    objectives: tuple[str, ...]
    seeds: tuple[int, ...]  # of training
    updates: int  # of lcm; the others cost the same
    prompts: int
    noises: int  # of each prompt
    panel: int  # its seed

    @property
    def guidance(self) -> float:
        return defaults_for(self.config).guidance_scale


# -- what a process keeps ----------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _teacher(plan: Plan) -> Any:
    return load_chosen(plan.config, plan.ckpt, default_device())


@lru_cache(maxsize=2)
def _panel(plan: Plan, tuning: bool) -> Panel:
    size = defaults_for(plan.config).size[0]
    if tuning:
        return Panel.build(prompts=min(TUNING_PROMPTS, plan.prompts), seed=TUNING_SEED + plan.panel, image_size=size)
    return Panel.build(prompts=plan.prompts, seed=plan.panel, image_size=size, repeats=plan.noises)


@lru_cache(maxsize=2)
def _prepared(plan: Plan, tuning: bool) -> Any:
    return prepare_panel(_teacher(plan), _panel(plan, tuning), defaults_for(plan.config).negative_prompt)


# -- the kinds of work: each writes one file or folder, whole ----------------------------------------------


def settings_of(plan: Plan, folder: Path, objective: str, seed: int) -> TrainSettings:
    """The settings of one training."""
    changed = OBJECTIVES[objective]
    updates, place = updates_for(changed, plan.updates), folder / "train" / f"{objective}-{seed}"
    own = {"config": plan.config, "teacher_ckpt": plan.ckpt, "output_dir": str(place), "seed": seed, "progress": False}
    own["guidance_scale"] = plan.guidance
    pictures = 10 * DEFAULTS.pictures
    if objective in ON_PATHS:
        own |= on_paths(str(folder / f"paths-{seed}"))
    elif objective in FEW:
        pictures = path_count(plan)
    if was_started(place):
        own["resume_from_checkpoint"] = "latest"
    often = {"checkpointing_steps": max(1, updates // 8), "checkpoints_total_limit": 1}
    return TrainSettings.from_dict(recipe(updates) | changed | own | often | {"dataset_size": pictures})


def path_count(plan: Plan) -> int:
    """Paths of one training seed: the path objective uses each of their points once."""
    return paths_for(updates_for(OBJECTIVES["path"], plan.updates))


def train(plan: Plan, folder: Path, objective: str, seed: int) -> None:
    """Train one student, or go on with it; its seconds since the last start go beside its checkpoints."""
    began, settings = time.process_time(), settings_of(plan, folder, objective, seed)
    if settings.max_train_steps not in checkpoints(settings.output_dir):
        run_distillation(asdict(settings), None)
    seconds = round(time.process_time() - began, 1)
    _write(Path(settings.output_dir) / "done.json", {"cpu_seconds": seconds, "updates": settings.max_train_steps})


def draw_paths(plan: Plan, folder: Path, seed: int) -> None:
    """The paths of one training seed."""
    settings = settings_of(plan, folder, "path", seed)
    wishes = Wishes(settings, path_count(plan), None)
    write_paths(settings.paths, settings, wishes, load_teacher(settings))


def draw(plan: Plan, folder: Path, name: str, tuning: bool = False) -> None:
    """The pictures of one method: NAME, or NAME@OBJECTIVE-SEED by a student."""
    method, _, student = name.partition("@")
    model, panel = _teacher(plan), _panel(plan, tuning)
    if student:
        objective, _, seed = student.rpartition("-")
        settings = settings_of(plan, folder, objective, int(seed))
        load_adapter(model, Path(settings.output_dir) / f"checkpoint-{settings.max_train_steps}" / EMA_FOLDER)
    chosen = method if method in (REAL, RECONSTRUCTION) else parse_method(method, plan.guidance)
    result = run_method(model, panel, chosen, _prepared(plan, tuning))
    costs = {"evaluations": result.evaluations, "seconds": {k: v / len(panel) for k, v in result.cores.items()}}
    with atomic_file(_pictures(folder, name, tuning)) as temporary:
        np.savez_compressed(temporary, images=result.images, costs=json.dumps(costs))


def judge(plan: Plan, folder: Path, name: str, tuning: bool = False) -> None:
    """The measures of one method's stored pictures, with those of its costs."""
    stored = np.load(_pictures(folder, name, tuning))
    reference = None if tuning else np.load(_pictures(folder, REFERENCE, False))["images"]
    measures = _panel(plan, tuning).judge(stored["images"], reference).measures
    del measures["read"]
    _write(_judged(folder, name, tuning), json.loads(str(stored["costs"])) | measures)


def _pictures(folder: Path, name: str, tuning: bool) -> Path:
    return folder / ("tuning" if tuning else "pictures") / f"{name}.npz"


def _judged(folder: Path, name: str, tuning: bool) -> Path:
    return folder / ("tuning" if tuning else "judged") / f"{name}.json"


def _write(path: Path, value: Any) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


# -- the order of the work ----------------------------------------------------------------------------------


def _alone() -> None:
    """Of each process: one thread, so that processes side by side do not wait for each other."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if default_device().type == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "1"
    import torch

    torch.set_num_threads(1)


def work_through(tasks: Iterable[tuple[Callable, tuple, Path]], processes: int, what: str) -> None:
    """Do the tasks whose file is not there: (function, arguments, file). Raises the first failure."""
    waiting = [(function, arguments) for function, arguments, file in tasks if not file.exists()]
    if waiting:
        print(f"{what}: {len(waiting)} to do", flush=True)
    if processes == 1:
        for function, arguments in waiting:
            function(*arguments)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), _alone) as pool:
        for future in [pool.submit(function, *arguments) for function, arguments in waiting]:
            future.result()


def measure(plan: Plan, folder: Path, processes: int) -> dict[str, Any]:
    """Train, tune, draw and judge what the folder lacks; write objectives.json and table.md."""
    check_plan(plan, folder)
    students = [(objective, seed) for objective in plan.objectives for seed in plan.seeds]
    if set(ON_PATHS) & set(plan.objectives):
        last = (path_count(plan) - 1) // SHARD_PATHS
        stores = [(seed, shard_path(folder / f"paths-{seed}", last)) for seed in plan.seeds]
        work_through([(draw_paths, (plan, folder, seed), file) for seed, file in stores], processes, "paths")
    trainings = [(train, (plan, folder, *s), folder / "train" / f"{s[0]}-{s[1]}" / "done.json") for s in students]
    work_through(trainings, processes, "trainings")

    trials = [f"teacher-{n}{rival}{spacing}" for n in STEPS for rival in RIVALS for spacing in SPACINGS]
    both(plan, folder, trials, processes, True)
    chosen = {f"teacher-{n}{rival}": nearest(folder, f"teacher-{n}{rival}") for n in STEPS for rival in RIVALS}
    names = [REFERENCE, REAL, RECONSTRUCTION, *chosen.values()]
    names += [f"untrained-{n}{ending}" for n in STEPS for ending in ENDINGS.values()]
    names += [f"student-{n}{e}@{o}-{s}" for o, s in students for e in ENDINGS.values() for n in STEPS]
    both(plan, folder, names, processes, False)
    results = {
        "plan": asdict(plan) | {name: Path(getattr(plan, name)).name for name in ("config", "ckpt")},
        "hardware": describe_hardware(default_device()),
        "cpu_seconds": {
            f"{o}-{s}": _read(folder / "train" / f"{o}-{s}" / "done.json")["cpu_seconds"] for o, s in students
        },
        "tuning": {name: _read(_judged(folder, name, True))["distribution"]["kernel"] for name in trials},
        "chosen": chosen,
        "methods": {name: kept(_read(_judged(folder, name, False))) for name in names},
    }
    _write(folder / "objectives.json", results)
    with atomic_file(folder / "table.md") as temporary:
        temporary.write_text(tables(results), encoding="utf-8")
    return results


def both(plan: Plan, folder: Path, names: Sequence[str], processes: int, tuning: bool) -> None:
    """Draw, then judge. The reference is among the drawn before any is judged."""
    kind = "of the small panel" if tuning else "of the panel"
    drawn = [(draw, (plan, folder, name, tuning), _pictures(folder, name, tuning)) for name in names]
    work_through(drawn, processes, f"pictures {kind}")
    judged = [(judge, (plan, folder, name, tuning), _judged(folder, name, tuning)) for name in names]
    work_through(judged, processes, f"judgements {kind}")


def nearest(folder: Path, rival: str) -> str:
    """The spacing of a rival whose pictures of the small panel are nearest to real ones."""
    distance = {f"{rival}{s}": _read(_judged(folder, f"{rival}{s}", True))["distribution"]["kernel"] for s in SPACINGS}
    return min(distance, key=lambda name: distance[name]["value"])


def check_plan(plan: Plan, folder: Path) -> None:
    """Raise ValueError when the folder belongs to another plan, or cannot be written."""
    path, own = folder / "plan.json", json.loads(json.dumps(asdict(plan)))
    check_writable(path)
    if not path.is_file():
        _write(path, own)
    elif differing := [f"{k} {v!r}, now {own[k]!r}" for k, v in _read(path).items() if own.get(k) != v]:
        raise ValueError(f"{folder} was begun with {'; '.join(differing)}: name another --output.")


def kept(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the tables need of a judgement."""
    found = {"evaluations": row["evaluations"], "seconds": row["seconds"]}
    for first, *rest in MEASURES.values():
        if first in row:
            found[first] = row[first] if not rest else {rest[0]: row[first].get(rest[0])}
    return found


def _cell(row: Mapping[str, Any], keys: Sequence[str]) -> dict[str, float] | None:
    for key in keys:
        row = row.get(key) or {}
    return row or None


def _said(cell: Mapping[str, float] | None) -> str:
    return "{value:.3f} [{low:.3f}, {high:.3f}]".format(**cell) if cell else "–"


def _pooled(cells: Sequence[Mapping[str, float] | None]) -> str:
    """Mean of the trainings, and the interval that holds each one's."""
    if not cells or not all(cells):
        return "–"
    mean, low = sum(cell["value"] for cell in cells) / len(cells), min(cell["low"] for cell in cells)
    return f"{mean:.2f} [{low:.2f}, {max(cell['high'] for cell in cells):.2f}]"


def rows_of(results: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Label of each row of a table: for each number of steps, the methods' names, one for each training."""
    plan, rows = results["plan"], {}
    for objective in plan["objectives"]:
        for sampler, ending in ENDINGS.items():
            names = [[f"student-{n}{ending}@{objective}-{seed}" for seed in plan["seeds"]] for n in STEPS]
            rows[f"{objective}, {sampler}"] = names
    for sampler, ending in ENDINGS.items():
        rows[f"untrained, {sampler}"] = [[f"untrained-{n}{ending}"] for n in STEPS]
    for rival in RIVALS:
        rows[_label(rival)] = [[results["chosen"][f"teacher-{n}{rival}"]] for n in STEPS]
    return rows


def _label(rival: str) -> str:
    return f"teacher, {rival.removeprefix('-') or 'ddim'}"


def _head() -> list[str]:
    return ["", *(f"{n} step{'s' * (n > 1)}" for n in STEPS)]


def at_evaluations(results: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """As `rows_of`, for each number of evaluations: a guided step of the teacher takes two, so none takes one."""
    rows = rows_of(results)
    place = {2 * n: i for i, n in enumerate(STEPS)}  # of so many evaluations in a row of guided steps
    guided = {label: rows[label] for label in map(_label, RIVALS)}
    return rows | {label: [row[place[n]] if n in place else [] for n in STEPS] for label, row in guided.items()}


def table(results: Mapping[str, Any], title: str, labels: Sequence[str] = ()) -> str:
    """One measure at equal evaluations, in Markdown, the trainings of a cell pooled: chosen rows, all by default.

    Raises ValueError for a measure or row that there is not.
    """
    rows = at_evaluations(results)
    if title not in MEASURES or (unknown := set(labels) - set(rows)):
        known = f"measures {', '.join(MEASURES)}; rows {', '.join(rows)}"
        raise ValueError(f"no such table: {title if title not in MEASURES else sorted(unknown)}; {known}.")
    methods, keys = results["methods"], MEASURES[title]
    found = [[k, *(_pooled([_cell(methods[n], keys) for n in c]) for c in rows[k])] for k in labels or rows]
    head = ["", *(f"{n} evaluation{'s' * (n > 1)}" for n in STEPS)]
    return text_table(head, found, markdown=True, align="lr")


def legend(results: Mapping[str, Any]) -> str:
    """What the tables' numbers are, in sentences."""
    plan = results["plan"]
    choice = "; ".join(f"{name}: {spaced.removeprefix(name + '-')}" for name, spaced in results["chosen"].items())
    return (
        f"{plan['prompts']} prompts, {plan['noises']} noises each, 95 % bootstrap intervals over prompts. Trainings: "
        f"{len(plan['seeds'])} of each objective, with the compute of {plan['updates']} updates of lcm. A step is one "
        f"evaluation, a guided step of the teacher two. Each rival has the spacing that was nearest to real pictures "
        f"on {min(TUNING_PROMPTS, plan['prompts'])} other prompts: {choice}. By noise level the last "
        f"call of dpm++ and unipc is at t = 0, as in diffusers. {results['hardware']['cpu']}, {results['hardware']['cores']} cores."
    )


def tables(results: Mapping[str, Any]) -> str:
    """One table in Markdown for each measure: a row for each way to draw, a column for each number of steps."""
    methods, blocks, rows = results["methods"], [], rows_of(results)
    for title, keys in MEASURES.items():
        if all(_cell(row, keys) is None for row in methods.values()):
            continue
        found = [
            [label, *("; ".join(_said(_cell(methods[name], keys)) for name in cell) for cell in row)]
            for label, row in rows.items()
        ]
        edge = ", ".join(f"{name} {_said(_cell(methods[name], keys))}" for name in (REFERENCE, RECONSTRUCTION, REAL))
        blocks.append(f"### {title}\n\n{text_table(_head(), found, markdown=True, align='lr')}\n\n{edge}.")
    spent = [
        [label, *("; ".join(f"{methods[n]['seconds']['denoise']:.3f}" for n in cell) for cell in row)]
        for label, row in rows.items()
    ]
    blocks.append(f"### seconds of a core a picture, without decoding\n\n{text_table(_head(), spent, markdown=True)}")
    return "\n\n".join([f"{legend(results)} A cell has a number for each training.", *blocks]) + "\n"


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("objectives", "Compares objectives at equal compute with rivals that need no training.")
    parser.prog = "python notebooks/measured/objectives.py"
    add = parser.add_argument
    add("--output", default="outputs/objectives", help="folder; the same command goes on there (default: %(default)s)")
    add("--objectives", nargs="+", choices=tuple(OBJECTIVES), default=tuple(OBJECTIVES), help="default: all")
    add("--seeds", nargs="+", type=natural, default=[0, 1], help="of the trainings (default: 0 1)")
    add("--updates", type=positive, default=DEFAULTS.steps, help="of lcm; others cost the same (default: %(default)s)")
    add("--prompts", type=positive, default=256, help="default: %(default)s")
    add("--noises", type=positive, default=2, help="of each prompt; 2 or more measure diversity (default: %(default)s)")
    add("--panel", type=natural, default=0, help="seed of the panel (default: %(default)s)")
    add("--config", default=str(EMBEDDED_CONFIG), help="yaml of the network (default: the embedded one)")
    add("--ckpt", help="weights of the teacher (default: those that come with the yaml)")
    add("--processes", type=positive, help="default: one for each core, one on a GPU")
    return parser


def work(args: argparse.Namespace) -> str:
    """Measure what is missing; returns the tables."""
    ckpt = args.ckpt or str(checkpoint_for(args.config, "--ckpt"))
    plan = Plan(
        *(args.config, ckpt, tuple(args.objectives), tuple(args.seeds), args.updates),
        *(args.prompts, args.noises, args.panel),
    )
    if args.prompts < 8:
        raise ValueError(f"--prompts must be 8 or more, not {args.prompts}: fewer say nothing about a distribution.")
    usual = 1 if default_device().type == "cuda" else available_cores()
    _alone()
    return tables(measure(plan, Path(args.output), args.processes or usual))


if __name__ == "__main__":
    sys.exit(run(build_parser(), work, None, lambda args: f"the files in {args.output} are kept; say the same again."))
