"""Data-parallel training: each process has a shard of every batch, and all have the same weights.

torchrun starts the processes and sets RANK, LOCAL_RANK and WORLD_SIZE. Without it there is one process and no process
group, and every function returns the values of this process.
"""

import atexit
import ctypes
import logging
import os
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from vaebm.system.errors import UserError, brief

TIMEOUT = timedelta(minutes=30)
"""Longest wait for another process; longer than a checkpoint or an evaluation of the held-out images."""

PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl: signal for a process whose parent has died."""


def launched_world_size() -> int:
    """Number of processes that torchrun launched, by the environment; known before they have joined."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Index of this process; process 0 also writes and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes of the training."""
    return dist.get_world_size() if dist.is_initialized() else 1


def join(backend: str) -> None:
    """Join the process group, once, until this process ends.

    Each process of torchrun has its own session, so a kill of torchrun's process group does not reach it. On Linux the
    kernel sends it SIGTERM when torchrun dies, so that it saves and stops before a second training writes the same
    files.

    Args:
        backend: "gloo" for the CPU; "cpu:gloo,cuda:nccl" for GPUs, so that flags on the CPU do not wait for the GPU.
    """
    if dist.is_initialized():
        return
    if sys.platform == "linux" and dist.is_torchelastic_launched():
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    try:
        # torchrun listens before it starts processes: otherwise it ended, and left its variables in the environment
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=30).close()
        dist.init_process_group(backend, timeout=TIMEOUT)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"expected the other processes of torchrun at MASTER_ADDR and MASTER_PORT, found none ({brief(error)}); "
            "unset RANK and WORLD_SIZE where no torchrun is meant"
        ) from None
    atexit.register(dist.destroy_process_group)


def check_share(batch: int, where: str) -> None:
    """Check that the processes can share `batch` images evenly; `where` is the file and key of this number.

    Raises:
        UserError: they cannot.
    """
    if batch % world_size():
        raise UserError(
            f"{where}: expected a multiple of {world_size()}, the number of processes, found {batch}; "
            "change one of the two"
        )


def local_shard(items: range) -> range:
    """Contiguous part of `items`, positions in a (micro-)batch, that belongs to this process.

    Raises:
        ValueError: the number of items is not a multiple of the number of processes (`check_share`).
    """
    if len(items) % world_size():
        raise ValueError(f"{len(items)} items for {world_size()} processes")
    count = len(items) // world_size()
    return items[rank() * count : (rank() + 1) * count]


class _Gather(torch.autograd.Function):
    """All-gather; backward: sum over the processes of the gradients of this process's tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gathered = x.new_empty((world_size(), *x.shape))
        dist.all_gather(list(gathered.unbind()), x.contiguous())
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_reduce_sum(gradient)[rank()]


def gather(x: Tensor) -> Tensor:
    """Tensors `x` of all processes, (processes, *x.shape), differentiable.

    The gradient is that of the sum of all losses. If each loss is a mean over its shard, `average_gradients` turns it
    into the gradient of the mean over the batch.
    """
    if world_size() == 1:
        return x[None]
    return _Gather.apply(x)  # type: ignore[no-untyped-call]  # torch declares no types here


def mean(x: Tensor) -> Tensor:
    """Mean of `x` over the processes, without gradient; `x` is not modified."""
    if world_size() == 1:
        return x.detach()
    return all_reduce_sum(x).div_(world_size())


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum of `x` over the processes, without gradient; `x` is not modified."""
    if world_size() == 1:
        return x.detach()
    summed = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(summed)
    return summed


def gather_to_rank0(x: Tensor) -> Tensor | None:
    """Tensors `x` of all processes, (processes, *x.shape), in process 0; None in the others, which save the memory."""
    if world_size() == 1:
        return x[None]
    gathered = x.new_empty((world_size(), *x.shape)) if rank() == 0 else None
    dist.gather(x.contiguous(), None if gathered is None else list(gathered.unbind()))
    return gathered


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over the processes, which have the `parameters` in the same order.

    Parameters without a gradient are skipped; they are the same in all processes.
    """
    for each in parameters if world_size() > 1 else ():
        if each.grad is not None:
            dist.all_reduce(each.grad)
            each.grad.div_(world_size())


def all_reduce_max(flag: int) -> int:
    """Largest `flag`, an integer from 0, of all processes. Waits for the other processes, not for the GPU."""
    if world_size() == 1:
        return flag
    largest = torch.tensor(flag)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def report_error_once() -> bool:
    """True for the first process that reports a failure; later errors are the same or follow from it.

    The process has to exit afterwards: it no longer waits for the others, which may be unreachable.
    """
    atexit.unregister(dist.destroy_process_group)
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5))  # type: ignore[attr-defined]
        return store.add(f"vaebm/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    except (KeyError, RuntimeError):  # no torchrun, or it has ended: rather report twice than never
        return True


def launch(count: int, command: Sequence[str]) -> int:
    """Run `python COMMAND` as `count` processes on this machine, like torchrun, and wait for them.

    SIGTERM and SIGINT are forwarded to all. When one process fails, the others get SIGTERM.

    Returns:
        Exit status of the process that failed first, 128 + number of the signal that ended it, or 0.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable()  # the processes report their errors themselves
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
            # the others fail after one was killed: prefer the killed one
            number, failure = min(
                failed.failures.items(), key=lambda item: item[1].exitcode > 0 or item[1].exitcode == -signal.SIGTERM
            )
            if failure.exitcode > 0:
                return failure.exitcode
            ended = f"process {number} of {count} was ended by signal {failure.signal_name()}"
            print(f"{ended}; repeat the command to resume", file=sys.stderr)
            return 128 - failure.exitcode
    return 0
