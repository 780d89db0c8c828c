"""One training step in eleven numbered comments, the same as in notebook 03: a batch becomes a loss, then an update.

Next: `training/loop.py`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from anytext_lcm.adapter.lora import Adapter
from anytext_lcm.lcm.consistency import l2, pseudo_huber
from anytext_lcm.lcm.objectives import Point, objective_of
from anytext_lcm.lcm.paths import Paths
from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.lcm.steps import DDIMSolver, guide
from anytext_lcm.model.anytext2 import AnyText2, Conditioning
from anytext_lcm.model.unet import Stem, Trunk
from anytext_lcm.model.vae import sample_posterior
from anytext_lcm.training.processes import average_gradients

CAPTIONS = ("image_context", "text_context")  # of a Conditioning: what the unguided branch has of its own


@dataclass(frozen=True)
class LossParts:
    """A loss and what it was made of; only `loss` and `pred` carry a gradient."""

    loss: Tensor  # scalar
    pred: Tensor  # (B, C, h, w) the student's latents, clean or where the objective's jump ends
    target: Tensor  # (B, C, h, w) what they are compared with
    x0: Tensor  # (B, C, h, w) the student's clean latents from x_t
    teacher_x0: Tensor  # (B, C, h, w) the guided teacher's clean latents from the same x_t
    noisy_latents: Tensor  # (B, C, h, w) x_t
    start_timesteps: Tensor  # int64 (B,) t


class DistillStep(nn.Module):
    """Steps 1 to 10: a batch becomes a loss. A module, so that `.eval()` reaches the network in it.

    Make a new one for another adapter, and when frozen weights, device or precision change: it keeps what it has
    encoded of the empty picture and of the negative prompt.
    """

    def __init__(
        self,
        model: AnyText2,
        *,
        objective: str = "lcm",
        phases: int | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str = "",
        loss: str = "huber",
        huber_c: float = 1e-3,
        text_factor: float = 1.0,
    ):
        """Arguments as in TrainSettings. Raises ValueError as `objective_of` does."""
        super().__init__()
        self.model = model
        self.schedule = NoiseSchedule(model.alphas_cumprod)
        self.solver = DDIMSolver(self.schedule)
        self.objective = objective_of(objective, phases)
        self.guidance_scale, self.negative_prompt = guidance_scale, negative_prompt
        self.text_factor = text_factor
        self.loss = partial(pseudo_huber, c=huber_c) if loss == "huber" else l2
        # The adapter is looked up here alone. Where it does not reach the encoder, teacher and student share encodings.
        adapter, unet = Adapter.of(model), "model.diffusion_model"
        self.without_adapter = adapter.off
        self.adapts_control = adapter.touches("control_model")
        self.adapts_encoder = adapter.touches(f"{unet}.input_blocks", f"{unet}.time_embed")
        # What comes before the first attention no caption changes, so guidance's branches share it, and the student.
        self.adapts_stem = adapter.touches(*_stem_paths(unet, model.model.diffusion_model))
        hints = (f"control_model.{name}" for name in ("glyph_block", "position_block", "fuse_block_za"))
        self.adapts_control_stem = adapter.touches(*hints, *_stem_paths("control_model", model.control_model))
        self._blanks: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._negative: Conditioning | None = None

    def forward(self, batch: Mapping[str, Any], generator: torch.Generator | None = None) -> LossParts:
        """batch: fields of `anytext_lcm.data.batch`, or `latents` and `masked_latents` in place of the pictures; with
        `path`, rows of `lcm.paths.Paths`, the points are the path's: pictures, fresh noise and teacher are not used.

        generator draws every random number. The gradient of the loss reaches the adapter alone.
        """
        # Long on purpose: the method in one place and in order. The objective decides where 8 and 9 are asked.
        model, schedule, solver = self.model, self.schedule, self.solver
        with torch.no_grad():
            # 1. encode: the picture's latents, one sample of the autoencoder's posterior, or where a stored path ends
            path = Paths(solver, torch.stack(list(batch["path"])).to(model.device)) if "path" in batch else None
            latents = self._encode(batch, generator) if path is None else path.end
            # 2. condition: captions, lines and masked picture; without condition only the captions go
            cond = model.condition(batch, generator, self.blank(batch))
            both = Conditioning.cat([cond, self._uncondition(cond)])
            # 3. control: residuals, once per step because they depend on neither x_t nor t
            teacher_control = student_control = None  # without fast control they do, and every call has its own
            fast = model.control_model.fast_control
            if fast:
                with self.without_adapter():
                    control_stem = model.control_stem(cond)
                    teacher_control = model.control(both, stem=control_stem.repeat(2))
        if fast and self.adapts_control:
            student_control = model.control(cond, stem=None if self.adapts_control_stem else control_stem)
        elif fast:
            student_control = [residual.chunk(2)[0] for residual in teacher_control]

        # 4. draw t: a point of the solver's grid for each picture
        device = latents.device if generator is None else generator.device
        index = torch.randint(len(solver), (len(latents),), generator=generator, device=device).to(latents.device)
        t, s = solver.start_timesteps(index), solver.previous_timesteps(index)
        # 5. add noise: one point x_t on the way from the picture to pure noise
        if path is None:
            noise = torch.randn(latents.shape, generator=generator, device=device).to(latents.device)
            x_t = schedule.add_noise(latents.float(), noise, t)
        else:  # or the stored path's own point there
            x_t = path.at(t)

        # 6. teacher: with and without the condition, guided
        @torch.no_grad()
        def teacher(x: Tensor, t: Tensor, encoded: list[Tensor] | None = None, stem: Stem | None = None) -> Tensor:
            with self.without_adapter():
                stem = model.noise_stem(x, t) if stem is None else stem
                x, t = torch.cat([x, x]), torch.cat([t, t])  # both branches in one batch
                control = teacher_control or model.control(both, x, t)
                eps = model.predict_noise(x, t, both, control, encoded=encoded, stem=stem.repeat(2))
            return guide(*eps.chunk(2), self.guidance_scale)

        with torch.no_grad(), self.without_adapter():
            stem = model.noise_stem(x_t, t)
            shared = path is None and not self.adapts_encoder
            encoded = self._encode_point(x_t, t, both, stem) if shared else None
        if path is None:
            eps = teacher(x_t, t, encoded, stem)
            teacher_x0 = schedule.x0_from_eps(x_t, eps, t)
        else:  # what it said there is stored
            teacher_x0 = path.x0(index)
            eps = schedule.eps_from_x0(x_t, teacher_x0, t)
        # 7. solver: one DDIM step along the teacher's trajectory, from t to s
        x_s = solver.step(teacher_x0, eps, index)

        # 8. target: the same weights without gradient at (x_s, s)
        @torch.no_grad()
        def target(x: Tensor, t: Tensor) -> Tensor:
            return model.predict_noise(x, t, cond, student_control or model.control(cond, x, t))

        # 9. student: the same weights with gradient at (x_t, t)
        @cache
        def student() -> Tensor:
            own = None if encoded is None else [branches.chunk(2)[0] for branches in encoded]
            stem_too = None if self.adapts_stem else stem
            control = student_control or model.control(cond, x_t, t)
            return model.predict_noise(x_t, t, cond, control, encoded=own, stem=stem_too)

        point = Point(schedule, latents, x_t, t, teacher_x0, x_s, s, student, target, teacher, generator, path)
        pred, wanted = self.objective(point)
        # 10. loss: distance of the two
        weight = latent_weight(batch["inv_mask"].to(latents.device), latents) if "inv_mask" in batch else None
        if self.text_factor != 1:
            text = text_weight(cond.positions, latents, self.text_factor)
            weight = text if weight is None else weight * text
        x0 = schedule.x0_from_eps(x_t, student().detach(), t)
        return LossParts(self.loss(pred, wanted, weight=weight), pred, wanted, x0, teacher_x0, x_t, t)

    def blank(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
        """`AnyText2.blank_moments` of the batch's size, encoded once by this object; None when the batch needs none."""
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

    def _uncondition(self, cond: Conditioning) -> Conditioning:
        """The unguided branch of `cond`. Its captions are the same for every picture, so they are encoded once."""
        if self._negative is None:
            self._negative = self.model.uncondition(cond[:1], self.negative_prompt)
        rows = {name: getattr(self._negative, name).expand(len(cond), -1, -1) for name in CAPTIONS}
        return replace(cond, **rows)

    def _encode_point(self, x: Tensor, t: Tensor, both: Conditioning, stem: Stem) -> list[Tensor]:
        """The UNet's encodings at (x, t) for both branches, which teacher and student share there."""
        x, unet = torch.cat([x, x]).to(self.model.dtype), self.model.model.diffusion_model
        return unet.encode(x, torch.cat([t, t]), both.image_context, stem=stem.repeat(2))


