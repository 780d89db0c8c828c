"""The last stage of the diffusion: what it makes of its own half-drawn pictures must be legible.

On noisy true pictures the estimate is legible early on; along the network's own trajectories it gets worse from step to
step, since no loss on true pictures shows the network its own mistakes.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.teacher.batches import Batches, Lines
from anytext_lcm.teacher.diffusion import DiffusionLoss, diffusion_state
from anytext_lcm.teacher.features import scaled_parts
from anytext_lcm.teacher.fitting import Plan, averaged, fit
from anytext_lcm.teacher.processes import Rank, autocast, parallel
from anytext_lcm.teacher.readers import picture_maker
from anytext_lcm.teacher.reading import Reader, ReadingLoss
from anytext_lcm.teacher.recipe import Recipe


class Trajectories:
    """A pool of pictures half drawn by DDIM from noise, at all levels, each with its own prompt and stride.

    A finished picture is replaced by noise for another prompt. x: (pool, z, h, w); rows, stride, t: (pool,) int64.
    """

    def __init__(self, model: AnyText2, batches: Batches, recipe: Recipe, rng: np.random.Generator):
        self.model, self.batches, self.recipe, self.rng = model, batches, recipe, rng
        self.schedule = NoiseSchedule(model.alphas_cumprod)
        size = recipe.writing_pool
        self.x = torch.empty(size, *batches.columns["latents"].shape[2:], device=model.device)
        self.rows, self.stride, self.t = (np.zeros(size, np.int64) for _ in range(3))
        for place in range(size):
            self._begin(place)
        ends = np.linspace(999, max(recipe.writing_strides), size)  # all levels are there from the first step on
        while len(behind := np.flatnonzero(self.t > ends)):
            self.advance_many(behind)

    def _begin(self, place: int) -> None:
        self.rows[place] = self.rng.integers(self.recipe.pictures)
        self.stride[place] = self.rng.choice(self.recipe.writing_strides)
        self.t[place] = 999 - self.rng.integers(self.stride[place] // 2)  # its own shift: all timesteps come up
        noise = self.rng.standard_normal(self.x.shape[1:], dtype=np.float32)
        self.x[place] = torch.from_numpy(noise).to(self.x.device)

    def timesteps(self, places: np.ndarray) -> Tensor:
        """Timesteps (n,) int64 of the pictures at these places of the pool."""
        return torch.from_numpy(self.t[places]).to(self.x.device)

    def batch(self, places: np.ndarray, empty: bool = False) -> dict:
        """Their prompts in the model's contract; empty: without captions."""
        return self.batches.prompts(self.rows[places], self.rng, 1.0 if empty else 0.0)

    def predictor(self, batch: dict) -> Callable[[Tensor, Tensor], Tensor]:
        """The network for the prompts of the batch: latents (n, z, h, w), timesteps (n,) -> velocity (n, z, h, w)."""
        conditioning = self.model.condition(batch)
        control = self.model.control(conditioning)
        unet, context = self.model.model.diffusion_model, conditioning.image_context
        return lambda x, t: unet(x, t, context, control=control).float()

    @torch.no_grad()
    def advance(self, places: np.ndarray, v: Tensor | None = None) -> None:
        """Take one DDIM step, half of the time with guidance. v: the velocity with captions (n, z, h, w), if known."""
        t, x = self.timesteps(places), self.x[places]
        v = self.predictor(self.batch(places))(x, t) if v is None else v
        if self.rng.random() < 0.5:
            bare = self.predictor(self.batch(places, empty=True))(x, t)
            v = bare + self.recipe.writing_guidance * (v - bare)
        self.t[places] -= self.stride[places]
        done = self.t[places] < 0
        self.x[places] = self.step(x, v, t, self.timesteps(places).clamp(min=0))
        for place in places[done]:
            self._begin(place)

    def advance_many(self, places: np.ndarray) -> None:
        """`advance` in parts of at most 16 pictures."""
        for part in np.array_split(places, len(places) // 16 + 1):
            self.advance(part)

    def step(self, x: Tensor, v: Tensor, t: Tensor, later: Tensor) -> Tensor:
        """Latents (n, z, h, w) after a DDIM step from t to `later`, both (n,)."""
        x0, eps = self.schedule.x0_from_v(x, v, t), self.schedule.eps_from_v(x, v, t)
        return self.schedule.add_noise(x0, eps, later)


class WritingLoss(nn.Module):
    """The diffusion's loss on true pictures, and the reading loss of two estimates along the network's trajectories."""

    def __init__(self, diffusion: DiffusionLoss, reading: ReadingLoss, recipe: Recipe):
        super().__init__()
        self.diffusion, self.reading = diffusion, reading
        self.weight, self.max_weight, self.jump = recipe.writing_weight, recipe.writing_max_weight, recipe.writing_jump

    def forward(
        self,
        true: tuple,
        paths: Trajectories,
        batch: dict,
        places: np.ndarray,
        lines: tuple,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(loss (), the diffusion's (), the readings' (2,), velocity at `places` (n, z, h, w)).

        Only the first has a gradient. true: arguments of `DiffusionLoss`; batch: prompts at `places`; lines: what
        `Lines.of` returns.
        """
        diffusion, _ = self.diffusion(*true)
        predict, schedule = paths.predictor(batch), paths.schedule
        x, t = paths.x[places], paths.timesteps(places)
        v = predict(x, t)
        low, high = self.jump
        jump = torch.randint(low, high + 1, (len(t),), generator=generator)
        later = (t - jump.to(t.device)).clamp(min=0)
        further = paths.step(x, v, t, later)
        # The gradient of the second estimate goes through both looks: the first must not only be legible itself, but
        # leave a state behind from which something legible comes.
        loss, found = diffusion, []
        for state, velocity, at in ((x, v, t), (further, predict(further, later), later)):
            readings = self.reading(schedule.x0_from_v(state, velocity, at), *lines, generator)
            _, sigma = schedule.alpha_sigma(at, state)  # an error of v is sigma times as large in the estimate
            weight = (1 / sigma.flatten()).clamp(max=self.max_weight)[lines[1]]
            loss = loss + self.weight * (weight * readings).mean()
            found.append(readings.detach().mean())
        return loss, diffusion.detach(), torch.stack(found), v.detach()


def train_writing(rank: Rank, work: Path, recipe: Recipe) -> None:
    """Stage `writing`: goes on from diffusion.pt; writes writing.pt."""
    torch.manual_seed(recipe.seed)
    count, noise_levels = recipe.writing_true
    recipe = replace(recipe, noise_levels_per_picture=noise_levels, diffusion_lr=recipe.writing_lr)
    model, path = scaled_parts(work, rank.device), work / "writing.pt"
    if not path.exists():
        model.load_state_dict(averaged(work / "diffusion.pt"))
    state = diffusion_state(model, recipe, rank, recipe.writing_ema, path)
    loss = parallel(writing_loss(model, recipe, work), rank)
    batches, lines = Batches(work, recipe, rank.device, model.scale_factor), Lines(work)
    paths = Trajectories(model, batches, recipe, rank.rng(5, state.step))
    generator = torch.Generator().manual_seed(1000 * state.step + rank.index)

    def loss_of(step: int) -> tuple[Tensor, dict]:
        rng = rank.rng(6, step)
        order = rng.permutation(recipe.writing_pool)
        places, ahead = np.split(order[: recipe.writing_batch + recipe.writing_ahead], [recipe.writing_batch])
        batch = paths.batch(places)
        with autocast(rank):
            true = batches.draw(rng, count)
            own_lines = lines.of(paths.rows[places], rank.device)
            value, diffusion, readings, v = loss(true, paths, batch, places, own_lines, generator)
        paths.advance(places, v)  # now, since `fit` changes the weights that v is of
        paths.advance_many(ahead)
        return value, {"diffusion": diffusion, "readings": readings}

    plan = Plan("writing", recipe.writing_steps, recipe.writing_lr, recipe.decay, warmup=20)
    fit(rank, state, plan, loss_of)


def writing_loss(model: AnyText2, recipe: Recipe, work: Path) -> WritingLoss:
    """The loss with the reader of reader.pt."""
    reader = Reader().to(model.device)
    reader.load_state_dict(torch.load(work / "reader.pt", map_location="cpu", weights_only=True))
    reading = ReadingLoss(reader, picture_maker(model), recipe.writing_noise)
    return WritingLoss(DiffusionLoss(model, recipe.noise_levels_per_picture, recipe.text_weight), reading, recipe)
