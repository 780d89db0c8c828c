"""From a prompt and lines of text to a picture, by the teacher or by its few-step student.

A picture depends on the weights, the prompt, the method and its own seed, and on nothing else: not on what
else is in the batch, and not on how many threads there are. All random numbers of a picture come from its
seed, in streams of their own, so that methods with the same seeds start from the same noise.

Imports torch, numpy, OmegaConf and the rooms data, model, lcm and lora.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from anytext_lcm.adapter.lora import Adapter, adapter_layers, adapter_off
from anytext_lcm.data.fonts import PLAIN_FONT
from anytext_lcm.drawing.cores import Clock, spread_over_cores
from anytext_lcm.drawing.methods import Method
from anytext_lcm.drawing.noise import FRESH, MASKED, initial_noise, picture_generator
from anytext_lcm.drawing.prompts import Prompt, prompts_to_batch
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.lcm.steps import guide
from anytext_lcm.model.anytext2 import AnyText2, Conditioning, is_blank
from anytext_lcm.model.networks import Defaults

BATCH_SIZE = 8  # pictures of one network call; fixed, because rounding depends on it


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


@dataclass(frozen=True)
class Prepared:
    """All that methods share: conditioning of both branches, and a seed for each picture."""

    conditional: Conditioning
    unconditional: Conditioning
    seeds: tuple[int, ...]
    latent_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, rows: slice) -> "Prepared":
        return replace(
            self,
            conditional=self.conditional[rows],
            unconditional=self.unconditional[rows],
            seeds=self.seeds[rows],
        )


@dataclass(frozen=True)
class Drawing:
    """Pictures and what they took."""

    images: np.ndarray  # (B, H, W, 3) uint8 RGB
    latents: Tensor  # (B, C, h, w) fp32, scaled, on the CPU
    clock: Clock  # phases "denoise" and "decode"
    evaluations: int  # of the UNet, for one picture


def _masked_latents(
    model: AnyText2, masked: Tensor, seeds: Sequence[int], blank: tuple[Tensor, Tensor] | None
) -> Tensor:
    """masked_img (B, 3, H, W) -> latents as `AnyText2.encode` draws them, with each picture's own noise."""
    mean, logvar = model.masked_moments(masked, blank)
    noise = torch.stack([torch.randn(mean.shape[1:], generator=picture_generator(seed, MASKED)) for seed in seeds])
    return model.scale_factor * (mean + torch.exp(0.5 * logvar) * noise.to(mean))


def _pick(batch: dict[str, Any], places: list[int]) -> dict[str, Any]:
    """Some pictures of a batch, in this order."""
    return {k: v[places] if isinstance(v, Tensor) else [v[place] for place in places] for k, v in batch.items()}


def prepare(model: AnyText2, batch: dict[str, Any], seeds: Sequence[int], negative_prompt: str = "") -> Prepared:
    """batch (see `prompts_to_batch`, or of a data set) and a seed for each picture -> Prepared.

    The texts, the recognisers and the masked picture are encoded here, once for all methods: no adapter
    reaches them. Raises ValueError for another number of seeds than of pictures.
    """
    count = len(batch["img_caption"])
    if len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds for {count} pictures: give one each.")
    masked = batch["masked_img"]
    blank = model.blank_moments(*masked.shape[-2:]) if bool(is_blank(masked).any()) else None

    def encode(rows: slice) -> tuple[Conditioning, Conditioning]:
        part = {name: value[rows] for name, value in batch.items()}
        part["masked_latents"] = _masked_latents(model, part["masked_img"], seeds[rows], blank)
        # By chunks: padded to a longer one, a caption would be told with end tokens that it does not have alone.
        places: dict[int, list[int]] = {}
        for place, caption in enumerate(part["img_caption"]):
            chunks = model.cond_stage_model.chunk(model.tokenizer.image_ids([caption]).to(model.device)).shape[1]
            places.setdefault(chunks, []).append(place)
        groups = list(places.values())
        conditional = Conditioning.cat([model.condition(_pick(part, group)) for group in groups])
        conditional = conditional[np.argsort([place for group in groups for place in group])]
        return conditional, model.uncondition(conditional, negative_prompt)

    parts = spread_over_cores(encode, _chunks(count, BATCH_SIZE), model.device)
    conditional, unconditional = (Conditioning.cat(list(branch)) for branch in zip(*parts, strict=True))
    return Prepared(conditional, unconditional, tuple(seeds), tuple(conditional.masked_latents.shape[1:]))


