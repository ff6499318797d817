"""The energy on noise: exact on Gaussians, its training, its chains, its place in the model and in the files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from networks import ENERGY, NETWORK
from torch import Tensor, nn

from vaebm import VAEBM
from vaebm.config import ChainSettings, EBMSettings, Experiment, NoiseEnergySettings, PriorSettings
from vaebm.config.yaml_files import read_experiment
from vaebm.data import prepare
from vaebm.ebm.ahead import AHEAD
from vaebm.ebm.iteration import EBMTrainer
from vaebm.energy.network import EnergyNetwork
from vaebm.energy.noise_energy import NoiseEnergy, load_prior
from vaebm.fast import half_square, run_chain
from vaebm.model import build_model
from vaebm.noise import NoiseSource
from vaebm.nvae.model import NVAE
from vaebm.prior.train import PriorTrainer, contrastive_loss, run
from vaebm.system.checkpoint import save_model
from vaebm.system.device import Interrupted, seeded
from vaebm.system.errors import UserError
from vaebm.training.loop import Limits

MEAN, DEVIATION = 0.8, 0.6
CHAIN = {"steps": 4, "step_size": 0.05}
STACKED = Path(__file__).parents[2] / "config" / "experiments" / "stacked_digits.yaml"


def log_ratio(eps: Tensor) -> Tensor:
    """log N(ε; MEAN, DEVIATION²) − log N(ε; 0, 1), summed over dimensions."""
    return (0.5 * eps**2 - 0.5 * ((eps - MEAN) / DEVIATION) ** 2 - math.log(DEVIATION)).sum(1)


class Posteriors(nn.Module):
    """An NVAE whose posterior draws of all images together are N(MEAN, DEVIATION²)."""

    latent_shapes = ((2, 1, 1),)
    device, dtype = torch.device("cpu"), torch.float32

    def as_input(self, images: Tensor, noise: NoiseSource) -> Tensor:
        return images

    def posterior(self, x: Tensor, noise: NoiseSource) -> tuple[list[Any], None]:
        (eps,) = noise.normal(self.latent_shapes)
        return [SimpleNamespace(eps=MEAN + DEVIATION * eps)], None


def trainer(**changes: Any) -> PriorTrainer:
    settings = {"hidden": [16], "dropout": 0.0, "chain": CHAIN, "iterations": 400, "batch": 128, "learning_rate": 0.02}
    stage = PriorSettings.model_validate(settings | changes)
    return PriorTrainer(Posteriors(), torch.zeros(1000, 1, 2, 2, dtype=torch.uint8), stage, seed=0)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ Gaussians
def test_the_loss_is_stationary_at_the_log_ratio_of_the_densities() -> None:
    """Its derivative in every direction is zero there, and not elsewhere."""
    posterior, prior = MEAN + DEVIATION * torch.randn(200_000, 2), torch.randn(200_000, 2)

    def gradients(factor: float) -> list[float]:
        scale, shift, square = parameters = [torch.zeros((), requires_grad=True) for _ in range(3)]

        def energy(eps: Tensor) -> Tensor:
            return -factor * log_ratio(eps) * (1 + scale) + shift + square * eps.square().sum(1)

        loss = contrastive_loss(energy(posterior), energy(prior))
        return [abs(float(one)) for one in torch.autograd.grad(loss, parameters)]

    assert max(gradients(1.0)) < 0.01 < max(gradients(0.7))


def test_training_finds_the_log_ratio_and_keeps_the_best_weights() -> None:
    one, losses = trainer(), {}
    for step in range(400):
        one.step(step)
        if (step + 1) % 20 == 0:
            losses[step] = one.validate(step)
    points = MEAN + DEVIATION * torch.randn(2000, 2)
    with torch.no_grad():
        found = -one.prior([points[:, :, None, None]])
    assert (found - log_ratio(points)).square().mean() < 0.1 * log_ratio(points).var()
    assert one.best["loss"] == min(losses.values()) and one.best["step"] in losses
    network = one.prior.networks[0]
    assert all(torch.equal(one.best["weights"][name], value) for name, value in network.state_dict().items())


def test_chains_of_the_exact_energy_have_the_known_law() -> None:
    """The stationary variance of unadjusted Langevin steps: σ² / (1 − η / (4 σ²))."""
    noise, step_size = NoiseSource(0, "test", range(4000)), 0.1
    start = noise.normal([(2, 1, 1)])
    chain = ChainSettings(steps=60, step_size=step_size)
    (ends,) = run_chain(lambda eps: -log_ratio(eps[0].flatten(1)) + half_square(*eps), start, chain, noise)
    assert abs(float(ends.mean()) - MEAN) < 0.03
    assert float(ends.var()) == pytest.approx(DEVIATION**2 / (1 - step_size / (4 * DEVIATION**2)), rel=0.05)


def test_a_further_round_is_trained_against_chains_of_those_before() -> None:
    """Where the first round is exact, the second finds chance; its chains are drawn anew after a resume, and equal."""
    one = trainer(rounds=2, iterations=100, negatives=256, chain={"steps": 60, "step_size": 0.1})
    for step in range(100):
        one.step(step)
    one.validate(99)
    one.step(100)
    pool = one._pool
    assert abs(float(pool.mean()) - MEAN) < 0.15 and abs(float(pool.std()) - DEVIATION) < 0.15
    assert all(parameter.requires_grad for parameter in one.prior.networks[1].parameters())
    assert not any(parameter.requires_grad for parameter in one.prior.networks[0].parameters())
    other = trainer(rounds=2, iterations=100, negatives=256, chain={"steps": 60, "step_size": 0.1})
    other.load_state_dict(one.state_dict())
    other.step(101)
    assert torch.equal(other._pool, pool)


# -------------------------------------------------------------------------------------------------------------- a model
def make_models(rounds: int = 1) -> tuple[NVAE, EnergyNetwork, NoiseEnergy]:
    """Small random ones; the energy on noise is not zero."""
    with seeded(0):
        nvae = NVAE(NETWORK, (1, 8, 8)).requires_grad_(False).eval()
        energy = EnergyNetwork(ENERGY, 1).requires_grad_(False).eval()
        settings = NoiseEnergySettings(hidden=[8], rounds=rounds, chain=ChainSettings(**CHAIN))
        prior = NoiseEnergy(settings, nvae.latent_shapes).requires_grad_(False).eval()
        for network in prior.networks:
            nn.init.normal_(network.layers[-1].weight)
    return nvae, energy, prior


@pytest.mark.parametrize("potential", ["noise", "density"])
def test_the_potential_is_the_sum_of_all_parts(potential: Any) -> None:
    nvae, energy, prior = make_models(rounds=2)
    plain, whole = (build_model(nvae, energy, potential, prior=one) for one in (None, prior))
    *eps_z, eps_x = NoiseSource(0, "test", range(3)).normal([*nvae.latent_shapes, nvae.shape])
    expected = plain.potential(eps_z, eps_x) + prior(eps_z)
    torch.testing.assert_close(whole.potential(eps_z, eps_x), expected)
    torch.testing.assert_close(whole.chain_potential()([*eps_z, eps_x]), expected, rtol=1e-4, atol=1e-4)
    assert whole.chain_potential() is whole.chain_potential() and prior(eps_z).std() > 0.1


def test_chains_start_at_samples_of_the_prior_whatever_the_batch() -> None:
    nvae, energy, prior = make_models()
    model, noise = VAEBM(nvae, energy, prior=prior), NoiseSource(0, "samples", range(4))
    *normal, eps_x = noise.normal([*nvae.latent_shapes, nvae.shape])
    moved, same = model.initial_noise(noise)
    expected = run_chain(
        lambda eps: prior(eps) + half_square(*eps),
        normal,
        prior.settings.chain,
        NoiseSource(0, "samples/prior", range(4)),
    )
    assert all(map(torch.equal, moved, expected)) and torch.equal(same, eps_x)
    assert not torch.equal(moved[0], normal[0])
    parts = [model.initial_noise(noise.at(range(first, first + 2)))[0] for first in (0, 2)]
    torch.testing.assert_close([torch.cat(part) for part in zip(*parts, strict=True)], moved)
    alone = VAEBM(nvae, None, prior=prior)
    assert torch.equal(alone.sample(4), model.sample(4, steps=0)) and not torch.equal(
        alone.sample(4), model.sample(4, steps=2, step_size=1.0)
    )


def test_a_training_of_the_energy_starts_there_in_blocks_of_iterations() -> None:
    """Each iteration has the starts of its own chains, also after a resume within a block."""
    nvae, energy, prior = make_models()
    stage = EBMSettings.model_validate({"chain": CHAIN, "training": {"batch": 4}})
    whole, resumed = (EBMTrainer(nvae, energy, stage, 0, prior) for _ in range(2))
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    for step in (0, 1, AHEAD - 1, AHEAD):
        noise = NoiseSource(0, "chain", range(4 * step, 4 * step + 4))
        (eps_z, eps_x), (expected, same) = whole.start(images, step, noise), whole.vaebm.initial_noise(noise)
        torch.testing.assert_close(eps_z, expected)
        assert torch.equal(eps_x, same)
    assert torch.equal(resumed.start(images, AHEAD, noise)[0][0], eps_z[0])


def test_the_score_subtracts_the_mean_energy_of_the_draws() -> None:
    nvae, energy, prior = make_models()
    images = torch.rand(3, 1, 8, 8)
    neither, on_noise, on_images = (
        VAEBM(nvae, one, prior=on).estimate(images, 0, 2) for one, on in ((None, None), (None, prior), (energy, None))
    )
    x, noise = nvae.as_input(images), NoiseSource(0, "score", range(3))
    draws = [[draw.eps for draw in nvae(x, noise=noise, step=step).draws] for step in range(2)]
    assert neither.energy is None and on_noise.energy is not None and on_images.energy is not None
    torch.testing.assert_close(on_noise.energy, torch.stack(list(map(prior, draws))).double().mean(0))
    whole = VAEBM(nvae, energy, prior=prior)
    found = whole.estimate(images, 0, 2)
    torch.testing.assert_close(found.energy, on_noise.energy + on_images.energy)
    torch.testing.assert_close(found.importance, neither.importance)
    torch.testing.assert_close(whole.score(images, importance_samples=2), (found.importance - found.energy).float())


def assert_same_images(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for rounding: loaded weights have channels last in memory, and convolutions sum in another order."""
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-6)


