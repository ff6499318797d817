"""Convolutions, batch norm, squeeze-and-excitation and data-dependent initialisation, against their formulas."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaebm.nvae import layers
from vaebm.nvae.layers import (
    BatchNorm,
    BatchNormSwish,
    DataInitializedConv2d,
    NormalizedConv2d,
    PlainConv2d,
    SqueezeExcitation,
    _Depthwise,
    convolution_weights,
    data_initialization,
    pointwise,
)

DOUBLE = torch.float64


def norms(weight: Tensor) -> Tensor:
    """Of each output channel, (out, 1, 1, 1)."""
    return weight.square().sum((1, 2, 3), keepdim=True).sqrt()


# --- convolutions
def test_normalized_convolution_has_the_norm_of_its_parameter() -> None:
    torch.manual_seed(0)
    conv = NormalizedConv2d(3, 5, 3).double()
    raw, before = norms(conv.weight), norms(conv.effective_weight())
    torch.testing.assert_close(before, raw * (raw + 1e-2) / (raw + 1e-5))  # 1e-2 at the start, 1e-5 in use
    with torch.no_grad():
        conv.weight.mul_(7)
    torch.testing.assert_close(
        norms(conv.effective_weight()), before, rtol=1e-4, atol=0
    )  # 1e-5 beside norms of 0.3 or more
    with torch.no_grad():
        conv.log_weight_norm.add_(1)
    torch.testing.assert_close(norms(conv.effective_weight()), torch.e * before, rtol=1e-4, atol=0)


def test_mask_is_taken_before_the_norm() -> None:
    mask = (torch.arange(4 * 2 * 9).reshape(4, 2, 3, 3) % 3 > 0).float()
    mask[0] = 0
    conv = NormalizedConv2d(2, 4, 3, mask=mask).double()
    kept = conv.weight * mask
    torch.testing.assert_close(conv.log_weight_norm, (norms(kept) + 1e-2).log())
    torch.testing.assert_close(conv.effective_weight(), conv.log_weight_norm.exp() * kept / (norms(kept) + 1e-5))
    before = conv.effective_weight()
    with torch.no_grad():
        conv.weight.add_(1e3 * (1 - mask))  # what the mask hides does not count
    assert torch.equal(conv.effective_weight(), before)
    gradients = torch.autograd.grad(conv(torch.rand(1, 2, 4, 4, dtype=DOUBLE)).sum(), list(conv.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)  # also of a channel that sees nothing, of norm 0


@pytest.mark.parametrize("kernel", [1, 3, 5, 11])
@pytest.mark.parametrize("dilation", [1, 2])
def test_resolution_is_kept_or_halved(kernel: int, dilation: int) -> None:
    x = torch.rand(1, 2, 8, 6)
    assert NormalizedConv2d(2, 3, kernel, dilation=dilation)(x).shape == (1, 3, 8, 6)
    assert NormalizedConv2d(2, 3, kernel, dilation=dilation, stride=2)(x).shape == (1, 3, 4, 3)
    assert PlainConv2d(2, 4, kernel, groups=2)(x).shape == (1, 4, 8, 6) and PlainConv2d(2, 4, kernel, stride=2)(
        x
    ).shape == (1, 4, 4, 3)


def test_dilated_convolution_sees_every_other_pixel_around_its_own() -> None:
    x = torch.rand(1, 1, 9, 9, dtype=DOUBLE, requires_grad=True)
    (gradient,) = torch.autograd.grad(NormalizedConv2d(1, 1, 3, dilation=2).double()(x)[0, 0, 4, 4], x)
    seen = torch.zeros(9, 9, dtype=torch.bool)
    seen[2:7:2, 2:7:2] = True
    assert torch.equal(gradient[0, 0] != 0, seen)


def test_weights_of_all_convolutions_as_they_are_now() -> None:
    """In the order of the modules, each once, nothing else; the norm is part of it, and so are gradients to L."""
    module = nn.Sequential(
        NormalizedConv2d(2, 4, 3),
        nn.Sequential(BatchNorm(4), PlainConv2d(4, 8, 5, groups=4)),
        nn.Linear(8, 8),
        DataInitializedConv2d(8, 2, 1),
    )
    weights = convolution_weights(module)
    assert [tuple(weight().shape) for weight in weights] == [(4, 2, 3, 3), (8, 1, 5, 5), (2, 8, 1, 1)]
    with torch.no_grad():
        module[0].log_weight_norm.zero_()
    torch.testing.assert_close(norms(weights[0]()).flatten(), torch.ones(4), rtol=1e-3, atol=0)
    (gradient,) = torch.autograd.grad(weights[0]().square().sum(), module[0].log_weight_norm)
    torch.testing.assert_close(gradient.flatten(), torch.full((4,), 2.0), rtol=1e-3, atol=0)


# --- data-dependent initialisation
class Nested(nn.Module):
    """Convolutions at several depths, one without bias, one after a stride."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = DataInitializedConv2d(1, 6, 3)
        self.inner = nn.Sequential(nn.ELU(), nn.Sequential(DataInitializedConv2d(6, 4, 3, stride=2), nn.ELU()))
        self.skip = DataInitializedConv2d(6, 4, 1, stride=2, bias=False)
        self.last = DataInitializedConv2d(4, 2, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(self.inner(x) + self.skip(x))


def test_data_initialization_sets_every_layer_on_what_is_initialised_already() -> None:
    """In the pass that sets them and in the next one: deviation 0.2 for all, mean 0 for those with a bias."""
    torch.manual_seed(0)
    module, x = Nested().double(), 3 + 5 * torch.rand(16, 1, 8, 8, dtype=DOUBLE)
    seen: dict[str, Tensor] = {}
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, DataInitializedConv2d)}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda layer, inputs, out, name=name: seen.update({name: out}))
    with torch.no_grad(), data_initialization(module):
        first = module(x)
    assert torch.equal(module(x), first)  # the context is over: nothing is set again
    assert len(seen) == 4
    for name, out in seen.items():
        torch.testing.assert_close(
            out.std((0, 2, 3)), torch.full((out.shape[1],), 0.2, dtype=DOUBLE), rtol=1e-4, atol=0
        )  # scale + 1e-5
        assert (out.mean((0, 2, 3)).abs().max() < 1e-10) == (layers[name].bias is not None)


