"""The variants of a training step that are timed, and how each is built."""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.optim import AdamW

from anytext_lcm.adapter.lora import adapter_state, attach
from anytext_lcm.data.batch import collate
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.loading import load_chosen
from anytext_lcm.model.networks import ASSETS, defaults_for
from anytext_lcm.timing import PARTS
from anytext_lcm.timing.public_script import reference_step
from anytext_lcm.training.data_order import seeded_generator
from anytext_lcm.training.settings import PRECISIONS
from anytext_lcm.training.step import DistillStep, new_optimizer

DECODER = ("unet_decoder",)  # groups of adapted layers


@dataclass(frozen=True)
class Variant:
    """One way of training that is timed."""

    reference: bool  # the step as public scripts write it, instead of ours
    targets: tuple[str, ...] | None = None  # groups of adapted layers, None for the package's default
    checkpointing: bool = False  # compute activations again in the backward pass
    latents: bool = False  # the picture's posterior is known before the step, as `cache_latents` stores it


PAIRS = {  # what both sides of a pair do alike; only these are divided by each other
    "": {},
    "checkpointed": {"checkpointing": True},
    "latents stored": {"latents": True},
    "latents stored, checkpointed": {"latents": True, "checkpointing": True},
    "decoder only": {"targets": DECODER},
}
VARIANTS = {
    f"{side}{', ' if pair else ''}{pair}": Variant(side == "reference", **alike)
    for pair, alike in PAIRS.items()
    for side in ("reference", "ours")
}


ADDED = {  # what a switch adds to our own step: one of ours over another
    "ours, latents stored": "ours",
    "ours, checkpointed": "ours",
    "ours, latents stored, checkpointed": "ours, latents stored",
    "ours, decoder only": "ours",
}


def other_side(name: str) -> str:
    """The name of the variant that one of ours is compared with."""
    return name.replace("ours", "reference", 1)


MEASURED = (
    "samples_per_second",
    "slowest_and_fastest",
    "core_seconds",
    "peak_gib",
    "flops",
    "seconds_by_part",
    "profile",
)


@dataclass(frozen=True)
class Options:
    """What is measured, and how often."""

    config: str
    ckpt: str | None
    device: str  # cpu, cuda, or meta for shapes without numbers
    precision: str  # a key of PRECISIONS
    batch: int  # pictures at once
    rank: int  # of the adapter
    repeats: int  # timed turns of each step; half as many of the samplers
    steps: tuple[int, ...]  # of upstream's and the teacher's samplers
    side: int  # pixels of a picture
    parts: tuple[str, ...] = PARTS  # of the report

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, PRECISIONS[self.precision])

    @property
    def real(self) -> bool:
        """Whether there are weights to load."""
        return bool(self.ckpt) or defaults_for(self.config).checkpoint is not None

    @property
    def guidance(self) -> tuple[float, str]:
        """Guidance scale and negative prompt, which is empty for random weights."""
        # There the embedded tokenizer would split the full-size network's prompt into several times as many tokens.
        network = defaults_for(self.config)
        return network.guidance_scale, network.negative_prompt if self.real else ""


def build(options: Options) -> AnyText2:
    """The bare teacher in fp32, its weights laid out as public scripts leave them.

    Without a checkpoint its weights are random, none of them all zero, and its tokenizer is the embedded one, since
    CLIP's vocabulary is not in the repository.
    """
    if options.real:
        model = load_chosen(options.config, options.ckpt, options.device, "fp32")
        return model.to(memory_format=torch.contiguous_format)
    yaml = OmegaConf.load(options.config)
    yaml.model.params.cond_stage_config.params.version = str(ASSETS / "tokenizer")
    with torch.random.fork_rng(devices=[] if options.device in ("cpu", "meta") else None):
        torch.manual_seed(0)
        model = AnyText2.from_config(yaml, device=options.device)
        if options.device != "meta":
            for parameter in model.parameters():
                if not parameter.detach().any():
                    torch.nn.init.normal_(parameter, std=0.02)
    return model.requires_grad_(False)


