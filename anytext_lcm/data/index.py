"""The index of a data set: its records cleaned once and kept as columns, memory-mapped.

An AnyWord JSON of 3 million records takes minutes and many GB to load as Python objects, in every worker again. The
index is a folder beside it, `NAME.json.index/`, built once. Opening it reads a few kB, and all processes of a machine
share its pages. In a folder for indices of many JSONs its name also has a digest of the JSON's path. It is rebuilt when
the JSON's content differs. The content is hashed only if the file's size, times or number on the disk have changed.

    about.json      source, its size, times and digest, counts, data_root
    records.arrow   one row per record that is kept
    problems.arrow  one row per problem: number, kind, detail

`datasets` would write such files too, but it brings pandas, fsspec and multiprocess, and when to rebuild would stay a
rule of our own.
"""

from __future__ import annotations

import glob
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock

from anytext_lcm.data.json_stream import read_records
from anytext_lcm.data.records import Annotation, Problem, Record, clean
from anytext_lcm.files import atomic_folder, check_writable, printable, read_json

VERSION = 2
"""Goes up when the columns or the rules of `records` change; an index of another version is rebuilt."""

ROWS = 16_384
"""Records of one Arrow batch."""

_ANNOTATION = pa.struct(
    [
        ("polygon", pa.list_(pa.int16())),
        ("text", pa.string()),
        ("language", pa.string()),
        ("valid", pa.bool_()),
        ("color", pa.list_(pa.int16())),  # null = not specified
    ]
)
RECORDS = pa.schema(
    [
        ("number", pa.uint32()),
        ("img_name", pa.string()),
        ("caption", pa.string()),
        ("wm_score", pa.float64()),  # null = not known
        ("annotations", pa.list_(_ANNOTATION)),
    ]
)
PROBLEMS = pa.schema([("number", pa.uint32()), ("kind", pa.string()), ("detail", pa.string())])


class BadRecord(ValueError):
    """The first problem of a data set that is read strictly: file, record, field and what is wrong."""


@dataclass(frozen=True)
class About:
    """Content of about.json: the JSON's name, what the disk says of it, its digest, records, problems by kind."""

    version: int
    source: str
    stamp: list[int]  # see `_stamp`
    digest: str  # of the JSON's content
    data_root: str | None
    records: int
    kept: int
    problems: dict[str, int]


