"""The pair of NVAE and energy: the chain's law, the samples, the score."""

import io
import json
import math
from pathlib import Path

import pytest
import torch
from networks import ENERGY, NETWORK, LinearVAE, as_a_user
from torch import Tensor, nn

from vaebm.config import EnergyNetworkSettings, NVAENetworkSettings, SamplesSettings
from vaebm.config.ebm import ChainSettings
from vaebm.energy.network import EnergyNetwork
from vaebm.model import NO_CHAIN, VAEBM, build_model, sample_noise
from vaebm.noise import NoiseSource
from vaebm.nvae.model import NVAE
from vaebm.system.checkpoint import save_model
from vaebm.system.device import seeded
from vaebm.system.errors import UserError


class Quadratic(nn.Module):
    """E(x) = ½ λ ‖2x − 1 − c‖²."""

    def __init__(self, strength: float, centre: Tensor):
        super().__init__()
        self.strength, self.centre = strength, centre

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.strength * (2 * x - 1 - self.centre).square().sum(dim=(1, 2, 3))


def small(architecture: str = "res_bnswish", **changes: object) -> VAEBM:
    """A random pair for 8×8 greyscale images."""
    torch.manual_seed(0)
    network = {
        "channels_encoder": 4,
        "channels_decoder": 4,
        "groups": [1, 1],
        "latents": 2,
        "preprocess_blocks": 1,
        "preprocess_cells": 1,
        "postprocess_cells": 1,
    }
    nvae = NVAE(
        NVAENetworkSettings.model_validate(
            network | {"cells_encoder": 1, "cells_decoder": 1, "architecture": architecture} | changes
        ),
        (1, 8, 8),
    )
    energy = EnergyNetwork(EnergyNetworkSettings(channels=4, widths=[1, 2], down=[0]), 1)
    pair = None if changes.get("decoder") else energy.requires_grad_(False)
    return VAEBM(nvae.eval().requires_grad_(False), pair, chain=ChainSettings(steps=3, step_size=0.01))


def test_chain_reaches_the_gaussian_law_of_the_model() -> None:
    """Linear decoder, quadratic energy, potential `noise`: U is quadratic in ε = (ε_z, ε_x) with a known Hessian H and
    minimum μ. Unadjusted Langevin steps have the stationary mean μ and the covariance (H (1 − η H / 4))⁻¹.
    """
    torch.manual_seed(1)
    matrix = 0.1 * torch.randn(3, 2, dtype=torch.float64)
    centre = torch.tensor([0.15, -0.1, 0.05], dtype=torch.float64)
    vae = LinearVAE(matrix)
    model = VAEBM(vae, Quadratic(100.0, centre[:, None]))  # type: ignore[arg-type]
    onto_pixels = torch.cat([matrix, vae.sigma * torch.eye(3, dtype=torch.float64)], dim=1)  # 2x − 1 as a function of ε
    hessian = torch.eye(5, dtype=torch.float64) + 100.0 * onto_pixels.T @ onto_pixels
    mean = torch.linalg.solve(hessian, 100.0 * onto_pixels.T @ centre)
    step_size, chains = 0.2, 4000
    covariance = torch.linalg.inv(hessian @ (torch.eye(5, dtype=torch.float64) - 0.25 * step_size * hessian))

    noise = NoiseSource(0, "test", range(chains))
    start = model.initial_noise(noise)
    eps_z, eps_x = model.refine(*start, steps=100, step_size=step_size, noise=noise)
    eps = torch.cat([eps_z[0].flatten(1), eps_x.flatten(1)], dim=1)
    scale = covariance.diagonal().sqrt()
    error = 5 / math.sqrt(
        chains
    )  # five standard errors of a mean, and at least three and a half of a covariance, in units of the scales
    assert ((eps.mean(0) - mean).abs() / scale).max() < error
    assert ((torch.cov(eps.T) - covariance).abs() / torch.outer(scale, scale)).max() < error
    assert (mean.abs() / scale).max() > 3 * error  # a chain that ignored the energy would be seen


