"""The ablation's other models: energies on pixels, and the decoder as the generator of a GAN."""

from __future__ import annotations

import pytest
import torch
from networks import ENERGY, NETWORK
from torch import Tensor, nn

from vaebm.config import WGANSettings
from vaebm.ebm.wgan import WGANTrainer, critic_loss
from vaebm.energy.network import EnergyNetwork
from vaebm.model import VAEBM, PixelEBM, build_model, sample_noise
from vaebm.noise import NoiseSource
from vaebm.nvae.model import NVAE
from vaebm.system.device import seeded


@pytest.fixture
def nvae() -> NVAE:
    with seeded(0):
        return NVAE(NETWORK, (1, 8, 8)).eval().requires_grad_(False)


class Linear(nn.Module):
    """f(x) = Σ w x."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).flatten(1).sum(1)


def test_loss_of_a_linear_critic() -> None:
    """Its gradient is w everywhere: the penalty is (‖w‖ − 1)²."""
    generator = torch.Generator().manual_seed(0)
    weight, data, generated = (torch.rand(1, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    between = torch.rand(5, generator=generator, dtype=torch.float64)
    parts = critic_loss(Linear(weight), data.expand(5, 1, 4, 4), generated.expand(5, 1, 4, 4), between, weight=10.0)
    penalty = (weight.norm() - 1).square()
    torch.testing.assert_close(parts.gap, (weight * (data - generated)).sum())
    torch.testing.assert_close(parts.penalty, penalty)
    torch.testing.assert_close(parts.loss, parts.gap + 10 * penalty)


def test_penalty_is_taken_between_the_images() -> None:
    """f = Σ x² / 2 has the gradient x: its norm at the mixed image."""

    class Quadratic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * x.square().flatten(1).sum(1)

    data, generated = torch.full((2, 1, 1, 1), 3.0), torch.full((2, 1, 1, 1), 1.0)
    parts = critic_loss(Quadratic(), data, generated, torch.tensor([0.0, 0.5]), weight=1.0)
    assert parts.penalty.item() == pytest.approx(((1 - 1) ** 2 + (2 - 1) ** 2) / 2)


def test_each_step_of_the_gan_moves_its_own_parameters(nvae: NVAE) -> None:
    critic = EnergyNetwork(ENERGY, 1)
    trainer = WGANTrainer(nvae, critic, WGANSettings(network=ENERGY, iterations=1, batch=4), seed=0)
    decoder = {id(parameter) for parameter in nvae.decoder_parameters()}

    def moved(step: object) -> tuple[set[str], set[str]]:
        before = [{name: value.clone() for name, value in module.state_dict().items()} for module in (nvae, critic)]
        step()  # type: ignore[operator]
        changed = [
            {name for name, value in module.state_dict().items() if not torch.equal(value, old[name])}
            for module, old in zip((nvae, critic), before, strict=True)
        ]
        return changed[0], changed[1]

    of_critic = moved(lambda: trainer.critic_step(torch.rand(4, 1, 8, 8), 0))
    assert not of_critic[0] and of_critic[1] == {name for name, _ in critic.named_parameters()} - {
        "head.bias"
    }  # which no difference sees
    of_generator = moved(lambda: trainer.generator_step(0))
    assert not of_generator[1] and of_generator[0] == {
        name for name, parameter in nvae.named_parameters() if id(parameter) in decoder
    }
    assert all(parameter.requires_grad for parameter in critic.parameters())


def test_generator_lowers_what_the_critic_gives_to_its_images(nvae: NVAE) -> None:
    critic = Linear(torch.ones(1, 8, 8))
    trainer = WGANTrainer(
        nvae, critic, WGANSettings(network=ENERGY, iterations=1, batch=16, learning_rate=1e-2), seed=0
    )
    values = [trainer.generator_step(0).item() for _ in range(5)]
    assert values == sorted(values, reverse=True) and values[-1] < values[0]


def test_chains_on_pixels_follow_the_energy_alone(nvae: NVAE) -> None:
    """E = ‖x − a‖² / (2 s²): the images become normal around a with s² / (1 − η / (4 s²)), for any NVAE."""
    s, eta = 0.5, 0.1

    class Quadratic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * ((x - 0.3) / s).square().flatten(1).sum(1)

    model = build_model(nvae, Quadratic(), "pixels", "uniform")
    noise = NoiseSource(0, "test", range(200))
    (x,), _ = model.refine(*model.initial_noise(noise), steps=150, step_size=eta, noise=noise)
    count = x.numel()
    assert x.mean().item() == pytest.approx(0.3, abs=4 * s / count**0.5)
    expected = s**2 / (1 - eta / (4 * s**2))
    assert x.var().item() == pytest.approx(expected, rel=4 * (2 / count) ** 0.5)  # four standard errors of a variance


def test_starts_of_chains_on_pixels(nvae: NVAE) -> None:
    energy = Linear(torch.zeros(1, 8, 8))
    noise = sample_noise(0, range(6))
    (uniform,), _ = PixelEBM(nvae, energy, "uniform").initial_noise(noise)
    assert uniform.min() >= 0 and uniform.max() < 1 and uniform.std().item() == pytest.approx(12**-0.5, rel=0.1)
    (start,), eps_x = PixelEBM(nvae, energy, "prior").initial_noise(noise)
    eps_z, same = VAEBM(nvae, None).initial_noise(noise)
    assert torch.equal(eps_x, same) and torch.equal(start, nvae.decode(eps_z)[0].mean)
    assert torch.equal(PixelEBM(nvae, energy, "prior").sample(6, seed=0, steps=0), start.clamp(0, 1))


def test_energy_on_pixels_is_scored_by_the_energy_alone(nvae: NVAE) -> None:
    model = PixelEBM(nvae, Linear(torch.ones(1, 8, 8)), "uniform")
    images = torch.rand(3, 1, 8, 8)
    assert (
        torch.equal(model.score(images, seed=1, importance_samples=3), -images.flatten(1).sum(1))
        and model.no_likelihood_reason
    )