def _stem_paths(network: str, trunk: Trunk) -> list[str]:
    """Paths of the modules that a trunk's stem is computed by."""
    return [f"{network}.{name}" for name in ("time_embed", *trunk.stem_layers())]


def latent_weight(inv_mask: Tensor, latents: Tensor) -> Tensor:
    """Pixels to ignore (B, 1, H, W), 1 = ignore -> weights (B, 1, h, w), the share of a latent's pixels that counts."""
    # Upstream takes one pixel of each 8x8, at 512 px alone, and divides by the number of all of them.
    return 1 - F.interpolate(inv_mask.float(), size=latents.shape[-2:], mode="area")


def text_weight(positions: Tensor, latents: Tensor, factor: float) -> Tensor:
    """Summed masks of the lines (B, 1, H, W) -> weights (B, 1, h, w): `factor` under text, 1 elsewhere, by area."""
    # FlashGlyph's map (its student_model_v3/losses.py, on the gradients of x0), but the loss stays a weighted mean.
    share = F.interpolate(positions.float().clamp(max=1), size=latents.shape[-2:], mode="area")
    return 1 + (factor - 1) * share


def new_optimizer(parameters: Sequence[nn.Parameter], learning_rate: float) -> torch.optim.AdamW:
    """AdamW without weight decay, in one kernel for all of an adapter's hundreds of small tensors."""
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=True)


def update(
    accelerator: Accelerator,
    optimizer: AcceleratedOptimizer,
    parameters: Sequence[nn.Parameter],
    loss: float,
    batches: int,
    max_grad_norm: float,
) -> tuple[float, bool]:
    """Step 11, of gradients summed over `batches` backward passes whose mean loss is `loss`. Collective.

    Returns the gradient's norm before clipping, and whether the weights moved.
    """
    # 11. update: gradients averaged over processes, clipped, one AdamW step unless a number is not finite
    average_gradients(accelerator, parameters, batches)
    norm = float(accelerator.clip_grad_norm_(parameters, max_grad_norm))
    moved = math.isfinite(loss) and math.isfinite(norm)
    if moved or accelerator.scaler is not None:  # the scaler skips such a step itself, and lowers its scale
        optimizer.step()
        moved = moved and not optimizer.step_was_skipped
    optimizer.zero_grad()
    return norm, moved
