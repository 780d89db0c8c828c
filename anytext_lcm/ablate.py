"""Command: train the same student in other ways for equal compute and compare how readable and how real each is.
`python -m anytext_lcm.ablate --output outputs/ablation`

Every question of QUESTIONS is asked by itself: one setting changes, the others stay what the shipped adapter was
trained with. Each answer is a training run of its own, judged on one panel from the same noise. The folder is the
work list: a finished run is never done again, a run that is in hand is locked, so the same command goes on where it
was stopped and may run several times at once. Imports torch, numpy, cv2, Pillow,
filelock, demo, evaluate, judge and the rooms that these stand on.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image

from anytext_lcm import __version__
from anytext_lcm.checkpoints import EMA_FOLDER, checkpoints, fingerprint
from anytext_lcm.data.batch import collate
from anytext_lcm.data.light import expand
from anytext_lcm.demo import DEFAULTS
from anytext_lcm.distill import DistillStep, build_dataset, load_teacher, run_distillation, seeded_generator
from anytext_lcm.evaluate import Panel, prepare_panel, real_pictures
from anytext_lcm.judge import (
    DetectorFeatures,
    LineReader,
    bootstrap_mean,
    distribution_distance,
    paired_bootstrap,
    score_lines,
)
from anytext_lcm.latents import ABOUT, write_latents
from anytext_lcm.lora import attach, find_targets, load_adapter, resolve_targets
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.outputs import check_writable, whole_file
from anytext_lcm.pipeline import (
    EMBEDDED_CONFIG,
    Drawing,
    Method,
    default_device,
    defaults_for,
    describe_hardware,
    draw,
    student_method,
    teacher_method,
    untrained_method,
    use_available_cores,
)
from anytext_lcm.settings import TrainSettings
from anytext_lcm.sheet import contact_sheet

DEFAULT, UNTRAINED = "default", "untrained"
STUDENT_STEPS = (4, 8)
TEACHER_STEPS = 50
SHEET_ROWS = 8
# What an update costs, in forward passes of the UNet: the teacher's two branches, the student's pass with a backward
# pass of two more, and for `lcm` the target. What an adapter's groups cost besides is in the seconds.
PASSES = {"lcm": 6, "teacher_x0": 5}
# The recipe of the shipped adapter, so that every answer differs from it in one thing.
RECIPE = {
    "use_mock_dataset": True, "train_batch_size": DEFAULTS.batch, "gradient_accumulation_steps": 1,
    "loss": DEFAULTS.loss, "learning_rate": DEFAULTS.learning_rate, "lr_warmup_steps": DEFAULTS.warmup,
    "ema_decay": DEFAULTS.ema, "lora_rank": DEFAULTS.rank, "lora_alpha": DEFAULTS.rank,
    "lora_targets": DEFAULTS.targets, "sample_steps": 0, "mixed_precision": "no",
    "checkpointing_steps": 50, "checkpoints_total_limit": 1,
}  # fmt: skip


def questions(model: AnyText2, settings: TrainSettings, latents: str) -> dict[str, dict[str, dict[str, Any]]]:
    """{question: {answer: settings that differ from the default's}}. latents: where cached ones lie."""
    trunk = "model.diffusion_model."
    shipped = resolve_targets(model, settings.lora_targets)
    decoder = [name for name in shipped if name.startswith((f"{trunk}middle", f"{trunk}output"))]
    no_convs = tuple(name for name in DEFAULTS.targets if name not in ("zero_convs", "middle_block_out"))
    return {
        "objective": {"teacher_x0": {"objective": "teacher_x0"}},
        "adapter": {
            "the seed's groups": {"lora_targets": tuple(name for name, found in find_targets(model).items() if found)},
            "without zero convs": {"lora_targets": no_convs},
            "attnx alone": {"lora_targets": ("unet_attnx",)},
            "decoder alone": {"lora_targets": tuple(decoder)},
        },
        "rank": {f"rank {rank}": {"lora_rank": rank, "lora_alpha": rank} for rank in (4, 16, 64)},
        "loss": {"Huber": {"loss": "huber"}},
        "latents": {"cached latents": {"latents": latents}},
        "average": {"no average": {"ema_decay": 0.0}},
    }


QUESTIONS = (
    "objective", "adapter", "rank", "loss", "latents", "average",
)  # fmt: skip


def updates_for(changes: Mapping[str, Any], steps: int) -> int:
    """As many updates as cost what `steps` of the default cost."""
    return round(steps * PASSES["lcm"] / PASSES[changes.get("objective", "lcm")])


def training_of(name: str, changes: Mapping[str, Any]) -> str:
    """The folder that a run is trained in: "no average" needs none of its own, it is the default's last weights."""
    return DEFAULT if changes == {"ema_decay": 0.0} else name.replace(" ", "_")


# -- judging --------------------------------------------------------------------------------------------


class Judge:
    """One panel, the teacher's readings of it, and a student's beside them.

    What depends on no student (the teacher's lines, features of real pictures) is worked out once and kept in a file
    of the folder named by panel and weights; a second process waits for the first.
    """

    def __init__(self, settings: TrainSettings, folder: Path, lines: int, seed: int):
        self.settings, threads = settings, torch.get_num_threads()
        self.panel = Panel.build(lines=lines, seed=seed, image_size=defaults_for(settings.config).size[0])
        self.reader, self.features = LineReader(threads), DetectorFeatures(threads)
        model = load_teacher(settings).to(default_device())
        self.prepared = prepare_panel(model, self.panel, settings.negative_prompt)  # no adapter reaches it
        about = f"{fingerprint(model)}-{lines}-{seed}-{settings.guidance_scale:g}-{TEACHER_STEPS}"
        path = folder / f"teacher-{about}.npz"
        with FileLock(folder / ".teacher.lock"):
            if not path.is_file():
                self._look_at_the_teacher(model, path)
        with np.load(path) as stored:
            self.teacher_right, self.teacher_ned = stored["right"], stored["ned"]
            self.teacher_features, self.real = stored["features"], stored["real"]
            self.denoise_seconds, self.other_seconds = stored["seconds"].tolist()

    def _look_at_the_teacher(self, model: AnyText2, path: Path) -> None:
        began = time.perf_counter()
        drawing = self.draw(model, teacher_method(TEACHER_STEPS, self.settings.guidance_scale))
        scores = score_lines(self.reader, drawing.images, self.panel.polygons, self.panel.texts)
        features, denoise = self.features(drawing.images), drawing.clock.wall["denoise"]
        seconds = (denoise, time.perf_counter() - began - denoise)
        # As many real pictures as are drawn, and as many again for the floor.
        real = self.features(real_pictures(2 * len(self.panel), self.panel.images.shape[1], self.panel.seed))
        with whole_file(path) as temporary:
            np.savez(temporary, right=scores.correct, ned=scores.ned, features=features, real=real, seconds=seconds)

    def draw(self, model: AnyText2, method: Method) -> Drawing:
        return draw(model, self.prepared, method)

    @property
    def seconds(self) -> float:
        """About what judging a run takes, from what the teacher took."""
        share = sum(STUDENT_STEPS) / teacher_method(TEACHER_STEPS, self.settings.guidance_scale).evaluations
        return self.denoise_seconds * share + len(STUDENT_STEPS) * self.other_seconds

    def about(self) -> dict[str, Any]:
        """The panel, and how the teacher stands on it."""
        distance = distribution_distance(self.teacher_features, self.real)
        return {
            "lines": len(self.panel.groups), "prompts": len(self.panel), "groups": self.panel.groups.tolist(),
            "teacher_accuracy": asdict(bootstrap_mean(self.teacher_right, self.panel.groups)),
            "teacher_ned": asdict(bootstrap_mean(self.teacher_ned, self.panel.groups)),
            "teacher_kernel": asdict(distance.kernel), "floor_kernel": asdict(distance.kernel_floor),
        }  # fmt: skip

    def __call__(self, adapter: Path | None, sheet: Path, title: str) -> dict[str, dict[str, Any]]:
        """What a student is like, by its number of steps, with intervals: accuracy, NED, retention (its share of lines
        right over the teacher's, None where the teacher has none right), kernel distance to real pictures, and a digit
        a line, 1 for read right. Without an adapter it is the untrained one. sheet: gets its first pictures.
        """
        model, groups = load_teacher(self.settings).to(default_device()), self.panel.groups
        if adapter is not None:
            load_adapter(model, adapter)
        found, columns = {}, {}
        for steps in STUDENT_STEPS:
            method = untrained_method(steps) if adapter is None else student_method(steps)
            images = self.draw(model, method).images
            scores = score_lines(self.reader, images, self.panel.polygons, self.panel.texts)
            retention = None
            if self.teacher_right.any():
                retention = asdict(paired_bootstrap(scores.correct, self.teacher_right, groups))
            found[str(steps)] = {
                "accuracy": asdict(bootstrap_mean(scores.correct, groups)),
                "ned": asdict(bootstrap_mean(scores.ned, groups)),
                "retention": retention,
                "kernel": asdict(distribution_distance(self.features(images), self.real).kernel),
                "right": "".join(str(int(right)) for right in scores.correct),
            }
            columns[f"{title}\n{steps} steps"] = images
        with whole_file(sheet) as temporary:
            Image.fromarray(contact_sheet(columns, self.panel.labels(SHEET_ROWS))).save(temporary)
        return found


# -- the table ------------------------------------------------------------------------------------------


def _interval(values: Mapping[str, float] | None) -> str:
    return "-" if values is None else f"{values['value']:.3f} [{values['low']:.3f}, {values['high']:.3f}]"


def _over_default(results: Mapping[str, Any], name: str, steps: str) -> Mapping[str, float] | None:
    """Lines right over the default's on the same lines, None where the default is missing or has none right."""
    read = {n: run["read"][steps]["right"] for n, run in results["runs"].items() if "read" in run}
    if name == DEFAULT or "1" not in read.get(DEFAULT, ""):
        return None
    mine, others = (np.array([digit == "1" for digit in read[n]]) for n in (name, DEFAULT))
    return asdict(paired_bootstrap(mine, others, results["panel"]["groups"]))


def format_table(results: Mapping[str, Any]) -> str:
    """The runs as a table in Markdown: the default first, then by NED in four steps."""
    lines = [
        "| run | updates | CPU s | right, 4 steps | retention | over the default | kernel distance "
        "| right, 8 steps | retention | over the default | kernel distance |",
        "|---|---:|---:|---|---|---|---|---|---|---|---|",
    ]
    runs = results["runs"]
    read = [name for name in runs if "read" in runs[name]]
    for name in sorted(read, key=lambda n: (n != DEFAULT, -runs[n]["read"]["4"]["ned"]["value"])):
        run = runs[name]
        cpu = "-" if run["cpu_seconds"] is None else f"{run['cpu_seconds']:.0f}"
        cells = [name, str(run["updates"]), cpu]
        for steps in map(str, STUDENT_STEPS):
            of = run["read"][steps]
            values = (of["accuracy"], of["retention"], _over_default(results, name, steps), of["kernel"])
            cells += map(_interval, values)
        lines.append("| " + " | ".join(cells) + " |")
    lines += [f"\n{name} failed: {run['failed']}" for name, run in runs.items() if "failed" in run]
    panel = results["panel"]
    return "\n".join(
        [
            *lines,
            "",
            f"{panel['lines']} lines of {panel['prompts']} prompts, 95 % intervals over prompts. The teacher's "
            f"{TEACHER_STEPS} steps: right {_interval(panel['teacher_accuracy'])}, kernel distance "
            f"{_interval(panel['teacher_kernel'])}; other real pictures {_interval(panel['floor_kernel'])}.",
        ]
    )


# -- the runs -------------------------------------------------------------------------------------------


class Results:
    """results.json and table.md of a folder that several processes may write to."""

    def __init__(self, folder: Path, made_by: Mapping[str, Any]):
        """Raises ValueError when the file there belongs to another recipe, length, panel or teacher."""
        self.path, self.lock = folder / "results.json", FileLock(folder / ".results.lock")
        with self.lock:
            if not self.path.is_file():
                self._write({"made_by": made_by, "runs": {}})
            elif self.read()["made_by"] != json.loads(json.dumps(made_by)):
                raise ValueError(f"{self.path} belongs to another ablation; name another --output.")

    def read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text(encoding="utf-8"))

    def _write(self, results: Mapping[str, Any]) -> None:
        with whole_file(self.path) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    def add(self, runs: Mapping[str, Any], **more: Any) -> None:
        """Puts runs, and other entries, beside what is there."""
        with self.lock:
            results = self.read() | more
            results["runs"] |= runs
            self._write(results)
            if "panel" not in results:  # nobody has judged yet
                return
            with whole_file(self.path.with_name("table.md")) as temporary:
                temporary.write_text(format_table(results) + "\n", encoding="utf-8")


def seconds_an_update(settings: TrainSettings) -> float:
    """Of the default, here and now: one batch drawn, forward and backward, after another to warm up."""
    model = attach(load_teacher(settings), settings.lora_rank, settings.lora_alpha, settings.lora_targets)
    model.to(default_device())
    step = DistillStep(model, guidance_scale=settings.guidance_scale, negative_prompt=settings.negative_prompt).eval()
    dataset = build_dataset(settings)
    for _ in range(2):
        began = time.perf_counter()
        items = [dataset[i] for i in range(min(settings.train_batch_size, len(dataset)))]
        batch = expand(collate(items), model.device)
        step(batch, seeded_generator(0)).loss.backward()
    return settings.gradient_accumulation_steps * (time.perf_counter() - began)


def _train(settings: TrainSettings, folder: Path) -> tuple[float | None, float | None]:
    """Trains in the folder, or goes on there -> seconds and CPU seconds, None for a run that was stopped between."""
    found = checkpoints(folder)
    if settings.max_train_steps in found:
        return None, None
    began, cpu = time.perf_counter(), time.process_time()
    values = asdict(settings) | {"output_dir": str(folder), "resume_from_checkpoint": "latest" if found else None}
    run_distillation(values, None)
    if found:
        return None, None
    return round(time.perf_counter() - began, 1), round(time.process_time() - cpu, 1)


def ablate(
    output: str | Path,
    asked: Sequence[str] = QUESTIONS,
    steps: int = DEFAULTS.steps,
    lines: int = 256,
    seed: int = 0,
    **recipe: Any,
) -> dict[str, Any]:
    """Trains and judges the default and every answer to the questions asked -> what is in results.json.

    Runs that another process has in hand are left to it. recipe: settings of training other than RECIPE's. Raises
    ValueError for an unknown question, and when the folder belongs to another recipe, length, panel or teacher.
    """
    if unknown := sorted(set(asked) - set(QUESTIONS)):
        raise ValueError(f"There is no question {', '.join(unknown)}; ask among {', '.join(QUESTIONS)}.")
    if lines < 16:
        raise ValueError(f"--lines must be 16 or more, not {lines}: fewer pictures say nothing about a distribution.")
    output = Path(output)
    most = updates_for({"objective": "teacher_x0"}, steps) * RECIPE["train_batch_size"]  # so none is seen twice
    common = {"config": str(EMBEDDED_CONFIG), "output_dir": str(output / DEFAULT), "seed": seed, "dataset_size": most}
    common |= RECIPE | {"lr_warmup_steps": min(DEFAULTS.warmup, steps)} | recipe
    settings = TrainSettings.from_dict(common)
    check_writable(output / "results.json")
    teacher = load_teacher(settings)
    made_by = {
        "anytext_lcm": __version__, "teacher": fingerprint(teacher), "steps": steps, "lines": lines, "seed": seed,
        "recipe": {k: v for k, v in settings.identity().items() if k != "seed"},
    }  # fmt: skip
    results = Results(output, made_by)
    asks = questions(teacher, settings, str(output / "latents"))
    plan: dict[str, Any] = {DEFAULT: {}, UNTRAINED: None} | {n: change for q in asked for n, change in asks[q].items()}
    trainings: dict[str, list[str]] = {}
    for name, changes in plan.items():
        trainings.setdefault(UNTRAINED if changes is None else training_of(name, changes), []).append(name)
    left = set(plan) - set(results.read()["runs"])
    if not left:
        return results.read()
    update = seconds_an_update(settings)
    print(f"{len(left)} of {len(plan)} runs are to do. One trains for about {steps * update / 60:.1f} minutes here: "
          f"{steps} updates of {update:.2f} s.", flush=True)  # fmt: skip

    @cache
    def judge() -> Judge:
        """Made when first needed: while one process reads the teacher, another may train."""
        made = Judge(settings, output, lines, seed)
        results.add({}, panel=made.about(), hardware=describe_hardware(default_device()))
        print(f"Judging a run takes about {made.seconds:.0f} s here.", flush=True)
        return made

    for folder, names in trainings.items():
        try:
            with FileLock(output / f".{folder}.lock", timeout=0):
                for name in names:
                    if name not in results.read()["runs"]:
                        results.add({name: _run(name, plan[name], common, steps, output, folder, judge)})
        except Timeout:
            print(f"{', '.join(names)}: another process is at it.", flush=True)
    return results.read()


def _run(
    name: str, changes: Mapping[str, Any] | None, common: Mapping[str, Any], steps: int, output: Path, folder: str,
    judge: Callable[[], Judge],
) -> dict[str, Any]:  # fmt: skip
    """One run's entry in results.json; a training that gave up has a sentence in place of its readings."""
    entry: dict[str, Any] = {"changes": changes, "updates": 0, "seconds": None, "cpu_seconds": None}
    adapter = None
    if changes is not None:
        entry["updates"] = updates_for(changes, steps)
        shared = {} if folder == DEFAULT else changes
        settings = TrainSettings.from_dict({**common, **shared, "max_train_steps": entry["updates"]})
        if settings.latents and not (Path(settings.latents) / ABOUT).is_file():
            write_latents(settings.latents, build_dataset(settings), load_teacher(settings))
        try:
            entry["seconds"], entry["cpu_seconds"] = _train(settings, output / folder)
        except FloatingPointError as error:
            return entry | {"failed": str(error)}
        adapter = output / folder / f"checkpoint-{entry['updates']}"
        if (common | changes)["ema_decay"]:
            adapter /= EMA_FOLDER
    look, began = judge(), time.perf_counter()
    entry["read"] = look(adapter, output / "sheets" / f"{name.replace(' ', '_')}.png", name)
    trained = "not timed" if entry["seconds"] is None else f"{entry['seconds']:.0f} s"
    print(f"{name}: trained {trained}, judged {time.perf_counter() - began:.0f} s.", flush=True)
    return entry


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anytext_lcm.ablate",
        description="Trains students in other ways for equal compute and compares how readable they are. Start it "
        "again to go on, or several times with the same flags to work side by side.",
    )
    add = parser.add_argument
    add("--output", default="outputs/ablation", help="gets results.json, table.md, sheets/ and a folder a run "
        "(default: %(default)s)")  # fmt: skip
    add("--questions", nargs="+", default=QUESTIONS, metavar="QUESTION", help=f"among {', '.join(QUESTIONS)}")
    add("--steps", type=int, default=DEFAULTS.steps, help="updates of the default; the rest cost the same "
        "(default: %(default)s)")  # fmt: skip
    add("--lines", type=int, default=256, help="lines of text to read (default: %(default)s)")
    add("--seed", type=int, default=0, help="of training and panel (default: %(default)s)")
    add("--threads", type=int, help="of this process; 1 for each of several side by side (default: all cores)")
    add("--config", default=str(EMBEDDED_CONFIG), help="yaml of the network (default: the embedded one)")
    add("--teacher_ckpt", help="its weights (default: the embedded ones)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr for what is asked and cannot be."""
    args = build_parser().parse_args(arguments)
    try:
        for name in ("steps", "threads"):
            value = getattr(args, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be a positive integer, not {value}.")
        use_available_cores()
        if args.threads:
            torch.set_num_threads(args.threads)
            cv2.setNumThreads(args.threads)
        results = ablate(args.output, args.questions, args.steps, args.lines, args.seed, config=args.config,
                         teacher_ckpt=args.teacher_ckpt)  # fmt: skip
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if "panel" in results:  # else others have all runs in hand and none is judged yet
        print(format_table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
