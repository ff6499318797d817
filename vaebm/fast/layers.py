"""Layers with constant weights, and how those of a branch are folded into as few as they can be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from vaebm.nvae.layers import BatchNorm, BatchNormSwish, NormalizedConv2d, PlainConv2d, pointwise
from vaebm.precision import rounding

Layer = Callable[[Tensor], Tensor]
"""(B, in, H, W) → (B, out, H', W')."""


class _FrozenConvolution(torch.autograd.Function):
    """A convolution with constant weights: for its backward pass it keeps nothing but the shape of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, convolution: Convolution) -> Tensor:
        ctx.convolution, ctx.shape, ctx.dtype = convolution, x.shape, x.dtype
        return convolution.apply(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.convolution.adjoint(gradients[0], ctx.shape).to(ctx.dtype), None


class Convolution:
    """A convolution with constant weight and bias, to be changed by what stands beside it and then made `ready`.

    Args:
        weight: (out, in / groups, k, k), double precision.
        bias: (out,), double precision.
        stride, padding, dilation, groups: as in torch.
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1):
        self.weight, self.bias = weight, bias
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self._turned: Tensor | None = None

    @classmethod
    def of(cls, layer: NormalizedConv2d | PlainConv2d) -> Convolution:
        """The layer as it is now, in double precision."""
        weight = layer.effective_weight().detach().double()
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
        dilation = layer.dilation[0]
        return cls(weight, bias, stride=layer.stride[0], padding=dilation * (layer.kernel_size[0] // 2), dilation=dilation, groups=layer.groups)

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
        self.weight, self.bias = self.weight * affine.scale[:, None, None, None], self.bias * affine.scale + affine.shift

    def after(self, affine: Affine) -> None:
        """Take in what stands before, which a padding must not come between: for pointwise convolutions alone."""
        self.weight, self.bias = self.weight * affine.scale[:, None, None], self.bias + self.weight[:, :, 0, 0] @ affine.shift

    def pooled(self) -> Convolution:
        """Followed by a 2×2 mean pool: a larger kernel with stride 2, so that nothing of the full resolution is left."""
        weight = F.conv2d(self.weight.flatten(0, 1)[:, None], self.weight.new_full((1, 1, 2, 2), 0.25), padding=1)
        self.weight, self.stride = weight.unflatten(0, self.weight.shape[:2])[:, :, 0], 2
        return self

    def ready(self, like: Tensor) -> Convolution:
        """Of the type and on the device of `like`, in the layout in which convolutions are fastest."""
        self.weight, self.bias = self.weight.to(like, copy=True).contiguous(memory_format=torch.channels_last), self.bias.to(like, copy=True)
        if self.depthwise or self.pointwise or (self.square and rounds(like)):
            # Their adjoints are convolutions of the same kind, and faster as such than by the library's backward pass: on a CPU the
            # depthwise ones by 1.3 to 2.7 times; on a GPU all of them, k×k ones where their factors are rounded.
            turned = (self.weight if self.depthwise else self.weight.transpose(0, 1)).flip(2, 3)
            self._turned = turned.contiguous(memory_format=torch.channels_last)
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W'), of the weight's type whatever that of x."""
        return _FrozenConvolution.apply(x, self) if torch.is_grad_enabled() else self.apply(x)  # type: ignore[no-untyped-call]  # torch declares none

    def apply(self, x: Tensor) -> Tensor:
        """As a call, without a gradient."""
        x = x.to(self.weight.dtype)
        if x.is_cuda and self.pointwise:
            return pointwise(x, self.weight, self.bias)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def tensors(self) -> list[Tensor]:
        """All that a pass reads, once it is `ready`."""
        return [self.weight, self.bias] + ([] if self._turned is None else [self._turned])

    def adjoint(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """Gradient of an input of this shape, (B, in, H, W), from that of the output."""
        if self._turned is not None:
            if gradient.is_cuda and self.pointwise:
                return pointwise(gradient, self._turned, None)
            return F.conv2d(gradient, self._turned, None, 1, self.padding, self.dilation, self.groups)
        return conv2d_input(shape, self.weight, gradient, self.stride, self.padding, self.dilation, self.groups)


def rounds(like: Tensor) -> bool:
    """Whether a GPU rounds the factors of convolutions of such tensors to fewer bits than single precision has, as the settings are now."""
    return like.is_cuda and (like.dtype == torch.bfloat16 or (like.dtype == torch.float32 and "tf32" in rounding()))


class Affine:
    """x · scale + shift, of each channel (C,), double precision until it is made `ready`."""

    def __init__(self, layer: nn.BatchNorm2d):
        assert layer.running_mean is not None and layer.running_var is not None
        deviation = torch.sqrt(layer.running_var.double() + layer.eps)
        self.scale = layer.weight.detach().double() / deviation
        self.shift = layer.bias.detach().double() - layer.running_mean.double() * self.scale

    def ready(self, like: Tensor) -> Affine:
        """Of the type and on the device of `like`."""
        self.scale, self.shift = self.scale.to(like)[:, None, None], self.shift.to(like)[:, None, None]
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W), same shape."""
        return torch.addcmul(self.shift, x, self.scale)


def upsample(x: Tensor) -> Tensor:
    """Every pixel four times: (B, C, H, W) → (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def primitive(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The layers of nested sequences, one after the other."""
    for module in modules:
        if isinstance(module, nn.Sequential):
            yield from primitive(module)
        else:
            yield module


def fold(modules: Iterable[nn.Module], like: Tensor) -> list[Layer]:
    """Layers one after the other, in as few as they can be: affine maps go into convolutions, upsamplings behind what acts on pixels alone.

    Raises:
        TypeError: a layer that no branch of the decoder has.
    """
    layers: list[Layer] = []
    up = False
    for module in primitive(modules):
        if isinstance(module, nn.Upsample):
            up = True
        elif isinstance(module, NormalizedConv2d | PlainConv2d):
            convolution = Convolution.of(module)
            if convolution.pointwise:
                if layers and isinstance(affine := layers[-1], Affine):
                    convolution.after(affine)
                    layers.pop()
            elif up:
                layers.append(upsample)
                up = False
            layers.append(convolution)
        elif isinstance(module, BatchNorm):
            if layers and isinstance(before := layers[-1], Convolution):
                before.then(Affine(module))
            else:
                layers.append(Affine(module))
            if isinstance(module, BatchNormSwish):
                layers.append(F.silu)
        elif isinstance(module, nn.ELU):
            layers.append(F.elu)
        else:
            raise TypeError(f"expected a layer of the decoder, found {type(module).__name__}")
    if up:
        layers.append(upsample)
    layers = [layer.ready(like) if isinstance(layer, Affine | Convolution) else layer for layer in layers]
    return fuse(layers) if like.is_cuda and like.dtype != torch.float64 and find_spec("triton") else layers


def fuse(layers: Sequence[Layer]) -> list[Layer]:
    """Layers on an NVIDIA GPU, with swish, depthwise convolution and swish as one."""
    from vaebm.fast.depthwise import KERNEL, SwishDepthwiseSwish, compiles  # needs Triton, which torch brings where it serves NVIDIA GPUs

    fused: list[Layer] = []
    rest = list(layers)
    while rest:
        first, middle, last = (*rest[:3], None, None)[:3]
        if first is F.silu and isinstance(middle, Convolution) and middle.depthwise and middle.weight.shape[-1] == KERNEL and last is F.silu and compiles():
            fused.append(SwishDepthwiseSwish(middle.weight, middle.bias))
            del rest[:3]
        else:
            fused.append(rest.pop(0))
    return fused
