"""
Ways to draw: sampler, steps, guidance, adapter. One grammar of names for all of them.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from anytext_lcm.lcm.samplers import Sampled, sample
from anytext_lcm.lcm.schedule import NoiseSchedule, ddim_timesteps, lcm_timesteps
from anytext_lcm.lcm.steps import Predict
from anytext_lcm.model.networks import EMBEDDED_GUIDANCE

TRAILING_BELOW = 20  # DDIM steps; from there on upstream's spacing, see `ddim_timesteps`


@dataclass(frozen=True)
class Method:
    """A way to draw. Raises ValueError for steps that the sampler cannot make.

    guidance_scale 1 is no guidance, and half the work. adapter False is the bare teacher, whatever adapter
    the model carries.
    """

    SAMPLERS: ClassVar[tuple[str, ...]] = ("ddim", "lcm", "tcd")

    name: str
    sampler: str  # one of SAMPLERS
    steps: int
    guidance_scale: float = 1.0
    adapter: bool = False
    spacing: str = "trailing"  # of DDIM
    gamma: float = 0.0  # of tcd: 0 is deterministic
    eta: float = 0.0  # of DDIM: 0 is deterministic, 1 draws as much fresh noise as DDPM

    def __post_init__(self):
        if self.sampler not in self.SAMPLERS:
            names = " or ".join(map(repr, self.SAMPLERS))
            raise ValueError(f"Sampler {self.sampler!r} is unknown: choose {names}.")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int):
            raise ValueError(f"The number of steps must be an integer, not {self.steps!r}.")
        if not 0 <= self.guidance_scale <= 100:  # also catches nan
            raise ValueError(f"The guidance scale must lie in 0..100, not {self.guidance_scale}.")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must lie in 0..1, not {self.gamma}.")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in 0..1, not {self.eta}.")
        if self.sampler in ("lcm", "tcd"):
            lcm_timesteps(self.steps)
        else:
            ddim_timesteps(self.steps, spacing=self.spacing)

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1.0

    @property
    def evaluations(self) -> int:
        """How often the UNet looks at a picture."""
        return self.steps * (2 if self.guided else 1)

    def sample(
        self,
        predict: Predict,
        noise: Tensor,
        schedule: NoiseSchedule,
        fresh: Sequence[torch.Generator],
    ) -> Iterator[Sampled]:
        """Denoise (B, C, h, w) and yield after each network call. fresh: per picture, the source of further noise."""
        options = {"spacing": self.spacing, "eta": self.eta, "gamma": self.gamma, "generators": fresh}
        return sample(predict, noise, schedule, self.steps, self.sampler, **options)


def teacher_method(
    steps: int = 50,
    guidance_scale: float = EMBEDDED_GUIDANCE,
    spacing: str = "",
    eta: float = 0.0,
) -> Method:
    """DDIM with guidance. The spacing is the better one of its number of steps unless it is given."""
    chosen = spacing or ("trailing" if steps < TRAILING_BELOW else "leading")
    name = f"teacher-{steps}" + (f"-{spacing}" if spacing else "") + (f"-eta{eta:g}" if eta else "")
    return Method(name, "ddim", steps, guidance_scale, spacing=chosen, eta=eta)


def _few_steps(kind: str, steps: int, guidance_scale: float, gamma: float | None) -> Method:
    name = f"{kind}-{steps}"
    if gamma is not None:
        name += f"-gamma{gamma:g}" if gamma else "-deterministic"
    if guidance_scale != 1.0:
        name += f"-w{guidance_scale - 1:g}"
    sampler, gamma = ("lcm", 0.0) if gamma is None else ("tcd", gamma)
    return Method(name, sampler, steps, guidance_scale, kind == "student", gamma=gamma)


def student_method(steps: int = 4, guidance_scale: float = 1.0, gamma: float | None = None) -> Method:
    """Few steps with the adapter: the consistency sampler, or with a gamma in 0..1 TCD's (0 is deterministic).

    The adapter has learnt guidance; a guidance_scale other than 1 guides it once more and doubles the work. LCM's paper
    counts w = guidance_scale - 1.
    """
    return _few_steps("student", steps, guidance_scale, gamma)


def untrained_method(steps: int = 4, guidance_scale: float = 1.0, gamma: float | None = None) -> Method:
    """The student's sampler on the teacher itself: the student before its first training step."""
    return _few_steps("untrained", steps, guidance_scale, gamma)


