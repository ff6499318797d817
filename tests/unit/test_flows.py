"""Volume-preserving flows: what may depend on what, by masks and by Jacobians."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from vaebm.nvae.flows import CausalConv2d, FlowCell, FlowPair, causal_mask

HEIGHT, WIDTH, LATENTS = 4, 3, 2


def strong(flow: nn.Module) -> nn.Module:
    """In double precision, with shifts far larger than initially, so that no dependence is lost in rounding."""
    with torch.no_grad():
        for cell in flow.modules():
            if isinstance(cell, FlowCell):
                cell.shift.log_weight_norm.add_(math.log(30))
                cell.shift.bias.normal_()
    return flow.double()


def jacobian(flow: nn.Module, *, mirrored: bool = False) -> Tensor:
    """∂out/∂z with both in the order of the model: position by position (from the last one where `mirrored`), in each
    channel by channel.
    """
    z = torch.randn(1, LATENTS, HEIGHT, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    full = torch.autograd.functional.jacobian(flow, z).reshape(LATENTS, HEIGHT * WIDTH, LATENTS, HEIGHT * WIDTH)
    if mirrored:
        full = full.flip(1, 3)
    return full.permute(1, 0, 3, 2).reshape(z.numel(), z.numel())


@pytest.mark.parametrize("mirror", [False, True])
def test_jacobian_of_a_cell_is_triangular_with_ones(mirror: bool) -> None:
    torch.manual_seed(0)
    found = jacobian(strong(FlowCell(LATENTS, mirror)), mirrored=mirror)
    assert found.diagonal().eq(1).all() and found.triu(1).eq(0).all()
    blocks = found.reshape(HEIGHT * WIDTH, LATENTS, HEIGHT * WIDTH, LATENTS)
    assert (
        blocks[5, 1, 5, 0] != 0 and blocks[5, 0, 4, 1] != 0 and blocks[5, 0, 2, 0] != 0
    )  # channel before; position before; row above
    other = jacobian(strong(FlowCell(LATENTS, mirror)), mirrored=not mirror)
    assert other.triu(1).ne(0).any()  # in the other order it is not triangular: the order is the cell's own


def test_a_pair_keeps_the_volume_and_lets_everything_near_in() -> None:
    torch.manual_seed(0)
    found = jacobian(strong(FlowPair(LATENTS)))
    sign, log_determinant = torch.linalg.slogdet(found)
    assert sign == 1 and abs(log_determinant.item()) < 1e-12  # a product of 24 pivots of 1, each rounded
    assert found.triu(1).ne(0).any() and found.tril(-1).ne(0).any()  # the halves' orders are opposite


def test_a_cell_is_inverted_by_repeating_its_shift() -> None:
    """z ← y + μ(z) settles one variable at a time, for ever: after as many rounds as there are variables it is the
    inverse.
    """
    torch.manual_seed(0)
    cell = strong(FlowCell(LATENTS, mirror=False))
    z = torch.randn(3, LATENTS, HEIGHT, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        y = cell(z)
        found = torch.zeros_like(y)
        for _ in range(LATENTS * HEIGHT * WIDTH):
            found = y + (found - cell(found))
    assert (y - z).abs().max() > 1
    torch.testing.assert_close(found, z, rtol=0, atol=1e-9)  # 24 rounds of sums of the order of 10


@given(
    blocks=st.integers(1, 4),
    ratio=st.integers(1, 3),
    wider=st.sampled_from(["in", "out"]),
    kernel=st.sampled_from([1, 3, 5]),
    zero_diagonal=st.booleans(),
    mirror=st.booleans(),
)
def test_mask_of_a_dense_convolution(
    blocks: int, ratio: int, wider: str, kernel: int, zero_diagonal: bool, mirror: bool
) -> None:
    """Tap by tap: positions before the centre, and at the centre the blocks of channels up to the own one, or before
    it.
    """
    channels_in, channels_out = (blocks * ratio, blocks) if wider == "in" else (blocks, blocks * ratio)
    mask = causal_mask(channels_in, channels_out, kernel, zero_diagonal=zero_diagonal, mirror=mirror)
    assert mask.shape == (channels_out, channels_in, kernel, kernel)
    for out in range(channels_out):
        for source in range(channels_in):
            block_out, block_in = (out, source // ratio) if wider == "in" else (out // ratio, source)
            centre = block_in < block_out if zero_diagonal else block_in <= block_out
            assert mask[out, source].tolist() == taps(kernel, centre, mirror)


@given(channels=st.integers(1, 5), kernel=st.sampled_from([1, 3, 5]), zero_diagonal=st.booleans(), mirror=st.booleans())
def test_mask_of_a_depthwise_convolution(channels: int, kernel: int, zero_diagonal: bool, mirror: bool) -> None:
    mask = causal_mask(channels, channels, kernel, depthwise=True, zero_diagonal=zero_diagonal, mirror=mirror)
    assert mask.tolist() == [[taps(kernel, not zero_diagonal, mirror)]] * channels


def taps(kernel: int, centre: bool, mirror: bool) -> list[list[float]]:
    """The mask of one pair of channels, row by row; turned round by half a turn where `mirror`."""
    middle = kernel * kernel // 2
    flat = [1.0] * middle + [float(centre)] + [0.0] * middle
    flat = flat[::-1] if mirror else flat
    return [flat[row * kernel : (row + 1) * kernel] for row in range(kernel)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("mirror", [False, True])
def test_two_rows_of_a_kernel_compute_what_three_do(mirror: bool, dtype: torch.dtype, tolerance: float) -> None:
    """Values and gradients are those of the library's convolution with all rows of the masked kernel."""
    torch.manual_seed(0)
    layer = CausalConv2d(2, 6, mirror=mirror).to(dtype)
    inputs = [torch.randn(3, 2, 7, 5, dtype=dtype).requires_grad_(), *layer.parameters()]
    found, expected = layer(inputs[0]), F.conv2d(inputs[0], layer.effective_weight(), padding=1)
    gradient = torch.randn_like(expected)
    pair = [(each, *torch.autograd.grad(each, inputs, gradient)) for each in (found, expected)]
    for one, other in zip(*pair, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


def test_shift_starts_at_a_tenth() -> None:
    """The last convolution's weights, and they alone: the flow starts near the identity."""
    torch.manual_seed(0)
    cell = FlowCell(3, mirror=False)
    for layer, factor in ((cell.expand, 1.0), (cell.depthwise, 1.0), (cell.shift, 0.1)):
        assert layer.mask is not None
        norm = (layer.weight * layer.mask).flatten(1).norm(dim=1)
        torch.testing.assert_close(layer.log_weight_norm.exp().flatten(), factor * (norm + 1e-2))


def test_mask_is_no_state_and_follows_the_weights() -> None:
    """Published checkpoints hold none; in another precision, in a copy and after loading it is there."""
    torch.manual_seed(0)
    pair, z = FlowPair(2), torch.randn(2, 2, 3, 3, dtype=torch.float64)
    assert not [name for name in pair.state_dict() if "mask" in name]
    assert {name.rpartition(".")[2] for name, _ in pair.named_buffers()} == {"mask"}
    double = copy.deepcopy(pair).double()
    assert double[0].expand.mask.dtype == torch.float64 and double[0].expand.mask.eq(0).any()
    torch.testing.assert_close(double(z), pair(z.float()).double(), rtol=1e-5, atol=1e-5)
    other = FlowPair(2).double()
    other.load_state_dict(double.state_dict())
    assert torch.equal(other(z), double(z))
