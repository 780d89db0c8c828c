"""All checks of a training in one report: what is there, what is missing, what it will take."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytext_lcm.checks.data import look_at_data, look_at_latents
from anytext_lcm.checks.forecast import checkpoint_bytes, forecast, latent_bytes, scaled
from anytext_lcm.checks.found import Findings
from anytext_lcm.checks.machine import look_at_disk, look_at_memory, look_at_precision, verdicts
from anytext_lcm.checks.network import look_at_network
from anytext_lcm.files import check_writable

if TYPE_CHECKING:
    from anytext_lcm.model.anytext2 import AnyText2
    from anytext_lcm.training.settings import TrainSettings


def look_at_inputs(
    settings: "TrainSettings", latents_to: str | None = None, data_needed: bool = True, ask_disk: bool = False
) -> Findings:
    """Look at all that a training reads, and at the machine it runs on; takes seconds and loads nothing.

    latents_to: the folder that `cache_latents` is to fill, in place of a training. data_needed: whether it is a fault
    when the settings name no data. ask_disk: whether latents_to must have room for all; the command itself asks later,
    when it knows what is there already.
    """
    found = Findings()
    model = look_at_network(found, settings.config, settings.teacher_ckpt, "--teacher_ckpt")
    with found.looking_at("settings"):
        settings.check_together()
    records = look_at_data(found, settings, data_needed)
    look_at_precision(found, settings)
    if model is not None:
        look_at_memory(found, 4 * sum(p.numel() for p in model.parameters()) * (settings.num_processes or 1))
        if latents_to is not None and records is not None:
            need = latent_bytes(model, settings.picture_size, records)
            found.note("latents", f"{scaled(need)}B for {records:,} pictures in half precision")
            if ask_disk:
                look_at_disk(found, latents_to, need, f"latents of {records:,} pictures")
    if latents_to is None:
        if model is not None:
            look_at_targets(found, settings, model)
        look_at_latents(found, settings.latents_folder, records, settings.validation_share)
    return found


def look_at_run(
    settings: "TrainSettings",
    teraflops: float | None = None,
    price: float | None = None,
    data_needed: bool = True,
    folder_named: bool = True,
) -> Findings:
    """Look at the inputs and the run's folder, and count memory, disk and time of the run.

    folder_named: whether output_dir is where the run will go, not a stand-in. The others are as in `look_at_inputs` and
    `Forecast`.
    """
    found = look_at_inputs(settings, data_needed=data_needed)
    if folder_named:
        look_at_folder(found, settings)
    if any(finding.subject == "network" and finding.state == "missing" for finding in found.found):
        return found
    with found.looking_at("estimate"):
        add_estimate(found, settings, teraflops, price)
    return found


def look_at_targets(found: Findings, settings: "TrainSettings", model: "AnyText2") -> None:
    """Look for the layers that the adapter will change. model: on the meta device."""
    from anytext_lcm.adapter.targets import resolve_targets

    with found.looking_at("adapter"):
        layers = resolve_targets(model, settings.lora_targets)
        found.ok("adapter", f"rank {settings.lora_rank} at {len(layers)} layers")


def look_at_folder(found: Findings, settings: "TrainSettings") -> None:
    """Look for the checkpoint to resume from, and for those that the run would write again."""
    from anytext_lcm.training.checkpoints import find_resume

    with found.looking_at("output"):
        resume = find_resume(settings)
        check_writable(Path(settings.output_dir) / "run.yaml")
        found.ok("output", f"goes on from {resume}" if resume else f"{settings.output_dir}: a run from the start")


def add_estimate(found: Findings, settings: "TrainSettings", teraflops: float | None, price: float | None) -> None:
    """Add memory, and what `add_forecast` adds. Raises ValueError for settings that cannot be."""
    from anytext_lcm.training.memory import estimate

    sizes = estimate(half := replace(settings, mixed_precision=settings.mixed_precision or "fp16"))
    words = f"{sizes['total']:.1f} GiB of each GPU, batch {settings.train_batch_size}, {half.mixed_precision}"
    found.note("training", words + (", with checkpointing" if settings.gradient_checkpointing else ""))
    add_forecast(found, settings, sizes, teraflops, price)


def add_forecast(
    found: Findings,
    settings: "TrainSettings",
    sizes: Mapping[str, float],
    teraflops: float | None,
    price: float | None,
) -> None:
    """Add what fits which card, disk, and time. sizes: as `memory.estimate` returns them."""
    for verdict in verdicts(settings):
        found.note("card", verdict)
    if settings.output_dir:
        look_at_disk(found, settings.output_dir, checkpoint_bytes(settings, sizes), "checkpoints")
    for subject, words in forecast(settings, settings.num_processes or 1).lines(teraflops, price).items():
        found.note(subject, words)


def require_inputs(settings: Mapping[str, Any], latents_to: str | None = None) -> None:
    """Raise Missing unless all is there that a training reads, or `cache_latents`, which fills the folder latents_to.

    settings: fields of TrainSettings. Raises ValueError for the first of them that is wrong.
    """
    from anytext_lcm.training.settings import TrainSettings

    TrainSettings(**settings).check_values()
    gone = None
    try:
        known = TrainSettings.from_dict(settings)
    except FileNotFoundError as error:  # there may be more
        gone, known = error, TrainSettings(**settings)
    look_at_inputs(known, latents_to).require()
    if gone is not None:
        raise gone


def tell(found: Findings) -> str:
    """Print what is there; returns a closing sentence. Raises Missing with a sentence for each thing that is not."""
    print(found.table(), flush=True)
    found.require()
    return "Nothing is missing."
