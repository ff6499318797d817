"""Layers with constant weights and hand-written backward passes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vaebm.nvae.layers import FEW_VALUES, NormalizedConv2d, PlainConv2d, SqueezeExcitation, pointwise
from vaebm.system.precision import float32_precision

FEW_CHANNELS = 3
"""Input channels up to which the adjoint of a k×k convolution on a CPU is a matrix product and a sum over the k² taps.

The library's convolution to so few channels takes 1.5 to 3 times as long.
"""


class Tape(NamedTuple):
    """What a backward pass needs: a layer appends in the forward pass, and takes the last entries in the backward."""

    tensors: list[Tensor]
    shapes: list[torch.Size]


class Layer(ABC):
    """A map (B, in, H, W) → (B, out, H', W') and its gradient, both outside autograd."""

    in_place = False
    """Whether `backward` overwrites the gradient of the output."""

    @abstractmethod
    def forward(self, x: Tensor, tape: Tape | None) -> Tensor:
        """The output; `tape` is None where there is no backward pass."""

    @abstractmethod
    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        """Gradient of the input from that of the output."""

    def tensors(self) -> list[Tensor]:
        """Constants that a pass reads, after `finalize`."""
        return [value for value in vars(self).values() if isinstance(value, Tensor)]


def apply_layers(layers: Sequence[Layer], x: Tensor, tape: Tape | None) -> Tensor:
    """Apply layers in order, (B, in, H, W) → (B, out, H', W'), outside autograd."""
    for layer in layers:
        x = layer.forward(x, tape)
    return x


def backward_layers(layers: Sequence[Layer], gradient: Tensor, tape: Tape) -> Tensor:
    """Gradient of the input of layers in order, as a new tensor if there are any; `gradient` stays as it is."""
    if layers and layers[-1].in_place:
        gradient = gradient.clone(memory_format=torch.channels_last)
    for layer in reversed(layers):
        gradient = layer.backward(gradient, tape)
    return gradient


class _Layers(torch.autograd.Function):
    """Layers in order as one operation of autograd, with a backward pass in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Sequence[Layer]) -> Tensor:
        tape = Tape([], [])
        ctx.layers, ctx.dtype = layers, x.dtype
        x = apply_layers(layers, x, tape)
        ctx.save_for_backward(*tape.tensors)
        ctx.shapes = tape.shapes
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        tape = Tape(list(ctx.saved_tensors), list(ctx.shapes))
        return backward_layers(ctx.layers, gradients[0], tape).to(ctx.dtype), None


