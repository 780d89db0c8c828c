"""Explorers without a browser: a control that moves changes the picture, and a refusal is said in words."""

import base64
import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from test_figures import cut_words

from anytext_lcm.teaching import explorers
from anytext_lcm.teaching.watched import sharpness, training_figure


def draw(height, sign="+"):
    if height > 8:
        raise ValueError("too high")
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, height if sign == "+" else -height])
    return figure


def explorer():
    return explorers.explore(draw, height=explorers.slider([1, 5, 9], 1, "height"), sign=explorers.choice("+-", "sign"))


def test_moving_a_control_changes_the_picture():
    found = explorer()
    first = bytes(found.picture.value)  # ipywidgets keeps a view of the bytes
    assert first.startswith(b"\x89PNG") and first == explorers.png(draw(1))
    found.controls["height"].value = 5
    second = found.picture.value
    found.controls["sign"].value = "-"
    assert len({first, second, found.picture.value}) == 3 and found.picture.value == explorers.png(draw(5, "-"))
    found.controls["height"].value, found.controls["sign"].value = 1, "+"
    assert found.picture.value == first and found.values() == {"height": 1, "sign": "+"}


def test_a_refusal_is_shown_and_the_picture_stays():
    found = explorer()
    before = found.picture.value
    found.controls["height"].value = 9
    assert found.message.value == "too high" and found.picture.value == before
    found.controls["height"].value = 5
    assert found.message.value == "" and found.picture.value != before


def test_stored_output_is_steady_and_has_a_picture():
    found = explorer()
    bundle, metadata = found._repr_mimebundle_()
    assert bundle["text/plain"] == repr(found) == "Explorer(height, sign)"
    assert base64.b64decode(bundle["image/png"]) == found.picture.value
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert metadata == {"image/png": {"width": 576}}  # a page without a kernel shows it as wide as other figures
    assert Image.open(io.BytesIO(found.picture.value)).size == (2 * 200, 2 * 100)  # drawn at twice that


def test_controls():
    assert explorers.several(("a", "b"), "x").value == ("a", "b")
    with pytest.raises(ValueError, match="none of its places"):
        explorers.slider([1, 2], 3, "x")


def test_a_live_figure_is_drawn_until_it_ends():
    left, drawn = [3], []

    def figure():
        drawn.append(draw(len(drawn) + 1))
        if len(drawn) == 1:
            raise ValueError("nothing yet")
        return drawn[-1]

    def goes_on():
        left[0] -= 1
        return left[0] > 0

    live = explorers.Live(figure)
    live.follow(goes_on, seconds=0)
    assert len(drawn) == 3 and live.picture.value == explorers.png(drawn[-1]) and live.message.value == ""


def test_a_training_is_drawn_from_its_first_moment_on():
    """The figure keeps its size while pictures arrive; the teacher's own sharpness is the unit."""
    strip = np.random.default_rng(0).integers(0, 255, (8, 32, 3)).astype(np.uint8)
    updates = (0, 5, 10)
    empty = training_figure({}, {"student-1": {}, "student-4": {}}, None, updates)
    curves = {"loss": ([1, 2], [0.5, 0.4]), "panel/ned": ([0], [0.8])}
    students = {"student-1": {0: strip // 2}, "student-4": {0: strip, 5: strip}}
    full = training_figure(curves, students, strip, updates)
    assert explorers.png(empty)[16:24] == explorers.png(full)[16:24]  # width and height of the PNG
    assert len(empty.axes) == len(full.axes) == 3 + 4 * 4
    assert not cut_words(full)
    loss, read, sharp = full.axes[:3]
    assert list(loss.lines[0].get_ydata()) == [0.5, 0.4] and list(read.lines[0].get_ydata()) == [0.8]
    one, four = (list(line.get_ydata()) for line in sharp.lines)
    assert four == [1, 1] and 0.4 < one[0] < 0.6
    shown = full.axes[3 + 2 * 4 + 1]  # student-4, first picture, after five updates
    assert np.array_equal(shown.images[0].get_array(), strip[:, :8])
    assert sharpness(np.tile(np.uint8([[[0], [10]]]), (4, 4, 3))) == 10