def test_potentials_differ_by_the_terms_of_the_specification() -> None:
    """`density` is E − log p(z) − log p(x|z); −log p(z) = ½‖ε_z‖² + Σ ln σ_p + const."""
    model = small()
    eps_z, eps_x = model.initial_noise(NoiseSource(0, "test", range(5)))
    pixels, log_p = model.nvae.decode(eps_z)
    x = pixels.sample(eps_x)
    assert model.energy is not None
    noise = model.energy(x) + 0.5 * (
        sum(eps.square().flatten(1).sum(1) for eps in eps_z) + eps_x.square().flatten(1).sum(1)
    )
    torch.testing.assert_close(model.potential(eps_z, eps_x), noise)
    density = model.energy(x) - log_p - pixels.chain_log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(VAEBM(model.nvae, model.energy, "density").potential(eps_z, eps_x), density)


def test_each_chain_has_a_gradient_of_its_own() -> None:
    """∂ΣU/∂ε of a batch is each chain's own gradient: nothing in the networks mixes the batch in eval mode."""
    model = small()
    eps_z, eps_x = model.initial_noise(NoiseSource(0, "test", range(4)))

    def gradient(rows: slice) -> Tensor:
        leaf = eps_x[rows].clone().requires_grad_()
        (found,) = torch.autograd.grad(model.potential([eps[rows] for eps in eps_z], leaf).sum(), leaf)
        return found

    torch.testing.assert_close(
        gradient(slice(None)), torch.cat([gradient(slice(k, k + 1)) for k in range(4)]), rtol=1e-4, atol=1e-5
    )


def test_no_step_of_the_chain_is_the_nvae() -> None:
    """The baseline: the same ε, no chain, the same images as the pair with zero steps."""
    model = small()
    torch.testing.assert_close(
        model.sample(6, seed=3, steps=0), VAEBM(model.nvae, None).sample(6, seed=3), rtol=0, atol=0
    )
    assert not torch.equal(model.sample(6, seed=3, steps=0), model.sample(6, seed=3))


def test_samples_do_not_depend_on_the_batch() -> None:
    """Image k is a function of the seed and of k; another batch size moves it by rounding alone."""
    model = small()
    together, apart = model.sample(7, seed=1), model.sample(7, seed=1, batch=2)
    assert (together - apart).abs().max() < 0.5 / 255
    assert together.shape == (7, 1, 8, 8) and together.min() >= 0 and together.max() <= 1
    assert not torch.equal(together, model.sample(7, seed=2))


def test_shards_are_whole_batches() -> None:
    """Any number of shards covers every image once, in the same batches: not a bit can change."""
    for shards in range(1, 5):
        stage = SamplesSettings.model_validate(
            {"count": 17, "batch": 5, "shards": shards, "chain": {"steps": 0, "step_size": 1.0}}
        )
        ranges = [stage.shard(index) for index in range(shards)]
        assert [index for part in ranges for index in part] == list(range(17))
        assert all(part.start % 5 == 0 and len(part) for part in ranges)


def test_chain_shows_the_way_of_the_samples() -> None:
    model = small()
    images = model.chain(4, seed=0)
    assert len(images) == model.test_chain.steps + 1
    torch.testing.assert_close(images[0], model.sample(4, seed=0, steps=0), rtol=0, atol=0)
    torch.testing.assert_close(images[-1], model.sample(4, seed=0), rtol=0, atol=0)


def test_score_is_the_likelihood_less_the_energy() -> None:
    model, images = small(), torch.rand(5, 1, 8, 8)
    assert model.energy is not None
    torch.testing.assert_close(model.score(images), model.log_likelihood(images) - model.energy(images))
    with torch.no_grad():
        output = model.nvae(images, noise=NoiseSource(0, "score", range(5)))
        bound = output.pixels.log_prob(images).flatten(1).sum(1) + output.log_p - output.log_q
    torch.testing.assert_close(model.log_likelihood(images), bound)
    assert (model.log_likelihood(images, importance_samples=20) >= model.log_likelihood(images)).float().mean() > 0.5


