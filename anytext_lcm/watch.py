"""A fixed panel whose text is read while a student trains. The loss compares the student with itself and stays small
when pictures go bad; a text reader that has no part in the training notices.

Imports torch and the rooms evaluate, judge, pipeline, settings.
"""

from anytext_lcm.evaluate import Panel, prepare_panel
from anytext_lcm.judge import LineReader, score_lines
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.pipeline import defaults_for, draw, student_method
from anytext_lcm.settings import TrainSettings


class PanelReader:
    """Draws `settings.panel_prompts` prompts, always the same from the same noise, and reads them.

    Called with the model it answers `panel/accuracy`, the share of lines read in full, and `panel/ned`, one less the
    edit distance over the length, both 0..1. NED moves before accuracy does, so it decides what is better.
    """

    def __init__(self, settings: TrainSettings):
        self.settings = settings
        side = settings.image_size or defaults_for(settings.config).size[0]
        self.panel = Panel.build(prompts=settings.panel_prompts, image_size=side)
        self.reader: LineReader | None = None  # its threads shall belong to the process that reads

    def __call__(self, model: AnyText2) -> dict[str, float]:
        self.reader = self.reader or LineReader(threads=1)
        prepared = prepare_panel(model, self.panel, self.settings.negative_prompt)
        images = draw(model, prepared, student_method(self.settings.num_inference_steps)).images
        scores = score_lines(self.reader, images, self.panel.polygons, self.panel.texts)
        return {"panel/accuracy": scores.accuracy, "panel/ned": float(scores.ned.mean())}
