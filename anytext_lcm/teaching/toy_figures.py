"""Figures of notebooks 03 and 06: the exact mixture on a line and in the plane.

Where time is an axis it falls from left to right, from noise to data, as in sampling.
"""

from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anytext_lcm.figures.plots import lines
from anytext_lcm.figures.style import COLORS, WIDTH, as_array, curve_style, finish, legend_beside, new_figure
from anytext_lcm.lcm.samplers import sample
from anytext_lcm.lcm.steps import DDIMSolver
from anytext_lcm.teaching.toy import Mixture, guided, perfect_student


def toy_targets(data: Mixture, timestep: int, students: Mapping[str, object] | None = None) -> Figure:
    """What x_t at one timestep says about x_0, for a mixture on a line; curves over 301 values of x_t.

    Above the posterior mean and the end of the path, below the density of x_t. students: more curves by name, each a
    function of x (B, 1) and t (B,) that returns x_0 (B, 1).
    """
    figure, (upper, lower) = new_figure(4.0, 2, 1, sharex=True, height_ratios=(3, 1))
    x = torch.linspace(-2.5, 2.5, 301)[:, None]
    t = _same_timesteps(timestep, x)
    for mean in data.means[:, 0]:
        upper[0].axhspan(mean - 2 * data.spread, mean + 2 * data.spread, color="0.9")
    curves = {"posterior mean": data.posterior_mean(x, t), "end of the path": data.consistency(x, t)}
    for name, student in (students or {}).items():
        curves[name] = student(x, t)
    for name, y in curves.items():
        upper[0].plot(x[:, 0], as_array(y)[:, 0], label=name, **curve_style(upper[0], len(curves)))
    lower[0].fill_between(x[:, 0], as_array(data.log_density(x, t).exp()), color="0.7")
    title = f"What $x_t$ at $t = {timestep}$ says about the clean data (grey: where data are)"
    finish(upper[0], "", "clean data $x_0$", title, True)
    finish(lower[0], "$x_t$", "$p_t(x_t)$", "", False)
    return figure


def toy_paths(data: Mixture, steps: int, count: int = 9) -> Figure:
    """x_t over t on a line: `count` exact paths of the ODE, and DDIM's polygons in `steps` steps from the same starts.

    The starts are evenly spread quantiles of the noise.
    """
    starts = torch.special.ndtri((torch.arange(count) + 0.5) / count)[:, None].float()
    fine = [999, *range(979, 0, -40), 0]
    exact = [starts.double()]
    for start, end in zip(fine[:-1], fine[1:], strict=True):
        exact.append(data.flow(exact[-1], start, end, steps=16))
    polygon = list(sample(data.predict, starts, data.schedule, steps, "ddim", spacing="trailing"))
    times, seen = [step.timestep for step in polygon] + [0], [starts] + [step.latents for step in polygon]
    figure, axes = new_figure(3.2)
    axis: Axes = axes[0, 0]
    axis.plot(fine, torch.cat(exact, 1).T, color=COLORS[1], linewidth=3, alpha=0.5)
    axis.plot(times, torch.cat(seen, 1).T, color=COLORS[0], marker="o", markersize=3, linewidth=1)
    axis.plot([], [], color=COLORS[1], linewidth=3, alpha=0.5, label="exact")
    axis.plot([], [], color=COLORS[0], marker="o", markersize=3, linewidth=1, label=f"DDIM, {steps} steps")
    axis.invert_xaxis()
    finish(axis, "$t$, from noise to data", "$x_t$", "Paths of the probability-flow ODE, and DDIM along them", False)
    legend_beside(axis)  # to look for a free place among all these paths takes seconds
    return figure


def over_time(curves: Mapping[str, tuple], y_label: str, title: str = "", y_scale: str = "linear") -> Figure:
    """`plots.lines` of values by name, each (timesteps, values), with time falling from left to right."""
    figure = lines(curves, "$t$, from noise to data", y_label, title, y_scale=y_scale, height=2.6)
    figure.axes[0].invert_xaxis()
    return figure


def training_step() -> Figure:
    """One training step of latent consistency distillation as a drawing, with the numbers of `training/step.py`."""
    along = torch.linspace(0, 1, 101)  # of the way from noise to data
    path = 0.15 + 0.8 * torch.sigmoid(9 * (along - 0.62))
    figure, axes = new_figure(3.4)
    axis: Axes = axes[0, 0]
    axis.plot(along, path, color=COLORS[1], linewidth=4, alpha=0.4)
    x_t, x_s, pred, target = (0.3, float(path[30])), (0.5, float(path[50]) - 0.03), (1.0, 0.5), (1.0, 0.86)
    ways = ((x_t, x_s, "-", COLORS[1]), (x_t, pred, "-", COLORS[0]), (x_s, target, "--", "0.35"))
    for tail, head, dashes, color in ways:
        style = {"arrowstyle": "-|>", "linestyle": dashes, "color": color, "linewidth": 1.8}
        axis.annotate("", head, tail, arrowprops={**style, "shrinkA": 4, "shrinkB": 1})
    axis.annotate("", (1.02, pred[1]), (1.02, target[1]), arrowprops={"arrowstyle": "<->", "color": COLORS[3]})
    axis.plot(*zip(x_t, x_s, strict=True), "o", color="black", markersize=6)
    words = (
        ("5. $x_t$", 0.25, 0.26, "black"),
        ("6, 7. teacher, solver", 0.31, 0.1, COLORS[3]),
        ("$x_s$", 0.465, 0.44, "black"),
        ("8. target $f(x_s, s)$\n(stop-gradient)", 0.52, 0.72, "0.35"),
        ("9. student $f(x_t, t)$\n(gradient)", 0.72, 0.26, COLORS[0]),
        ("10. loss", 1.035, 0.68, COLORS[3]),
        ("path of the ODE", 0.02, 0.22, COLORS[1]),
    )
    for text, across, up, color in words:
        axis.text(across, up, text, color=color, fontsize=10, va="center")
    axis.set_xlim(0, 1.16)
    axis.set_ylim(0, 1.02)
    axis.set_yticks([])
    axis.set_xticks([0, 0.3, 0.5, 1], ["$t = 999$", "$t$", "$s = t - 20$", "$t = 0$"])
    finish(axis, "from noise to data", "", "One training step: two estimates of the same end", False)
    return figure


