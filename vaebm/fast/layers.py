"""Layers with constant weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from vaebm.nvae.layers import NormalizedConv2d, PlainConv2d, SqueezeExcitation, pointwise
from vaebm.system.precision import rounding


class Layer(ABC):
    """(B, in, H, W) → (B, out, H', W'), and its gradient; both without autograd's record."""

    in_place = False
    """Whether `backward` writes over the gradient that it is given."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The output, and what `backward` needs to be kept."""

    @abstractmethod
    def backward(self, gradient: Tensor, shape: torch.Size, kept: Sequence[Tensor]) -> Tensor:
        """Gradient of an input of this shape from that of the output."""

    def tensors(self) -> list[Tensor]:
        """The constants that a pass reads, once the layer is ready."""
        return []


class _Branch(torch.autograd.Function):
    """Layers one after the other as one operation, which keeps no more than they ask for and goes back through them in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Sequence[Layer]) -> Tensor:
        ctx.layers, ctx.dtype, ctx.shapes, ctx.counts = layers, x.dtype, [], []
        kept: list[Tensor] = []
        for layer in layers:
            ctx.shapes.append(x.shape)
            x, needed = layer.forward(x)
            ctx.counts.append(len(needed))
            kept += needed
        ctx.save_for_backward(*kept)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # The first gradient is not the branch's own: a skip connection reads it, too.
        gradient = gradients[0].clone() if ctx.layers[-1].in_place else gradients[0]
        kept, end = ctx.saved_tensors, len(ctx.saved_tensors)
        for layer, shape, count in zip(reversed(ctx.layers), reversed(ctx.shapes), reversed(ctx.counts), strict=True):
            gradient = layer.backward(gradient, shape, kept[end - count : end])
            end -= count
        return gradient.to(ctx.dtype), None


def through(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """(B, in, H, W) → (B, out, H', W'), with a gradient in x alone."""
    if not torch.is_grad_enabled():
        for layer in layers:
            x = layer.forward(x)[0]  # what would be kept is free at once
        return x
    return cast(Tensor, _Branch.apply(x, layers))  # type: ignore[no-untyped-call]  # torch declares none


class Convolution(Layer):
    """A convolution with constant weight and bias, to be changed by what stands beside it and then made `ready`.

    Args:
        weight: (out, in / groups, k, k), double precision.
        bias: (out,), double precision.
        stride, padding, dilation, groups: as in torch.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, *, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
    ):
        self.weight, self.bias = weight, bias
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self._turned: Tensor | None = None

    @classmethod
    def of(cls, layer: NormalizedConv2d | PlainConv2d) -> Convolution:
        """The layer as it is now, in double precision."""
        weight = layer.effective_weight().detach().double()
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
        dilation = layer.dilation[0]
        return cls(
            weight,
            bias,
            stride=layer.stride[0],
            padding=dilation * (layer.kernel_size[0] // 2),
            dilation=dilation,
            groups=layer.groups,
        )

    @property
    def pointwise(self) -> bool:
        """Whether an output pixel is a function of the input pixel in its place: then it may change places with an upsampling."""
        return self.weight.shape[-1] == 1 and self.stride == 1 and self.groups == 1

    @property
    def depthwise(self) -> bool:
        """Whether an output channel is a function of the input channel in its place, at full resolution."""
        return self.weight.shape[1] == 1 and self.stride == 1 and self.groups == len(self.weight)

    @property
    def square(self) -> bool:
        """Whether an output pixel is a function of the input pixels around its place, over all channels, at full resolution."""
        return self.stride == 1 and self.groups == 1 and self.weight.shape[-1] % 2 == 1

    def then(self, affine: Affine) -> None:
        """Take in what follows."""
        self.weight, self.bias = (
            self.weight * affine.scale[:, None, None, None],
            self.bias * affine.scale + affine.shift,
        )

    def after(self, affine: Affine) -> None:
        """Take in what stands before, which a padding must not come between: for pointwise convolutions alone."""
        self.weight, self.bias = (
            self.weight * affine.scale[:, None, None],
            self.bias + self.weight[:, :, 0, 0] @ affine.shift,
        )

    def pooled(self) -> Convolution:
        """Followed by a 2×2 mean pool: a larger kernel with stride 2, so that nothing of the full resolution is left."""
        weight = F.conv2d(self.weight.flatten(0, 1)[:, None], self.weight.new_full((1, 1, 2, 2), 0.25), padding=1)
        self.weight, self.stride = weight.unflatten(0, self.weight.shape[:2])[:, :, 0], 2
        return self

    def scaled(self, factor: float) -> None:
        """Multiply what comes out."""
        self.weight, self.bias = self.weight * factor, self.bias * factor

    def ready(self, like: Tensor) -> Convolution:
        """Of the type and on the device of `like`, in the layout in which convolutions are fastest."""
        self.weight, self.bias = (
            self.weight.to(like, copy=True).contiguous(memory_format=torch.channels_last),
            self.bias.to(like, copy=True),
        )
        if self.depthwise or self.pointwise or (self.square and rounds(like)):
            # Their adjoints are convolutions of the same kind, and faster as such than by the library's backward pass: on a CPU the
            # depthwise ones by 1.3 to 2.7 times; on a GPU all of them, k×k ones where their factors are rounded.
            turned = (self.weight if self.depthwise else self.weight.transpose(0, 1)).flip(2, 3)
            self._turned = turned.contiguous(memory_format=torch.channels_last)
        return self

    def tensors(self) -> list[Tensor]:
        """All that a pass reads, once it is `ready`."""
        return [self.weight, self.bias] + ([] if self._turned is None else [self._turned])

    def __call__(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W'), of the weight's type whatever that of x."""
        return through([self], x)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The weights are constant, so that nothing of the input is kept."""
        x = x.to(self.weight.dtype)
        if x.is_cuda and self.pointwise:
            return pointwise(x, self.weight, self.bias), ()
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups), ()

    def backward(self, gradient: Tensor, shape: torch.Size, kept: Sequence[Tensor]) -> Tensor:
        """The adjoint."""
        if self._turned is not None:
            if gradient.is_cuda and self.pointwise:
                return pointwise(gradient, self._turned, None)
            return F.conv2d(gradient, self._turned, None, 1, self.padding, self.dilation, self.groups)
        return conv2d_input(shape, self.weight, gradient, self.stride, self.padding, self.dilation, self.groups)


def rounds(like: Tensor) -> bool:
    """Whether a GPU rounds the factors of convolutions of such tensors to fewer bits than single precision has, as the settings are now."""
    return like.is_cuda and (like.dtype == torch.bfloat16 or (like.dtype == torch.float32 and "tf32" in rounding()))


class Affine(Layer):
    """x · scale + shift, of each channel (C,), double precision until it is made `ready`."""

    in_place = True

    def __init__(self, layer: nn.BatchNorm2d):
        assert layer.running_mean is not None and layer.running_var is not None
        deviation = torch.sqrt(layer.running_var.double() + layer.eps)
        self.scale = layer.weight.detach().double() / deviation
        self.shift = layer.bias.detach().double() - layer.running_mean.double() * self.scale

    def ready(self, like: Tensor) -> Affine:
        """Of the type and on the device of `like`."""
        self.scale, self.shift = self.scale.to(like)[:, None, None], self.shift.to(like)[:, None, None]
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(B, C, H, W), same shape."""
        return torch.addcmul(self.shift, x, self.scale), ()

    def backward(self, gradient: Tensor, shape: torch.Size, kept: Sequence[Tensor]) -> Tensor:
        """The same scale."""
        return gradient.mul_(self.scale)

    def tensors(self) -> list[Tensor]:
        """Scale and shift."""
        return [self.scale, self.shift]


class Swish(Layer):
    """x · sigmoid(x)."""

    in_place = True

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Any shape."""
        return F.silu(x), (x,)

    def backward(self, gradient: Tensor, shape: torch.Size, kept: Sequence[Tensor]) -> Tensor:
        """σ(x) (1 + x (1 − σ(x))) of it."""
        return cast(Tensor, torch.ops.aten.silu_backward.grad_input(gradient, kept[0], grad_input=gradient))


class ELU(Layer):
    """x, below 0 exp(x) − 1."""

    in_place = True

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Any shape."""
        return F.elu(x), (x,)

    def backward(self, gradient: Tensor, shape: torch.Size, kept: Sequence[Tensor]) -> Tensor:
        """Of it all, below 0 exp(x)."""
        return cast(
            Tensor, torch.ops.aten.elu_backward.grad_input(gradient, 1.0, 1.0, 1.0, False, kept[0], grad_input=gradient)
        )


class Upsample(Layer):
    """Every pixel four times: (B, C, H, W) → (B, C, 2H, 2W)."""

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Nearest neighbours."""
        return F.interpolate(x, scale_factor=2.0, mode="nearest"), ()

    def backward(self, gradient: Tensor, shape: torch.Size, kept: Sequence[Tensor]) -> Tensor:
        """Sums of 2×2."""
        return F.avg_pool2d(gradient, 2, divisor_override=1)


class Gate(Layer):
    """Squeeze and excitation: x times a function of its channels' means, in single precision or more.

    Args:
        layer: read once.
    """

    def __init__(self, layer: SqueezeExcitation):
        narrow, widen = cast(nn.Linear, layer.gate[0]), cast(nn.Linear, layer.gate[2])
        self.narrow, self.widen = (
            (linear.weight.detach().clone(), linear.bias.detach().clone()) for linear in (narrow, widen)
        )
        self.scale = 1.0

    def scaled(self, factor: float) -> None:
        """Multiply what comes out."""
        self.scale *= factor

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(B, C, H, W), same shape; keeps the input, the hidden units and the gate."""
        hidden = F.linear(x.mean(dim=(2, 3), dtype=self.narrow[0].dtype), *self.narrow).relu_()
        gate = F.linear(hidden, *self.widen).sigmoid_()
        return x * self._factor(gate, x), (x, hidden, gate)

    def backward(self, gradient: Tensor, shape: torch.Size, kept: Sequence[Tensor]) -> Tensor:
        """Of the product, and of the means."""
        x, hidden, gate = kept
        slope = self.scale * (gradient * x).sum(dim=(2, 3), dtype=gate.dtype) * gate * (1.0 - gate)
        mean = ((slope @ self.widen[0]) * (hidden > 0)) @ self.narrow[0] / x[0, 0].numel()
        return torch.addcmul(mean[:, :, None, None].to(x.dtype), gradient, self._factor(gate, x))

    def tensors(self) -> list[Tensor]:
        """Weights and biases."""
        return [*self.narrow, *self.widen]

    def _factor(self, gate: Tensor, x: Tensor) -> Tensor:
        return (self.scale * gate)[:, :, None, None].to(x.dtype)
