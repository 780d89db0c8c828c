"""What is looked at while a student trains: curves, sample pictures, and a panel whose text is read.

The loss compares the student with itself and stays small when pictures go bad; a reader that takes no part in the
training notices.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from anytext_lcm.adapter.choices import made_for
from anytext_lcm.data.anyword import AnyWordDataset
from anytext_lcm.data.batch import collate
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.data.packed import expand
from anytext_lcm.drawing.draw import decode, denoise, draw_prepared, prepare
from anytext_lcm.drawing.methods import Method, student_method, teacher_method
from anytext_lcm.figures.contact_sheet import contact_sheet
from anytext_lcm.files import atomic_file, printable
from anytext_lcm.judging.own_panel import held_out_items
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.training.path_store import PathDataset, Wishes
from anytext_lcm.training.resume import TrainingState
from anytext_lcm.training.settings import TrainSettings

PANEL_SEED = 40_000  # differs from the evaluation's: early stopping must not see the test panel
SHOWN_PROBLEMS = 3  # of each kind
SHOWN_PICTURES = 4

HeldOut = AnyWordDataset | Wishes
"""Prompts that are not trained on: records, or captions without pictures."""

# (model, batch, settings, step) -> pictures (B, H, W, 3) uint8 and numbers by tag; "panel/ned", a number in 0..1,
# decides which step is the best
OnSample = Callable[[AnyText2, Mapping[str, Any], TrainSettings, int], Mapping[str, np.ndarray | float]]


@torch.no_grad()
def sample_pictures(
    model: AnyText2, batch: Mapping[str, Any], settings: TrainSettings, step: int
) -> dict[str, np.ndarray]:
    """Pictures (B, H, W, 3) uint8 by method: the student's in 1, 2, 4, 8 and `num_inference_steps` steps, and at step
    0 the teacher's in 20.
    """
    prepared = prepare(model, dict(batch), range(len(batch["img_caption"])), settings.negative_prompt)
    methods = [suited_method(settings, steps) for steps in sorted({1, 2, 4, 8, settings.num_inference_steps})]
    if step == 0:
        methods.append(teacher_method(20, settings.guidance_scale))
    return {method.name: decode(model, denoise(model, prepared, method)) for method in methods}


def suited_method(settings: TrainSettings, steps: int) -> Method:
    """The student by the sampler that its objective trains for."""
    sampler = made_for(settings.objective, settings.phases).samplers[0]
    return student_method(steps, gamma=0.0 if sampler == "deterministic" else None)


class ReadingPanel:
    """Draws prompts, always the same from the same noise, and reads them.

    Called with the model it returns `panel/accuracy`, the share of lines read in full, and `panel/ned`, 1 minus the
    normalised edit distance; both 0..1. NED moves before accuracy does, so it decides what is better.
    """

    def __init__(self, settings: TrainSettings, items: Sequence[Mapping[str, Any]]):
        """items: of `panel_items`."""
        self.settings, self.items = settings, items
        self.reader = None  # made in the process that reads, since its threads do not survive a fork

    def __call__(self, model: AnyText2) -> dict[str, float]:
        from anytext_lcm.judging.reading import LineReader, score_lines  # onnxruntime, in the process that reads

        self.reader = self.reader or LineReader(threads=1)
        prepared = prepare(model, expand(collate(self.items)), range(len(self.items)), self.settings.negative_prompt)
        method = suited_method(self.settings, self.settings.num_inference_steps)
        images = draw_prepared(model, prepared, method).images
        polygons = [item.get("condition_polygons", item["polygons"]) for item in self.items]
        texts = [item["texts"] for item in self.items]
        scores = score_lines(self.reader, images, polygons, texts)
        return {"panel/accuracy": scores.accuracy, "panel/ned": float(scores.ned.mean())}


def panel_items(settings: TrainSettings, held_out: HeldOut | None, own_captions: bool = False) -> list[dict[str, Any]]:
    """The prompts of a run's panel, `panel_prompts` or as many as there are: held-out records or captions, or for mock
    data scenes with words of their own. None of other data that hold nothing out, as paths of own captions: prompts of
    another task would say nothing.

    Raises ValueError as `held_out_items`.
    """
    count = settings.panel_prompts
    if held_out is not None:
        return held_out_items(held_out, prompts=max(count, SHOWN_PICTURES))[0]
    if settings.data_list or own_captions or not count:
        return []
    source = MockDataset(count, PANEL_SEED, settings.picture_size, split="test", edit_share=0.0, hint_share=0.0)
    return [source[i] for i in range(len(source))]


def write_sheet(path: Path, batch: Mapping[str, Any], drawn: Mapping[str, np.ndarray]) -> None:
    """Write the pictures of `sample_pictures` below each other as a PNG, the batch's own on the left if it has any."""
    own = {}
    if "img" in batch:
        own["data"] = np.rint((batch["img"].cpu().numpy().transpose(0, 2, 3, 1) + 1) * 127.5).astype(np.uint8)
    rows = min(map(len, (*own.values(), *drawn.values())))
    labels = [[f'"{text}"' for text in texts] for texts in batch["texts"][:rows]]
    with atomic_file(path) as temporary:
        Image.fromarray(contact_sheet({**own, **drawn}, labels)).save(temporary)


