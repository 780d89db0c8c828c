"""
The training step.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anytext_lcm.adapter.lora import adapter_off, adapts
from anytext_lcm.lcm.consistency import l2, pseudo_huber
from anytext_lcm.lcm.objectives import OBJECTIVES, LossParts
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.lcm.steps import DDIMSolver
from anytext_lcm.model.anytext2 import AnyText2, Conditioning
from anytext_lcm.model.vae import sample_posterior


def latent_weight(inv_mask: Tensor, latents: Tensor) -> Tensor:
    """Pixels not to be judged (B, 1, H, W), 1 = ignore -> weights (B, 1, h, w): the share of a latent's
    pixels that counts.

    Upstream picks one pixel of each 8x8 (nearest), at 512 px alone, and still counts the ignored ones in its
    mean.
    """
    return 1 - F.interpolate(inv_mask.float(), size=latents.shape[-2:], mode="area")


class DistillStep(nn.Module):
    """A batch to a loss: steps 1 to 10 of a training step; 6 to 10 are `anytext_lcm/lcm/objectives.py`.

    A module, so that it can be called and put into evaluation as the network in it. Make a new one when the weights,
    device or precision of the autoencoder change: the step keeps what it has encoded of the empty picture.
    """

    def __init__(
        self,
        model: AnyText2,
        objective: str = "lcm",
        guidance_scale: float = 7.5,
        negative_prompt: str = "",
        huber_c: float = 1e-3,
        loss: str = "huber",
    ):
        """Arguments as in TrainSettings. Raises ValueError for a network without fast control."""
        super().__init__()
        if not model.control_model.fast_control:
            raise ValueError(
                "Distillation shares control residuals between timesteps, so it needs fast_control: true in the yaml."
            )
        self.model = model
        self.schedule = NoiseSchedule(model.alphas_cumprod)
        self.solver = DDIMSolver(self.schedule)
        self.objective = OBJECTIVES[objective]
        self.guidance_scale, self.negative_prompt = guidance_scale, negative_prompt
        self.loss = partial(pseudo_huber, c=huber_c) if loss == "huber" else l2
        self._blanks: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def forward(self, batch: Mapping[str, Any], generator: torch.Generator | None = None) -> LossParts:
        """batch: fields of `anytext_lcm.data.batch`, or `latents` and `masked_latents` in place of the
        pictures.

        generator draws every random number of the step. The loss's gradient reaches the adapter alone.
        """
        model = self.model
        with torch.no_grad():
            # 1. encode: the picture's latents, one sample of the autoencoder's posterior
            latents = self._encode(batch, generator)
            # 2. condition: what both networks are told; without condition glyphs, positions and masked
            # latents stay
            cond = model.condition(batch, generator, self.blank(batch))
            both = Conditioning.cat([cond, model.uncondition(cond, self.negative_prompt)])
            # 3. control: residuals depend on neither x_t nor t, so once a step: the teacher's for both
            # branches ...
            with adapter_off(model):
                teacher_control = model.control(both)
        # ... and the student's, which carry its gradient; the target shares them without
        if adapts(model, "control_model"):
            student_control = model.control(cond)
        else:
            student_control = [residual.chunk(2)[0] for residual in teacher_control]
        target_control = [residual.detach() for residual in student_control]
        # 4. draw t: a point of the solver's grid for each picture, and the noise
        device = generator.device if generator is not None else latents.device
        index = torch.randint(len(self.solver), (len(latents),), generator=generator, device=device)
        noise = torch.randn(latents.shape, generator=generator, device=device)

        # 5. add noise: one point x_t on the way from the picture to pure noise
        index = index.to(latents.device)
        t = self.solver.start_timesteps(index)
        noisy_latents = self.schedule.add_noise(latents.float(), noise.to(latents.device), t)
        unet, shared = model.model.diffusion_model, {}
        if not adapts(model, "model.diffusion_model.input_blocks", "model.diffusion_model.time_embed"):
            # the adapter leaves the encoder alone, so at (x_t, t) teacher and student have it in common
            with torch.no_grad(), adapter_off(model):
                x = torch.cat([noisy_latents, noisy_latents]).to(model.dtype)
                shared["encoded"] = unet.encode(x, torch.cat([t, t]), both.image_context)

        def teacher(x: Tensor, t: Tensor, encoded: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
            x, t = torch.cat([x, x]), torch.cat([t, t])  # both branches in one batch
            with adapter_off(model):
                return model.predict_noise(x, t, both, teacher_control, encoded=encoded).chunk(2)

        def target(x: Tensor, t: Tensor) -> Tensor:
            return model.predict_noise(x, t, cond, target_control)

        def student(x: Tensor, t: Tensor, encoded: list[Tensor] | None = None) -> Tensor:
            own = None if encoded is None else [both_branches.chunk(2)[0] for both_branches in encoded]
            return model.predict_noise(x, t, cond, student_control, encoded=own)

        # 6. to 10.: teacher, solver, target, student, loss
        return self.objective(
            student,
            teacher,
            target,
            self.schedule,
            self.solver,
            noisy_latents,
            index,
            guidance_scale=self.guidance_scale,
            loss=self.loss,
            weight=latent_weight(batch["inv_mask"].to(latents.device), latents) if "inv_mask" in batch else None,
            shared=shared,
        )

    def blank(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
        """`AnyText2.blank_moments` of the batch's size, encoded once by this object, so once in a run.

        None for a batch that brings its masked latents.
        """
        if "masked_latents" in batch or "masked_img" not in batch:
            return None
        size = tuple(batch["masked_img"].shape[-2:])
        if size not in self._blanks:
            self._blanks[size] = self.model.blank_moments(*size)
        return self._blanks[size]

    def _encode(self, batch: Mapping[str, Any], generator: torch.Generator | None) -> Tensor:
        """Scaled latents (B, C, h, w), fp32: given, drawn from a stored posterior, or from the pictures."""
        model = self.model
        if "latents" in batch:
            return batch["latents"].to(model.device)
        if "latent_moments" in batch:
            moments = torch.stack([torch.as_tensor(m) for m in batch["latent_moments"]]).to(model.device)
            return model.scale_factor * sample_posterior(*moments.float().chunk(2, dim=1), generator)
        return model.encode(batch["img"], generator)
