"""Parameters in one vector against the module's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from vaebm.nvae.flat_parameters import FlatParameters
from vaebm.nvae.flows import FlowPair
from vaebm.nvae.layers import NormalizedConv2d, PlainConv2d, SqueezeExcitation


def network() -> nn.Module:
    """Convolutions of two row lengths, masked and plain ones, and other layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        NormalizedConv2d(2, 4, 3, bias=False),
        NormalizedConv2d(4, 4, 3, stride=2),
        FlowPair(4),
        PlainConv2d(4, 8, 3),
        SqueezeExcitation(8),
        NormalizedConv2d(8, 4, 1),
        NormalizedConv2d(4, 2, 3, groups=2),
    )


def loss(module: nn.Module, x: Tensor) -> Tensor:
    return module(x).square().sum()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("backward_passes", [1, 3])
def test_gradients_are_those_of_the_modules(dtype: torch.dtype, tolerance: float, backward_passes: int) -> None:
    """The backward passes in the context add up, in every parameter's own gradient and in the vector."""
    module = network().to(dtype)
    x = torch.randn(6, 2, 8, 8, dtype=dtype)
    expected = torch.autograd.grad(loss(module, x), list(module.parameters()))
    flat = FlatParameters(module)
    for _ in range(2):  # gradients of the step before are gone
        flat.zero_gradients()
        with flat.normalized_weights():
            for part in x.chunk(backward_passes):
                loss(module, part).backward()
    for parameter, gradient in zip(module.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(
            parameter.grad, gradient, rtol=tolerance, atol=tolerance * float(gradient.abs().max())
        )
    assert sum(each.numel() for each in flat.tensors) == sum(each.numel() for each in module.parameters())
    squares = sum(float(gradient.double().square().sum()) for gradient in expected)
    assert float(flat.tensors[0].grad.double().square().sum()) == pytest.approx(squares, rel=tolerance)  # type: ignore[union-attr]


def test_weights_without_gradient() -> None:
    """As in the chains of a training: neither the parameters nor the weights normalised together need gradients."""
    module = network()
    flat, x = FlatParameters(module), torch.randn(6, 2, 8, 8)
    with flat.normalized_weights():
        flat.requires_grad_(False)
        assert not loss(module, x).requires_grad
        flat.requires_grad_(True)
        loss(module, x).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layouts_and_outputs_stay_to_the_bit(layout: torch.memory_format) -> None:
    """A CPU chooses its convolution, and so the rounding, by the strides; a 1×1 weight has two sets of them."""
    module = network().to(memory_format=layout)
    x = torch.randn(6, 2, 8, 8).to(memory_format=layout)
    strides, before = [parameter.stride() for parameter in module.parameters()], module(x)
    flat = FlatParameters(module)
    assert [parameter.stride() for parameter in module.parameters()] == strides
    with flat.normalized_weights():
        assert torch.equal(module(x), before)


def test_weights_of_the_context_end_with_it() -> None:
    module = network()
    x = torch.randn(2, 2, 8, 8)
    flat, before = FlatParameters(module), module(x)
    with pytest.raises(RuntimeError, match="any"), flat.normalized_weights():
        torch.testing.assert_close(module(x), before)
        raise RuntimeError("any")
    with torch.no_grad():
        flat.tensors[0].mul_(1.5)
    assert not torch.allclose(module(x), before)


@pytest.mark.parametrize("kind", [torch.optim.Adamax, torch.optim.Adam])
def test_steps_and_saved_states_are_those_of_separate_parameters(kind: type[torch.optim.Optimizer]) -> None:
    """A training resumes from the saved state of a plain optimiser, and a plain optimiser from that of a training."""
    options = {"lr": 1e-2, "weight_decay": 1e-2}
    plain, x = network().double(), torch.randn(6, 2, 8, 8).double()
    separate = kind(plain.parameters(), **options)  # type: ignore[call-arg]

    def plain_step() -> None:
        separate.zero_grad()
        loss(plain, x).backward()
        separate.step()

    plain_step()
    module = copy.deepcopy(plain)
    flat = FlatParameters(module)
    optimizer = flat.optimizer(kind, **options)
    optimizer.load_state_dict(copy.deepcopy(separate.state_dict()))

    def steps(count: int) -> None:
        for _ in range(count):
            plain_step()
            flat.zero_gradients()
            with flat.normalized_weights():
                loss(module, x).backward()
            optimizer.step()
        for ours, theirs in zip(module.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)

    steps(3)
    saved, expected = optimizer.state_dict(), separate.state_dict()
    assert saved["param_groups"] == expected["param_groups"]
    assert saved["state"].keys() == expected["state"].keys()
    for number, values in expected["state"].items():
        for name, value in values.items():
            torch.testing.assert_close(saved["state"][number][name], value, rtol=1e-10, atol=1e-12)
    separate.load_state_dict(copy.deepcopy(saved))
    steps(2)


def test_a_step_is_seen_as_a_change_of_every_parameter() -> None:
    """A decoder prepared before it is prepared again."""
    module = network()
    optimizer = (flat := FlatParameters(module)).optimizer(torch.optim.Adamax)
    before = [parameter._version for parameter in module.parameters()]
    with flat.normalized_weights():
        loss(module, torch.randn(2, 2, 8, 8)).backward()
    optimizer.step()
    assert all(parameter._version > version for parameter, version in zip(module.parameters(), before, strict=True))


def test_module_without_convolutions() -> None:
    module = nn.Linear(3, 1)
    flat = FlatParameters(module)
    with flat.normalized_weights():
        module(torch.ones(2, 3)).sum().backward()
    assert flat.tensors[0].grad is not None
    assert flat.tensors[0].grad.tolist() == [2.0, 2.0, 2.0, 2.0]
