"""Figures: they draw the values they were given, and leave no trace in matplotlib's state."""

import numpy as np
import pytest
import torch
from matplotlib._pylab_helpers import Gcf
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb, to_rgba
from small_models import EMBEDDED

from anytext_lcm.figures import pictures
from anytext_lcm.figures.contact_sheet import GAP, HEAD, LABEL, contact_sheet
from anytext_lcm.figures.plots import bars, error_bars, histograms, lines, panels
from anytext_lcm.figures.style import COLORS
from anytext_lcm.judging import charts
from anytext_lcm.judging.intervals import Interval
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.teaching import maps, toy_figures
from anytext_lcm.teaching.toy import Mixture

T = torch.arange(5)
PICTURE = np.zeros((8, 8, 3), np.uint8)
INTERVAL = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 4}
REPORT = {
    "hardware": {"device": "cpu"},
    "reference": "teacher-50",
    "prepare_seconds_a_picture": {"cores": 0.3, "wall": 0.6},
    "methods": {
        name: {
            "evaluations": evaluations,
            "accuracy": INTERVAL,
            "core_seconds_a_picture": {"denoise": 0.01 * evaluations + 0.01, "decode": 0.1},
            "seconds_a_picture": {"denoise": 0.02 * evaluations + 0.01, "decode": 0.2},
            "ned": INTERVAL,
            "distribution": {"kernel": INTERVAL, "kernel_floor": INTERVAL},
            "by_height": [{"from": 0, "to": 16, **INTERVAL}, {"from": 16, "to": None, **INTERVAL}],
            "read": ["cat", "", "$5", "x"],
        }
        for name, evaluations in {
            "real": 0,
            "reconstruction": 0,
            "teacher-4": 8,
            "teacher-50": 100,
            "teacher-4-dpm++": 8,
            "student-4": 4,
            "student-4-gamma0.3": 4,
            "student-4@2": 4,
        }.items()
    },
}
BOX = np.array([[4, 4], [60, 4], [60, 20], [4, 20]])
DRAWN = {name: np.full((2, 64, 64, 3), 90, np.uint8) for name in ("real", "teacher-4", "student-4")}
FIGURES = {
    "evaluations": lambda: charts.report_chart(REPORT, "evaluations", title="t"),
    "time": lambda: charts.report_chart(REPORT, "time", "ned"),
    "distance": lambda: charts.report_chart(REPORT, "evaluations", "distance"),
    "charts": lambda: charts.report_charts(REPORT),
    "zoom": lambda: charts.text_zoom(REPORT, DRAWN, [[BOX], [BOX, BOX]], [["cat"], ["dog", "$5"]]),
    "networks": lambda: maps.network_map(
        dict.fromkeys(("UNet", "WriteNet", "VAE", "text tower", "embedding manager", "recogniser"), 2_000_000), "t"
    ),
    "unet": lambda: maps.unet_map(AnyText2.from_config(EMBEDDED, device="meta").model.diffusion_model),
}


def cut_words(figure):
    """Titles, names of axes, legends and notes of a figure that reach over its edge: they are cut in its picture."""
    figure.set_dpi(144)  # as notebooks do
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    shown = list(figure.texts)
    for axis in figure.axes:
        shown += [*axis.texts, axis.title, *([axis.xaxis.label, axis.yaxis.label] if axis.axison else [])]
        shown += axis.get_legend().get_texts() if axis.get_legend() else []
    width, height = canvas.get_width_height()
    boxes = {text.get_text(): text.get_window_extent() for text in shown if text.get_text().strip()}
    return [words for words, box in boxes.items() if min(box.x0, box.y0) < 0 or box.x1 > width or box.y1 > height]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_fits_a_notebook_and_leaves_nothing_in_matplotlib(name):
    figure = FIGURES[name]()
    assert figure.get_size_inches()[0] <= 8 and figure.dpi == 72
    assert not cut_words(figure)
    assert not Gcf.figs


def test_words_that_are_cut_are_found():
    assert cut_words(lines({"a": (T, T)}, "x", "y" * 80)) == ["y" * 80]


