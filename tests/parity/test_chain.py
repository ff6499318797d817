"""The chain and the energy's training against a recording of the published program's: three iterations, in double
precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vaebm.config import EBMSettings
from vaebm.ebm import iteration as training
from vaebm.ebm.iteration import EBMTrainer
from vaebm.energy import published_checkpoint as energies
from vaebm.energy.network import EnergyNetwork
from vaebm.model import VAEBM
from vaebm.noise import NoiseSource
from vaebm.nvae import published_checkpoint as nvaes
from vaebm.nvae.model import NVAE, load_nvae

DATA = Path(__file__).parent / "data"

EXACT: dict[str, float] = {"rtol": 1e-10, "atol": 1e-10}
"""The absolute part is for values near 0 of quantities of the order of 1 or above."""

Recording = dict[str, Any]


@pytest.fixture(scope="module")
def recording() -> Recording:
    return torch.load(DATA / "chain_cifar.pt", weights_only=True)


@pytest.fixture(scope="module")
def nvae(recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> NVAE:
    """The published program once drew from its NVAE in training mode, so that its batch norms have moved."""
    path = tmp_path_factory.mktemp("nvae") / "model.pt"
    nvaes.convert_published_nvae(DATA / "nvae_cifar_checkpoint.pt", path)
    names, nvae = nvaes.read_published_nvae(DATA / "nvae_cifar_checkpoint.pt").names, load_nvae(path).double()
    moved = {names[name]: value for name, value in recording["batch_norm"].items()}
    nvae.load_state_dict(nvae.state_dict() | moved)
    return nvae


@pytest.fixture
def energy(tmp_path: Path) -> EnergyNetwork:
    """Initialised by data, then its head eight times as large, so that it shows beside the NVAE."""
    recorded = torch.load(DATA / "energy_cifar32.pt", weights_only=True)
    state = recorded["state_dict_fresh"] | recorded["state_dict_after_init"]
    torch.save({"model": state | {"linear.weight": 8 * state["linear.weight"]}}, tmp_path / "EBM_0.pth")
    converted = energies.read_published_energy(tmp_path / "EBM_0.pth")
    energy = EnergyNetwork(converted.settings, converted.shape[0])
    energy.load_state_dict(converted.weights)
    return energy.double()


def unpack(flat: Tensor, nvae: NVAE) -> list[Tensor]:
    """Recorded noise (B, all values) as one tensor per latent group, and the pixels' last."""
    shapes = [*nvae.latent_shapes, nvae.shape]
    parts = flat.double().split([torch.Size(shape).numel() for shape in shapes], dim=1)
    return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def test_gradient_of_the_chain(recording: Recording, nvae: NVAE, energy: EnergyNetwork) -> None:
    """E, log p(z), log p(x|z) of four chains; of one of them the gradient of the four's mean, which is a quarter of its
    own.
    """
    vaebm, expected = VAEBM(nvae, energy, "density"), recording["f64"]
    eps = [part.requires_grad_() for part in unpack(recording["noise"][0, 0], nvae)]
    pixels, log_p = vaebm.decode(eps[:-1])
    x = pixels.sample(eps[-1])
    torch.testing.assert_close(energy(x), expected["energy"][0, 0], **EXACT)
    torch.testing.assert_close(log_p, expected["log_p_total"][0, 0], **EXACT)
    torch.testing.assert_close(pixels.chain_log_prob(x).sum(dim=(1, 2, 3)), expected["log_pxgz"][0, 0], **EXACT)
    potential = vaebm.potential(eps[:-1], eps[-1])
    torch.testing.assert_close(
        potential, expected["energy"][0, 0] - expected["log_p_total"][0, 0] - expected["log_pxgz"][0, 0], **EXACT
    )
    gradient = torch.autograd.grad(potential.sum(), eps)
    torch.testing.assert_close(torch.cat([part[2].flatten() for part in gradient]), 4 * expected["gradient"], **EXACT)


def test_three_iterations(
    recording: Recording, nvae: NVAE, energy: EnergyNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every energy on the way, in chains and losses, and all weights after the third update: chains, spectral penalty,
    clip, Adam, decay.
    """
    options, expected = recording["options"], recording["f64"]
    trainer = EBMTrainer(nvae, energy, settings(options, recording["adam"], energy), seed=0)
    for number, (u, v) in enumerate(
        zip(recording["spectral_uv_init"][::2], recording["spectral_uv_init"][1::2], strict=True)
    ):
        for name, vectors in (("u", u), ("v", v)):
            trainer.spectral.get_buffer(f"{name}{number}").copy_(F.normalize(vectors.double(), dim=1, eps=1e-3))
    seen: list[Tensor] = []
    energy.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    for iteration, (images, noise) in enumerate(zip(recording["images_u8"], recording["noise"], strict=True)):
        replay(monkeypatch, [unpack(state, nvae) for state in noise])
        seen.clear()
        found = trainer.gradients(images, iteration)
        trainer.update(options["lr"])
        chain, (data, negatives) = torch.stack(seen[:-1]), seen[-1].chunk(2)  # one pass for data and negatives
        torch.testing.assert_close(chain, expected["energy"][iteration], **EXACT)
        torch.testing.assert_close(data, expected["pos_out"][iteration], **EXACT)
        torch.testing.assert_close(negatives, expected["neg_out"][iteration], **EXACT)
        assert found.loss + options["alpha_s"] * found.spectral == pytest.approx(
            float(expected["loss_total"][iteration]), rel=1e-10
        )
    state, ours = energy.state_dict(), {energies.published_name(name): name for name in energy.state_dict()}
    assert set(ours) == set(expected["params_after_step"])
    for name, weight in expected["params_after_step"].items():
        torch.testing.assert_close(state[ours[name]], weight, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


def settings(options: dict[str, Any], adam: dict[str, Any], energy: EnergyNetwork) -> EBMSettings:
    """Those of the recording."""
    return EBMSettings.model_validate(
        {
            "network": energy.settings,
            "potential": "density",
            "chain": {"steps": options["num_steps"], "step_size": options["step_size"]},
            "negatives": "mean" if options["use_mu_cd"] else "sample",
            "quantize_positives": False,
            "training": {
                "iterations": 3,
                "batch": options["batch_size"],
                "precision": "float64",
                "learning_rate": adam["lr"],
                "beta1": adam["betas"][0],
                "beta2": adam["betas"][1],
                "weight_decay": adam["weight_decay"],
                "spectral_weight": options["alpha_s"],
                "adaptive_clip": options["grad_clip"],
            },
        }
    )


def replay(monkeypatch: pytest.MonkeyPatch, states: list[list[Tensor]]) -> None:
    """Make the trainer's noise of one iteration the recorded one: where the chains start, then that of each step."""

    class Recorded(NoiseSource):
        def normal(self, *_: object, **__: object) -> list[Tensor]:
            return states[0]

        def like(self, tensors: Sequence[Tensor], step: int) -> list[Tensor]:
            return states[step]

    monkeypatch.setattr(training, "NoiseSource", Recorded)
