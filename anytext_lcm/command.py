"""What all commands share: flags of the network, of the adapter and of guidance, and the one way to fail.

A command prints what it did and returns 0, or prints one sentence on stderr and returns 2. It builds its flags
without importing a network: heavy imports stand in the function that does the work.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

FAILURES = (ValueError, OSError, FloatingPointError)
"""What a command reports in a sentence; anything else is a fault of the program and keeps its traceback."""


def new_parser(name: str, description: str, example: str = "") -> argparse.ArgumentParser:
    """The parser of `python -m anytext_lcm.NAME`; `example` is one call of it, shown below the flags."""
    epilog = f"Example: {example}" if example else None
    return argparse.ArgumentParser(prog=f"python -m anytext_lcm.{name}", description=description, epilog=epilog)


def add_network(parser: argparse.ArgumentParser, config: str) -> None:
    """--config, --ckpt and --device of a command that draws; `config` is the default yaml."""
    parser.add_argument("--config", default=config, help="yaml of the network (default: the embedded one)")
    parser.add_argument("--ckpt", help="weights of the teacher (default: those that come with the yaml)")
    parser.add_argument("--device", help="cpu or cuda (default: the GPU if there is one)")


def add_adapter(parser: argparse.ArgumentParser, help: str = "the student's adapter (default: %(default)s)") -> None:
    """--adapter: a folder, `shipped` or `none`."""
    parser.add_argument("--adapter", default="shipped", metavar="DIR|shipped|none", help=help)


def add_guidance(parser: argparse.ArgumentParser) -> None:
    """--guidance_scale and --negative_prompt of the teacher."""
    parser.add_argument("--guidance_scale", type=float, help="the teacher's (default: what suits the network)")
    parser.add_argument("--negative_prompt", help="the teacher's (default: what suits the network)")


def positive(text: str) -> int:
    """A whole number from 1 on, as argparse's `type`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}")
    return int(text)


def in_words(error: BaseException) -> str:
    """The sentence of an error. Of one from a DataLoader worker, which torch wraps in the worker's traceback, the last
    line without its class.
    """
    text = str(error)
    if " in DataLoader worker process " not in text:
        return text
    last = text.strip().splitlines()[-1]
    return last.partition(": ")[2] or last


def run(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], str | None],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse the arguments, do the work, print what it returns. Returns the exit code: 0, or 2 after one sentence."""
    args = parser.parse_args(arguments)
    try:
        message = work(args)
    except FAILURES as error:
        print(f"error: {in_words(error)}", file=sys.stderr)
        return 2
    if message:
        print(message)
    return 0
