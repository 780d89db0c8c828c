"""Command: look at a data set, write the mock data in AnyWord's layout, or measure. `python -m anytext_lcm.data`"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anytext_lcm.command import finite, named, natural, new_parser, positive, run
from anytext_lcm.files import printable

if TYPE_CHECKING:
    from anytext_lcm.data.anyword import AnyWordDataset
    from anytext_lcm.data.mock import MockDataset


MOST_ITEMS, MOST_ROWS = 100_000_000, 100  # of a data set; of a sheet


def build_parser() -> argparse.ArgumentParser:
    """One sub-command each for looking, writing and measuring."""
    parser = new_parser("data", "Look at a data set, write the mock data in AnyWord's layout, or measure.")
    commands = parser.add_subparsers(dest="command", required=True)

    look = commands.add_parser("preview", help="a sheet of items as PNG, counts, fields, problems")
    look.set_defaults(work=preview)
    _add_source(look)
    look.add_argument("--output", type=named, default="outputs/preview.png", help="the sheet (default: %(default)s)")
    look.add_argument("--count", type=positive, default=6, help="items on the sheet (default: %(default)s)")
    look.add_argument("--check_pictures", action="store_true", help="open every picture, not only those shown")

    write = commands.add_parser("convert", help="write the mock data in AnyWord's layout")
    write.set_defaults(work=convert)
    _add_source(write, records=False)
    write.add_argument("--output", type=named, required=True, help="folder that gets data.json and imgs/")
    write.add_argument("--format", default="png", help="png or jpg; only png keeps every byte (default: %(default)s)")

    measure = commands.add_parser("benchmark", help="items per second, MB per item, opening a large index")
    measure.set_defaults(work=benchmark)
    measure.add_argument("--items", type=positive, default=20, help="items to make (default: %(default)s)")
    measure.add_argument(
        "--records", type=natural, default=0, help="records of the index to open, 0 for none (default: %(default)s)"
    )
    return parser


def _add_source(parser: argparse.ArgumentParser, records: bool = True) -> None:
    parser.add_argument("--mock", type=positive, metavar="N", help="the mock data set of N items")
    parser.add_argument("--rich", action="store_true", help="mock data with up to five lines of all kinds")
    parser.add_argument("--image_size", type=positive, help="side of the pictures (default: 512, plain mock data 128)")
    parser.add_argument("--seed", type=natural, default=0, help="of what is drawn (default: %(default)s)")
    if records:
        parser.add_argument("--data_list", nargs="+", help="JSONs in AnyWord's layout")
        parser.add_argument("--data_root", help="folder of the pictures, if not the one the JSON names")
        parser.add_argument("--index_dir", help="where indices are kept, if not beside the JSONs")
        parser.add_argument("--fonts", nargs="+", help="fonts for the glyphs, files or names")
        parser.add_argument(
            "--fit",
            choices=("stretch", "crop", "pad"),
            default="stretch",
            help="what becomes of pictures that are not square (default: %(default)s, as upstream)",
        )
        parser.add_argument("--edit_share", type=finite, default=0.0, help="share of items in editing mode")
        parser.add_argument("--strict", action="store_true", help="make the first bad record an error")


def _check_numbers(args: argparse.Namespace, **limits: int) -> None:
    for name, most in limits.items():
        if (getattr(args, name) or 0) > most:
            raise ValueError(f"--{name} must be at most {most}, not {getattr(args, name)}.")


def _mock(args: argparse.Namespace) -> MockDataset:
    from anytext_lcm.data.lettering import varied_text
    from anytext_lcm.data.mock import MockDataset

    if not args.rich:
        return MockDataset(args.mock, seed=args.seed, image_size=args.image_size or 128)
    return MockDataset(args.mock, args.seed, args.image_size or 512, max_lines=5, text_style=varied_text())


def _records(args: argparse.Namespace) -> AnyWordDataset:
    from anytext_lcm.data.anyword import AnyWordDataset, ReadingRules

    rules = {"image_size": args.image_size or 512, "edit_share": args.edit_share, "fit": args.fit}
    if args.fonts:
        rules["fonts"] = tuple(args.fonts)
    return AnyWordDataset(
        args.data_list, args.data_root, ReadingRules(**rules), args.seed, strict=args.strict, index_dir=args.index_dir
    )


def preview(args: argparse.Namespace) -> str:
    """Write the sheet. Returns counts, problems and fields."""
    from PIL import Image

    from anytext_lcm.data.batch import collate, validate
    from anytext_lcm.data.packed import expand, item_bytes
    from anytext_lcm.data.preview import COLUMNS, sheet
    from anytext_lcm.files import atomic_file

    _check_numbers(args, count=MOST_ROWS, mock=MOST_ITEMS)
    if (args.mock is None) == (args.data_list is None):
        raise ValueError("Name one data set: --mock N or --data_list FILE.")
    of_records = ("data_root", "index_dir", "fonts", "edit_share", "strict", "check_pictures")
    unused = [name for name in (of_records if args.mock else ("rich",)) if getattr(args, name)]
    unused += ["fit"] * bool(args.mock and args.fit != "stretch")
    if unused:
        raise ValueError(f"--{unused[0]} has no effect on {'mock data' if args.mock else 'records'}: drop it.")
    dataset = _records(args) if args.mock is None else _mock(args)
    lines = [f"mock data: {len(dataset)} items"] if args.mock else list(_describe(dataset, args.check_pictures))
    items = [dataset[index] for index in range(min(args.count, len(dataset)))]
    lines += [sentence for item in items for sentence in item.get("problems", ())]
    batch = expand(collate(items))
    lines += [validate(batch), f"an item leaves a worker with {item_bytes(items[0]) / 1e6:.2f} MB"]
    with atomic_file(args.output) as path:
        Image.fromarray(sheet(batch)).save(path)
    return "\n".join([*lines, printable(f"The sheet is in {args.output}: {', '.join(COLUMNS)}, one row per item")])


def _describe(dataset: AnyWordDataset, check_pictures: bool) -> Iterator[str]:
    from anytext_lcm.data.preview import counts, problems, shapes, unreadable_pictures

    yield counts(dataset)
    yield shapes(dataset, 0 if check_pictures else 1000)
    if found := problems(dataset):
        yield found
    if check_pictures:
        broken = unreadable_pictures(dataset)
        yield from broken
        yield f"pictures that cannot be read: {len(broken)} of {len(dataset)}"


def convert(args: argparse.Namespace) -> str:
    """Write the mock data as JSON and pictures."""
    from anytext_lcm.data.convert import write_anyword

    _check_numbers(args, mock=MOST_ITEMS)
    if args.mock is None:
        raise ValueError("Say how many items to write: --mock N.")
    path = write_anyword(_mock(args), args.output, image_format=args.format)
    return printable(f"{args.mock} records are in {path}")


def benchmark(args: argparse.Namespace) -> str:
    """Measure items, and a large index in a fresh process, whose memory holds nothing of what made the index."""
    from anytext_lcm.data.benchmark import example_set, large_set, measure_items

    _check_numbers(args, items=MOST_ITEMS, records=MOST_ITEMS)
    script = "import json, sys; from anytext_lcm.data.index_memory import index_memory; "
    script += "print(json.dumps(index_memory(sys.argv[1])))"
    with tempfile.TemporaryDirectory() as folder:
        lines = [f"{name}: {value:.3g}" for name, value in measure_items(example_set(Path(folder)), args.items).items()]
        if args.records:
            path = large_set(Path(folder), args.records, print)
            command = [sys.executable, "-c", script, str(path)]
            found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            lines += [f"{name}: {value:.5g}" for name, value in found.items()]
    return "\n".join(lines)


def work(args: argparse.Namespace) -> str:
    """Do what the sub-command does; returns what to print."""
    return args.work(args)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence on stderr."""
    return run(build_parser(), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
