"""The machine: GPUs, precision, memory, disk, and what fits a card of 24, 16 or 12 GB."""

import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from anytext_lcm.checks.forecast import scaled
from anytext_lcm.checks.found import Findings

if TYPE_CHECKING:
    from anytext_lcm.training.settings import TrainSettings

CARDS = (24, 16, 12)  # GiB
MOST = 4096  # pictures of a batch that the settings allow
RESERVED = 0.5  # GiB of a card that the driver and a display take
LOADING = 1.1  # memory while weights are loaded, in units of their size
GIB = 2**30


def look_at_gpus(found: Findings) -> bool:
    """Say which GPUs there are; returns whether one is used."""
    import torch

    from anytext_lcm.training.fitting import on_gpu

    if not on_gpu():
        found.note("GPU", "none: everything runs on the CPU")
        return False
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        found.ok("GPU", f"{number}: {about.name}, {about.total_memory / GIB:.1f} GiB")
    return True


def look_at_precision(found: Findings, settings: "TrainSettings") -> None:
    """Compare the precision with what the devices can do, and say which devices there are."""
    import torch

    wanted, count = settings.mixed_precision, torch.cuda.device_count()
    if not look_at_gpus(found):
        if wanted == "fp16":
            found.missing("precision", "mixed_precision fp16 needs a GPU; use bf16 or no on a CPU.")
        return
    if settings.num_processes and settings.num_processes > count:
        found.note("GPU", f"{settings.num_processes} processes want as many GPUs, this machine has {count}")
    if wanted == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        found.missing("precision", "These GPUs do not compute in bf16: use --mixed_precision fp16.")


def look_at_memory(found: Findings, weights: int) -> None:
    """Compare what loading the weights takes with the memory that is free. weights: bytes, of all processes."""
    import psutil

    need, free = LOADING * weights, psutil.virtual_memory().available
    words = f"loading the weights takes about {scaled(need)}B, {scaled(free)}B are free"
    (found.ok if need <= free else found.note)("memory", words)


def look_at_disk(found: Findings, folder: str, need: float, what: str) -> None:
    """Compare the space that a folder needs with what its disk has. need: bytes; what: of what."""
    there = next((parent for parent in (Path(folder), *Path(folder).absolute().parents) if parent.is_dir()), Path("."))
    free = shutil.disk_usage(there).free
    words = f"{folder}: {scaled(need)}B for {what}, {scaled(free)}B are free"
    if not os.access(there, os.W_OK):
        found.missing("disk", f"Nothing can be written to {there}; name another folder.")
    else:
        (found.ok if need <= free else found.missing)("disk", words)


def cards() -> dict[str, float]:
    """GiB that a training can use, by card: those that are there, or CARDS."""
    import torch

    if torch.cuda.is_available():
        about = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        return {found.name: found.total_memory / GIB - RESERVED for found in about}
    return {f"{size} GB": size - RESERVED for size in CARDS}


def largest_batch(settings: "TrainSettings", usable: float) -> int:
    """Pictures at once that fit into `usable` GiB by `memory.estimate`; 0 when not even one does.

    What is kept for each picture is the same for all, so the memory is a straight line over the batch.
    """
    from anytext_lcm.training.memory import estimate

    one, two = (estimate(replace(settings, train_batch_size=batch))["total"] for batch in (1, 2))
    return min(MOST, max(0, 1 + math.floor((usable - one) / (two - one))))


def verdicts(settings: "TrainSettings") -> list[str]:
    """For each card a sentence: the batch that fits without and with gradient checkpointing, and whether this run does.

    In half precision, as on a GPU, where the settings leave it open.
    """
    settings = replace(settings, mixed_precision=settings.mixed_precision or "fp16")
    wanted, lines = settings.train_batch_size, []
    for card, usable in cards().items():
        plain, saving = (largest_batch(replace(settings, gradient_checkpointing=on), usable) for on in (False, True))
        if wanted <= plain:
            verdict = f"batch {wanted} fits"
        elif wanted <= saving:
            verdict = f"batch {wanted} fits with --gradient_checkpointing"
        elif saving:
            verdict = f"batch {wanted} does not fit: use at most {saving}, with --gradient_checkpointing"
        else:
            verdict = "no batch fits"
        lines.append(
            f"{card}: {verdict} (largest batch in {settings.mixed_precision}: {plain}, {saving} with checkpointing)"
        )
    return lines
