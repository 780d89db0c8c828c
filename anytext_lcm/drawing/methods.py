"""Ways to draw: who draws, by which sampler, in how many steps. One table and one grammar of names for all of them.

Importing this loads no torch, so that commands can name samplers in their `--help`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from anytext_lcm.model.networks import EMBEDDED_GUIDANCE

STRONGEST = 2  # of attnx_scale and strength, as in upstream's demo
TRAILING_BELOW = 20  # DDIM steps; from there on upstream's spacing, see `lcm.schedule.ddim_timesteps`


@dataclass(frozen=True)
class Sampler:
    """What one sampler is called in each place."""

    flag: str  # of `sample --sampler`
    loop: str  # `Method.sampler`: the loop of lcm/samplers.py, or diffusers' solver in drawing/solvers.py
    teacher: bool  # drawn by the guided teacher; else by the student and by the teacher before it was trained
    ending: str = ""  # of a method's name, behind its steps


SAMPLERS = {
    row.flag: row
    for row in (
        Sampler("ddim", "ddim", teacher=True),
        Sampler("dpm++", "dpm++", teacher=True, ending="-dpm++"),
        Sampler("unipc", "unipc", teacher=True, ending="-unipc"),
        Sampler("lcm", "lcm", teacher=False),
        Sampler("deterministic", "tcd", teacher=False, ending="-deterministic"),  # gamma 0
        Sampler("gamma", "tcd", teacher=False, ending="-gamma{gamma:g}"),
    )
}
NOISE_SPACINGS = ("karras", "logsnr")  # of the teacher's timesteps by noise level, as lcm/samplers.py has them
SOLVERS = ("dpm++", "unipc")  # diffusers' fast solvers: rivals that need no training
LOOPS = tuple(dict.fromkeys(row.loop for row in SAMPLERS.values()))
STUDENT_SAMPLERS = tuple(flag for flag, row in SAMPLERS.items() if not row.teacher)
TEACHER_SAMPLERS = tuple(flag for flag, row in SAMPLERS.items() if row.teacher and flag not in SOLVERS)


@dataclass(frozen=True)
class Method:
    """A way to draw. Raises ValueError for settings out of range and for steps that the sampler cannot take.

    guidance_scale lies in 1..100; 1 is no guidance, and half the work. adapter False is the bare teacher, whatever
    adapter the model carries.
    """

    name: str
    sampler: str  # one of LOOPS
    steps: int
    guidance_scale: float = 1.0
    adapter: bool = False
    spacing: str = "trailing"  # of DDIM and the solvers: leading, trailing, karras or logsnr
    gamma: float = 0.0  # of tcd: 0 is deterministic
    eta: float = 0.0  # of DDIM: 0 is deterministic, 1 draws as much fresh noise as DDPM
    attnx_scale: float = 1.0  # weight of AnyText2's extra attention, a slider 0..2 of its demo
    strength: float = 1.0  # weight of WriteNet's residuals, likewise

    def __post_init__(self):
        from anytext_lcm.lcm.schedule import (  # torch, which --help does without
            NoiseSchedule,
            ddim_timesteps,
            lcm_timesteps,
            noise_spaced_timesteps,
        )

        if self.sampler not in LOOPS:
            raise ValueError(f"Sampler {self.sampler!r} is unknown: choose {' or '.join(map(repr, LOOPS))}.")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int):
            raise ValueError(f"The number of steps must be an integer, not {self.steps!r}.")
        if not 1 <= self.guidance_scale <= 100:  # also catches nan
            raise ValueError(f"The guidance scale must lie in 1..100, not {self.guidance_scale}: 1 is none.")
        for what, value in (("gamma", self.gamma), ("eta", self.eta)):
            if not 0 <= value <= 1:
                raise ValueError(f"{what} must lie in 0..1, not {value}.")
        for what, value in (("attnx_scale", self.attnx_scale), ("strength", self.strength)):
            if not 0 <= value <= STRONGEST:
                raise ValueError(
                    f"{what} must lie in 0..{STRONGEST}, not {value}: 1 is what networks are trained with."
                )
        if self.sampler in ("lcm", "tcd"):
            lcm_timesteps(self.steps)
        else:
            ddim_timesteps(self.steps, spacing="trailing" if self.spacing in NOISE_SPACINGS else self.spacing)
        if self.sampler == "ddim" and self.spacing in NOISE_SPACINGS:  # diffusers' solvers may take a timestep twice
            noise_spaced_timesteps(NoiseSchedule.scaled_linear(), self.steps, self.spacing)

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1.0

    @property
    def evaluations(self) -> int:
        """Evaluations of the UNet per picture: two per guided step."""
        return self.steps * (2 if self.guided else 1)


def teacher_method(
    steps: int = 50, guidance_scale: float = EMBEDDED_GUIDANCE, spacing: str = "", eta: float = 0.0
) -> Method:
    """DDIM with guidance. Without a spacing, the one that suits the number of steps better."""
    name = f"teacher-{steps}" + (f"-{spacing}" if spacing else "") + (f"-eta{eta:g}" if eta else "")
    return Method(name, "ddim", steps, guidance_scale, spacing=spacing or _usual_spacing(steps), eta=eta)


def solver_method(steps: int, solver: str, guidance_scale: float = EMBEDDED_GUIDANCE, spacing: str = "") -> Method:
    """The guided teacher under one of SOLVERS, in the usual spacing or another. Raises ValueError for another name."""
    name = f"teacher-{steps}-{solver}" + (f"-{spacing}" if spacing else "")
    return Method(name, solver, steps, guidance_scale, spacing=spacing or _usual_spacing(steps))


def student_method(steps: int = 4, guidance_scale: float = 1.0, gamma: float | None = None) -> Method:
    """Few steps with the adapter, by the consistency sampler, or by TCD's with a gamma in 0..1 (0 is deterministic).

    The adapter has learnt guidance. A guidance_scale above 1 guides once more and doubles the work; LCM's paper
    counts w = guidance_scale - 1.
    """
    return _few_steps("student", steps, guidance_scale, gamma)


def untrained_method(steps: int = 4, guidance_scale: float = 1.0, gamma: float | None = None) -> Method:
    """The student's sampler on the teacher itself: the student before its first update."""
    return _few_steps("untrained", steps, guidance_scale, gamma)


