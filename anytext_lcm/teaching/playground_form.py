"""The playground of notebook 05: a form around `drawing.play`."""

import base64
import html
from dataclasses import replace
from typing import Any

import ipywidgets
import numpy as np

from anytext_lcm.data.colours import COLORS
from anytext_lcm.data.pictures import open_picture
from anytext_lcm.drawing import play
from anytext_lcm.drawing.methods import Method, student_method, teacher_method
from anytext_lcm.drawing.png import png_bytes
from anytext_lcm.figures.pictures import picture_grid
from anytext_lcm.figures.style import DPI, WIDTH
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.networks import Defaults
from anytext_lcm.teaching.explorers import png

SAMPLERS = {"LCM": None, "deterministic": 0.0, "gamma 0.3": 0.3, "gamma 0.7": 0.7}  # name -> gamma
STUDENT_STEPS, TEACHER_STEPS = (1, 2, 4, 6, 8, 16), (1, 2, 4, 8, 20, 50)
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # of extra attention and residuals
DRAWERS = ("student", "teacher")
ZOOM = 3  # screen pixels per pixel of a picture of 128 px
# The form and the pictures share a row where it is wide enough, and stand below each other where it is not.
FORM = {"flex": "1 1 22em", "min_width": "0", "max_width": "34em"}
RESULTS = {"flex": "1 1 20em", "min_width": "0", "flex_flow": "row wrap"}
PICTURE = {"width": "100%", "max_width": "20em"}
SKETCH = {"width": "12em", "max_width": "100%"}  # above the pictures, which stand side by side


def _field() -> dict[str, Any]:
    """How a control is laid out: as wide as the form, with its name in a narrow column."""
    layout = ipywidgets.Layout(width="auto", min_width="0", margin="1px")
    return {"style": {"description_width": "9.5em"}, "layout": layout}


def _steps(places: tuple[float, ...], value: float, label: str) -> ipywidgets.SelectionSlider:
    return ipywidgets.SelectionSlider(options=list(places), value=value, description=label, **_field())


class LineRow(ipywidgets.VBox):
    """One line of text: its words, its box by two sliders with two handles each, angle, and colour."""

    def __init__(self, box: play.LineBox, size: tuple[int, int], number: int):
        height, width = size
        self.text = ipywidgets.Text(value=box.text, description=f"line {number}", placeholder="empty", **_field())
        self.across = self._span(box.left, box.right, width, "across")
        self.down = self._span(box.top, box.bottom, height, "down")
        self.angle = ipywidgets.IntSlider(value=round(box.angle), min=-90, max=90, description="angle", **_field())
        self.color = ipywidgets.Dropdown(options=[play.ANY, *COLORS], value=box.color, description="colour", **_field())
        super().__init__([self.text, self.across, self.down, self.angle, self.color])

    @staticmethod
    def _span(low: int, high: int, end: int, name: str) -> ipywidgets.IntRangeSlider:
        """A slider with two handles; its name says where they stand, since the usual read-out is cut off."""
        slider = ipywidgets.IntRangeSlider(value=(low, high), min=0, max=end, readout=False, **_field())

        def say(_change: object = None) -> None:
            slider.description = f"{name} {slider.value[0]} to {slider.value[1]}"

        slider.observe(say, names="value")
        say()
        return slider

    def box(self) -> play.LineBox:
        """The line as it is set."""
        (left, right), (top, bottom) = self.across.value, self.down.value
        return play.LineBox(self.text.value, left, top, right, bottom, self.angle.value, self.color.value)


