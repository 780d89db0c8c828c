"""A run over AnyText-benchmark: a plan, checked before the weights are loaded, then drawn, scored and reported. Or
pictures that are there already, scored and reported alike.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anytext_lcm import __version__
from anytext_lcm.adapter.lora import load_adapter
from anytext_lcm.adapter.stored import CONFIG_FILE, WEIGHTS_FILE
from anytext_lcm.data.fonts import font_path
from anytext_lcm.drawing.cores import describe_hardware
from anytext_lcm.drawing.methods import Method, reference_of
from anytext_lcm.judging.benchmark_pictures import Scoring, check_scoring, real_files
from anytext_lcm.judging.benchmark_report import check_report, notes_on, published, write_benchmark
from anytext_lcm.judging.benchmark_score import judge
from anytext_lcm.judging.benchmark_set import (
    PHRASE,
    Task,
    check_font,
    check_settings,
    content_of,
    draw_tasks,
    read_tasks,
    settings_of,
    tasks_content,
)
from anytext_lcm.judging.defaults import PANEL
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.networks import checkpoint_for, defaults_for


@dataclass(frozen=True)
class Plan:
    """What to draw and from which files. Each field is a flag of `python -m anytext_lcm.benchmark`."""

    data: str
    output: Path
    methods: tuple[Method, ...]
    config: str
    ckpt: str | None  # None: the weights that come with the yaml
    adapter: Path | None  # its folder
    adapter_name: str  # as it was named: a folder, "shipped" or "none"
    font: str
    font_hint: bool
    words: str  # behind every caption
    samples: int  # pictures of each prompt
    seed: int  # of the first of them
    precision: str  # of weights and network
    guidance_scale: float
    negative_prompt: str
    reference: str | None = None  # the method that others are compared with; None: the teacher with most steps
    real: str | None = None  # a folder of real pictures

    @property
    def names(self) -> dict[str, str]:
        """The files as people know them; `contents` tells files of the same name apart."""
        return {
            "data": Path(self.data).name,
            "config": Path(self.config).name,
            "ckpt": Path(self.ckpt).name if self.ckpt else "embedded",
            "adapter": self.adapter_name,
            "font": self.font,
        }

    def contents(self) -> dict[str, str]:
        """Length and checksum of each file. Raises FileNotFoundError."""
        found = {
            "data": tasks_content(self.data),
            "config": content_of(self.config),
            "ckpt": content_of(self.ckpt or checkpoint_for(self.config, "--ckpt"), ends=True),
            "font": content_of(font_path(self.font)),
        }
        if self.adapter is not None:  # alpha stands in the configuration
            found["adapter"] = "; ".join(content_of(self.adapter / name) for name in (WEIGHTS_FILE, CONFIG_FILE))
        return found

    def settings(self) -> dict[str, Any]:
        """What the pictures depend on besides the method, ready for JSON. Raises FileNotFoundError."""
        return {
            "names": self.names,
            "contents": self.contents(),
            "size": list(defaults_for(self.config).size),
            "samples": self.samples,
            "seed": self.seed,
            "font_hint": self.font_hint,
            "words": self.words,
            "phrase": PHRASE,
            "precision": self.precision,
            "negative_prompt": self.negative_prompt,
        }


@dataclass(frozen=True)
class Checked:
    """A plan whose files are there, whose font has the letters, and whose folders hold no other pictures."""

    plan: Plan
    tasks: list[Task]
    settings: dict[str, Any]
    unwritten: int  # lines that the font lacks


def check_plan(plan: Plan, limit: int | None = None) -> Checked:
    """Read the prompts, or the first `limit`, and check what can be checked without weights.

    Raises ValueError or FileNotFoundError.
    """
    tasks = read_tasks(plan.data, limit)
    unwritten = check_font(tasks, plan.font)
    settings = plan.settings()
    names = [method.name for method in plan.methods]
    if plan.reference is not None and plan.reference not in names:
        raise ValueError(f"{plan.reference} is none of the methods, {', '.join(names)}: name one as --reference.")
    if plan.real is not None:
        real_files(plan.real)
    check_report(plan.output, [plan.real] if plan.real is not None else [])
    for method in plan.methods:
        check_settings(plan.output / method.name, settings_of(method, settings))
    return Checked(plan, tasks, settings, unwritten)


def run_benchmark(model: AnyText2, checked: Checked) -> dict[str, Any]:
    """Draw what is not there yet, score all of it, write and return the report. `model` is the bare teacher."""
    plan, tasks = checked.plan, checked.tasks
    if plan.adapter is not None:
        load_adapter(model, plan.adapter)
    seconds = {
        method.name: draw_tasks(model, tasks, method, plan.output / method.name, checked.settings)
        for method in plan.methods
    }
    folders = {method.name: plan.output / method.name for method in plan.methods}
    reference = plan.reference or reference_of(plan.methods)
    scoring = check_scoring(tasks, folders, plan.samples, reference, plan.real, of_panel=plan.data == PANEL)
    judged = judge(scoring)
    for name, row in judged["methods"].items():
        row["seconds_this_run"] = seconds[name]
    report = {
        "anytext_lcm": __version__,
        "settings": checked.settings | {"guidance_scale": plan.guidance_scale},
        "lines_the_font_lacks": checked.unwritten,
        "published": published(tasks, plan.config, plan.samples),
        "hardware": describe_hardware(model.device),
        "notes": notes_on(judged, scoring, drawn=True),
        **judged,
    }
    write_benchmark(plan.output, report, scoring)
    return report


def score_folders(scoring: Scoring, data: str, output: Path, show: bool = True) -> dict[str, Any]:
    """Score pictures that are there already, write and return the report. data: where the prompts are from."""
    judged = judge(scoring, show)
    report = {
        "anytext_lcm": __version__,
        "settings": {
            "names": {"data": Path(data).name},
            "contents": {"data": tasks_content(data)},
            "pictures": {name: str(found.folder) for name, found in scoring.found.items()},
            "real": scoring.real_name,
        },
        "published": None,  # who drew the pictures is not known
        "notes": notes_on(judged, scoring, drawn=False),
        **judged,
    }
    write_benchmark(output, report, scoring)
    return report
