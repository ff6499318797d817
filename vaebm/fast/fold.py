"""Folding of a branch into as few layers as possible."""

from collections.abc import Iterable, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from vaebm.fast.layers import ELU, Affine, ChannelGate, Convolution, Layer, Swish, Upsample
from vaebm.nvae.cells import RESIDUAL_SCALE
from vaebm.nvae.layers import BatchNorm, BatchNormSwish, NormalizedConv2d, PlainConv2d, SqueezeExcitation


def fold(branch: Iterable[nn.Module], like: Tensor) -> list[Layer]:
    """Fold the branch of a cell, times `RESIDUAL_SCALE`, into as few layers as possible.

    Affine maps go into convolutions. Upsamplings move behind pointwise layers, and behind gates, whose means they keep.

    The layers get the type and device of the tensor `like`.

    Raises:
        TypeError: a layer, or a last layer, that no branch of the decoder has.
    """
    layers: list[Layer] = []
    up = False
    for module in (layer for part in branch for layer in (part if isinstance(part, nn.Sequential) else [part])):
        if isinstance(module, nn.Upsample):
            up = True
        elif isinstance(module, NormalizedConv2d | PlainConv2d):
            convolution = Convolution(module)
            if convolution.pointwise:
                if layers and isinstance(affine := layers[-1], Affine):
                    convolution.fold_preceding(affine)
                    layers.pop()
            elif up:
                layers.append(Upsample())
                up = False
            layers.append(convolution)
        elif isinstance(module, BatchNorm):
            if layers and isinstance(before := layers[-1], Convolution):
                before.fold_following(Affine(module))
            else:
                layers.append(Affine(module))
            if isinstance(module, BatchNormSwish):
                layers.append(Swish())
        elif isinstance(module, nn.ELU):
            layers.append(ELU())
        elif isinstance(module, SqueezeExcitation):
            layers.append(ChannelGate(module, RESIDUAL_SCALE))
        else:
            raise TypeError(f"expected a layer of the decoder, found {type(module).__name__}")
    end = layers[-2] if len(layers) > 1 and isinstance(layers[-1], ChannelGate) else layers[-1]
    if not isinstance(end, Convolution) or any(isinstance(layer, ChannelGate) for layer in layers[:-1]):
        found = ", ".join(type(layer).__name__ for layer in layers)
        raise TypeError(f"expected a convolution at the end of a branch or before its only gate, found {found}")
    end.scaled(RESIDUAL_SCALE)
    if up:
        layers.append(Upsample())
    layers = [layer.finalize(like) if isinstance(layer, Affine | Convolution) else layer for layer in layers]
    return fuse(layers) if like.is_cuda and like.dtype != torch.float64 and find_spec("triton") else layers


def fuse(layers: Sequence[Layer]) -> list[Layer]:
    """Merge swish, depthwise convolution and swish into one layer for an NVIDIA GPU."""
    from vaebm.fast.triton_kernels import KERNEL, SwishDepthwiseSwish, compiles  # needs Triton, part of torch for CUDA

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
