"""From prompts to pictures in three stages, from top to bottom: prepare, denoise, decode.

A picture depends on the weights, the prompt, the method and its own seed, not on the number of threads. The rest of the
batch changes its rounding alone: products of batches of other sizes differ in their last digits, so that a few values
of the picture may differ by one level of 255. Its random numbers come from streams of its seed, so methods with the
same seeds start from the same noise. Next: `judging/panel.py`, notebook 05.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from anytext_lcm.adapter.lora import Adapter, adapter_layers, adapter_off
from anytext_lcm.data.fonts import PLAIN_FONT
from anytext_lcm.data.text import checked
from anytext_lcm.drawing.cores import Clock, spread_over_cores
from anytext_lcm.drawing.methods import SOLVERS, Method
from anytext_lcm.drawing.noise import FRESH, MASKED, initial_noise, picture_generator
from anytext_lcm.drawing.prompts import Prompt, prompts_to_batch
from anytext_lcm.drawing.solvers import solver_steps
from anytext_lcm.lcm.samplers import sample
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.lcm.steps import guide
from anytext_lcm.model.anytext2 import AnyText2, Conditioning, is_blank
from anytext_lcm.model.networks import Defaults
from anytext_lcm.model.text_encoder import Tokenizer

BATCH_SIZE = 8  # pictures per network call; fixed, because rounding depends on it


def draw_prompts(
    model: AnyText2,
    prompts: Sequence[Prompt],
    method: Method,
    defaults: Defaults,
    seeds: Sequence[int] | int = 0,
    font: str | Path = PLAIN_FONT,
) -> np.ndarray:
    """Draw prompts: pictures (B, H, W, 3) uint8. seeds: one per picture, or the first of consecutive ones.

    Raises ValueError for what `prompts_to_batch`, `prepare` and `denoise` refuse.
    """
    if isinstance(seeds, int):
        seeds = range(seeds, seeds + len(prompts))
    batch = prompts_to_batch(prompts, defaults.size, defaults.max_lines, font)
    prepared = prepare(model, batch, list(seeds), defaults.negative_prompt)
    return draw_prepared(model, prepared, method).images


# -- 1. prepare: what all methods share -----------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """Conditioning of both guidance branches and one seed per picture, shared by all methods."""

    conditional: Conditioning
    unconditional: Conditioning
    seeds: tuple[int, ...]
    latent_shape: tuple[int, int, int]  # C, h, w

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, rows: slice) -> "Prepared":
        conditional, unconditional = self.conditional[rows], self.unconditional[rows]
        return replace(self, conditional=conditional, unconditional=unconditional, seeds=self.seeds[rows])


def prepare(model: AnyText2, batch: dict[str, Any], seeds: Sequence[int], negative_prompt: str = "") -> Prepared:
    """Encode a batch of B pictures (of `prompts_to_batch` or a data set) once for all methods: no adapter reaches the
    texts, the recognisers and the masked picture. Raises ValueError when there are not B seeds, and for a negative
    prompt that `checked` refuses.
    """
    negative_prompt = checked(negative_prompt, "The negative prompt")
    count = len(batch["img_caption"])
    if len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds for {count} pictures: give one each.")
    masked, tokenizer = batch["masked_img"], model.tokenizer  # read here: threads that import a library at once fail
    blank = model.blank_moments(*masked.shape[-2:]) if bool(is_blank(masked).any()) else None

    def encode(rows: slice) -> tuple[Conditioning, Conditioning]:
        part = {name: value[rows] for name, value in batch.items()}
        part["masked_latents"] = _masked_latents(model, part["masked_img"], seeds[rows], blank)
        conditional = _conditional(model, tokenizer, part)
        return conditional, model.uncondition(conditional, negative_prompt)

    parts = spread_over_cores(encode, _chunks(count), model.device)
    conditional, unconditional = (Conditioning.cat(list(branch)) for branch in zip(*parts, strict=True))
    return Prepared(conditional, unconditional, tuple(seeds), tuple(conditional.masked_latents.shape[1:]))


def _chunks(count: int) -> list[slice]:
    return [slice(start, min(start + BATCH_SIZE, count)) for start in range(0, count, BATCH_SIZE)]


def _masked_latents(
    model: AnyText2, masked: Tensor, seeds: Sequence[int], blank: tuple[Tensor, Tensor] | None
) -> Tensor:
    """masked_img (B, 3, H, W) -> latents as `AnyText2.encode` draws them, with each picture's own noise."""
    mean, logvar = model.masked_moments(masked, blank)
    noise = torch.stack([torch.randn(mean.shape[1:], generator=picture_generator(seed, MASKED)) for seed in seeds])
    return model.scale_factor * (mean + torch.exp(0.5 * logvar) * noise.to(mean))


