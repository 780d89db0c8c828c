"""Which pictures of a folder belong to which prompt, and whether all are there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anytext_lcm.data.pictures import picture_size
from anytext_lcm.judging.artefacts import LEAST_SIDE
from anytext_lcm.judging.benchmark_set import Task
from anytext_lcm.judging.defaults import PANEL
from anytext_lcm.judging.judge import DISTRIBUTION_FROM
from anytext_lcm.judging.reading import READ_HEIGHT

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
MOST_COMPARED = 1000  # drawn pictures at most that are compared with as many real ones, so that it takes minutes


@dataclass(frozen=True)
class Found:
    """A folder's pictures of the prompts: by prompt's name those of which no sample is missing, and the names of the
    files that are.
    """

    folder: Path
    paths: Mapping[str, tuple[Path, ...]]
    missing: tuple[str, ...]


def find_pictures(folder: Path, tasks: Sequence[Task], samples: int) -> Found:
    """Look for NAME_0 ... NAME_{samples - 1} of each prompt, as upstream names them, with one of ENDINGS.

    Raises FileNotFoundError for a missing folder, ValueError for a picture that is there with two endings and for a
    folder with no wanted picture.
    """
    there: dict[str, Path] = {}
    wanted = {f"{task.name}_{k}": None for task in tasks for k in range(samples)}
    for path in pictures_in(folder):
        if path.stem in wanted and path.stem in there:
            raise ValueError(f"{folder} holds {there[path.stem].name} and {path.name}: keep one of them.")
        there[path.stem] = path
    missing = tuple(f"{stem}.jpg" for stem in wanted if stem not in there)
    if len(missing) == len(wanted):
        other = f"the first there is {next(iter(there.values())).name}" if there else f"pictures end in {_endings()}"
        raise ValueError(f"{folder} holds no picture of these prompts: the first would be {missing[0]}; {other}.")
    by_task = {task.name: [f"{task.name}_{k}" for k in range(samples)] for task in tasks}
    paths = {name: tuple(there[s] for s in stems) for name, stems in by_task.items() if there.keys() >= set(stems)}
    return Found(folder, paths, missing)


def pictures_in(folder: str | Path) -> list[Path]:
    """The pictures of a folder by name, not those of its folders. Raises FileNotFoundError."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"There is no folder {folder}: check its name.")
    return sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in ENDINGS and path.is_file())


def real_files(folder: str | Path) -> list[Path]:
    """The pictures of a folder of real ones. Raises FileNotFoundError, or ValueError for too few to compare with."""
    found = pictures_in(folder)
    if len(found) < 2 * DISTRIBUTION_FROM:
        raise ValueError(
            f"{folder} holds {len(found)} pictures, and a distance needs {2 * DISTRIBUTION_FROM}: add some that end in "
            f"{_endings()}."
        )
    return found


def _endings() -> str:
    return f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"


def require_complete(found: Found, total: int, samples: int) -> None:
    """Raise ValueError when one of `total` pictures is missing: how many, the first three, and what to do."""
    if not found.missing:
        return
    first = ", ".join(found.missing[:3]) + ", ..." * (len(found.missing) > 3)
    least = min(int(name.removesuffix(".jpg").rpartition("_")[2]) for name in found.missing)
    fewer = f", say --samples {least}, of which all are there," * (0 < least < samples)
    raise ValueError(
        f"{found.folder} lacks {len(found.missing)} of {total} pictures ({first}): add them{fewer} "
        "or score the prompts that are whole with --partial."
    )


@dataclass(frozen=True)
class Scoring:
    """Folders to score, checked: all hold every sample of every prompt.

    size: height and width at which lines are read, in pixels; other pictures are resized. real: files of real pictures,
    or PANEL for its own, or None. left_out: by folder's name, how many prompts of the set it lacks.
    """

    tasks: Sequence[Task]
    found: Mapping[str, Found]
    samples: int
    size: tuple[int, int]
    reference: str | None
    real: Sequence[Path] | str | None
    left_out: Mapping[str, int]

    @property
    def real_name(self) -> str | None:
        """The folder of the real pictures, or PANEL, or None."""
        return self.real if self.real is None or isinstance(self.real, str) else str(self.real[0].parent)

    @property
    def real_chosen(self) -> list[Path]:
        """The files of real pictures to compare with, none for PANEL; shuffled: files beside each other are alike."""
        if self.real is None or isinstance(self.real, str):
            return []
        order = np.random.default_rng(0).permutation(len(self.real))[: 2 * self.compared]
        return [self.real[i] for i in order]

    @property
    def compared(self) -> int:
        """Drawn pictures of a folder that are compared with as many real ones, with as many again for the floor.

        Pictures of one prompt are not compared with each other, so of one prompt there is none.
        """
        drawn = len(self.tasks) * self.samples
        if self.real is None or len(self.tasks) < 2 or drawn < DISTRIBUTION_FROM:
            return 0
        return min(drawn, MOST_COMPARED, *(() if self.real == PANEL else (len(self.real) // 2,)))


def check_scoring(
    tasks: Sequence[Task],
    folders: Mapping[str, Path],
    samples: int,
    reference: str | None,
    real: str | Path | None = None,
    partial: bool = False,
    of_panel: bool = False,
) -> Scoring:
    """Match files with prompts. reference: one of the folders' names; its first picture's size is that of all.

    real: a folder of real pictures; without one the PANEL has its own. partial: score the prompts that every folder has
    whole. Raises ValueError or FileNotFoundError.
    """
    if reference is not None and reference not in folders:
        raise ValueError(f"There are no pictures named {reference!r} to compare with: choose {', '.join(folders)}.")
    found = {name: find_pictures(folder, tasks, samples) for name, folder in folders.items()}
    whole = [task for task in tasks if all(task.name in one.paths for one in found.values())]
    if not partial:
        for one in found.values():
            require_complete(one, len(tasks) * samples, samples)
    if not any(task.lines for task in whole):
        raise ValueError("No prompt with text is whole in every folder: there is nothing to compare.")
    pictures: Sequence[Path] | str | None = PANEL if of_panel else None
    if real is not None:
        pictures = real_files(real)
    first = found[reference or next(iter(found))].paths[whole[0].name][0]
    size = picture_size(first, turned=True)[::-1]
    _require_side(first, READ_HEIGHT, "lines are read {} high")
    left_out = {name: len(tasks) - len(one.paths) for name, one in found.items()}
    scoring = Scoring(whole, found, samples, size, reference, pictures, left_out)
    drawn = [path for one in found.values() for task in whole for path in one.paths[task.name]]
    for path in [*drawn, *scoring.real_chosen]:
        _require_side(path, LEAST_SIDE, "a grid needs {}")
    return scoring


def _require_side(path: Path, least: int, why: str) -> None:
    """Raise ValueError for a picture with fewer pixels along a side, or one that cannot be read. why: of how many."""
    width, height = picture_size(path)
    if min(width, height) < least:
        raise ValueError(f"{path} is {width} x {height} pixels, and {why.format(least)}: give larger pictures.")
