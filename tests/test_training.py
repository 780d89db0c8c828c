"""The training step and the loop around it, on a network of a few thousand weights."""

import json
import math
import time
from dataclasses import fields

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from micro_network import CHANNELS, SIDE, micro_batch, micro_network
from PIL import Image
from processes import finish, start_ranks
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from anytext_lcm import train
from anytext_lcm.adapter import lora
from anytext_lcm.adapter.targets import find_targets
from anytext_lcm.data.batch import Line, build_conditioning, collate
from anytext_lcm.data.packed import expand
from anytext_lcm.drawing.draw import predictor, prepare
from anytext_lcm.lcm.consistency import consistency_function
from anytext_lcm.lcm.objectives import OBJECTIVES
from anytext_lcm.lcm.schedule import lcm_timesteps
from anytext_lcm.lcm.steps import guide
from anytext_lcm.model.networks import EMBEDDED_CHECKPOINT
from anytext_lcm.training import data_order, loop
from anytext_lcm.training.data_order import batch_generator, batch_indices, seeded_generator
from anytext_lcm.training.loop import run_distillation
from anytext_lcm.training.processes import fresh_accelerate_state, start_accelerator
from anytext_lcm.training.settings import TrainSettings
from anytext_lcm.training.step import DistillStep, latent_weight
from anytext_lcm.training.step import update as update_weights


def student(rank=4, seed=1, targets=None):
    """The micro network with an adapter that already changes its predictions."""
    model = lora.attach(micro_network(), rank, rank, targets)
    generator = torch.Generator().manual_seed(seed)
    for parameter in lora.adapter_state(model).values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def grads(model):
    return {key: parameter.grad for key, parameter in lora.adapter_state(model).items()}