def predictor(model: AnyText2, prepared: Prepared, guidance_scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    """(latents (B, C, h, w), timesteps int64 (B,)) -> guided eps (B, C, h, w) fp32.

    WriteNet's residuals are computed here, once a branch; both branches go through the networks as one
    batch. The adapter has to be on or off from here on.
    """
    if guidance_scale == 1.0:
        conditioning = prepared.conditional
        control = model.control(conditioning)
        return lambda x, t: model.predict_noise(x, t, conditioning, control)

    conditioning = Conditioning.cat([prepared.conditional, prepared.unconditional])
    control = model.control(conditioning)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        both = model.predict_noise(torch.cat([x, x]), torch.cat([t, t]), conditioning, control)
        return guide(*both.chunk(2), guidance_scale)

    return predict


def adapter_switch(model: AnyText2, method: Method, merges: bool = False) -> AbstractContextManager:
    """Inside, the adapter is as the method needs it: off, or on, and then merged into the weights if asked.

    Raises ValueError for a method that needs an adapter when the model has none.
    """
    if not method.adapter:
        return adapter_off(model)
    if not adapter_layers(model):
        raise ValueError(f"{method.name} needs an adapter and the model has none; load one first.")
    return Adapter.of(model).merged() if merges else nullcontext()


def denoise(
    model: AnyText2, prepared: Prepared, method: Method, progress: Callable[[int], None] | None = None
) -> Tensor:
    """One batch from noise to latents (B, C, h, w), fp32. progress gets the number of pictures after each step.

    Raises ValueError for a method that needs an adapter when the model has none.
    """
    schedule = NoiseSchedule(model.alphas_cumprod)
    noise = initial_noise(prepared.seeds, prepared.latent_shape).to(model.device)
    with adapter_switch(model, method):
        predict = predictor(model, prepared, method.guidance_scale)
        fresh = [picture_generator(seed, FRESH) for seed in prepared.seeds]
        for step in method.sample(predict, noise, schedule, fresh):
            latents = step.latents
            if progress is not None:
                progress(len(latents))
    return latents


def to_uint8(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) about -1..1 -> (B, H, W, 3) uint8. Raises ValueError when a number is not finite."""
    if not bool(torch.isfinite(images).all()):
        raise ValueError("The pictures hold numbers that are not finite; use fp32, less guidance or another adapter.")
    levels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return levels.permute(0, 2, 3, 1).cpu().numpy()


def decode(model: AnyText2, latents: Tensor) -> np.ndarray:
    """Scaled latents (B, C, h, w) -> pictures (B, 8h, 8w, 3) uint8."""
    chunks = _chunks(len(latents), BATCH_SIZE)
    parts = spread_over_cores(lambda rows: to_uint8(model.decode(latents[rows].to(model.device))), chunks, model.device)
    return np.concatenate(parts)


def draw_prepared(model: AnyText2, prepared: Prepared, method: Method, show: bool = False) -> Drawing:
    """Draws every prepared picture. show: a progress bar, on a terminal.

    The time of denoising includes WriteNet, which works once a branch, and excludes `prepare`.
    """
    clock, lock = Clock(), Lock()
    chunks = _chunks(len(prepared), BATCH_SIZE)
    hidden = None if show else True
    with tqdm(total=len(prepared) * method.steps, desc=method.name, leave=False, disable=hidden) as bar:

        def progress(count: int) -> None:
            with lock:
                bar.update(count)

        # In bf16 a small update is lost in the sum with its weight, so there the adapter stays beside it.
        merges = torch.finfo(model.dtype).eps < 1e-3
        # Chunks that run side by side share the model: the switch is thrown here, around all of them.
        with clock("denoise", model.device), adapter_switch(model, method, merges):
            latents = spread_over_cores(
                lambda rows: denoise(model, prepared[rows], method, progress).cpu(), chunks, model.device
            )
    latents = torch.cat(latents)
    with clock("decode", model.device):
        images = decode(model, latents)
    return Drawing(images, latents, clock, method.evaluations)


def draw_prompts(
    model: AnyText2,
    prompts: Sequence[Prompt],
    method: Method,
    defaults: Defaults,
    seeds: Sequence[int] | int = 0,
    font: str | Path = PLAIN_FONT,
) -> np.ndarray:
    """The whole way: prompts -> pictures (B, H, W, 3) uint8. seeds: one each, or the first of a row of them.

    Raises ValueError for what `prompts_to_batch`, `prepare` and `denoise` refuse.
    """
    if isinstance(seeds, int):
        seeds = range(seeds, seeds + len(prompts))
    batch = prompts_to_batch(prompts, defaults.size, defaults.max_lines, font)
    prepared = prepare(model, batch, list(seeds), defaults.negative_prompt)
    return draw_prepared(model, prepared, method).images
