"""The decoder and energy prepared for chains compute the same functions as the modules."""

import copy
from collections.abc import Sequence

import networks
import pytest
import torch
from torch import Tensor, nn

from vaebm.chain.langevin import PotentialFunction, evaluate, langevin
from vaebm.cli.work import measured
from vaebm.config import EnergyNetworkSettings
from vaebm.config.ebm import ChainSettings
from vaebm.energy.network import EnergyNetwork
from vaebm.fast import PreparedDecoder, PreparedEnergy, PreparedPotential, run_langevin, with_prepared_cells
from vaebm.fast.fold import fold
from vaebm.fast.layers import ELU, Convolution, Swish, run_layers
from vaebm.model import NO_CHAIN, VAEBM, PixelEBM, build_model, sample_noise
from vaebm.noise import NoiseSource
from vaebm.nvae.layers import BatchNormSwish, NormalizedConv2d, PlainConv2d, SqueezeExcitation
from vaebm.nvae.model import NVAE
from vaebm.system.device import to_device_channels_last

EXACT = {"rtol": 1e-11, "atol": 1e-11}
"""In double precision, for quantities of the order of 1 to 1,000 that some hundred operations led to."""

NETWORK: dict[str, object] = {
    "channels_encoder": 8,
    "channels_decoder": 8,
    "groups": [1, 2],
    "latents": 2,
    "preprocess_blocks": 1,
    "preprocess_cells": 1,
    "postprocess_cells": 2,
    "cells_encoder": 1,
    "cells_decoder": 2,
    "flows": 1,
}


def random_pair(**changes: object) -> tuple[NVAE, EnergyNetwork]:
    """A random pair, frozen."""
    nvae, energy = networks.random_pair(NETWORK | changes)
    cpu = torch.device("cpu")
    nvae, energy = nvae.eval().requires_grad_(False), energy.requires_grad_(False)
    return to_device_channels_last(nvae, cpu), to_device_channels_last(energy, cpu)


def start(model: VAEBM, chains: int = 3) -> list[Tensor]:
    eps_z, eps_x = model.initial_noise(NoiseSource(0, "test", range(chains)))
    return [*eps_z, eps_x]


def plain(model: VAEBM) -> PotentialFunction:
    """The reference, through the modules."""
    return lambda eps: model.potential(eps[:-1], eps[-1])


ARCHITECTURES: list[dict[str, object]] = [
    {},
    {"squeeze_excitation": False},
    {"groups": [1]},
    {"architecture": "mbconv_den"},
    {"architecture": "res55_mbconv", "pixel_log_sigma_floor": -3.0},
    {"architecture": "mbconv_res"},
    {"architecture": "res_bnelu", "squeeze_excitation": False},
    {"architecture": "res_elu"},
]
every_architecture = pytest.mark.parametrize(
    "changes", ARCHITECTURES, ids=lambda changes: "-".join(map(str, changes.values())) or "default"
)


@pytest.mark.parametrize("kind", ["noise", "density"])
@every_architecture
def test_prepared_potential_is_that_of_the_modules(changes: dict[str, object], kind: str) -> None:
    """In double precision, where folding shows no rounding: values and gradients, for every kind of layer that a
    decoder has.
    """
    nvae, energy = random_pair(**changes)
    model = VAEBM(nvae.double(), energy.double(), kind)  # type: ignore[arg-type]
    expected, found = (
        evaluate(plain(model), start(model)),
        evaluate(PreparedPotential(PreparedDecoder(nvae), PreparedEnergy(energy), kind), start(model)),
    )  # type: ignore[arg-type]
    torch.testing.assert_close(found.potential, expected.potential, **EXACT)
    for one, other in zip(found.gradient, expected.gradient, strict=True):
        torch.testing.assert_close(one, other, **EXACT)
        assert other.abs().max() > 1e-3  # every group has an influence that can be seen
    pixels, log_p = PreparedDecoder(nvae).decode(start(model)[:-1])
    reference, expected_log_p = nvae.decode(start(model)[:-1])
    torch.testing.assert_close(pixels.mean, reference.mean, **EXACT)
    torch.testing.assert_close(log_p, expected_log_p, **EXACT)


