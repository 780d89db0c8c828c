"""What of a data set can be learnt from: counts of what is wrong with it, said before a training starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pyarrow.compute as pc

from anytext_lcm.data.anyword import AnyWordDataset
from anytext_lcm.data.fonts import DrawingError, covering_fonts
from anytext_lcm.data.index import RecordIndex, problem_sentence
from anytext_lcm.files import printable

TRIED = 1000
"""So many lines of each JSON are tried against the fonts."""


def first_problems(dataset: AnyWordDataset, each: int = 3) -> Iterator[str]:
    """Say the first `each` problems of each kind and JSON, one sentence each."""
    for source, index in zip(dataset.sources, dataset.indices, strict=True):
        seen: Counter[str] = Counter()
        for problem in index.problems():
            seen[problem.kind] += 1
            if seen[problem.kind] <= each:
                yield problem_sentence(source, problem)


def complaints(dataset: AnyWordDataset) -> list[str]:
    """Say what is wrong with a data set: counts by kind for each JSON, and an example of each kind; maybe nothing."""
    counted = []
    for source, index in zip(dataset.sources, dataset.indices, strict=True):
        if found := index.about.problems:
            kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(found.items()))
            counted.append(printable(f"{source}: problems in {index.about.records} records: {kinds}"))
    return [*counted, *first_problems(dataset, each=1)] if counted else []


def require_lines(dataset: AnyWordDataset) -> None:
    """Raise ValueError when no line of text is left to learn: none is valid, or no font holds those that were tried."""
    names = ", ".join(map(str, dataset.sources))
    example = next(first_problems(dataset, each=1), None)
    valid = sum(_valid_lines(index) for index in dataset.indices)
    if not valid:
        why = f"the first problem: {example}" if example else "no record has an annotation with a text that is valid"
        raise ValueError(f"No line of text of {names} can be used; {why}.")
    missing = None
    for index in dataset.indices:
        for text in _some_texts(index):
            try:
                covering_fonts(text, dataset.rules.fonts)
            except DrawingError as error:
                missing = error
            else:
                return
    raise ValueError(f"No line of text of {names} can be drawn: {missing}")


def _valid_lines(index: RecordIndex) -> int:
    lines = pc.list_flatten(index.column("annotations"))
    return pc.sum(pc.struct_field(lines, "valid")).as_py() or 0


def _some_texts(index: RecordIndex) -> Iterator[str]:
    """The texts of the first TRIED valid lines."""
    left = TRIED
    for place in range(len(index)):
        for line in index[place].annotations:
            if line.valid:
                yield line.text
                left -= 1
                if not left:
                    return