def toy_skip(data: Mixture, skip: int, timestep: int = 999) -> Figure:
    """x_0 over 301 values of x_t at a grid timestep, by a perfect student of the `lcm` objective with this skip.

    Beside it the end of the path and the posterior mean, for a mixture on a line. Raises ValueError for a skip that
    leads off the grid.
    """
    figure, axes = new_figure(3.0)
    axis: Axes = axes[0, 0]
    x = torch.linspace(-2.5, 2.5, 301)[:, None]
    solver = DDIMSolver(data.schedule, skip=skip)
    index = int(solver.index_of(torch.tensor([timestep])))
    curves = {
        "end of the path": data.consistency(x, _same_timesteps(timestep, x)),
        f"perfect student, skip {skip}": perfect_student(data.predict, x, solver, index),
        "posterior mean": data.posterior_mean(x, _same_timesteps(timestep, x)),
    }
    for name, y in curves.items():
        axis.plot(x[:, 0], as_array(y)[:, 0], label=name, **curve_style(axis, len(curves)))
    finish(axis, f"$x_t$ at $t = {timestep}$", "clean data $x_0$", "Where a perfect student ends", True)
    return figure


def toy_guidance(data: Mixture, cond: Mixture, timestep: int, guidance_scale: float) -> Figure:
    """Guidance from `data` towards `cond`, mixtures in the plane.

    At the left the guided field at one timestep on a grid of 17 x 17 places, as arrows along which a sampler moves; at
    the right the ends of 200 exact paths.
    """
    figure, axes = new_figure(3.9, 1, 2)
    left, right = axes[0]
    line = torch.linspace(-1.8, 1.8, 17)
    at = torch.cartesian_prod(line, line)
    t = _same_timesteps(timestep, at)
    downhill = -guided(data, cond, guidance_scale)(at, t)  # the sampler walks against eps
    left.quiver(*at.T, *downhill.T, color=COLORS[0], angles="xy")
    noise = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    ends = data.flow(noise, 999, 0, given=cond, guidance_scale=guidance_scale)
    right.plot(*ends.T, "o", color=COLORS[3], markersize=3, alpha=0.6, label="ends of 200 paths")
    for axis, title in ((left, f"direction at $t = {timestep}$"), (right, "where the paths end")):
        axis.plot(*data.means.T, "o", color="0.6", markersize=11, fillstyle="none", label="modes")
        axis.plot(*cond.means.T, "o", color="black", markersize=11, fillstyle="none", label="wanted modes")
        axis.set_aspect("equal")
        axis.set_xlim(-2, 2)
        axis.set_ylim(-2, 2)
        finish(axis, "first coordinate", "second coordinate", title, False)
    right.legend(fontsize=9, frameon=False, loc="lower right")  # below the ring, for any scale
    figure.suptitle(f"Guidance scale $s_g$ = {guidance_scale:g} ($w$ = {guidance_scale - 1:g})", fontsize=11)
    return figure


def toy_clouds(data: Mixture, clouds: Mapping[str, object], title: str = "") -> Figure:
    """Samples side by side, each (N, 2) by name, over the modes of a mixture in the plane; up to four in a row."""
    columns, rows = min(4, len(clouds)), -(-len(clouds) // 4)
    panel = (WIDTH - 0.7) / columns + 0.2 * (1 + any("," in name for name in clouds))  # a square under its name
    figure, axes = new_figure(rows * panel + 0.75, rows, columns, sharex=True, sharey=True)
    for spare in axes.flat[len(clouds) :]:
        spare.axis("off")
    for axis, (name, points) in zip(axes.flat, clouds.items(), strict=False):
        axis.plot(*as_array(points).T, ".", color=COLORS[0], markersize=2)
        axis.plot(*data.means.T, "o", color="black", markersize=9, fillstyle="none")
        axis.set_aspect("equal")
        axis.set_xlim(-1.6, 1.6)
        axis.set_ylim(-1.6, 1.6)
        narrow = name.replace(", ", ",\n")  # a panel is too narrow for one line
        below, left = axis in axes[-1], axis in axes[:, 0]
        finish(axis, "first coordinate" * below, "second coordinate" * left, narrow, False)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _same_timesteps(timestep: int, x: torch.Tensor) -> torch.Tensor:
    return torch.full((len(x),), int(timestep))
