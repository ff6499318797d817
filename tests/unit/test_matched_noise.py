"""Positives with the decoder's pixel noise: their law, and the energy that contrastive divergence then ends at."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from networks import ENERGY, NETWORK, LinearVAE
from torch import Tensor, nn

from vaebm.config import EBMSettings
from vaebm.config.yaml_files import validate
from vaebm.ebm.contrastive_divergence import contrastive_divergence, positives
from vaebm.energy.network import EnergyNetwork
from vaebm.model import VAEBM
from vaebm.noise import NoiseSource
from vaebm.nvae.model import NVAE
from vaebm.nvae.pixel_distributions import PixelNormal, match_noise
from vaebm.system.errors import UserError

DATA, DECODER, SIGMA = 0.2, 0.4, 0.15
"""Deviations of y = 2x − 1: of the data, of the decoder's mean, of the decoder's noise.

All of N(0, ·), far from the clamp at ±1.
"""


class Precision(nn.Module):
    """E(x) = ½ w ‖2x − 1‖² with a trained w."""

    def __init__(self, w: float):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.w * (2 * x - 1).square().sum(dim=(1, 2, 3))


def stage(kind: Literal["clean", "matched"], **changes: object) -> EBMSettings:
    settings = {
        "network": ENERGY.model_dump(),
        "chain": {"steps": 1, "step_size": 0.1},
        "positives": kind,
        "training": {"iterations": 1, "batch": 2},
    }
    settings["training"]["learning_rate"] = 1e-3  # type: ignore[index]
    return validate(EBMSettings, settings | changes, "ebm")


def data(count: int) -> Tensor:
    """N(0, DATA²) in y as grey levels, (count, 1, 1, 1) uint8; rounding adds less than a ten-thousandth to its
    variance.
    """
    y = DATA * torch.randn(count, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    return (255 * (0.5 + 0.5 * y)).round().clamp(0, 255).to(torch.uint8)


def gradient(kind: Literal["clean", "matched"], w: float, count: int = 10_000) -> float:
    """d/dw of contrastive divergence at E = ½ w y², with converged chains, in units of its standard error."""
    nvae, energy = LinearVAE(torch.full((1, 1), DECODER, dtype=torch.float64), SIGMA), Precision(w)
    model, noise = VAEBM(nvae, energy, positives=kind), NoiseSource(0, "chain", range(count))  # type: ignore[arg-type]
    energy.requires_grad_(False)
    eps_z, eps_x = model.refine(*model.initial_noise(noise), steps=60, step_size=0.05, noise=noise)
    energy.requires_grad_(True)
    positive = positives(nvae, data(count), stage(kind), NoiseSource(0, "positives", range(count)))  # type: ignore[arg-type]
    parts = contrastive_divergence(energy, positive, nvae.decode(eps_z)[0].sample(eps_x))  # type: ignore[arg-type]
    (found,) = torch.autograd.grad(parts.loss, energy.w)
    each = [(part.detach() / w).var() for part in (parts.positive, parts.negative)]
    return float(found / (sum(each) / count) ** 0.5)


def test_matched_noise_moves_the_fixed_point_to_the_right_energy() -> None:
    """The model's law of y is N(0, 1 / (w + 1 / (a² + s²))) for a decoder N(a z, s²). Its samples carry the noise s; so
    do the data that it should match, N(0, v + s²). Contrastive divergence has its fixed point where both variances
    agree: with matched positives at w = 1 / (v + s²) − 1 / (a² + s²), with clean ones at 1 / v − 1 / (a² + s²), an
    energy that removes the decoder's noise as well.
    """
    prior = 1 / (DECODER**2 + SIGMA**2)
    right, wrong = 1 / (DATA**2 + SIGMA**2) - prior, 1 / DATA**2 - prior
    assert wrong > 1.8 * right
    # η = 0.05 widens the chain's variance by a factor 1 / (1 − η H / 4), H = 1 + w (a² + s²) at most 4.6 here: by at
    # most 6 %, which is 0.06 / (√2 / √10,000) = 4 standard errors of a variance. Without noise, or with it on the wrong
    # side, the variances are off by 36 % or more.
    for kind, at in (("matched", right), ("clean", wrong)):
        assert abs(gradient(kind, at)) < 8  # type: ignore[arg-type]
    assert gradient("clean", right) < -15 and gradient("matched", wrong) > 15


def test_matched_positives_are_the_images_with_the_noise_of_a_reconstruction() -> None:
    """Mean and deviation of many draws for one image are x and ½σ where no value is clamped; the noise is a function of
    the index.
    """
    nvae = LinearVAE(torch.full((4, 1), 0.1), 0.2)
    x = torch.full((20_000, 1, 4, 1), 120, dtype=torch.uint8)
    found = positives(nvae, x, stage("matched"), NoiseSource(0, "positives", range(len(x))))  # type: ignore[arg-type]
    assert found.mean(0).flatten().tolist() == pytest.approx([120 / 255] * 4, abs=5 * 0.1 / len(x) ** 0.5)
    assert found.std(0).flatten().tolist() == pytest.approx([0.1] * 4, rel=5 / (2 * len(x)) ** 0.5)
    again = positives(nvae, x[:2], stage("matched"), NoiseSource(0, "positives", [7, 3]))  # type: ignore[arg-type]
    assert torch.equal(again, found[[7, 3]]) and not torch.equal(again[0], again[1])
    assert torch.equal(positives(nvae, x[:1], stage("clean"), NoiseSource(0, "positives", [0])), x[:1] / 255)  # type: ignore[arg-type]


def test_noise_is_clamped_as_the_decoders_samples_are() -> None:
    """Around the decoder's own mean the noise gives the decoder's own samples."""
    pixels = PixelNormal(torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)))
    eps = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    noisy = pixels.add_noise(pixels.mean, eps)
    torch.testing.assert_close(noisy, pixels.sample(eps))
    assert noisy.min() == 0 and noisy.max() == 1


def test_an_energy_of_noisy_images_scores_images_with_noise() -> None:
    """The energy term is the mean over the draws of E(x + ½σ(z) ω), with the draws z of the likelihood; images alone
    for `clean`.
    """
    torch.manual_seed(0)
    nvae, energy = NVAE(NETWORK, (1, 8, 8)).eval().requires_grad_(False), EnergyNetwork(ENERGY, 1).requires_grad_(False)
    energy.initialize(torch.rand(8, 1, 8, 8))
    x, noise = torch.randint(0, 256, (5, 1, 8, 8)) / 255, NoiseSource(3, "score", range(5))
    matched, clean, alone = (
        VAEBM(nvae, one, positives=kind) for one, kind in ((energy, "matched"), (energy, "clean"), (None, "clean"))
    )  # type: ignore[arg-type]
    expected = torch.stack(
        [energy(match_noise(nvae(x, noise=noise, step=draw).pixels, x, noise, draw)) for draw in range(3)]
    ).mean(0)
    log_p = alone.score(x, seed=3, importance_samples=3)
    torch.testing.assert_close(matched.score(x, seed=3, importance_samples=3), log_p - expected)
    torch.testing.assert_close(clean.score(x, seed=3, importance_samples=3), log_p - energy(x))
    assert (expected - energy(x)).abs().min() > 1e-4, "the noise is seen"


@pytest.mark.parametrize(
    ("changes", "found"), [({"negatives": "mean"}, "negatives mean"), ({"potential": "pixels"}, "potential pixels")]
)
def test_matched_positives_need_noisy_negatives(changes: dict[str, object], found: str) -> None:
    with pytest.raises(UserError, match=f"positives matched .*{found}"):
        stage("matched", **changes)
