"""The first cell of a notebook: where it runs, what it needs, and how its figures look."""

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from IPython import get_ipython

import anytext_lcm

NOTEBOOKS = Path(anytext_lcm.__file__).parents[1] / "notebooks"


def start(preset: str, needed: Iterable[str] = (), presets: Iterable[str] = ("tiny", "full")) -> None:
    """Prepare a notebook: its folder is the working folder, figures have 144 dpi and one width, torch one thread.

    needed: files and folders that the preset "full" reads, relative to the notebooks' folder. Raises ValueError for
    another preset, FileNotFoundError for what is missing, before anything is loaded.
    """
    if preset not in presets:
        raise ValueError(f"PRESET {preset!r} is unknown: choose {' or '.join(map(repr, presets))}.")
    if NOTEBOOKS.is_dir():  # in a checkout; paths in the cells are relative to it
        os.chdir(NOTEBOOKS)
    missing = [name for name in needed if preset == "full" and not Path(name).exists()]
    if missing:
        raise FileNotFoundError(f'PRESET = "full" needs {", ".join(missing)}: put it there, or change the path above.')
    shell = get_ipython()
    if shell is not None:  # twice the dpi, shown at the figure's own width
        shell.run_line_magic("matplotlib", "inline")
        shell.run_line_magic("config", "InlineBackend.figure_format = 'retina'")
        shell.run_line_magic("config", "InlineBackend.print_figure_kwargs = dict(bbox_inches=None)")
    torch.set_num_threads(1)  # small tensors: threads would only wait for each other
