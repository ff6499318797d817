"""The layers that the NVAE and the energy network are built from (NVAE section 3.3 and appendix A)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from vaebm.system import distributed

INITIAL_STD = 0.2
"""Standard deviation of every channel of a convolution after its data-dependent initialisation."""


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1×1 convolution (B, in, H, W) → (B, out, H, W) as a product of matrices; copies nothing where x is in the layout channels_last."""
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution at stride 1 whose input gets its gradient by a convolution, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (gradient,), (of_x, of_weight) = gradients, ctx.needs_input_grad
        padding, groups = weight.shape[-1] // 2, len(weight)
        return (
            F.conv2d(gradient, weight.flip(2, 3), padding=padding, groups=groups) if of_x else None,
            conv2d_weight(x, weight.shape, gradient, padding=padding, groups=groups) if of_weight else None,
        )


def convolve(layer: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    """The convolution of a layer with another weight. (B, in, H, W) → (B, out, H', W').

    On a GPU 1×1 convolutions are products of matrices, and depthwise ones have a backward pass of their own: the library's take up to
    six times as long in the layout channels_last (docs/speed.md).
    """
    plain = layer.stride == (1, 1) and layer.dilation == (1, 1)
    if x.is_cuda and plain and layer.kernel_size == (1, 1) and layer.groups == 1:
        return pointwise(x, weight, layer.bias)
    if x.is_cuda and plain and layer.groups == layer.in_channels == layer.out_channels and layer.bias is None:
        if torch.is_autocast_enabled("cuda"):
            x, weight = x.to(torch.get_autocast_dtype("cuda")), weight.to(torch.get_autocast_dtype("cuda"))
        return _Depthwise.apply(x, weight)  # type: ignore[no-untyped-call]  # torch declares none
    return layer._conv_forward(x, weight, layer.bias)


class NormalizedConv2d(nn.Conv2d):
    """Convolution with the weight exp(L) · w / ‖w‖, one norm and one L per output channel.

    Args:
        kernel: odd; the padding keeps the resolution at stride 1.
        mask: zeros and ones of the weight's shape, taken into w before its norm; None: no mask.
    """

    mask: Tensor | None

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        mask: Tensor | None = None,
    ):
        super().__init__(
            channels_in,
            channels_out,
            kernel,
            stride=stride,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            groups=groups,
            bias=bias,
        )
        self.register_buffer("mask", mask, persistent=False)
        _, norm = self._masked()
        self.log_weight_norm = nn.Parameter(torch.log(norm.detach() + 1e-2))

    def _masked(self) -> tuple[Tensor, Tensor]:
        """w under its mask, and the norm of each output channel, (out, 1, 1, 1)."""
        weight = self.weight if self.mask is None else self.weight * self.mask
        return weight, torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True)

    def effective_weight(self) -> Tensor:
        """The weight that the convolution uses, (out, in / groups, k, k)."""
        weight, norm = self._masked()
        return weight * (self.log_weight_norm.exp() / (norm + 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        return convolve(self, x, self.effective_weight())


class DataInitializedConv2d(NormalizedConv2d):
    """Normalised convolution that can set its scale and bias from the data that it sees: energy networks, architecture `res_elu`."""

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Choose L and the bias so that each output channel has mean 0 and standard deviation 0.2 on the batch `x` (B, in, H, W).

        The moments are those of the batches of all processes together. Without a bias only the standard deviation is set.
        """
        weight, norm = self._masked()
        out = self._conv_forward(x, weight / (norm + 1e-5), None)
        count = out[:, 0].numel() * distributed.processes()
        mean = distributed.mean(out.mean(dim=(0, 2, 3)))
        squares = distributed.mean((out - mean[:, None, None]).square().sum(dim=(0, 2, 3))) * distributed.processes()
        scale = (squares / (count - 1)).sqrt() / INITIAL_STD
        self.log_weight_norm.copy_(-torch.log(scale + 1e-5)[:, None, None, None])
        if self.bias is not None:
            self.bias.copy_(-mean / (scale + 1e-5))


@contextlib.contextmanager
def data_initialization(module: nn.Module) -> Iterator[None]:
    """Within this context every `DataInitializedConv2d` of `module` sets itself by what it sees before it computes.

    So one pass sets all of them in the order of the pass, each on the outputs of those that are set already.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, DataInitializedConv2d)]
    handles = [layer.register_forward_pre_hook(lambda layer, inputs: layer.initialize(inputs[0])) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class PlainConv2d(nn.Conv2d):
    """Convolution without bias or weight normalisation, inside the inverted residuals."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, groups: int = 1):
        super().__init__(
            channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
        )

    def effective_weight(self) -> Tensor:
        """The weight that the convolution uses, (out, in / groups, k, k)."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        return convolve(self, x, self.weight)


def convolution_weights(module: nn.Module) -> list[Callable[[], Tensor]]:
    """For each convolution of `module` the function that returns the weight that it uses now; for the spectral regulariser."""
    return [layer.effective_weight for layer in module.modules() if isinstance(layer, NormalizedConv2d | PlainConv2d)]


_RECOMPUTING: ContextVar[bool] = ContextVar("recomputing", default=False)


@contextlib.contextmanager
def _recomputing() -> Iterator[None]:
    token = _RECOMPUTING.set(True)
    try:
        yield
    finally:
        _RECOMPUTING.reset(token)


def recomputation() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of a computation and of its repetition in the backward pass, as torch's checkpointing asks for them.

    In the repetition batch norms leave their running statistics alone: they have counted the batch already.
    """
    return contextlib.nullcontext(), _recomputing()


class BatchNorm(nn.BatchNorm2d):
    """Batch norm with the NVAE's momentum of 0.05; in training over the batches of all processes together.

    torch's own synchronised batch norm refuses tensors on the CPU.
    """

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-5, momentum=0.05)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), same shape; in training every process must give as many images."""
        again = self.training and _RECOMPUTING.get()
        if not self.training or distributed.processes() == 1:
            if again:  # torch wants to save the same tensors as the first time, the statistics among them
                return F.batch_norm(
                    x, self.running_mean, self.running_var, self.weight, self.bias, True, momentum=0.0, eps=self.eps
                )
            return super().forward(x)
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        own_mean = wide.mean(dim=(0, 2, 3))
        own_variance = (wide - own_mean[:, None, None]).square().mean(dim=(0, 2, 3))
        means, variances = distributed.gather(torch.stack([own_mean, own_variance])).unbind(1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        if not again:
            self._update_statistics(mean.detach(), variance.detach(), x[:, 0].numel() * distributed.processes())
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul((self.bias - mean * scale)[:, None, None], wide, scale[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _update_statistics(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert (
            self.running_mean is not None
            and self.running_var is not None
            and self.num_batches_tracked is not None
            and self.momentum is not None
        )
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)


class BatchNormSwish(BatchNorm):
    """Batch norm, then swish."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), same shape."""
        return F.silu(super().forward(x))


class SqueezeExcitation(nn.Module):
    """Gates each channel by a function of all channels' means."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(channels // 16, 4)
        self.gate = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), same shape."""
        return x * self.gate(x.mean(dim=(2, 3)))[:, :, None, None]
