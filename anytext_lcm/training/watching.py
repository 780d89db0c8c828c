"""A fixed panel whose text is read while a student trains. The loss compares the student with itself and stays small
when pictures go bad; a text reader that has no part in the training notices.

Imports the rooms data, judge, model, pipeline, settings.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from anytext_lcm.data.batch import collate
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.drawing.draw import decode, denoise, draw_prepared, prepare
from anytext_lcm.drawing.methods import student_method, teacher_method
from anytext_lcm.judging.reading import LineReader, score_lines
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.networks import defaults_for
from anytext_lcm.training.settings import TrainSettings

PANEL_SEED = 40_000  # not the evaluation's: what a run was stopped by shall not be what it is judged by


class PanelReader:
    """Draws `settings.panel_prompts` prompts, always the same from the same noise, and reads them.

    Called with the model it answers `panel/accuracy`, the share of lines read in full, and `panel/ned`, one less the
    edit distance over the length, both 0..1. NED moves before accuracy does, so it decides what is better.
    """

    def __init__(self, settings: TrainSettings):
        self.settings = settings
        side = settings.image_size or defaults_for(settings.config).size[0]
        source = MockDataset(settings.panel_prompts, PANEL_SEED, side, split="test", edit_share=0.0, hint_share=0.0)
        self.items = [source[i] for i in range(len(source))]
        self.reader: LineReader | None = None  # its threads shall belong to the process that reads

    def __call__(self, model: AnyText2) -> dict[str, float]:
        self.reader = self.reader or LineReader(threads=1)
        prepared = prepare(model, collate(self.items), range(len(self.items)), self.settings.negative_prompt)
        images = draw_prepared(model, prepared, student_method(self.settings.num_inference_steps)).images
        polygons, texts = ([item[name] for item in self.items] for name in ("condition_polygons", "texts"))
        scores = score_lines(self.reader, images, polygons, texts)
        return {"panel/accuracy": scores.accuracy, "panel/ned": float(scores.ned.mean())}


@torch.no_grad()
def sample_grid(model: AnyText2, batch: Mapping[str, Any], settings: TrainSettings, step: int) -> dict[str, np.ndarray]:
    """Pictures (B, H, W, 3) uint8 by method: the student's in 1, 2, 4, 8 and the settings' steps, and at step 0,
    before training, the teacher's in 20.
    """
    prepared = prepare(model, dict(batch), range(len(batch["img_caption"])), settings.negative_prompt)
    methods = [student_method(steps) for steps in sorted({1, 2, 4, 8, settings.num_inference_steps})]
    if step == 0:
        methods.append(teacher_method(20, settings.guidance_scale))
    return {method.name: decode(model, denoise(model, prepared, method)) for method in methods}


# model, batch, settings, step -> pictures (B, H, W, 3) uint8 and numbers by tag; of the numbers "panel/ned" in 0..1
# decides which step was the best
OnSample = Callable[[AnyText2, Mapping[str, Any], TrainSettings, int], Mapping[str, np.ndarray | float]]
