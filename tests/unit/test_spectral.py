"""The power iteration against the singular value decomposition."""

import pytest
import torch

from vaebm.nvae.layers import NormalizedConv2d, PlainConv2d, convolution_weights
from vaebm.training.spectral import SpectralPenalty


def modules() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        NormalizedConv2d(3, 8, 3),
        NormalizedConv2d(8, 8, 3),
        NormalizedConv2d(8, 8, 3),
        PlainConv2d(8, 8, 5, groups=8),
        PlainConv2d(25, 8, 1),  # a matrix of the shape of the one before
    ).double()


def exact(module: torch.nn.Module) -> torch.Tensor:
    return torch.stack(
        [torch.linalg.matrix_norm(weight().flatten(1), ord=2) for weight in convolution_weights(module)]
    ).sum()


def test_converged_value_and_gradient_are_those_of_the_decomposition() -> None:
    module = modules()
    penalty = SpectralPenalty(convolution_weights(module), seed=0).double()
    for _ in range(200):
        value = penalty()
    expected = exact(module)
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)  # power iteration converges geometrically
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    for ours, theirs in zip(
        gradients, torch.autograd.grad(expected, parameters, allow_unused=True, materialize_grads=True), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_first_call_is_close_and_never_above() -> None:
    """uᵀWv of unit vectors is at most the largest singular value; 40 iterations bring it within a hundredth."""
    module = modules()
    value = SpectralPenalty(convolution_weights(module), seed=0).double()()
    assert 0.99 * exact(module) <= value <= exact(module) + 1e-9


def test_singular_vectors_are_state() -> None:
    """A penalty restored from its state goes on in the same bits."""
    module = modules()
    first, second = (SpectralPenalty(convolution_weights(module), seed=seed).double() for seed in (0, 1))
    first()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(), second())


@pytest.mark.parametrize("scale", [1e-6, 1e-4, 1e-2, 1e2, 1e4])
def test_small_and_large_weights_neither_vanish_nor_overflow(scale: float) -> None:
    """In single precision; a value below 1e-3 counts less, as published."""
    weight = torch.nn.Parameter(scale * torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0)))
    largest = torch.linalg.matrix_norm(weight.detach().flatten(1), ord=2).item()
    penalty = SpectralPenalty([lambda: weight], seed=0)
    found = [penalty().item() for _ in range(10)][-1]
    assert found == pytest.approx(largest, rel=1e-3) if largest > 1e-3 else 0 <= found < largest