def run_layers(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """Apply layers in order, (B, in, H, W) → (B, out, H', W'); only x has a gradient."""
    if torch.is_grad_enabled() and x.requires_grad and layers:
        return _Layers.apply(x, layers)  # type: ignore[no-untyped-call]  # torch declares none
    return apply_layers(layers, x, None)


class Residual(Layer):
    """branch(x) + scale · skip(x), where a skip without layers is the identity."""

    def __init__(self, branch: Sequence[Layer], skip: Sequence[Layer] = (), scale: float = 1.0):
        self.branch, self.skip, self.scale = branch, skip, scale

    def forward(self, x: Tensor, tape: Tape | None) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        skip = apply_layers(self.skip, x, tape)
        return torch.add(apply_layers(self.branch, x, tape), skip, alpha=self.scale)

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        """Sum of both gradients."""
        found = backward_layers(self.branch, gradient, tape)
        return found.add_(backward_layers(self.skip, gradient, tape), alpha=self.scale)

    def tensors(self) -> list[Tensor]:
        """Those of all layers."""
        return [tensor for layer in (*self.branch, *self.skip) for tensor in layer.tensors()]


class Convolution(Layer):
    """A convolution with constant weight and bias, in double precision until `finalize`, for folding."""

    def __init__(self, layer: NormalizedConv2d | PlainConv2d):
        weight = layer.effective_weight().detach().double()
        self.weight = weight
        self.bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
        self.stride, self.dilation, self.groups = layer.stride[0], layer.dilation[0], layer.groups
        self.padding = self.dilation * (layer.kernel_size[0] // 2)
        self.adjoint_weight: Tensor | None = None
        self.taps: Tensor | None = None

    @property
    def pointwise(self) -> bool:
        """1×1 at stride 1: commutes with an upsampling."""
        return self.weight.shape[-1] == 1 and self.stride == 1 and self.groups == 1

    @property
    def depthwise(self) -> bool:
        """One input channel per output channel, at stride 1."""
        return self.weight.shape[1] == 1 and self.stride == 1 and self.groups == len(self.weight)

    def fold_following(self, affine: Affine) -> None:
        """Fold in an affine map of the output."""
        self.weight = self.weight * affine.scale[:, None, None, None]
        self.bias = self.bias * affine.scale + affine.shift

    def fold_preceding(self, affine: Affine) -> None:
        """Fold in an affine map of the input; pointwise convolutions only, which have no padding."""
        self.bias = self.bias + self.weight[:, :, 0, 0] @ affine.shift
        self.weight = self.weight * affine.scale[:, None, None]

    def pooled(self) -> Convolution:
        """Fold in a following 2×2 mean pool: a larger kernel with stride 2."""
        self.weight, self.stride = F.avg_pool2d(F.pad(self.weight, (1, 1, 1, 1)), 2, stride=1), 2
        return self

    def scaled(self, factor: float) -> None:
        """Multiply the output by a factor."""
        self.weight, self.bias = self.weight * factor, self.bias * factor

    def finalize(self, like: Tensor) -> Convolution:
        """Convert to the type and device of `like`, in the layout channels_last."""
        self.weight = self.weight.to(like, copy=True).contiguous(memory_format=torch.channels_last)
        self.bias = self.bias.to(like, copy=True)
        odd = self.stride == 1 and self.groups == 1 and self.weight.shape[-1] % 2 == 1
        rounded = like.dtype == torch.bfloat16 or (like.dtype == torch.float32 and "tf32" in float32_precision())
        if self.depthwise or self.pointwise or (odd and (rounded or not like.is_cuda)):
            # The adjoint is a convolution, faster than the library's backward pass, except for k×k in full precision
            # on a GPU: on a CPU depthwise by 1.3 to 2.7 times, k×k by 1.02 to 1.2 times.
            if not like.is_cuda and not self.pointwise and self.groups == 1 and self.weight.shape[1] <= FEW_CHANNELS:
                self.taps = self.weight.permute(1, 2, 3, 0).flatten(0, 2).contiguous()  # (in · k · k, out)
            else:
                flipped = (self.weight if self.depthwise else self.weight.transpose(0, 1)).flip(2, 3)
                self.adjoint_weight = flipped.contiguous(memory_format=torch.channels_last)
        return self

    def forward(self, x: Tensor, tape: Tape | None) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        x = x.to(self.weight.dtype)
        if tape is not None and self.adjoint_weight is None and self.taps is None:
            tape.shapes.append(x.shape)
        if self.pointwise and (x.is_cuda or x.numel() <= FEW_VALUES):
            return pointwise(x, self.weight, self.bias)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        """The adjoint convolution."""
        if self.taps is not None:
            columns = self.taps @ gradient.flatten(2)
            return F.fold(columns, gradient.shape[2:], self.weight.shape[2:], self.dilation, self.padding)
        if self.adjoint_weight is not None:
            if self.pointwise and (gradient.is_cuda or gradient.numel() <= FEW_VALUES):
                return pointwise(gradient, self.adjoint_weight, None)
            return F.conv2d(gradient, self.adjoint_weight, None, 1, self.padding, self.dilation, self.groups)
        # On a CPU conv_transpose2d takes 0.5 to 0.9 times torch.nn.grad.conv2d_input's time. `output_padding`: rows and
        # columns of odd sizes that no window reaches.
        reach = self.dilation * (self.weight.shape[-1] - 1) + 1 - 2 * self.padding
        sizes = zip(tape.shapes.pop()[2:], gradient.shape[2:], strict=True)
        output_padding = [size - (out - 1) * self.stride - reach for size, out in sizes]
        return F.conv_transpose2d(
            gradient, self.weight, None, self.stride, self.padding, output_padding, self.groups, self.dilation
        )


class Affine(Layer):
    """Batch norm in evaluation mode: x · scale + shift, each (C,), in double precision before `finalize`."""

    in_place = True

    def __init__(self, layer: nn.BatchNorm2d):
        assert layer.running_mean is not None and layer.running_var is not None
        deviation = torch.sqrt(layer.running_var.double() + layer.eps)
        self.scale = layer.weight.detach().double() / deviation
        self.shift = layer.bias.detach().double() - layer.running_mean.double() * self.scale

    def finalize(self, like: Tensor) -> Affine:
        """Convert to the type and device of `like`."""
        self.scale, self.shift = self.scale.to(like)[:, None, None], self.shift.to(like)[:, None, None]
        return self

    def forward(self, x: Tensor, tape: Tape | None) -> Tensor:
        """(B, C, H, W), same shape."""
        return torch.addcmul(self.shift, x, self.scale)

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        """Multiplies by the scale."""
        return gradient.mul_(self.scale)


class Swish(Layer):
    """swish(x) = x · σ(x)."""

    in_place = True

    def forward(self, x: Tensor, tape: Tape | None) -> Tensor:
        """Any shape."""
        if tape is not None:
            tape.tensors.append(x)
        return F.silu(x)

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        """Multiplies by swish'(x) = σ(x) (1 + x (1 − σ(x)))."""
        return torch.ops.aten.silu_backward.grad_input(gradient, tape.tensors.pop(), grad_input=gradient)


class ELU(Layer):
    """ELU(x): x, and exp(x) − 1 below 0."""

    in_place = True

    def forward(self, x: Tensor, tape: Tape | None) -> Tensor:
        """Any shape."""
        if tape is not None:
            tape.tensors.append(x)
        return F.elu(x)

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        """Multiplies by ELU'(x): 1, and exp(x) below 0."""
        x = tape.tensors.pop()
        return torch.ops.aten.elu_backward.grad_input(gradient, 1.0, 1.0, 1.0, False, x, grad_input=gradient)


class Upsample(Layer):
    """Nearest-neighbour upsampling: (B, C, H, W) → (B, C, 2H, 2W)."""

    def forward(self, x: Tensor, tape: Tape | None) -> Tensor:
        """Repeats each pixel four times."""
        return F.interpolate(x, scale_factor=2.0, mode="nearest")

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        """Sums over 2×2 pixels."""
        return F.avg_pool2d(gradient, 2, divisor_override=1)


class BilinearUpsample(Layer):
    """Bilinear interpolation between the corners' pixels: (B, C, H, W) → (B, C, 2H, 2W)."""

    def forward(self, x: Tensor, tape: Tape | None) -> Tensor:
        """Keeps the corners."""
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        """The adjoint of the interpolation."""
        batch, channels, *size = gradient.shape
        shape = [batch, channels, *(length // 2 for length in size)]
        return torch.ops.aten.upsample_bilinear2d_backward(gradient, size, shape, True, 2.0, 2.0)


class MeanPool(Layer):
    """2×2 mean pool: (B, C, H, W) → (B, C, ⌊H/2⌋, ⌊W/2⌋)."""

    def forward(self, x: Tensor, tape: Tape | None) -> Tensor:
        """Drops the last row or column of an odd size."""
        if tape is not None:
            tape.shapes.append(x.shape)
        return F.avg_pool2d(x, 2)

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        """A quarter for each pixel."""
        like = torch.empty(
            tape.shapes.pop(), dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last
        )
        return torch.ops.aten.avg_pool2d_backward(gradient, like, [2, 2], [2, 2], [0, 0], False, True, None)


class ChannelGate(Layer):
    """Squeeze and excitation, x · gate(mean(x) / scale), with the gate in the layer's type.

    The layer before multiplies its output by `scale`, so the features are scaled, and the gate is not.
    """

    def __init__(self, layer: SqueezeExcitation, scale: float):
        narrow, widen = cast(nn.Linear, layer.gate[0]), cast(nn.Linear, layer.gate[2])
        self.narrow = narrow.weight.detach() / scale, narrow.bias.detach().clone()
        self.widen = widen.weight.detach().clone(), widen.bias.detach().clone()

    def forward(self, x: Tensor, tape: Tape | None) -> Tensor:
        """(B, C, H, W), same shape."""
        hidden = F.linear(x.mean(dim=(2, 3), dtype=self.narrow[0].dtype), *self.narrow).relu_()
        gate = F.linear(hidden, *self.widen).sigmoid_()
        if tape is not None:
            tape.tensors.extend((x, hidden, gate))
        return x * gate[:, :, None, None].to(x.dtype)

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        """Gradient through the product and through the means."""
        gate, hidden, x = (tape.tensors.pop() for _ in range(3))
        slope = torch.ops.aten.sigmoid_backward((gradient * x).sum(dim=(2, 3), dtype=gate.dtype), gate)
        slope = torch.ops.aten.threshold_backward(slope @ self.widen[0], hidden, 0.0)
        mean = slope @ self.narrow[0] / x[0, 0].numel()
        return torch.addcmul(mean[:, :, None, None].to(x.dtype), gradient, gate[:, :, None, None].to(x.dtype))

    def tensors(self) -> list[Tensor]:
        """Weights and biases."""
        return [*self.narrow, *self.widen]