def data_of(axis):
    """Name, places and values of each curve of an axis."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines}


def test_lines_and_panels_draw_their_values():
    axis = lines({"a": (T, 2 * T), "b": (None, [5, 7])}, "x", "y", "t", y_scale="log", marks=True).axes[0]
    assert data_of(axis) == {"a": ([0, 1, 2, 3, 4], [0, 2, 4, 6, 8]), "b": ([1, 2], [5, 7])}
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_title()) == ("x", "y", "t")
    assert (axis.get_xscale(), axis.get_yscale()) == ("linear", "log")
    assert [line.get_color() for line in axis.lines] == list(COLORS[:2])
    assert [line.get_linestyle() for line in axis.lines] == ["-", "--"]
    assert {line.get_marker() for line in axis.lines} == {"o"}
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b"]
    axis = lines({"a": ([1, 4, 50], [0.02, 0.2, 2]), "b": ([2, 4], [1, 1])}, "x", "y", "", "log", "log").axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2", "4", "50"]
    assert {"0.1", "0.2", "0.5"} <= {label.get_text() for label in axis.get_yticklabels()}
    many = lines({str(i): (T, T + i) for i in range(9)}, "x", "y").axes[0]  # the ninth has the first one's colour
    assert [line.get_linestyle() for line in many.lines] == ["-"] * 8 + ["--"]
    assert lines({"a": (T, T)}, "x", "y").axes[0].get_legend() is None  # one curve needs no name
    figure = panels({"loss": {"a": (T, T)}, "gap": {"a": (T, -T)}}, "step", "t")
    assert [axis.get_ylabel() for axis in figure.axes] == ["loss", "gap"]
    assert [data_of(axis)["a"][1] for axis in figure.axes] == [[0, 1, 2, 3, 4], [0, -1, -2, -3, -4]]
    assert {axis.get_xlabel() for axis in figure.axes} == {"step"} and figure.get_suptitle() == "t"


def test_bars_are_stacked_group_by_group():
    axis = bars({"first": {"x": 1.0, "y": 2}, "second": {"y": 3}}, "n").axes[0]
    drawn = {bar.get_label(): [(p.get_x(), p.get_width()) for p in bar.patches] for bar in axis.containers}
    assert drawn == {"x": [(0, 1), (0, 0)], "y": [(1, 2), (0, 3)]}
    assert [bar.patches[0].get_facecolor() for bar in axis.containers] == [to_rgba(color) for color in COLORS[:2]]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["first", "second"] and axis.yaxis_inverted()


def test_histograms_are_densities_beside_what_they_should_follow():
    values = torch.tensor([0.5, 0.5, 1.5, 4.5])
    figure = histograms([{"a": values, "b": T}], ["1 step"], np.linspace(0, 5, 6), np.full(5, 0.2), "t")
    left = figure.axes[0]
    assert [patch.get_height() for patch in left.patches] == [0.5, 0.25, 0, 0, 0.25]
    assert data_of(left)[left.lines[0].get_label()] == ([0.5, 1.5, 2.5, 3.5, 4.5], [0.2] * 5)
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"] and left.get_ylabel() == "1 step"


def test_error_bars_reach_from_low_to_high():
    axis = error_bars({"a": Interval(0.5, 0.4, 0.7, 9), "b": Interval(0.2, 0.1, 0.3, 9)}, "share").axes[0]
    drawn = [(line.get_xdata(), line.get_ydata()) for line in axis.lines]
    assert [tuple(map(list, line)) for line in drawn[::2]] == [([0.4, 0.7], [0, 0]), ([0.1, 0.3], [1, 1])]
    assert [float(np.ravel(x)[0]) for x, _ in drawn[1::2]] == [0.5, 0.2]
    assert [text.get_text() for text in axis.texts] == ["0.500 [0.400, 0.700]", "0.200 [0.100, 0.300]"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"] and axis.yaxis_inverted()


def test_a_grid_shows_each_picture_in_its_place():
    rng = np.random.default_rng(0)
    picture, gray = rng.integers(0, 255, (8, 8, 3), np.uint8), torch.rand(1, 8, 8)
    triangle = np.array([[1, 1], [6, 1], [6, 6]])
    captions = [[("one", "red"), ("", "red")], [("two", "blue")]]
    figure = pictures.picture_grid(
        [[picture, None], [gray]], ["a", "b"], ["c", "d"], "e", None, [[[triangle], []], [[]]], captions
    )
    first, empty, second, rest = figure.axes
    assert np.array_equal(first.images[0].get_array(), picture)
    assert np.array_equal(second.images[0].get_array(), gray[0]) and second.images[0].get_clim() == (0, 1)
    assert not empty.images and not rest.images and not rest.axison
    assert data_of(first)[first.lines[0].get_label()] == ([1, 6, 6, 1], [1, 1, 6, 1]) and not second.lines
    assert (first.get_ylabel(), second.get_ylabel(), first.get_title()) == ("a", "b", "c")
    assert (first.get_xlabel(), second.get_xlabel(), second.xaxis.label.get_color()) == ("one", "two", "blue")
    assert figure.get_suptitle() == "e"


def test_a_contact_sheet_holds_its_pictures_and_its_words():
    pictures_of = {name: np.full((3, 16, 24, 3), value, np.uint8) for name, value in (("a\n50 %", 60), ("b", 120))}
    sheet = contact_sheet(pictures_of, [["one", "a long label that does not fit at all"]] * 2, scale=2)
    assert sheet.shape == (HEAD + 2 * (32 + GAP) + GAP, LABEL + 2 * (48 + GAP) + GAP, 3)
    left, top = LABEL + GAP, HEAD
    assert (sheet[top : top + 32, left : left + 48] == 60).all()
    assert (sheet[top + 32 + GAP : top + 64 + GAP, left + 48 + GAP : left + 96 + GAP] == 120).all()
    assert (sheet[top + 32 : top + 32 + GAP, left:] == 255).all()
    head, label = sheet[:HEAD, left:], sheet[top:, : LABEL - GAP]
    assert (head < 128).any() and (label < 128).any()
    assert np.array_equal(label[: 32 + GAP], label[32 + GAP : 64 + 2 * GAP])  # the same words beside both rows
    with pytest.raises(ValueError, match="3 pictures for 4 rows"):
        contact_sheet({"a": pictures_of["b"]}, [["x"]] * 4)


def test_a_chart_draws_curves_bands_steps_and_the_best_there_is():
    axis = charts.report_chart(REPORT, "evaluations", "distance", "t").axes[0]
    curves = {name: curve for name, curve in data_of(axis).items() if not name.startswith("_")}
    assert curves["teacher, DDIM"] == ([8, 100], [0.5, 0.5]) and curves["student"] == ([4], [0.5])
    assert list(curves)[:2] == ["teacher, DDIM", "student"] and len(curves) == 5  # these two come first
    assert axis.lines[-1].get_linestyle() == ":" and axis.lines[-1].get_ydata() == [0.5, 0.5]  # of real pictures
    words = [text.get_text() for text in axis.texts]
    below = [text.xyann[1] < 0 for text in axis.texts[:3]]
    assert below == [True, True, False], "the teacher's numbers and the student's would cover each other"
    assert words == ["4", "50", "4", "real pictures"] and axis.get_ylabel() == charts.MEASURES["distance"]
    bands = [band.get_paths()[0].get_extents() for band in axis.collections if isinstance(band, PolyCollection)]
    assert [(band.y0, band.y1) for band in bands] == [(0.4, 0.6)] * 2
    assert [label.get_text() for label in axis.get_xticklabels()] == ["4", "8", "100"] and axis.get_title() == "t"
    whole = charts.report_charts(REPORT).axes
    assert [axis.get_ylabel() for axis in whole] == [charts.MEASURES["accuracy"], charts.MEASURES["distance"]]
    assert "autoencoder" in [text.get_text() for text in whole[0].texts]


def test_pictures_of_every_form_look_alike():
    floats = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1).expand(3, 2, 2)
    assert np.allclose(pictures.as_picture(floats)[0, 0], [0, 0.5, 1])
    assert pictures.as_picture(PICTURE) is not None and pictures.as_picture(np.ones((1, 4, 5))).shape == (4, 5)


def test_the_map_marks_attnx_where_the_network_has_it():
    unet = AnyText2.from_config(EMBEDDED, device="meta").model.diffusion_model
    boxes = {text.get_text(): text.get_bbox_patch() for text in maps.unet_map(unet).axes[0].texts}
    marked = {name for name, box in boxes.items() if box and box.get_facecolor()[:3] == to_rgb("#f2a65a")}
    assert marked == {"middle_block", "output_blocks.0", "output_blocks.1", "+ attention + AttnX"}
    assert {f"+ residual {i}" for i in range(5)} <= set(boxes)


def test_toy_figures_with_several_settings():
    line, ring = Mixture.line(), Mixture.ring()
    figures = [
        *(toy_figures.toy_targets(line, t) for t in (0, 19, 999)),
        toy_figures.toy_targets(line, 499, {"s": lambda x, t: x}),
        *(toy_figures.toy_paths(line, n, count=3) for n in (1, 8)),
        *(toy_figures.toy_skip(line, skip, t) for skip, t in ((100, 259), (500, 999))),
        *(toy_figures.toy_guidance(ring, ring.condition((0, 1)), t, s) for t, s in ((19, 1.0), (999, 7.5))),
        toy_figures.toy_clouds(ring, {"a": torch.zeros(3, 2), "b": torch.ones(3, 2)}, "t"),
        toy_figures.training_step(),
        toy_figures.over_time({"a": (T, T)}, "y"),
    ]
    assert [len(figure.axes) for figure in figures] == [2, 2, 2, 2, 1, 1, 1, 1, 2, 2, 2, 1, 1]
    assert figures[-1].axes[0].xaxis_inverted()  # from noise to data
    for figure in figures:
        figure.draw_without_rendering()
        assert all(axis.get_xlabel() or axis is figure.axes[0] for axis in figure.axes)
    drawn = toy_figures.toy_targets(line, 999).axes[0].lines  # the figure shows what the toy computes
    x = torch.linspace(-2.5, 2.5, 301)[:, None]
    assert np.allclose(drawn[0].get_ydata(), line.posterior_mean(x, torch.full((301,), 999))[:, 0])
    assert toy_figures.toy_paths(line, 8, count=3).axes[0].lines[3].get_xdata().tolist()[:2] == [999, 874]
    with pytest.raises(ValueError, match="grid"):
        toy_figures.toy_skip(line, 30)


def test_the_comparison_as_curves():
    curves = charts.report_curves(REPORT)
    names = {"teacher, DDIM", "teacher, DPM-Solver++", "student", "student, gamma0.3", "student, seed 2"}
    assert set(curves) == names
    assert [(p["steps"], p["x"], p["value"]) for p in curves["teacher, DDIM"]] == [(4, 8, 0.5), (50, 100, 0.5)]
    on_cpu = charts.report_curves(REPORT, "time")["student"][0]["x"]
    on_gpu = charts.report_curves(REPORT | {"hardware": {"device": "cuda"}}, "time")["student"][0]["x"]
    assert on_cpu == pytest.approx(0.45) and on_gpu == pytest.approx(0.89)  # preparing, denoising, decoding
    with pytest.raises(ValueError, match="evaluations or time"):
        charts.report_curves(REPORT, "steps")
    with pytest.raises(ValueError, match="measure"):
        charts.report_curves(REPORT, "time", "beauty")
    few = {**REPORT, "methods": {"student-4": REPORT["methods"]["student-4"] | {"distribution": None}}}
    assert charts.report_curves(few, "time", "distance") == {}


def test_the_zoom_says_what_was_read_and_whether_it_is_right():
    figure = charts.text_zoom(REPORT, DRAWN, [[BOX], [BOX, BOX]], [["cat"], ["dog", "$5"]], count=2)
    assert len(figure.axes) == 6
    words = [axis.get_xlabel() for axis in figure.axes]
    assert words[0] == "cat \u2713" and words[3] == "(nothing) \u2717"
    strange = {**REPORT, "methods": {"real": {"read": ["\u53e3$", "x", "x"]}}}
    figure_of_strange = charts.text_zoom(
        strange, {"real": DRAWN["real"]}, [[BOX], [BOX, BOX]], [["cat"], ["dog", "$5"]]
    )
    assert figure_of_strange.axes[0].get_xlabel() == "\u25a1\\$ \u2717"  # what the font lacks is not warned of
    assert figure.axes[0].get_title() == "real" and figure.axes[3].get_ylabel() == "dog"
