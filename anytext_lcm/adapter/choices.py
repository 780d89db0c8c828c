"""What an export can write, how large an adapter may be, which sampling suits it. No torch, for a quick `--help`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LAYOUTS = ("peft", "merged", "kohya", "diffusers")
PRECISIONS = {"fp32": "float32", "fp16": "float16"}  # name: torch's dtype

MAX_RANK = 1024
"""Largest rank of an adapter, and of a mixture, whose parts' ranks add up. Every layer gets it: 1.7 GB at full size."""


SAMPLERS = ("lcm", "deterministic")
"""The student's samplers that an adapter may be made for, by the names of `sample --sampler`."""


@dataclass(frozen=True)
class MadeFor:
    """The sampling that an adapter was trained for. Its weights work with any; this is what is drawn by default."""

    samplers: tuple[str, ...]  # of SAMPLERS, the best one first
    steps: tuple[int, int]  # fewest and most

    def complaint(self, sampler: str, steps: int) -> str | None:
        """What to say about another sampling than this, None for this one."""
        least, most = self.steps
        if sampler in self.samplers and least <= steps <= most:
            return None
        return (
            f"the adapter was made for {' or '.join(self.samplers)} sampling in {least} to {most} steps, "
            f"not for {sampler} in {steps}."
        )

    def to_json(self) -> dict[str, Any]:
        """As the header of an adapter's weights has it."""
        return {"samplers": list(self.samplers), "steps": list(self.steps)}


def made_for(objective: str, phases: int | None = None) -> MadeFor:
    """The sampling that an objective trains for.

    The jumps of pcm and path end at edges, which as many steps as phases reach, 4 by default, and fewer cross; with one
    phase all jumps end at clean latents, as those of lcm. Fresh noise comes first: on the embedded network it
    reads more than deterministic jumps (notebooks/measured/RESULTS.md). Those come first for teacher_x0, which learns
    the teacher's own DDIM. For an unknown objective, what suits lcm.
    """
    if objective in ("pcm", "path") and phases != 1:
        least = 4 if phases is None else phases
        return MadeFor(("lcm", "deterministic"), (least, max(least, 16)))
    if objective == "tcd":
        return MadeFor(("lcm", "deterministic"), (4, 16))
    if objective == "teacher_x0":
        return MadeFor(("deterministic", "lcm"), (4, 16))
    return MadeFor(("lcm", "deterministic"), (1, 8))


def read_made_for(header: Mapping[str, Any]) -> MadeFor:
    """The sampling of an adapter by the header of its weights; by the objective where an older one does not say it.

    Raises ValueError for what this version cannot sample.
    """
    found = header.get("made_for")
    if found is None:
        phases = header.get("phases")
        return made_for(str(header.get("objective")), phases if isinstance(phases, int) else None)
    try:
        samplers, (least, most) = tuple(found["samplers"]), found["steps"]
        known = samplers and all(name in SAMPLERS for name in samplers)
        if known and type(least) is type(most) is int and 1 <= least <= most:
            return MadeFor(samplers, (least, most))
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(
        f"The adapter was made for {found!r}, which is no sampling of this version: it has {' and '.join(SAMPLERS)}."
    )
