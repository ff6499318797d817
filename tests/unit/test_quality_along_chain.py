"""Quality and energy against the number of steps: the samples' own chains, looked at on their way."""

import itertools

import pytest
import torch
from torch import nn

from vaebm.config import NVAENetworkSettings, SamplesSettings
from vaebm.config.ebm import ChainSettings
from vaebm.config.evaluation import StepsSettings
from vaebm.evaluation import quality_along_chain as quality_along_chain_module
from vaebm.evaluation.quality_along_chain import quality_along_chain, stops
from vaebm.model import VAEBM, sample_noise
from vaebm.nvae.model import NVAE
from vaebm.records.results import AlongChain
from vaebm.samples import grey_levels
from vaebm.system.device import seeded

NETWORK = {
    "channels_encoder": 4,
    "channels_decoder": 4,
    "groups": [2],
    "latents": 2,
    "preprocess_blocks": 1,
    "preprocess_cells": 1,
}
CELLS = {"postprocess_cells": 1, "cells_encoder": 1, "cells_decoder": 1}


class Brightness(nn.Module):
    """An energy that is lowest for dark images."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return self.weight * x.square().flatten(1).sum(1)


@pytest.fixture
def model():
    with seeded(0):
        nvae = NVAE(NVAENetworkSettings.model_validate(NETWORK | CELLS), (1, 8, 8))
    return VAEBM(nvae.eval().requires_grad_(False), Brightness(1.0))


def sampling(batch, stretch=False):
    """How the samples are drawn, with that many chains at once."""
    return SamplesSettings.model_validate(
        {"count": 7, "batch": batch, "stretch": stretch, "chain": {"steps": 4, "step_size": 1e-2}}
    )


def brightness(images):
    return float(images.double().mean())


def test_after_the_test_chains_steps_the_samples_themselves_come_out(model):
    noise = sample_noise(3, range(5))
    found = stops(model, noise, [0, 4, 6], ChainSettings(steps=6, step_size=1e-2))
    for stop, steps in zip(found, (0, 4, 6), strict=True):
        assert torch.equal(stop.means, model.sample_means(noise, ChainSettings(steps=steps, step_size=1e-2)))
        eps_z, eps_x = model.refine(*model.initial_noise(noise), steps=steps, step_size=1e-2, noise=noise)
        with torch.no_grad():
            expected = model.energy(model.decode(eps_z)[0].sample(eps_x))
        # the decoder prepared for the chains folds its weights: float32 rounding
        assert torch.allclose(stop.energies, expected, rtol=1e-4) and stop.gradients == steps


def test_curves_do_not_depend_on_the_batch_and_follow_the_energy(model):
    settings = StepsSettings(images=7, counts=[0, 5, 20])
    found = quality_along_chain(model, settings, sampling(3), 0, "FD-resnet56", brightness)
    assert found.counts == [0, 5, 20] and found.samples == 7
    other = quality_along_chain(model, settings, sampling(7), 0, "FD-resnet56", brightness)
    # batches of another size: float32 rounding, and an image may move to the next grey level
    assert found.energy == pytest.approx(other.energy, rel=1e-5) and found.distances == pytest.approx(
        other.distances, abs=0.1
    )
    assert found.energy == sorted(found.energy, reverse=True) and found.distances[2] < found.distances[0], (
        "down the energy, to darker images"
    )


def test_time_is_that_of_the_chain_without_the_measurements(model, monkeypatch):
    """A clock that ticks once a second when it is looked at: begin, and before and after the decoding of each stop."""
    ticks = itertools.count()
    monkeypatch.setattr(quality_along_chain_module.time, "monotonic", lambda: float(next(ticks)))
    found = stops(model, sample_noise(0, range(2)), [0, 2, 3], ChainSettings(steps=3, step_size=1e-2))
    assert [stop.seconds for stop in found] == [2, 3, 4], "one for each chain and one for the decoding"
    steps = StepsSettings(images=4, counts=[0, 2, 3])
    along = quality_along_chain(model, steps, sampling(2), 0, "FD-resnet56", brightness)
    assert along.seconds == [2 * 2 / 4, 2 * 3 / 4, 2 * 4 / 4] and along.gradients == [0, 2, 3]
    assert AlongChain.model_validate(along.model_dump()) == along


def test_chains_that_leave_the_finite_numbers_leave_a_gap(model):
    model.energy.weight = float("inf")
    steps = StepsSettings(images=4, counts=[0, 3])
    found = quality_along_chain(model, steps, sampling(4), 0, "FD-resnet56", brightness)
    assert found.distances[0] is not None and found.distances[1] is None
    assert found.energy == [None, None]


def test_images_are_kept_as_the_samples_are(model):
    """Clamped, or stretched from the means themselves, which leave [0, 1]."""
    seen = []
    for stretch in (False, True):
        quality_along_chain(
            model,
            StepsSettings(images=3, counts=[4]),
            sampling(3, stretch),
            0,
            "FD-resnet56",
            lambda images: seen.append(images) or 0.0,
        )
    means = model.sample_means(sample_noise(0, range(3)), ChainSettings(steps=4, step_size=1e-2))
    for images, stretch in zip(seen, (False, True), strict=True):
        assert torch.equal(images, grey_levels(means, stretch).permute(0, 3, 1, 2))
