"""Check that both sides compute the same, since times of two different things are not compared."""

from dataclasses import replace

import numpy as np

from anytext_lcm.drawing.cores import use_available_cores
from anytext_lcm.drawing.draw import Prepared, denoise
from anytext_lcm.drawing.methods import teacher_method
from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.timing.process import in_own_process
from anytext_lcm.timing.public_script import reference_denoise
from anytext_lcm.timing.variants import PAIRS, Options, Variant, build_training, example_batch

# Noise and timesteps are the same; only the order of summation may differ.
LOSS_TOLERANCE, GRADIENT_TOLERANCE, LATENT_TOLERANCE = 1e-5, 1e-3, 1e-3


def check_steps(options: Options) -> dict[str, dict[str, float]]:
    """`compare_steps` of the pairs that compute something else, on two pictures in fp32, by the pair's name."""
    small = replace(options, batch=min(2, options.batch), precision="no")
    return {
        pair: compare_steps(*(in_own_process(loss_and_gradient, Variant(by, **alike), small) for by in (True, False)))
        for pair, alike in PAIRS.items()
        if not alike.get("checkpointing")  # which changes when things are computed, not what
    }


def loss_and_gradient(variant: Variant, options: Options) -> tuple[float, np.ndarray]:
    """Loss and adapter gradient (N,) float64 of one fixed step, with networks of its own."""
    use_available_cores()
    return build_training(variant, options, example_batch(options)).loss_and_gradient()


def compare_steps(reference: tuple[float, np.ndarray], ours: tuple[float, np.ndarray]) -> dict[str, float]:
    """Both losses, their difference, and the relative L2 difference of the gradients, from `loss_and_gradient`.

    Raises ArithmeticError beyond LOSS_TOLERANCE or GRADIENT_TOLERANCE.
    """
    (loss, gradient), (other, changed) = reference, ours
    result = {
        "reference loss": loss,
        "our loss": other,
        "difference": abs(loss - other),
        "gradient": float(np.linalg.norm(gradient - changed) / np.linalg.norm(gradient)),
    }
    if not (result["difference"] <= LOSS_TOLERANCE and result["gradient"] <= GRADIENT_TOLERANCE):
        raise ArithmeticError(
            f"The reference step and ours differ: losses {loss:.8f} and {other:.8f}, "
            f"gradients by {result['gradient']:.1e}; the times of two different things are not compared."
        )
    return result


def compare_samplers(model: AnyText2, prepared: Prepared, guidance_scale: float, steps: int = 4) -> float:
    """Largest difference of the latents after a few DDIM steps in fp32, relative to the largest number in them.

    Raises ArithmeticError beyond LATENT_TOLERANCE.
    """
    before = reference_denoise(model, prepared, steps, guidance_scale)
    after = denoise(model, prepared, teacher_method(steps, guidance_scale, "leading"))
    difference = float((before - after).abs().max() / before.abs().max())
    if not difference <= LATENT_TOLERANCE:
        raise ArithmeticError(f"The reference sampler and ours differ by {difference:.1e} of the largest latent.")
    return difference