def report_problems(problems: Sequence[str], counts: Counter[str]) -> None:
    """Count sentences about records by kind, and print the first few of each kind."""
    for sentence in problems:
        kind = sentence.split(", record ", 1)[-1].split(": ", 1)[0].split(", ")[-1]
        counts[kind] += 1
        if counts[kind] <= SHOWN_PROBLEMS:
            tqdm.write(printable(sentence))


def problem_counts(counts: Mapping[str, int]) -> str:
    """All kinds with their number."""
    return ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))


class Watcher:
    """Logs a run to TensorBoard, the terminal and its progress: numbers of updates, sample pictures (also as PNG in
    output_dir/samples), the panel.

    All processes make one and call the same methods; only the first draws and writes.
    """

    def __init__(
        self,
        state: TrainingState,
        settings: TrainSettings,
        dataset: Dataset,
        on_sample: OnSample | None,
        held_out: HeldOut | None = None,
    ):
        """on_sample draws the first four held-out prompts, or of `dataset`; without it the panel alone is drawn."""
        self.state, self.settings, self.on_sample = state, settings, on_sample
        self.problems: Counter[str] = Counter()
        self.watching = state.accelerator.is_main_process and settings.sample_steps > 0
        self.batch = self.panel = None
        if not self.watching:
            return
        own_captions = isinstance(dataset, PathDataset) and dataset.wishes.captions is not None
        items = panel_items(settings, held_out, own_captions)
        if on_sample is not None:
            shown = items if held_out is not None else [dataset[i] for i in range(min(SHOWN_PICTURES, len(dataset)))]
            self.batch = expand(collate(shown[:SHOWN_PICTURES]))
        if items and settings.panel_prompts:
            self.panel = ReadingPanel(settings, items[: settings.panel_prompts])
        elif settings.panel_prompts:
            tqdm.write("No panel is read: hold records out with --validation_list or --validation_share.")

    def start(self, resumed: bool) -> None:
        """Open the logs and the progress bar, and log the samples of a run that is not `resumed`. Collective."""
        accelerator, settings, step = self.state.accelerator, self.settings, self.state.progress.step
        # what a killed run logged after its last checkpoint is written again
        purge = {"purge_step": step + 1 if resumed else 0} if settings.resume_from_checkpoint else {}
        plain = {k: v for k, v in settings.identity().items() if isinstance(v, int | float | str)}
        accelerator.init_trackers("distill", plain, init_kwargs={"tensorboard": purge})
        if not resumed:
            self.log_samples()
        shown = settings.progress and accelerator.is_main_process
        self.bar = tqdm(total=settings.max_train_steps, initial=step, desc="distil", disable=not shown)

    def log_update(self, values: Mapping[str, float], problems: Sequence[str]) -> None:
        """Log an update's numbers, and print the problems of its records."""
        report_problems(problems, self.problems)
        self.state.accelerator.log(dict(values), step=self.state.progress.step)
        speed = f"{values['samples_per_second']:.2f}"
        self.bar.set_postfix({"loss": values["loss"], "samples/s": speed}, refresh=False)  # three digits, however small
        self.bar.update()

    def draw_and_read(self) -> dict[str, np.ndarray | float]:
        """Pictures and scores by tag. After step 0 pictures that are not finite give none, and a printed sentence: such
        an adapter may recover.
        """
        step = self.state.progress.step
        try:
            drawn = {} if self.batch is None else self.on_sample(self.state.model, self.batch, self.settings, step)
            return dict(drawn) | (self.panel(self.state.model) if self.panel is not None else {})
        except ValueError as error:
            if not step:
                raise
            tqdm.write(f"No sample pictures at step {step}: {error}")
            return {}

    def log_samples(self) -> None:
        """Log pictures and scores of student and average; every process notes the best step. Collective."""
        accelerator, progress, ema = self.state.accelerator, self.state.progress, self.state.ema
        if self.watching:
            with accelerator.autocast():
                found = self.draw_and_read()
                if ema is not None and progress.step:
                    with ema.applied():
                        found |= {f"ema/{tag}": value for tag, value in self.draw_and_read().items()}
            drawn = {tag: value for tag, value in found.items() if isinstance(value, np.ndarray)}
            if drawn:
                write_sheet(Path(self.settings.output_dir) / "samples" / f"{progress.step:06d}.png", self.batch, drawn)
            writer = accelerator.get_tracker("tensorboard", unwrap=True)
            for tag, value in found.items():
                if isinstance(value, np.ndarray):
                    writer.add_images(f"samples/{tag}", value, progress.step, dataformats="NHWC")
                else:
                    writer.add_scalar(tag, value, progress.step)
            if progress.step and "panel/ned" in found:
                progress.note_score(float(found["panel/ned"]))
                writer.add_scalar("panel/since_best", progress.panels_since_best, progress.step)
        best = (progress.best_score, progress.best_step, progress.panels_since_best)
        [best] = broadcast_object_list([best])
        progress.best_score, progress.best_step, progress.panels_since_best = best

    def close(self) -> None:
        """Print why the run ended early, if it did, and how many records had problems."""
        self.bar.close()
        progress = self.state.progress
        if progress.step < self.settings.max_train_steps and self.state.accelerator.is_main_process:
            tqdm.write(
                f"Stopped after {progress.step} updates: {progress.panels_since_best} panels in a row read no better "
                f"than at {progress.best_step}; the best adapter is in checkpoint-{progress.best_step}."
            )
        if self.problems:
            tqdm.write(f"Records mended or stepped over: {problem_counts(self.problems)}.")
