"""The NVAE, its converter and its training steps against recordings of the published program's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vaebm.config import NVAETrainingSettings
from vaebm.noise import NoiseSource
from vaebm.nvae import published_checkpoint, train
from vaebm.nvae.distributions import Normal
from vaebm.nvae.flows import FlowCell
from vaebm.nvae.layers import BatchNorm, NormalizedConv2d, PlainConv2d, convolution_weights
from vaebm.nvae.model import NVAE, load_nvae
from vaebm.nvae.objective import batch_norm_penalty, norm_weight
from vaebm.nvae.pixel_distributions import PixelLogisticMixture, PixelNormal
from vaebm.nvae.train import NVAETrainer, scheduled_learning_rate
from vaebm.training.spectral import SpectralPenalty

DATA = Path(__file__).parent / "data"

EXACT: dict[str, float] = {"rtol": 1e-10, "atol": 1e-10}
"""The recordings in double precision; the absolute part is for values near 0 of quantities of the order of 1."""


class Recorded:
    """A recording and the network of its checkpoint, converted by the command line's own function."""

    def __init__(self, name: str, folder: Path):
        self.name = name
        self.recording = torch.load(DATA / f"nvae_{name}.pt", weights_only=True)
        self.checkpoint = DATA / f"nvae_{name}_checkpoint.pt"
        published_checkpoint.convert_published_nvae(self.checkpoint, folder / "model.pt")
        self.nvae = load_nvae(folder / "model.pt").double()

    def __getitem__(self, key: str) -> Any:
        return self.recording["f64"][key]

    def noise(self, key: str) -> list[Tensor]:
        return [eps.double() for eps in self.recording[key]]

    @property
    def x(self) -> Tensor:
        return self.recording["x"].double()


