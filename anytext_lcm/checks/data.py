"""The data: JSONs, their indices, pictures, and fonts against the characters of the lines. Nothing is written."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from anytext_lcm.checks import published
from anytext_lcm.checks.found import Findings
from anytext_lcm.training.shards import MANIFEST, read_layout

if TYPE_CHECKING:
    from anytext_lcm.data.records import Record
    from anytext_lcm.training.settings import TrainSettings

END = object()  # no record

TRIED_RECORDS = 1000
"""So many records of each JSON are read."""

TRIED_PICTURES = 20
"""So many pictures of each JSON are looked for."""


def look_at_data(found: Findings, settings: "TrainSettings", needed: bool = True) -> int | None:
    """Look at the data set that the settings name. Returns its records, estimated where no index is there; None if
    they cannot be counted. needed: whether it is a fault when none is named.
    """
    if settings.paths is not None:
        from anytext_lcm.training.path_store import PathDataset

        with found.looking_at("data"):
            paths = PathDataset(settings)
            captions = f", {len(paths.held_out)} captions are held out" if paths.held_out else ""
            found.ok("data", f"{settings.paths}: {len(paths)} paths of the teacher{captions}")
            return len(paths)
        return None
    if settings.use_mock_dataset and settings.data_list:
        found.missing("data", "Both data sets were named; pass --use_mock_dataset or --data_list.")
        return None
    if not settings.use_mock_dataset and not settings.data_list:
        words = f"No data set was named; pass --use_mock_dataset or --data_list. {published.DATA}"
        (found.missing if needed else found.note)("data", words)
        return None
    if settings.use_mock_dataset:
        found.ok("data", f"{settings.dataset_size} mock pictures, drawn when they are needed")
        return settings.dataset_size
    heads, counts = [], []
    for source in map(Path, settings.data_list):
        with found.looking_at("data", "" if source.is_file() else published.DATA):
            heads.append(_read_head(source))
            counts.append(_count(found, heads[-1], settings.index_dir))
            _look_at_pictures(found, heads[-1], settings.data_root)
    for source in map(Path, settings.validation_list or ()):
        with found.looking_at("held out"):
            found.ok("held out", f"{source}: {len(_read_head(source).records):,} of its records were read")
    if len(counts) < len(settings.data_list):
        return None
    with found.looking_at("fonts"):
        _look_at_fonts(found, heads, settings.fonts)
    return sum(counts)


@dataclass(frozen=True)
class Head:
    """What the first TRIED_RECORDS records of a JSON say.

    whole: these are all. root: the folder of the pictures that it names, as far as it was read. texts: of valid lines.
    share: records that can be used for each byte. problem: the first that was met, as a sentence.
    """

    source: Path
    whole: bool
    root: object
    records: "tuple[Record, ...]"
    texts: tuple[str, ...]
    share: float
    problem: str


def _read_head(source: Path) -> Head:
    """Raises FileNotFoundError or ValueError as `read_records`, and ValueError when no record can be used."""
    from anytext_lcm.data.index import problem_sentence
    from anytext_lcm.data.json_stream import read_records
    from anytext_lcm.data.records import clean

    head, raws = read_records(source)
    records, problems, read, spent = [], [], 0, 0
    for read, raw in enumerate(islice(raws, TRIED_RECORDS), 1):
        spent += _bytes(raw)
        record, found = clean(raw, read - 1)
        problems += found[:1]
        if record is not None:
            records.append(record)
    whole = next(raws, END) is END  # read to its end, the head is complete
    problem = problem_sentence(source, problems[0]) if problems else ""
    if whole and not records:
        raise ValueError(f"No record of {source} can be used" + (f"; the first problem: {problem}" if problem else "."))
    texts = tuple(line.text for record in records for line in record.annotations if line.valid)
    return Head(source, whole, head.get("data_root"), tuple(records), texts, len(records) / max(1, spent), problem)


def _bytes(raw: object) -> int:
    """How many bytes a record takes in its JSON, about."""
    try:
        return len(json.dumps(raw, ensure_ascii=False).encode("utf-8", "replace")) + 2
    except (ValueError, RecursionError):
        return 0


def _count(found: Findings, head: Head, index_dir: str | None) -> int:
    """Records of a JSON: from its index, from its head if that is all, or by its size."""
    from anytext_lcm.data.index import current_index

    index = current_index(head.source, index_dir)
    if index is not None:
        found.ok("data", f"{head.source}: {len(index):,} records, indexed")
        return len(index)
    count = len(head.records) if head.whole else int(head.source.stat().st_size * head.share)
    about = "" if head.whole else "about "
    found.note("data", f"{head.source}: {about}{count:,} records; its index is built at the first start")
    return count


def _look_at_pictures(found: Findings, head: Head, data_root: str | None) -> None:
    """Look for the pictures of records spread over those that were read."""
    if data_root is None and not isinstance(head.root, str):
        if head.whole:
            found.missing("pictures", f"{head.source} names no data_root: give one with --data_root.")
        else:
            found.note("pictures", f"{head.source} names its data_root at its end, if at all: not looked for")
        return
    root = Path(data_root) if data_root is not None else head.source.parent / head.root
    tried = head.records[:: max(1, len(head.records) // TRIED_PICTURES)][:TRIED_PICTURES]
    gone = [path for path in (root / record.img_name for record in tried) if not os.path.isfile(path)]
    if gone and len(gone) == len(tried):
        words = f"Picture {gone[0]} is missing, as are all {len(gone)} that were looked for: see --data_root."
        found.missing("pictures", words)
    elif gone:
        found.note("pictures", f"{len(gone)} of {len(tried)} pictures of {head.source} do not exist, as {gone[0]}")
    else:
        found.ok("pictures", f"{root}: {len(tried)} of {len(tried)} that were looked for are there")


def _look_at_fonts(found: Findings, heads: Sequence[Head], fonts: Sequence[str] | None) -> None:
    """Compare the fonts' characters with those of the lines that were read.

    Raises ValueError, as `require_lines`, when no line is left to learn.
    """
    from anytext_lcm.data.fonts import (
        PLAIN_FONT,
        DrawingError,
        characters,
        check_fonts,
        covering_fonts,
        covers,
        font_path,
    )

    chosen = tuple(fonts or (PLAIN_FONT,))
    check_fonts(chosen)
    names, drawable = ", ".join(font_path(font).name for font in chosen), False
    for head in heads:
        lacking = [text for text in head.texts if not any(covers(font, text) for font in chosen)]
        drawable |= len(lacking) < len(head.texts)
        if head.texts and not lacking:
            found.ok("fonts", f"{names}: hold all of {len(head.texts)} lines of {head.source}")
        elif lacking:
            known = frozenset().union(*(characters(font) for font in chosen))
            often = Counter(sign for text in lacking for sign in text if ord(sign) not in known).most_common(5)
            found.note(
                "fonts",
                f"{names}: cannot write {len(lacking)} of {len(head.texts)} lines of {head.source} (such as "
                f"{' '.join(sign for sign, _ in often)}), which drop out of the loss. {published.FONT}",
            )
    if drawable or not all(head.whole for head in heads):
        return
    sources = ", ".join(str(head.source) for head in heads)
    for text in (text for head in heads for text in head.texts):
        try:
            covering_fonts(text, chosen)
        except DrawingError as error:
            raise ValueError(f"No line of text of {sources} can be drawn: {error}") from error
    problem = next((head.problem for head in heads if head.problem), "")
    why = f"the first problem: {problem}" if problem else "no record has an annotation with a text that is valid"
    raise ValueError(f"No line of text of {sources} can be used; {why}.")


def look_at_latents(found: Findings, folder: str | None, records: int | None, held_out: float = 0.0) -> None:
    """Look for stored latents and compare their number with the records'. held_out: share of these."""
    if folder is None:
        return
    with found.looking_at("latents"):
        about = Path(folder) / MANIFEST
        if not about.is_file():
            raise FileNotFoundError(
                f"{folder} holds no latents ({about.name} is missing); compute them with python -m "
                "anytext_lcm.cache_latents, or leave --latents out."
            )
        stored = read_layout(folder).rows
        words = f"{folder}: latents of {stored} pictures"
        if isinstance(records, int) and held_out:  # the names of all pictures decide how many these are
            found.ok("latents", f"{words}, of {records} records less the {held_out:g} of them that are held out")
        elif isinstance(records, int) and stored != records:
            found.note("latents", f"{words}, the data set has {records} records")
        else:
            found.ok("latents", words)
