"""Figures: made of plain values, the right number of axes, and no trace in matplotlib's state."""

import numpy as np
import pytest
import torch
from matplotlib._pylab_helpers import Gcf
from matplotlib.figure import Figure
from small_models import EMBEDDED

from anytext_lcm.figures import pictures
from anytext_lcm.figures.plots import bars, error_bars, histograms, lines, panels
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
CALLS = {
    "evaluations": lambda: charts.report_chart(REPORT, "evaluations", title="t"),
    "time": lambda: charts.report_chart(REPORT, "time", "ned"),
    "distance": lambda: charts.report_chart(REPORT, "evaluations", "distance"),
    "charts": lambda: charts.report_charts(REPORT),
    "zoom": lambda: charts.text_zoom(REPORT, DRAWN, [[BOX], [BOX, BOX]], [["cat"], ["dog", "$5"]]),
    "grid": lambda: pictures.picture_grid([[PICTURE, None], [torch.zeros(1, 8, 8)]], ["a", "b"], ["c", "d"], "e"),
    "outlines": lambda: pictures.picture_grid([[PICTURE]], outlines=[[[np.array([[1, 1], [6, 1], [6, 6]])]]]),
    "lines": lambda: lines({"a": (T, T), "b": (None, [1, 2])}, "x", "y", "t", y_scale="log"),
    "panels": lambda: panels({"loss": {"a": (T, T)}, "gap": {"a": (T, T)}}, "t"),
    "bars": lambda: bars({"a": {"x": 1.0, "y": 2}, "b": {"y": 1}}, "n"),
    "histograms": lambda: histograms([{"a": T, "b": T}], ["1 step"], np.linspace(0, 5, 6), np.ones(5)),
    "intervals": lambda: error_bars({"a": Interval(0.5, 0.4, 0.6, 9)}, "share"),
    "networks": lambda: maps.network_map(
        dict.fromkeys(("UNet", "WriteNet", "VAE", "text tower", "embedding manager", "recogniser"), 2_000_000), "t"
    ),
    "unet": lambda: maps.unet_map(AnyText2.from_config(EMBEDDED, device="meta").model.diffusion_model),
}
AXES = {"charts": 2, "grid": 4, "panels": 2, "histograms": 2, "zoom": 9}


@pytest.mark.parametrize("name", CALLS)
def test_a_figure_that_draws(name):
    figure = CALLS[name]()
    assert isinstance(figure, Figure) and len(figure.axes) == AXES.get(name, 1)
    assert figure.get_size_inches()[0] <= 8 and figure.dpi == 72
    figure.draw_without_rendering()
    assert not Gcf.figs


def test_pictures_of_every_form_look_alike():
    floats = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1).expand(3, 2, 2)
    assert np.allclose(pictures.as_picture(floats)[0, 0], [0, 0.5, 1])
    assert pictures.as_picture(PICTURE) is not None and pictures.as_picture(np.ones((1, 4, 5))).shape == (4, 5)


def test_the_map_marks_attnx_where_the_network_has_it():
    unet = AnyText2.from_config(EMBEDDED, device="meta").model.diffusion_model
    boxes = {text.get_text(): text.get_bbox_patch() for text in maps.unet_map(unet).axes[0].texts}
    marked = {name for name, box in boxes.items() if box and box.get_facecolor()[:3] == boxes_color("#f2a65a")}
    assert marked == {"middle_block", "output_blocks.0", "output_blocks.1", "+ attention + AttnX"}
    assert {f"+ residual {i}" for i in range(5)} <= set(boxes)


def boxes_color(text):
    from matplotlib.colors import to_rgb

    return to_rgb(text)


def test_toy_figures_with_several_settings():
    line, ring = Mixture.line(), Mixture.ring()
    figures = [
        *(toy_figures.toy_targets(line, t) for t in (0, 19, 999)),
        toy_figures.toy_targets(line, 499, {"s": lambda x, t: x}),
        *(toy_figures.toy_paths(line, n, count=3) for n in (1, 8)),
        *(toy_figures.toy_skip(line, skip, t) for skip, t in ((100, 259), (500, 999))),
        *(toy_figures.toy_guidance(ring, ring.condition((0, 1)), t, s) for t, s in ((19, 1.0), (999, 7.5))),
        toy_figures.toy_clouds(ring, {"a": torch.zeros(3, 2), "b": torch.ones(3, 2)}, "t"),
    ]
    assert [len(figure.axes) for figure in figures] == [2, 2, 2, 2, 1, 1, 1, 1, 2, 2, 2]
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
