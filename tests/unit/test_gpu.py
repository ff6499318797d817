"""On an NVIDIA GPU: the same results as on the CPU, from the same weights and the same noise."""

import copy
from collections.abc import Iterator

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaebm.chain.langevin import PotentialFunction, evaluate, langevin
from vaebm.config import (
    ChainSettings,
    EBMSettings,
    EBMTrainingSettings,
    EnergyNetworkSettings,
    NVAETrainingSettings,
    WGANSettings,
)
from vaebm.ebm import wgan
from vaebm.ebm.iteration import EBMTrainer
from vaebm.energy.network import EnergyNetwork
from vaebm.fast import PreparedPotential, run_langevin
from vaebm.model import VAEBM
from vaebm.noise import Distribution, NoiseSource
from vaebm.nvae.model import NVAE
from vaebm.nvae.train import NVAETrainer
from vaebm.system.device import to_device_channels_last
from vaebm.system.precision import set_tf32

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""Single precision, through some hundred operations on quantities of the order of 1."""

NETWORK: dict[str, object] = {
    "channels_encoder": 8,
    "channels_decoder": 8,
    "groups": [2, 2],
    "latents": 2,
    "preprocess_blocks": 1,
    "preprocess_cells": 1,
}
NETWORK |= {"postprocess_cells": 2, "cells_encoder": 1, "cells_decoder": 2, "flows": 1}

IMAGES = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def same_noise_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Noise as on the CPU, and no TF32."""

    def as_on_the_host(noise: NoiseSource, law: Distribution, step: int, size: int, device: torch.device) -> Tensor:
        return noise._host(law, step, size, torch.device("cpu")).to(device)

    monkeypatch.setattr(NoiseSource, "_device", as_on_the_host)
    set_tf32(False)
    yield
    set_tf32(False)


def random_pair(device: str = "cpu") -> tuple[NVAE, EnergyNetwork]:
    """The same random pair on either device."""
    nvae, energy = networks.random_pair(NETWORK)
    return to_device_channels_last(nvae, torch.device(device)), to_device_channels_last(energy, torch.device(device))


def model(device: str, kind: str = "noise") -> VAEBM:
    nvae, energy = random_pair(device)
    return VAEBM(nvae.eval().requires_grad_(False), energy.requires_grad_(False), kind)  # type: ignore[arg-type]


def start(chosen: VAEBM, chains: int = 5) -> list[Tensor]:
    eps_z, eps_x = chosen.initial_noise(NoiseSource(0, "start", range(chains)))
    return [*eps_z, eps_x]


def plain(chosen: VAEBM) -> PotentialFunction:
    """Through the modules."""
    return lambda eps: chosen.potential(eps[:-1], eps[-1])


def assert_close(found: list[Tensor], expected: list[Tensor], **tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other.cpu(), **(tolerance or CLOSE))


@pytest.mark.parametrize("kind", ["noise", "density"])
def test_potential_and_gradients(kind: str) -> None:
    host, device = model("cpu", kind), model("cuda", kind)
    expected = evaluate(plain(host), start(host))
    for potential in (plain(device), device.chain_potential()):
        found = evaluate(potential, start(device))
        assert_close([found.potential, *found.gradient], [expected.potential, *expected.gradient])


@pytest.mark.parametrize("kind", ["noise", "density"])
def test_steps_of_a_chain(kind: str) -> None:
    """One step, which goes operation by operation, and three, which are recorded."""
    host, device = model("cpu", kind), model("cuda", kind)
    for steps in (1, 3):
        noise = NoiseSource(0, "chain", range(5))
        expected, found = ([*z, x] for z, x in (moved(each, steps, noise) for each in (host, device)))
        assert_close(found, expected)


def moved(chosen: VAEBM, steps: int, noise: NoiseSource) -> tuple[list[Tensor], Tensor]:
    *eps_z, eps_x = start(chosen)
    return chosen.refine(eps_z, eps_x, steps=steps, step_size=1e-2, noise=noise)


