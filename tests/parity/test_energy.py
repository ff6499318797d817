"""The energy network against recordings of the published program's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vaebm.config import EnergyNetworkSettings
from vaebm.ebm.network import EnergyNetwork
from vaebm.nvae.cells import convolution_weights
from vaebm.spectral import SpectralPenalty

NETWORKS = {
    "mnist": ({"channels": 8, "widths": [1, 1, 2, 2], "down": [0, 2]}, 1),
    "cifar32": ({"channels": 8, "widths": [1, 1, 2, 2, 2, 2], "down": [0, 2, 4]}, 3),
}
"""The recorded networks: settings and channels of their images."""


def ours(name: str) -> str:
    """Our name of a published parameter."""
    if name.startswith(("conv1.", "linear.")):
        return name.replace("conv1.", "stem.").replace("linear.", "head.")
    return name.replace(".conv1.", ".first.").replace(".conv2.", ".second.").replace(".skip.0.", ".skip.")


@pytest.fixture(params=NETWORKS)
def recorded(request: pytest.FixtureRequest) -> tuple[dict[str, Any], EnergyNetwork]:
    """A recording, and our network with its weights from before the initialisation."""
    settings, channels = NETWORKS[request.param]
    recording = torch.load(Path(__file__).parent / "data" / f"energy_{request.param}.pt", weights_only=True)
    energy = EnergyNetwork(EnergyNetworkSettings.model_validate(settings), channels)
    load(energy, recording["state_dict_fresh"])
    return recording, energy


def load(energy: EnergyNetwork, state: dict[str, Tensor]) -> None:
    energy.load_state_dict({ours(name): value for name, value in state.items()})


def initialised(recording: dict[str, Any], energy: EnergyNetwork) -> EnergyNetwork:
    load(energy, {**recording["state_dict_fresh"], **recording["state_dict_after_init"]})
    return energy.double()


def test_data_dependent_initialisation(recorded: tuple[dict[str, Any], EnergyNetwork]) -> None:
    """Recorded in single precision, so equal to its rounding."""
    recording, energy = recorded
    during = energy(recording["init_images_u8"] / 255, initialize=True)
    torch.testing.assert_close(during, recording["E_during_init"], rtol=1e-4, atol=1e-5)
    state = energy.state_dict()
    for name, value in recording["state_dict_after_init"].items():
        torch.testing.assert_close(state[ours(name)], value, rtol=1e-4, atol=1e-5)


def test_energies_and_their_gradients(recorded: tuple[dict[str, Any], EnergyNetwork]) -> None:
    recording, energy = recorded
    x = (recording["x_u8"].double() / 255).requires_grad_()
    energies = initialised(recording, energy)(x)
    (gradient,) = torch.autograd.grad(energies.sum(), x)
    torch.testing.assert_close(energies, recording["f64"]["E"], rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient, recording["f64"]["dsumE_dx"], rtol=1e-10, atol=1e-10 * float(gradient.abs().max()))


def test_spectral_sum(recorded: tuple[dict[str, Any], EnergyNetwork]) -> None:
    recording, energy = recorded
    penalty = SpectralPenalty(convolution_weights(initialised(recording, energy)), seed=0).double()
    with torch.no_grad():
        for _ in range(500):
            value = penalty()
    assert value.item() == pytest.approx(float(recording["f64"]["spectral_norm_exact_svd_sum"]), rel=1e-7)
