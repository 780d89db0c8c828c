"""AnyText-benchmark: its prompts, and how they are drawn as upstream does."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from anytext_lcm.data.batch import MAX_CHARACTERS, TEXT_PHRASES, Line, build_conditioning, collate
from anytext_lcm.data.fonts import DrawingError, check_fonts, covers
from anytext_lcm.data.json_stream import read_records
from anytext_lcm.data.records import clean
from anytext_lcm.drawing.draw import draw_prepared, prepare
from anytext_lcm.drawing.methods import Method
from anytext_lcm.files import atomic_file, read_json
from anytext_lcm.judging.defaults import ADDED_WORDS, PANEL
from anytext_lcm.judging.judge import unseen_scenes
from anytext_lcm.judging.panel import PANEL_SEED
from anytext_lcm.model.anytext2 import AnyText2

SIDE = 512  # pixels of the benchmark's pictures, in which its polygons are given
MAX_LINES = 20  # upstream's
SETTINGS = "settings.json"
PANEL_PROMPTS, PANEL_SIDE = 64, 128  # how many prompts PANEL has, and the pixels of its pictures
END = 2**20  # bytes at the beginning and the end of a checkpoint that tell it from another
BLANK = (" ", ((0, 0), (0, 50), (50, 50), (50, 0)))  # upstream's line of a picture whose lines are none
# Upstream draws one of six at random, from a generator that every prompt seeds with 100: from the second on this one.
PHRASE = TEXT_PHRASES[1]


@dataclass(frozen=True)
class Task:
    """A prompt of the benchmark: its name in file names, the caption, and (text, polygon) of its lines, if any, at 512
    px. Upstream counts a prompt whose annotations hold no line as one with the line BLANK.
    """

    name: str
    caption: str
    lines: tuple[tuple[str, tuple[tuple[int, int], ...]], ...]


def read_tasks(path: str | Path, limit: int | None = None) -> list[Task]:
    """Read the prompts of a test1k.json or of PANEL, or the first of them. The pictures it names are not needed.

    A name ends at its first dot, as upstream's file names do. Lines marked invalid are left out; of the others the
    first 20 count, and the first 20 characters of each; where none is left BLANK stands for them. Raises
    FileNotFoundError, or ValueError for a file of another layout or without a line of text, and for two prompts of one
    name.
    """
    if str(path) == PANEL:
        return _panel_tasks(limit or PANEL_PROMPTS)
    _, raws = read_records(path)
    tasks: list[Task] = []
    for number, raw in enumerate(raws):
        if limit is not None and len(tasks) == limit:
            break
        record, problems = clean(raw, number)
        if record is None:
            problem = problems[-1]  # for which it is left out
            where = f"record {number}" + f", {problem.kind}" * (problem.kind != "record")
            raise ValueError(f"{path}, {where}: {problem.detail}.")
        lines = [
            (annotation.text[:MAX_CHARACTERS], tuple(map(tuple, annotation.points.tolist())))
            for annotation in record.annotations
            if annotation.valid and annotation.text
        ]
        lines = lines or ([BLANK] if "annotations" in raw else [])
        name = Path(record.img_name).name.split(".")[0]
        caption = record.caption.replace("*", " ")  # a star would take a line's embedding
        tasks.append(Task(name, caption, tuple(lines[:MAX_LINES])))
    if all(task.lines in ((), (BLANK,)) for task in tasks):
        raise ValueError(f"{path} holds no prompt with a line of text.")
    names = [task.name for task in tasks]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path} has several prompts named {doubled[0]!r}; their pictures would replace each other.")
    return tasks


def _panel_tasks(count: int) -> list[Task]:
    """The first prompts of the embedded network's own task, with words that no training picture shows."""
    scenes, tasks = unseen_scenes(count, PANEL_SEED, PANEL_SIDE), []
    for index in range(count):
        item = scenes[index]
        boxes = (SIDE // PANEL_SIDE * np.rint(quad).astype(int) for quad in item["condition_polygons"])
        lines = tuple((text, tuple(map(tuple, box.tolist()))) for text, box in zip(item["texts"], boxes, strict=True))
        tasks.append(Task(f"panel{index:05d}", item["img_caption"].replace("*", " "), lines))
    return tasks


def write_prompts(path: str | Path, tasks: Sequence[Task]) -> None:
    """Write prompts in the layout of a test1k.json, so that any model can draw them. `read_tasks` reads the same."""
    records: list[dict[str, Any]] = []
    for task in tasks:
        records.append({"img_name": f"{task.name}.jpg", "caption": task.caption})
        if task.lines:  # annotations without a line would count as BLANK
            lines = [{"polygon": points, "text": text, "valid": True} for text, points in task.lines]
            records[-1]["annotations"] = lines
    with atomic_file(path) as temporary:
        text = json.dumps({"data_list": records}, indent=1, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def check_font(tasks: Sequence[Task], font: str | Path) -> int:
    """Count the lines that the font cannot write; they are not drawn, and count as wrong.

    Raises ValueError for more than every tenth and a broken font, FileNotFoundError for a missing one.
    """
    check_fonts([font])
    texts = [text for task in tasks for text, _ in task.lines]
    unable = [text for text in texts if not covers(font, text)]
    if 10 * len(unable) > len(texts):
        raise ValueError(
            f"{font} cannot write {len(unable)} of {len(texts)} lines, {unable[0]!r} among them: name another --font."
        )
    return len(unable)


def polygons_of(task: Task, size: tuple[int, int]) -> list[np.ndarray]:
    """The lines' polygons (n, 2) int in a picture of this height and width, cut off at its edge."""
    height, width = size
    stretch = np.array([width / SIDE, height / SIDE])
    return [np.rint(np.array(points) * stretch).astype(int).clip(0, [width, height]) for _, points in task.lines]


def make_batch(
    task: Task, size: tuple[int, int], samples: int, font: str | Path, hint: bool, words: str = ADDED_WORDS
) -> dict[str, Any]:
    """Build the batch (see data/batch.py) that draws a prompt `samples` times.

    A line that the font cannot write, or whose polygon has no room for a letter at this size, is left out; it still
    counts in the score. A prompt without lines gets upstream's blank one.
    """
    lines = []
    for (text, _), polygon in zip(task.lines, polygons_of(task, size), strict=True):
        line = Line(text, polygon, None, font if hint else None)
        try:
            build_conditioning([line], size, 1, font)
        except DrawingError:
            continue
        lines.append(line)
    lines = lines or [Line(BLANK[0], np.array(BLANK[1]))]
    caption = ", ".join(part for part in (task.caption, words) if part)
    item = build_conditioning(lines, size, len(lines), font, phrase=PHRASE) | {"img_caption": caption}
    return collate([item] * samples)


def picture_paths(folder: Path, task: Task, samples: int) -> list[Path]:
    return [folder / f"{task.name}_{k}.jpg" for k in range(samples)]


def content_of(path: str | Path, ends: bool = False) -> str:
    """Length of a file and 16 digits of its SHA-256, the same wherever it lies.

    ends: hash the first and last MB only; all of a checkpoint of several GB takes a minute. Raises FileNotFoundError.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}: check its name.")
    with Path(path).open("rb") as file:
        length = file.seek(0, 2)
        file.seek(0)
        if ends and length > 2 * END:
            digest = hashlib.sha256(file.read(END))
            file.seek(length - END)
            digest.update(file.read())
        else:
            digest = hashlib.file_digest(file, "sha256")
    return f"{length} bytes, {digest.hexdigest()[:16]}"


def tasks_content(data: str | Path) -> str:
    """`content_of` a file of prompts; of PANEL, which has no file, a checksum alone. Raises FileNotFoundError."""
    if str(data) != PANEL:
        return content_of(data)
    return hashlib.sha256(repr(_panel_tasks(PANEL_PROMPTS)).encode()).hexdigest()[:16]


def settings_of(method: Method, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that a method's pictures depend on, and the method, ready for JSON.

    The adapter is the student's alone, and only guidance uses the negative prompt.
    """
    found = {**settings, "method": asdict(method)}
    if not method.adapter:
        for key in ("names", "contents"):
            found[key] = {what: value for what, value in settings[key].items() if what != "adapter"}
    if not method.guided:
        found.pop("negative_prompt")
    return found


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a folder with pictures of other settings (see `settings_of`). Raises ValueError.

    Files are compared by their content, since the benchmark's own have the same names; `names` are for people.
    """
    note = folder / SETTINGS
    if not note.is_file():
        return

    def flat(found: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in found.items() if key not in ("names", "contents")} | found["contents"]

    try:
        earlier = flat(read_json(note))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{note} does not say what its pictures were drawn from; name another --output.") from None
    wanted = flat(json.loads(json.dumps(settings)))
    if other := sorted(key for key in earlier.keys() | wanted.keys() if earlier.get(key) != wanted.get(key)):
        raise ValueError(f"{folder} holds pictures of other settings ({', '.join(other)}); name another --output.")


def draw_tasks(
    model: AnyText2, tasks: Sequence[Task], method: Method, folder: Path, settings: Mapping[str, Any], show: bool = True
) -> dict[str, float]:
    """Draw what is not there yet, each prompt's pictures together. Returns the seconds this run took, by phase.

    settings: of the run. Raises ValueError for a folder with pictures of others.
    """
    own, note = settings_of(method, settings), folder / SETTINGS
    check_settings(folder, own)
    if not note.is_file():
        with atomic_file(note) as temporary:
            temporary.write_text(json.dumps(own, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    size, samples = tuple(settings["size"]), settings["samples"]
    seconds = {"denoise": 0.0, "decode": 0.0, "pictures": 0.0}
    for task in tqdm(tasks, desc=method.name, leave=False, disable=None if show else True):
        paths = picture_paths(folder, task, samples)
        if paths[-1].is_file():  # written last, so the others are there too
            continue
        batch = make_batch(task, size, samples, settings["names"]["font"], settings["font_hint"], settings["words"])
        seeds = range(settings["seed"], settings["seed"] + samples)
        prepared = prepare(model, batch, list(seeds), settings["negative_prompt"])
        drawing = draw_prepared(model, prepared, method, truncate=True)
        for path, image in zip(paths, drawing.images, strict=True):
            with atomic_file(path) as temporary:
                temporary.write_bytes(cv2.imencode(".jpg", image[..., ::-1])[1].tobytes())
        for phase in ("denoise", "decode"):
            seconds[phase] += drawing.clock.wall[phase]
        seconds["pictures"] += samples
    return seconds
