"""Residual cells and the published architectures: against plain tensor operations, their sizes, and who gets a
gradient.
"""

from collections.abc import Sequence
from functools import partial
from typing import get_args

import pytest
import torch
from published_files import TWO_SCALES
from torch import Tensor, nn
from torch.nn import functional as F

from vaebm.config import NVAENetworkSettings
from vaebm.config.nvae import Architecture
from vaebm.noise import NoiseSource
from vaebm.nvae.cells import (
    ARCHITECTURES,
    FactorizedReduce,
    Operation,
    Resample,
    ResidualCell,
    bn_elu_conv,
    bn_swish_conv,
    elu_conv,
    inverted_residual,
)
from vaebm.nvae.layers import BatchNorm, NormalizedConv2d, SqueezeExcitation
from vaebm.nvae.model import NVAE
from vaebm.nvae.objective import nelbo

RESAMPLES: tuple[Resample, ...] = get_args(Resample)


def moved(module: nn.Module) -> nn.Module:
    """In double precision, with every parameter and statistic off its special initial value."""
    torch.manual_seed(0)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.3 * torch.randn_like(value))
        for layer in module.modules():
            if isinstance(layer, SqueezeExcitation):
                layer.gate[0].bias.fill_(3)  # a gate's four hidden units must not all be off
            if isinstance(layer, BatchNorm):
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.5, 2)
    return module.double()


# ------------------------------------------------------------------------------------- cells by plain tensor operations
class Weights:
    """Operations of torch.nn.functional with the tensors of a module, taken one after the other; batch norms in
    evaluation.
    """

    def __init__(self, module: nn.Module):
        self.tensors = list(module.state_dict().values())

    def take(self) -> Tensor:
        return self.tensors.pop(0)

    def batch_norm(self, x: Tensor) -> Tensor:
        weight, bias, mean, variance, _ = (self.take() for _ in range(5))
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=1e-5)

    def normalized(self, x: Tensor, *, bias: bool = True, **options: int) -> Tensor:
        weight = self.take()
        offset = self.take() if bias else None
        norm = weight.square().sum((1, 2, 3), keepdim=True).sqrt()
        return F.conv2d(x, self.take().exp() * weight / (norm + 1e-5), offset, **options)

    def linear(self, x: Tensor) -> Tensor:
        return F.linear(x, self.take(), self.take())


def skip(x: Tensor, weights: Weights, resample: Resample) -> Tensor:
    if resample == "none":
        return x
    if resample == "up":
        return weights.normalized(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True), bias=False)
    x = F.silu(x)
    corners = [(0, 0), (1, 1), (0, 1), (1, 0)]
    return torch.cat([weights.normalized(x[:, :, row:, column:], stride=2) for row, column in corners], 1)


def upsample(x: Tensor, resample: Resample) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3) if resample == "up" else x


def residual(x: Tensor, weights: Weights, resample: Resample, *, kind: str) -> Tensor:
    """res_bnswish, res_bnswish5, res_bnelu, res_elu."""
    if kind != "res_elu":
        x = weights.batch_norm(x)
    x = x * torch.sigmoid(x) if "swish" in kind else torch.where(x > 0, x, torch.expm1(x))
    dilation = 2 if kind == "res_bnswish5" else 1
    return weights.normalized(
        upsample(x, resample), padding=dilation, dilation=dilation, stride=2 if resample == "down" else 1
    )


def mobile(x: Tensor, weights: Weights, resample: Resample, *, kernel: int, groups: int) -> Tensor:
    """mconv."""
    x = weights.batch_norm(upsample(x, resample))
    x = F.silu(weights.batch_norm(F.conv2d(x, weights.take())))
    depthwise = F.conv2d(
        x, weights.take(), padding=(kernel - 1) // 2, stride=2 if resample == "down" else 1, groups=groups or x.shape[1]
    )
    return weights.batch_norm(F.conv2d(F.silu(weights.batch_norm(depthwise)), weights.take()))


def excitation(x: Tensor, weights: Weights) -> Tensor:
    return x * torch.sigmoid(weights.linear(weights.linear(x.mean((2, 3))).relu()))[:, :, None, None]


