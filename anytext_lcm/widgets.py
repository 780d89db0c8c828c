"""Sliders over figures, and the playground: thin covers over plain functions, for the notebooks. Imports ipywidgets,
matplotlib, playground and the rooms data, model, pipeline.

Every explorer is a function that returns a Figure, and controls named as its arguments. A cell calls the
function too, so that it is run where no browser is. Nothing imports this.
"""

import base64
import html
import math
import time
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import ipywidgets
from matplotlib.figure import Figure

from anytext_lcm import playground
from anytext_lcm.data.mock import COLORS
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.pipeline import Defaults, Method, student_method, teacher_method


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, at its own resolution."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


class Explorer(ipywidgets.VBox):
    """Controls above the picture that `draw` makes of their values, drawn anew when one of them moves.

    draw(**values) -> Figure; a ValueError it raises is shown in words, and the last picture stays. `controls`
    by name of the argument, `picture` the Image below them, `message` the words. The repr names the controls
    alone, so that stored outputs do not change with the picture; pages without a kernel show the picture that
    was drawn first.
    """

    def __init__(self, draw: Callable[..., Figure], controls: Mapping[str, ipywidgets.Widget]):
        self.draw, self.controls = draw, dict(controls)
        self.picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%"))
        self.message = ipywidgets.Label()
        self.picture.add_class("explorer-picture")
        super().__init__([*self.controls.values(), self.message, self.picture])
        for control in self.controls.values():
            control.observe(self._redraw, names="value")
        self._redraw()

    def values(self) -> dict[str, Any]:
        return {name: control.value for name, control in self.controls.items()}

    def _redraw(self, _change: object = None) -> None:
        try:
            self.picture.value = png(self.draw(**self.values()))
            self.message.value = ""
        except ValueError as error:
            self.message.value = str(error)

    def __repr__(self) -> str:
        return f"Explorer({', '.join(self.controls)})"

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        bundle = super()._repr_mimebundle_(**options)
        return {**bundle, "text/plain": repr(self), "image/png": base64.b64encode(self.picture.value).decode()}


def explore(draw: Callable[..., Figure], **controls: ipywidgets.Widget) -> Explorer:
    """An explorer of `draw`; each control is named as the argument it sets."""
    return Explorer(draw, controls)


class Live(ipywidgets.VBox):
    """A figure that `draw` makes again and again while something runs; a ValueError of it is shown in words."""

    def __init__(self, draw: Callable[[], Figure]):
        self.draw, self.message = draw, ipywidgets.Label()
        self.picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%"))
        super().__init__([self.message, self.picture])

    def follow(self, goes_on: Callable[[], bool], seconds: float = 1.0) -> None:
        """Draws every so many seconds for as long as goes_on() answers, and once after that."""
        drawn = -math.inf
        while goes_on():
            if time.monotonic() - drawn >= seconds:
                self._redraw()
                drawn = time.monotonic()
            time.sleep(min(seconds, 0.05))
        self._redraw()

    def _redraw(self) -> None:
        try:
            self.picture.value, self.message.value = png(self.draw()), ""
        except ValueError as error:
            self.message.value = str(error)

    def __repr__(self) -> str:
        return "Live()"


_WIDE = {"style": {"description_width": "11em"}, "layout": ipywidgets.Layout(width="38em")}


def slider(values: Sequence[float], value: float, label: str) -> ipywidgets.SelectionSlider:
    """One of a row of numbers. Raises ValueError for a start that is none of them."""
    if value not in values:
        raise ValueError(f"The slider {label!r} starts at {value}, which is none of its places {list(values)}.")
    return ipywidgets.SelectionSlider(options=list(values), value=value, description=label, **_WIDE)


def choice(options: Sequence[str], label: str) -> ipywidgets.Dropdown:
    """One of several names, the first at the start."""
    return ipywidgets.Dropdown(options=list(options), description=label, **_WIDE)


def several(options: Sequence[str], label: str) -> ipywidgets.SelectMultiple:
    """Any of several names (Ctrl-click), all at the start; a tuple."""
    names = list(options)
    return ipywidgets.SelectMultiple(options=names, value=names, rows=len(names), description=label, **_WIDE)


# -- the playground (notebook 05) ------------------------------------------------------------------------

SAMPLERS = {"LCM": None, "deterministic": 0.0, "gamma 0.3": 0.3, "gamma 0.7": 0.7}  # name -> gamma
STUDENT_STEPS, TEACHER_STEPS = (1, 2, 4, 6, 8, 16), (1, 2, 4, 8, 20, 50)
ZOOM = 3  # screen pixels of a pixel, at 128 px


class LineRow(ipywidgets.VBox):
    """One line of text: what it says, its box by two sliders with two handles each, angle and colour."""

    def __init__(self, wish: playground.Wish, size: tuple[int, int], number: int):
        height, width = size

        def span(low: int, high: int, end: int, label: str) -> ipywidgets.IntRangeSlider:
            return ipywidgets.IntRangeSlider(value=(low, high), min=0, max=end, description=label, **_WIDE)

        self.text = ipywidgets.Text(value=wish.text, description=f"line {number}", placeholder="empty", **_WIDE)
        self.across = span(wish.left, wish.right, width, "left to right")
        self.down = span(wish.top, wish.bottom, height, "top to bottom")
        self.angle = ipywidgets.IntSlider(value=round(wish.angle), min=-90, max=90, description="angle", **_WIDE)
        self.color = ipywidgets.Dropdown(
            options=[playground.ANY, *COLORS],
            value=wish.color,
            description="colour",
            **_WIDE,
            tooltip="told as numbers; the embedded network follows the caption alone: yellow text on a blue wall",
        )
        super().__init__([self.text, self.across, self.down, self.angle, self.color])

    def wish(self) -> playground.Wish:
        (left, right), (top, bottom) = self.across.value, self.down.value
        return playground.Wish(self.text.value, left, top, right, bottom, self.angle.value, self.color.value)


