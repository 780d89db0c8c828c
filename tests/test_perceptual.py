"""The loss on what the network's own recogniser makes of the lines."""

import numpy as np
import pytest
import torch
from micro_network import SIDE, micro_batch, micro_network

from anytext_lcm import lora
from anytext_lcm.distill import DistillStep, run_distillation, seeded_generator
from anytext_lcm.model.crop import crop_image
from anytext_lcm.perceptual import line_distance
from anytext_lcm.settings import TrainSettings


def network():
    """The micro network with a recogniser that sees: with untrained statistics its features hardly move."""
    model = micro_network()
    recogniser = model.text_predictor
    for module in recogniser.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # these alone: dropout would draw from the global generator
            module.momentum = 1.0
            module.train()
    with torch.no_grad():
        recogniser(torch.rand(4, 3, 48, 320, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    recogniser.eval()
    return model


def student(seed=1):
    """The same one each time, with an adapter that already says something."""
    model, generator = network(), torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lora.attach(model, 4, 4)
    for parameter in lora.adapter_state(model).values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def distance(model, images, batch, weight=None, wanted=None):
    weight = torch.ones(len(images)) if weight is None else weight
    wanted = batch["img"] if wanted is None else wanted
    return line_distance(model.text_predictor, images, wanted, batch["positions"], batch["n_lines"], weight)


def test_zero_when_equal_and_by_hand():
    model, batch = network(), micro_batch()
    images = batch["img"].flip(0)
    assert distance(model, batch["img"], batch) == 0
    found, wanted = distance(model, images, batch, torch.tensor([2.0, 0.5])), []
    for picture, line, weight in ((0, 0, 2.0), (0, 1, 2.0), (1, 0, 0.5)):
        mask = batch["positions"][picture, line].numpy().astype(np.uint8) * 255
        both = [crop_image((of[picture] + 1) * 127.5, mask) for of in (images, batch["img"])]
        one, other = model.text_predictor.neck_features(both)
        wanted.append(weight * (one - other).square().mean())
    torch.testing.assert_close(found, sum(wanted) / 3)


def test_only_the_lines_count_and_in_fp32():
    model, batch = network(), micro_batch()
    outside = batch["img"].clone()
    outside[:, :, 58:] = 0  # no line of the micro batch lies there
    assert distance(model, outside, batch) == 0
    plain = distance(model, batch["img"].flip(0), batch)
    model.text_predictor.to(torch.bfloat16)  # its weights are rounded, the arithmetic is not
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = distance(model, batch["img"].flip(0), batch)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, plain, rtol=0.1, atol=0)


@pytest.mark.parametrize("objective", ["lcm", "teacher_x0"])
def test_in_the_step(objective):
    """Off it is the step without it, bit for bit; on it adds its own gradient, to the adapter alone."""

    def run(**options):
        model = student()
        parts = DistillStep(model, objective, **options)(micro_batch(), seeded_generator(3))
        parts.loss.backward()
        return model, parts, {key: p.grad for key, p in lora.adapter_state(model).items()}

    _, plain, gradient = run()
    _, off, same = run(recogniser_weight=0.0)
    assert torch.equal(plain.loss, off.loss) and all(torch.equal(gradient[key], same[key]) for key in gradient)
    model, on, more = run(recogniser_weight=10.0)
    assert torch.equal(on.pred, plain.pred) and on.loss.dtype == torch.float32
    batch, weight = micro_batch(), model.alphas_cumprod[on.start_timesteps]
    with torch.no_grad():
        wanted = plain.loss + 10 * distance(model, model.decode(on.pred), batch, weight)
    torch.testing.assert_close(on.loss.detach(), wanted)
    assert on.loss > plain.loss
    moved = [key for key in gradient if not torch.equal(gradient[key], more[key])]
    assert len(moved) == len(gradient)  # the decoder passes the gradient on to every layer of the adapter
    adapter = {id(p) for p in lora.adapter_state(model).values()}
    assert [name for name, p in model.named_parameters() if id(p) not in adapter and p.grad is not None] == []


def test_a_batch_without_pictures_is_refused():
    model, batch = student(), micro_batch()
    latents = torch.zeros(2, model.latent_channels, SIDE // 8, SIDE // 8)
    lean = {key: value for key, value in batch.items() if key != "img"} | {"latents": latents}
    with pytest.raises(ValueError, match="give the batch its img"):
        DistillStep(model, recogniser_weight=1.0)(lean, seeded_generator(0))


def test_a_run_with_it_trains(teacher, tmp_path):
    settings = {
        "config": str(teacher / "micro.yaml"), "teacher_ckpt": str(teacher / "micro.safetensors"),
        "use_mock_dataset": True, "dataset_size": 2, "train_batch_size": 2, "gradient_accumulation_steps": 1,
        "lora_rank": 1, "lora_alpha": 1, "max_train_steps": 1, "sample_steps": 0, "mixed_precision": "bf16",
        "guidance_scale": 2.0, "negative_prompt": "", "progress": False, "recogniser_weight": 1.0,
    }  # fmt: skip
    last = run_distillation(settings | {"output_dir": str(tmp_path)})
    assert (last / "adapter_model.safetensors").is_file()
    with pytest.raises(ValueError, match="recogniser_weight must not be negative"):
        TrainSettings.from_dict(settings | {"output_dir": str(tmp_path), "recogniser_weight": -1.0})
