"""The NVAE: its architecture, prior, posterior and inputs."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import as_a_user
from small_nvae import DOUBLE, build, network
from torch import Tensor

from vaebm.config import NVAETrainingSettings
from vaebm.noise import NoiseSource
from vaebm.nvae.distributions import soft_clamp
from vaebm.nvae.flows import FlowCell
from vaebm.nvae.model import NVAE, load_nvae
from vaebm.nvae.train import NVAETrainer
from vaebm.system.checkpoint import Checkpoints, hash_tensors, save_model
from vaebm.system.errors import UserError

# --- the network as a whole
ARCHITECTURE: dict[str, Any] = {
    "groups": st.lists(st.integers(1, 3), min_size=1, max_size=3)
    | st.sampled_from([[1], [4, 2, 1], [5, 2, 2]]),  # the last two halve from scale to scale
    "latents": st.integers(1, 3),
    "preprocess_blocks": st.integers(1, 2),
    "preprocess_cells": st.integers(1, 2),
    "postprocess_cells": st.integers(1, 2),
    "cells_encoder": st.integers(1, 2),
    "cells_decoder": st.integers(1, 2),
    "architecture": st.sampled_from(["res_bnswish", "res_mbconv"]),
    "squeeze_excitation": st.booleans(),
    "residual_posterior": st.booleans(),
    "flows": st.integers(0, 2),
    "decoder": st.sampled_from(["normal", "logistic_mixture", "bernoulli"]),
    "mixtures": st.integers(2, 3),
}


@settings(max_examples=30, deadline=None)
@given(
    st.fixed_dictionaries(ARCHITECTURE),
    st.sampled_from([2, 3, 5]),
    st.sampled_from([2, 3, 5]),
    st.integers(1, 2),
    st.integers(1, 2),
    st.sampled_from([1, 3]),
)
def test_any_architecture(
    changes: dict[str, Any], encoder: int, decoder: int, rows: int, columns: int, colours: int
) -> None:
    """The decoder knows the image by z alone: the ε that the priors need for the posterior's z gives back pixels and
    log p(z).

    Every image of the batch is treated by itself, and each group's z has the resolution of its scale.
    """
    groups, side = changes["groups"], 2 ** (changes["preprocess_blocks"] + len(changes["groups"]) - 1)
    colours = 3 if changes["decoder"] == "logistic_mixture" else colours
    encoder = decoder if groups == [1] else encoder
    shape = (colours, side * rows, side * columns)
    nvae = build(shape, **changes, channels_encoder=encoder, channels_decoder=decoder)
    assert nvae.latent_shapes == [
        (changes["latents"], rows * 2**above, columns * 2**above)
        for above, count in enumerate(reversed(groups))
        for _ in range(count)
    ]
    x, noise = torch.rand(2, *shape, dtype=DOUBLE).round(), NoiseSource(0, "test", range(2))
    with torch.no_grad():
        out = nvae(x, noise=noise)
        pixels, log_p = nvae.decode([(draw.z - draw.prior.mean) / draw.prior.sigma for draw in out.draws])
        second = nvae(x[1:], noise=noise.at([1]))
    assert out.pixels.mean.shape == x.shape and out.kl.shape == (2, sum(groups)) and out.log_q.shape == (2,)
    assert out.log_q.isfinite().all() and out.pixels.log_likelihood(x).isfinite().all()
    assert changes["flows"] or out.kl.min() >= -1e-12
    torch.testing.assert_close(log_p, out.log_p, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(pixels.log_likelihood(x), out.pixels.log_likelihood(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(second.kl, out.kl[1:], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(second.pixels.mean, out.pixels.mean[1:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({"groups": [1, 1, 1]}, (1, 12, 16), "12×16 cannot be halved 3 times"),
        ({"groups": [1, 1, 1]}, (1, 16, 12), "16×12 cannot be halved 3 times"),
        ({"decoder": "logistic_mixture"}, (1, 8, 8), "made for 3 colours, the images have 1"),
    ],
)
def test_images_that_do_not_fit_are_refused(
    changes: dict[str, object], shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        NVAE(network(**changes), shape)


def test_noise_or_eps_is_needed() -> None:
    with pytest.raises(ValueError, match="NoiseSource"):
        build()(torch.rand(1, 1, 8, 8, dtype=DOUBLE))


def test_eps_and_the_source_that_draws_it_agree() -> None:
    nvae, x, noise = build(), torch.rand(2, 1, 8, 8, dtype=DOUBLE), NoiseSource(0, "test", range(2))
    given = nvae(x, eps=noise.normal(nvae.latent_shapes, step=3, dtype=DOUBLE))
    assert torch.equal(given.pixels.mean, nvae(x, noise=noise, step=3).pixels.mean)


# --- prior and posterior
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("groups", [[1], [1, 1]])
def test_log_prior_is_the_noise_density_less_the_log_scales(temperature: float, groups: list[int]) -> None:
    """log p(z) = Σ [−½ ε² − ½ ln 2π − ln(t σ)], an exact identity; in the first group σ = 1.01."""
    nvae = build(groups=groups)
    eps = NoiseSource(0, "test", range(4)).normal(nvae.latent_shapes, dtype=DOUBLE)
    _, log_p = nvae.decode(eps, temperature)
    expected = torch.zeros(4, dtype=DOUBLE)
    state = nvae.prior_constant.expand(4, -1, -1, -1)
    for number, (group, each) in enumerate(zip(nvae.groups, eps, strict=True)):
        state = group.cells(state)
        m, ell = group.prior(state)
        sigma = temperature * (soft_clamp(ell).exp() + 0.01)
        if number == 0:
            assert sigma.eq(temperature * 1.01).all() and m.eq(0).all()
        expected += (-0.5 * each.square() - 0.5 * math.log(2 * math.pi) - sigma.log()).sum((1, 2, 3))
        state = group.combine(state, soft_clamp(m) + sigma * each)
    torch.testing.assert_close(log_p, expected)


def without_shift(nvae: NVAE) -> NVAE:
    """With flows that change nothing."""
    with torch.no_grad():
        for cell in nvae.modules():
            if isinstance(cell, FlowCell):
                cell.shift.log_weight_norm.fill_(-1e3)
                cell.shift.bias.zero_()
    return nvae


@pytest.mark.parametrize("residual", [True, False])
def test_kl_is_the_mean_of_log_q_less_log_p(residual: bool) -> None:
    """Group by group the analytic KL, which a network without flows gives, is the mean of the estimates of one with
    idle flows.
    """
    draws = 3000
    nvae = without_shift(build(flows=1, residual_posterior=residual))
    x = torch.rand(1, 1, 8, 8, dtype=DOUBLE).expand(draws, -1, -1, -1)
    with torch.no_grad():
        out = nvae(x, noise=NoiseSource(0, "test", range(draws)))
        analytic = torch.stack([draw.posterior.kl(draw.prior).sum((1, 2, 3)) for draw in out.draws], 1)
    assert all(torch.equal(draw.z, draw.before) for draw in out.draws)
    torch.testing.assert_close(out.kl.sum(1), out.log_q - out.log_p)
    difference = out.kl - analytic
    assert (difference.mean(0).abs() < 5 * difference.std(0) / math.sqrt(draws)).all() and difference.std(0).min() > 0.1
    plain = build(residual_posterior=residual)
    plain.load_state_dict({name: value for name, value in nvae.state_dict().items() if ".flows." not in name})
    with torch.no_grad():
        torch.testing.assert_close(plain(x[:50], noise=NoiseSource(0, "test", range(50))).kl, analytic[:50])


def test_posterior_after_flows_is_a_density() -> None:
    """∫ p(z) dz = 1 as a mean of p(z) / q(z) over draws of q: log q stays that of the draw before the flows, which keep
    the volume.

    The posterior is made wider than the prior, so that the ratio is bounded but for the flows' shifts.
    """
    nvae, draws = build((1, 4, 4), groups=[1], flows=2, latents=1), 20_000
    (group,) = nvae.groups
    with torch.no_grad():
        group.posterior_parameters.log_weight_norm.fill_(-3)
        group.posterior_parameters.bias.copy_(torch.tensor([0.0, 0.6]))
        for cell in (*group.flows[0], *group.flows[1]):
            cell.shift.log_weight_norm.add_(2)
        features = nvae.encode(torch.rand(1, 1, 4, 4, dtype=DOUBLE))[0]
        (eps,) = NoiseSource(0, "test", range(draws)).normal(nvae.latent_shapes, dtype=DOUBLE)
        draw = group.draw(features.expand(draws, -1, -1, -1), nvae.prior_constant.expand(draws, -1, -1, -1), eps)
    ratio = (draw.log_p - draw.log_q).sum((1, 2, 3)).exp()
    assert (draw.z - draw.before).std() > 0.2  # the flows do something
    assert abs(ratio.mean().item() - 1) < 4 * ratio.std().item() / math.sqrt(draws) < 0.1


def test_posterior_parameters_are_offsets_before_the_clamp() -> None:
    """Residual: μ = 5 tanh((m_p + m_q) / 5); otherwise the encoder's own; the first group has a fixed prior."""
    x, noise = torch.rand(2, 1, 8, 8, dtype=DOUBLE), NoiseSource(0, "test", range(2))
    for residual in (True, False):
        nvae = build(residual_posterior=residual)
        own: list[Tensor] = []
        for group in nvae.groups:
            group.posterior_parameters.register_forward_hook(lambda layer, inputs, out, own=own: own.append(out))
        for number, (draw, parameters) in enumerate(zip(nvae(x, noise=noise).draws, own, strict=True)):
            m, ell = parameters.chunk(2, dim=1)
            if residual and number:
                m = m + 5 * torch.atanh(draw.prior.mean / 5)
                ell = ell + 5 * torch.atanh((draw.prior.sigma - 0.01).log() / 5)
            torch.testing.assert_close(draw.posterior.mean, soft_clamp(m), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(draw.posterior.sigma, soft_clamp(ell).exp() + 0.01, rtol=1e-9, atol=1e-9)


# --- images as the input
@pytest.mark.parametrize("bits", [8, 5, 1])
def test_input_has_the_depth_of_the_settings(bits: int) -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    x = build(bits=bits).as_input(images, NoiseSource(0, "test", range(4)))
    assert x.dtype == DOUBLE
    assert torch.equal(x, (images >> (8 - bits)).double() / (2**bits - 1))


def test_binary_input_is_white_as_often_as_its_grey_level_says() -> None:
    """Each image by its own index: the same in any batch, another one at every index."""
    nvae, draws = build((1, 4, 4), groups=[1], decoder="bernoulli"), 4000
    image = torch.tensor([0, 1, 20, 127, 128, 200, 254, 255], dtype=torch.uint8).repeat(2).reshape(1, 1, 4, 4)
    noise = NoiseSource(0, "test", range(draws))
    x = nvae.as_input(image.expand(draws, -1, -1, -1), noise)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    p = image[0].double() / 255
    assert ((x.mean(0) - p).abs() <= 4 * (p * (1 - p) / draws).sqrt()).all()  # so black and white are certain
    again = nvae.as_input(image.expand(3, -1, -1, -1), noise.at([5, 7, 5]))
    assert torch.equal(again, x[[5, 7, 5]])


# --- single group
def single(**changes: object) -> NVAE:
    """One latent group in all, in double precision."""
    return build(groups=[1], **changes)


def test_single_group_has_no_towers_and_starts_from_z() -> None:
    nvae = single(cells_encoder=2, cells_decoder=2)
    assert not list(nvae.encoder_groups.parameters()) and not list(nvae.groups[0].cells.parameters())
    assert nvae.prior_constant.shape == (0, 4, 4)
    assert nvae.groups[0].combine_decoder.in_channels == 2 and nvae.latent_shapes == [(2, 4, 4)]
    seen: list[Tensor] = []
    nvae.groups[0].combine_decoder.register_forward_hook(lambda layer, inputs, out: seen.append(inputs[0]))
    eps = NoiseSource(0, "test", range(3)).normal(nvae.latent_shapes, dtype=DOUBLE)
    nvae.decode(eps)
    assert torch.equal(seen[0], 1.01 * eps[0])


@pytest.mark.parametrize("flows", [0, 1])
def test_single_group_trains_and_is_kept(flows: int, tmp_path: Path) -> None:
    """A parameter without elements is no trouble to the optimiser, the gradient's norm, a checkpoint, a hash or a model
    file.
    """
    torch.manual_seed(0)
    nvae = NVAE(network(groups=[1], flows=flows), (1, 8, 8)).train()
    trainer = NVAETrainer(nvae, NVAETrainingSettings(epochs=10, batch=16, warmup_epochs=0), total=60, seed=0)
    images = torch.linspace(0, 255, 8).to(torch.uint8).expand(16, 1, 8, 8)
    losses = []
    for step in range(30):
        done = trainer.step(images, step, 1e-2, penalise=step % 2 == 0)
        assert done.finite and len(done.kl) == 1
        losses.append(done.reconstruction)
    assert losses[-1] < losses[0] - 64 * math.log(2)  # half the deviation at every pixel, at least
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(30, {"nvae": nvae.state_dict(), "optimizer": trainer.optimizer.state_dict()})
    state = checkpoints.load()
    assert state is not None and hash_tensors(state["nvae"]) == hash_tensors(nvae.state_dict())
    trainer.optimizer.load_state_dict(state["optimizer"])
    save_model(tmp_path / "model.pt", "nvae", nvae.settings.model_dump(), nvae.state_dict(), shape=list(nvae.shape))
    again = load_nvae(tmp_path / "model.pt")
    assert again.prior_constant.shape == (0, 4, 4) and hash_tensors(again.state_dict()) == hash_tensors(
        nvae.state_dict()
    )
    x, noise = images.double() / 255, NoiseSource(0, "test", range(16))
    with torch.no_grad():  # the layouts differ, and so the rounding
        torch.testing.assert_close(
            again.double()(x, noise=noise).log_q, nvae.eval().double()(x, noise=noise).log_q, rtol=1e-9, atol=1e-9
        )


def test_images_and_noise_of_other_shapes_are_named() -> None:
    nvae = build()
    eps = NoiseSource(0, "test", range(2)).normal(nvae.latent_shapes, dtype=torch.float64)
    with pytest.raises(UserError, match=r"x: expected a tensor \(N, 1, 8, 8\) .*found \(2, 1, 7, 8\) torch.float64"):
        nvae(torch.rand(2, 1, 7, 8, dtype=torch.float64), eps=eps)
    for wrong in (eps[1:], eps[::-1], [each[:, 1:] for each in eps], [eps[0], eps[1][:1], eps[2]]):
        with pytest.raises(UserError, match=r"expected noise of the shapes \[\(B, 2, 2, 2\), .* with B = 2, found"):
            nvae.decode(wrong)
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    with as_a_user(), pytest.raises(UserError, match="with B = 2, found"):
        nvae(x, eps=[each[:1] for each in eps])
    with pytest.raises(UserError, match="noise: expected an index for each of 2 samples, found 1"):
        nvae(x, noise=NoiseSource(0, "test", [0]))
    with pytest.raises(UserError, match="temperature: expected a number from 0, found -0.5"):
        nvae.decode(eps, temperature=-0.5)


def test_a_model_file_of_another_version_is_one_line(tmp_path: Path) -> None:
    nvae = build()
    network, weights = nvae.settings.model_dump(), nvae.state_dict()
    for number, (content, state) in enumerate((({}, weights), (network | {"gone": 1}, weights), (network, {}))):
        save_model(tmp_path / f"{number}.pt", "nvae", content, state, shape=[1, 8, 8])
        with pytest.raises(
            UserError, match=f"{number}.pt: expected an NVAE of this version, found one with other settings or weights"
        ) as error:
            load_nvae(tmp_path / f"{number}.pt")
        assert len(str(error.value).splitlines()) == 1


def test_a_folder_in_place_of_the_model_file_and_a_device_that_is_not_there(tmp_path: Path) -> None:
    nvae, file = build(), tmp_path / "model.safetensors"
    save_model(file, "nvae", nvae.settings.model_dump(), nvae.state_dict(), shape=[1, 8, 8])
    with pytest.raises(
        UserError, match=f"{tmp_path}: expected a file with a model of kind 'nvae', found a folder; give "
    ):
        load_nvae(tmp_path)
    assert not any(layer.training for layer in load_nvae(str(file), torch.device("cpu")).modules())
    for device in ("cuda:99", "nowhere"):
        with pytest.raises(
            UserError, match=f"device: expected a device that torch can use .*, found {device} .*; choose"
        ):
            load_nvae(file, device)
