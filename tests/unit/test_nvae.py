"""The NVAE: its architecture, objective and schedules."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vaebm.config import NVAENetworkSettings, NVAETrainingSettings
from vaebm.noise import NoiseSource
from vaebm.nvae.cells import BatchNorm, FactorizedReduce, NormalizedConv2d, SqueezeExcitation
from vaebm.nvae.model import NVAE
from vaebm.nvae.objective import batch_norm_penalty, group_sizes, kl_balance, kl_coefficient, nelbo
from vaebm.nvae.train import learning_rate


def network(**changes: object) -> NVAENetworkSettings:
    """A small architecture."""
    base = {"channels_encoder": 4, "channels_decoder": 4, "groups": [2, 1], "latents": 2, "preprocess_blocks": 1, "preprocess_cells": 2, "postprocess_cells": 2}
    return NVAENetworkSettings.model_validate(base | {"cells_encoder": 1, "cells_decoder": 1, "architecture": "res_bnswish"} | changes)


def build(**changes: object) -> NVAE:
    """A small network in double precision and eval mode, with every parameter moved off its special initial value."""
    torch.manual_seed(0)
    nvae = NVAE(network(**changes), (1, 8, 8)).double().eval()
    with torch.no_grad():
        for layer in nvae.modules():
            if isinstance(layer, BatchNorm):
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.5, 2)
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.2)
    return nvae


@settings(max_examples=15, deadline=None)
@given(
    groups=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    latents=st.integers(1, 3),
    encoder=st.sampled_from([4, 5]),
    architecture=st.sampled_from(["res_bnswish", "res_mbconv"]),
    channels=st.sampled_from([1, 3]),
)
def test_shapes(groups: list[int], latents: int, encoder: int, architecture: str, channels: int) -> None:
    """Any number of scales, groups and channels; encoder and decoder need not be equally wide."""
    nvae = NVAE(network(groups=groups, latents=latents, channels_encoder=encoder, architecture=architecture), (channels, 8, 8))
    x = torch.rand(3, channels, 8, 8)
    noise = NoiseSource(0, "test", range(3))
    output = nvae(x, noise=noise)
    assert output.pixels.mean.shape == x.shape
    assert output.kl.shape == (3, sum(groups)) and len(nvae.latent_shapes) == sum(groups)
    assert output.log_q.shape == output.log_p.shape == (3,)
    pixels, log_p = nvae.decode(noise.normal(nvae.latent_shapes))
    assert pixels.mean.shape == x.shape and log_p.shape == (3,)
    assert [shape[1] for shape in nvae.latent_shapes] == [4 // 2**scale for scale in reversed(range(len(groups))) for _ in range(groups[scale])]


def test_images_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be halved 3 times"):
        NVAE(network(groups=[1, 1, 1]), (1, 12, 12))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_prior_is_the_noise_density_less_the_log_scales(temperature: float) -> None:
    """log p(z) = Σ [−½ ε² − ½ ln 2π − ln(t σ)], an exact identity; with one group σ = 1.01."""
    nvae = build(groups=[1])
    eps = NoiseSource(0, "test", range(4)).normal(nvae.latent_shapes, dtype=torch.float64)
    _, log_p = nvae.decode(eps, temperature)
    size = math.prod(nvae.latent_shapes[0])
    expected = -0.5 * eps[0].square().sum((1, 2, 3)) - size * (0.5 * math.log(2 * math.pi) + math.log(1.01 * temperature))
    torch.testing.assert_close(log_p, expected)


def test_kl_is_the_mean_of_log_q_less_log_p() -> None:
    """The analytic KL of one group equals the average of its one-draw estimate."""
    nvae = build(groups=[1])
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64).expand(4000, -1, -1, -1)
    with torch.no_grad():
        output = nvae(x, noise=NoiseSource(0, "test", range(4000)))
        estimate = output.log_q - output.log_p
    error = estimate.std().item() / math.sqrt(len(estimate))
    assert estimate.mean().item() == pytest.approx(output.kl[0].sum().item(), abs=4 * error)


def test_posterior_is_the_prior_when_the_residuals_vanish() -> None:
    """Residual posteriors: with zero offsets every group after the first has no KL; absolute ones do."""
    for residual, zero in ((True, True), (False, False)):
        nvae = build(residual_posterior=residual)
        with torch.no_grad():
            for group in nvae.groups:
                group.posterior_parameters.log_weight_norm.fill_(-50)
                group.posterior_parameters.bias.zero_()
            kl = nvae(torch.rand(2, 1, 8, 8, dtype=torch.float64), noise=NoiseSource(0, "test", range(2))).kl
        assert (kl[:, 1:].abs().max().item() < 1e-12) is zero


def test_noise_or_eps_is_needed() -> None:
    with pytest.raises(ValueError, match="NoiseSource"):
        build()(torch.rand(1, 1, 8, 8, dtype=torch.float64))


def test_eps_and_the_source_that_draws_it_agree() -> None:
    nvae, x, noise = build(), torch.rand(2, 1, 8, 8, dtype=torch.float64), NoiseSource(0, "test", range(2))
    given = nvae(x, eps=noise.normal(nvae.latent_shapes, step=3, dtype=torch.float64))
    assert torch.equal(given.pixels.mean, nvae(x, noise=noise, step=3).pixels.mean)


def test_normalized_convolution_has_the_norm_of_its_parameter() -> None:
    conv = NormalizedConv2d(3, 5, 3).double()
    norms = conv.effective_weight().flatten(1).norm(dim=1)
    raw = conv.weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, raw * (raw + 1e-2) / (raw + 1e-5))  # 1e-2 at the start, 1e-5 in use
    with torch.no_grad():
        conv.weight.mul_(7)
    torch.testing.assert_close(conv.effective_weight().flatten(1).norm(dim=1), norms, rtol=1e-3, atol=0)


def test_factorized_reduce_sees_each_pixel_of_a_block_once() -> None:
    reduce = FactorizedReduce(1, 4).double()
    x = torch.rand(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    for channel, (row, column) in enumerate(((0, 0), (1, 1), (0, 1), (1, 0))):
        (gradient,) = torch.autograd.grad(reduce(x)[0, channel].sum(), x)
        seen = torch.zeros(4, 4, dtype=torch.bool)
        seen[row::2, column::2] = True
        assert torch.equal(gradient[0, 0] != 0, seen)


def test_squeeze_excitation_scales_whole_channels() -> None:
    x = torch.rand(2, 32, 4, 4, dtype=torch.float64) + 1
    ratio = SqueezeExcitation(32).double()(x) / x
    assert (ratio.amax((2, 3)) - ratio.amin((2, 3))).max() < 1e-12 and ratio.min() > 0 and ratio.max() < 1


def test_kl_coefficient_grows_once() -> None:
    beta = [kl_coefficient(step, 1000, 0.3, 1e-4) for step in range(1000)]
    assert beta[0] == 1e-4 and beta[150] == pytest.approx((150 - 0.1) / 300) and set(beta[301:]) == {1.0}
    assert kl_coefficient(0, 10, 0.0, 1e-4) == 1.0


def test_group_sizes_are_those_of_the_specification() -> None:
    assert group_sizes([5]) == [1.0] * 5
    assert group_sizes([5, 5, 5]) == [1.0] * 5 + [4.0] * 5 + [16.0] * 5
    assert group_sizes([4, 2]) == [1.0] * 2 + [2.0] * 4


def test_kl_balance_is_even_for_even_groups_and_off_at_full_weight() -> None:
    sizes = torch.tensor([1.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(kl_balance(torch.tensor([[0.99, 3.99]], dtype=torch.float64), sizes), torch.ones(2, dtype=torch.float64))
    nvae, x = build(), torch.rand(2, 1, 8, 8, dtype=torch.float64)
    output = nvae(x, noise=NoiseSource(0, "test", range(2)))
    plain, balanced = nelbo(output, x, 1.0), nelbo(output, x, 1.0, torch.tensor(group_sizes([2, 1])))
    assert plain.loss == balanced.loss == plain.reconstruction + plain.kl.sum()
    assert nelbo(output, x, 0.5).loss != nelbo(output, x, 0.5, torch.tensor(group_sizes([2, 1]))).loss


def test_batch_norm_penalty_counts_every_layer_once() -> None:
    nvae = build()
    layers = [layer for layer in nvae.modules() if isinstance(layer, BatchNorm)]
    assert batch_norm_penalty(nvae).item() == pytest.approx(sum(layer.weight.abs().max().item() for layer in layers))
    assert layers[0].momentum == 0.05


def test_learning_rate_as_published() -> None:
    """Linear from 0, then the scheduler of torch, stepped by epochs and started from the last value of the warm-up."""
    training = NVAETrainingSettings(epochs=12, batch=2, learning_rate=1e-2, warmup_epochs=3)
    ours = [learning_rate(step, 10, training) for step in range(120)]
    assert ours[:30] == pytest.approx([1e-2 * step / 30 for step in range(30)])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=ours[29])
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12 - 3 - 1, eta_min=1e-4)
    for epoch in range(3, 12):
        assert ours[10 * epoch] == ours[10 * epoch + 9] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step()
