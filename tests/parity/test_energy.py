"""The energy network against recordings of the published program's, read as its checkpoints are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vaebm.energy.network import EnergyNetwork
from vaebm.energy.published_checkpoint import published_name, read_published_energy
from vaebm.nvae.layers import convolution_weights
from vaebm.training.spectral import SpectralPenalty

Recording = dict[str, Any]


@pytest.fixture(params=["mnist", "cifar32", "celeba64"])
def recording(request: pytest.FixtureRequest) -> Recording:
    """A recorded network with 8 channels."""
    loaded: Recording = torch.load(Path(__file__).parent / "data" / f"energy_{request.param}.pt", weights_only=True) | {
        "name": request.param
    }
    return loaded


def network(recording: Recording, state: dict[str, Tensor], folder: Path) -> EnergyNetwork:
    """Our network with recorded weights, from a file of the published layout, in double precision."""
    torch.save({"model": state}, folder / "EBM_0.pth")
    converted = read_published_energy(folder / "EBM_0.pth")
    assert (converted.name, converted.settings.channels, converted.shape) == (
        recording["name"],
        8,
        recording["x_u8"].shape[1:],
    )
    energy = EnergyNetwork(converted.settings, converted.shape[0])
    energy.load_state_dict(converted.weights)
    return energy.double()


def initialised(recording: Recording, folder: Path) -> EnergyNetwork:
    """Our network after the published program's initialisation, which changed some weights, in single precision."""
    return network(recording, recording["state_dict_fresh"] | recording["state_dict_after_init"], folder)


def test_data_dependent_initialisation(recording: Recording, tmp_path: Path) -> None:
    """Energies recorded in double precision; weights in single, about one in size, so equal to a few times its rounding
    of 1e-7.
    """
    energy = network(recording, recording["state_dict_fresh"], tmp_path)
    during = energy.initialize(recording["init_images_u8"].double() / 255)
    torch.testing.assert_close(during, recording["f64"]["E_during_init"], rtol=1e-10, atol=0)
    state = energy.state_dict()
    ours = {published_name(name): name for name in state}
    for name, value in recording["state_dict_after_init"].items():
        torch.testing.assert_close(state[ours[name]], value.double(), rtol=0, atol=1e-6)


def test_energies_and_their_gradients(recording: Recording, tmp_path: Path) -> None:
    x = (recording["x_u8"].double() / 255).requires_grad_()
    energies = initialised(recording, tmp_path)(x)
    (gradient,) = torch.autograd.grad(energies.sum(), x)
    torch.testing.assert_close(energies, recording["f64"]["E"], rtol=1e-10, atol=0)
    torch.testing.assert_close(
        gradient, recording["f64"]["dsumE_dx"], rtol=1e-10, atol=1e-10 * float(gradient.abs().max())
    )


def test_spectral_sum(recording: Recording, tmp_path: Path) -> None:
    """After power iterations to convergence, against the exact singular values."""
    penalty = SpectralPenalty(convolution_weights(initialised(recording, tmp_path)), seed=0).double()
    with torch.no_grad():
        for _ in range(500):
            value = penalty()
    assert value.item() == pytest.approx(float(recording["f64"]["spectral_norm_exact_svd_sum"]), rel=1e-7)