@every_architecture
def test_posterior_with_prepared_cells_is_that_of_the_modules(changes: dict[str, object]) -> None:
    """The copy shares the weights that are not folded, and the network stays as it is."""
    nvae = random_pair(**changes)[0].double()
    x, noise = torch.rand(3, *nvae.shape, dtype=torch.float64), NoiseSource(0, "test", range(3))
    before, copied = nvae(x, noise=noise), with_prepared_cells(nvae)
    found, after = copied(x, noise=noise), nvae(x, noise=noise)
    for name in ("log_q", "log_p", "kl"):
        torch.testing.assert_close(getattr(found, name), getattr(before, name), **EXACT)
        assert torch.equal(getattr(after, name), getattr(before, name))
    torch.testing.assert_close(found.pixels.mean, before.pixels.mean, **EXACT)
    assert copied.stem.weight is nvae.stem.weight and len([*copied.postprocess.parameters()]) == 0


@pytest.mark.parametrize("outputs", ["log p(z)", "images"])
@pytest.mark.parametrize("first", [0, 1], ids=["all groups", "later groups"])
def test_gradient_of_one_output_in_some_groups(outputs: str, first: int) -> None:
    """In double precision against the modules; the other output and the first group need no gradient."""
    nvae = random_pair()[0].double()
    noise = start(VAEBM(nvae, None))[:-1]

    def gradients(decoder: NVAE | PreparedDecoder) -> Sequence[Tensor]:
        eps = [each.clone().requires_grad_(number >= first) for number, each in enumerate(noise)]
        pixels, log_p = decoder.decode(eps)
        found = log_p if outputs == "log p(z)" else pixels.mean.square()
        return torch.autograd.grad(found.sum(), eps[first:])

    for one, other in zip(gradients(PreparedDecoder(nvae)), gradients(nvae), strict=True):
        torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2])