def test_recorded_step_goes_on_with_new_weights_and_other_numbers_of_chains() -> None:
    device, noise = model("cuda"), NoiseSource(0, "chain", range(5))
    assert device.energy is not None

    def both(chains: int) -> tuple[list[Tensor], list[Tensor]]:
        potential, eps = device.chain_potential(), start(device, chains)
        assert isinstance(potential, PreparedPotential)
        settings = {"steps": 3, "step_size": 1e-2, "noise": noise.at(range(chains))}
        return run_langevin(potential, eps, **settings), langevin(plain(device), eps, **settings)  # type: ignore[arg-type]

    first, expected = both(5)
    assert_close(first, expected)
    recorded = device.chain_potential()
    with torch.no_grad():
        for parameter in device.energy.parameters():
            parameter.mul_(1.5)
    assert device.chain_potential() is recorded  # so its record serves
    second, expected = both(5)
    assert_close(second, expected)
    assert not torch.allclose(first[-1], second[-1], **CLOSE)
    for chains in (2, 5):
        assert_close(*both(chains))
    with torch.no_grad():
        device.nvae.prior_constant.add_(0.1)
    assert device.chain_potential() is not recorded
    assert_close(*both(5))


def test_fused_depthwise_convolution() -> None:
    """Values and gradients against layers in double precision; shapes that no program's tile divides."""
    from vaebm.fast.layers import run_layers
    from vaebm.fast.triton_kernels import SwishDepthwiseSwish

    for shape in [(2, 40, 16, 16), (1, 33, 20, 9), (2, 8, 8, 8), (1, 4, 18, 40)]:
        channels = shape[1]
        x, weight, bias, gradient = (
            torch.randn(size, device="cuda") for size in (shape, (channels, 1, 5, 5), (channels,), shape)
        )
        exact = x.double().requires_grad_()
        expected = F.silu(F.conv2d(F.silu(exact), weight.double(), bias.double(), padding=2, groups=channels))
        slope = torch.autograd.grad(expected, exact, gradient.double())[0]
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):  # bfloat16: eight bits, twice rounded
            given = x.to(dtype).requires_grad_()
            found = run_layers([SwishDepthwiseSwish(weight.to(dtype), bias.to(dtype))], given)
            scale = expected.abs().max().item(), slope.abs().max().item()
            assert_close([found.double()], [expected.detach()], rtol=0.0, atol=tolerance * scale[0])
            assert_close(
                [torch.autograd.grad(found, given, gradient.to(dtype))[0].double()],
                [slope],
                rtol=0.0,
                atol=tolerance * scale[1],
            )


def test_rounded_chains_stay_near() -> None:
    """TF32 keeps ten bits, bfloat16 seven: gradients differ, and by no more than some such roundings."""
    exact, rounded = model("cuda"), model("cuda")
    expected = evaluate(exact.chain_potential(), start(exact))
    rounded.chain_dtype = torch.bfloat16
    for tf32, chosen, limit in ((True, exact, 1e-2), (False, rounded, 1e-1)):
        set_tf32(tf32)
        found = evaluate(chosen.chain_potential(), start(exact))
        apart = torch.cat(
            [(one - other).flatten() for one, other in zip(found.gradient, expected.gradient, strict=True)]
        ).norm()
        assert 0.0 < apart < limit * torch.cat([other.flatten() for other in expected.gradient]).norm()


def test_step_of_the_nvae() -> None:
    """Loss, regularisers and weights after one step."""
    training = NVAETrainingSettings(epochs=10, batch=8)
    found, weights = [], []
    for device in ("cpu", "cuda"):
        nvae, _ = random_pair(device)
        step = NVAETrainer(nvae.train(), training, 100, seed=0).step(IMAGES.to(device), 50, 1e-3, penalise=True)
        found.append(torch.tensor([step.reconstruction, *step.kl, step.spectral, step.batch_norm]))
        weights.append([parameter.detach() for parameter in nvae.parameters()])
    assert_close([found[1]], [found[0]], rtol=1e-4, atol=1e-3)  # sums over 768 pixels
    assert_close(
        weights[1], weights[0], rtol=1e-4, atol=2e-4
    )  # Adamax moves each by up to 1e-3, and by the sign where the gradient is nothing but rounding


