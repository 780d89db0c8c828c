"""Sliders over figures, for all notebooks.

An explorer is a function that returns a Figure, and a control for each of its arguments. Cells also call the function
itself, so that it runs where there is no browser.
"""

import base64
import math
import time
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import ipywidgets
from matplotlib.figure import Figure

from anytext_lcm.figures.style import DPI, WIDTH

SCALE = 2  # pixels of a picture for each of the page


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, at twice its resolution, for screens with small pixels."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=SCALE * figure.dpi, metadata={"Software": None})
    return buffer.getvalue()


def picture_below() -> ipywidgets.Image:
    """An empty picture that is shown as wide as the figures of other cells, or as the page where that is narrower."""
    return ipywidgets.Image(format="png", layout=ipywidgets.Layout(width=f"{WIDTH * DPI:.0f}px", max_width="100%"))


class Explorer(ipywidgets.VBox):
    """Controls above the picture that `draw` makes of their values, drawn again when one of them moves.

    draw(**values) -> Figure; when it raises ValueError, its sentence is shown and the last picture stays. controls: by
    name of the argument. `picture` is the Image below them, `message` the sentence. A page without a kernel shows the
    first picture.
    """

    def __init__(self, draw: Callable[..., Figure], controls: Mapping[str, ipywidgets.Widget]):
        self.draw, self.controls = draw, dict(controls)
        self.picture, self.message = picture_below(), ipywidgets.Label()
        self.picture.add_class("explorer-picture")
        super().__init__([*self.controls.values(), self.message, self.picture])
        for control in self.controls.values():
            control.observe(self._redraw, names="value")
        self._redraw()

    def values(self) -> dict[str, Any]:
        """What the controls are set to, by name."""
        return {name: control.value for name, control in self.controls.items()}

    def _redraw(self, _change: object = None) -> None:
        try:
            self.picture.value = png(self.draw(**self.values()))
            self.message.value = ""
        except ValueError as error:
            self.message.value = str(error)

    def __repr__(self) -> str:
        # Names alone, so that stored outputs of notebooks do not change with the picture.
        return f"Explorer({', '.join(self.controls)})"

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
        bundle = super()._repr_mimebundle_(**options)
        picture = {"image/png": base64.b64encode(self.picture.value).decode()}
        return {**bundle, "text/plain": repr(self), **picture}, {"image/png": {"width": round(WIDTH * DPI)}}


def explore(draw: Callable[..., Figure], **controls: ipywidgets.Widget) -> Explorer:
    """An `Explorer` of `draw`; each control is named as the argument that it sets."""
    return Explorer(draw, controls)


class Live(ipywidgets.VBox):
    """A figure that is drawn again and again while something runs; a ValueError of `draw` is shown as its sentence."""

    def __init__(self, draw: Callable[[], Figure]):
        self.draw, self.message, self.picture = draw, ipywidgets.Label(), picture_below()
        super().__init__([self.message, self.picture])

    def follow(self, goes_on: Callable[[], bool], seconds: float = 1.0) -> None:
        """Draw every `seconds` while goes_on() is true, and once after that."""
        drawn = -math.inf
        while goes_on():
            if time.monotonic() - drawn >= seconds:
                self._redraw()
                drawn = time.monotonic()
            time.sleep(min(seconds, 0.5))
        self._redraw()

    def _redraw(self) -> None:
        try:
            self.picture.value, self.message.value = png(self.draw()), ""
        except ValueError as error:
            self.message.value = str(error)

    def __repr__(self) -> str:
        return "Live()"


WIDE = {"style": {"description_width": "11em"}, "layout": ipywidgets.Layout(width="38em")}


def slider(values: Sequence[float], value: float, label: str) -> ipywidgets.SelectionSlider:
    """A slider over a row of numbers. Raises ValueError for a start that is none of them."""
    if value not in values:
        raise ValueError(f"The slider {label!r} starts at {value}, which is none of its places {list(values)}.")
    return ipywidgets.SelectionSlider(options=list(values), value=value, description=label, **WIDE)


def choice(options: Sequence[str], label: str) -> ipywidgets.Dropdown:
    """A menu of several names; the first is chosen at the start."""
    return ipywidgets.Dropdown(options=list(options), description=label, **WIDE)


def several(options: Sequence[str], label: str) -> ipywidgets.SelectMultiple:
    """A list of several names, any of which can be chosen (Ctrl-click); all are at the start. Its value is a tuple."""
    names = list(options)
    return ipywidgets.SelectMultiple(options=names, value=names, rows=len(names), description=label, **WIDE)
