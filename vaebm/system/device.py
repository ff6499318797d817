"""The machine: device, threads, processes, seeds of modules, progress, time limits and signals."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TypeVar

import torch
from tqdm import tqdm

from vaebm.system import distributed
from vaebm.system.allocator import keep_freed_memory
from vaebm.system.errors import UserError
from vaebm.system.precision import set_tf32
from vaebm.system.startup import age

M = TypeVar("M", bound=torch.nn.Module)

RESUME = 75
"""Exit status of a training that saved its state and wants to be run again (EX_TEMPFAIL)."""

LINE_EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal."""

RESERVE = 90.0
"""Seconds before its time limit at which a training saves and stops; at most a tenth of the limit."""


class Interrupted(Exception):
    """A training stopped in time; its state is saved, and the same command goes on with it."""

    def __init__(self, reason: str, status: int = RESUME):
        super().__init__(f"{reason}: state saved; run the same command again to go on")
        self.status = status


_waited = 0.0
"""Seconds that `prepare` waited for a GPU."""


def prepare(threads: int, gpus: int, join: bool = False) -> torch.device:
    """Set torch's threads and the host's memory, and choose this process's device: a GPU if the experiment asks for any and there is one.

    Single precision means single precision from here on, until `precision.set_precision` says otherwise.

    Under torchrun a training joins the other processes, and its threads are shared out to them. Otherwise it takes a GPU that no
    other job holds, and waits for one. A job that asks for more GPUs than it can use, or for some on a machine without any, says so.

    Args:
        threads: of the job.
        gpus: of the job; 0: the CPU.
        join: whether this is a training that several processes can share.

    Raises:
        UserError: several processes for what only one can do, or more than there are GPUs.
    """
    together = distributed.started()
    number = int(os.environ.get("LOCAL_RANK", 0)) if together > 1 else 0
    if together > 1 and not join:
        raise UserError(f"expected one process for this stage, found {together} (WORLD_SIZE); run it without torchrun")
    torch.set_num_threads(max(threads // together, 1))
    set_tf32(False)
    keep_freed_memory()
    if gpus and together == 1:
        from vaebm.system.gpu_lease import choose  # needs flock, which Windows lacks

        global _waited
        began = time.monotonic()
        choose(1)
        _waited = time.monotonic() - began
    found = torch.cuda.device_count() if gpus else 0
    if number >= found > 0:
        raise UserError(
            f"expected a GPU for each process, found {found} and a process {number} (from 0); start fewer with torchrun"
        )
    if together > 1:
        distributed.join("cpu:gloo,cuda:nccl" if found else "gloo")
    if distributed.rank() == 0 and gpus > (used := min(together, found)):
        print(f"{gpus} GPU(s) asked for, {found} found: running on {used or 'the CPU'}", file=sys.stderr)
    if not found:
        return torch.device("cpu")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def device_name(device: torch.device) -> str:
    """What a device is called: the GPU's name, or the CPU's where the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    told = Path("/proc/cpuinfo")
    models = (
        [line.partition(":")[2].strip() for line in told.read_text().splitlines() if line.startswith("model name")]
        if told.is_file()
        else []
    )
    return models[0] if models else platform.processor() or platform.machine()


def place(module: M, device: torch.device) -> M:
    """`module` on `device`, its weights in the layout in which convolutions are fastest."""
    return module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch declares it for tensors only


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Build modules under `seed`; torch's global generator is as before afterwards."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


class StopSignals:
    """Within this context SIGTERM and SIGINT only set `received`, so that the loop can save its state."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Progress:
    """A bar on a terminal, otherwise a line every 30 seconds, with the latest figures and the time left.

    Of several processes only the first shows it.

    Args:
        name: of what is going on.
        total: steps in all.
        start: steps done before.
        unit: of a step.
    """

    def __init__(self, name: str, total: int, start: int = 0, unit: str = "step"):
        self.name, self.total, self.unit = name, total, unit
        self.start = self.done = start
        self._began = self._told = time.monotonic()
        self._bar = tqdm(
            total=total, initial=start, desc=name, unit=unit, disable=distributed.rank() > 0 or not sys.stderr.isatty()
        )

    def advance(self, figures: dict[str, float] | None = None, steps: int = 1) -> None:
        """Count `steps`; `figures` are shown beside."""
        figures = figures or {}
        self.done += steps
        self._bar.update(steps)
        now = time.monotonic()
        if figures:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in figures.items()}, refresh=False)
        if self._bar.disable and distributed.rank() == 0 and now - self._told >= LINE_EVERY:
            self._told = now
            left = (now - self._began) / max(self.done - self.start, 1) * (self.total - self.done)
            shown = "".join(f", {name} {value:.4g}" for name, value in figures.items())
            print(
                f"{self.name}: {self.unit} {self.done} of {self.total}{shown}, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """End the bar."""
        self._bar.close()


def deadline(minutes: float | None) -> float:
    """When to stop, on `time.monotonic`'s clock, for a limit in minutes from the start of this process or its torchrun; None: never.

    The time in which `prepare` waited for a GPU does not count: who has one to wait for has no scheduler that ends the job.
    """
    if minutes is None:
        return float("inf")
    limit = 60.0 * minutes
    process = os.getppid() if torch.distributed.is_torchelastic_launched() else None
    return time.monotonic() - age(process) + _waited + limit - min(RESERVE, 0.1 * limit)
