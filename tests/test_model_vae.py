"""The autoencoder against reference outputs of upstream AnyText2, and the scaling around it."""

import pytest
import torch
from reference_weights import X, fill, load_reference, relative_error

from anytext_lcm.model.vae import (
    LOGVAR_RANGE,
    AttnBlock,
    AutoencoderKL,
    Downsample,
    ResnetBlock,
    Upsample,
    sample_posterior,
)

SCALE = 0.18215
TINY = dict(
    double_z=True,
    z_channels=4,
    resolution=256,
    in_channels=3,
    out_ch=3,
    ch=32,
    ch_mult=[1, 2, 4, 4],
    num_res_blocks=2,
    attn_resolutions=[],
    dropout=0.0,
)


@pytest.fixture(scope="module")
def reference():
    return load_reference("06_vae")


@pytest.fixture(scope="module")
def vae():
    return fill(AutoencoderKL(TINY, embed_dim=4), "first_stage_model.")


@torch.no_grad()
def test_encode(vae, reference):
    mean, logvar = vae.encode(X("vae.img", (2, 3, 64, 64), 0.5).clamp(-1, 1))
    assert relative_error(mean, reference["mean"]) < 1e-5
    assert relative_error(logvar, reference["logvar"]) < 1e-5
    assert relative_error(torch.exp(0.5 * logvar), reference["std"]) < 1e-5
    assert relative_error(SCALE * mean, reference["scaled_mode"]) < 1e-5


@torch.no_grad()
def test_decode(vae, reference):
    z = X("vae.z", (2, 4, 8, 8))
    assert relative_error(vae.decode(z), reference["decode"]) < 1e-5
    thinned = vae.decode(z / SCALE)[..., ::4, ::4]
    assert relative_error(thinned, reference["decode_first_stage_of_z"]) < 1e-5


@pytest.mark.parametrize(
    "name, prefix, block",
    [
        ("resnet_small", "vae_resnet.", lambda: ResnetBlock(32, 64)),
        ("attn_small", "vae_attn.", lambda: AttnBlock(32)),
        ("down", "vae_down.", lambda: Downsample(32)),
        ("up", "vae_up.", lambda: Upsample(32)),
    ],
)
@torch.no_grad()
def test_blocks_on_inputs_small_enough_to_show_epsilon(reference, name, prefix, block):
    out = fill(block(), prefix)(X("vae.block.x", (2, 32, 8, 12), 0.003))
    assert relative_error(out, reference[name]) < 1e-5


@torch.no_grad()
def test_log_variance_is_clamped(vae):
    logvar = vae.encode(1e4 * X("vae.loud", (1, 3, 16, 16)))[1]
    assert LOGVAR_RANGE[0] <= logvar.min() and logvar.max() <= LOGVAR_RANGE[1]


def test_posterior_sample_is_mean_plus_noise_times_std():
    mean, logvar = X("vae.mean", (2, 4, 3, 5)), X("vae.logvar", (2, 4, 3, 5))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(7))
    drawn = sample_posterior(mean, logvar, torch.Generator().manual_seed(7))
    torch.testing.assert_close(drawn, mean + logvar.exp().sqrt() * noise)


def test_sizes_that_upstream_does_not_use_are_refused():
    for change in ({"attn_resolutions": [16]}, {"double_z": False}):
        with pytest.raises(ValueError, match="attn_resolutions must be empty and double_z true"):
            AutoencoderKL({**TINY, **change}, embed_dim=4)
