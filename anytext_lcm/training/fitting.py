"""Defaults of a run that depend on the machine: on a GPU workers, precision, checkpointing, a font for Chinese lines.

On a CPU nothing is decided. What was given stays.
"""

import os
from dataclasses import replace
from typing import Any

import torch

from anytext_lcm.data.fonts import PLAIN_FONT, find_fonts
from anytext_lcm.drawing.cores import available_cores
from anytext_lcm.training import memory
from anytext_lcm.training.settings import TrainSettings

WORKERS = 4  # for each GPU
RESERVED = 0.5 * memory.GIB  # of a GPU, for driver and display
CHINESE = "中文字體"  # simplified and traditional characters that a font for Chinese lines holds


def on_gpu() -> bool:
    """Whether a training here runs on a GPU: there is one, and accelerate was not sent to the CPU."""
    sent_to_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return torch.cuda.is_available() and not sent_to_cpu


def fit_to_machine(settings: TrainSettings) -> tuple[TrainSettings, list[str]]:
    """Fill in what the machine decides where the settings leave it open. Returns also a sentence for each decision."""
    if not on_gpu():
        return replace(settings, num_workers=settings.num_workers or 0), []
    chosen: dict[str, Any] = {}
    if settings.num_workers is None:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        chosen["num_workers"] = max(1, min(WORKERS, available_cores() // here - 1))
    if settings.mixed_precision is None and os.environ.get("ACCELERATE_MIXED_PRECISION", "no") == "no":
        chosen["mixed_precision"] = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if settings.fonts is None and settings.data_list and (found := find_fonts(CHINESE)):
        chosen["fonts"] = (PLAIN_FONT, str(found[0]))
    settings = replace(settings, **chosen)
    if settings.gradient_checkpointing is None:
        usable = torch.cuda.get_device_properties(0).total_memory - RESERVED
        chosen["gradient_checkpointing"] = memory.estimate(settings)["total"] * memory.GIB > usable
        settings = replace(settings, gradient_checkpointing=chosen["gradient_checkpointing"])
    return settings, [f"--{name} {_flag(value)} was chosen for this machine." for name, value in chosen.items()]


def _flag(value: Any) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)
