"""What a pass takes: a counter of floating-point operations and of what autograd keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vaebm.records.metrics import number


class Work(NamedTuple):
    """What a pass takes."""

    flop: int
    """Floating-point operations of convolutions and matrix products; a multiply-add is two."""
    activations: int
    """Bytes held for the backward pass, parameters and buffers left out."""


class _Counter(TorchDispatchMode):
    """Counts the FLOP of what happens within this context."""

    flop = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch with every operation on tensors, those of backward passes too."""
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.convolution_backward.default:
            self.flop += _convolution_backward(*args)
        elif formula := flop_registry.get(function.overloadpacket):
            self.flop += formula(*args, **(kwargs or {}), out_val=out)
        return out


@contextmanager
def measured(*modules: nn.Module) -> Iterator[Callable[[], Work]]:
    """Measure what happens within this context, forward and backward.

    Args:
        modules: whose parameters and buffers are no activations.

    Yields:
        A function that gives the work so far.
    """
    own = {_storage(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        """Autograd saves `tensor`; views and repeated saves of a storage count once."""
        if _storage(tensor) not in own:
            saved[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    counter = _Counter()  # type: ignore[no-untyped-call]  # torch's class declares no types
    with counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: Work(counter.flop, sum(saved.values()))


def _storage(tensor: Tensor) -> int:
    """Identity of a tensor's storage; on the meta device all data pointers are 0."""
    return tensor.untyped_storage()._cdata


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> int:
    """FLOP of a convolution's backward pass: for the gradient of the input as many as forward, and for that of the weight again.

    torch's own formula takes the weight's gradient of a grouped convolution for that of a dense one.
    """
    wanted = rest[-1]  # the gradient of input, weight, bias
    return sum(wanted[:2]) * 2 * weight.numel() * gradient[:, 0].numel()


def quantity(value: float, unit: str) -> str:
    """Three digits and a decimal prefix: 12.3 GB."""
    prefixes = iter(("", "k", "M", "G", "T", "P", "E", "Z"))
    prefix = next(prefixes)
    while value >= 999.5:
        value, prefix = value / 1000, next(prefixes)
    return f"{number(float(f'{value:.3g}'), 3)} {prefix}{unit}"  # rounded first: 0.9996 k is 1.00 k
