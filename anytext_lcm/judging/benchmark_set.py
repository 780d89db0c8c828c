"""AnyText-benchmark: its prompts, how they are drawn and scored as upstream does."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from anytext_lcm.data.batch import MAX_CHARACTERS, TEXT_PHRASES, Line, build_conditioning, collate
from anytext_lcm.data.fonts import DrawingError, check_fonts, covers
from anytext_lcm.data.json_stream import read_records
from anytext_lcm.data.pictures import open_picture
from anytext_lcm.data.records import clean
from anytext_lcm.drawing.draw import draw_prepared, prepare
from anytext_lcm.drawing.methods import Method
from anytext_lcm.figures.text_table import text_table
from anytext_lcm.files import atomic_file, read_json
from anytext_lcm.judging import intervals, reading
from anytext_lcm.judging.benchmark_lines import ENGLISH, is_chinese, upstream_crop, upstream_ned
from anytext_lcm.judging.defaults import ADDED_WORDS
from anytext_lcm.model.anytext2 import AnyText2

SIDE = 512  # pixels of the benchmark's pictures, in which its polygons are given
MAX_LINES = 20  # upstream's
SETTINGS, REPORT = "settings.json", "report.json"
END = 2**20  # bytes at the beginning and the end of a checkpoint that tell it from another
BLANK = (" ", ((0, 0), (0, 50), (50, 50), (50, 0)))  # upstream's line of a picture whose lines are none
# Upstream draws one of six at random, from a generator that every prompt seeds with 100: from the second on this one.
PHRASE = TEXT_PHRASES[1]
WHOLE = 1000  # prompts of laion_word's and of wukong_word's test1k.json
# AnyText2's README, read by ModelScope's recogniser: sentence accuracy and NED of 20 steps.
PUBLISHED = {False: ("AnyText2, English", 0.8175, 0.9193), True: ("AnyText2, Chinese", 0.7250, 0.8529)}  # if Chinese


NOTES = (
    "Drawn and measured as AnyText2's eval/anytext2_singleGPU.py and eval/eval_dgocr.py do, but for what follows.",
    "Lines are read by PP-OCRv6 from rapidocr; the published numbers are by ModelScope's recogniser, so first compare "
    "methods of this report with each other.",
    "Each picture has its own noise, from its own seed on the CPU; upstream draws four from one generator on the GPU.",
    "Glyphs are drawn by the Pillow that is installed (upstream: 9.5), which chooses another size or offset for some "
    "lines, and in the font that was named (upstream: Arial Unicode); a line that it lacks is not drawn and is wrong.",
    "The first prompt's text caption begins like all others; upstream draws its phrase at random.",
    "FID and CLIPScore are left out: their networks are not part of this package. The pictures are named as "
    "upstream's own scripts expect them.",
)
CHINESE_NOTE = (
    "NED compares all letters as they are; upstream's counts letters that its Chinese dictionary lacks as one."
)


@dataclass(frozen=True)
class Task:
    """A prompt of the benchmark: its name in file names, the caption, and (text, polygon) of its lines, if any, at 512
    px. Upstream counts a prompt whose annotations hold no line as one with the line BLANK.
    """

    name: str
    caption: str
    lines: tuple[tuple[str, tuple[tuple[int, int], ...]], ...]


def read_tasks(path: str | Path, limit: int | None = None) -> list[Task]:
    """Read the prompts of a test1k.json, or the first of them. The pictures it names are not needed.

    A name ends at its first dot, as upstream's file names do. Lines marked invalid are left out; of the others the
    first 20 count, and the first 20 characters of each; where none is left BLANK stands for them. Raises
    FileNotFoundError, or ValueError for a file of another layout or without a line of text, and for two prompts of one
    name.
    """
    _, raws = read_records(path)
    tasks: list[Task] = []
    for number, raw in enumerate(raws):
        if limit is not None and len(tasks) == limit:
            break
        record, problems = clean(raw, number)
        if record is None:
            raise ValueError(f"{path}, record {number}: {problems[0].detail if problems else 'it cannot be read'}.")
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


def _read_pictures(paths: Sequence[Path], size: tuple[int, int]) -> Iterator[np.ndarray]:
    for path in paths:
        image = open_picture(path)
        if image.shape[:2] != size:
            raise ValueError(f"{path} is {image.shape[1]} x {image.shape[0]} pixels, not {size[1]} x {size[0]}.")
        yield image


def score_tasks(
    reader: reading.LineReader, tasks: Sequence[Task], folder: Path, samples: int, size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Read a folder's pictures of prompts with text. Returns arrays with an entry per prompt, sample and line, in this
    order.

    exact and ned compare as upstream does: case, spaces and punctuation count. correct and lenient_ned compare letters
    and digits alone. group: the prompt.
    """
    known = None if is_chinese([text for task in tasks for text, _ in task.lines]) else ENGLISH
    parts: dict[str, list[np.ndarray]] = {}
    for number, task in enumerate(tasks):
        if not task.lines:
            continue
        polygons = polygons_of(task, size)
        pictures = _read_pictures(picture_paths(folder, task, samples), size)
        read = reader.read_crops([upstream_crop(picture, polygon) for picture in pictures for polygon in polygons])
        wanted = [text for text, _ in task.lines] * samples
        plain = [(reading.normalise(a), reading.normalise(b)) for a, b in zip(wanted, read, strict=True)]
        found = {
            "exact": np.array([a == b for a, b in zip(wanted, read, strict=True)]),
            "ned": np.array([upstream_ned(a, b, known) for a, b in zip(wanted, read, strict=True)]),
            "correct": np.array([a == b for a, b in plain]),
            "lenient_ned": np.array([reading.ned(a, b) for a, b in plain]),
            "group": np.full(len(wanted), number),
        }
        for key, values in found.items():
            parts.setdefault(key, []).append(values)
    return {key: np.concatenate(values) for key, values in parts.items()}


def summarise(scores: Mapping[str, Mapping[str, np.ndarray]], reference: str | None) -> dict[str, Any]:
    """Intervals of each method, over prompts, and its retention against the reference; ready for JSON."""
    rows = {}
    for name, found in scores.items():
        rows[name] = {
            key: asdict(intervals.bootstrap_mean(found[key], found["group"]))
            for key in ("exact", "ned", "correct", "lenient_ned")
        }
        if reference is not None and scores[reference]["exact"].any():
            rows[name]["retention"] = asdict(
                intervals.paired_bootstrap(found["exact"], scores[reference]["exact"], found["group"])
            )
    return rows


def format_table(report: Mapping[str, Any]) -> str:
    """The report as a table for a terminal."""

    def interval(found: Mapping[str, float] | None) -> str:
        return "-" if found is None else "{value:.4f} [{low:.3f}, {high:.3f}]".format(**found)

    head = ["method", "sentence accuracy", "NED", "retention", "letters and digits alone"]
    rows = [
        [name, *(interval(row.get(key)) for key in ("exact", "ned", "retention", "correct"))]
        for name, row in report["methods"].items()
    ]
    if published := report["published"]:
        rows.append([published["name"], f"{published['accuracy']:.4f}", f"{published['ned']:.4f}", "-", "-"])
    counts = f"{report['prompts']} prompts, {report['lines']} lines, {report['samples']} pictures a prompt"
    table = text_table(head, rows, align="l")
    return "\n".join([f"{counts}; 95 % intervals over prompts.", table, *report["notes"]])
