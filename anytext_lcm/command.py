"""What all commands share: flags of the network, of the adapter and of guidance, and the one way to fail.

A command has `build_parser()`, `work(args)`, which returns what to print, and `main(arguments=None)`, which returns the
exit code. Its flags need no network: heavy imports stand in `work`, so that `--help` takes less than a second.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from anytext_lcm.files import printable

FAILURES = (ValueError, OSError, FloatingPointError)
"""What a command reports in a sentence; anything else is a fault of the program and keeps its traceback."""


MAX_LINES = 10_000  # in a panel: 10 GB at 128 px, and by then intervals of half a point


class Missing(ValueError):
    """Several things that are not there or do not fit, one sentence each."""

    def __init__(self, sentences: Sequence[str]):
        super().__init__(" ".join(sentences))
        self.sentences = tuple(sentences)


class AlreadyReported(Exception):
    """A failure whose sentence is on stderr already, as when another process of the same run printed it."""


class Parser(argparse.ArgumentParser):
    """argparse's parser; a wrong flag raises ValueError, so that `run` reports it like any other failure."""

    def error(self, message: str) -> NoReturn:
        if message.endswith("expected one argument"):
            message += ", and one that begins with - follows an equals sign, as in --line=-50%"
        raise ValueError(f"{message}; --help lists all flags.")


def new_parser(name: str, description: str, example: str = "") -> argparse.ArgumentParser:
    """The parser of `python -m anytext_lcm.NAME`; `example` is one call of it, shown below the flags."""
    epilog = f"Example: {example}" if example else None
    return Parser(prog=f"python -m anytext_lcm.{name}", description=description, epilog=epilog)


def add_network(parser: argparse.ArgumentParser, config: str) -> None:
    """--config, --ckpt and --device of a command that draws; `config` is the default yaml."""
    parser.add_argument("--config", default=config, help="yaml of the network (default: the embedded one)")
    parser.add_argument("--ckpt", help="weights of the teacher (default: those that come with the yaml)")
    parser.add_argument("--device", help="cpu or cuda (default: the GPU if there is one)")


def add_precision(parser: argparse.ArgumentParser) -> None:
    """--precision of what is drawn."""
    parser.add_argument(
        "--precision",
        choices=("fp16", "bf16", "fp32"),
        help="of weights and network; schedule, solver and guidance are fp32 (default: fp16 on a GPU, fp32 on a CPU)",
    )


def add_adapter(parser: argparse.ArgumentParser, help: str = "the student's adapter (default: %(default)s)") -> None:
    """--adapter: a folder, `shipped` or `none`."""
    parser.add_argument("--adapter", default="shipped", metavar="DIR|shipped|none", help=help)


def add_guidance(parser: argparse.ArgumentParser) -> None:
    """--guidance_scale and --negative_prompt of the teacher."""
    parser.add_argument("--guidance_scale", type=float, help="the teacher's (default: what suits the network)")
    parser.add_argument("--negative_prompt", help="the teacher's (default: what suits the network)")


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """--dry_run of a command that draws many pictures."""
    parser.add_argument(
        "--dry_run", action="store_true", help="check all inputs, print what it would take, and draw nothing"
    )


def add_rate(parser: argparse.ArgumentParser) -> None:
    """--tflops and --price, from which the time and the cost of a run are estimated."""
    parser.add_argument(
        "--tflops", type=finite, help="TFLOP/s that each process sustains in training, for an estimate of the time"
    )
    parser.add_argument("--price", type=finite, help="of an hour of one process, for an estimate of the cost")


def check_rate(tflops: float | None, price: float | None) -> None:
    """Raise ValueError for a rate or a price that cannot be."""
    if tflops is not None and not 1e-6 <= tflops <= 1e6:
        raise ValueError(f"--tflops must lie in 1e-6..1e6 TFLOP/s, not {tflops:g}.")
    if price is not None and not 0 <= price <= 1e6:
        raise ValueError(f"--price must lie in 0..1e6, not {price:g}.")
    if price is not None and tflops is None:
        raise ValueError("--price needs --tflops: a cost is an estimate of the time.")


def positive(text: str) -> int:
    """A whole number from 1 on, as argparse's `type`."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """A whole number from 0 on, as argparse's `type`: a seed."""
    return _whole(text, 0)


def named(text: str) -> str:
    """A name of anything, as argparse's `type`. An empty one would be the current folder, or count as not given."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"must be a name, not {text!r}")
    return text


def finite(text: str) -> float:
    """A number that is neither nan nor infinite, as argparse's `type`."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a finite number, not {text!r}")
    return number


def panel_lines(text: str) -> int:
    """A number of lines of text in a panel, as argparse's `type`; the least number is the command's own."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None
    if number > MAX_LINES:
        raise argparse.ArgumentTypeError(
            f"must be at most {MAX_LINES:,}, not {number:,}: all pictures of a panel are held in memory at once"
        )
    return number


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} on, not {text!r}")
    return int(text)


def in_words(error: BaseException) -> str:
    """The sentence of an error, fit for a terminal. Of one from a DataLoader worker, which torch wraps in the worker's
    traceback, the last line without its class.
    """
    text = str(error)
    if " in DataLoader worker process " in text:
        last = text.strip().splitlines()[-1]
        text = last.partition(": ")[2] or last
    return printable(text)


def run(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], str | None],
    arguments: Sequence[str] | None = None,
    kept: Callable[[argparse.Namespace], str] | None = None,
) -> int:
    """Parse the arguments, do the work, print what it returns.

    kept: says, after Ctrl-C, what is kept and how to go on; of several processes the first one says it.
    Returns the exit code: 0, or 2 or, after Ctrl-C, 130 with one sentence on stderr.
    """
    args = None
    try:
        args = parser.parse_args(arguments)
        message = work(args)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            words = kept(args) if kept and args else "files that were complete are kept, none is half-written."
            print(f"stopped: {printable(words)}", file=sys.stderr)
        return 130
    except AlreadyReported:
        return 2
    except FAILURES as error:
        for sentence in error.sentences if isinstance(error, Missing) else [in_words(error)]:
            print(f"error: {printable(sentence)}", file=sys.stderr)
        return 2
    if message:
        _say(message)
    return 0


def _say(message: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    try:  # a path may hold what the terminal's encoding lacks
        print(message.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:  # `| head` has read enough; at its end Python would flush once more and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