def _few_steps(kind: str, steps: int, guidance_scale: float, gamma: float | None) -> Method:
    row = SAMPLERS["lcm" if gamma is None else "gamma" if gamma else "deterministic"]
    w = f"-w{guidance_scale - 1:g}" if guidance_scale != 1.0 else ""
    name = f"{kind}-{steps}{row.ending.format(gamma=gamma)}{w}"
    return Method(name, row.loop, steps, guidance_scale, kind == "student", gamma=gamma or 0.0)


def _usual_spacing(steps: int) -> str:
    return "trailing" if steps < TRAILING_BELOW else "leading"


_NAME = re.compile(
    r"(?P<kind>teacher|student|untrained)-(?P<steps>\d+)"
    r"(?:-(?:(?P<solver>dpm\+\+|unipc)|(?P<deterministic>deterministic)|gamma(?P<gamma>\d*\.?\d+)))?"
    r"(?:-(?P<spacing>leading|trailing|karras|logsnr))?"
    r"(?:-w(?P<w>-?\d*\.?\d+))?(?:-eta(?P<eta>\d*\.?\d+))?"
)


def parse_method(name: str, guidance_scale: float = EMBEDDED_GUIDANCE) -> Method:
    """Read a method's name: teacher-50, teacher-4-leading, teacher-50-eta1, teacher-4-dpm++, teacher-4-unipc-karras,
    student-4, student-4-deterministic, student-4-gamma0.3, student-4-w0.5, untrained-4.

    guidance_scale is the teacher's; w is the student's less 1. Raises ValueError.
    """
    found = _NAME.fullmatch(name)
    part = found.groupdict() if found else {}
    foreign = ("deterministic", "gamma", "w") if part.get("kind") == "teacher" else ("spacing", "solver", "eta")
    if found is None or any(part[key] for key in foreign) or (part["solver"] and part["eta"]):
        raise ValueError(
            f"Method {name!r} is unknown: say teacher-N, student-N or untrained-N with N steps, "
            "as in teacher-50 or student-4."
        )
    steps = int(part["steps"])
    if part["solver"]:
        return solver_method(steps, part["solver"], guidance_scale, part["spacing"] or "")
    if part["kind"] == "teacher":
        return teacher_method(steps, guidance_scale, part["spacing"] or "", float(part["eta"] or 0))
    gamma = 0.0 if part["deterministic"] else None if part["gamma"] is None else float(part["gamma"])
    return _few_steps(part["kind"], steps, 1.0 + float(part["w"] or 0), gamma)


def check_negative(given: str | None, methods: Sequence[Method | str]) -> None:
    """Raise ValueError for a negative prompt that was asked for, and that none of the methods uses."""
    if given is not None and not any(isinstance(method, Method) and method.guided for method in methods):
        raise ValueError("Without guidance a negative prompt has no effect: raise --guidance_scale above 1 or drop it.")


def reference_of(methods: Sequence[Method | str]) -> str | None:
    """The teacher with most steps of plain deterministic DDIM, which few-step methods are compared with."""
    ddim = [m for m in methods if isinstance(m, Method) and m.sampler == "ddim" and not m.eta]
    teachers = [m for m in ddim if m.name.startswith("teacher")]
    return max(teachers, key=lambda m: m.steps).name if teachers else None
