"""Layers of the NVAE and the energy network (NVAE section 3.3 and appendix A)."""

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

FEW_VALUES = 2**15
"""Values of an input up to which a 1×1 convolution on a CPU is a matrix product."""


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1×1 convolution (B, in, H, W) → (B, out, H, W) as a matrix product; no copy in the layout channels_last."""
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution at stride 1 whose gradients are convolutions, too; on a GPU that of the input alone."""

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
            _depthwise_weight_gradient(x, weight, gradient) if of_weight else None,
        )


def _depthwise_weight_gradient(x: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
    """On a CPU each map of the gradient is a kernel for its map of x, a few images at a time for the cache."""
    padding, groups = weight.shape[-1] // 2, len(weight)
    if x.is_cuda:
        return conv2d_weight(x, weight.shape, gradient, padding=padding, groups=groups)
    images, total = max(2**19 // x[0].numel(), 1), torch.zeros_like(weight)
    for maps, kernels in zip(x.split(images), gradient.split(images), strict=True):
        maps, kernels = maps.flatten(0, 1)[None], kernels.flatten(0, 1)[:, None]
        each = F.conv2d(maps, kernels, padding=padding, groups=len(kernels))
        total += each.view(-1, *weight.shape).sum(0)
    return total


def _library_is_slower(x: Tensor, weight: Tensor) -> bool:
    """Whether the library's gradient of a depthwise weight on a CPU takes longer than `_Depthwise`'s."""
    single = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return single and weight.requires_grad and weight.shape[-1] == 5 and torch.backends.mkldnn.is_available()


def convolve(layer: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    """Apply a layer's convolution with the given weight: (B, in, H, W) → (B, out, H', W').

    On a GPU, 1×1 convolutions are matrix products, and depthwise ones use `_Depthwise`. The library's kernels take up
    to six times as long in the layout channels_last (docs/measurements/speed-gpu.md).

    On a CPU, 1×1 convolutions of few values are matrix products: the library takes up to 1.8 times as long, and 0.9
    times for many values. Depthwise 5×5 convolutions of many values use `_Depthwise`: in training the library takes 1.2
    to 2 times as long, and less for 3×3.
    """
    plain = layer.stride == (1, 1) and layer.dilation == (1, 1)
    few = x.is_cuda or x.numel() <= FEW_VALUES
    if few and plain and layer.kernel_size == (1, 1) and layer.groups == 1:
        return pointwise(x, weight, layer.bias)
    depthwise = plain and layer.groups == layer.in_channels == layer.out_channels and layer.bias is None
    if depthwise and (x.is_cuda or (not few and _library_is_slower(x, weight))):
        if x.is_cuda and torch.is_autocast_enabled("cuda"):
            x, weight = x.to(torch.get_autocast_dtype("cuda")), weight.to(torch.get_autocast_dtype("cuda"))
        return _Depthwise.apply(x, weight)  # type: ignore[no-untyped-call]  # torch declares none
    return layer._conv_forward(x, weight, layer.bias)


class NormalizedConv2d(nn.Conv2d):
    """Convolution with the weight exp(L) · w / ‖w‖, with one norm and one L per output channel (NVAE appendix A).

    Args:
        kernel: odd kernel size; padding keeps the resolution at stride 1.
        mask: zeros and ones of the weight's shape, multiplied into w before its norm; None: no mask.
        options: stride, groups and bias of nn.Conv2d.
    """

    mask: Tensor | None
    normalized: Tensor | None = None
    """The present normalised weight, where it was computed together with others (`nvae.flat_parameters`)."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        *,
        dilation: int = 1,
        mask: Tensor | None = None,
        **options: Any,
    ):
        padding = dilation * (kernel // 2)
        super().__init__(channels_in, channels_out, kernel, padding=padding, dilation=dilation, **options)
        self.register_buffer("mask", mask, persistent=False)
        _, norm = self._masked()
        self.log_weight_norm = nn.Parameter(torch.log(norm.detach() + 1e-2))

    def _masked(self) -> tuple[Tensor, Tensor]:
        """Masked w, and the norm of each output channel, (out, 1, 1, 1)."""
        weight = self.weight if self.mask is None else self.weight * self.mask
        return weight, torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True)

    def effective_weight(self) -> Tensor:
        """The normalised weight, (out, in / groups, k, k)."""
        if self.normalized is not None:
            return self.normalized
        weight, norm = self._masked()
        return weight * (self.log_weight_norm.exp() / (norm + 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        return convolve(self, x, self.effective_weight())


class DataInitializedConv2d(NormalizedConv2d):
    """Normalised convolution with data-dependent initialisation, in energy networks and the architecture `res_elu`."""

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set L and the bias so that each output channel has mean 0 and standard deviation 0.2 on `x` (B, in, H, W).

        Moments include the batches of all processes. Without a bias only the standard deviation is set.
        """
        weight, norm = self._masked()
        out = self._conv_forward(x, weight / (norm + 1e-5), None)
        count = out[:, 0].numel() * distributed.world_size()
        mean = distributed.mean(out.mean(dim=(0, 2, 3)))
        squares = distributed.mean((out - mean[:, None, None]).square().sum(dim=(0, 2, 3))) * distributed.world_size()
        scale = (squares / (count - 1)).sqrt() / 0.2
        self.log_weight_norm.copy_(-torch.log(scale + 1e-5)[:, None, None, None])
        if self.bias is not None:
            self.bias.copy_(-mean / (scale + 1e-5))


@contextlib.contextmanager
def data_initialization(module: nn.Module) -> Iterator[None]:
    """In this context each `DataInitializedConv2d` of `module` initialises itself on its input before it computes.

    One pass initialises all of them, each on the outputs of the layers before.
    """
    with contextlib.ExitStack() as hooks:
        for layer in module.modules():
            if isinstance(layer, DataInitializedConv2d):
                hook = layer.register_forward_pre_hook(lambda layer, inputs: layer.initialize(inputs[0]))
                hooks.enter_context(hook)
        yield


class PlainConv2d(nn.Conv2d):
    """Convolution without bias and weight normalisation, for inverted residuals."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, groups: int = 1):
        super().__init__(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)

    def effective_weight(self) -> Tensor:
        """The weight, (out, in / groups, k, k)."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        return convolve(self, x, self.weight)


def convolution_weights(module: nn.Module) -> list[Callable[[], Tensor]]:
    """Functions that return the present weight of each convolution of `module`, for the spectral regulariser."""
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
    """Contexts of a forward pass and of its recomputation, for torch's `checkpoint`.

    In the recomputation batch norms do not update their running statistics again.
    """
    return contextlib.nullcontext(), _recomputing()


class BatchNorm(nn.BatchNorm2d):
    """Batch norm with the NVAE's momentum of 0.05; in training over the batches of all processes.

    torch's synchronised batch norm does not support the CPU.
    """

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-5, momentum=0.05)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), same shape; in training all processes need equal batch sizes."""
        again = self.training and _RECOMPUTING.get()
        if not self.training or distributed.world_size() == 1:
            if again:  # checkpointing needs the same saved tensors, the statistics included
                statistics = self.running_mean, self.running_var
                return F.batch_norm(x, *statistics, self.weight, self.bias, True, momentum=0.0, eps=self.eps)
            return super().forward(x)
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        own_mean = wide.mean(dim=(0, 2, 3))
        own_variance = (wide - own_mean[:, None, None]).square().mean(dim=(0, 2, 3))
        means, variances = distributed.gather(torch.stack([own_mean, own_variance])).unbind(1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        if not again:
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None and self.momentum is not None
            count = x[:, 0].numel() * distributed.world_size()
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(variance.detach() * (count / (count - 1)), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul((self.bias - mean * scale)[:, None, None], wide, scale[:, None, None]).to(x.dtype)


class BatchNormSwish(BatchNorm):
    """Batch norm, then swish."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), same shape."""
        return F.silu(super().forward(x))


class _GatedSum(torch.autograd.Function):
    """skip + scale · x · σ(W₂ relu(W₁ mean(x) + b₁) + b₂) in ten passes over memory instead of eighteen."""

    @staticmethod
    def forward(ctx: Any, skip: Tensor, x: Tensor, scale: float, *parameters: Tensor) -> Tensor:
        narrow, bias, widen, offset = parameters
        mean = x.mean(dim=(2, 3))
        hidden = F.linear(mean, narrow, bias).relu_()
        gate = F.linear(hidden, widen, offset).sigmoid_()
        factor = (scale * gate)[:, :, None, None]
        ctx.save_for_backward(x, mean, hidden, gate, factor, narrow, widen)
        ctx.scale = scale
        return torch.addcmul(skip, x, factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, mean, hidden, gate, factor, narrow, widen) = gradients, ctx.saved_tensors
        of_gate = torch.ops.aten.sigmoid_backward((gradient * x).sum(dim=(2, 3)), gate).mul_(ctx.scale)
        of_hidden = torch.ops.aten.threshold_backward(of_gate.mm(widen), hidden, 0)
        of_mean = of_hidden.mm(narrow).div_(x.shape[2] * x.shape[3])
        of_x = torch.addcmul(of_mean[:, :, None, None], gradient, factor)
        weights = of_hidden.t().mm(mean), of_hidden.sum(0), of_gate.t().mm(hidden), of_gate.sum(0)
        return gradient, of_x, None, *weights


class SqueezeExcitation(nn.Module):
    """Channel gate: x · σ(W₂ relu(W₁ mean(x))) (NVAE section 3.1)."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(channels // 16, 4)
        self.gate = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), same shape."""
        narrow, _, widen, _ = self.gate
        return x * widen(narrow(x.mean(dim=(2, 3))).relu_()).sigmoid_()[:, :, None, None]

    def gated_sum(self, skip: Tensor, x: Tensor, scale: float) -> Tensor:
        """skip + scale · forward(x), each (B, C, H, W); in training, for many values, without second derivatives."""
        one_operation = self.training and x.numel() > FEW_VALUES
        if not one_operation or (x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)):
            return torch.add(skip, self(x), alpha=scale)
        narrow, _, widen, _ = self.gate
        parameters = narrow.weight, narrow.bias, widen.weight, widen.bias
        return _GatedSum.apply(skip, x, scale, *parameters)  # type: ignore[no-untyped-call]