OPERATIONS = {
    "res_bnswish": (bn_swish_conv, partial(residual, kind="res_bnswish")),
    "res_bnswish5": (partial(bn_swish_conv, dilation=2), partial(residual, kind="res_bnswish5")),
    "res_bnelu": (bn_elu_conv, partial(residual, kind="res_bnelu")),
    "res_elu": (elu_conv, partial(residual, kind="res_elu")),
    "mconv_e6k5g0": (partial(inverted_residual, expansion=6), partial(mobile, kernel=5, groups=0)),
    "mconv_e3k5g8": (partial(inverted_residual, expansion=3, groups=8), partial(mobile, kernel=5, groups=8)),
    "mconv_e6k11g0": (partial(inverted_residual, expansion=6, kernel=11), partial(mobile, kernel=11, groups=0)),
}


@pytest.mark.parametrize("resample", RESAMPLES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_cell_is_what_its_formula_says(name: str, resample: Resample) -> None:
    """skip(x) + 0.1 SE(op_2(op_1(x))), the change of channels and resolution in op_1; the channels no power of 2 where
    they may.
    """
    ours, plain = OPERATIONS[name]
    channels = 8 if name.endswith("g8") else 6
    out = {"none": channels, "down": 2 * channels, "up": channels // 2}[resample]
    operations: Sequence[Operation] = (
        [ours] if name.endswith("g8") else [ours, ours]
    )  # 8 groups: the second one's 3 · 4 channels have none
    cell = moved(ResidualCell(channels, out, resample, operations, squeeze_excitation=True)).eval()
    x = torch.randn(2, channels, 6, 8, dtype=torch.float64)
    weights = Weights(cell)
    expected = skip(x, weights, resample)
    branch = plain(x, weights, resample)
    for _ in operations[1:]:
        branch = plain(branch, weights, "none")
    expected = expected + 0.1 * excitation(branch, weights)
    assert not weights.tensors
    found = cell(x)
    assert found.shape == (2, out, *{"none": (6, 8), "down": (3, 4), "up": (12, 16)}[resample])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)  # sums in another order


@pytest.mark.parametrize("resample", RESAMPLES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_parameters_of_a_cell(name: str, resample: Resample) -> None:
    """By hand: each convolution, a bias and an L per output channel of the normalised ones, two numbers per channel of
    a batch norm.
    """
    c, expansion, kernel, groups = (
        16,
        int(name[7]) if name.startswith("mconv") else 0,
        11 if "k11" in name else 5,
        8 if name.endswith("g8") else 0,
    )
    out = {"none": c, "down": 2 * c, "up": c // 2}[resample]
    hidden = expansion * c
    if expansion:
        branch = (
            2 * c
            + c * hidden
            + 2 * hidden
            + hidden * (hidden // (groups or hidden)) * kernel**2
            + 2 * hidden
            + hidden * out
            + 2 * out
        )
    else:
        branch = (0 if name == "res_elu" else 2 * c) + 9 * c * out + 2 * out
    gate = out * 4 + 4 + 4 * out + out  # hidden: out // 16 is below 4 for all of them
    beside = {"none": 0, "down": c * out + 2 * out, "up": c * out + out}[resample]
    cell = ResidualCell(c, out, resample, [OPERATIONS[name][0]], squeeze_excitation=True)
    assert sum(parameter.numel() for parameter in cell.parameters()) == branch + gate + beside


@pytest.mark.parametrize(("channels", "widths"), [(4, [1, 1, 1, 1]), (6, [1, 1, 1, 3]), (15, [3, 3, 3, 6])])
def test_factorized_reduce_sees_each_pixel_of_a_block_once(channels: int, widths: list[int]) -> None:
    """The last of the four takes what is left of the channels."""
    torch.manual_seed(0)
    reduce = FactorizedReduce(1, channels).double()
    x = torch.rand(1, 1, 4, 6, dtype=torch.float64, requires_grad=True)
    parts = reduce(x)[0].split(widths)
    for part, (row, column) in zip(parts, ((0, 0), (1, 1), (0, 1), (1, 0)), strict=True):
        for channel in part:
            (gradient,) = torch.autograd.grad(channel.sum(), x, retain_graph=True)
            seen = torch.zeros(4, 6, dtype=torch.bool)
            seen[row::2, column::2] = True
            assert torch.equal(gradient[0, 0] != 0, seen)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_factorized_reduce_is_four_strided_convolutions(layout: torch.memory_format) -> None:
    """Values and gradients, in the layout of the input."""
    torch.manual_seed(0)
    reduce = FactorizedReduce(3, 10).double().to(memory_format=layout)
    x = torch.randn(2, 3, 4, 6).double().to(memory_format=layout).requires_grad_()
    active = F.silu(x)
    views = (active, active[:, :, 1:, 1:], active[:, :, :, 1:], active[:, :, 1:, :])
    expected = torch.cat([conv(view) for conv, view in zip(reduce.convs, views, strict=True)], dim=1)
    found, inputs = reduce(x), [x, *reduce.parameters()]
    assert found.is_contiguous(memory_format=layout)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    pair = [torch.autograd.grad(each.square().sum(), inputs, retain_graph=True) for each in (found, expected)]
    torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-12)


# -------------------------------------------------------------------------------------------------------- architectures
def network(architecture: Architecture) -> NVAE:
    """A small network with one flow."""
    settings = NVAENetworkSettings.model_validate(TWO_SCALES | {"flows": 1, "architecture": architecture})
    return NVAE(settings, (3, 8, 8))


def test_every_name_of_the_settings_has_an_architecture() -> None:
    assert set(ARCHITECTURES) == set(get_args(Architecture))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_gets_a_gradient(architecture: Architecture) -> None:
    """No parameter is idle: in evaluation, where a batch norm cancels no bias, no gradient is 0 either."""
    nvae, x = moved(network(architecture)), torch.rand(4, 3, 8, 8, dtype=torch.float64)
    for training in (True, False):
        nvae.train(training).zero_grad(set_to_none=True)
        output = nvae(x, noise=NoiseSource(0, "test", range(4)))
        assert output.pixels.mean.shape == x.shape
        nelbo(output, x).loss.backward()
        gradients = {name: parameter.grad for name, parameter in nvae.named_parameters()}
        assert not [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()]
        assert training or not [name for name, gradient in gradients.items() if gradient.eq(0).all()]


def kinds(cell: nn.Module) -> list[str]:
    """The operations of a cell by name, read off its layers."""
    assert isinstance(cell, ResidualCell)
    names = []
    for operation in cell.branch[:-1]:
        convs = [layer for layer in operation.modules() if isinstance(layer, nn.Conv2d)]
        if len(convs) == 3:
            groups = 0 if convs[1].groups == convs[1].in_channels else convs[1].groups
            names.append(f"mconv_e{convs[0].out_channels // convs[0].in_channels}k{convs[1].kernel_size[0]}g{groups}")
        else:
            assert isinstance(convs[0], NormalizedConv2d)
            norm = [layer for layer in operation.modules() if isinstance(layer, BatchNorm)]
            names.append(
                "res_elu"
                if not norm
                else "res_bnelu"
                if type(norm[0]) is BatchNorm
                else "res_bnswish5"
                if convs[0].dilation[0] == 2
                else "res_bnswish"
            )
    return names


SWISH, E3, E6 = ["res_bnswish", "res_bnswish"], ["mconv_e3k5g0"], ["mconv_e6k5g0"]
TABLE: dict[str, tuple[list[str], list[str], list[str], list[str]]] = {
    "res_mbconv": (SWISH, SWISH, E6, E3),
    "res53_mbconv": (["res_bnswish5", "res_bnswish"], ["res_bnswish5", "res_bnswish"], E6, E3),
    "res35_mbconv": (["res_bnswish", "res_bnswish5"], ["res_bnswish", "res_bnswish5"], E6, E3),
    "res55_mbconv": (["res_bnswish5", "res_bnswish5"], ["res_bnswish5", "res_bnswish5"], E6, E3),
    "mbconv_res": (E3, E6, SWISH, SWISH),
    "mbconv_sep": (E3, E6, E6, E3),
    "mbconv_sep11": (E3, ["mconv_e6k11g0"], ["mconv_e6k11g0"], E3),
    "mbconv_den": (["mconv_e3k5g8"], E6, E6, ["mconv_e3k5g8"]),
    "res_bnswish": (SWISH, SWISH, SWISH, SWISH),
    "res_bnelu": (["res_bnelu"] * 2,) * 4,
    "res_elu": (["res_elu"] * 2,) * 4,
}
"""Operations of the cells before the groups, of the encoder, of the decoder, after the groups."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cells_have_the_operations_of_their_part(architecture: Architecture) -> None:
    """Also where a cell changes the resolution between scales: `down` is the encoder's, `up` the decoder's."""
    nvae = network(architecture)
    encoder = [cell for cells in nvae.encoder_groups for cell in cells]  # type: ignore[attr-defined]
    decoder = [cell for group in nvae.groups for cell in group.cells]
    parts = (nvae.preprocess, encoder, decoder, nvae.postprocess)
    for cells, count, expected in zip(parts, (2, 4, 3, 2), TABLE[architecture], strict=True):
        assert [kinds(cell) for cell in cells] == [expected] * count
