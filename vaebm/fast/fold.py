"""How the layers of a branch are folded into as few as they can be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from vaebm.fast.layers import ELU, Affine, Convolution, Gate, Layer, Swish, Upsample
from vaebm.nvae.layers import BatchNorm, BatchNormSwish, NormalizedConv2d, PlainConv2d, SqueezeExcitation


def primitive(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The layers of nested sequences, one after the other."""
    for module in modules:
        if isinstance(module, nn.Sequential):
            yield from primitive(module)
        else:
            yield module


def fold(modules: Iterable[nn.Module], like: Tensor, scale: float) -> list[Layer]:
    """The branch of a cell in as few layers as it can be: affine maps go into convolutions, upsamplings behind what acts on pixels alone,
    and behind a gate, whose means an upsampling leaves as they are.

    Args:
        modules: one after the other.
        like: tensor of the type and on the device of the layers.
        scale: factor of what comes out.

    Raises:
        TypeError: a layer that no branch of the decoder has, or an end that none has.
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
                layers.append(Upsample())
                up = False
            layers.append(convolution)
        elif isinstance(module, BatchNorm):
            if layers and isinstance(before := layers[-1], Convolution):
                before.then(Affine(module))
            else:
                layers.append(Affine(module))
            if isinstance(module, BatchNormSwish):
                layers.append(Swish())
        elif isinstance(module, nn.ELU):
            layers.append(ELU())
        elif isinstance(module, SqueezeExcitation):
            layers.append(Gate(module))
        else:
            raise TypeError(f"expected a layer of the decoder, found {type(module).__name__}")
    if not isinstance(end := layers[-1], Convolution | Gate):
        raise TypeError(f"expected a convolution or a gate at the end of a branch, found {type(end).__name__}")
    end.scaled(scale)
    if up:
        layers.append(Upsample())
    layers = [layer.ready(like) if isinstance(layer, Affine | Convolution) else layer for layer in layers]
    return fuse(layers) if like.is_cuda and like.dtype != torch.float64 and find_spec("triton") else layers


def fuse(layers: Sequence[Layer]) -> list[Layer]:
    """Layers on an NVIDIA GPU, with swish, depthwise convolution and swish as one."""
    from vaebm.fast.triton_kernels import (
        KERNEL,
        SwishDepthwiseSwish,
        compiles,
    )  # needs Triton, which torch brings where it serves NVIDIA GPUs

    fused: list[Layer] = []
    rest = list(layers)
    while rest:
        match rest[:3]:
            case [Swish(), Convolution(depthwise=True) as middle, Swish()] if (
                middle.weight.shape[-1] == KERNEL and compiles()
            ):
                fused.append(SwishDepthwiseSwish(middle.weight, middle.bias))
                del rest[:3]
            case _:
                fused.append(rest.pop(0))
    return fused
