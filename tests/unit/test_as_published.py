"""The baseline of the speed measurements computes what the package does."""

import copy

import pytest
import speed
import torch
import workloads
from as_published import PublishedBatchNormSwish, PublishedConv2d, Unprepared, as_published
from torch import Tensor, nn

from vaebm.chain.langevin import evaluate
from vaebm.config import (
    ChainSettings,
    EBMSettings,
    EBMTrainingSettings,
    EnergyNetworkSettings,
    NVAENetworkSettings,
    NVAETrainingSettings,
)
from vaebm.ebm.iteration import EBMTrainer
from vaebm.energy.network import EnergyNetwork
from vaebm.model import VAEBM
from vaebm.noise import NoiseSource
from vaebm.nvae.layers import convolution_weights
from vaebm.nvae.model import NVAE
from vaebm.nvae.objective import nelbo
from vaebm.nvae.train import NVAETrainer
from vaebm.training.spectral import SpectralPenalty

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def pair() -> tuple[NVAE, EnergyNetwork]:
    """A random pair for 16×16 colour images, with flows, every kind of skip connection, and batch norms that have seen
    something.
    """
    torch.manual_seed(0)
    network = {
        "channels_encoder": 8,
        "channels_decoder": 8,
        "groups": [1, 2],
        "latents": 2,
        "preprocess_blocks": 1,
        "preprocess_cells": 2,
    }
    network |= {"postprocess_cells": 2, "cells_encoder": 1, "cells_decoder": 1, "flows": 1}
    nvae = NVAE(NVAENetworkSettings.model_validate(network), (3, 16, 16))
    for name, buffer in nvae.named_buffers():
        if name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 1.5)
    energy = EnergyNetwork(EnergyNetworkSettings(channels=8, widths=[1, 1, 2], down=[0, 2]), 3)
    energy.initialize(torch.rand(16, 3, 16, 16))
    return nvae, energy


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None}


def test_training_step_of_the_nvae(pair: tuple[NVAE, EnergyNetwork]) -> None:
    """Loss, gradients of every weight and statistics of every batch norm, and the spectral penalty of the weights of
    that pass.
    """
    ours, x, noise = pair[0].train(), torch.rand(8, 3, 16, 16), NoiseSource(0, "test", range(8))
    published = as_published(ours)
    found = []
    for nvae in (ours, published):
        loss = nelbo(nvae(x, noise=noise), x).loss
        penalty = SpectralPenalty(convolution_weights(nvae), seed=0)()
        (loss + 10.0 * penalty).backward()
        found.append([loss.detach(), penalty.detach(), gradients(nvae), dict(nvae.named_buffers())])
    torch.testing.assert_close(*found, **CLOSE)
    assert len(found[0][2]) == len(list(ours.parameters()))


def test_updates_of_the_trainers(pair: tuple[NVAE, EnergyNetwork]) -> None:
    """One of the NVAE and one of the energy, with penalties, optimisers and parameters as each way has them."""
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    of_nvae = NVAETrainingSettings(epochs=1, batch=8, warmup_epochs=0, norm_weight=0.1)
    of_energy = EBMTrainingSettings(iterations=1, batch=8, learning_rate=1e-3)
    stage = EBMSettings(network=pair[1].settings, chain=ChainSettings(steps=1, step_size=1e-2), training=of_energy)
    found = []
    for way in (workloads.Implementation("fast"), workloads.Implementation("as published")):
        nvae, energy = (module.double() for module in copy.deepcopy(pair))
        if way.kind == "as published":
            nvae, energy = as_published(nvae), as_published(energy)
        with workloads.training_of(way):
            first = NVAETrainer(nvae.train(), of_nvae, 10, seed=0)
            second = EBMTrainer(nvae.train(), energy, stage, seed=0)
        with workloads.steps_of(way):
            assert first.step(images, 5, 1e-2, penalise=True).finite
            nvae.eval().requires_grad_(False)
            second.gradients(images, 0)
            second.update(1e-2)
        found.append([dict(module.named_parameters()) for module in (nvae, energy)])
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)
    assert all(not torch.equal(found[0][1][name], value) for name, value in pair[1].named_parameters())


@pytest.mark.parametrize("kind", ["noise", "density"])
def test_step_of_the_chain(pair: tuple[NVAE, EnergyNetwork], kind: str) -> None:
    """Potential and gradients: the baseline's against the modules' and against those that chains run with."""
    nvae, energy = (module.eval().requires_grad_(False) for module in pair)
    ours = VAEBM(nvae, energy, kind)  # type: ignore[arg-type]
    published = Unprepared(as_published(nvae), as_published(energy), kind)
    eps_z, eps_x = ours.initial_noise(NoiseSource(0, "test", range(4)))
    expected = evaluate(published.chain_potential(), [*eps_z, eps_x])
    for potential in (lambda eps: ours.potential(eps[:-1], eps[-1]), ours.chain_potential()):
        torch.testing.assert_close(evaluate(potential, [*eps_z, eps_x])[1:], expected[1:], **CLOSE)


def test_it_is_another_arithmetic(pair: tuple[NVAE, EnergyNetwork]) -> None:
    """Every layer was exchanged, none of the fused operations and no other layout is left, and the package's own
    modules are as before.
    """
    published = as_published(pair[0])
    assert sum(isinstance(layer, PublishedConv2d) for layer in published.modules()) > 20 and not any(
        isinstance(layer, PublishedConv2d) for layer in pair[0].modules()
    )
    assert sum(isinstance(layer, PublishedBatchNormSwish) for layer in published.modules()) > 10
    assert all(parameter.is_contiguous() for parameter in published.parameters())
    with torch.profiler.profile() as seen:
        published(torch.rand(2, 3, 16, 16), noise=NoiseSource(0, "test", range(2)))
    assert not {event.name for event in seen.events()} & {"aten::silu", "aten::addcmul_"}


def test_work_of_shared_chains_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains that two threads share do the FLOP that one thread does; its own number of threads is left as it was."""
    parts = {
        "groups": [1, 1],
        "latents": 2,
        "preprocess_blocks": 1,
        "preprocess_cells": 1,
        "postprocess_cells": 1,
        "cells_encoder": 1,
        "cells_decoder": 1,
    }
    network = NVAENetworkSettings.model_validate({"channels_encoder": 4, "channels_decoder": 4} | parts)
    ebm = EBMSettings(
        network=EnergyNetworkSettings(channels=4, widths=[1], down=[0]),
        chain=ChainSettings(steps=1, step_size=0.1),
        training=EBMTrainingSettings(iterations=1, batch=32, learning_rate=1e-3),
    )
    setup = workloads.Setup(
        "small", network, NVAETrainingSettings(epochs=1, batch=32, warmup_epochs=0), ebm, (1, 32, 32), 32, 1
    )
    before, counts, device = torch.get_num_threads(), {}, torch.device("cpu")
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            monkeypatch.setattr(
                speed, "_work", workloads.langevin_step(setup, device, workloads.Implementation("fast")), raising=False
            )
            counts[threads] = speed._count(device)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert counts[1] == counts[2] and counts[1][0] > 0
