"""A campaign of hostile inputs: each case runs in a forked child with a limit of time and of memory, and is judged.

A category is a function `attack(rng, here, warm) -> Attempt` that writes a hostile input into the empty folder `here`.
The number of the case seeds `rng`, so that a failure is repeated by its name and number. `warm` is what the parent has
loaded already; a child shares its memory and cannot spoil it.
"""

import contextlib
import io
import os
import random
import resource
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anytext_lcm.command import FAILURES, in_words

SECONDS = 30  # of a case on the clock; a hang
MEMORY = 2**30  # bytes above the parent
KEPT = (".lock", ".index")  # endings of what may stay after a refusal: locks that others may hold, and indices


@dataclass(frozen=True)
class Attempt:
    """One hostile input and how it is used.

    what     the input, for the report
    use      runs a command, which returns its exit code, or a function, which returns None or raises
    effect   what must hold when it was taken
    intact   what must hold when it was refused
    """

    what: str
    use: Callable[[], int | None]
    effect: Callable[[], bool] = lambda: True
    intact: Callable[[], bool] = lambda: True


def run_case(attack: Callable[..., Attempt], number: int, here: Path, warm: Any) -> str | None:
    """Run case `number` in a child in the folder `here`. Returns what is wrong with how it ended, None when nothing."""
    here.mkdir()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            os.chdir(here)
            torch.set_num_threads(1)  # the parent's other threads did not come along
            with open(write, "w", encoding="utf-8", errors="backslashreplace") as pipe:
                attempt = attack(random.Random(f"{attack.__name__} {number}"), here, warm)
                print(ascii(attempt.what)[1:-1], file=pipe, flush=True)
                print(_judge(attempt, here), file=pipe)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)  # nothing of the parent's goes on here
    os.close(write)
    with open(read, encoding="utf-8") as pipe:
        what, problem = pipe.readline().rstrip("\n"), pipe.read().rstrip("\n")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGALRM:
        problem = f"still ran after {SECONDS} s"
    elif status:
        problem = f"ended by {status}, see what it printed"
    return f"{what}: {problem}" if problem else None


def _judge(attempt: Attempt, here: Path) -> str:
    """Use the input within the limits; what is wrong with how that ended, or nothing."""
    before = _listing(here)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    out, err = io.StringIO(), io.StringIO()
    refused, problem = False, ""
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = attempt.use()
    except FAILURES as error:  # a function; `command.run` makes a sentence of it
        refused, sentence = True, in_words(error)
    except BaseException:
        problem = f"traceback: {traceback.format_exc(limit=-4)}"
    else:
        refused, sentence = code == 2, err.getvalue().removesuffix("\n")
        if code not in (None, 0, 2):
            problem = f"exit code {code}"
        elif "Traceback" in sentence or (refused and not sentence.startswith("error: ")):
            problem = f"said {sentence!r}"
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if not problem and refused:
        left = sorted(name for name in _listing(here) - before if not any(f"{end}" in name for end in KEPT))
        if left:
            problem = f"left {left} after {sentence!r}"
        elif "memory" in sentence:
            problem = f"more than 1 GB: {sentence!r}"
        elif not sentence or not sentence.isprintable():  # a line end is not
            problem = f"no sentence: {sentence!r}"
        elif not attempt.intact():
            problem = f"changed something before {sentence!r}"
    elif not problem and not attempt.effect():
        problem = "taken, and nothing came of it"
    return problem


def _listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def failures(attack: Callable[..., Attempt], numbers: range, folder: Path, warm: Any) -> str:
    """What is wrong with the cases of these numbers, a paragraph each; empty when nothing is."""
    found = []
    for number in numbers:
        if problem := run_case(attack, number, folder / str(number), warm):
            found.append(f"{attack.__name__} {number}: {problem}")
    return "\n".join(found)