def test_data_initialization_forgets_the_scale_it_finds() -> None:
    """L and bias follow from the direction of the weights and from the data, whatever L and the bias were."""
    torch.manual_seed(0)
    conv, other, x = (
        DataInitializedConv2d(2, 3, 3).double(),
        DataInitializedConv2d(2, 3, 3).double(),
        torch.randn(4, 2, 8, 8, dtype=DOUBLE),
    )
    other.load_state_dict({"weight": conv.weight, "bias": conv.bias + 3, "log_weight_norm": conv.log_weight_norm - 2})
    conv.initialize(x)
    other.initialize(x)
    assert torch.equal(conv.log_weight_norm, other.log_weight_norm) and torch.equal(conv.bias, other.bias)
    out = F.conv2d(x, conv.weight / (norms(conv.weight) + 1e-5), padding=1)
    scale = 5 * out.std((0, 2, 3))  # of N − 1
    torch.testing.assert_close(conv.log_weight_norm.flatten(), -(scale + 1e-5).log())
    torch.testing.assert_close(conv.bias, -out.mean((0, 2, 3)) / (scale + 1e-5))


def test_data_initialization_is_over_after_an_error() -> None:
    module = Nested()
    with pytest.raises(RuntimeError, match="channels"), data_initialization(module):
        module(torch.rand(1, 2, 8, 8))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module(torch.rand(4, 1, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# --- batch norm, squeeze-excitation
@pytest.mark.parametrize("layer", [BatchNorm, BatchNormSwish])
def test_batch_norm_keeps_a_twentieth_of_each_batch(layer: type[BatchNorm]) -> None:
    """Normalised by the biased variance, remembered with the unbiased one; in evaluation by what is remembered."""
    torch.manual_seed(0)
    norm, x = layer(3).double(), 2 + 3 * torch.randn(4, 3, 5, 5, dtype=DOUBLE)
    activation = F.silu if layer is BatchNormSwish else lambda x: x
    assert norm.weight.eq(1).all() and norm.bias.eq(0).all()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    scale, shift = norm.weight[:, None, None], norm.bias[:, None, None]
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(norm(x), activation(scale * (x - mean) / (variance + 1e-5).sqrt() + shift))
    torch.testing.assert_close(norm.running_mean, 0.05 * mean.flatten())
    torch.testing.assert_close(norm.running_var, 0.95 + 0.05 * x.var((0, 2, 3)))
    norm.eval()
    remembered = (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), activation(scale * remembered + shift))


@pytest.mark.parametrize(("channels", "hidden"), [(4, 4), (32, 4), (128, 8), (20, 4)])
def test_squeeze_excitation_gates_whole_channels_by_all_means(channels: int, hidden: int) -> None:
    torch.manual_seed(0)
    module, x = SqueezeExcitation(channels).double(), torch.randn(2, channels, 4, 3, dtype=DOUBLE)
    first, first_bias, second, second_bias = module.parameters()
    assert first.shape == (hidden, channels)
    gate = torch.sigmoid((x.mean((2, 3)) @ first.T + first_bias).relu() @ second.T + second_bias)
    torch.testing.assert_close(module(x), x * gate[:, :, None, None])


def test_matrix_products_for_pointwise_convolutions() -> None:
    """What a GPU computes 1×1 convolutions by: the same function and gradients, and no copy of what is in the layout
    channels_last.
    """
    x, weight, bias = (
        torch.randn(2, 3, 4, 5, dtype=torch.float64),
        torch.randn(6, 3, 1, 1, dtype=torch.float64),
        torch.randn(6, dtype=torch.float64),
    )
    x = x.contiguous(memory_format=torch.channels_last)
    inputs = [part.requires_grad_() for part in (x, weight, bias)]
    gradient = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    found, expected = pointwise(*inputs), F.conv2d(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, gradient),
        torch.autograd.grad(expected, inputs, gradient),
        rtol=1e-12,
        atol=1e-12,
    )
    assert found.is_contiguous(memory_format=torch.channels_last)
    with torch.profiler.profile() as seen:
        pointwise(x.detach(), weight.detach(), bias.detach())
    assert "aten::clone" not in {event.name for event in seen.events()}