def adapt(model: AnyText2, options: Options, targets: Sequence[str] | None) -> AnyText2:
    """Attach an adapter whose B is not zero, in place, so that student and teacher differ."""
    device = model.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        attach(model, options.rank, options.rank, targets)
        for key, parameter in adapter_state(model).items():
            if ".lora_B." in key:
                torch.nn.init.normal_(parameter, std=0.01)
    return model.to(device)  # the adapter was made on the CPU


def example_batch(options: Options) -> dict[str, Any]:
    """A collated batch of the mock data set on the device, for text-to-image as in AnyText2's own training."""
    dataset = MockDataset(4, image_size=options.side, edit_share=0.0)
    batch = collate([dataset[i % 4] for i in range(options.batch)])
    device = "cpu" if options.device == "meta" else options.device
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


class Training:
    """A variant with its networks and its batch. A call is a whole update."""

    def __init__(
        self, variant: Variant, model: AnyText2, teacher: AnyText2 | None, batch: dict[str, Any], options: Options
    ):
        """model: with its adapter; teacher: the second copy, which the reference alone needs."""
        self.variant, self.model, self.teacher, self.batch = variant, model, teacher, batch
        self.options, self.step = options, None
        if not variant.reference:
            guidance, negative = options.guidance
            self.step = DistillStep(model, guidance_scale=guidance, negative_prompt=negative).eval()
            model.to(memory_format=torch.channels_last)  # as `load_teacher` lays it out
            self.step.blank(batch)  # encoded once per run, so not in the measured step
        if variant.latents:
            with torch.no_grad():  # what `cache_latents` writes once per data set
                moments = model.first_stage_model.encode(batch["img"].to(model.device, model.dtype))
            self.batch = batch | {"latent_moments": torch.cat(moments, dim=1)}
        self.networks = [model] if teacher is None else [model, teacher]
        self.parameters = list(adapter_state(model).values())
        self.optimizer = self._optimizer()
        fp16 = options.precision == "fp16" and options.device == "cuda"
        self.scaler = torch.amp.GradScaler(options.device, enabled=fp16) if fp16 else None
        self.updates = 0

    def _optimizer(self) -> AdamW | None:
        """As public scripts or this package make it; shapes alone are not updated."""
        if self.options.device == "meta":
            return None
        return (
            AdamW(self.parameters, 1e-6, weight_decay=0.0)
            if self.step is None
            else new_optimizer(self.parameters, 1e-6)
        )

    def forget_gradient(self) -> None:
        """Drop what a backward pass left behind."""
        for parameter in self.parameters:
            parameter.grad = None

    def loss(self, generator: torch.Generator | None) -> Tensor:
        """The loss () of one step in fp32."""
        for trunk in (self.model.model.diffusion_model, self.model.control_model):
            trunk.gradient_checkpointing = self.variant.checkpointing
        if self.step is not None:
            return self.step(self.batch, generator).loss
        return reference_step(self.model, self.teacher, self.batch, generator, *self.options.guidance)

    def forward(self, generator: torch.Generator | None) -> Tensor:
        """`loss` in the precision of the run."""
        if self.options.precision == "no":
            return self.loss(generator)
        with torch.autocast(self.options.device, self.options.dtype):
            return self.loss(generator)

    def __call__(self, around: Callable[[str], Any] = nullcontext) -> None:
        """Forward, backward, clip, AdamW. around("backward") is a context for the backward pass."""
        loss = self.forward(seeded_generator(0, self.updates))
        with around("backward"):
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.forget_gradient()
        self.updates += 1

    def loss_and_gradient(self) -> tuple[float, np.ndarray]:
        """Loss and gradient of the whole adapter, one vector (N,) float64, of one fixed step in fp32."""
        self.forget_gradient()
        loss = self.loss(seeded_generator(7))
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in self.parameters])
        self.forget_gradient()
        return float(loss.detach()), gradient.double().cpu().numpy()


def build_training(variant: Variant, options: Options, batch: dict[str, Any]) -> Training:
    """A variant with networks of its own, in the precision of the run; the adapter is fp32."""
    model = build(options).to(options.dtype)
    teacher = copy.deepcopy(model) if variant.reference else None
    return Training(variant, adapt(model, options, variant.targets), teacher, batch, options)
