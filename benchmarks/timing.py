"""Timing of functions, counting of memory traffic, and the machine's peak rates."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from vaebm.system.device import Progress

Workload = Callable[[], Any]


class Traffic(TorchDispatchMode):
    """Counts operations, except views, and the bytes that they read and write."""

    bytes = 0
    calls = 0
    flop = 0
    """FLOP that torch does not count."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch for every operation, also in backward passes."""
        out = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.calls += 1
            tensors, _ = torch.utils._pytree.tree_flatten((args, out))
            self.bytes += sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))
        return out

    @contextlib.contextmanager
    def of_kernels(self) -> Iterator[None]:
        """In this context the fused depthwise convolution on a GPU, which is no operation of torch, is counted, too."""
        try:
            from vaebm.fast import triton_kernels
        except ImportError:  # no Triton, no kernel
            yield
            return
        launch = triton_kernels._launch

        def counted(*tensors: Tensor, backward: bool) -> None:
            launch(*tensors, backward=backward)
            source, before, _, _, a, out, swished = tensors
            self.bytes += sum(tensor.nbytes for tensor in ((source, before, a, out) if backward else (a, out, swished)))
            self.flop += 2 * triton_kernels.KERNEL**2 * a.numel()

        with mock.patch.object(triton_kernels, "_launch", counted):
            yield


def seconds(work: Workload, device: torch.device) -> float:
    """Wall-clock time of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def interleaved(turns: dict[str, Callable[[], float]], rounds: int, title: str) -> dict[str, list[float]]:
    """Seconds of each function, in rounds of one turn each, after a warm-up round."""
    times: dict[str, list[float]] = {way: [] for way in turns}
    progress = Progress(title, rounds + 1, unit="round")
    for number in range(rounds + 1):
        for way, turn in turns.items():
            taken = turn()
            if number:
                times[way].append(taken)
        progress.advance()
    progress.close()
    return times


def resident(name: str) -> int:
    """A memory field of /proc/self/status in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def machine(device: torch.device, rounds: int) -> dict[str, float]:
    """Best measured rates of the machine: FLOP/s of a convolution and of a product, bytes/s of a copy."""
    large = 8 if device.type == "cuda" else 1
    x = torch.randn(32 * large, 64, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(64, 64, 3, 3, device=device).contiguous(memory_format=torch.channels_last)
    a, b = torch.randn(2, 1536 * large, 1536 * large, device=device).unbind()
    source, target = torch.randn(2, 2**25 * large, device=device).unbind()
    works: dict[str, tuple[Workload, int]] = {
        "convolution": (lambda: F.conv2d(x, weight, padding=1), 2 * weight.numel() * x[:, 0].numel()),
        "product": (lambda: a @ b, 2 * len(a) ** 3),
        "copy": (lambda: target.copy_(source), 2 * source.nbytes),
    }
    turns = {what: functools.partial(seconds, work, device) for what, (work, _) in works.items()}
    with torch.no_grad():
        times = interleaved(turns, rounds, "the machine")
    return {what: amount / min(times[what]) for what, (_, amount) in works.items()}
