"""Says in words what is wrong with the answer to an exercise. Each notebook's checks are in `checks_NN.py`.

A check is a function of the answer. It calls `require` for each property, from the easiest to the hardest, and returns
what the answer was found to do.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

Check = Callable[[Any], str]

WAITING = "not done yet. Replace the stub and run the cell again."


class WrongAnswer(Exception):
    """What is wrong with an answer, as a sentence's end: "at s_g = 1 it returns the unconditional branch"."""


def require(condition: bool | Tensor, wrong: str) -> None:
    """Raise WrongAnswer with the words `wrong` unless the condition holds."""
    if not bool(condition):
        raise WrongAnswer(wrong)


def same(answer: Any, wanted: Any, tolerance: float = 1e-4) -> bool:
    """Whether a tensor or number equals another one, entry by entry, up to `tolerance`.

    Raises WrongAnswer for what cannot be compared: None, another shape, numbers that are not finite.
    """
    require(answer is not None, "it returns None; does it end with a return?")
    try:
        answer, wanted = (torch.as_tensor(value).detach().double() for value in (answer, wanted))
    except (TypeError, ValueError, RuntimeError):
        raise WrongAnswer(f"it returns {type(answer).__name__} where a tensor is asked for") from None
    shapes = f"it returns the shape {tuple(answer.shape)} where {tuple(wanted.shape)} is asked for"
    require(answer.shape == wanted.shape, shapes)
    require(answer.isfinite().all(), "it returns numbers that are not finite")
    return bool((answer - wanted).abs().max() <= tolerance)


def verdict(checks: Mapping[str, Check], name: str, answer: Any) -> tuple[bool, str]:
    """Whether the answer passes the check of this name, and a line that says why.

    A stub is a function that raises NotImplementedError, or `...` for a value. Raises KeyError for an unknown name.
    """
    if name not in checks:
        raise KeyError(f"There is no exercise {name!r}; there are {', '.join(checks)}.")
    if answer is ...:
        return False, f"{name}: {WAITING}"
    try:
        return True, f"{name}: right. {checks[name](answer)}"
    except NotImplementedError:
        return False, f"{name}: {WAITING}"
    except WrongAnswer as wrong:
        return False, f"{name}: not yet: {wrong}."
    except Exception as error:  # the reader's own code may raise anything
        return False, f"{name}: not yet: it stops with {type(error).__name__}: {error}"


def checker(checks: Mapping[str, Check]) -> Callable[[str, Any], None]:
    """`check(name, answer)` of a notebook: prints the line of `verdict`."""
    return partial(_report, checks)


def _report(checks: Mapping[str, Check], name: str, answer: Any) -> None:
    print(verdict(checks, name, answer)[1])