@pytest.mark.parametrize("kind", ["noise", "density"])
def test_iteration_of_the_energy(kind: str) -> None:
    """Loss, energies, penalty and gradients of one iteration with three chain steps."""
    stage = EBMSettings(
        network=EnergyNetworkSettings(channels=8, widths=[1, 1, 2], down=[0, 2]),
        potential=kind,  # type: ignore[arg-type]
        chain=ChainSettings(steps=3, step_size=1e-2),
        training=EBMTrainingSettings(iterations=10, batch=8, learning_rate=1e-4),
    )
    found, gradients = [], []
    for device in ("cpu", "cuda"):
        nvae, energy = random_pair(device)
        trainer = EBMTrainer(nvae.eval().requires_grad_(False), energy, stage, seed=0)
        found.append(torch.tensor(trainer.gradients(IMAGES.to(device), 0)))
        gradients.append([parameter.grad.clone() for parameter in energy.parameters() if parameter.grad is not None])
        trainer.update(1e-4)
    assert_close([found[1]], [found[0]])
    scale = max(gradient.abs().max().item() for gradient in gradients[0])
    assert_close(gradients[1], gradients[0], rtol=0.0, atol=1e-4 * scale)


def test_steps_of_the_gan() -> None:
    network = EnergyNetworkSettings(channels=8, widths=[1, 1, 2], down=[0, 2])
    settings = WGANSettings(network=network, iterations=10, batch=8)
    found = []
    for device in ("cpu", "cuda"):
        nvae, critic = random_pair(device)
        trainer = wgan.WGANTrainer(nvae.eval(), critic, settings, seed=0)
        parts = trainer.critic_step(nvae.as_input(IMAGES.to(device)), 0)
        found.append(
            torch.stack([parts.loss.detach(), parts.gap.detach(), parts.penalty.detach(), trainer.generator_step(0)])
        )
    assert_close([found[1]], [found[0]])


def test_score() -> None:
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    host, device = model("cpu"), model("cuda")
    assert_close(
        [device.score(images.cuda(), importance_samples=2)],
        [host.score(images, importance_samples=2)],
        rtol=1e-4,
        atol=1e-2,
    )  # sums over 768 pixels


def test_copies_are_apart() -> None:
    """A copy of a model whose step is recorded records its own: its energy's weights move no chain of the first."""
    one, noise = model("cuda"), NoiseSource(0, "chain", range(5))
    first, _ = moved(one, 3, noise)
    other = copy.deepcopy(one)
    assert other.energy is not None
    with torch.no_grad():
        for parameter in other.energy.parameters():
            parameter.mul_(2.0)
    assert not torch.allclose(moved(other, 3, noise)[0][0], first[0])
    assert_close(moved(one, 3, noise)[0], first)


def test_a_step_is_recorded_anew_where_rounding_changes() -> None:
    device, noise = model("cuda"), NoiseSource(0, "chain", range(5))
    exact, _ = moved(device, 3, noise)
    set_tf32(True)
    rounded, _ = moved(device, 3, noise)
    set_tf32(False)
    assert not torch.equal(exact[-1], rounded[-1])
    assert_close(moved(device, 3, noise)[0], exact)


def test_energies_of_another_kind_are_not_recorded() -> None:
    """They may synchronise, which no record can."""

    class Halting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.sum().item() > 0
            return x.square().flatten(1).sum(1)

    found, expected = (
        moved(VAEBM(model(device).nvae, Halting()), 3, NoiseSource(0, "chain", range(5)))[0]
        for device in ("cuda", "cpu")
    )
    assert_close(found, expected)
