"""Command: train the same student in other ways for equal compute and compare how readable each is.
`python -m anytext_lcm.ablate --output outputs/ablation`

Every question of QUESTIONS is asked by itself: one setting changes, the others stay what they are by default. Each
answer is a training run of its own, judged on one panel from the same noise. results.json is written after every run;
the same command again goes on where it was stopped. Imports torch and the rooms distill, evaluate, judge, latents.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anytext_lcm import __version__
from anytext_lcm.checkpoints import checkpoints
from anytext_lcm.distill import build_dataset, load_teacher, run_distillation
from anytext_lcm.evaluate import Panel, prepare_panel
from anytext_lcm.judge import LineReader, LineScores, bootstrap_mean, paired_bootstrap, score_lines
from anytext_lcm.latents import ABOUT, write_latents
from anytext_lcm.lora import find_targets, load_adapter
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.outputs import check_writable, whole_file
from anytext_lcm.pipeline import (
    EMBEDDED_CONFIG,
    Method,
    defaults_for,
    describe_hardware,
    draw,
    student_method,
    teacher_method,
    use_available_cores,
)
from anytext_lcm.settings import TrainSettings

DEFAULT = "default"
STUDENT_STEPS = (4, 8)
TEACHER_STEPS = 50
# What an update costs, in forward passes of the UNet: the teacher's two branches, the student's pass with a backward
# pass of two more, and for `lcm` the target. What the groups of an adapter cost besides is in the seconds.
PASSES = {"lcm": 6, "teacher_x0": 5}
RECIPE = {
    "use_mock_dataset": True, "dataset_size": 20_000, "train_batch_size": 8, "gradient_accumulation_steps": 1,
    "learning_rate": 1e-4, "lr_warmup_steps": 10, "sample_steps": 0, "mixed_precision": "no",
    "checkpointing_steps": 100, "checkpoints_total_limit": 1,
}  # fmt: skip


def questions(model: AnyText2, guidance_scale: float, latents: str) -> dict[str, dict[str, dict[str, Any]]]:
    """{question: {answer: settings that differ from the default}}. latents: where cached ones lie."""
    groups = find_targets(model)
    present = [name for name, modules in groups.items() if modules]
    no_convs = tuple(name for name in present if name not in ("zero_convs", "middle_block_out"))
    return {
        "objective": {"teacher_x0": {"objective": "teacher_x0"}},
        "adapter": {
            "without zero convs": {"lora_targets": no_convs},
            "attnx alone": {"lora_targets": ("unet_attnx",)},
            "decoder alone": {"lora_targets": ("unet_decoder",)},
            "with the rest of the UNet": {"lora_targets": (*present, "unet_rest")},
        },
        "rank": {f"rank {rank}": {"lora_rank": rank, "lora_alpha": rank} for rank in (4, 16)},
        "guidance": {"random guidance": {"guidance_spread": guidance_scale / 2}},
        "loss": {"L2": {"loss": "l2"}},
        "skip": {f"skip {skip}": {"solver_steps": 1000 // skip} for skip in (10, 50)},
        "latents": {"cached latents": {"latents": latents}},
        "text": {f"text counts {1 + more} times": {"text_weight": float(more)} for more in (1, 3)},
        "average": {"EMA 0.99": {"ema_decay": 0.99}},
    }


QUESTIONS = ("objective", "adapter", "rank", "guidance", "loss", "skip", "latents", "text", "average")


def updates_for(changes: Mapping[str, Any], steps: int) -> int:
    """As many updates as cost what `steps` of the default cost."""
    return round(steps * PASSES["lcm"] / PASSES[changes.get("objective", "lcm")])


class Judge:
    """One panel, the teacher's readings of it, and a student's beside them."""

    def __init__(self, settings: TrainSettings, lines: int, seed: int):
        self.settings = settings
        self.panel = Panel.build(lines=lines, seed=seed, image_size=defaults_for(settings.config).size[0])
        self.reader = LineReader(threads=1)
        teacher = teacher_method(TEACHER_STEPS, settings.guidance_scale)
        self.teacher = self._read(self._model(None), teacher)

    def _model(self, adapter: Path | None) -> AnyText2:
        model = load_teacher(self.settings)
        return model if adapter is None else load_adapter(model, adapter)

    def _read(self, model: AnyText2, method: Method) -> LineScores:
        prepared = prepare_panel(model, self.panel, self.settings.negative_prompt)
        images = draw(model, prepared, method).images
        return score_lines(self.reader, images, self.panel.polygons, self.panel.texts)

    def __call__(self, adapter: Path) -> dict[str, dict[str, Any]]:
        """What a student reads like, by its number of steps: accuracy and NED with intervals, and retention, its
        share of lines right over the teacher's, None where the teacher has none right.
        """
        model, found = self._model(adapter), {}
        for steps in STUDENT_STEPS:
            scores = self._read(model, student_method(steps))
            retention = None
            if self.teacher.correct.any():
                retention = asdict(paired_bootstrap(scores.correct, self.teacher.correct, self.panel.groups))
            found[str(steps)] = {
                "accuracy": asdict(bootstrap_mean(scores.correct, self.panel.groups)),
                "ned": asdict(bootstrap_mean(scores.ned, self.panel.groups)),
                "retention": retention,
            }
        return found


def format_table(results: Mapping[str, Any]) -> str:
    """The runs as a table in Markdown, the default first, best NED in four steps after it."""

    def interval(values: Mapping[str, float] | None) -> str:
        return "-" if values is None else f"{values['value']:.3f} [{values['low']:.3f}, {values['high']:.3f}]"

    lines = [
        "| run | updates | retention, 4 steps | retention, 8 steps | NED, 4 steps | NED, 8 steps |",
        "|---|---:|---|---|---|---|",
    ]
    runs = results["runs"]
    for name in sorted(runs, key=lambda n: (n != DEFAULT, -runs[n]["read"]["4"]["ned"]["value"])):
        run, read = runs[name], runs[name]["read"]
        cells = [interval(read[steps][what]) for what in ("retention", "ned") for steps in ("4", "8")]
        lines.append(" | ".join([f"| {name}", str(run["updates"]), *cells]) + " |")
    panel = results["panel"]
    return "\n".join(
        [
            *lines,
            "",
            f"{panel['lines']} lines of {panel['prompts']} prompts, 95 % intervals over prompts; retention against "
            f"the teacher's {TEACHER_STEPS} steps, which read {panel['teacher_accuracy']:.3f} in full.",
        ]
    )


def ablate(
    output: str | Path,
    asked: Sequence[str] = QUESTIONS,
    steps: int = 250,
    lines: int = 256,
    seed: int = 0,
    **recipe: Any,
) -> dict[str, Any]:
    """Trains and judges the default and every answer to the questions asked -> what is in results.json.

    recipe: settings of training other than RECIPE's. Raises ValueError for an unknown question, and when results.json
    in the folder belongs to another recipe, length or panel.
    """
    if unknown := sorted(set(asked) - set(QUESTIONS)):
        raise ValueError(f"There is no question {', '.join(unknown)}; ask among {', '.join(QUESTIONS)}.")
    output = Path(output)
    common = {"config": str(EMBEDDED_CONFIG), "output_dir": str(output / DEFAULT), "seed": seed} | RECIPE | recipe
    settings = TrainSettings.from_dict(common)
    path = output / "results.json"
    check_writable(path)
    made_by = {
        "anytext_lcm": __version__, "steps": steps, "lines": lines, "seed": seed,
        "recipe": {k: v for k, v in settings.identity().items() if k != "seed"},
    }  # fmt: skip
    results: dict[str, Any] = {"made_by": made_by, "runs": {}}
    if path.is_file():
        results = json.loads(path.read_text(encoding="utf-8"))
        if results["made_by"] != json.loads(json.dumps(made_by)):
            raise ValueError(f"{path} belongs to another ablation; name another --output.")
    use_available_cores()
    judge = Judge(settings, lines, seed)
    results["panel"] = {
        "lines": len(judge.panel.groups), "prompts": len(judge.panel),
        "teacher_accuracy": float(np.mean(judge.teacher.correct)), "teacher_ned": float(np.mean(judge.teacher.ned)),
    }  # fmt: skip
    results["hardware"] = describe_hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    asks = questions(load_teacher(settings), settings.guidance_scale, str(output / "latents"))
    plan = {DEFAULT: {}} | {name: change for q in asked for name, change in asks[q].items()}
    for name, changes in plan.items():
        if name in results["runs"]:
            continue
        began = time.monotonic()
        if "latents" in changes and not (output / "latents" / ABOUT).is_file():
            write_latents(output / "latents", build_dataset(settings), load_teacher(settings))
        updates, folder = updates_for(changes, steps), output / name.replace(" ", "_")
        found = checkpoints(folder)
        if updates not in found:
            more = {"output_dir": str(folder), "max_train_steps": updates}
            run_distillation(common | changes | more | {"resume_from_checkpoint": "latest" if found else None}, None)
        trained = folder / f"checkpoint-{updates}"
        adapter = trained / "ema" if changes.get("ema_decay") else trained
        seconds = time.monotonic() - began
        results["runs"][name] = {
            "changes": changes, "updates": updates, "seconds": round(seconds, 1), "read": judge(adapter),
        }  # fmt: skip
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        with whole_file(output / "table.md") as temporary:
            temporary.write_text(format_table(results) + "\n", encoding="utf-8")
    return results


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anytext_lcm.ablate",
        description="Trains students in other ways for equal compute and compares how readable they are.",
    )
    add = parser.add_argument
    add("--output", default="outputs/ablation", help="gets results.json, table.md and a folder a run "
        "(default: %(default)s)")  # fmt: skip
    add("--questions", nargs="+", default=QUESTIONS, metavar="QUESTION", help=f"among {', '.join(QUESTIONS)}")
    add("--steps", type=int, default=250, help="updates of the default; the rest cost the same (default: %(default)s)")
    add("--lines", type=int, default=256, help="lines of text to read (default: %(default)s)")
    add("--seed", type=int, default=0, help="of training and panel (default: %(default)s)")
    add("--config", default=str(EMBEDDED_CONFIG), help="yaml of the network (default: the embedded one)")
    add("--teacher_ckpt", help="its weights (default: the embedded ones)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr for what is asked and cannot be."""
    args = build_parser().parse_args(arguments)
    try:
        if args.steps < 1:
            raise ValueError(f"--steps must be a positive integer, not {args.steps}.")
        results = ablate(args.output, args.questions, args.steps, args.lines, args.seed, config=args.config,
                         teacher_ckpt=args.teacher_ckpt)  # fmt: skip
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(format_table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