def parse_method(name: str, guidance_scale: float = EMBEDDED_GUIDANCE) -> Method:
    """teacher-50, teacher-50-eta1, teacher-4-leading, student-4, student-4-deterministic,
    student-4-gamma0.3, student-4-w0.5, untrained-4 -> Method. guidance_scale is the teacher's; w is the student's, less
    1. Raises ValueError.
    """
    found = re.fullmatch(
        r"(teacher|student|untrained)-(\d+)"
        r"(?:-(?:(leading|trailing)|(deterministic)|gamma(\d*\.?\d+)))?(?:-w(-?\d*\.?\d+))?"
        r"(?:-eta(\d*\.?\d+))?",
        name,
    )
    teacher = found is not None and found[1] == "teacher"
    if found is None or (any(found.group(4, 5, 6)) if teacher else any(found.group(3, 7))):
        raise ValueError(
            f"Method {name!r} is unknown: say teacher-N, student-N or untrained-N with N steps, "
            "as in teacher-50 or student-4."
        )
    steps = int(found[2])
    if teacher:
        return teacher_method(steps, guidance_scale, found[3] or "", float(found[7] or 0))
    gamma = 0.0 if found[4] else None if found[5] is None else float(found[5])
    return _few_steps(found[1], steps, 1.0 + float(found[6] or 0), gamma)


def reference_of(methods: Sequence[Method | str]) -> str | None:
    """The teacher with most steps of plain deterministic DDIM: what few-step methods are held against."""
    ddim = [m for m in methods if isinstance(m, Method) and m.sampler == "ddim" and not m.eta]
    teachers = [m for m in ddim if m.name.startswith("teacher")]
    return max(teachers, key=lambda m: m.steps).name if teachers else None


@dataclass(frozen=True)
class SolverMethod(Method):
    """The guided teacher under one of diffusers' fast solvers, the rivals that need no training.

    dpm++: DPM-Solver++(2M), arXiv:2211.01095; unipc: UniPC of order 2, arXiv:2302.04867. Both look at the network once
    a step (twice with guidance), as DDIM does, and keep what they saw before.
    """

    SAMPLERS: ClassVar[tuple[str, ...]] = ("dpm++", "unipc")

    def scheduler(self, schedule: NoiseSchedule) -> Any:
        """diffusers' object on our schedule. Raises ValueError when diffusers is not installed."""
        try:
            from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
        except ImportError as error:
            raise ValueError(
                f"{self.name} uses diffusers, which is not installed: install anytext_lcm[notebooks], "
                "or leave this method out."
            ) from error
        abar = schedule.alphas_cumprod.double().cpu().numpy()
        settings = {
            "trained_betas": 1 - abar / np.concatenate([[1.0], abar[:-1]]),
            "solver_order": 2,
            "timestep_spacing": self.spacing,
            "steps_offset": 1,
            "final_sigmas_type": "zero",
        }
        kind = DPMSolverMultistepScheduler if self.sampler == "dpm++" else UniPCMultistepScheduler
        scheduler = kind(**settings)
        scheduler.set_timesteps(self.steps)
        return scheduler

    @torch.no_grad()
    def sample(
        self,
        predict: Predict,
        noise: Tensor,
        schedule: NoiseSchedule,
        fresh: Sequence[torch.Generator],
    ) -> Iterator[Sampled]:
        scheduler = self.scheduler(schedule)
        x = noise.float()
        for timestep in scheduler.timesteps:
            t = timestep.long().to(x.device).expand(len(x))
            eps = predict(x, t)
            x0 = schedule.x0_from_eps(x, eps, t)
            x = scheduler.step(eps, timestep, x).prev_sample
            yield Sampled(int(timestep), x0, x)


def solver_method(steps: int, sampler: str, guidance_scale: float = EMBEDDED_GUIDANCE) -> SolverMethod:
    """teacher-N-dpm++ or teacher-N-unipc. Raises ValueError for another sampler."""
    spacing = "trailing" if steps < TRAILING_BELOW else "leading"
    return SolverMethod(f"teacher-{steps}-{sampler}", sampler, steps, guidance_scale, spacing=spacing)


def parse_any(name: str, guidance_scale: float = EMBEDDED_GUIDANCE) -> Method:
    """As `parse_method`, and teacher-N-dpm++ and teacher-N-unipc. Raises ValueError."""
    found = re.fullmatch(r"teacher-(\d+)-(dpm\+\+|unipc)", name)
    if found is None:
        return parse_method(name, guidance_scale)
    return solver_method(int(found[1]), found[2], guidance_scale)
