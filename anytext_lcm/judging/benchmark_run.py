"""A run over AnyText-benchmark: a plan, checked before the weights are loaded, then drawn, read and reported."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anytext_lcm import __version__
from anytext_lcm.adapter.lora import load_adapter
from anytext_lcm.adapter.stored import CONFIG_FILE, WEIGHTS_FILE
from anytext_lcm.data.fonts import font_path
from anytext_lcm.drawing.cores import describe_hardware
from anytext_lcm.drawing.methods import Method, reference_of
from anytext_lcm.files import atomic_file, check_writable
from anytext_lcm.judging import reading
from anytext_lcm.judging.benchmark_lines import is_chinese
from anytext_lcm.judging.benchmark_set import (
    CHINESE_NOTE,
    NOTES,
    PHRASE,
    PUBLISHED,
    REPORT,
    WHOLE,
    Task,
    check_font,
    check_settings,
    content_of,
    draw_tasks,
    read_tasks,
    score_tasks,
    settings_of,
    summarise,
)
from anytext_lcm.judging.defaults import SAMPLES
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.networks import checkpoint_for, defaults_for, is_anytext2


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
            "data": content_of(self.data),
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
    check_writable(plan.output / REPORT)
    for method in plan.methods:
        check_settings(plan.output / method.name, settings_of(method, settings))
    return Checked(plan, tasks, settings, unwritten)


def run_benchmark(model: AnyText2, checked: Checked) -> dict[str, Any]:
    """Draw what is not there yet, read all of it, write and return the report. `model` is the bare teacher."""
    plan, tasks, size = checked.plan, checked.tasks, tuple(checked.settings["size"])
    if plan.adapter is not None:
        load_adapter(model, plan.adapter)
    reader, scores, seconds = reading.LineReader(), {}, {}
    for method in plan.methods:
        folder = plan.output / method.name
        seconds[method.name] = draw_tasks(model, tasks, method, folder, checked.settings)
        scores[method.name] = score_tasks(reader, tasks, folder, plan.samples, size)
    reference, texts = reference_of(plan.methods), [text for task in tasks for text, _ in task.lines]
    rows = summarise(scores, reference)
    for name, row in rows.items():
        row["seconds_this_run"] = seconds[name]
    report = {
        "anytext_lcm": __version__,
        "settings": checked.settings | {"guidance_scale": plan.guidance_scale},
        "prompts": len(tasks),
        "lines": len(texts),
        "lines_the_font_lacks": checked.unwritten,
        "samples": plan.samples,
        "reference": reference,
        "published": published(tasks, plan.config, plan.samples),
        "hardware": describe_hardware(model.device),
        "notes": [*NOTES, CHINESE_NOTE] if is_chinese(texts) else list(NOTES),
        "methods": rows,
    }
    with atomic_file(plan.output / REPORT) as temporary:
        temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


def published(tasks: Sequence[Task], config: str | Path, samples: int) -> Mapping[str, Any] | None:
    """AnyText2's own figures: of its network, on a whole set with four pictures a prompt; None for anything else."""
    if len(tasks) != WHOLE or samples != SAMPLES or not is_anytext2(config):
        return None
    found = PUBLISHED[is_chinese([text for task in tasks for text, _ in task.lines])]
    return dict(zip(("name", "accuracy", "ned"), found, strict=True))
