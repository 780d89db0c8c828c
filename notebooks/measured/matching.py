"""A pilot of distribution matching (arXiv:2311.18828, 2405.14867) from the shipped adapter, without a discriminator.

Is one step nearer to real pictures when the student's own pictures are moved to where the guided teacher finds them
likelier than a second LoRA, which learns the student's pictures, does? `python notebooks/measured/matching.py` trains,
draws a panel by both students and prints distance and diversity. Both LoRAs live in one model.

The networks predict v, and at t = 999 their eps says nearly nothing about x0, so the second LoRA's loss is on v and it
is never asked above t = 980. A student's picture is x0 at t = 999, alpha x - sigma v, where nothing is amplified.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig
from peft.functional import inject_adapter_in_model
from torch import Tensor

from anytext_lcm.adapter.lora import Adapter, adapter_layers, load_adapter, resolve_adapter, save_adapter
from anytext_lcm.command import finite, natural, new_parser, positive, run
from anytext_lcm.data.batch import collate
from anytext_lcm.drawing.cores import use_available_cores
from anytext_lcm.judging.compare import compare_methods
from anytext_lcm.judging.panel import Panel
from anytext_lcm.lcm.consistency import l2
from anytext_lcm.lcm.schedule import NoiseSchedule, lcm_timesteps
from anytext_lcm.lcm.steps import guide
from anytext_lcm.model.anytext2 import AnyText2, Conditioning
from anytext_lcm.model.loading import load_chosen
from anytext_lcm.model.networks import EMBEDDED_CONFIG, checkpoint_for, defaults_for
from anytext_lcm.training.path_store import Wishes
from anytext_lcm.training.settings import TrainSettings

STUDENT, FAKE = "default", "fake"  # names of the two LoRAs in PEFT's layers
LOWEST, HIGHEST = 20, 980  # where real and fake are compared


class Matching:
    """The two losses. Every method draws its random numbers from `generator`."""

    def __init__(self, model: AnyText2, guidance: float, negative: str, steps: int, generator: torch.Generator):
        self.model, self.guidance, self.negative, self.generator = model, guidance, negative, generator
        self.schedule, self.starts = NoiseSchedule(model.alphas_cumprod), lcm_timesteps(steps)
        self.adapter = Adapter.of(model)

    @contextmanager
    def wearing(self, name: str) -> Iterator[None]:
        """Inside, the model has one of the two LoRAs."""
        for layer in self.adapter.layers.values():
            layer._active_adapter = [name]
        try:
            yield
        finally:
            for layer in self.adapter.layers.values():
                layer._active_adapter = [STUDENT]

    def noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator).to(like.device)

    def x0(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Clean latents by the LoRA that the model has."""
        return self.schedule.x0_from_eps(x, self.model.predict_noise(x, t, cond, self.model.control(cond)), t)

    @torch.no_grad()
    def real(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Clean latents of the guided teacher."""
        both = Conditioning.cat([cond, self.model.uncondition(cond, self.negative)])
        with self.adapter.off():
            control = self.model.control(both)
            eps = self.model.predict_noise(torch.cat([x, x]), torch.cat([t, t]), both, control)
        return self.schedule.x0_from_eps(x, guide(*eps.chunk(2), self.guidance), t)

    def picture(self, cond: Conditioning) -> Tensor:
        """The student's own clean latents (B, C, h, w) after 1 to `steps` steps; the last one alone has a gradient."""
        stop = int(torch.randint(len(self.starts), (1,), generator=self.generator))
        x = self.noise(cond.masked_latents)
        for place, start in enumerate(self.starts[: stop + 1]):
            t = start.expand(len(cond)).to(x.device)
            with torch.set_grad_enabled(place == stop and torch.is_grad_enabled()):
                clean = self.x0(x, t, cond)
            if place < stop:
                x = self.schedule.add_noise(clean, self.noise(x), self.starts[place + 1].expand(len(cond)).to(x.device))
        return clean

    def noised(self, clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x at random timesteps, these, and the noise that was added."""
        t = torch.randint(LOWEST, HIGHEST + 1, (len(clean),), generator=self.generator).to(clean.device)
        added = self.noise(clean)
        return self.schedule.add_noise(clean, added, t), t, added

    def student_loss(self, cond: Conditioning) -> Tensor:
        """Half the squared distance to where the difference of the two scores points, per unit of x's own error."""
        clean = self.picture(cond)
        with torch.no_grad():
            x, t, _ = self.noised(clean.detach())
            real = self.real(x, t, cond)
            with self.wearing(FAKE):
                fake = self.x0(x, t, cond)
            size = (clean - real).abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-3)
            wanted = clean - (fake - real) / size
        return 0.5 * l2(clean, wanted)

    def fake_loss(self, cond: Conditioning) -> Tensor:
        """The second LoRA's squared error in v on the student's present pictures."""
        with torch.no_grad():
            clean = self.picture(cond)
        x, t, added = self.noised(clean)
        with self.wearing(FAKE):
            found = self.x0(x, t, cond)
        alpha, sigma = self.schedule.alpha_sigma(t, x)
        return l2((alpha * x - found) / sigma, self.schedule.v_from_x0_eps(clean, added, t))


def add_fake(model: AnyText2) -> None:
    """Put the second LoRA beside the student's, of the same layers and rank; it changes nothing yet."""
    adapter = Adapter.of(model)
    names = list(adapter.layers)
    config = LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=0.0, bias="none", target_modules=names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there will be several adapters, which is what is wanted
        inject_adapter_in_model(config, model, adapter_name=FAKE)
    for layer in adapter_layers(model).values():  # PEFT has switched to the new one
        layer._active_adapter = [STUDENT]


def parameters(model: AnyText2, name: str) -> list[Tensor]:
    """The weights of one LoRA, trainable from here on."""
    layers = adapter_layers(model).values()
    found = [getattr(layer, f"lora_{matrix}")[name].weight for layer in layers for matrix in "AB"]
    return [parameter.requires_grad_(True) for parameter in found]


def train(args: argparse.Namespace, settings: TrainSettings, model: AnyText2) -> None:
    """Move the student, in place; the fake is trained `--ratio` times as often."""
    generator = torch.Generator().manual_seed(args.seed)
    match = Matching(model, settings.guidance_scale, settings.negative_prompt, args.steps, generator)
    wishes = Wishes(settings, args.updates * args.batch * (1 + args.ratio), None)
    rates = {STUDENT: args.learning_rate, FAKE: args.fake_rate}
    weights = {name: parameters(model, name) for name in rates}
    optimizers = {name: torch.optim.AdamW(weights[name], lr=rates[name], weight_decay=0.0) for name in rates}
    for update in range(args.updates):
        losses = {}
        for turn in range(args.ratio + 1):
            first = (update * (args.ratio + 1) + turn) * args.batch
            batch = collate([wishes[first + row] for row in range(args.batch)])
            with torch.no_grad():
                cond = model.condition(batch, generator, model.blank_moments(*batch["masked_img"].shape[-2:]))
            name = STUDENT if turn == args.ratio else FAKE
            loss = match.student_loss(cond) if name == STUDENT else match.fake_loss(cond)
            grads = torch.autograd.grad(loss, weights[name], allow_unused=True)
            for parameter, grad in zip(weights[name], grads, strict=True):
                parameter.grad = grad
            torch.nn.utils.clip_grad_norm_(weights[name], 1.0)
            optimizers[name].step()
            losses[name] = loss.item()
        if not all(value == value for value in losses.values()):
            raise FloatingPointError(f"Update {update + 1} has a loss that is no number: lower --learning_rate.")
        if update % 10 == 9 or update + 1 == args.updates:
            print(f"update {update + 1}: student {losses[STUDENT]:.4f}, fake {losses[FAKE]:.4f}", flush=True)


def work(args: argparse.Namespace) -> str:
    """Train, draw by both students, and compare."""
    ckpt = args.ckpt or str(checkpoint_for(args.config, "--ckpt"))
    shipped, output, defaults = resolve_adapter(args.adapter), Path(args.output), defaults_for(args.config)
    own = {"config": args.config, "teacher_ckpt": ckpt, "output_dir": str(output), "paths": "none", "seed": args.seed}
    settings = TrainSettings.from_dict(own)
    use_available_cores()
    model = load_adapter(load_chosen(args.config, ckpt), shipped, trainable=True)
    add_fake(model)
    train(args, settings, model)
    save_adapter(model, output / "adapter")
    model = load_adapter(load_chosen(args.config, ckpt), shipped)
    panel = Panel.build(prompts=args.prompts, seed=args.panel, image_size=defaults.size[0], repeats=2)
    methods = ["teacher-50", *(f"student-{n}" for n in (1, 2, 4))]
    guided = (settings.guidance_scale, settings.negative_prompt)
    report, _ = compare_methods(model, panel, methods, *guided, more_adapters={"matched": output / "adapter"})
    rows = report["methods"]
    matched, lcm = rows["student-1@matched"], rows["student-1"]
    near, kept = matched["distribution"]["kernel"]["value"], matched["diversity"]["value"] / lcm["diversity"]["value"]
    before = lcm["distribution"]["kernel"]["value"]
    return f"student-1: distance to real {near:.3f}, before {before:.3f}; diversity {kept:.2f} of what it was."


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("matching", "Moves the shipped student by distribution matching and compares the two.")
    parser.prog = "python notebooks/measured/matching.py"
    add = parser.add_argument
    add("--output", default="outputs/matching", help="gets the adapter (default: %(default)s)")
    add("--adapter", default="shipped", help="the student to start from (default: %(default)s)")
    add("--updates", type=positive, default=200, help="of the student (default: %(default)s)")
    add("--batch", type=positive, default=8, help="default: %(default)s")
    add(
        "--ratio", type=positive, default=2, help="updates of the fake for each of the student's (default: %(default)s)"
    )
    add("--steps", type=positive, default=1, help="the student's pictures have 1 to so many steps (default: 1)")
    add("--learning_rate", type=finite, default=1e-5, help="default: %(default)s")
    add("--fake_rate", type=finite, default=5e-5, help="default: %(default)s")
    add("--prompts", type=positive, default=128, help="of the panel, two noises each (default: %(default)s)")
    add("--panel", type=natural, default=7, help="its seed (default: %(default)s)")
    add("--seed", type=natural, default=0, help="of the training (default: %(default)s)")
    add("--config", default=str(EMBEDDED_CONFIG), help="yaml of the network (default: the embedded one)")
    add("--ckpt", help="weights of the teacher (default: those that come with the yaml)")
    return parser


if __name__ == "__main__":
    sys.exit(run(build_parser(), work))
