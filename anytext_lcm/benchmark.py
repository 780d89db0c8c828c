"""Command: AnyText-benchmark, teacher and student in one go. `python -m anytext_lcm.benchmark --help`.

Reads the benchmark's own files (`laion_word/test1k.json`, `wukong_word/test1k.json`), draws every prompt as AnyText2's
evaluation does (eval/anytext2_singleGPU.py: 4 pictures, 20 guided DDIM steps, the first 20 lines of 20 characters, the
same words added to the caption, a font hint in the glyphs' font) and names the pictures as it does, NAME_0.jpg ...
NAME_3.jpg, so that its scripts for FID and CLIPScore can be run on the folders. What differs is said in the report:
the reader is PP-OCRv6 and not ModelScope's, and each picture has its own noise, from seed 100 on, where upstream
draws four from one generator. A run that was cut off goes on where it stopped.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rapidfuzz.distance import Levenshtein
from tqdm import tqdm

from anytext_lcm import __version__, judge
from anytext_lcm.data.batch import MAX_CHARACTERS, Line, build_conditioning, collate
from anytext_lcm.data.fonts import PLAIN_FONT, DrawingError, covers, font_path
from anytext_lcm.data.json_stream import read_records
from anytext_lcm.data.records import clean
from anytext_lcm.exchange import Part, load_parts
from anytext_lcm.lora import CONFIG_FILE, WEIGHTS_FILE
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.outputs import check_writable, whole_file
from anytext_lcm.pipeline import (
    EMBEDDED_CONFIG,
    Method,
    checkpoint_for,
    defaults_for,
    describe_hardware,
    draw,
    load_chosen,
    parse_method,
    prepare,
    reference_of,
    resolve_adapter,
    use_available_cores,
)

SIDE = 512  # pixels of the benchmark's pictures, in which its polygons are given
SAMPLES, SEED, MAX_LINES = 4, 100, 20  # upstream's
ADDED_WORDS = "best quality, extremely detailed"  # upstream's, behind every caption
JPEG_QUALITY = 95  # of cv2.imwrite, which upstream saves with
METHODS = ("teacher-20", "student-4", "student-8")
SETTINGS, REPORT = "settings.json", "report.json"
END = 2**20  # bytes at the beginning and the end of a checkpoint that tell it from another
BLANK = Line(" ", np.array([[0, 0], [50, 0], [50, 50], [0, 50]]))  # upstream's line of a picture without text

# AnyText2's README, read by ModelScope's recogniser: sentence accuracy and NED of 20 steps.
PUBLISHED = {"laion": ("AnyText2, English", 0.8175, 0.9193), "wukong": ("AnyText2, Chinese", 0.7250, 0.8529)}
NOTES = (
    "Lines are read by PP-OCRv6 from rapidocr; the published numbers are by ModelScope's recogniser, so first compare "
    "methods of this report with each other.",
    "FID and CLIPScore are left out: their networks are not part of this package. The pictures are named as "
    "upstream's own scripts expect them.",
)

# -- reading --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A prompt of the benchmark: its name in file names, the caption, and (text, polygon) of its lines at 512 px, which
    may be none.
    """

    name: str
    caption: str
    lines: tuple[tuple[str, tuple[tuple[int, int], ...]], ...]


def read_tasks(path: str | Path, limit: int | None = None) -> list[Task]:
    """The prompts of a test1k.json, or the first of them. The pictures it names are not needed.

    A name ends at its first dot, as upstream's file names do. Lines marked invalid are left out; of the others the
    first 20 count, and the first 20 characters of each. Raises FileNotFoundError, or ValueError for a file of another
    layout or without a line of text, and for two prompts of one name.
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
        name = Path(record.img_name).name.split(".")[0]
        caption = record.caption.replace("*", " ")  # a star would take a line's embedding
        tasks.append(Task(name, caption, tuple(lines[:MAX_LINES])))
    if not any(task.lines for task in tasks):
        raise ValueError(f"{path} holds no prompt with a line of text.")
    names = [task.name for task in tasks]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path} has several prompts named {doubled[0]!r}; their pictures would replace each other.")
    return tasks


def check_font(tasks: Sequence[Task], font: str | Path) -> int:
    """How many lines the font cannot write; they are not asked for, and count as wrong. Raises ValueError when that is
    more than every tenth, FileNotFoundError when there is no such font.
    """
    font_path(font)
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
    """The batch (see anytext_lcm/data/batch.py) that draws a prompt `samples` times.

    A line that the font cannot write or whose polygon has no room for a letter at this size is not asked for; it still
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
    lines = lines or [BLANK]
    caption = ", ".join(part for part in (task.caption, words) if part)
    item = build_conditioning(lines, size, len(lines), font) | {"img_caption": caption}
    return collate([item] * samples)