def test_energy_and_likelihood_see_the_depth_of_the_nvae() -> None:
    """Images that differ in the bits that the NVAE never saw have one score; those that differ in its own have not."""
    model = small(bits=5)
    levels = torch.randint(0, 32, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    low, high, own = (model.score(image / 255) for image in (8 * levels, 8 * levels + 7, 8 * levels.flip(3)))
    assert torch.equal(low, high) and not torch.isclose(low, own).any()
    assert model.energy is not None
    torch.testing.assert_close(low, model.log_likelihood(levels / 31) - model.energy(levels / 31))


def save_energy(folder: Path) -> Path:
    """A model file of a random energy."""
    energy = small().energy
    assert isinstance(energy, EnergyNetwork)
    save_model(
        folder / "energy.pt",
        "energy",
        energy.settings.model_dump(),
        energy.state_dict(),
        shape=[1, 8, 8],
        potential="noise",
        start="prior",
    )
    return folder / "energy.pt"


def test_an_energy_needs_a_gaussian_decoder(tmp_path: Path) -> None:
    """A chain moves the noise of the pixels; of the NVAE alone every decoder has samples and a likelihood."""
    model = small(decoder="bernoulli")
    save_model(tmp_path / "nvae.pt", "nvae", model.nvae.settings.model_dump(), model.nvae.state_dict(), shape=[1, 8, 8])
    with pytest.raises(
        UserError, match="nvae.pt: expected an NVAE with the decoder normal, which the chain needs, found bernoulli"
    ):
        VAEBM.load(tmp_path / "nvae.pt", save_energy(tmp_path))
    with pytest.raises(
        UserError, match="expected an NVAE with the decoder normal, which the chain needs, found bernoulli"
    ):
        VAEBM(model.nvae, nn.Identity())
    alone, noise = VAEBM(model.nvae, None), NoiseSource(0, "samples", range(2))
    start = alone.initial_noise(noise)
    for call in (
        lambda: alone.potential(*start),
        lambda: alone.sample(2, steps=1, step_size=0.1),
        lambda: alone.chain(2, steps=1, step_size=0.1),
        lambda: alone.refine(*start, noise=noise, chain=ChainSettings(steps=1, step_size=0.1)),
    ):
        with pytest.raises(UserError, match="expected an NVAE with the decoder normal, which the chain needs"):
            call()
    assert len(alone.chain(2)) == 1
    x = torch.rand(3, 1, 8, 8).round()
    torch.testing.assert_close(VAEBM.load(tmp_path / "nvae.pt", None).score(x), model.log_likelihood(x))


def test_run_whose_variant_was_a_gan_before_is_read_by_its_model(tmp_path: Path) -> None:
    """The GAN's settings file stays in the folder; what counts is the kind of model.pt."""
    model = small()
    network, run = model.nvae.settings.model_dump(), tmp_path / "results" / "vaebm" / "seed0"
    for folder in (run.parent.parent / "nvae" / "seed0", run):
        save_model(folder / "model.pt", "nvae", network, model.nvae.state_dict(), shape=[1, 8, 8])
    (run / "wgan.yaml").write_text("seed: 0\n")
    assert VAEBM.from_results(run).energy is None and not VAEBM.from_results(run).training
    save_energy(tmp_path).rename(run / "model.pt")
    samples = SamplesSettings(count=4, batch=2, shards=1, chain=ChainSettings(steps=2, step_size=0.01))
    (run / "samples").mkdir()
    (run / "samples" / "samples.yaml").write_text(json.dumps({"seed": 0, "samples": samples.model_dump()}))
    again = VAEBM.from_results(run.parent)
    assert again.energy is not None and again.test_chain == samples.chain
    assert not any(module.training for module in again.modules())


def test_another_kind_is_refused() -> None:
    nvae, energy = small().nvae, small().energy
    with as_a_user():
        for call, message in (
            (lambda: VAEBM(nvae, energy, "foo"), "potential: expected noise or density, found 'foo'"),  # type: ignore[arg-type]
            (lambda: VAEBM(nvae, energy, "pixels"), "potential: expected noise or density, found 'pixels'"),
            (lambda: VAEBM(nvae, energy, positives="foo"), "positives: expected clean or matched, found 'foo'"),  # type: ignore[arg-type]
            (lambda: build_model(nvae, energy, "foo"), "potential: expected noise or density, found 'foo'"),  # type: ignore[arg-type]
            (lambda: build_model(nvae, energy, "noise", "uniform"), "start: expected prior, found 'uniform'"),
            (lambda: build_model(nvae, energy, "pixels", "foo"), "start: expected prior or uniform, found 'foo'"),  # type: ignore[arg-type]
        ):
            with pytest.raises(UserError, match=f"^{message}$"):
                call()
    assert build_model(nvae, energy, "pixels", "uniform").start == "uniform"


def test_an_energy_of_other_images_is_refused(tmp_path: Path) -> None:
    model, energy = small(), small().energy
    assert isinstance(energy, EnergyNetwork)
    save_model(tmp_path / "nvae.pt", "nvae", model.nvae.settings.model_dump(), model.nvae.state_dict(), shape=[1, 8, 8])
    own, kinds = energy.settings.model_dump(), {"potential": "noise", "start": "prior"}
    save_model(tmp_path / "energy.pt", "energy", own, energy.state_dict(), shape=[1, 16, 16], **kinds)
    with pytest.raises(UserError, match=r"energy.pt: expected an energy of images \(1, 8, 8\), .*one of \(1, 16, 16\)"):
        VAEBM.load(tmp_path / "nvae.pt", tmp_path / "energy.pt")


def test_a_model_in_training_mode_leaves_the_batch_norms_alone() -> None:
    """In training mode they would take the moments of the chains, and move their statistics with each call."""
    model = small()
    expected, state = model.sample(4), {name: value.clone() for name, value in model.state_dict().items()}
    assert any("running_mean" in name for name in state)
    assert model.train().training and model.energy is not None and model.energy.training
    assert torch.equal(model.sample(4), expected) and not any(module.training for module in model.nvae.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.nvae.train()
    assert not torch.allclose(model.sample(4), expected, atol=1e-3)


def test_double_precision_agrees_with_single() -> None:
    """The same noise, whatever the type of the weights: what differs is rounding, a grey level at most over three
    steps.
    """
    single, double = small(), small()
    double.nvae.double()
    assert double.energy is not None
    double.energy.double()
    images = double.sample(5, seed=0)
    assert images.dtype == torch.float64
    assert (images - single.sample(5, seed=0)).abs().max() < 1 / 255


def test_public_stochastic_calls_repeat_and_leave_the_global_generator_alone() -> None:
    model, images = small(), torch.rand(3, 1, 8, 8)
    noise = sample_noise(0, range(3))
    start = model.initial_noise(noise)
    calls = [
        lambda: model.sample(3, seed=0),
        lambda: model.score(images, seed=0),
        lambda: model.refine(*start, steps=2, step_size=0.1, noise=noise)[1],
        lambda: model.nvae(images, noise=noise).pixels.mean,
    ]
    for call in calls:
        before = torch.get_rng_state()
        assert torch.equal(call(), call())
        assert torch.equal(before, torch.get_rng_state())


@pytest.fixture(params=["noise", "pixels", "none"])
def kind(request: pytest.FixtureRequest) -> VAEBM:
    """An energy in the space of the noise, one on pixels, and an NVAE alone."""
    with seeded(0):
        nvae, energy = NVAE(NETWORK, (1, 8, 8)), EnergyNetwork(ENERGY, 1)
    nvae, energy = (network.eval().requires_grad_(False) for network in (nvae, energy))
    made = VAEBM(nvae, None) if request.param == "none" else build_model(nvae, energy, request.param)
    made.test_chain = NO_CHAIN if request.param == "none" else ChainSettings(steps=2, step_size=1e-2)
    return made


def test_kept_and_read_it_is_the_same(kind: VAEBM) -> None:
    """Its networks are in its state, and its images and scores those of the pair, bit by bit."""
    file, later = io.BytesIO(), io.BytesIO()
    torch.save(kind, file)
    images = kind.sample(3, seed=1)
    torch.save(kind, later)  # what it prepared for its chains, and on a GPU recorded, stays here
    assert abs(len(later.getvalue()) - len(file.getvalue())) < 100
    file.seek(0)
    read = torch.load(file, weights_only=False)
    assert torch.equal(read.sample(3, seed=1), images) and torch.equal(read(images), kind.score(images))
    networks = {name.split(".")[0] for name in read.state_dict()}
    assert networks == ({"nvae"} if kind.energy is None else {"nvae", "energy"})


def test_the_chain_s_settings_can_be_others(kind: VAEBM) -> None:
    """Without steps, the start of the chains."""
    start = kind.sample(2, seed=1, steps=0)
    assert torch.equal(start, kind.chain(2, seed=1, steps=0)[0]) and (kind.energy is None) == torch.equal(
        start, kind.sample(2, seed=1)
    )


def test_both_networks_move(kind: VAEBM) -> None:
    """In double precision images and scores are double, which takes both."""
    images = kind.double().sample(2)
    assert images.dtype == kind(images).dtype == torch.float64
