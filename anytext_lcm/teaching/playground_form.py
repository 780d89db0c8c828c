"""The playground of notebook 05: a form around `drawing.play`."""

import base64
import html
from dataclasses import replace
from typing import Any

import ipywidgets

from anytext_lcm.data.mock import COLORS
from anytext_lcm.data.pictures import open_picture
from anytext_lcm.drawing import play
from anytext_lcm.drawing.methods import Method, student_method, teacher_method
from anytext_lcm.drawing.png import png_bytes
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.networks import Defaults
from anytext_lcm.teaching.explorers import WIDE, choice, slider

SAMPLERS = {"LCM": None, "deterministic": 0.0, "gamma 0.3": 0.3, "gamma 0.7": 0.7}  # name -> gamma
STUDENT_STEPS, TEACHER_STEPS = (1, 2, 4, 6, 8, 16), (1, 2, 4, 8, 20, 50)
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # of extra attention and residuals
ZOOM = 3  # screen pixels per pixel of a picture of 128 px


class LineRow(ipywidgets.VBox):
    """One line of text: its words, its box by two sliders with two handles each, angle and colour."""

    def __init__(self, box: play.LineBox, size: tuple[int, int], number: int):
        height, width = size

        def span(low: int, high: int, end: int, label: str) -> ipywidgets.IntRangeSlider:
            return ipywidgets.IntRangeSlider(value=(low, high), min=0, max=end, description=label, **WIDE)

        self.text = ipywidgets.Text(value=box.text, description=f"line {number}", placeholder="empty", **WIDE)
        self.across = span(box.left, box.right, width, "left to right")
        self.down = span(box.top, box.bottom, height, "top to bottom")
        self.angle = ipywidgets.IntSlider(value=round(box.angle), min=-90, max=90, description="angle", **WIDE)
        self.color = ipywidgets.Dropdown(
            options=[play.ANY, *COLORS],
            value=box.color,
            description="colour",
            **WIDE,
            tooltip="given as numbers; the embedded network follows the caption alone: yellow text on a blue wall",
        )
        super().__init__([self.text, self.across, self.down, self.angle, self.color])

    def box(self) -> play.LineBox:
        """The line as it is set."""
        (left, right), (top, bottom) = self.across.value, self.down.value
        return play.LineBox(self.text.value, left, top, right, bottom, self.angle.value, self.color.value)