@pytest.fixture(scope="module", params=["cifar", "discrete"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded(request.param, tmp_path_factory.mktemp(request.param))


def test_forward_pass(recorded: Recorded) -> None:
    out = recorded.nvae(recorded.x, eps=recorded.noise("eps_q"))
    expected = recorded["forward_vaebm"]
    torch.testing.assert_close(out.log_q, expected["log_q"], **EXACT)
    torch.testing.assert_close(out.log_p, expected["log_p"], **EXACT)
    torch.testing.assert_close(out.kl, expected["kl_all"], **EXACT)
    by_latent = torch.stack([draw.kl.sum(dim=(2, 3)).mean(0) for draw in out.draws])
    torch.testing.assert_close(by_latent, expected["kl_diag"], **EXACT)
    torch.testing.assert_close(-out.pixels.log_likelihood(recorded.x), recorded["forward_nvae"]["recon_loss"], **EXACT)


def test_decoder(recorded: Recorded) -> None:
    pixels = recorded.nvae(recorded.x, eps=recorded.noise("eps_q")).pixels
    single = recorded.recording["f32"]["forward_vaebm"]  # what was recorded in single precision alone
    if isinstance(pixels, PixelNormal):
        torch.testing.assert_close(pixels.log_prob(recorded.x), recorded["forward_nvae"]["dec_log_prob"], **EXACT)
        torch.testing.assert_close(
            pixels.chain_log_prob(recorded.x), recorded["forward_vaebm"]["dec_log_prob"], **EXACT
        )
        torch.testing.assert_close(2 * pixels.mean - 1, single["dec_dist_mu"].double(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pixels.normal.sigma, single["dec_dist_sigma"].double(), rtol=1e-4, atol=0)
    else:
        torch.testing.assert_close(pixels.mean, recorded["forward_nvae"]["dec_mean"], **EXACT)
        torch.testing.assert_close(pixels.log_prob(recorded.x), single["dec_log_prob"].double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_samples_of_the_prior(recorded: Recorded, temperature: float) -> None:
    pixels, log_p = recorded.nvae.decode(recorded.noise("eps_p"), temperature)
    expected = recorded[f"sample_t{temperature}"]
    torch.testing.assert_close(log_p, expected["log_p_total"], **EXACT)
    if temperature == 1.0 and isinstance(pixels, PixelNormal):
        image = pixels.sample(recorded.recording["eps_x"].double())
        torch.testing.assert_close(image, expected["dec_sample"], **EXACT)
        torch.testing.assert_close(pixels.chain_log_prob(image), expected["dec_log_prob_of_sample"], **EXACT)
    if temperature == 1.0 and isinstance(pixels, PixelLogisticMixture):
        uniforms = recorded.noise("uniforms")
        for name, at in (("dec_sample", 1.0), ("dec_sample_t0.7", 0.7)):
            torch.testing.assert_close(
                pixels.sample(uniforms, at),
                recorded.recording["f32"]["sample_t1.0"][name].double(),
                rtol=1e-4,
                atol=1e-4,
            )


def test_latent_variables_of_the_prior(recorded: Recorded) -> None:
    """z by z: the same walk, stopped at each group."""
    for temperature in (1.0, 0.7):
        state, seen = recorded.nvae.prior_constant.expand(2, -1, -1, -1), []
        for group, eps in zip(recorded.nvae.groups, recorded.noise("eps_p"), strict=True):
            state = group.cells(state)
            seen.append(Normal(*group.prior(state), temperature).sample(eps))
            state = group.combine(state, seen[-1])
        for ours, theirs in zip(seen, recorded[f"sample_t{temperature}"]["z_list"], strict=True):
            torch.testing.assert_close(ours, theirs, **EXACT)


def test_regularisers(recorded: Recorded) -> None:
    norms = [layer for layer in recorded.nvae.modules() if isinstance(layer, BatchNorm)]
    assert float(batch_norm_penalty(norms)) == pytest.approx(float(recorded["batchnorm_loss"]), rel=1e-10)
    weights = convolution_weights(recorded.nvae)
    assert len(weights) == {"cifar": 70, "discrete": 104}[recorded.name]
    penalty = SpectralPenalty(weights, seed=0).double()
    with torch.no_grad():
        for _ in range(300):  # the power iteration has to converge
            value = penalty()
    assert value.item() == pytest.approx(float(recorded["spectral_norm_exact_svd_sum"]), rel=1e-7)
    names, modules = (
        published_checkpoint.read_published_nvae(recorded.checkpoint).names,
        dict(recorded.nvae.named_modules()),
    )
    for name, expected in recorded["top_singular_value_per_conv"].items():
        layer = modules[names[f"{name}.weight"].removesuffix(".weight")]
        assert torch.linalg.matrix_norm(layer.effective_weight().flatten(1), 2).item() == pytest.approx(
            expected, rel=1e-7
        )


def test_initial_values() -> None:
    """L follows from the recorded initial weights by our rule; batch norms start as identities; the rest within torch's
    bounds.
    """
    converted = published_checkpoint.read_published_nvae(DATA / "nvae_cifar_checkpoint.pt")
    fresh = torch.load(DATA / "nvae_cifar_fresh.pt", weights_only=True)
    nvae = NVAE(converted.settings, converted.shape)
    ours = {name: value.clone() for name, value in nvae.state_dict().items()}
    nvae.load_state_dict({converted.names[name]: value for name, value in fresh.items()}, strict=False)
    shifts = {cell.shift for cell in nvae.modules() if isinstance(cell, FlowCell)}
    for name, layer in nvae.named_modules():
        if isinstance(layer, NormalizedConv2d):
            for weight, log_norm in (
                (layer.weight, layer.log_weight_norm),
                (ours[f"{name}.weight"], ours[f"{name}.log_weight_norm"]),
            ):
                seen = weight if layer.mask is None else weight * layer.mask
                expected = torch.log(seen.flatten(1).norm(dim=1) + 1e-2) + (math.log(0.1) if layer in shifts else 0.0)
                torch.testing.assert_close(log_norm.flatten(), expected, rtol=1e-5, atol=1e-5)
            for own in (
                ours[f"{name}.weight"],
                layer.weight,
            ):  # uniform, to the same bound: both come near it, neither passes
                bound = 1.0 / math.sqrt(own[0].numel())
                assert own.abs().max() <= bound and own.std().item() == pytest.approx(
                    bound / math.sqrt(3), rel=6 / math.sqrt(own.numel())
                )
        if isinstance(layer, BatchNorm):
            for leaf, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
                assert (layer.state_dict()[leaf] == value).all() and (ours[f"{name}.{leaf}"] == value).all()
    for constant in (ours["prior_constant"], nvae.prior_constant):
        assert constant.min() >= 0 and constant.max() < 1 and constant.mean().item() == pytest.approx(0.5, abs=0.02)


# ------------------------------------------------------------------------------------------------------------- training
def trainer_of(
    name: str, recording: dict[str, Any], **settings: Any
) -> tuple[NVAETrainer, published_checkpoint.ConvertedNVAE]:
    """A trainer in the recorded state, with the recorded first singular vectors."""
    converted = published_checkpoint.read_published_nvae(DATA / f"nvae_{name}_checkpoint.pt")
    nvae = NVAE(converted.settings, converted.shape)
    nvae.load_state_dict(converted.weights)
    trainer = NVAETrainer(
        nvae.train(), NVAETrainingSettings(epochs=25, batch=4, **settings), recording["num_total_iter"], seed=0
    )
    set_vectors(trainer, converted, recording["spectral_uv_init"])
    return trainer, converted


def set_vectors(trainer: NVAETrainer, converted: published_checkpoint.ConvertedNVAE, vectors: list[Tensor]) -> None:
    """The recorded pairs u, v belong to the shapes, and their rows to the layers, in the order of the published
    modules.
    """
    modules = dict(trainer.nvae.named_modules())
    by_shape: dict[tuple[int, int], list[Any]] = {}
    for name in converted.names.values():
        layer = modules[name.rpartition(".")[0]] if "." in name else None
        if name.endswith(".weight") and isinstance(layer, NormalizedConv2d | PlainConv2d):
            weight = layer.effective_weight()
            by_shape.setdefault((weight.shape[0], weight[0].numel()), []).append(layer)
    for number, (shape, group) in enumerate(trainer.spectral.groups.items()):
        position = list(by_shape).index(shape)
        order = [by_shape[shape].index(weight.__self__) for weight in group]
        for name, recorded in zip("uv", vectors[2 * position : 2 * position + 2], strict=True):
            trainer.spectral.get_buffer(f"{name}{number}").copy_(
                torch.nn.functional.normalize(recorded[order], dim=1, eps=1e-3)
            )


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the trainer's noise the recorded one."""

    class Recorded(NoiseSource):
        def normal(self, *_: object, **__: object) -> list[Tensor]:
            return recorded_noise[0]

    recorded_noise: list[list[Tensor]] = [[]]
    monkeypatch.setattr(train, "NoiseSource", Recorded)
    return lambda eps: recorded_noise.__setitem__(0, eps)


def close(ours: Tensor, theirs: Tensor, rounding: float = 0.0) -> bool:
    """To 1e-3 of the tensor's size: two programs in single precision, after a backward pass or an update."""
    return bool((ours - theirs).norm() <= 1e-3 * theirs.norm() + rounding)


def test_two_training_steps(replay: Any) -> None:
    """Constant λ, flows, warm-up of the learning rate: losses, coefficients, every gradient, every weight after two
    steps.
    """
    recording = torch.load(DATA / "nvae_cifar_training.pt", weights_only=True)
    trainer, converted = trainer_of("cifar", recording, norm_weight=0.1, warmup_epochs=5)
    for number, expected in enumerate(recording["iters"]):
        step = recording["global_step_start"] + number
        rate = scheduled_learning_rate(step, recording["warmup_iters"] // 5, trainer.training)
        assert rate == pytest.approx(expected["lr"], rel=1e-4) and trainer.beta(step) == pytest.approx(
            expected["kl_coeff"], rel=1e-4
        )
        replay(recording["eps_q"][number])
        done = trainer.step(recording["images_u8"][number], step, rate, penalise=True)
        compare(trainer, done, expected)
        if "grads" in expected:
            gradients = {name: parameter.grad for name, parameter in trainer.nvae.named_parameters()}
            assert {converted.names[name] for name in expected["grads"]} == set(gradients)
            whole = float(torch.stack([theirs.norm() for theirs in expected["grads"].values()]).norm())
            # A batch norm cancels the bias before it, so that its gradient is 0 up to rounding; Adamax then moves it by
            # rounding over rounding.
            without = {name for name, theirs in expected["grads"].items() if theirs.norm() < 1e-8 * whole}
            assert 0 < len(without) < 20 and all(name.endswith(".bias") for name in without)
            for name, theirs in expected["grads"].items():
                ours = gradients[converted.names[name]]
                assert ours.norm() < 1e-8 * whole if name in without else close(ours, theirs, rounding=1e-9 * whole), (
                    name
                )
    state = trainer.nvae.state_dict()
    after = {name: theirs for name, theirs in expected["state_dict_after_step"].items() if name not in without}
    assert not [name for name, theirs in after.items() if not close(state[converted.names[name]], theirs)]


def test_a_training_step_with_annealed_weight(replay: Any) -> None:
    """Two scales, adaptive groups, analytic KL, λ annealed from 10 to 0.01."""
    recording = torch.load(DATA / "nvae_discrete_training.pt", weights_only=True)
    trainer, converted = trainer_of("discrete", recording, norm_weight=0.01, norm_weight_initial=10.0, warmup_epochs=0)
    (expected,) = recording["iters"]
    replay(recording["eps_q"][0])
    done = trainer.step(recording["images_u8"][0], recording["global_step_start"], expected["lr"], penalise=True)
    compare(trainer, done, expected)
    assert trainer.sizes is not None and trainer.sizes.tolist() == expected["alpha_i"].tolist()
    parameters, state = dict(trainer.nvae.named_parameters()), trainer.nvae.state_dict()
    for name, norm in expected["grad_norms"].items():
        assert parameters[converted.names[name]].grad.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-4), name
    for name, norm in expected["param_norms_after_step"].items():
        assert parameters[converted.names[name]].norm().item() == pytest.approx(norm, rel=1e-3), name
    assert not [
        name
        for name, theirs in expected["state_after_step_bn_running"].items()
        if not close(state[converted.names[name]], theirs)
    ]


def compare(trainer: NVAETrainer, done: train.Step, expected: dict[str, Any]) -> None:
    """Losses of a step in single precision, and the coefficients that the recorded parts of the loss imply."""
    beta, kl = expected["kl_coeff"], torch.tensor(done.kl)
    assert done.finite
    assert done.reconstruction == pytest.approx(expected["recon_loss"].mean().item(), rel=1e-4)
    torch.testing.assert_close(kl, expected["kl_vals"], rtol=1e-4, atol=0)
    assert trainer.sizes is not None
    strength = (
        kl + 0.01
    ) / trainer.sizes  # the KLs of a batch are positive here, as kl_balance takes their absolute values
    torch.testing.assert_close(strength / strength.mean(), expected["kl_balance_coeffs"], rtol=1e-4, atol=0)
    assert done.spectral == pytest.approx(expected["norm_loss"], rel=1e-4) and done.batch_norm == pytest.approx(
        expected["bn_loss"], rel=1e-4
    )
    training = trainer.training
    weight = norm_weight(beta, training.norm_weight_initial, training.norm_weight)
    loss = (
        done.reconstruction
        + beta * float((kl * expected["kl_balance_coeffs"]).sum())
        + weight * (done.spectral + done.batch_norm)
    )
    assert loss == pytest.approx(expected["loss"].item(), rel=1e-4)
