"""The guided teacher's paths on disk, drawn from captions and lines alone: a run on them needs no pictures.

Written by `python -m anytext_lcm.cache_latents --draw N`, read by training with --paths FOLDER. The folder is a store
of shards (`shards.py`) with one array, `path`, float16 (n + 1, C, h, w) as `lcm.paths.Paths` has it, and with
--captions also captions.json, a copy of that file, and with a font for them captions.ttf, a copy of it.
"""

import hashlib
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from anytext_lcm.data.batch import collate
from anytext_lcm.data.fonts import PLAIN_FONT, font_path
from anytext_lcm.drawing.draw import predictor, prepare
from anytext_lcm.drawing.jobs import read_batch
from anytext_lcm.drawing.noise import initial_noise
from anytext_lcm.drawing.prompts import Prompt, prompt_item
from anytext_lcm.files import atomic_file
from anytext_lcm.lcm.paths import draw_paths
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.lcm.steps import DDIMSolver
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.networks import defaults_for
from anytext_lcm.training.checkpoints import fingerprint
from anytext_lcm.training.data_order import mock_pictures
from anytext_lcm.training.memory import evaluation_flops
from anytext_lcm.training.settings import TrainSettings
from anytext_lcm.training.shards import Array, Layout, ShardReader, ShardWriter, compare_settings

PATH, CAPTIONS, FONT, POINTS = "path", "captions.json", "captions.ttf", 50
SHARD_PATHS = 32  # paths of a file: at 512 px 53 MB, and 3,200 evaluations that a killed run draws again at most
UNUSED = ("img", "inv_mask", "polygons", "meta")  # fields of an item that belong to its picture


# -- what is asked for --------------------------------------------------------------------------------------