class Playground(ipywidgets.VBox):
    """A form for up to five lines, a sketch of their boxes, and buttons that draw: student, teacher, or both.

    Below each picture stands how long it took and what was read in it. `press(name)` is what a button does: "student",
    "teacher" or "both". In editing mode text is written into an uploaded picture. When something cannot be drawn,
    `message` shows why and the last pictures stay. Stored outputs hold only the sketch.
    """

    def __init__(
        self,
        model: AnyText2,
        defaults: Defaults,
        reader: play.Reader | None = None,
        caption: str = "a blue background, white text",
        lines: int = play.LINES,
    ):
        self.model, self.reader = model, reader
        self.defaults = play.with_lines(defaults, lines)
        self._scale = max(1, round(ZOOM * 128 / max(defaults.size)))
        self.drawn: dict[str, play.Drawn] = {}
        left = self._controls(caption, lines)
        right = ipywidgets.VBox([self.sketch])
        super().__init__([ipywidgets.HBox([ipywidgets.VBox(left), right]), ipywidgets.HBox(self._results())])
        self._connect()
        self._redraw()

    def _controls(self, caption: str, lines: int) -> list[ipywidgets.Widget]:
        """Make what is set and pressed, from top to bottom."""
        boxes = play.default_boxes(self.defaults.size, lines)
        self.rows = [LineRow(box, self.defaults.size, i) for i, box in enumerate(boxes, 1)]
        self.forms = ipywidgets.Tab(self.rows, titles=[f"line {i}" for i in range(1, lines + 1)])
        self.caption = ipywidgets.Text(value=caption, description="caption", **WIDE)
        self.mode = ipywidgets.ToggleButtons(options=["generate", "edit"], description="mode")
        self.upload = ipywidgets.FileUpload(accept="image/*", multiple=False, description="picture to edit")
        self.steps = slider(STUDENT_STEPS, 4, "student's steps")
        self.sampler = choice(list(SAMPLERS), "student's sampler")
        self.teacher_steps = slider(TEACHER_STEPS, 50, "teacher's steps")
        self.attnx_scale = slider(WEIGHTS, 1.0, "extra attention")
        self.strength = slider(WEIGHTS, 1.0, "strength of the text")
        self.seed = ipywidgets.BoundedIntText(value=0, min=0, max=2**31 - 1, description="seed", **WIDE)
        self.buttons = {
            name: ipywidgets.Button(description=words, tooltip=tip)
            for name, words, tip in (
                ("student", "Draw (student)", "few steps, no guidance"),
                ("teacher", "Draw (teacher)", "many guided steps"),
                ("both", "Side by side", "both from the same noise"),
            )
        }
        self.sketch = ipywidgets.Image(format="png")
        self.message = ipywidgets.Label()
        return [
            self.caption,
            self.forms,
            self.mode,
            self.upload,
            self.steps,
            self.sampler,
            self.teacher_steps,
            self.attnx_scale,
            self.strength,
            self.seed,
            ipywidgets.HBox(list(self.buttons.values())),
            self.message,
        ]

    def _results(self) -> list[ipywidgets.Widget]:
        """Make the places of the pictures and of their reports."""
        self.pictures = {name: ipywidgets.Image(format="png") for name in ("student", "teacher")}
        self.reports = {name: ipywidgets.HTML() for name in self.pictures}
        for name, picture in self.pictures.items():
            picture.add_class(f"playground-{name}")
            picture.layout.display = "none"  # until there is one
        shown = ipywidgets.Layout(max_width="30em", margin="0 1em 0 0")
        return [ipywidgets.VBox([self.pictures[name], self.reports[name]], layout=shown) for name in self.pictures]

    def _connect(self) -> None:
        """Draw the sketch again when a line changes, and let the buttons draw."""
        for row in self.rows:
            for control in row.children:
                control.observe(self._redraw, names="value")
        for control in (self.mode, self.upload):
            control.observe(self._redraw, names="value")
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: self.press(name))

    def boxes(self) -> list[play.LineBox]:
        """All lines of the form, empty ones, too."""
        return [row.box() for row in self.rows]

    def photo(self):
        """The uploaded picture (H, W, 3) uint8 in editing mode, else None. Raises ValueError where it is missing."""
        if self.mode.value == "generate":
            return None
        if not self.upload.value:
            raise ValueError("Upload a picture to edit, or choose generate.")
        return open_picture(bytes(self.upload.value[0]["content"]))

    def method(self, name: str) -> Method:
        """The student's or the teacher's method, with steps, sampler and weights as they are set."""
        if name == "teacher":
            method = teacher_method(self.teacher_steps.value, self.defaults.guidance_scale)
        else:
            method = student_method(self.steps.value, gamma=SAMPLERS[self.sampler.value])
        return replace(method, attnx_scale=self.attnx_scale.value, strength=self.strength.value)

    def press(self, name: str) -> None:
        """Draw with the student, the teacher or both, as the button of this name does."""
        for button in self.buttons.values():
            button.disabled = True
        try:
            for one in ("student", "teacher") if name == "both" else (name,):
                self.message.value = f"The {one} draws ..."
                scene = play.Scene(self.caption.value, self.boxes(), self.photo())
                drawn = play.draw_scene(
                    self.model, scene, self.method(one), self.seed.value, self.defaults, self.reader
                )
                self.drawn[one] = drawn
                self.pictures[one].value = png_bytes(drawn.image, self._scale)
                self.pictures[one].layout.display = ""
                self.reports[one].value = html.escape(drawn.report(), quote=False)
            self.message.value = ""
        except ValueError as error:
            self.message.value = str(error)
        finally:
            for button in self.buttons.values():
                button.disabled = False

    def _redraw(self, _change: object = None) -> None:
        try:
            sketch = play.layout(self.boxes(), self.defaults.size, self.photo(), self._scale)
            self.sketch.value = png_bytes(sketch)
            self.message.value = ""
        except ValueError as error:
            self.message.value = str(error)

    def __repr__(self) -> str:
        return f"Playground({len(self.rows)} lines)"

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        bundle = super()._repr_mimebundle_(**options)
        return {**bundle, "text/plain": repr(self), "image/png": base64.b64encode(self.sketch.value).decode()}
