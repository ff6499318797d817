"""Kernels, schedules and temperature against closed forms; chains of every kernel by the settings."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from networks import ENERGY, NETWORK, as_a_user
from scipy.linalg import solve_discrete_lyapunov
from torch import Tensor
from torch.distributions import MultivariateNormal

from vaebm.chain.diagnostics import diagnose
from vaebm.chain.langevin import evaluate, langevin, propose, transitions
from vaebm.chain.mala import accept, mala, mala_transitions
from vaebm.chain.schedules import keywords
from vaebm.chain.underdamped import underdamped, underdamped_transitions
from vaebm.config.ebm import KERNELS, EBMSettings, LangevinSettings
from vaebm.ebm.iteration import EBMTrainer, initialize
from vaebm.energy.network import EnergyNetwork
from vaebm.evaluation.quality_along_chain import stops
from vaebm.fast import run_chain
from vaebm.model import VAEBM, sample_noise
from vaebm.noise import NoiseSource
from vaebm.nvae.model import NVAE
from vaebm.system.errors import UserError

PRECISION = torch.tensor([[2.0, 0.8, -0.3], [0.8, 1.0, 0.4], [-0.3, 0.4, 3.0]], dtype=torch.float64)
EXACT = torch.linalg.inv(PRECISION)
MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
CHAINS = 5000
SE = math.sqrt(2 / CHAINS)
"""Standard error of a variance of one."""


def gaussian(eps: Sequence[Tensor]) -> Tensor:
    """U = ½ (ε − m)ᵀ P (ε − m) over two groups of one and two variables."""
    joined = torch.cat([part.flatten(1) for part in eps], dim=1) - MEAN
    return 0.5 * torch.einsum("bi,ij,bj->b", joined, PRECISION, joined)


def double_well(eps: Sequence[Tensor]) -> Tensor:
    return sum((2 * part.square() - 0.5).square().flatten(1).sum(1) for part in eps)


def ends(kernel: Callable[..., list[Tensor]], steps: int, size: float, **settings: float) -> Tensor:
    """States (B, 3) of chains that start from the exact law at this temperature."""
    noise = NoiseSource(0, "chain", range(CHAINS))
    (normal,) = noise.normal([(3,)], dtype=torch.float64)
    factor = torch.linalg.cholesky(EXACT * settings.get("temperature", 1.0))
    eps = normal @ factor.T + MEAN
    return torch.cat(
        kernel(gaussian, [eps[:, :1], eps[:, 1:]], steps=steps, step_size=size, noise=noise, **settings), 1
    )


def assert_law(found: Tensor, covariance: Tensor) -> None:
    """Mean `MEAN` and this covariance, within four standard errors in units of it."""
    whiten = torch.linalg.inv(torch.linalg.cholesky(covariance))
    white = (found - MEAN) @ whiten.T
    assert white.mean(0).abs().max() < 4 / math.sqrt(CHAINS)
    assert (torch.cov(white.T) - torch.eye(3)).abs().max() < 4 * SE


def recursion(size: float, friction: float, temperature: float) -> Tensor:
    """Stationary covariance of ε in BAOAB, from the linear recursion of (ε, p) in closed form."""
    one, zero, half, c = np.eye(3), np.zeros((3, 3)), 0.5 * math.sqrt(size), math.exp(-friction * math.sqrt(size))
    kick = np.block([[one, zero], [-half * PRECISION.numpy(), one]])
    drift, damp = np.block([[one, half * one], [zero, one]]), np.diag([1.0] * 3 + [c] * 3)
    spread = kick @ drift @ np.diag([0.0] * 3 + [math.sqrt((1 - c**2) * temperature)] * 3)
    whole = solve_discrete_lyapunov(kick @ drift @ damp @ drift @ kick, spread @ spread.T)
    return torch.from_numpy(whole[:3, :3])


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_stationary_law_of_each_kernel(temperature: float) -> None:
    """Langevin: T (P − η/4 P²)⁻¹. BAOAB and Metropolis: T P⁻¹, at step sizes where Langevin is far from it."""
    size = 0.5
    biased = torch.linalg.inv(PRECISION - 0.25 * size * PRECISION @ PRECISION)
    assert_law(ends(langevin, 40, size, temperature=temperature), temperature * biased)
    for friction in (0.5, 5.0):
        torch.testing.assert_close(recursion(size, friction, temperature), temperature * EXACT, rtol=1e-9, atol=1e-9)
        assert_law(ends(underdamped, 15, size, friction=friction, temperature=temperature), temperature * EXACT)
    assert_law(ends(mala, 15, size, temperature=temperature), temperature * EXACT)


def test_two_point_flux_of_mala_is_symmetric() -> None:
    """Detailed balance for a double well: from π, as many chains go from one set to another as come back."""
    chains, noise = 200_000, NoiseSource(0, "chain", range(200_000))
    grid = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    weights = torch.exp(-double_well([grid[:, None]]) / 0.7).numpy()
    places = np.random.default_rng(0).choice(grid.numpy(), size=chains, p=weights / weights.sum())
    (after,) = mala(
        double_well, [torch.from_numpy(places)[:, None]], steps=1, step_size=0.15, noise=noise, temperature=0.7
    )
    cells = [np.digitize(one, [-0.6, -0.3, 0.0, 0.4, 0.7]) for one in (places, after[:, 0].numpy())]
    flux = np.zeros((6, 6))
    np.add.at(flux, tuple(cells), 1)
    off = np.triu_indices(6, 1)
    there, back = flux[off], flux.T[off]
    assert (np.abs(there - back) < 4 * np.sqrt(there + back + 1)).all() and (there > 0).sum() >= 10


def test_acceptance_at_a_temperature_is_that_of_its_densities() -> None:
    size, temperature, noise = 0.2, 0.3, NoiseSource(0, "chain", range(50))
    (start,) = noise.normal([(2,)], dtype=torch.float64)
    (step,) = transitions(double_well, [start], steps=1, step_size=size, noise=noise, temperature=temperature)
    (end,) = step.state.eps

    def proposal(eps: Tensor) -> MultivariateNormal:
        (gradient,) = evaluate(double_well, [eps]).gradient
        return MultivariateNormal(eps - 0.5 * size * gradient, size * temperature * torch.eye(2, dtype=torch.float64))

    ratio = (double_well([start]) - double_well([end])) / temperature
    ratio = ratio + proposal(end).log_prob(start) - proposal(start).log_prob(end)
    torch.testing.assert_close(step.acceptance, ratio.clamp(max=0).exp(), rtol=1e-9, atol=0)


def test_each_chain_is_accepted_by_its_own_number() -> None:
    noise = NoiseSource(0, "chain", range(30))
    start = [0.5 * part for part in noise.normal([(2,), (3,)])]
    (step,) = mala_transitions(double_well, start, steps=1, step_size=0.1, noise=noise)
    (uniform,) = noise.derived("acceptance").uniform([()], step=1, dtype=torch.float64)
    proposal = propose(evaluate(double_well, start), 0.1, noise.like(start, 1))
    stayed = torch.tensor([torch.equal(*pair) for pair in zip(step.state.eps[0], start[0], strict=True)])
    assert step.acceptance.dtype == torch.float64 and 0 < stayed.sum() < 30
    assert torch.equal(stayed, uniform >= step.acceptance)
    for new, old, found in zip(proposal, start, step.state.eps, strict=True):
        assert torch.equal(found, torch.where(stayed[:, None], old, new))
    again = accept(evaluate(double_well, start), evaluate(double_well, proposal), torch.zeros(30).double(), noise, 1)
    assert all(map(torch.equal, again.eps, start))


def test_underdamped_with_much_friction_is_langevin_with_averaged_noise() -> None:
    noise, start = (
        NoiseSource(0, "chain", range(5)),
        NoiseSource(1, "start", range(5)).normal([(3,)], dtype=torch.float64),
    )
    (found,) = underdamped(double_well, start, steps=2, step_size=0.01, noise=noise, friction=1e6)
    (first,), state = noise.derived("momenta").like(start, 0), start[0]
    for step, kick in ((1, 0.0025), (2, 0.005)):  # the first kick is a half one
        (omega,) = noise.like(start, step)
        state = state - kick * evaluate(double_well, [state]).gradient[0] + 0.1 * (first + omega) / 2
        first = omega
    torch.testing.assert_close(found, state)


@pytest.mark.parametrize("kernel", ["langevin", "mala", "underdamped"])
def test_gradients_are_counted_and_transitions_are_the_chain(kernel: str) -> None:
    chain, count = LangevinSettings(kernel=kernel, steps=6, step_size=0.02, schedule="cosine", temperature=0.5), 0
    noise = NoiseSource(0, "chain", range(4))
    start = noise.normal([(3,), (2,)], dtype=torch.float64)

    def counted(eps: Sequence[Tensor]) -> Tensor:
        nonlocal count
        count += 1
        return double_well(eps)

    end = run_chain(counted, start, chain, noise)
    assert count == chain.gradient_evaluations and LangevinSettings(steps=0, step_size=1.0).gradient_evaluations == 0
    observe = lambda eps: (eps[0].sum(1), eps[0].reshape(-1, 1, 1, 3))  # noqa: E731
    walk = {"langevin": transitions, "mala": mala_transitions, "underdamped": underdamped_transitions}[kernel]
    states = [one.state.eps for one in walk(counted, start, noise=noise, **keywords(chain))]
    torch.testing.assert_close(states[-1], end, rtol=1e-12, atol=1e-12)
    figures = diagnose(counted, start, observe, noise=noise, walk=walk, **keywords(chain))
    assert figures.step_size == 0.02 and all(0 < one <= 1 for one in figures.acceptance)
    alone = run_chain(counted, [part[1:2] for part in start], chain, noise.at([1]))
    torch.testing.assert_close(alone, [part[1:2] for part in end], rtol=1e-12, atol=0)


def test_shadow_work_of_a_gaussian() -> None:
    """E exp(−W) = 1 from the exact law, and a step that is too large is rarely accepted."""
    noise = NoiseSource(0, "chain", range(CHAINS))
    (normal,) = noise.normal([(1,)], dtype=torch.float64)
    half = lambda eps: 0.5 * eps[0].square().flatten(1).sum(1)  # noqa: E731
    for size, low, high in ((0.01, 0.99, 1.0), (1.0, 0.6, 0.95)):
        (step,) = underdamped_transitions(half, [normal], steps=1, step_size=size, noise=noise)
        assert low < step.acceptance.mean() < high


def test_schedules_end_where_they_should() -> None:
    def sizes(**settings: object) -> object:
        return keywords(LangevinSettings(steps=5, step_size=0.4, **settings))["step_size"]

    assert sizes() == sizes(final_step_size=0.1) == 0.4
    assert sizes(schedule="linear") == pytest.approx([0.4, 0.31, 0.22, 0.13, 0.04])
    cosine = sizes(schedule="cosine", final_step_size=0.2)
    assert cosine == pytest.approx(
        [0.4, 0.2 + 0.2 * (0.5 + 0.5 * math.sqrt(0.5)), 0.3, 0.3 - 0.1 * math.sqrt(0.5), 0.2]
    )
    assert keywords(LangevinSettings(steps=1, step_size=0.4, schedule="linear"))["step_size"] == [0.4]
    # a decay removes the bias that the last steps of a constant size leave
    decayed = keywords(LangevinSettings(steps=60, step_size=0.8, schedule="linear", final_step_size=1e-3))["step_size"]
    variance = (
        float(ends(langevin, 60, decayed).var(0)[2] / EXACT[2, 2]),
        float(ends(langevin, 60, 0.8).var(0)[2] / EXACT[2, 2]),
    )
    assert abs(variance[0] - 1) < 0.1 < 1.0 < variance[1]


def test_settings_leave_files_as_they_were() -> None:
    plain = LangevinSettings(steps=3, step_size=0.1)
    assert plain.model_dump() == plain.chosen == keywords(plain) == {"steps": 3, "step_size": 0.1}
    chain = LangevinSettings.model_validate({"kernel": "underdamped", "steps": 3, "step_size": 0.1, "friction": 2.0})
    assert chain.chosen == chain.model_dump() and chain.off == LangevinSettings(steps=0, step_size=1.0)
    with pytest.raises(ValueError, match="friction belongs to kernel underdamped, found kernel mala"):
        LangevinSettings.model_validate({"kernel": "mala", "steps": 3, "step_size": 0.1, "friction": 2.0})
    assert [KERNELS[name].first for name in ("langevin", "mala", "underdamped")] == [0, 1, 0]


@pytest.mark.parametrize("kernel", [langevin, mala, underdamped])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, "steps: expected an integer from 0, found -1"),
        ({"step_size": -0.1}, "step_size: expected a number above 0, or 2 of them, found -0.1"),
        ({"step_size": [0.1]}, r"step_size: expected a number above 0, or 2 of them, found \[0.1\]"),
        ({"step_size": None}, "step_size: expected a number above 0, or 2 of them, found None"),
        ({"step_size": "0.1"}, "step_size: expected a number above 0, or 2 of them, found '0.1'"),
        ({"step_size": torch.ones(2)}, r"step_size: expected a number above 0, or 2 of them, found tensor\("),
        ({"temperature": torch.ones(2)}, r"temperature: expected a number from 0, found tensor\("),
        ({"temperature": -1.0}, "temperature: expected a number from 0, found -1.0"),
        ({"noise": NoiseSource(0, "chain", [0])}, "noise: expected an index for each of 3 samples, found 1"),
    ],
)
def test_numbers_out_of_range_are_refused(kernel: Any, changes: dict[str, object], message: str) -> None:
    """Noise of a single index would otherwise move all chains alike."""
    settings = {"steps": 2, "step_size": 0.1, "noise": NoiseSource(0, "chain", range(3))} | changes
    with as_a_user(), pytest.raises(UserError, match=message):
        kernel(lambda eps: eps[0].square().sum(1), [torch.ones(3, 2)], **settings)


def test_the_origin_is_that_of_plug_ins_only() -> None:
    with pytest.raises(UserError, match="there is no transition kernel 'mala' of a plug-in; those that exist: none"):
        KERNELS.origin("mala")


@pytest.mark.parametrize("kernel", ["mala", "underdamped"])
def test_samples_of_a_prepared_model_do_not_depend_on_the_batch(kernel: str) -> None:
    """Threads, shards and batches: images of any split are those of the whole, up to rounding."""
    torch.manual_seed(0)
    nvae, energy = NVAE(NETWORK, (1, 8, 8)), EnergyNetwork(ENERGY, 1)
    energy.initialize(torch.rand(8, 1, 8, 8))
    chain = LangevinSettings(kernel=kernel, steps=3, step_size=0.05, schedule="cosine", temperature=0.8)
    model = VAEBM(nvae.eval().requires_grad_(False), energy.requires_grad_(False), chain=chain)
    images = model.sample(6, seed=1)
    torch.testing.assert_close(images, model.sample(6, seed=1, batch=2), rtol=0, atol=1e-5)
    assert torch.equal(images, model.sample_batch(sample_noise(1, range(6))))
    assert not torch.allclose(images, model.sample(6, seed=1, steps=0), atol=1e-4)
    content = {"network": ENERGY, "chain": chain.model_dump(), "replay": None}
    assert EBMSettings.model_validate(content).chain == chain


@pytest.mark.parametrize("kernel", ["mala", "underdamped"])
def test_a_training_resumes_in_the_same_bits(kernel: str) -> None:
    """Contrastive divergence with replay: momenta and acceptance are functions of the iteration alone."""
    content = {"network": ENERGY, "chain": {"kernel": kernel, "steps": 2, "step_size": 0.05, "schedule": "linear"}}
    content |= {"replay": {"capacity": 8, "probability": 0.9, "anneal_iterations": 1}, "training": {"batch": 4}}
    stage = EBMSettings.model_validate(content)
    images = torch.randint(0, 256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)

    def trainer() -> EBMTrainer:
        torch.manual_seed(0)
        nvae, energy = NVAE(NETWORK, (1, 8, 8)).eval().requires_grad_(False), EnergyNetwork(ENERGY, 1)
        initialize(energy, nvae, images, stage, seed=0)
        return EBMTrainer(nvae, energy, stage, seed=0)

    def iterate(one: EBMTrainer, steps: range) -> None:
        for step in steps:
            one.gradients(one.batch(step, images), step)
            one.update(1e-3)

    whole, first, rest = trainer(), trainer(), trainer()
    iterate(whole, range(3))
    iterate(first, range(2))
    rest.load_state_dict(copy.deepcopy(first.state_dict()))
    iterate(rest, range(2, 3))
    assert all(map(torch.equal, whole.parameters, rest.parameters)) and all(map(torch.equal, whole.ends, rest.ends))


def test_a_decay_is_measured_on_chains_of_their_own() -> None:
    """After each number of steps of a decay the images are those of a chain of that length."""
    torch.manual_seed(0)
    nvae, energy = NVAE(NETWORK, (1, 8, 8)), EnergyNetwork(ENERGY, 1)
    energy.initialize(torch.rand(8, 1, 8, 8))
    model, noise = VAEBM(nvae.eval().requires_grad_(False), energy.requires_grad_(False)), sample_noise(0, range(3))
    chain = LangevinSettings(steps=6, step_size=0.05, schedule="linear")
    for count, stop in zip((0, 2, 4), stops(model, noise, [0, 2, 4], chain), strict=True):
        assert torch.equal(stop.means, model.sample_means(noise, chain.model_copy(update={"steps": count})))
