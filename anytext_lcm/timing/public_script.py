"""The step and the sampler as public scripts write them. Ours are timed against them, and must compute the same."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from anytext_lcm.drawing.draw import Prepared
from anytext_lcm.drawing.noise import initial_noise
from anytext_lcm.lcm.consistency import consistency_function, pseudo_huber
from anytext_lcm.lcm.samplers import finish, sample
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.lcm.steps import DDIMSolver, guide
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.vae import sample_posterior
from anytext_lcm.training.step import latent_weight


def reference_step(
    student: AnyText2,
    teacher: AnyText2,
    batch: Mapping[str, Any],
    generator: torch.Generator | None,
    guidance_scale: float,
    negative_prompt: str = "",
) -> Tensor:
    """The loss () of one LCM step as diffusers' LCM-LoRA script for Stable Diffusion does it, on AnyText2.

    The teacher is a second network. Each pass runs alone, with WriteNet and the texts computed again. Pictures are
    encoded in the step unless the batch has their `latent_moments`; masked pictures always are, as upstream does. Draws
    from the generator in the order of `DistillStep`.
    """
    schedule = NoiseSchedule(student.alphas_cumprod)
    solver = DDIMSolver(schedule)
    with torch.no_grad():
        if "latent_moments" in batch:
            moments = batch["latent_moments"].to(student.device).float().chunk(2, dim=1)
            latents = student.scale_factor * sample_posterior(*moments, generator)
        else:
            latents = student.encode(batch["img"], generator)
        masked = student.encode(batch["masked_img"], generator)
        batch = dict(batch) | {"masked_latents": masked}
        count = len(latents)
        device = latents.device if generator is None else generator.device
        index = torch.randint(len(solver), (count,), generator=generator, device=device).to(latents.device)
        noise = torch.randn(latents.shape, generator=generator, device=device).to(latents.device)
        t, s = solver.start_timesteps(index), solver.previous_timesteps(index)
        noisy = schedule.add_noise(latents, noise, t)
        cond = teacher.condition(batch)
        uncond = teacher.uncondition(cond, negative_prompt)
        eps_cond = teacher.predict_noise(noisy, t, cond, teacher.control(cond))
        eps_uncond = teacher.predict_noise(noisy, t, uncond, teacher.control(uncond))
        eps = guide(eps_cond, eps_uncond, guidance_scale)
        earlier = solver.step(schedule.x0_from_eps(noisy, eps, t), eps, index)
        own = student.condition(batch)
        eps = student.predict_noise(earlier, s, own, student.control(own))
        target = consistency_function(earlier, eps, s, schedule)
    eps = student.predict_noise(noisy, t, own, student.control(own))
    pred = consistency_function(noisy, eps, t, schedule)
    weight = latent_weight(batch["inv_mask"].to(latents.device), latents) if "inv_mask" in batch else None
    return pseudo_huber(pred, target, weight=weight)


@torch.no_grad()
def reference_prepare(
    model: AnyText2, batch: Mapping[str, Any], seeds: Sequence[int], negative_prompt: str
) -> Prepared:
    """Prepare as upstream's sampler does: encode every masked picture, and texts and lines for both branches."""
    mean, logvar = model.first_stage_model.encode(batch["masked_img"].to(model.device, model.dtype))
    masked = model.scale_factor * sample_posterior(mean.float(), logvar.float())
    batch, count = dict(batch) | {"masked_latents": masked}, len(seeds)
    negative = batch | {"img_caption": [negative_prompt] * count, "text_caption": [""] * count}
    return Prepared(model.condition(batch), model.condition(negative), tuple(seeds), tuple(masked.shape[1:]))


@torch.no_grad()
def reference_denoise(model: AnyText2, prepared: Prepared, steps: int, guidance_scale: float) -> Tensor:
    """Latents (B, C, h, w) by DDIM with two calls per step, one after the other.

    WriteNet's residuals are computed once per branch, as upstream's sampler keeps them with fast control.
    """
    branches = [(branch, model.control(branch)) for branch in (prepared.conditional, prepared.unconditional)]

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return guide(*(model.predict_noise(x, t, branch, control) for branch, control in branches), guidance_scale)

    noise = initial_noise(prepared.seeds, prepared.latent_shape).to(model.device)
    return finish(sample(predict, noise, NoiseSchedule(model.alphas_cumprod), steps, "ddim"))
