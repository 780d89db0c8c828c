"""Hostile flags of every command, derived from its parser: a kind of flag times the values that break such flags.

A case fails on an exception that is no sentence, on a hang, on exit code 0, and on anything left behind after a
refusal. Reaching the network counts as accepted; values that are no numbers may not be accepted.
"""

import argparse
import os
import random
import signal
from importlib import import_module
from pathlib import Path

import pytest
from test_commands import GOOD

from anytext_lcm.model.anytext2 import AnyText2

NO_NUMBER = ("x", "", "nan", "inf", "1e400", "²", "0x10", "1_0", "--1", "\udcff")
ODD_NUMBER = ("-1", "0", "-0", "9" * 400, "1e38", "0.1", "9223372036854775808")
TEXT = ("", " ", "x" * 300, "a\0b", "\udcff", "/dev/null/x", "../" * 2000, "\x1b[2J\n", "-", "@", "none", "latest")
SECONDS = 5
WORKING = ("ablate", "build_teacher", "demo", "speed")  # they work before they reach a network


class Accepted(BaseException):
    """The flags were taken and the work has begun."""


def parsers():
    """(command, its arguments so far, its parser); sub-commands count as commands."""
    for name in GOOD:
        module = import_module("anytext_lcm.data.__main__" if name == "data" else f"anytext_lcm.{name}")
        parser = module.build_parser()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                good = {"preview": ["--mock", "3"], "convert": ["--mock", "2", "--output", "out"], "benchmark": []}
                yield from ((name, [word, *good[word]], sub) for word, sub in action.choices.items())
                break
        else:
            yield name, GOOD[name], parser


def takes_text(kind):
    """Whether a flag's type gives a text or a path, and not a number."""
    try:
        return kind is None or isinstance(kind("x"), str | Path)
    except (ValueError, argparse.ArgumentTypeError):
        return False


def cases():
    """(command, arguments, whether they must be refused) for every flag that takes a value."""
    for name, good, parser in parsers():
        for action in parser._actions:
            if not action.option_strings or action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
                continue
            flag = action.option_strings[-1]
            numeric = not takes_text(action.type)
            words = action.type is int or getattr(action.type, "__name__", "") in ("positive", "natural", "panel_lines")
            for value in NO_NUMBER if numeric else ():
                # Python's int and float read an underscore between digits
                must = value != "1_0" or getattr(action.type, "__name__", "") == "positive"
                if must or name not in WORKING:
                    yield name, [*good, f"{flag}={value}"], must
            if name in WORKING:
                continue
            for value in ODD_NUMBER if numeric else TEXT:
                yield name, [*good, f"{flag}={value}"], words and value in ("1e38", "0.1")


CASES = sorted(cases(), key=repr)
CHOSEN = random.Random(0).sample(CASES, 100)


def wrong(name, arguments, must_refuse, folder, here, monkeypatch, capsys):
    """Run one case in the empty folder `here`. Returns what is wrong with how it ended, None when nothing is."""

    def accept(*_, **__):
        raise Accepted

    monkeypatch.setattr(AnyText2, "from_config", accept)
    monkeypatch.chdir(here)
    module = import_module("anytext_lcm.data.__main__" if name == "data" else f"anytext_lcm.{name}")
    before = signal.signal(signal.SIGALRM, accept)
    signal.alarm(SECONDS)
    try:
        code = module.main([word.replace("{folder}", str(folder)) for word in arguments])
    except Accepted:
        return "accepted" if must_refuse else None
    except Exception as error:
        return f"traceback: {error!r}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    printed = capsys.readouterr()
    if code == 0:
        return "exit code 0" if must_refuse else None
    left, lines = sorted(os.listdir(here)), printed.err.splitlines()
    # One sentence, or one for each thing that is missing.
    if code != 2 or left or not 1 <= len(lines) <= 3 or not all(line.startswith("error: ") for line in lines):
        return f"exit code {code}, left {left}, said {printed.err!r}"
    return None


@pytest.fixture(scope="module")
def folder(teacher):
    from micro_network import micro_network
    from test_commands import RECORD, json

    from anytext_lcm.adapter.lora import attach, save_adapter

    save_adapter(attach(micro_network(), 2, 2), teacher / "adapter")
    (teacher / "test1k.json").write_text(json.dumps({"data_root": ".", "data_list": [RECORD]}))
    return teacher


def failures(chosen, folder, tmp_path, monkeypatch, capsys):
    found = []
    for place, (name, arguments, must_refuse) in enumerate(chosen):
        here = tmp_path / str(place)
        here.mkdir()
        if problem := wrong(name, arguments, must_refuse, folder, here, monkeypatch, capsys):
            found.append(f"{name} {ascii(arguments[-1])[:60]}: {problem}")
    return "\n".join(found)


def test_a_hundred(folder, tmp_path, monkeypatch, capsys):
    assert failures(CHOSEN, folder, tmp_path, monkeypatch, capsys) == ""


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", sorted(GOOD))
def test_all(name, folder, tmp_path, monkeypatch, capsys):
    mine = [case for case in CASES if case[0] == name]
    assert failures(mine, folder, tmp_path, monkeypatch, capsys) == ""