# -- drawing --------------------------------------------------------------------------------------------


def picture_paths(folder: Path, task: Task, samples: int) -> list[Path]:
    return [folder / f"{task.name}_{k}.jpg" for k in range(samples)]


def content_of(path: str | Path, ends: bool = False) -> str:
    """What tells a file from others wherever it lies: its length and 16 digits of its SHA-256.

    ends: of its first and last MB, which takes no minute for a checkpoint of several GB. Raises FileNotFoundError.
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
    """What of the settings of `run` a method's pictures depend on, and the method: ready for JSON.

    The adapter is the student's alone, and only guidance looks at the negative prompt.
    """
    found = {**settings, "method": asdict(method)}
    if not method.adapter:
        for key in ("names", "contents"):
            found[key] = {what: value for what, value in settings[key].items() if what != "adapter"}
    if not method.guided:
        found.pop("negative_prompt")
    return found


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises ValueError when there are pictures of other settings (see `settings_of`) in a folder. Files are compared
    by what they hold, since the benchmark's own have the same names: `names` are there for people.
    """
    note = folder / SETTINGS
    if not note.is_file():
        return

    def flat(found: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in found.items() if key not in ("names", "contents")} | found["contents"]

    try:
        earlier = flat(json.loads(note.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{note} does not say what its pictures were drawn from; name another --output.") from None
    wanted = flat(json.loads(json.dumps(settings)))
    if other := sorted(key for key in earlier.keys() | wanted.keys() if earlier.get(key) != wanted.get(key)):
        raise ValueError(f"{folder} holds pictures of other settings ({', '.join(other)}); name another --output.")


def draw_tasks(
    model: AnyText2, tasks: Sequence[Task], method: Method, folder: Path, settings: Mapping[str, Any], show: bool = True
) -> dict[str, float]:
    """Draws what is not there yet, each prompt's pictures together. Returns the seconds this run took, by phase.

    settings: of `run`. Raises ValueError when there are pictures of others.
    """
    own, note = settings_of(method, settings), folder / SETTINGS
    check_settings(folder, own)
    if not note.is_file():
        with whole_file(note) as temporary:
            temporary.write_text(json.dumps(own, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    size, samples = tuple(settings["size"]), settings["samples"]
    seconds = {"denoise": 0.0, "decode": 0.0, "pictures": 0.0}
    for task in tqdm(tasks, desc=method.name, leave=False, disable=None if show else True):
        paths = picture_paths(folder, task, samples)
        if paths[-1].is_file():  # written last, so the others are there too
            continue
        batch = make_batch(task, size, samples, settings["names"]["font"], settings["font_hint"], settings["words"])
        seeds = range(settings["seed"], settings["seed"] + samples)
        drawing = draw(model, prepare(model, batch, list(seeds), settings["negative_prompt"]), method)
        for path, image in zip(paths, drawing.images, strict=True):
            with whole_file(path) as temporary:
                Image.fromarray(image).save(temporary, quality=JPEG_QUALITY)
        for phase in ("denoise", "decode"):
            seconds[phase] += drawing.clock.wall[phase]
        seconds["pictures"] += samples
    return seconds


# -- judging --------------------------------------------------------------------------------------------


def _read_pictures(paths: Sequence[Path], size: tuple[int, int]) -> Iterator[np.ndarray]:
    for path in paths:
        with Image.open(path) as picture:
            image = np.asarray(picture.convert("RGB"))
        if image.shape[:2] != size:
            raise ValueError(f"{path} is {image.shape[1]} x {image.shape[0]} pixels, not {size[1]} x {size[0]}.")
        yield image


def upstream_ned(wanted: str, read: str) -> float:
    """1 - edit distance / (longer length + 1e-5), letter by letter as written: eval/eval_dgocr.py."""
    return 1 - Levenshtein.distance(wanted, read) / (max(len(wanted), len(read)) + 1e-5)


def score_tasks(
    reader: judge.LineReader, tasks: Sequence[Task], folder: Path, samples: int, size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Reads all pictures of a folder that shall have text, prompt by prompt. Returns an entry for each prompt, sample
    and line, in this order.

    exact and ned compare as upstream does: case, spaces and punctuation count. correct and lenient_ned look at letters
    and digits alone. group: the prompt.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for number, task in enumerate(tasks):
        if not task.lines:
            continue
        images = list(_read_pictures(picture_paths(folder, task, samples), size))
        texts = [text for text, _ in task.lines]
        scores = judge.score_lines(
            reader, images, [polygons_of(task, size)] * samples, [texts] * samples, [number] * samples
        )
        pairs = zip(scores.wanted, scores.read, strict=True)
        found = {
            "exact": np.array([wanted == read for wanted, read in zip(scores.wanted, scores.read, strict=True)]),
            "ned": np.array([upstream_ned(*pair) for pair in pairs]),
            "correct": scores.correct,
            "lenient_ned": scores.ned,
            "group": scores.group,
        }
        for key, values in found.items():
            parts.setdefault(key, []).append(values)
    return {key: np.concatenate(values) for key, values in parts.items()}


def summarise(scores: Mapping[str, Mapping[str, np.ndarray]], reference: str | None) -> dict[str, Any]:
    """Intervals of each method, over prompts, and its retention against the reference; ready for JSON."""
    rows = {}
    for name, found in scores.items():
        rows[name] = {
            key: asdict(judge.bootstrap_mean(found[key], found["group"]))
            for key in ("exact", "ned", "correct", "lenient_ned")
        }
        if reference is not None and scores[reference]["exact"].any():
            rows[name]["retention"] = asdict(
                judge.paired_bootstrap(found["exact"], scores[reference]["exact"], found["group"])
            )
    return rows


def format_table(report: Mapping[str, Any]) -> str:
    """The report as a table for a terminal."""

    def interval(found: Mapping[str, float] | None) -> str:
        return "-" if found is None else "{value:.4f} [{low:.3f}, {high:.3f}]".format(**found)

    rows = [["method", "sentence accuracy", "NED", "retention", "letters and digits alone"]]
    for name, row in report["methods"].items():
        rows.append([name, *(interval(row.get(key)) for key in ("exact", "ned", "retention", "correct"))])
    if published := report["published"]:
        rows.append([published["name"], f"{published['accuracy']:.4f}", f"{published['ned']:.4f}", "-", "-"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    counts = f"{report['prompts']} prompts, {report['lines']} lines, {report['samples']} pictures a prompt"
    head = f"{counts}; 95 % intervals over prompts."
    return "\n".join([head, lines[0], "-" * len(lines[0]), *lines[1:], *report["notes"]])


# -- command --------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anytext_lcm.benchmark",
        description="Draws AnyText-benchmark by teacher and student and has the lines read.",
    )
    add = parser.add_argument
    add("--data", required=True, help="test1k.json of laion_word or wukong_word")
    add(
        "--output",
        default="outputs/benchmark",
        help="gets a folder of pictures for each method, and report.json; goes on where it stopped "
        "(default: %(default)s)",
    )
    add(
        "--methods",
        nargs="+",
        default=list(METHODS),
        metavar="METHOD",
        help="teacher-N, teacher-N-eta1, student-N, student-N-deterministic, "
        f"student-N-gamma0.3, student-N-w0.5 or untrained-N in N steps (default: {' '.join(METHODS)})",
    )
    add("--limit", type=int, help="prompts, the first ones; default: all")
    add("--samples", type=int, default=SAMPLES, help="pictures a prompt (default: %(default)s, upstream's)")
    add("--seed", type=int, default=SEED, help="of the first picture of each prompt (default: %(default)s, upstream's)")
    add(
        "--font",
        default=PLAIN_FONT,
        help="of glyphs and font hint, file or matplotlib font; upstream's is Arial Unicode, and Chinese needs one "
        "that has it (default: %(default)s)",
    )
    add("--no_font_hint", action="store_true", help="leave the font open")
    add("--words", default=ADDED_WORDS, help="behind every caption (default: %(default)s)")
    add("--guidance_scale", type=float, help="the teacher's; default: what suits the network, 7.5 at full size")
    add("--negative_prompt", help="the teacher's; default: what suits the network")
    add("--adapter", default="shipped", metavar="DIR|shipped|none", help="default: %(default)s")
    add("--config", default=str(EMBEDDED_CONFIG), help="yaml of the network; default: the embedded one")
    add("--ckpt", help="weights of the teacher; default: the embedded ones")
    add("--device", help="default: the GPU if there is one")
    return parser


def _methods(args: argparse.Namespace, adapter: Path | None, guidance: float) -> list[Method]:
    methods = [parse_method(name, guidance) for name in dict.fromkeys(args.methods)]
    if adapter is None and any(method.adapter for method in methods):
        raise ValueError("There is no student without an adapter: name one, or leave its methods out.")
    return methods


def _contents(args: argparse.Namespace, adapter: Path | None) -> dict[str, str]:
    """What the named files hold. Raises FileNotFoundError."""
    found = {
        "data": content_of(args.data),
        "config": content_of(args.config),
        "ckpt": content_of(args.ckpt or checkpoint_for(args.config, "--ckpt"), ends=True),
        "font": content_of(font_path(args.font)),
    }
    if adapter is not None:  # alpha stands in the configuration
        found["adapter"] = "; ".join(content_of(adapter / name) for name in (WEIGHTS_FILE, CONFIG_FILE))
    return found


def run(args: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Checks what can be checked before the weights are loaded, then draws, reads and writes."""
    for name in ("samples", "limit"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name} must be 1 or more, not {value}.")
    if args.seed < 0:
        raise ValueError(f"A seed must be an integer from 0 on, not {args.seed}.")
    defaults = defaults_for(args.config)
    guidance = defaults.guidance_scale if args.guidance_scale is None else args.guidance_scale
    negative = defaults.negative_prompt if args.negative_prompt is None else args.negative_prompt
    adapter = resolve_adapter(args.adapter)
    methods = _methods(args, adapter, guidance)
    tasks = read_tasks(args.data, args.limit)
    unwritten = check_font(tasks, args.font)
    output = Path(args.output)
    check_writable(output / REPORT)
    names = {
        "data": Path(args.data).name,
        "config": Path(args.config).name,
        "ckpt": Path(args.ckpt).name if args.ckpt else "embedded",
        "adapter": args.adapter,
        "font": str(args.font),
    }
    settings = {
        "names": names,
        "contents": _contents(args, adapter),
        "size": list(defaults.size),
        "samples": args.samples,
        "seed": args.seed,
        "font_hint": not args.no_font_hint,
        "words": args.words,
        "negative_prompt": negative,
    }
    for method in methods:
        check_settings(output / method.name, settings_of(method, settings))

    use_available_cores()
    model = load_chosen(args.config, args.ckpt, args.device)
    if adapter is not None:
        load_parts(model, [Part(adapter)])
    reader, scores, seconds = judge.LineReader(), {}, {}
    read = partial(score_tasks, reader, tasks, samples=args.samples, size=defaults.size)
    for method in methods:
        folder = output / method.name
        seconds[method.name] = draw_tasks(model, tasks, method, folder, settings)
        scores[method.name] = read(folder=folder)
    reference = reference_of(methods)
    rows = summarise(scores, reference)
    for name, row in rows.items():
        row["seconds_this_run"] = seconds[name]
    place = str(Path(args.data).resolve())
    published = next((found for key, found in PUBLISHED.items() if key in place), None)
    report = {
        "anytext_lcm": __version__,
        "settings": settings | {"guidance_scale": guidance},
        "prompts": len(tasks),
        "lines": sum(len(task.lines) for task in tasks),
        "lines_the_font_lacks": unwritten,
        "samples": args.samples,
        "reference": reference,
        "published": None if published is None else dict(zip(("name", "accuracy", "ned"), published, strict=True)),
        "hardware": describe_hardware(model.device),
        "notes": list(NOTES),
        "methods": rows,
    }
    with whole_file(output / REPORT) as temporary:
        temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return output, report


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr for what is asked and cannot be."""
    args = build_parser().parse_args(arguments)
    try:
        output, report = run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(format_table(report))
    print(output / REPORT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