def test_a_saved_model_samples_the_same(tmp_path: Path) -> None:
    nvae, energy, prior = make_models()
    energy.settings = ENERGY
    for model in (VAEBM(nvae, energy, chain=ChainSettings(**CHAIN), prior=prior), VAEBM(nvae, None, prior=prior)):
        model.save_pretrained(tmp_path)
        assert_same_images(VAEBM.from_pretrained(tmp_path).sample(3), model.sample(3))
        assert "N(ε; 0, I)" in (tmp_path / "README.md").read_text()


def test_models_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    nvae, energy, prior = make_models()
    files = {name: tmp_path / f"{name}.safetensors" for name in ("nvae", "energy", "prior", "wide")}
    save_model(files["nvae"], "nvae", NETWORK.model_dump(), nvae.state_dict(), shape=[1, 8, 8])
    own = {"potential": "noise", "start": "prior", "prior": "of another"}
    save_model(files["energy"], "energy", ENERGY.model_dump(), energy.state_dict(), shape=[1, 8, 8], **own)
    save_model(files["prior"], "prior", prior.settings.model_dump(), prior.state_dict(), shape=prior.shapes)
    wide = NoiseEnergy(prior.settings, [(3, 4, 4)])
    save_model(files["wide"], "prior", wide.settings.model_dump(), wide.state_dict(), shape=wide.shapes)
    loaded = VAEBM.load(files["nvae"], None, prior=files["prior"])
    assert_same_images(loaded.sample(2), VAEBM(nvae, None, prior=prior).sample(2))
    for given in (files["prior"], None):
        with pytest.raises(UserError, match="energy.safetensors: expected an energy of the prior .*found one of of"):
            VAEBM.load(files["nvae"], files["energy"], prior=given)
    with pytest.raises(UserError, match="wide.safetensors: expected noise .* as .*nvae.safetensors has, found"):
        VAEBM.load(files["nvae"], None, prior=files["wide"])
    with pytest.raises(UserError, match="expected a model of kind 'prior', found one of kind 'nvae'"):
        load_prior(files["nvae"])