class Playground(ipywidgets.VBox):
    """A form for up to five lines, a sketch of their boxes, and buttons that draw: student, teacher, or both.

    The pictures stand side by side with what they took and what was read below each. `press(name)` is what a button
    does: "student", "teacher" or "both". In editing mode an uploaded picture is written into. What cannot be drawn is
    said in words in `message`, and the last pictures stay. Stored outputs hold the sketch alone.
    """

    def __init__(
        self,
        model: AnyText2,
        defaults: Defaults,
        reader: playground.Reader | None = None,
        caption: str = "a blue background, white text",
        lines: int = playground.LINES,
    ):
        self.model, self.reader = model, reader
        self.defaults = playground.with_lines(defaults, lines)
        self._scale = max(1, round(ZOOM * 128 / max(defaults.size)))
        wishes = playground.default_wishes(defaults.size, lines)
        self.rows = [LineRow(wish, defaults.size, i) for i, wish in enumerate(wishes, 1)]
        self.forms = ipywidgets.Tab(self.rows, titles=[f"line {i}" for i in range(1, lines + 1)])
        self.caption = ipywidgets.Text(value=caption, description="caption", **_WIDE)
        self.mode = ipywidgets.ToggleButtons(options=["generate", "edit"], description="mode")
        self.upload = ipywidgets.FileUpload(accept="image/*", multiple=False, description="picture to edit")
        self.steps = slider(STUDENT_STEPS, 4, "student's steps")
        self.sampler = choice(list(SAMPLERS), "student's sampler")
        self.teacher_steps = slider(TEACHER_STEPS, 50, "teacher's steps")
        self.seed = ipywidgets.BoundedIntText(value=0, min=0, max=2**31 - 1, description="seed", **_WIDE)
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
        self.pictures = {name: ipywidgets.Image(format="png") for name in ("student", "teacher")}
        self.reports = {name: ipywidgets.HTML() for name in self.pictures}
        for name, picture in self.pictures.items():
            picture.add_class(f"playground-{name}")
            picture.layout.display = "none"  # until there is one
        self.played: dict[str, playground.Played] = {}

        left = [
            self.caption,
            self.forms,
            self.mode,
            self.upload,
            self.steps,
            self.sampler,
            self.teacher_steps,
            self.seed,
            ipywidgets.HBox(list(self.buttons.values())),
            self.message,
        ]
        shown = ipywidgets.Layout(max_width="30em", margin="0 1em 0 0")
        results = [ipywidgets.VBox([self.pictures[name], self.reports[name]], layout=shown) for name in self.pictures]
        super().__init__(
            [ipywidgets.HBox([ipywidgets.VBox(left), ipywidgets.VBox([self.sketch])]), ipywidgets.HBox(results)]
        )
        for row in self.rows:
            for control in row.children:
                control.observe(self._redraw, names="value")
        for control in (self.mode, self.upload):
            control.observe(self._redraw, names="value")
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: self.press(name))
        self._redraw()

    def wishes(self) -> list[playground.Wish]:
        return [row.wish() for row in self.rows]

    def photo(self):
        """The uploaded picture (H, W, 3) uint8 in editing mode, else None. Raises ValueError where it is missing."""
        if self.mode.value == "generate":
            return None
        if not self.upload.value:
            raise ValueError("Upload a picture to edit, or choose generate.")
        return playground.read_upload(self.upload.value[0]["content"])

    def method(self, name: str) -> Method:
        """The student or the teacher with the steps, sampler and guidance that are set."""
        if name == "teacher":
            return teacher_method(self.teacher_steps.value, self.defaults.guidance_scale)
        return student_method(self.steps.value, gamma=SAMPLERS[self.sampler.value])

    def press(self, name: str) -> None:
        """What the button of this name does."""
        for button in self.buttons.values():
            button.disabled = True
        try:
            for one in ("student", "teacher") if name == "both" else (name,):
                self.message.value = f"The {one} draws ..."
                played = playground.play(
                    self.model,
                    self.wishes(),
                    self.caption.value,
                    self.method(one),
                    self.seed.value,
                    self.defaults,
                    self.reader,
                    self.photo(),
                )
                self.played[one] = played
                self.pictures[one].value = playground.png(played.image, self._scale)
                self.pictures[one].layout.display = ""
                self.reports[one].value = html.escape(played.report(), quote=False)
            self.message.value = ""
        except ValueError as error:
            self.message.value = str(error)
        finally:
            for button in self.buttons.values():
                button.disabled = False

    def _redraw(self, _change: object = None) -> None:
        try:
            sketch = playground.layout(self.wishes(), self.defaults.size, self.photo(), self._scale)
            self.sketch.value = playground.png(sketch)
            self.message.value = ""
        except ValueError as error:
            self.message.value = str(error)

    def __repr__(self) -> str:
        return f"Playground({len(self.rows)} lines)"

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        bundle = super()._repr_mimebundle_(**options)
        return {**bundle, "text/plain": repr(self), "image/png": base64.b64encode(self.sketch.value).decode()}
