"""Command: look at a data set, write the mock data in AnyWord's layout, or measure. `python -m anytext_lcm.data`."""

from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from anytext_lcm.data import benchmark, preview
from anytext_lcm.data.anyword import AnyWordDataset, ReadingRules, read_picture
from anytext_lcm.data.batch import collate, validate
from anytext_lcm.data.convert import FORMATS, write_anyword
from anytext_lcm.data.index import open_index
from anytext_lcm.data.lettering import varied_text
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.data.packed import expand, item_bytes
from anytext_lcm.files import whole_file


def build_parser() -> argparse.ArgumentParser:
    """One sub-command each for looking, writing and measuring."""
    parser = argparse.ArgumentParser(prog="python -m anytext_lcm.data", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)

    look = commands.add_parser("preview", help="a sheet of items as PNG, counts, fields, problems")
    _add_source(look)
    look.add_argument("--output", default="outputs/preview.png", help="the sheet (default: %(default)s)")
    look.add_argument("--count", type=int, default=6, help="items on the sheet (default: %(default)s)")
    look.add_argument("--check_pictures", action="store_true", help="open every picture, not only those shown")

    write = commands.add_parser("convert", help="write the mock data in AnyWord's layout")
    _add_source(write, records=False)
    write.add_argument("--output", required=True, help="folder that gets data.json and imgs/")
    write.add_argument("--format", choices=tuple(FORMATS), default="png", help="only png keeps every byte")

    measure = commands.add_parser("benchmark", help="items a second, MB an item, opening a large index")
    measure.add_argument("--items", type=int, default=20, help="items to make (default: %(default)s)")
    measure.add_argument("--records", type=int, default=0, help="records of the index to open, 0 for none")
    return parser


def _add_source(parser: argparse.ArgumentParser, records: bool = True) -> None:
    parser.add_argument("--mock", type=int, metavar="N", help="the mock data set of N items")
    parser.add_argument("--rich", action="store_true", help="mock data with up to five lines of all kinds")
    parser.add_argument("--image_size", type=int, help="side of the pictures; 512, for plain mock data 128")
    parser.add_argument("--seed", type=int, default=0)
    if records:
        parser.add_argument("--data_list", nargs="+", help="JSONs in AnyWord's layout")
        parser.add_argument("--data_root", help="folder of the pictures, if not the one the JSON names")
        parser.add_argument("--index_dir", help="where indices are kept, if not beside the JSONs")
        parser.add_argument("--fonts", nargs="+", help="fonts for the glyphs, files or names")
        parser.add_argument("--edit_share", type=float, default=0.0, help="share of items in editing mode")
        parser.add_argument("--strict", action="store_true", help="make the first bad record an error")


def _mock(options: argparse.Namespace) -> MockDataset:
    if not options.rich:
        return MockDataset(options.mock, seed=options.seed, image_size=options.image_size or 128)
    side = options.image_size or 512
    return MockDataset(options.mock, options.seed, side, max_lines=5, text_style=varied_text())


def _preview(options: argparse.Namespace) -> None:
    if (options.mock is None) == (options.data_list is None):
        raise ValueError("Name one data set: --mock N or --data_list FILE.")
    if options.count < 1:
        raise ValueError(f"--count is {options.count}, at least one item is needed.")
    if options.mock is not None:
        dataset = _mock(options)
        print(f"mock data: {len(dataset)} items")
    else:
        rules = {"image_size": options.image_size or 512, "edit_share": options.edit_share}
        if options.fonts:
            rules["fonts"] = tuple(options.fonts)
        dataset = AnyWordDataset(
            options.data_list,
            options.data_root,
            ReadingRules(**rules),
            options.seed,
            strict=options.strict,
            index_dir=options.index_dir,
        )
        print(preview.counts(dataset))
        if found := preview.problems(dataset):
            print(found)
        if options.check_pictures:
            print(f"pictures that cannot be read: {_check_pictures(dataset)} of {len(dataset)}")
    items = [dataset[index] for index in range(min(options.count, len(dataset)))]
    for item in items:
        for sentence in item.get("problems", ()):
            print(sentence)
    batch = expand(collate(items))
    print(validate(batch))
    print(f"an item leaves a worker with {item_bytes(items[0]) / 1e6:.2f} MB")
    with whole_file(options.output) as path:
        Image.fromarray(preview.sheet(batch)).save(path)
    print(f"The sheet is in {options.output}: {', '.join(preview.COLUMNS)}, a row an item")


def _check_pictures(dataset: AnyWordDataset) -> int:
    """Opens every picture and names those that cannot be read; how many."""
    broken = 0
    for place in range(len(dataset)):
        source, record = dataset.record(place)
        path = dataset.picture_path(source, record)
        try:
            read_picture(path)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            broken += 1
            print(f"{dataset.sources[source]}, record {record.number}, picture: {path} ({error})")
    return broken


def _convert(options: argparse.Namespace) -> None:
    if options.mock is None:
        raise ValueError("Say how many items to write: --mock N.")
    print(f"{options.mock} records are in {write_anyword(_mock(options), options.output, image_format=options.format)}")


def index_memory(json_path: str | Path, reads: int = 2000) -> dict[str, float]:
    """What opening the index of a JSON adds to this process, then `reads` random reads: seconds and MB.

    Resident memory counts what is mapped from the file, though all processes of a machine share it; "of its own" leaves
    it out.
    """
    process = psutil.Process()
    before, start = process.memory_info(), time.perf_counter()
    index = open_index(json_path)
    last = index[len(index) - 1]
    opened, after = time.perf_counter() - start, process.memory_info()
    places, start = np.random.default_rng(0).integers(0, len(index), reads), time.process_time()
    for place in places:
        index[int(place)]
    spent, read = time.process_time() - start, process.memory_info()

    def own(info) -> float:
        return info.rss - info.shared

    return {
        "records": len(index),
        "annotations of the last": len(last.annotations),
        "MB on disk": (index.folder / "records.arrow").stat().st_size / 1e6,
        "seconds to open": opened,
        "MB resident by opening": (after.rss - before.rss) / 1e6,
        "MB of its own by opening": (own(after) - own(before)) / 1e6,
        f"MB resident by opening and {reads} random reads": (read.rss - before.rss) / 1e6,
        "MB of its own by both": (own(read) - own(before)) / 1e6,
        "CPU microseconds a read": spent / reads * 1e6,
        "bytes sent to a worker": len(pickle.dumps(index)),
    }


def _benchmark(options: argparse.Namespace) -> None:
    if options.items < 1:
        raise ValueError(f"--items must be 1 or more, not {options.items}.")
    with tempfile.TemporaryDirectory() as folder:
        dataset = benchmark.example_set(Path(folder))
        for name, value in benchmark.measure_items(dataset, options.items).items():
            print(f"{name}: {value:.3g}")
        if options.records:
            path = benchmark.large_set(Path(folder), options.records, print)
            # In a fresh process, whose memory holds nothing of what made the index.
            script = f"import json; from {__package__} import __main__ as command; "
            script += f"print(json.dumps(command.index_memory({str(path)!r})))"
            done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
            for name, value in json.loads(done.stdout).items():
                print(f"{name}: {value:.5g}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr for what cannot be."""
    options = build_parser().parse_args(arguments)
    try:
        {"preview": _preview, "convert": _convert, "benchmark": _benchmark}[options.command](options)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
