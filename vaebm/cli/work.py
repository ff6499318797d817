"""Counts floating-point operations and the memory of activations."""

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
    """Cost of a pass."""

    flop: int
    """Floating-point operations of convolutions and matrix products; a multiply-add is two."""
    activations: int
    """Bytes saved for the backward pass, without parameters and buffers."""


class _Counter(TorchDispatchMode):
    """Counts the FLOP of all operations in its context."""

    flop = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count one operation, forward or backward."""
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.convolution_backward.default:
            self.flop += _convolution_backward(*args)
        elif formula := flop_registry.get(function.overloadpacket):
            self.flop += formula(*args, **(kwargs or {}), out_val=out)
        return out


@contextmanager
def measured(*modules: nn.Module) -> Iterator[Callable[[], Work]]:
    """Measure all passes in this context, forward and backward.

    Args:
        modules: their parameters and buffers are not counted as activations.

    Yields:
        A function that returns the work so far.
    """
    own = {_storage(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        """Count a saved tensor; views and repeated saves of a storage count once."""
        if _storage(tensor) not in own:
            saved[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    counter = _Counter()  # type: ignore[no-untyped-call]  # torch's class declares no types
    with counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: Work(counter.flop, sum(saved.values()))


def _storage(tensor: Tensor) -> int:
    """Identity of a tensor's storage; data pointers are 0 on the meta device."""
    return tensor.untyped_storage()._cdata


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> int:
    """FLOP of a convolution's backward pass: the forward FLOP for the input's gradient, and again for the weight's.

    torch's own formula treats the weight's gradient of a grouped convolution as dense.
    """
    wanted = rest[-1]  # the gradient of input, weight, bias
    return sum(wanted[:2]) * 2 * weight.numel() * gradient[:, 0].numel()


def quantity(value: float, unit: str) -> str:
    """Format with three digits and a decimal prefix: 12.3 GB."""
    prefixes = iter(("", "k", "M", "G", "T", "P", "E", "Z"))
    prefix = next(prefixes)
    while value >= 999.5:
        value, prefix = value / 1000, next(prefixes)
    return f"{number(float(f'{value:.3g}'), 3)} {prefix}{unit}"  # rounded first: 0.9996 k is 1.00 k