class RecordIndex:
    """The records of one JSON, read from its index when they are needed.

    `index[i]` is the i-th record that was kept; IndexError beyond. It is pickled by its path, so that workers map the
    same file. expected: what about.json must say. Raises ValueError where it says something else.
    """

    def __init__(self, folder: str | Path, expected: About | None = None) -> None:
        self.folder = Path(folder)
        self.about = _read_about(self.folder)
        if expected not in (None, self.about):
            raise ValueError(f"The index {self.folder} was rebuilt while it was in use; start again.")
        self._reader = pa.ipc.open_file(pa.memory_map(str(self.folder / "records.arrow")))

    def __len__(self) -> int:
        return self.about.kept

    def __getitem__(self, place: int) -> Record:
        if not 0 <= place < len(self):
            raise IndexError(f"Record {place} is outside the {len(self)} records of {self.folder}.")
        batch = self.batch(place // ROWS)
        [row] = batch.slice(place % ROWS, 1).to_pylist()
        annotations = tuple(
            Annotation(
                tuple(entry["polygon"]),
                entry["text"],
                entry["language"],
                entry["valid"],
                None if entry["color"] is None else tuple(entry["color"]),
            )
            for entry in row["annotations"]
        )
        return Record(row["number"], row["img_name"], row["caption"], row["wm_score"], annotations)

    def is_whole(self) -> bool:
        """Whether the columns are RECORDS, and as many rows are there as about.json says."""
        reader = self._reader
        rows = sum(reader.get_batch(number).num_rows for number in range(reader.num_record_batches))
        counts = isinstance(self.about.problems, dict) and isinstance(self.about.records, int)
        return reader.schema == RECORDS and type(self.about.kept) is int and rows == self.about.kept and counts

    def batch(self, number: int) -> pa.RecordBatch:
        """Map the batch of records `number` as it lies on disk: ROWS records, fewer at the end."""
        return self._reader.get_batch(number)

    def problems(self, limit: int | None = None) -> list[Problem]:
        """Read what was wrong with the file's records, in their order; at most `limit`."""
        found: list[Problem] = []
        with pa.memory_map(str(self.folder / "problems.arrow")) as file:
            reader = pa.ipc.open_file(file)
            for number in range(reader.num_record_batches):
                rows = reader.get_batch(number)
                if limit is not None:
                    rows = rows.slice(0, limit - len(found))
                found += [Problem(**row) for row in rows.to_pylist()]
        return found

    def column(self, name: str) -> pa.ChunkedArray:
        """Map a column of RECORDS as it lies on disk, for counts and filters."""
        place = RECORDS.get_field_index(name)
        batches = [self.batch(i) for i in range(self._reader.num_record_batches)]
        return pa.chunked_array([batch.column(place) for batch in batches], type=RECORDS.field(place).type)

    def __reduce__(self):
        return type(self), (self.folder, self.about)


def index_folder(source: str | Path, index_dir: str | Path | None = None) -> Path:
    """Name the folder of a JSON's index: beside the JSON, or in index_dir with a digest of the JSON's path."""
    source = Path(source)
    if index_dir is None:
        return source.parent / f"{source.name}.index"
    place = hashlib.sha256(str(source.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return Path(index_dir) / f"{source.name}-{place}.index"


def open_index(
    source: str | Path,
    index_dir: str | Path | None = None,
    strict: bool = False,
    progress: Callable[[int], None] | None = None,
) -> RecordIndex:
    """Open the index of a JSON; build it if it is missing or out of date. One process builds, others wait for it.

    progress is called with the number of records read, every ROWS records.
    Raises BadRecord for the first problem if strict, FileNotFoundError for a missing JSON, ValueError if it is no JSON
    or the folder cannot be written.
    """
    source = Path(source)
    if not source.is_file():
        raise FileNotFoundError(f"There is no file {source}: name the JSON of a data set.")
    folder = index_folder(source, index_dir)
    if not _is_current(folder, source):
        try:
            check_writable(folder)
        except ValueError as error:
            raise ValueError(
                f"The index of {source} cannot be written to {folder.parent}: name a folder with --index_dir."
            ) from error
        with FileLock(f"{folder}.lock"):
            if not _is_current(folder, source):  # another process may have built it meanwhile
                _sweep(folder, source)
                build_index(source, folder, strict, progress)
    index = RecordIndex(folder)
    if strict and (first := index.problems(1)):
        raise BadRecord(problem_sentence(source, first[0]))
    return index


def current_index(source: str | Path, index_dir: str | Path | None = None) -> RecordIndex | None:
    """Open the index of a JSON if it is there and up to date; builds nothing."""
    folder = index_folder(source, index_dir)
    return RecordIndex(folder) if _is_current(folder, Path(source)) else None


def build_index(
    source: str | Path,
    folder: str | Path,
    strict: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Read a JSON and write its index, complete or not at all. Raises as `open_index` does."""
    source = Path(source)
    stamp, digest = _stamp(source), _digest(source)
    head, raws = read_records(source)
    with atomic_folder(folder, mark="about.json") as temporary:
        with (
            _Table(temporary / "records.arrow", RECORDS) as rows,
            _Table(temporary / "problems.arrow", PROBLEMS) as found,
        ):
            counts: Counter[str] = Counter()
            read = 0
            for read, raw in enumerate(raws, start=1):
                record, problems = clean(raw, read - 1)
                if problems and strict:
                    raise BadRecord(problem_sentence(source, problems[0]))
                for problem in problems:
                    counts[problem.kind] += 1
                    found.add(problem.number, problem.kind, problem.detail)
                if record is not None:
                    lines = [(a.polygon, a.text, a.language, a.valid, a.color) for a in record.annotations]
                    rows.add(record.number, record.img_name, record.caption, record.wm_score, lines)
                if progress is not None and read % ROWS == 0:
                    progress(read)
        root = head.get("data_root")
        about = About(
            version=VERSION,
            source=source.name,
            stamp=stamp,
            digest=digest,
            data_root=root if isinstance(root, str) else None,
            records=read,
            kept=rows.added,
            problems=dict(counts),
        )
        (temporary / "about.json").write_text(json.dumps(vars(about), indent=1), encoding="utf-8")


def problem_sentence(source: str | Path, problem: Problem) -> str:
    """Write one line that names file, record, field and what is wrong."""
    return printable(f"{source}, record {problem.number}, {problem.kind}: {problem.detail}")


class _Table:
    """Writes rows to an Arrow file in batches of ROWS."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self.file = pa.OSFile(str(path), "wb")
        self.writer = pa.ipc.new_file(self.file, schema)
        self.columns: list[list[Any]] = [[] for _ in schema]
        self.added = 0

    def add(self, *values: Any) -> None:
        for column, value in zip(self.columns, values, strict=True):
            column.append(value)
        self.added += 1
        if len(self.columns[0]) == ROWS:
            self.flush()

    def flush(self) -> None:
        if self.columns[0]:
            arrays = [pa.array(c, type=f.type) for c, f in zip(self.columns, self.schema, strict=True)]
            self.writer.write_batch(pa.record_batch(arrays, schema=self.schema))
            self.columns = [[] for _ in self.schema]

    def __enter__(self) -> _Table:
        return self

    def __exit__(self, kind: type | None, *_: Iterable) -> None:
        if kind is None:
            self.flush()
        self.writer.close()
        self.file.close()


def _read_about(folder: Path) -> About:
    return About(**read_json(folder / "about.json"))


def _stamp(source: Path) -> list[int]:
    """Size, times of change of content and of status in ns, number on the disk: no write leaves all of them alike."""
    stat = source.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _digest(source: Path) -> str:
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_current(folder: Path, source: Path) -> bool:
    """Whether the folder holds a whole index of what the JSON holds now."""
    try:
        index = RecordIndex(folder)
        about, whole = index.about, index.is_whole()
    except (OSError, ValueError, TypeError):  # missing, damaged, or of another version
        return False
    if about.version != VERSION or not whole or not (folder / "problems.arrow").is_file():
        return False
    return about.stamp == _stamp(source) or about.digest == _digest(source)


def _sweep(folder: Path, source: Path) -> None:
    """Delete what killed builds of this index left, and the JSON's index as version 1 named it."""
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    former = folder.parent / f"{source.stem}.index"
    try:
        about = read_json(former / "about.json")
    except (OSError, ValueError):
        return
    if isinstance(about, dict) and (about.get("version"), about.get("source")) == (1, source.name):
        shutil.rmtree(former, ignore_errors=True)
        Path(f"{former}.lock").unlink(missing_ok=True)
