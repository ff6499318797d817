"""The pair as one torch module: kept and read as a whole, moved as a whole."""

from __future__ import annotations

import io

import pytest
import torch
from networks import ENERGY, NETWORK

from vaebm.energy.network import EnergyNetwork
from vaebm.model import VAEBM, pair
from vaebm.nvae.model import NVAE
from vaebm.sampler import Sampler
from vaebm.system.device import seeded


@pytest.fixture(params=["noise", "pixels", "none"])
def model(request: pytest.FixtureRequest) -> VAEBM:
    """An energy in the space of the noise, one on pixels, and an NVAE alone."""
    with seeded(0):
        nvae, energy = NVAE(NETWORK, (1, 8, 8)), EnergyNetwork(ENERGY, 1)
    nvae, energy = (network.eval().requires_grad_(False) for network in (nvae, energy))
    made = VAEBM(nvae, None) if request.param == "none" else pair(nvae, energy, request.param)
    made.steps, made.step_size = (0, 1.0) if request.param == "none" else (2, 1e-2)
    return made


def test_kept_and_read_it_is_the_same(model: VAEBM) -> None:
    """Its networks are in its state, and its images and scores those of the pair, bit by bit."""
    file, later = io.BytesIO(), io.BytesIO()
    torch.save(Sampler(model), file)
    images = model.sample(3, seed=1)
    torch.save(Sampler(model), later)  # what it prepared for its chains, and on a GPU recorded, stays here
    assert abs(len(later.getvalue()) - len(file.getvalue())) < 100
    file.seek(0)
    read = torch.load(file, weights_only=False)
    assert torch.equal(read.sample(3, seed=1), images) and torch.equal(read(images), model.score(images))
    networks = {name.split(".")[0] for name in read.state_dict()}
    assert networks == ({"nvae"} if model.energy is None else {"nvae", "energy"})


def test_the_chain_s_settings_can_be_others(model: VAEBM) -> None:
    """Without steps, the start of the chains."""
    start = Sampler(model).sample(2, seed=1, steps=0)
    assert torch.equal(start, model.chain(2, seed=1, steps=0)[0]) and (model.energy is None) == torch.equal(start, model.sample(2, seed=1))


def test_both_networks_move(model: VAEBM) -> None:
    """In double precision images and scores are double, which takes both."""
    sampler = Sampler(model).double()
    images = sampler.sample(2)
    assert images.dtype == sampler(images).dtype == torch.float64
