"""Several processes for one training: each takes its share of every batch and all hold the same weights.

They are started by torchrun, which sets RANK, LOCAL_RANK and WORLD_SIZE. Without it there is one process and no process group,
and sums, shares and agreements are what this process has.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from vaebm.system.errors import UserError

BUCKET = 2**24
"""Elements in one all-reduce of gradients: 64 MiB in single precision, the memory that averaging may take beside them."""

TIMEOUT = timedelta(minutes=30)
"""How long processes wait for one of them: longer than the first takes for a checkpoint or for the held-out images."""

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that a process gets when the one that started it has died."""


def started() -> int:
    """How many processes were started together, by their environment; it may be before they have joined."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Number of this process among those of the training; the first, 0, also writes and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def join(backend: str) -> None:
    """Become one of torchrun's processes; once, and until this process ends.

    torchrun gives each process a session of its own, so that what kills torchrun and its group passes them by. On Linux the
    kernel then sends SIGTERM, on which a training saves and stops: two that write the same files at once must not be.

    Args:
        backend: "gloo" for the CPU; "cpu:gloo,cuda:nccl" for GPUs, so that flags on the CPU do not wait for the GPU.
    """
    if dist.is_initialized():
        return
    if sys.platform == "linux" and dist.is_torchelastic_launched():
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    dist.init_process_group(backend, timeout=TIMEOUT)
    atexit.register(dist.destroy_process_group)


def check_share(batch: int, where: str) -> None:
    """That `batch` images can be shared out evenly.

    Args:
        where: file and key of the number, for the message.

    Raises:
        UserError: they cannot.
    """
    if batch % processes():
        raise UserError(
            f"{where}: expected a multiple of {processes()}, the number of processes, found {batch}; change one of the two"
        )


def share(items: range) -> range:
    """This process's contiguous part of `items`, the positions in a (micro-)batch.

    Raises:
        ValueError: their number is not a multiple of the processes'; `check_share` tells the user before.
    """
    if len(items) % processes():
        raise ValueError(f"{len(items)} items for {processes()} processes")
    count = len(items) // processes()
    return items[rank() * count : (rank() + 1) * count]


class _Gather(torch.autograd.Function):
    """All processes' tensors; backwards each gets the gradients that all of them found for its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gathered = x.new_empty((processes(), *x.shape))
        dist.all_gather(list(gathered.unbind()), x.contiguous())
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient)[rank()]


def gather(x: Tensor) -> Tensor:
    """The tensors `x` of all processes, (processes, *x.shape), differentiable.

    The gradient is that of the sum of all processes' losses. Where each loss is a mean over the process's share,
    `average_gradients` then makes the gradients of the parameters those of the mean over the whole batch.
    """
    if processes() == 1:
        return x[None]
    return _Gather.apply(x)  # type: ignore[no-untyped-call]  # torch declares no types here


def mean(x: Tensor) -> Tensor:
    """Mean of `x` over the processes, without gradient; `x` is left as it was."""
    if processes() == 1:
        return x.detach()
    return total(x).div_(processes())


def total(x: Tensor) -> Tensor:
    """Sum of `x` over the processes, without gradient; `x` is left as it was."""
    if processes() == 1:
        return x.detach()
    summed = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(summed)
    return summed


def collect(x: Tensor) -> Tensor | None:
    """The tensors `x` of all processes, (processes, *x.shape), in the first one; None in the others, which need no room for them."""
    if processes() == 1:
        return x[None]
    gathered = x.new_empty((processes(), *x.shape)) if rank() == 0 else None
    dist.gather(x.contiguous(), None if gathered is None else list(gathered.unbind()))
    return gathered


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors together until one more would exceed `BUCKET`; a larger one is alone."""
    bucket: list[Tensor] = []
    elements = 0
    for tensor in tensors:
        if bucket and elements + tensor.numel() > BUCKET:
            yield bucket
            bucket, elements = [], 0
        bucket.append(tensor)
        elements += tensor.numel()
    if bucket:
        yield bucket


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over the processes.

    A parameter without a gradient stays without: all processes run the same graph, so it is the same one in each, and the
    optimiser leaves it alone as it does in a single process.

    Args:
        parameters: in the same order in every process.
    """
    if processes() == 1:
        return
    for bucket in _buckets(parameter.grad for parameter in parameters if parameter.grad is not None):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])  # the largest of their types
        dist.all_reduce(flat)
        parts = flat.div_(processes()).split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [part.view(gradient.shape) for part, gradient in zip(parts, bucket, strict=True)])


def agree(flag: int) -> int:
    """The largest of all processes' flags, integers from 0, in every process. Waits for the others, not for the GPU."""
    if processes() == 1:
        return flag
    largest = torch.tensor(flag)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def first_to_fail() -> bool:
    """Whether no other of torchrun's processes has asked this before: the others' errors are the same one, or follow from it.

    For the way out: this process leaves the others without waiting for them, which may be beyond reach.
    """
    atexit.unregister(dist.destroy_process_group)
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5))  # type: ignore[attr-defined]  # not in its list of exports
        return store.add(f"vaebm/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    except (KeyError, RuntimeError):  # no torchrun, or it is gone: better said twice than not at all
        return True


def launch(count: int, command: Sequence[str]) -> int:
    """Run `python COMMAND` as several processes on this machine, by what torchrun is made of, and wait for them.

    SIGTERM and SIGINT are passed on to all of them. When one fails, the others get SIGTERM.

    Args:
        count: number of processes.
        command: arguments of this Python interpreter.

    Returns:
        Exit status: of the process that failed first, 128 + its number where a signal ended it; 0: none failed.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable()  # the processes say themselves what happened to them
    with tempfile.TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=str(uuid.uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(config, sys.executable)(*command)
        except SignalException as stopped:
            return 128 + stopped.sigval
        except ChildFailedError as failed:
            # a process that fails beside one that was killed has only lost it
            number, failure = min(
                failed.failures.items(), key=lambda item: item[1].exitcode > 0 or item[1].exitcode == -signal.SIGTERM
            )
            if failure.exitcode > 0:
                return failure.exitcode
            print(
                f"process {number} of {count} was ended by signal {failure.signal_name()}; run the same command again to go on",
                file=sys.stderr,
            )
            return 128 - failure.exitcode
    return 0