def _conditional(model: AnyText2, tokenizer: Tokenizer, batch: dict[str, Any]) -> Conditioning:
    """Condition a batch, captions grouped by their number of 77-token chunks: padding a short caption to more chunks
    would change its context.
    """
    places: dict[int, list[int]] = {}
    for place, caption in enumerate(batch["img_caption"]):
        chunks = model.cond_stage_model.chunk(tokenizer.image_ids([caption]).to(model.device)).shape[1]
        places.setdefault(chunks, []).append(place)
    groups = list(places.values())
    conditioning = Conditioning.cat([model.condition(_pick(batch, group)) for group in groups])
    return conditioning[np.argsort([place for group in groups for place in group])]


def _pick(batch: dict[str, Any], places: list[int]) -> dict[str, Any]:
    return {k: v[places] if isinstance(v, Tensor) else [v[place] for place in places] for k, v in batch.items()}


# -- 2. denoise: from noise to latents ------------------------------------------------------------------


def denoise(
    model: AnyText2, prepared: Prepared, method: Method, progress: Callable[[int], None] | None = None
) -> Tensor:
    """Denoise one batch to latents (B, C, h, w), fp32. progress: called with B after each step.

    Raises ValueError for a method that needs an adapter when the model has none.
    """
    schedule = NoiseSchedule(model.alphas_cumprod)
    noise = initial_noise(prepared.seeds, prepared.latent_shape).to(model.device)
    fresh = [picture_generator(seed, FRESH) for seed in prepared.seeds]
    with adapter_switch(model, method):
        predict = predictor(model, prepared, method.guidance_scale, method.attnx_scale, method.strength)
        if method.sampler in SOLVERS:
            steps = solver_steps(predict, noise, schedule, method)
        else:
            options = {"spacing": method.spacing, "eta": method.eta, "gamma": method.gamma, "generators": fresh}
            steps = sample(predict, noise, schedule, method.steps, method.sampler, **options)
        for step in steps:  # the loop that notebook 03 writes by hand
            latents = step.latents
            if progress is not None:
                progress(len(latents))
    return latents


def predictor(
    model: AnyText2, prepared: Prepared, guidance_scale: float, attnx_scale: float = 1.0, strength: float = 1.0
) -> Callable[[Tensor, Tensor], Tensor]:
    """(latents (B, C, h, w), timesteps int64 (B,)) -> guided eps (B, C, h, w) fp32.

    attnx_scale and strength weigh the extra attention and the residuals, as `Method` says. WriteNet's residuals are
    computed here, once per branch, or without fast control in every call; both branches go through the networks as one
    batch. The adapter has to be on or off from here on.
    """
    guided = guidance_scale != 1.0
    both = [prepared.conditional, prepared.unconditional]
    conditioning = Conditioning.cat(both) if guided else prepared.conditional
    once = model.control(conditioning, strength=strength) if model.control_model.fast_control else None

    def predict(x: Tensor, t: Tensor) -> Tensor:
        if guided:
            x, t = torch.cat([x, x]), torch.cat([t, t])
        control = once or model.control(conditioning, x, t, strength)
        eps = model.predict_noise(x, t, conditioning, control, attnx_scale)
        return guide(*eps.chunk(2), guidance_scale) if guided else eps

    return predict


