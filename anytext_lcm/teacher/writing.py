"""The last stage: the diffusion goes on, and what it makes of its own half-drawn pictures must be legible."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from anytext_lcm.lcm.schedule import NoiseSchedule
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.teacher.columns import SIDE, Batches, Lines, scaled_parts
from anytext_lcm.teacher.diffusion import DiffusionLoss, optimisers_of, trainable
from anytext_lcm.teacher.readers import picture_maker
from anytext_lcm.teacher.reading import Reader, ReadingLoss
from anytext_lcm.teacher.recipe import Rank, Recipe, autocast, averaged, parallel, rate, restore, save_training


class Trajectories:
    """Pictures half drawn by DDIM from noise, at all levels; what is done is replaced by noise for another prompt."""

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
            for part in np.array_split(behind, len(behind) // 16 + 1):
                self.advance(part)

    def _begin(self, place: int) -> None:
        self.rows[place] = self.rng.integers(self.recipe.pictures)
        self.stride[place] = self.rng.choice(self.recipe.writing_strides)
        self.t[place] = 999 - self.rng.integers(self.stride[place] // 2)  # its own shift: all timesteps come up
        noise = self.rng.standard_normal(self.x.shape[1:], dtype=np.float32)
        self.x[place] = torch.from_numpy(noise).to(self.x.device)

    def timesteps(self, places: np.ndarray) -> Tensor:
        """(n,) int64, of the pictures at these places."""
        return torch.from_numpy(self.t[places]).to(self.x.device)

    def batch(self, places: np.ndarray, empty: bool = False) -> dict:
        return self.batches.prompts(self.rows[places], self.rng, 1.0 if empty else 0.0)

    def predictor(self, batch: dict) -> Callable[[Tensor, Tensor], Tensor]:
        """(latents, timesteps) -> velocity, for the prompts of the batch."""
        conditioning = self.model.condition(batch)
        control = self.model.control(conditioning)
        unet, context = self.model.model.diffusion_model, conditioning.image_context
        return lambda x, t: unet(x, t, context, control=control).float()

    @torch.no_grad()
    def advance(self, places: np.ndarray, v: Tensor | None = None) -> None:
        """One DDIM step. v (n, z, h, w): the velocity with captions, where it is known already."""
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

    def step(self, x: Tensor, v: Tensor, t: Tensor, later: Tensor) -> Tensor:
        """Where a DDIM step from t to `later` takes the latents."""
        x0, eps = self.schedule.x0_from_v(x, v, t), self.schedule.eps_from_v(x, v, t)
        return self.schedule.add_noise(x0, eps, later)


class WritingLoss(nn.Module):
    """The diffusion's loss on true pictures, and how badly lines can be read in what the model expects of its own."""

    def __init__(self, diffusion: DiffusionLoss, reading: ReadingLoss, recipe: Recipe):
        super().__init__()
        self.diffusion, self.reading = diffusion, reading
        self.weight, self.steepest, self.jump = recipe.writing_weight, recipe.writing_steepest, recipe.writing_jump

    def forward(
        self,
        true: tuple,
        paths: Trajectories,
        batch: dict,
        places: np.ndarray,
        lines: tuple,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(loss, the diffusion's, the readings' (2,), velocity at `places` of the paths).

        The gradient of the second estimate, a step further on, goes through both: the first has to leave a state
        behind out of which something legible comes, and not only be legible itself.
        """
        diffusion, _ = self.diffusion(*true)
        predict, schedule = paths.predictor(batch), paths.schedule
        x, t = paths.x[places], paths.timesteps(places)
        v = predict(x, t)
        low, high = self.jump
        jump = torch.randint(low, high + 1, (len(t),), generator=generator)
        later = (t - jump.to(t.device)).clamp(min=0)
        further = paths.step(x, v, t, later)
        loss, found = diffusion, []
        for state, velocity, at in ((x, v, t), (further, predict(further, later), later)):
            readings = self.reading(schedule.x0_from_v(state, velocity, at), *lines, generator)
            _, sigma = schedule.alpha_sigma(at, state)  # of a velocity so much is in its estimate
            steepness = (1 / sigma.flatten()).clamp(max=self.steepest)[lines[1]]
            loss = loss + self.weight * (steepness * readings).mean()
            found.append(readings.detach().mean())
        return loss, diffusion.detach(), torch.stack(found), v.detach()


def train_writing(rank: Rank, work: Path, recipe: Recipe) -> None:
    """Teaches the finished diffusion to keep its lines legible on its own way from noise to picture.

    On noisy true pictures the estimate is legible early on; along the network's own trajectories it gets worse from
    step to step, for no loss on true pictures shows the network its own mistakes.
    """
    torch.manual_seed(recipe.seed)
    count, copies = recipe.writing_true
    recipe = replace(recipe, copies=copies, diffusion_lr=recipe.writing_lr)
    model = scaled_parts(work, rank.device)
    for net in (model.model, model.control_model):
        net.to(memory_format=torch.channels_last)
    parameters = trainable(model)
    optimisers = optimisers_of(model, recipe, rank)
    path = work / "writing.pt"
    if not path.exists():
        model.load_state_dict(averaged(work / "diffusion.pt"))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.writing_ema))
    start = restore(path, model, average, *optimisers)
    reader = Reader().to(rank.device)
    reader.load_state_dict(torch.load(work / "reader.pt", map_location="cpu", weights_only=True))
    reading = ReadingLoss(reader, picture_maker(model), recipe.writing_noise)
    diffusion = DiffusionLoss(model, recipe.copies, recipe.text_weight)
    loss_of = parallel(WritingLoss(diffusion, reading, recipe), rank)
    batches, lines = Batches(work, recipe, rank.device, model.scale_factor), Lines(work)
    paths = Trajectories(model, batches, recipe, rank.rng(5, start))
    generator = torch.Generator().manual_seed(1000 * start + rank.index)
    log = (work / "writing.jsonl").open("a") if rank.main else None
    bar = tqdm(
        range(start, recipe.writing_steps),
        initial=start,
        total=recipe.writing_steps,
        desc="writing",
        disable=not rank.main,
        mininterval=10,
    )
    clock, means = time.monotonic(), np.zeros(3)
    for step in bar:
        rng = rank.rng(6, step)
        order = rng.permutation(recipe.writing_pool)
        places, ahead = np.split(order[: recipe.writing_batch + recipe.writing_ahead], [recipe.writing_batch])
        for group in (g for o in optimisers for g in o.param_groups):
            group["lr"] = rate(step, recipe.writing_steps, recipe.writing_lr, recipe.decay, warmup=20)
        batch = paths.batch(places)
        with autocast(rank):
            loss, true, readings, v = loss_of(
                batches.draw(rng, count, SIDE // 8),
                paths,
                batch,
                places,
                lines.of(paths.rows[places], rank.device),
                generator,
            )
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        paths.advance(places, v)
        for part in np.array_split(ahead, len(ahead) // 16 + 1):
            paths.advance(part)
        for optimiser in optimisers:
            optimiser.step()
        average.update_parameters(model)
        means += [true.item(), *readings.tolist()]
        if rank.main and step % 25 == 24:
            row = dict(
                step=step + 1,
                diffusion=round(means[0] / 25, 4),
                readings=(means[1:] / 25).round(4).tolist(),
                seconds=round(time.monotonic() - clock, 1),
            )
            log.write(json.dumps(row) + "\n"), log.flush()
            bar.set_postfix(readings=row["readings"])
            means[:] = 0
        if rank.main and (step % 100 == 99 or step == recipe.writing_steps - 1):
            save_training(path, step + 1, model, average, optimisers)