class Wishes(Dataset):
    """Items of the batch contract without a picture: captions and lines of the mock data's rules, or of a file."""

    def __init__(self, settings: TrainSettings, count: int, captions: Path | None, font: str | Path | None = None):
        """font: of the captions, None for the usual one. Raises ValueError for a captions file that cannot be read,
        naming the entry.
        """
        self.count, self.captions, self.font = count, captions, font
        self.network, self.side = defaults_for(settings.config), settings.picture_size
        self.prompts: list[Prompt] = []
        self.mock = None
        self.sources = () if captions is None else (captions,)
        if captions is None:
            self.mock = mock_pictures(settings, size=count, edit_share=0.0)
        else:
            self.prompts = [prompt for prompt, _ in read_batch(str(captions), 0, None)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.mock is None:
            prompt = self.prompts[index % len(self.prompts)]
            return prompt_item(prompt, (self.side, self.side), self.network.max_lines, self.font or PLAIN_FONT)
        item = self.mock[index]
        return {name: value for name, value in item.items() if name not in UNUSED}

    def check(self) -> None:
        """Build every prompt of a captions file once. Raises ValueError naming the first that cannot be drawn."""
        for index in range(min(self.count, len(self.prompts))):
            self[index]

    def held_out(self, share: float) -> "tuple[set[int], Wishes]":
        """Places of the captions that a share of 0..1 holds out, and these alone: those with lines whose texts have the
        lowest checksums, 2 or more. A caption that is there twice is held out twice.
        """
        texts = [(prompt.caption, [line.text for line in prompt.lines]) for prompt in self.prompts]
        sums = [zlib.crc32(repr(text).encode("utf-8", "surrogatepass")) for text in texts]
        drawn = {own for own, (_, lines) in zip(sums, texts, strict=True) if any(line.strip() for line in lines)}
        count = max(2, round(share * len(set(sums))))  # a panel needs 2
        lowest = set(sorted(drawn)[:count])
        places = {place for place, own in enumerate(sums) if own in lowest}
        alone = copy(self)
        alone.prompts = [self.prompts[place] for place in sorted(places)]
        alone.count = len(places)
        return places, alone

    def about(self) -> dict[str, Any]:
        """What decides the items, for the manifest."""
        if self.mock is None:
            files = {"captions": self.captions} | ({"font": font_path(self.font)} if self.font else {})
            return {name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for name, file in files.items()}
        return {"mock_seed": self.mock.seed}


# -- writing ------------------------------------------------------------------------------------------------


def layout_of(settings: TrainSettings, wishes: Wishes, model: AnyText2) -> Layout:
    """The store of these paths. model: the teacher, in any precision."""
    side = settings.picture_size // 8
    shape = (POINTS + 1, model.latent_channels, side, side)
    about = teacher_of(settings, model) | {"seed": settings.seed, "side": settings.picture_size} | wishes.about()
    return Layout(len(wishes), {PATH: Array(torch.float16, shape)}, about, SHARD_PATHS)


def teacher_of(settings: TrainSettings, model: AnyText2) -> dict[str, Any]:
    """What a path depends on beside its prompt and its noise."""
    schedule = model.alphas_cumprod.detach().cpu().double().numpy().round(6)
    return {
        "kind": "paths of a teacher",
        "teacher": fingerprint(model),
        "schedule": hashlib.sha256(schedule.tobytes()).hexdigest()[:16],
    } | _guidance_of(settings)


def _guidance_of(settings: TrainSettings) -> dict[str, Any]:
    """The part of `teacher_of` that needs no weights."""
    settings = settings.with_guidance()
    return {
        "points": POINTS,
        "guidance_scale": float(settings.guidance_scale),
        "negative_prompt": settings.negative_prompt,
    }


@dataclass(frozen=True)
class Cost:
    """What drawing paths takes: evaluations of the UNet for one picture, floating-point operations, bytes."""

    paths: int
    evaluations: int
    flops: float
    bytes: int

    def words(self, tflops: float | None = None) -> str:
        """In a sentence or two. tflops: what the machine is assumed to reach, in 10^12 operations a second."""
        said = (
            f"{self.paths} paths of {POINTS} steps take {self.evaluations} evaluations of the UNet, "
            f"{self.flops / 1e12:.4g} TFLOP, and {self.bytes / 2**30:.3g} GiB."
        )
        if tflops is None:
            return said
        return f"{said} At {tflops:g} TFLOP/s that is {self.flops / tflops / 3.6e15:.3g} hours."


def cost(settings: TrainSettings, count: int, channels: int) -> Cost:
    """Counted on shapes; nothing is read but the yaml. The text encoder and the drawing of glyphs are left out."""
    unet, control = evaluation_flops(settings.config, settings.picture_size)
    branches = 1 if settings.guidance_scale == 1 else 2
    flops = count * branches * (POINTS * unet + control)
    side = settings.picture_size // 8
    return Cost(count, count * branches * POINTS, flops, count * (POINTS + 1) * channels * side**2 * 2)


@torch.no_grad()
def write_paths(
    folder: str | Path,
    settings: TrainSettings,
    wishes: Wishes,
    model: AnyText2,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Draw every path that the folder lacks, shard by shard; what a killed run wrote is kept.

    progress: called with the number of paths that are done. Raises ValueError when the folder holds other paths or
    other files, and for a path that is not finite.
    """
    layout, folder = layout_of(settings, wishes, model), Path(folder)
    writer = ShardWriter(folder, layout)
    if wishes.captions is not None:
        _keep(wishes.captions, folder / CAPTIONS)
    if wishes.font is not None:
        _keep(font_path(wishes.font), folder / FONT)
    solver, missing = DDIMSolver(NoiseSchedule(model.alphas_cumprod), POINTS), writer.missing()
    if progress is not None:
        progress(len(wishes) - sum(len(layout.rows_of(shard)) for shard in missing))
    for shard in missing:
        rows, drawn = layout.rows_of(shard), []
        for start in range(rows.start, rows.stop, settings.train_batch_size):
            chunk = range(start, min(start + settings.train_batch_size, rows.stop))
            drawn.append(_draw(chunk, settings, wishes, model, solver))
            if progress is not None:
                progress(len(chunk))
        writer.write(shard, {PATH: torch.cat(drawn)})


def _keep(file: Path, place: Path) -> None:
    if not place.is_file():
        with atomic_file(place) as temporary:
            shutil.copyfile(file, temporary)


def _draw(rows: range, settings: TrainSettings, wishes: Wishes, model: AnyText2, solver: DDIMSolver) -> Tensor:
    """Paths (rows, n + 1, C, h, w) of these rows; the seed of each is the settings' and its row."""
    seeds = [settings.seed * 10_000_000 + row for row in rows]
    prepared = prepare(model, collate([wishes[row] for row in rows]), seeds, settings.negative_prompt)
    noise = initial_noise(seeds, prepared.latent_shape).to(model.device)
    paths = draw_paths(predictor(model, prepared, settings.guidance_scale), noise, solver)
    if not bool(torch.isfinite(paths).all()):
        raise ValueError(
            f"The path of row {rows[0]} or a following one is not finite in half precision: draw with less "
            "guidance, or check the weights."
        )
    return paths


# -- reading ------------------------------------------------------------------------------------------------


def _is_whole(about: Mapping[str, Any], stored: Array | None) -> bool:
    """Whether a manifest says all that is read of it, and in its types."""
    wanted = {"side": int, "seed": int} | ({"captions": str} if "captions" in about else {"mock_seed": int})
    wanted |= {"font": str} if "font" in about else {}
    if stored is None or any(type(about.get(name)) is not kind for name, kind in wanted.items()):
        return False
    side = about["side"] // 8
    known = stored.dtype == torch.float16 and len(stored.shape) == 4
    return known and (stored.shape[0], *stored.shape[2:]) == (POINTS + 1, side, side)


class PathDataset(Dataset):
    """Items with `path`, float16 (n + 1, C, h, w), from a folder that `write_paths` filled.

    Of paths drawn from captions, `validation_share` leaves out those of some captions, which are in `held_out`.
    """

    def __init__(self, settings: TrainSettings):
        """Raises FileNotFoundError when the folder is no store of paths, ValueError for one that is not whole, and for
        pictures of another size or paths of another guidance.
        """
        self.folder = Path(settings.paths)
        again = "draw them with python -m anytext_lcm.cache_latents --draw N"
        try:
            self.reader = ShardReader(self.folder)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.folder} holds no paths; {again}.") from error
        except ValueError as error:
            raise ValueError(f"{str(error).rstrip('.')}; go on with the command that began it.") from error
        about = self.about = dict(self.reader.layout.settings)
        if about.get("kind") != "paths of a teacher" or not _is_whole(about, self.reader.layout.arrays.get(PATH)):
            raise ValueError(f"{self.folder} holds other numbers than the paths of a teacher; {again}.")
        if not about.get("scenery", True):  # of the time of two kinds of mock pictures; the other kind is left
            raise ValueError(f"The paths in {self.folder} are of mock pictures of an earlier version; {again}.")
        if about["side"] != settings.picture_size:
            raise ValueError(
                f"The paths in {self.folder} are of {about['side']} px, the run has {settings.picture_size}; "
                f"say --image_size {about['side']}."
            )
        self._compare(_guidance_of(settings))
        self.wishes = self._wishes(settings)
        self.rows: Sequence[int] = range(len(self.reader))
        self.held_out: Wishes | None = None  # captions that are not trained on
        if self.wishes.captions is None:
            if settings.validation_share:
                raise ValueError(
                    f"The paths in {self.folder} follow the mock data's rules, which hold words out themselves: leave "
                    "--validation_share out."
                )
        elif settings.validation_share:
            self._hold_out(settings.validation_share)
        elif settings.patience:
            raise ValueError("--patience needs a panel to go by; hold captions out with --validation_share.")

    def _hold_out(self, share: float) -> None:
        places, self.held_out = self.wishes.held_out(share)
        self.rows = [row for row in self.rows if row % len(self.wishes.prompts) not in places]
        if not self.rows or len(self.held_out) < 2:
            raise ValueError(
                f"{self.folder} has {len(self.wishes.prompts)} captions, too few to hold 2 with text out and train on "
                "others: draw paths from more, or leave --validation_share out."
            )

    def _wishes(self, settings: TrainSettings) -> Wishes:
        about, captions, font = self.about, None, self.folder / FONT if "font" in self.about else None
        if "captions" in about:
            captions = self.folder / CAPTIONS
        else:
            settings = replace(settings, seed=about["mock_seed"])
        try:
            wishes = Wishes(settings, len(self.reader), captions, font)
            other = [name for name, value in wishes.about().items() if value != about.get(name)]
        except (OSError, ValueError) as error:
            raise ValueError(f"The captions of the paths in {self.folder} cannot be read ({error}).") from error
        if other:
            file = {"captions": captions, "font": font}[other[0]]
            raise ValueError(f"{file} is not the file that the paths in {self.folder} were drawn from.")
        return wishes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        return self.wishes[row] | self.reader.row(row, PATH)

    @property
    def name(self) -> str:
        """What tells these paths from others of the same teacher."""
        of = [f"{name} {self.about[name]}" for name in ("seed", "captions", "font", "mock_seed") if name in self.about]
        return f"{len(self.reader)} of {', '.join(of)}"

    def check(self, settings: TrainSettings, model: AnyText2) -> None:
        """Raise ValueError for paths of another teacher, guidance, negative prompt, schedule or number of points."""
        self._compare(teacher_of(settings, model))
        channels = self.reader.layout.arrays[PATH].shape[1]
        compare_settings(self.folder, {"channels": channels}, {"channels": model.latent_channels})

    def _compare(self, wanted: Mapping[str, Any]) -> None:
        compare_settings(self.folder, {name: self.about.get(name) for name in wanted}, wanted)