def adapter_switch(model: AnyText2, method: Method, merge: bool = False) -> AbstractContextManager:
    """A context in which the model is the bare teacher or has its adapter, as the method wants it.

    merge: add the adapter to the weights, which saves its own products. Raises ValueError for a missing adapter.
    """
    if not method.adapter:
        return adapter_off(model)
    if not adapter_layers(model):
        raise ValueError(f"{method.name} needs an adapter and the model has none; load one first.")
    # In bf16 a small update is lost in the sum with its weight, so there the adapter stays beside it.
    return Adapter.of(model).merged() if merge and torch.finfo(model.dtype).eps < 1e-3 else nullcontext()


# -- 3. decode: from latents to pictures ----------------------------------------------------------------


def decode(model: AnyText2, latents: Tensor, truncate: bool = False) -> np.ndarray:
    """Scaled latents (B, C, h, w) -> pictures (B, 8h, 8w, 3) uint8. Arguments and ValueError as of `to_uint8`."""

    weights = "adapter or checkpoint" if adapter_layers(model) else "checkpoint"

    def work(rows: slice) -> np.ndarray:
        return to_uint8(model.decode(latents[rows].to(model.device)), truncate, weights)

    return np.concatenate(spread_over_cores(work, _chunks(len(latents)), model.device))


def to_uint8(images: Tensor, truncate: bool = False, weights: str = "checkpoint") -> np.ndarray:
    """(B, 3, H, W) about -1..1 -> (B, H, W, 3) uint8. truncate: cut levels off instead of rounding them, as upstream.

    Raises ValueError when a number is not finite, which names the weights that the pictures were drawn with.
    """
    if not bool(torch.isfinite(images).all()):
        raise ValueError(
            f"The pictures hold numbers that are not finite; use fp32, less guidance or another {weights}."
        )
    levels = (images.float().clamp(-1, 1) + 1) * 127.5
    levels = levels.floor() if truncate else levels.round()
    return levels.byte().permute(0, 2, 3, 1).cpu().numpy()


# -- 2. and 3. for any number of pictures, timed --------------------------------------------------------


@dataclass(frozen=True)
class Drawing:
    """Pictures and what they took."""

    images: np.ndarray  # (B, H, W, 3) uint8 RGB
    latents: Tensor  # (B, C, h, w) fp32, scaled, on the CPU
    clock: Clock  # phases "denoise" and "decode"
    evaluations: int  # of the UNet per picture


def draw_prepared(
    model: AnyText2, prepared: Prepared, method: Method, show: bool = False, truncate: bool = False
) -> Drawing:
    """Draw every prepared picture. show: a progress bar, on a terminal. truncate: as in `to_uint8`.

    The time of denoising includes WriteNet, which runs once per branch, and excludes `prepare`. Raises ValueError as
    `denoise` and `decode`.
    """
    clock, lock, stop = Clock(), Lock(), Event()
    hidden = None if show else True  # None: shown on a terminal only
    with tqdm(total=len(prepared) * method.steps, desc=method.name, leave=False, disable=hidden) as bar:

        def progress(count: int) -> None:
            if stop.is_set():
                raise KeyboardInterrupt  # in a thread: the reason is raised where the pictures are waited for
            with lock:
                bar.update(count)

        def work(rows: slice) -> Tensor:
            return denoise(model, prepared[rows], method, progress).cpu()

        # Chunks that run side by side share the model: the switch is thrown here, around all of them.
        with clock("denoise", model.device), adapter_switch(model, method, merge=True):
            latents = torch.cat(spread_over_cores(work, _chunks(len(prepared)), model.device, stop))
    with clock("decode", model.device):
        images = decode(model, latents, truncate)
    return Drawing(images, latents, clock, method.evaluations)