# ---------------------------------------------------------------------------------------------------------------- stage
def test_an_interrupted_training_ends_in_the_same_bits(tmp_path: Path) -> None:
    prepare("digits", tmp_path / "data")
    nvae = make_models()[0]
    save_model(tmp_path / "nvae.safetensors", "nvae", NETWORK.model_dump(), nvae.state_dict(), shape=[1, 8, 8])
    stage = {
        "hidden": [8],
        "chain": CHAIN,
        "rounds": 2,
        "iterations": 4,
        "batch": 16,
        "validate_every": 2,
        "negatives": 32,
    }
    (tmp_path / "prior.yaml").write_text(yaml.safe_dump({"seed": 0, "prior": stage}))

    def train(name: str, limits: Limits) -> None:
        paths = (tmp_path / "prior.yaml", tmp_path / "data/manifest.json", tmp_path / "nvae.safetensors")
        run(*paths, tmp_path / name / "model.safetensors", threads=1, gpus=0, limits=limits)

    train("whole", Limits())
    for _ in range(6):
        with pytest.raises(Interrupted):
            train("resumed", Limits(minutes=0))
    train("resumed", Limits())
    for name in ("model.safetensors", "history.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()
    record = json.loads((tmp_path / "whole/training.json").read_text())
    assert record["stage"] == "prior" and record["steps"] == 8 and "(chance 1.386)" in record["status"]
    assert (tmp_path / "whole/pictures/curves.png").is_file()
    assert len(load_prior(tmp_path / "whole/model.safetensors").networks) == 2


# ------------------------------------------------------------------------------------------------------------- settings
@pytest.mark.parametrize(
    ("variant", "problem"),
    [
        ({"energy": False}, "variants.mine.energy: expected true, or prior: true with it"),
        ({"prior": True, "energy": False, "samples": {"count": 5}}, "mine.energy: expected no ebm and no samples"),
        ({"prior": True, "ebm": {"network": {}, "checkpoint": "e.pth"}}, "prior: expected an energy that is trained"),
        ({"prior": True, "ebm": {"potential": "pixels", "positives": "clean"}}, "mine.prior: expected chains in noise"),
    ],
)  # fmt: skip
def test_variants_that_do_not_fit_are_refused(variant: dict[str, Any], problem: str) -> None:
    content = read_experiment(STACKED).model_dump() | {"prior": {"chain": CHAIN}, "variants": {"mine": variant}}
    with pytest.raises(ValueError, match=problem):
        Experiment.model_validate(content)


def test_variants_without_a_section_prior_and_small_sets_are_refused() -> None:
    content = read_experiment(STACKED).model_dump()
    with pytest.raises(ValueError, match="variants.mine.prior: expected a section prior"):
        Experiment.model_validate(content | {"variants": {"mine": {"prior": True}}})
    with pytest.raises(ValueError, match="variants.prior: this name belongs to something else"):
        Experiment.model_validate(content | {"variants": {"prior": {}}})
    with pytest.raises(ValueError, match="negatives must be at least batch"):
        PriorSettings.model_validate({"chain": CHAIN, "negatives": 10})