# -- the step ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False])
def test_lcm_step_equals_one_written_out(fast):
    """Cond and uncond one after the other, residuals computed anew each time, nothing shared or batched."""
    model, batch = student(), micro_batch()
    model.control_model.fast_control = fast  # without it the residuals are those of their latents and timesteps
    parts = DistillStep(model, guidance_scale=7.5, negative_prompt="blurry")(batch, seeded_generator(5))
    with torch.no_grad():
        g = seeded_generator(5)  # the same draws in the same order
        latents = model.encode(batch["img"], g)
        cond = model.condition(batch, g)
        uncond = model.uncondition(cond, "blurry")
        index = torch.randint(50, (2,), generator=g)
        noise = torch.randn(latents.shape, generator=g)
        t, s = 20 * (index + 1) - 1, (20 * index - 1).clamp(min=0)
        abar = model.alphas_cumprod

        def a(time):
            return abar[time].view(-1, 1, 1, 1)

        x_t = a(t).sqrt() * latents + (1 - a(t)).sqrt() * noise
        with lora.adapter_off(model):
            eps_c = model.predict_noise(x_t, t, cond, model.control(cond, x_t, t))
            eps_u = model.predict_noise(x_t, t, uncond, model.control(uncond, x_t, t))
        eps = eps_u + 7.5 * (eps_c - eps_u)
        x0 = (x_t - (1 - a(t)).sqrt() * eps) / a(t).sqrt()
        x_s = a(s).sqrt() * x0 + (1 - a(s)).sqrt() * eps

        def f(x, time):
            eps = model.predict_noise(x, time, cond, model.control(cond, x, time))
            r = 10.0 * time.view(-1, 1, 1, 1)
            x0 = (x - (1 - a(time)).sqrt() * eps) / a(time).sqrt()
            return 0.25 / (r**2 + 0.25) * x + r / (r**2 + 0.25).sqrt() * x0

        difference = f(x_t, t) - f(x_s, s)
        loss = ((difference**2 + 1e-6).sqrt() - 1e-3).mean()
    torch.testing.assert_close(parts.noisy_latents, x_t)
    torch.testing.assert_close(parts.teacher_x0, x0, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(parts.loss.detach(), loss, rtol=1e-3, atol=1e-4)
    assert parts.loss.dtype == torch.float32 and parts.start_timesteps.tolist() == t.tolist()


def test_teacher_x0_step():
    model, batch = student(), micro_batch()
    parts = DistillStep(model, objective="teacher_x0", guidance_scale=3.0)(batch, seeded_generator(5))
    t = parts.start_timesteps
    schedule = DistillStep(model).schedule
    with torch.no_grad():
        g = seeded_generator(5)
        model.encode(batch["img"], g)
        cond = model.condition(batch, g)
        uncond = model.uncondition(cond)
        with lora.adapter_off(model):
            eps = [model.predict_noise(parts.noisy_latents, t, c, model.control(c)) for c in (cond, uncond)]
        wanted = schedule.x0_from_eps(parts.noisy_latents, guide(*eps, 3.0), t)
        pred = model.predict_noise(parts.noisy_latents, t, cond, model.control(cond))
    torch.testing.assert_close(parts.target, wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        parts.pred.detach(), schedule.x0_from_eps(parts.noisy_latents, pred, t), rtol=1e-3, atol=1e-3
    )
    parts.loss.backward()
    assert all(gradient.abs().sum() > 0 for gradient in grads(model).values())


def elsewhere(point):
    """Another place on the way, noisier than (x_t, t)."""
    return 0.5 * point.x_t, (point.t + 300).clamp(max=999)


@pytest.mark.parametrize("targets", [None, ["unet_decoder"]])
def test_an_objective_that_asks_all_networks_elsewhere_changes_nothing_for_the_student(targets):
    """With an adapter in the decoder alone teacher and student share encodings, those of (x_t, t) and of no other."""
    looks = []

    def curious(point):
        for network in (point.teacher, point.target):
            looks.append((elsewhere(point), network(*elsewhere(point))))
        compared = OBJECTIVES["lcm"](point)
        looks.append(((point.x_t, point.t), point.teacher(point.x_t, point.t)))
        return compared

    model, found = student(targets=targets), []
    step = DistillStep(model, guidance_scale=3.0)
    assert step.adapts_encoder == step.adapts_control == (targets is None)
    for step.objective in (OBJECTIVES["lcm"], curious):
        model.zero_grad()
        parts = step(micro_batch(), seeded_generator(3))
        parts.loss.backward()
        found.append((parts.pred, parts.target, parts.loss, parts.teacher_x0, *grads(model).values()))
    assert all(torch.equal(once, again) for once, again in zip(*found, strict=True))

    # And each look is what its network says there, computed alone and with nothing shared.
    with torch.no_grad():
        g = seeded_generator(3)
        model.encode(micro_batch()["img"], g)
        cond = model.condition(micro_batch(), g)
        (there, of_teacher), (_, of_target), (here, again) = looks
        with lora.adapter_off(model):
            for place, eps in ((there, of_teacher), (here, again)):
                alone = [model.predict_noise(*place, c, model.control(c)) for c in (cond, model.uncondition(cond))]
                torch.testing.assert_close(eps, guide(*alone, 3.0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(of_target, model.predict_noise(*there, cond, model.control(cond)))
        pred = consistency_function(
            *here[:1], model.predict_noise(*here, cond, model.control(cond)), here[1], step.schedule
        )
    torch.testing.assert_close(found[0][0].detach(), pred, rtol=1e-4, atol=1e-4)
    assert not any(eps.requires_grad for _, eps in looks)


def test_two_calls_of_the_student_are_one_prediction():
    """An objective may ask the student twice, as it would for two losses: both carry the same gradient."""

    def twice(point):
        first, second = OBJECTIVES["lcm"](point), OBJECTIVES["lcm"](point)
        assert torch.equal(first.pred, second.pred) and first.pred.requires_grad
        return first._replace(pred=(first.pred + second.pred) / 2)

    model, found = student(targets=["unet_decoder"]), []
    step = DistillStep(model)
    for step.objective in (OBJECTIVES["lcm"], twice):
        model.zero_grad()
        step(micro_batch(), seeded_generator(3)).loss.backward()
        found.append(torch.cat([gradient.flatten() for gradient in grads(model).values()]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("objective", ["lcm", "teacher_x0"])
def test_every_adapted_module_gets_a_gradient_and_nothing_else(objective):
    model = student()
    DistillStep(model, objective=objective)(micro_batch(), seeded_generator(0)).loss.backward()
    for key, gradient in grads(model).items():
        assert gradient is not None and gradient.abs().sum() > 0, key
    adapter = {id(parameter) for parameter in lora.adapter_state(model).values()}
    others = [name for name, p in model.named_parameters() if id(p) not in adapter and p.grad is not None]
    assert others == []


def test_gradient_by_finite_differences_with_the_target_held_still():
    model, batch = student(), micro_batch()
    step = DistillStep(model)
    parts = step(batch, seeded_generator(3))
    parts.loss.backward()
    schedule = step.schedule
    with torch.no_grad():
        g = seeded_generator(3)
        model.encode(batch["img"], g)
        cond = model.condition(batch, g)

    def loss():
        with torch.no_grad():
            eps = model.predict_noise(parts.noisy_latents, parts.start_timesteps, cond, model.control(cond))
            pred = consistency_function(parts.noisy_latents, eps, parts.start_timesteps, schedule)
            return ((pred - parts.target).double() ** 2 + 1e-6).sqrt().sub(1e-3).mean().item()

    for group in ("zero_convs", "unet_attention"):
        name = find_targets(model)[group][0]
        parameter = lora.adapter_state(model)[f"base_model.model.{name}.lora_B.weight"]
        direction = parameter.grad / parameter.grad.norm()
        with torch.no_grad():
            parameter += 1e-2 * direction
            above = loss()
            parameter -= 2e-2 * direction
            below = loss()
            parameter += 1e-2 * direction
        assert (above - below) / 2e-2 == pytest.approx(parameter.grad.norm().item(), rel=0.05), group


def test_the_teacher_does_not_notice_training():
    model, batch = student(), micro_batch()
    step = DistillStep(model)
    before = step(batch, seeded_generator(1)).teacher_x0
    optimizer = torch.optim.AdamW(lora.adapter_state(model).values(), lr=0.05)
    for _ in range(3):
        step(batch, seeded_generator(1)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = step(batch, seeded_generator(1))
    assert torch.equal(after.teacher_x0, before)
    untouched = micro_network().state_dict()
    for name, value in model.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(value, untouched[name.replace(".base_layer", "")]), name


@pytest.mark.parametrize("objective", ["lcm", "teacher_x0"])
def test_the_loss_falls_on_a_fixed_batch(objective):
    model, batch = lora.attach(micro_network(), 8, 8), micro_batch()
    step = DistillStep(model, objective=objective, guidance_scale=3.0)
    optimizer = torch.optim.AdamW(lora.adapter_state(model).values(), lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(10):
        loss = step(batch, seeded_generator(1)).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_ignored_pixels_do_not_count():
    inv_mask = torch.zeros(1, 1, 16, 32)
    inv_mask[..., :8, :8], inv_mask[..., 8:, 28:] = 1, 1
    weight = latent_weight(inv_mask.to(torch.uint8), torch.zeros(1, 4, 2, 4))
    torch.testing.assert_close(weight, torch.tensor([[[[0.0, 1, 1, 1], [1, 1, 1, 0.5]]]]))
    model, batch = student(), micro_batch()
    batch["inv_mask"][:, :, : SIDE // 2] = 1
    parts = DistillStep(model)(batch, seeded_generator(1))
    half = (parts.pred - parts.target)[:, :, SIDE // 16 :]
    torch.testing.assert_close(parts.loss, (half**2 + 1e-6).sqrt().sub(1e-3).mean(), rtol=1e-4, atol=1e-6)


def test_precomputed_latents_spare_the_autoencoder():
    model, batch = student(), micro_batch()
    z = torch.randn(2, CHANNELS, SIDE // 8, SIDE // 8)
    lean = {k: v for k, v in batch.items() if k not in ("img", "masked_img")}
    parts = DistillStep(model)(lean | {"latents": z, "masked_latents": z}, seeded_generator(1))
    t, g = parts.start_timesteps, seeded_generator(1)
    torch.randint(50, (2,), generator=g)
    noise = torch.randn(z.shape, generator=g)
    torch.testing.assert_close(parts.noisy_latents, DistillStep(model).schedule.add_noise(z, noise, t))


def test_without_fast_control_the_adapter_learns_and_draws_by_residuals_of_every_call():
    model, batch = student(), micro_batch()
    model.control_model.fast_control = False
    DistillStep(model)(batch, seeded_generator(1)).loss.backward()
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in grads(model).values())
    prepared = prepare(model, batch, (3, 4))
    x, t = torch.randn(2, CHANNELS, SIDE // 8, SIDE // 8), torch.tensor([259, 999])
    with torch.no_grad():
        branches = (prepared.conditional, prepared.unconditional)
        eps = [model.predict_noise(x, t, c, model.control(c, x, t, strength=0.5)) for c in branches]
        for scale, wanted in ((1.0, eps[0]), (3.0, eps[1] + 3.0 * (eps[0] - eps[1]))):
            found = predictor(model, prepared, scale, strength=0.5)(x, t)
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_text_counts_as_often_as_asked():
    model, batch = student(), micro_batch()
    batch["inv_mask"][:, :, :8] = 1
    parts = DistillStep(model, text_factor=5.0)(batch, seeded_generator(1))
    blocks = batch["positions"].amax(1).float().reshape(2, 8, 8, 8, 8).mean((2, 4))  # shares of 8 x 8 pixels
    assert blocks.min() == 0 and blocks.max() == 1 and ((blocks > 0) & (blocks < 1)).any()
    weight = (1 + 4 * blocks)[:, None].expand_as(parts.pred).clone()
    weight[:, :, 0] = 0
    losses = ((parts.pred - parts.target) ** 2 + 1e-6).sqrt() - 1e-3
    torch.testing.assert_close(parts.loss, (losses * weight).sum() / weight.sum(), rtol=1e-4, atol=1e-6)
    again = DistillStep(model)(batch, seeded_generator(1))
    assert torch.equal(again.pred, parts.pred) and not torch.isclose(again.loss, parts.loss)


def test_gradient_checkpointing_changes_nothing():
    model, batch = student(), micro_batch()
    step = DistillStep(model)
    step(batch, seeded_generator(1)).loss.backward()
    plain = {key: gradient.clone() for key, gradient in grads(model).items()}
    model.zero_grad()
    model.model.diffusion_model.gradient_checkpointing = model.control_model.gradient_checkpointing = True
    step(batch, seeded_generator(1)).loss.backward()
    for key, gradient in grads(model).items():
        torch.testing.assert_close(gradient, plain[key], rtol=1e-4, atol=1e-6)


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_an_update_is_the_mean_gradient_clipped_and_one_adamw_step(accelerator):
    """Twice, so that AdamW's moments count; the second pair of gradients is below the limit and is not clipped."""
    mine, plain = (torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0])) for _ in range(2))
    optimizer = accelerator.prepare(torch.optim.AdamW([mine], lr=0.1, weight_decay=0.0))
    by_hand = torch.optim.AdamW([plain], lr=0.1, weight_decay=0.0)
    for scale in (10.0, 0.1):
        gradients = scale * torch.randn(2, 3, generator=seeded_generator(1))
        mine.grad, mean = gradients.sum(0), gradients.mean(0)
        norm, moved = update_weights(accelerator, optimizer, [mine], 0.5, batches=2, max_grad_norm=1.0)
        plain.grad = mean * min(1.0, 1.0 / mean.norm().item())
        by_hand.step()
        assert moved and norm == pytest.approx(mean.norm().item()) and (norm > 1) == (scale == 10.0)
        torch.testing.assert_close(mine, plain)
        assert mine.grad is None


@pytest.mark.parametrize("loss, gradient", [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_an_update_that_is_not_finite_moves_nothing(accelerator, loss, gradient):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = accelerator.prepare(torch.optim.AdamW([weight], lr=0.1))
    weight.grad = torch.tensor([1.0, gradient, 1.0])
    _, moved = update_weights(accelerator, optimizer, [weight], loss, batches=1, max_grad_norm=1.0)
    assert not moved and torch.equal(weight.detach(), torch.ones(3))
    assert weight.grad is None and not optimizer.state  # the next update starts as if this one had not been


# -- order and noise --------------------------------------------------------------------------------------


def test_every_item_comes_once_an_epoch_and_to_one_process():
    for world in (1, 3):
        steps = range(20 // (2 * world) + 1)
        dealt = [i for m in steps for r in range(world) for i in batch_indices(10, 2, 4, r, world, m)]
        assert sorted(dealt[:10]) == sorted(dealt[10:20]) == list(range(10)) and dealt[:10] != dealt[10:20]
    assert batch_indices(3, 8, 0, 0, 1, 0) != batch_indices(3, 8, 1, 0, 1, 0)  # smaller than a batch will do
    assert len(batch_indices(3, 8, 0, 0, 1, 0)) == 8


def test_data_drawn_anew_each_epoch_get_the_epoch_in_the_index():
    for step in range(9):
        plain, anew = (batch_indices(5, 3, 4, 1, 2, step, draws_anew_each_epoch=anew) for anew in (False, True))
        first = (2 * step + 1) * 3
        assert anew == [i + (first + k) // 5 * 5 for k, i in enumerate(plain)]


def test_the_order_is_a_permutation_of_torch_and_cheap_at_three_millions():
    wanted = torch.randperm(3_000_000, generator=seeded_generator(1, 0, 1 << 20))[12:16].tolist()
    assert batch_indices(3_000_000, 4, 1, 1, 2, 1) == wanted
    start = time.process_time()
    for step in range(100):
        batch_indices(3_000_000, 4, 1, 1, 2, step)
    assert time.process_time() - start < 1  # one shuffle an epoch, not one a step


def test_generators_are_decided_by_all_keys():
    draws = {tuple(torch.randn(2, generator=seeded_generator(*k)).tolist()) for k in [(0, 0, 1), (0, 1, 0), (1, 0, 0)]}
    assert len(draws) == 3
    assert torch.equal(
        torch.randn(2, generator=seeded_generator(7, 8)), torch.randn(2, generator=seeded_generator(7, 8))
    )


# -- the loop ---------------------------------------------------------------------------------------------


def options(teacher, output, **changes):
    """Settings of a short run of the micro network, on mock data unless the changes name another set."""
    size = {} if changes.get("data_list") else {"dataset_size": 5}
    return {
        "config": str(teacher / "micro.yaml"),
        "teacher_ckpt": str(teacher / "micro.safetensors"),
        "output_dir": str(output),
        "use_mock_dataset": True,
        "train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "lora_rank": 2,
        "lora_alpha": 2,
        "max_train_steps": 2,
        "checkpointing_steps": 1,
        "sample_steps": 2,
        "num_inference_steps": 2,
        "guidance_scale": 2.0,
        "negative_prompt": "",
        "mixed_precision": "no",
        "panel_prompts": 0,
        "progress": False,
    } | (size | changes)


@pytest.fixture(scope="module")
def straight(teacher, tmp_path_factory):
    output = tmp_path_factory.mktemp("straight")
    return run_distillation(options(teacher, output))


def weights(checkpoint):
    return load_file(checkpoint / "adapter_model.safetensors")


def scalars(output):
    sizes = {"scalars": 0, "images": 0}
    return EventAccumulator(str(output / "logs" / "distill"), size_guidance=sizes).Reload()


def test_what_a_run_leaves(straight):
    output = straight.parent
    assert straight.name == "checkpoint-2"
    assert sorted(path.name for path in output.iterdir()) == [
        "checkpoint-1",
        "checkpoint-2",
        "logs",
        "run.yaml",
        "samples",
    ]
    files = ["adapter_config.json", "adapter_model.safetensors", "manifest.json", "training_state.pt"]
    assert sorted(path.name for path in straight.iterdir()) == files
    events = scalars(output)
    for tag in ("loss", "lr", "grad_norm", "x0_gap"):
        values = events.Scalars(tag)
        assert [v.step for v in values] == [1, 2] and all(0 < v.value < 1e4 for v in values), tag
    for steps in (1, 2, 4, 8):
        assert [image.step for image in events.Images(f"samples/student-{steps}")] == [0, 2]
    assert [image.step for image in events.Images("samples/teacher-20")] == [0]
    loaded = lora.load_adapter(micro_network(), straight)
    assert len(lora.adapter_layers(loaded)) == 109


def test_a_resumed_run_is_the_unbroken_one(straight, teacher, tmp_path):
    first = run_distillation(options(teacher, tmp_path, max_train_steps=1, sample_steps=0))
    last = run_distillation(options(teacher, tmp_path, resume_from_checkpoint="latest", sample_steps=0))
    assert first.name == "checkpoint-1" and last.name == "checkpoint-2"
    unbroken, resumed = weights(straight), weights(last)
    assert all(torch.equal(unbroken[key], resumed[key]) for key in unbroken)
    assert not torch.equal(*(torch.cat([v.flatten() for v in weights(c).values()]) for c in (first, last)))


def test_updates_come_one_by_one(teacher, tmp_path):
    """The caller sees each update before the next one begins, with the problems of all its batches."""
    settings = TrainSettings.from_dict(options(teacher, tmp_path, lora_targets=("zero_convs",)))
    batches = [micro_batch() | {"problems": [[f"record {i}"], []]} for i in range(4)]
    with fresh_accelerate_state():
        state = loop.new_student(settings, start_accelerator(settings))
        run = loop.updates(DistillStep(state.model, guidance_scale=2.0), iter(batches), state, settings)
        assert state.progress.step == 0
        first = next(run)
        assert (first.step, first.problems) == (1, ("record 0", "record 1"))
        assert state.progress.step == 1 and len(state.optimizer.state_dict()["state"]) == len(state.parameters)
        [second] = run
    assert (second.step, second.problems) == (2, ("record 2", "record 3"))
    assert first.values.keys() >= {"loss", "lr", "grad_norm", "adapter_norm", "samples_per_second", "skipped_updates"}
    assert first.values["loss"] != second.values["loss"]


def test_runs_that_cannot_go_on(straight, teacher, tmp_path):
    output = straight.parent
    with pytest.raises(ValueError, match="checkpoint-2"):
        run_distillation(options(teacher, output))
    with pytest.raises(ValueError, match="seed 0, now 1"):
        run_distillation(
            options(teacher, output, seed=1, resume_from_checkpoint="latest", max_train_steps=3, sample_steps=0)
        )
    with pytest.raises(ValueError, match="2 steps already"):
        run_distillation(options(teacher, output, resume_from_checkpoint="latest", sample_steps=0))
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        run_distillation(options(teacher, tmp_path, resume_from_checkpoint="latest"))
    with pytest.raises(FileNotFoundError, match="training_state.pt"):
        run_distillation(options(teacher, tmp_path, resume_from_checkpoint=str(tmp_path)))


def test_half_precision_trains_every_target(teacher, tmp_path):
    """The adapter stays fp32 and every part of it moves, though the target used its half-precision copies
    first.
    """
    settings = TrainSettings.from_dict(options(teacher, tmp_path))
    model = loop.load_teacher(settings, torch.bfloat16)
    assert model.dtype == torch.bfloat16 and model.alphas_cumprod.dtype == torch.float32
    changes = dict(mixed_precision="bf16", max_train_steps=1, gradient_accumulation_steps=1, sample_steps=0)
    last = run_distillation(options(teacher, tmp_path, **changes))
    after = weights(last)
    assert {value.dtype for value in after.values()} == {torch.float32}
    still = [key for key, value in after.items() if "lora_B" in key and not value.any()]
    assert still == []  # B starts at zero, and every one has moved


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_rank": 0}, "lora_rank"),
        ({"train_batch_size": -1}, "train_batch_size"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"guidance_scale": math.inf}, "guidance_scale"),
        ({"objective": "gan"}, "gan"),
        ({"mixed_precision": "fp8"}, "fp8"),
        ({"num_inference_steps": 51}, "1 to 50"),
        ({"sample_steps": -1}, "sample_steps"),
        ({"lora_targets": ("unet_atention",)}, "unet_atention"),
        ({"use_mock_dataset": False}, "data set"),
        ({"num_processes": 3}, "ACCELERATE_USE_CPU"),
        ({"mixed_precision": "fp16"}, "needs a GPU"),
        ({"teacher_ckpt": str(EMBEDDED_CHECKPOINT)}, "does not fit"),  # of another network than micro.yaml
        ({"surprise": 1}, "surprise"),
    ],
)
def test_settings_that_cannot_be(teacher, tmp_path, changes, words):
    if changes.get("mixed_precision") == "fp16" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=words):
        run_distillation(options(teacher, tmp_path, **changes))
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"lora_rank": 0}, "--lora_rank must be an integer, at least 1 and at most 1024: 0 is not."),
        ({"lora_rank": True}, "--lora_rank must be an integer, at least 1 and at most 1024: True is not."),
        ({"max_train_steps": 1.5}, "--max_train_steps must be an integer, at least 1: 1.5 is not."),
        ({"seed": -1}, "--seed must be an integer, at least 0 and at most 9223372036854775807: -1 is not."),
        ({"learning_rate": 0}, "--learning_rate must be a number, at most 1 and above 0: 0 is not."),
        ({"huber_c": math.inf}, "--huber_c must be a number, above 0: inf is not."),
        ({"ema_decay": 1.0}, "--ema_decay must be a number, at least 0 and below 1: 1.0 is not."),
        ({"ema_decay": -0.1}, "--ema_decay must be a number, at least 0 and below 1: -0.1 is not."),
        ({"guidance_scale": math.nan}, "--guidance_scale must be a number, at least 1 and at most 100: nan is not."),
        ({"guidance_scale": 0.5}, "--guidance_scale must be a number, at least 1 and at most 100: 0.5 is not."),
        ({"guidance_scale": 1e38}, "--guidance_scale must be a number, at least 1 and at most 100: 1e+38 is not."),
        ({"learning_rate": "1e-4"}, "--learning_rate must be a number, at most 1 and above 0: '1e-4' is not."),
        ({"loss": "l1"}, "--loss 'l1' is unknown; choose huber or l2."),
        ({"mixed_precision": "fp8"}, "--mixed_precision 'fp8' is unknown; choose no or fp16 or bf16."),
    ],
)
def test_bounds_are_said_in_one_sentence(teacher, tmp_path, changes, words):
    with pytest.raises(ValueError) as refused:
        TrainSettings.from_dict(options(teacher, tmp_path, **changes))
    assert str(refused.value) == words


def test_the_ends_of_the_bounds_are_within(teacher, tmp_path):
    ends = {"lora_rank": 1, "seed": 0, "ema_decay": 0.0, "learning_rate": 1, "guidance_scale": 1}
    settings = TrainSettings.from_dict(options(teacher, tmp_path, **ends))
    assert {name: getattr(settings, name) for name in ends} == ends


def test_what_a_resumed_run_may_change(teacher, tmp_path):
    """Where files lie, how long it runs and what is watched; nothing that decides the weights."""
    one = TrainSettings.from_dict(options(teacher, tmp_path)).identity()
    free = dict(output_dir="elsewhere", max_train_steps=99, num_workers=3, sample_steps=7, gradient_checkpointing=True)
    assert TrainSettings.from_dict(options(teacher, tmp_path, **free)).identity() == one
    bound = dict(seed=5, learning_rate=0.5, objective="teacher_x0", lora_targets=("unet_attnx",), train_batch_size=7)
    for name, value in bound.items():
        other = TrainSettings.from_dict(options(teacher, tmp_path, **{name: value})).identity()
        assert {key for key in one if other[key] != one[key]} == {name}
    moved = [TrainSettings.from_dict(options(teacher, tmp_path, latents=place)).identity() for place in ("a", "b")]
    assert moved[0] == moved[1] != one


def test_missing_files_and_names(teacher, tmp_path):
    with pytest.raises(FileNotFoundError, match="teacher_ckpt"):
        run_distillation(options(teacher, tmp_path, teacher_ckpt="nowhere.ckpt"))
    with pytest.raises(ValueError, match="lack output_dir"):
        TrainSettings.from_dict({"config": "a"})


def test_what_the_network_decides(teacher, tmp_path):
    given = options(teacher, tmp_path)
    said = TrainSettings.from_dict(given)
    assert (said.guidance_scale, said.negative_prompt) == (2.0, "")
    free = TrainSettings.from_dict(given | {"guidance_scale": None, "negative_prompt": None})
    assert free.guidance_scale == 7.5 and "low-res" in free.negative_prompt  # not the embedded network
    with pytest.raises(ValueError, match="comes without weights"):
        TrainSettings.from_dict(given | {"teacher_ckpt": None})


# -- several processes ------------------------------------------------------------------------------------


def test_two_processes_train_as_one_with_twice_the_batch(teacher, tmp_path):
    """Both see other items and noise, average their gradients and so keep the same weights."""
    settings = options(teacher, tmp_path / "two", num_processes=2, checkpointing_steps=2, sample_steps=0)
    assert finish(start_ranks(2, run_distillation, settings)) == [0, 0]
    [last] = (tmp_path / "two").glob("checkpoint-*")
    assert last.name == "checkpoint-2"

    # The same by hand: one process, the items and noise of both.
    configuration = TrainSettings.from_dict(settings | {"num_processes": None})
    model = loop.load_teacher(configuration)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lora.attach(model, 2, 2)
    step, dataset = DistillStep(model, guidance_scale=2.0), data_order.build_dataset(configuration)
    optimizer = torch.optim.AdamW(lora.adapter_state(model).values(), lr=1e-2, weight_decay=0.0)
    for update in range(2):
        for micro in (2 * update, 2 * update + 1):
            for rank in (0, 1):
                items = [dataset[i] for i in batch_indices(5, 2, 0, rank, 2, micro)]
                batch = expand(collate(items))
                (step(batch, batch_generator(0, rank, 2, micro)).loss / 4).backward()
        torch.nn.utils.clip_grad_norm_(list(lora.adapter_state(model).values()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    by_hand = lora.adapter_state(model)
    pairs = [(value.flatten(), by_hand[key].detach().flatten()) for key, value in weights(last).items()]
    mine, expected = (torch.cat(side) for side in zip(*pairs, strict=True))
    close = torch.isclose(mine, expected, rtol=1e-3, atol=1e-4).float().mean()
    assert close > 0.999  # Adam blows up the rounding of the few gradients near its eps ...
    torch.testing.assert_close(mine, expected, rtol=1e-3, atol=5e-4)  # ... to 5 % of one update of 1e-2 at most


# -- other data -------------------------------------------------------------------------------------------


def test_records_on_disk_train_and_resume_exactly(teacher, tmp_path, capsys):
    """Also from the middle of an epoch, with workers, and with a record that has no picture."""
    lines = [{"polygon": [[4, 20], [60, 20], [60, 44], [4, 44]], "text": "Word", "language": "Latin"}]
    records = [{"img_name": f"{i}.png", "caption": f"no {i}", "annotations": lines} for i in range(5)]
    for i in range(4):
        Image.new("RGB", (SIDE, SIDE), (40 * i, 90, 120)).save(tmp_path / f"{i}.png")
    (tmp_path / "data.json").write_text(json.dumps({"data_root": ".", "data_list": records}))
    named = {"use_mock_dataset": False, "data_list": (str(tmp_path / "data.json"),), "sample_steps": 0}
    named |= {"train_batch_size": 3, "gradient_accumulation_steps": 1, "lora_targets": ("zero_convs",)}
    unbroken = run_distillation(options(teacher, tmp_path / "one", **named))
    assert "record 4, picture" in capsys.readouterr().out
    run_distillation(options(teacher, tmp_path / "two", **named, max_train_steps=1))
    again = options(teacher, tmp_path / "two", **named, num_workers=1, resume_from_checkpoint="latest")
    resumed = run_distillation(again)
    for key, value in weights(unbroken).items():
        assert torch.equal(weights(resumed)[key], value), key
    with pytest.raises(ValueError, match="record 4, picture"):
        run_distillation(options(teacher, tmp_path / "three", **named, strict=True))
    strict = [
        "--config",
        str(teacher / "micro.yaml"),
        "--teacher_ckpt",
        str(teacher / "micro.safetensors"),
        "--output_dir",
        str(tmp_path / "three"),
        "--data_list",
        str(tmp_path / "data.json"),
        "--strict",
        "--num_workers",
        "1",
        "--sample_steps",
        "0",
        "--no-progress",
        "--lora_rank",
        "1",
    ]
    capsys.readouterr()
    assert train.main(strict) == 2  # what a worker says is one sentence too
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "record 4, picture" in said and "\n" not in said and "Bad" not in said
    with pytest.raises(ValueError, match="Both data sets were named"):
        run_distillation(options(teacher, tmp_path / "four", data_list=("a.json",)))
    with pytest.raises(ValueError, match="No data set was named; pass --use_mock_dataset or --data_list"):
        run_distillation(options(teacher, tmp_path / "four", use_mock_dataset=False))


class OwnPictures(torch.utils.data.Dataset):
    """A user's data: whatever holds to the contract trains."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        line = Line("Word", np.array([[4, 20], [60, 20], [60, 44], [4, 44]]))
        item = build_conditioning([line], (SIDE, SIDE), max_lines=1)
        return item | {"img": np.full((3, SIDE, SIDE), 0.1 * index, np.float32), "img_caption": "a wall"}


def test_a_data_set_of_ones_own_trains(teacher, tmp_path):
    settings = options(teacher, tmp_path, use_mock_dataset=False, max_train_steps=1)
    last = run_distillation(settings, dataset=OwnPictures())
    assert any(value.abs().max() > 0 for key, value in weights(last).items() if "lora_B" in key)


# -- the command ------------------------------------------------------------------------------------------


def test_the_command_has_a_flag_for_every_setting():
    text = " ".join(train.build_parser().format_help().split())
    for setting in fields(TrainSettings):
        assert f"--{setting.name}" in text
    flags = "--config c --teacher_ckpt t --output_dir o --use_mock_dataset --lora_targets zero_convs unet_attnx"
    parsed = train.build_parser().parse_args(flags.split())
    assert parsed.use_mock_dataset is True and parsed.lora_targets == ["zero_convs", "unet_attnx"]
    assert parsed.train_batch_size == 12 and parsed.guidance_scale is None and parsed.image_size is None


def test_the_trained_grid_holds_what_samplers_ask():
    asked = {t for steps in range(1, 51) for t in lcm_timesteps(steps).tolist()}
    solver = DistillStep(student()).solver
    assert asked <= set(solver.start_timesteps(torch.arange(len(solver))).tolist())


def test_the_command_trains(teacher, tmp_path, capsys):
    good = ["--config", str(teacher / "micro.yaml"), "--output_dir", str(tmp_path), "--use_mock_dataset"]
    good += ["--teacher_ckpt", str(teacher / "micro.safetensors")]
    assert train.main([*good, "--lora_targets", "zero_conv"]) == 2  # seen once the network is there
    error = capsys.readouterr().err
    assert "zero_conv" in error and error.count("\n") == 1
    short = "--max_train_steps 1 --train_batch_size 1 --gradient_accumulation_steps 1 --lora_rank 1"
    quiet = "--sample_steps 0 --no-progress --mixed_precision no"
    assert train.main([*good, *short.split(), *quiet.split()]) == 0
    assert (tmp_path / "checkpoint-1" / "adapter_model.safetensors").is_file()
