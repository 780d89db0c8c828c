"""The data: JSONs, their indices, pictures, and fonts against the characters of the lines. Nothing is written."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from anytext_lcm.checks import published
from anytext_lcm.checks.found import Findings

if TYPE_CHECKING:
    from anytext_lcm.data.records import Record
    from anytext_lcm.training.settings import TrainSettings

TRIED_RECORDS = 1000
"""So many records of each JSON are read."""

LATENTS = {"manifest.json": "rows", "latents.json": "pictures"}
"""Files that describe stored latents, and their field for the number of pictures."""

TRIED_PICTURES = 20
"""So many pictures of each JSON are looked for."""


def look_at_data(found: Findings, settings: "TrainSettings", needed: bool = True) -> int | None:
    """Look at the data set that the settings name. Returns its records, estimated where no index is there; None if
    they cannot be counted. needed: whether it is a fault when none is named.
    """
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
    counts = [_look_at_json(found, Path(source), settings) for source in settings.data_list]
    return None if None in counts else sum(counts)


def _look_at_json(found: Findings, source: Path, settings: "TrainSettings") -> int | None:
    """Look at one JSON; returns its records as `look_at_data` does."""
    from anytext_lcm.data.index import current_index
    from anytext_lcm.data.json_stream import read_records

    count = None
    with found.looking_at("data", "" if source.is_file() else published.DATA):
        head, raws = read_records(source)
        texts, records, spent = _first_records(raws)
        index = current_index(source, settings.index_dir)
        if index is not None:
            count, root = len(index), index.about.data_root
            found.ok("data", f"{source}: {count:,} records, indexed")
        else:
            share = len(records) / max(1, spent)
            count, root = int(source.stat().st_size * share), head.get("data_root")
            found.note("data", f"{source}: about {count:,} records; its index is built at the first start")
        _look_at_pictures(found, source, root, records, settings.data_root)
        _look_at_fonts(found, source, texts, settings.fonts)
    return count


def _first_records(raws: Iterator[object]) -> "tuple[list[str], list[Record], int]":
    """Texts of valid lines, records that can be used, and bytes of the JSON's first TRIED_RECORDS records.

    Raises ValueError when there is no record.
    """
    import json

    from anytext_lcm.data.records import clean

    texts: list[str] = []
    records, spent = [], 0
    for number, raw in enumerate(islice(raws, TRIED_RECORDS)):
        spent += len(json.dumps(raw, ensure_ascii=False).encode("utf-8", "replace")) + 2
        record, _ = clean(raw, number)
        if record is not None:
            records.append(record)
            texts += [line.text for line in record.annotations if line.valid]
    if not records:
        raise ValueError("No record of the JSON can be used.")
    return texts, records, spent


def _look_at_pictures(
    found: Findings, source: Path, named: object, records: "Sequence[Record]", data_root: str | None
) -> None:
    """Look for the pictures of records spread over those that were read."""
    if data_root is None and not isinstance(named, str):
        found.missing("pictures", f"{source} names no data_root: give --data_root, the folder of its pictures.")
        return
    root = Path(data_root) if data_root is not None else source.parent / named
    tried = records[:: max(1, len(records) // TRIED_PICTURES)][:TRIED_PICTURES]
    gone = [root / record.img_name for record in tried if not (root / record.img_name).is_file()]
    if len(gone) == len(tried):
        found.missing(
            "pictures", f"{gone[0]} does not exist, nor any of {len(gone)} pictures of {source}: give --data_root."
        )
    elif gone:
        found.note("pictures", f"{len(gone)} of {len(tried)} pictures of {source} do not exist, as {gone[0]}")
    else:
        found.ok("pictures", f"{root}: {len(tried)} of {len(tried)} that were looked for are there")


def _look_at_fonts(found: Findings, source: Path, texts: Sequence[str], fonts: Sequence[str] | None) -> None:
    """Compare the fonts' characters with those of the lines that were read."""
    from anytext_lcm.data.fonts import PLAIN_FONT, characters, check_fonts, covers, font_path

    chosen = tuple(fonts or (PLAIN_FONT,))
    check_fonts(chosen)
    if not texts:
        found.missing("fonts", f"No line of the first {TRIED_RECORDS} records of {source} is valid: nothing to learn.")
        return
    lacking = [text for text in texts if not any(covers(font, text) for font in chosen)]
    names = ", ".join(font_path(font).name for font in chosen)
    if not lacking:
        found.ok("fonts", f"{names}: hold all of {len(texts)} lines of {source}")
        return
    known = frozenset().union(*(characters(font) for font in chosen))
    often = [sign for sign, _ in Counter(c for text in lacking for c in text if ord(c) not in known).most_common(5)]
    words = (
        f"{names}: cannot write {len(lacking)} of {len(texts)} lines of {source} (such as {' '.join(often)}), which "
        f"drop out of the loss. {published.FONT}"
    )
    (found.missing if len(lacking) == len(texts) else found.note)("fonts", words)


def look_at_latents(found: Findings, folder: str | None, records: int | None) -> None:
    """Look for stored latents and compare their number with the records'."""
    import json

    if folder is None:
        return
    with found.looking_at("latents"):
        about = [Path(folder) / name for name in LATENTS]
        if not any(path.is_file() for path in about):
            raise FileNotFoundError(
                f"{folder} holds no latents ({about[0].name} is missing); compute them with python -m "
                "anytext_lcm.cache_latents, or leave --latents out."
            )
        path = next(path for path in about if path.is_file())
        stored = json.loads(path.read_text(encoding="utf-8")).get(LATENTS[path.name])
        words = f"{folder}: latents of {stored} pictures"
        if isinstance(records, int) and stored != records:
            found.note("latents", f"{words}, the data set has {records} records")
        else:
            found.ok("latents", words)