class Playground(ipywidgets.VBox):
    """A form for up to five lines, a sketch of their boxes, and buttons that draw: student, teacher, or both.

    Above each picture stands who drew it, below it how long it took and what was read. A picture that does not show
    what is set now is greyed. `press(name)` is what a button does: "student", "teacher" or "both". In editing mode text
    is written into an uploaded picture. When something cannot be drawn, `message` shows why. first: pressed at the
    start, so that stored outputs show pictures.
    """

    def __init__(
        self,
        model: AnyText2,
        defaults: Defaults,
        reader: play.Reader | None = None,
        caption: str = "a blue background, white text",
        lines: int = play.LINES,
        first: str | None = None,
    ):
        self.model, self.reader = model, reader
        self.defaults = play.with_lines(defaults, lines)
        self._scale = max(1, round(ZOOM * 128 / max(defaults.size)))
        self.drawn: dict[str, play.Drawn] = {}
        self._drawn_from: dict[str, tuple] = {}  # what was set when it was drawn
        form = ipywidgets.VBox(self._controls(caption, lines), layout=ipywidgets.Layout(**FORM))
        shown = ipywidgets.Box(self._results(), layout=ipywidgets.Layout(**RESULTS))
        super().__init__([ipywidgets.Box([form, shown], layout=ipywidgets.Layout(flex_flow="row wrap"))])
        self._connect()
        self._redraw()
        if first is not None:
            self.press(first)

    def _controls(self, caption: str, lines: int) -> list[ipywidgets.Widget]:
        """Make what is set and pressed, from top to bottom."""
        boxes = play.default_boxes(self.defaults.size, lines)
        self.rows = [LineRow(box, self.defaults.size, i) for i, box in enumerate(boxes, 1)]
        self.forms = ipywidgets.Tab(self.rows, titles=[f"{i}" for i in range(1, lines + 1)])
        self.caption = ipywidgets.Text(value=caption, description="caption", **_field())
        self.mode = ipywidgets.Dropdown(options=["generate", "edit"], description="mode", **_field())
        self.upload = ipywidgets.FileUpload(accept="image/*", multiple=False, description="picture to edit")
        self.steps = _steps(STUDENT_STEPS, 4, "student's steps")
        self.sampler = ipywidgets.Dropdown(options=list(SAMPLERS), description="student's sampler", **_field())
        self.teacher_steps = _steps(TEACHER_STEPS, 50, "teacher's steps")
        self.attnx_scale = _steps(WEIGHTS, 1.0, "extra attention")
        self.strength = _steps(WEIGHTS, 1.0, "strength of text")
        self.seed = ipywidgets.BoundedIntText(value=0, min=0, max=2**31 - 1, description="seed", **_field())
        width = ipywidgets.Layout(width="auto", flex="1 1 9.5em")
        self.buttons = {
            name: ipywidgets.Button(description=words, tooltip=tip, layout=width)
            for name, words, tip in (
                ("student", "Draw (student)", "few steps, no guidance"),
                ("teacher", "Draw (teacher)", "many guided steps"),
                ("both", "Side by side", "both from the same noise"),
            )
        }
        self.message = ipywidgets.HTML()
        row = ipywidgets.Box(list(self.buttons.values()), layout=ipywidgets.Layout(flex_flow="row wrap"))
        numbers = [
            self.steps,
            self.sampler,
            self.teacher_steps,
            self.attnx_scale,
            self.strength,
            self.seed,
        ]
        return [self.caption, self.forms, self.mode, self.upload, *numbers, row, self.message]

    def _results(self) -> list[ipywidgets.Widget]:
        """Make the places of the sketch, of the pictures, and of their headings and reports."""
        self.sketch = ipywidgets.Image(format="png", layout=ipywidgets.Layout(**SKETCH))
        self.pictures = {name: ipywidgets.Image(format="png", layout=ipywidgets.Layout(**PICTURE)) for name in DRAWERS}
        self.headings = {name: ipywidgets.HTML(f"<b>{name}</b>") for name in DRAWERS}
        self.reports = {name: ipywidgets.HTML() for name in DRAWERS}
        places = [[ipywidgets.HTML("<b>where each line goes</b>"), self.sketch]]
        for name, picture in self.pictures.items():
            picture.add_class(f"playground-{name}")
            picture.layout.display = "none"  # until there is one
            places.append([self.headings[name], picture, self.reports[name]])
        whole, half = {"flex": "1 1 100%"}, {"flex": "1 1 12em", "min_width": "0", "margin": "0 0.5em 0 0"}
        layouts = [ipywidgets.Layout(**layout) for layout in (whole, half, half)]
        return [ipywidgets.VBox(place, layout=layout) for place, layout in zip(places, layouts, strict=True)]

    def _connect(self) -> None:
        """Draw the sketch again when a line changes, grey pictures that are out of date, and let the buttons draw."""
        settings = [control for row in self.rows for control in row.children]
        settings += [self.mode, self.upload, self.caption, self.steps, self.sampler, self.teacher_steps]
        settings += [self.attnx_scale, self.strength, self.seed]
        for control in settings:
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

    def _set(self, name: str) -> tuple:
        """All that a picture of the student or the teacher depends on, as it is set now."""
        photo = bytes(self.upload.value[0]["content"]) if self.mode.value == "edit" and self.upload.value else None
        lines = tuple(box for box in self.boxes() if box.text.strip())
        return self.method(name), self.caption.value, lines, self.mode.value, photo, self.seed.value

    def press(self, name: str) -> None:
        """Draw with the student, the teacher or both, as the button of this name does."""
        for button in self.buttons.values():
            button.disabled = True
        try:
            for one in DRAWERS if name == "both" else (name,):
                self.message.value = f"The {one} draws ..."
                scene = play.Scene(self.caption.value, self.boxes(), self.photo())
                self.drawn[one] = play.draw_scene(
                    self.model, scene, self.method(one), self.seed.value, self.defaults, self.reader
                )
                self._drawn_from[one] = self._set(one)
            self.message.value = ""
        except ValueError as error:
            self.message.value = html.escape(str(error), quote=False)
        finally:
            self._show()
            for button in self.buttons.values():
                button.disabled = False

    def stale(self, name: str) -> bool:
        """Whether the picture of the student or the teacher was drawn from other settings than the present ones."""
        return name in self.drawn and self._drawn_from[name] != self._set(name)

    def _show(self) -> None:
        """Put the pictures in their places, greyed where they are out of date."""
        for name, drawn in self.drawn.items():
            image, old = drawn.image, self.stale(name)
            if old:
                image = (0.25 * image + 0.75 * 215).astype(np.uint8)
            self.pictures[name].value = png_bytes(image, self._scale)
            self.pictures[name].layout.display = ""
            steps = f"{drawn.method.steps} step{'s' if drawn.method.steps > 1 else ''}"
            self.headings[name].value = f"<b>{name}, {steps}</b>{' (out of date: draw again)' if old else ''}"
            self.reports[name].value = "" if old else html.escape(drawn.report(), quote=False)

    def _redraw(self, _change: object = None) -> None:
        self.upload.layout.display = "" if self.mode.value == "edit" else "none"
        try:
            sketch = play.layout(self.boxes(), self.defaults.size, self.photo(), self._scale)
            self.sketch.value = png_bytes(sketch)
            self.message.value = ""
        except ValueError as error:
            self.message.value = html.escape(str(error), quote=False)
        self._show()

    def __repr__(self) -> str:
        return f"Playground({len(self.rows)} lines)"

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
        bundle = super()._repr_mimebundle_(**options)
        shown = {"where each line goes": open_picture(bytes(self.sketch.value))}
        shown |= {f"{name}, {drawn.method.steps} steps": drawn.image for name, drawn in self.drawn.items()}
        picture = base64.b64encode(png(picture_grid([list(shown.values())], (), list(shown)))).decode()
        return {**bundle, "text/plain": repr(self), "image/png": picture}, {"image/png": {"width": round(WIDTH * DPI)}}