def test_gradient_of_a_convolutions_input(channels: int, dilation: int) -> None:
    """From few channels, where it is a sum over taps, and from more, in double precision on an odd size."""
    torch.manual_seed(0)
    layer = NormalizedConv2d(channels, 5, 3, dilation=dilation).double()
    x = torch.randn(2, channels, 7, 6, dtype=torch.float64, requires_grad=True)
    prepared = Convolution(layer).finalize(x.detach())
    assert (prepared.taps is None) == (channels == 4)
    found, expected = (
        torch.autograd.grad(run(x).square().sum(), x)[0] for run in (lambda x: run_layers([prepared], x), layer)
    )
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("kind", ["noise", "density"])
def test_single_precision(kind: str) -> None:
    """What the chains run with: gradients within 1e-5, images from the same noise within 1e-4."""
    nvae, energy = random_pair()
    model, noise = VAEBM(nvae, energy, kind, chain=ChainSettings(steps=5, step_size=0.1)), sample_noise(0, range(4))  # type: ignore[arg-type]
    expected, found = evaluate(plain(model), start(model)), evaluate(model.chain_potential(), start(model))
    for one, other in zip(found.gradient, expected.gradient, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    eps_z, eps_x = model.initial_noise(noise)
    moved = langevin(plain(model), [*eps_z, eps_x], steps=5, step_size=0.1, noise=noise)
    images = nvae.decode(moved[:-1])[0].mean.clamp(0, 1)
    torch.testing.assert_close(model.sample_batch(noise), images, rtol=0, atol=1e-4)
    assert (images - model.sample_batch(noise, NO_CHAIN)).abs().max() > 1e-2  # the chain has moved them


def test_chains_hold_less_for_the_backward_pass() -> None:
    """One tensor an activation: the modules hold the inputs of batch norms, swishes and convolutions."""
    nvae, energy = random_pair()
    model = VAEBM(nvae, energy)

    def held(potential: PotentialFunction) -> int:
        with measured(nvae, energy) as work:
            evaluate(potential, start(model))
        return work().activations

    assert held(model.chain_potential()) < 0.4 * held(plain(model))


def test_threads_share_the_chains_out_and_each_gets_its_own_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads of one CPU each are two runs of one thread, bit by bit; and up to rounding they are one run of them
    all.
    """
    model, threads = VAEBM(*random_pair()), torch.get_num_threads()
    eps, noise, chain = (
        start(model, chains=35),
        NoiseSource(0, "chain", range(100, 135)),
        {"steps": 3, "step_size": 1e-3},
    )
    potential = model.chain_potential()
    try:
        torch.set_num_threads(2)
        small = run_langevin(potential, eps, noise=noise, **chain)
        assert all(map(torch.equal, small, langevin(potential, eps, noise=noise, **chain))), (
            "of 16×16 images no thread gets a share"
        )
        monkeypatch.setattr("vaebm.fast.run_chains.MIN_IMAGE_VALUES", 16 * 16)
        moved = run_langevin(potential, eps, noise=noise, **chain)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        halves = [
            langevin(potential, [part[share] for part in eps], noise=noise.at(noise.index[share]), **chain)
            for share in (slice(17), slice(17, 35))
        ]
        whole = run_langevin(potential, eps, noise=noise, **chain)
    finally:
        torch.set_num_threads(threads)
    for one, parts, other in zip(moved, zip(*halves, strict=True), whole, strict=True):
        assert torch.equal(one, torch.cat(parts))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_changed_weights_are_seen() -> None:
    """Of the NVAE and of the energy, which moves between the chains of a training; without a change the decoder is
    prepared once.
    """
    nvae, energy = random_pair()
    model, noise = VAEBM(nvae, energy, chain=ChainSettings(steps=3, step_size=0.1)), sample_noise(0, range(2))
    images, decoder = model.sample_batch(noise), model.decoder
    assert torch.equal(model.sample_batch(noise), images) and model.decoder is decoder
    with torch.no_grad():
        energy.head.weight.mul_(100.0)
    assert not torch.allclose(moved := model.sample_batch(noise), images, atol=1e-4) and model.decoder is decoder
    nvae.load_state_dict(
        {name: 1.1 * value if name.startswith("postprocess") else value for name, value in nvae.state_dict().items()}
    )
    assert not torch.allclose(model.sample_batch(noise), moved, atol=1e-2) and model.decoder is not decoder
    torch.testing.assert_close(
        model.sample_batch(noise),
        VAEBM(nvae, energy, chain=model.test_chain).sample_batch(noise),
        rtol=0,
        atol=0,
    )


def test_a_chain_takes_new_energies_in_place() -> None:
    """What was prepared, and on a GPU recorded, goes on with the weights of now, to the bit; another decoder or
    architecture begins anew.
    """
    nvae, energy = random_pair()
    model = VAEBM(nvae, energy)
    potential, eps = model.chain_potential(), start(model)
    before = potential(eps)
    with torch.no_grad():
        for parameter in energy.parameters():
            parameter.mul_(1.2)
    assert model.chain_potential() is potential
    assert torch.equal(potential(eps), VAEBM(nvae, energy).chain_potential()(eps)) and not torch.allclose(
        potential(eps), before, rtol=1e-3
    )

    model.energy = other = EnergyNetwork(EnergyNetworkSettings(channels=8, widths=[1, 2], down=[0]), 3)
    assert model.chain_potential() is not potential
    assert torch.equal(model.chain_potential()(eps), VAEBM(nvae, other).chain_potential()(eps))
    energy.head.bias.data.add_(1.0)
    assert torch.equal(
        model.chain_potential()(eps), VAEBM(nvae, other).chain_potential()(eps)
    )  # nothing of the first energy is left in it


def test_what_was_prepared_in_inference_mode_is_no_hindrance_later() -> None:
    """Such tensors can neither be changed nor kept for a backward pass outside it."""
    model, other, noise = (
        VAEBM(*random_pair(), chain=ChainSettings(steps=2, step_size=0.1)),
        VAEBM(*random_pair(), chain=ChainSettings(steps=2, step_size=0.1)),
        sample_noise(0, range(2)),
    )
    with torch.inference_mode():
        start_of_chain = model.sample_batch(noise, NO_CHAIN)
        model.chain_potential()
    assert torch.equal(model.sample_batch(noise, NO_CHAIN), start_of_chain)
    assert torch.equal(model.sample_batch(noise), other.sample_batch(noise))


def test_what_is_prepared_shares_no_memory_with_the_weights() -> None:
    """Taking over other energies would change them; in double precision, too, where nothing is converted."""
    for nvae, energy in (random_pair(), [network.double() for network in random_pair()]):
        for network, prepared in ((energy, PreparedEnergy(energy)), (nvae, PreparedDecoder(nvae))):
            taken = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
            assert taken and not {tensor.untyped_storage().data_ptr() for tensor in prepared.tensors()} & taken


def test_chains_in_bfloat16() -> None:
    """Features of seven bits: gradients of single precision, near the exact ones but not equal; images are decoded in
    single precision.
    """
    nvae, energy = random_pair()
    exact, rounded, noise = VAEBM(nvae, energy), VAEBM(nvae, energy), sample_noise(0, range(3))
    rounded.chain_dtype = torch.bfloat16
    expected, found = evaluate(exact.chain_potential(), start(exact)), evaluate(rounded.chain_potential(), start(exact))
    of = [
        torch.cat([(slope - eps).flatten() for slope, eps in zip(state.gradient, state.eps, strict=True)])
        for state in (expected, found)
    ]
    # of the energy alone: some thirty roundings of 2⁻⁹, one after the other, seldom of one sign
    assert 1e-3 < (of[1] - of[0]).norm() / of[0].norm() < 0.1 and of[1].dtype == torch.float32
    torch.testing.assert_close(found.potential, expected.potential, rtol=1e-2, atol=0.1)
    assert torch.equal(rounded.sample_batch(noise, NO_CHAIN), exact.sample_batch(noise, NO_CHAIN))


def test_what_is_not_frozen_goes_through_the_modules() -> None:
    """An NVAE in training mode, and double precision, which is for comparisons."""
    nvae, energy = random_pair()
    for changed in (copy.deepcopy(nvae).train(), copy.deepcopy(nvae).double()):
        assert VAEBM(changed, None).decoder is changed
    assert isinstance(VAEBM(nvae, energy).decoder, PreparedDecoder)


def test_energies_on_pixels() -> None:
    """The ablation's chains of images, and energies that are no network of the package."""

    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.square().flatten(1).sum(1)

    nvae, energy = random_pair()
    models: Sequence[VAEBM] = [
        PixelEBM(nvae, energy, "prior"),
        build_model(nvae, Square(), "pixels"),
        VAEBM(nvae, Square()),
    ]
    for model in models:
        expected, found = evaluate(plain(model), start(model)), evaluate(model.chain_potential(), start(model))
        torch.testing.assert_close(found.potential, expected.potential)
        for one, other in zip(found.gradient, expected.gradient, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_images_whose_sides_are_odd() -> None:
    """Pools leave out the last row and column, which then have the gradients of the convolutions alone."""
    energy = EnergyNetwork(EnergyNetworkSettings(channels=4, widths=[1, 2, 2], down=[0, 1]), 3).double()
    x = torch.rand(2, 3, 7, 13, dtype=torch.float64, requires_grad=True)
    energy.initialize(x)
    expected, found = energy(x), PreparedEnergy(energy)(x)
    torch.testing.assert_close(found, expected, **EXACT)
    slopes = [torch.autograd.grad(energies.sum(), x)[0] for energies in (expected, found)]
    torch.testing.assert_close(slopes[1], slopes[0], **EXACT)
    assert slopes[0].abs().min() > 0


def test_a_branch_leaves_the_gradient_that_it_is_given() -> None:
    """Its layers write over theirs, but a skip connection reads this one, too."""
    x, given = torch.randn(2, 8, 4, 4, requires_grad=True), torch.randn(2, 8, 4, 4)
    for layers in ([Swish()], [Swish(), ELU()]):
        before = given.clone()
        (found,) = torch.autograd.grad(run_layers(layers, x), x, given)
        out = nn.functional.silu(x) if len(layers) == 1 else nn.functional.elu(nn.functional.silu(x))
        torch.testing.assert_close(found, torch.autograd.grad(out, x, given)[0])
        assert torch.equal(given, before)


def test_a_branch_ends_with_what_can_be_scaled() -> None:
    convolution, gate = PlainConv2d(8, 8, 3), SqueezeExcitation(8)
    for branch, found in (
        ([convolution, BatchNormSwish(8)], "Convolution, Swish"),
        ([convolution, gate, convolution], "Convolution, ChannelGate, Convolution"),
    ):
        with pytest.raises(TypeError, match=f"or before its only gate, found {found}"):
            fold(branch, torch.zeros(1))
