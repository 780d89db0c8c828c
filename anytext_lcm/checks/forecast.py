"""What a training will take: FLOPs of its step by part, hours and cost at a given rate, space on the disk.

An estimate: the FLOPs of matrix products and convolutions, counted on shapes as in `timing/by_part.py`. How many of
them a card does in a second of training has to be measured there, or guessed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anytext_lcm.model.networks import ASSETS, find_config

if TYPE_CHECKING:
    from anytext_lcm.model.anytext2 import AnyText2
    from anytext_lcm.training.settings import TrainSettings

COUNTED_BATCH = 12  # what pictures of a batch share, as the empty caption, is spread over so many at most


def network_on_shapes(config: str) -> "AnyText2":
    """The network on the meta device.

    The embedded tokenizer stands in for CLIP's, which may not be there yet.
    """
    from omegaconf import OmegaConf

    from anytext_lcm.model.anytext2 import AnyText2

    yaml = OmegaConf.load(find_config(config))
    yaml.model.params.cond_stage_config.params.version = str(ASSETS / "tokenizer")
    return AnyText2.from_config(yaml, device="meta").requires_grad_(False)


def encoder_flops(model: "AnyText2", side: int) -> float:
    """FLOPs of the autoencoder's encoder for one picture of `side` pixels."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.first_stage_model.encode(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops()


def flops_per_picture(settings: "TrainSettings") -> dict[str, float]:
    """FLOPs of one picture of a training step by part; with stored latents the autoencoder is left out.

    The recognisers are left out, as in `timing.measure.count_on_shapes`: they look at the values of pixels.
    """
    from anytext_lcm.lcm.schedule import NoiseSchedule
    from anytext_lcm.timing.measure import count
    from anytext_lcm.timing.variants import Options, Training, Variant, adapt, example_batch

    side, batch = settings.picture_size, min(settings.train_batch_size, COUNTED_BATCH)
    options = Options(settings.config, None, "meta", "no", batch, settings.lora_rank, 1, 1, side)
    model = network_on_shapes(settings.config)
    encoder = encoder_flops(model, side)
    variant = Variant(False, settings.lora_targets, bool(settings.gradient_checkpointing))
    adapt(model, options, variant.targets)
    model._buffers["alphas_cumprod"] = NoiseSchedule.scaled_linear().alphas_cumprod  # read as numbers
    model.embedding_manager.line_embeddings = lambda *_, **__: None
    model.parameterization = "eps"  # to convert v takes no product of matrices, and reads the schedule again
    parts = count(Training(variant, model, None, example_batch(options), options))
    parts.pop("autoencoder", None)
    return parts if settings.latents_folder else parts | {"autoencoder": encoder}


@dataclass(frozen=True)
class Forecast:
    """What a training computes. per_picture: FLOPs; pictures: of one update, over all processes."""

    per_picture: float
    pictures: int
    updates: int
    processes: int

    @property
    def total(self) -> float:
        """FLOPs of the whole run."""
        return self.per_picture * self.pictures * self.updates

    def hours(self, teraflops: float) -> float:
        """Hours on the wall when each process does `teraflops` * 10^12 FLOPs a second."""
        return self.total / (teraflops * 1e12 * self.processes) / 3600

    def lines(self, teraflops: float | None, price: float | None) -> dict[str, str]:
        """Sentences by subject. teraflops: sustained by each process; price: of an hour of one process."""
        work = (
            f"{scaled(self.per_picture)}FLOP a picture, {scaled(self.per_picture * self.pictures)}FLOP an update of "
            f"{self.pictures} pictures, {scaled(self.total)}FLOP in {self.updates:,} updates"
        )
        if teraflops is None:
            time = duration(self.total / 1e12 / self.processes)
            time += " divided by the TFLOP/s that a process sustains (--tflops)"
            return {"work": work, "time": time}
        hours = self.hours(teraflops)
        spent = f"{hours:,.1f} hours" if hours < 100 else f"{hours / 24:,.1f} days"
        found = {"work": work, "time": f"about {spent} with {self.processes} x {teraflops:g} TFLOP/s: an estimate"}
        if price is not None:
            found["cost"] = f"about {hours * self.processes * price:,.0f} at {price:g} an hour and process: an estimate"
        return found


def scaled(count: float) -> str:
    """A count with three digits and a prefix: 2.51 T."""
    count = float(f"{count:.3g}")  # 999,700 is 1 M
    power = min(6, max(0, (len(f"{count:.0f}") - 1) // 3))
    return f"{count / 1000**power:.3g} {' kMGTPE'[power].strip()}"


def duration(seconds: float) -> str:
    """A time with three digits or more: 0.231 seconds, 12 minutes, 4,446 hours."""
    for unit, length in (("seconds", 1), ("minutes", 60)):
        if seconds < 100 * length:
            return f"{seconds / length:.3g} {unit}"
    hours = seconds / 3600
    return f"{hours:,.0f} hours" if hours >= 100 else f"{hours:.3g} hours"


def forecast(settings: "TrainSettings", processes: int) -> Forecast:
    """Count the work of a run on shapes; takes some seconds at full size."""
    pictures = settings.train_batch_size * settings.gradient_accumulation_steps * processes
    per_picture = sum(flops_per_picture(settings).values())
    return Forecast(per_picture, pictures, settings.max_train_steps, processes)


def checkpoint_bytes(settings: "TrainSettings", sizes: Mapping[str, float]) -> float:
    """Bytes of a run's checkpoints: adapter, two moments and maybe the average in fp32.

    sizes: as `memory.estimate` returns them.
    """
    weights = sizes["optimiser"] * 2**30 / 2
    one = weights * (4 if settings.ema_decay else 3)
    written = -(-settings.max_train_steps // settings.checkpointing_steps)
    return one * min(settings.checkpoints_total_limit or written, written)


def latent_bytes(model: "AnyText2", side: int, pictures: int) -> float:
    """Bytes of stored latents in half precision: mean and log variance of each picture."""
    return 2 * 2 * model.latent_channels * (side // 8) ** 2 * pictures
