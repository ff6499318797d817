"""All parameters of a network in one vector, so that what a training does with all of them takes few operations."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from vaebm.nvae.layers import NormalizedConv2d


class _Matrix(NamedTuple):
    """Weights with rows of one length, each (rows, length)."""

    weight: Tensor
    gradient: Tensor
    """Gradient of `weight`."""
    normalized: Tensor
    """The normalised weights."""
    slope: Tensor
    """Gradient of `normalized`."""
    mask: Tensor | None
    """Zeros and ones that are multiplied into `weight` first; None: no mask."""

    def masked(self, x: Tensor) -> Tensor:
        """x times the mask."""
        return x if self.mask is None else x * self.mask


class FlatParameters:
    """The parameters of `module`, of one type and on one device, as views of one vector; so are their gradients.

    Normalised weights whose rows have equal length are one matrix, and are normalised together.
    """

    def __init__(self, module: nn.Module):
        self.parameters = list(module.parameters())
        groups: dict[tuple[int, bool], list[NormalizedConv2d]] = {}
        for layer in module.modules():
            if isinstance(layer, NormalizedConv2d):
                groups.setdefault((layer.weight[0].numel(), layer.mask is None), []).append(layer)
        self._layers = [layer for group in groups.values() for layer in group]
        norms = [layer.log_weight_norm for layer in self._layers]
        first = {id(each): each for each in [*(layer.weight for layer in self._layers), *norms]}
        self._order = list((first | {id(each): each for each in self.parameters}).values())
        place = {id(each): number for number, each in enumerate(self._order)}
        self._places = [place[id(each)] for each in self.parameters]

        vector = torch.cat([_rows(each.detach()).flatten() for each in self._order])
        gradient = torch.zeros_like(vector)
        self.tensors = [_leaf(vector, gradient)]
        """The vector, for the optimiser and everything else that is done with all parameters."""
        for each, value, slope in zip(self.parameters, self._views(vector), self._views(gradient), strict=True):
            each.data, each.grad = value, slope
        sizes = [layer.weight.numel() for layer in self._layers]
        normalized, self._slopes = vector.new_zeros(sum(sizes)), vector.new_zeros(sum(sizes))
        parts = zip(self._layers, normalized.split(sizes), self._slopes.split(sizes), strict=True)
        self._weights = [_leaf(_like(one, layer.weight), _like(slope, layer.weight)) for layer, one, slope in parts]
        counts = [sum(layer.weight.numel() for layer in group) for group in groups.values()]
        matrices = (
            [part.view(-1, width) for part, (width, _) in zip(whole[: sum(counts)].split(counts), groups, strict=True)]
            for whole in (vector, gradient, normalized, self._slopes)
        )
        masks = (
            [_rows(layer.mask, layer.weight).flatten(1) for layer in group if layer.mask is not None]
            for group in groups.values()
        )
        self._matrices = list(map(_Matrix, *matrices, (torch.cat(each) if each else None for each in masks)))
        self._norms = [whole[sum(counts) :][: sum(map(len, norms)), None] for whole in (vector, gradient)]

    def optimizer(self, kind: type[torch.optim.Optimizer], **options: Any) -> Any:
        """Build an optimiser whose saved state is that of an optimiser of the module's parameters."""
        optimizer = kind(self.tensors, **options)
        optimizer.register_state_dict_post_hook(self._separate)
        optimizer.register_load_state_dict_pre_hook(self._join)
        optimizer.register_step_post_hook(lambda *_: increment_version(self.parameters))
        return optimizer

    def zero_gradients(self) -> None:
        """Set all gradients to zero."""
        torch._foreach_zero_([each.grad for each in self.tensors if each.grad is not None])

    def requires_grad_(self, needed: bool) -> None:
        """Set whether the parameters, and the weights that are normalised together, need gradients."""
        for each in (*self.parameters, *self._weights):
            each.requires_grad_(needed)

    @contextlib.contextmanager
    def normalized_weights(self) -> Iterator[None]:
        """In this context the convolutions have weights that were normalised together.

        Gradients of these weights, of any number of backward passes, become those of the parameters at its end.
        """
        scales = self._normalize() if self._layers else None
        try:
            for layer, weight in zip(self._layers, self._weights, strict=True):
                vars(layer)["normalized"] = weight  # a module's own assignment looks for parameters first
            yield
        finally:
            for layer in self._layers:
                vars(layer)["normalized"] = None
        if scales is not None:
            self._add_gradients(*scales)

    @torch.no_grad()
    def _normalize(self) -> tuple[Tensor, Tensor]:
        """Compute exp(L) · w / (‖w‖ + 1e-5); return ‖w‖ and the factor of w of all rows, each (rows, 1)."""
        weights = [each.masked(each.weight) for each in self._matrices]
        norms = torch.cat([torch.linalg.vector_norm(weight, dim=1, keepdim=True) for weight in weights])
        factors = self._norms[0].exp() / (norms + 1e-5)
        for each, weight, factor in zip(self._matrices, weights, self._of_matrices(factors), strict=True):
            torch.mul(weight, factor, out=each.normalized)
        self._slopes.zero_()
        return norms, factors

    @torch.no_grad()
    def _add_gradients(self, norms: Tensor, factors: Tensor) -> None:
        """Add the gradients of w and L; a row of norm 0 has no gradient along itself."""
        weights = [each.masked(each.weight) for each in self._matrices]
        products = torch.cat([*map(torch.linalg.vecdot, (each.slope for each in self._matrices), weights)])[:, None]
        slopes = products * factors
        self._norms[1].add_(slopes)
        scales = self._of_matrices(factors), self._of_matrices(slopes / ((norms + 1e-5) * norms.clamp_min(1e-30)))
        for each, weight, factor, along in zip(self._matrices, weights, *scales, strict=True):
            each.gradient.addcmul_(each.masked(each.slope), factor).addcmul_(weight, along, value=-1)

    def _of_matrices(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Split (rows, 1) by matrices."""
        return rows.split([len(each.weight) for each in self._matrices])

    def _views(self, whole: Tensor) -> list[Tensor]:
        """Parts of a vector, in shapes and order of the module's parameters."""
        parts = whole.split([each.numel() for each in self._order])
        return [_like(parts[place], each) for place, each in zip(self._places, self.parameters, strict=True)]

    def _separate(self, _: object, state: dict[str, Any]) -> None:
        """Turn the optimiser's state into that of an optimiser of the module's parameters."""
        count = range(len(self.parameters))
        parts = {
            name: self._views(value) if value.dim() else [value.clone() for _ in count]
            for name, value in state["state"].get(0, {}).items()
        }
        state["state"] = {number: {name: each[number] for name, each in parts.items()} for number in count if parts}
        state["param_groups"][0]["params"] = list(count)

    def _join(self, _: object, state: dict[str, Any]) -> dict[str, Any]:
        """The inverse of `_separate`; parameters without a state get zeros."""
        joined: dict[str, Tensor] = {}
        views: dict[str, list[Tensor]] = {}
        for number, values in state["state"].items():
            for name, value in values.items():
                if name not in joined:
                    joined[name] = torch.zeros_like(self.tensors[0].detach()) if value.dim() else value
                    views[name] = self._views(joined[name]) if value.dim() else []
                if value.dim():
                    views[name][number].copy_(value)
        groups = [group | {"params": [0]} for group in state["param_groups"]]
        return state | {"state": {0: joined} if joined else {}, "param_groups": groups}


def _leaf(value: Tensor, gradient: Tensor) -> Tensor:
    """A leaf of autograd in the memory of `value`, whose gradient is added up in `gradient`."""
    leaf = value.detach().requires_grad_()
    leaf.grad = gradient
    return leaf


def _channels_last(x: Tensor) -> bool:
    """Whether the strides are those of channels_last; a 1×1 weight has also other strides of the same layout."""
    return x.dim() == 4 and x.stride() == (x[0].numel(), 1, x.shape[3] * x.shape[1], x.shape[1])


def _rows(x: Tensor, like: Tensor | None = None) -> Tensor:
    """The values of x in the order of its layout, or of that of `like`: (out, k, k, in) for channels_last."""
    return x.permute(0, 2, 3, 1) if _channels_last(x if like is None else like) else x


def _like(part: Tensor, parameter: Tensor) -> Tensor:
    """View a part of a vector in the shape and layout of a parameter."""
    part = part.view(_rows(parameter).shape)
    return part.permute(0, 3, 1, 2) if _channels_last(parameter) else part