def test_depthwise_layers_of_a_cpu_have_gradients_of_the_library_in_single_precision() -> None:
    """In the layout of training, in several parts of the batch; in other precisions the library computes them."""
    x = torch.randn(5, 96, 48, 50).to(memory_format=torch.channels_last).requires_grad_()
    layer, gradient = PlainConv2d(96, 96, 5, groups=96), torch.randn(5, 96, 48, 50)
    expected = F.conv2d(x, layer.weight, padding=2, groups=96)
    with torch.profiler.profile() as seen:
        found = torch.autograd.grad(layer(x), (x, layer.weight), gradient)
    assert "aten::convolution_backward" not in {event.name for event in seen.events()}
    wanted = torch.autograd.grad(expected, (x, layer.weight), gradient)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted[1].abs().max()))
    with torch.profiler.profile() as seen:
        layer.double()(x.double()).sum().backward()
    assert "aten::convolution_backward" in {event.name for event in seen.events()}


@pytest.mark.parametrize("kernel", [3, 5])
def test_backward_pass_of_depthwise_convolutions(kernel: int) -> None:
    """Gradients of input and weight are the library's."""
    x, weight = torch.randn(2, 3, 6, 7, dtype=torch.float64), torch.randn(3, 1, kernel, kernel, dtype=torch.float64)
    inputs, gradient = [part.requires_grad_() for part in (x, weight)], torch.randn(2, 3, 6, 7, dtype=torch.float64)
    found, expected = _Depthwise.apply(*inputs), F.conv2d(*inputs, padding=kernel // 2, groups=3)
    assert torch.equal(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, gradient),
        torch.autograd.grad(expected, inputs, gradient),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("few", [0, layers.FEW_VALUES])
def test_gated_sum_has_values_and_gradients_of_the_module(
    dtype: torch.dtype, tolerance: float, layout: torch.memory_format, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many values as one operation, and of few."""
    monkeypatch.setattr(layers, "FEW_VALUES", few)
    torch.manual_seed(0)
    module = SqueezeExcitation(8).to(dtype)
    skip, x, gradient = torch.randn(3, 4, 8, 5, 6, dtype=dtype).unbind()
    inputs = [part.to(memory_format=layout).requires_grad_() for part in (skip, x)] + list(module.parameters())
    found, expected = module.gated_sum(*inputs[:2], 0.1), inputs[0] + 0.1 * module(inputs[1])
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    pair = [torch.autograd.grad(each, inputs, gradient) for each in (found, expected)]
    torch.testing.assert_close(*pair, rtol=tolerance, atol=tolerance)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module.gated_sum(*inputs[:2], 0.1), torch.add(inputs[0], module(inputs[1]), alpha=0.1))
