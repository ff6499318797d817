"""Device, threads and processes of a stage; module seeds, progress, time limits and signals."""

import contextlib
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

from vaebm.system import distributed
from vaebm.system.allocator import keep_freed_memory
from vaebm.system.errors import UserError, brief
from vaebm.system.precision import set_tf32
from vaebm.system.startup import process_age

M = TypeVar("M", bound=torch.nn.Module)

RESUME = 75
"""Exit status of a training that saved its state and has to be run again (EX_TEMPFAIL)."""

LINE_EVERY = 30.0
"""Seconds between progress lines without a terminal."""

RESERVE = 90.0
"""Seconds before the time limit at which a training saves and stops, at most a tenth of the limit."""


class Interrupted(Exception):
    """A training stopped early; the same command resumes it.

    Args:
        saved: False if the state is not finite, so that the checkpoint before it was kept.
    """

    def __init__(self, reason: str, status: int, saved: bool):
        state = "state saved" if saved else "its state is not finite and was not saved, the checkpoint before is kept"
        super().__init__(f"{reason}: {state}; repeat the command to resume")
        self.status = status


_waited = 0.0
"""Seconds that `setup_device` waited for a GPU."""


def setup_device(threads: int, gpus: int, join: bool = False, mps: bool = False) -> torch.device:
    """Set up threads, memory and float32 precision, and return the device of this process.

    Under torchrun a training joins the other processes and divides the threads among them. Otherwise it reserves a GPU
    that no other job holds, and waits for one. An Apple GPU (MPS) has no double precision and is not reserved; stages
    that need none use it. TF32 is off until `precision.set_precision`. If fewer GPUs are found than requested, a
    message says so.

    Args:
        threads: CPU threads of the job.
        gpus: GPUs of the job; 0: use the CPU.
        join: whether several processes can share this stage.
        mps: whether this stage needs no double precision.

    Raises:
        UserError: several processes for a stage of one process, or more processes than GPUs.
    """
    together = distributed.launched_world_size()
    number = int(os.environ.get("LOCAL_RANK", 0)) if together > 1 else 0
    if together > 1 and not join:
        raise UserError(f"expected one process for this stage, found {together} (WORLD_SIZE); run it without torchrun")
    torch.set_num_threads(max(threads // together, 1))
    set_tf32(False)
    keep_freed_memory()
    apple = gpus > 0 and together == 1 and torch.backends.mps.is_available()
    if apple and mps:
        return torch.device("mps")
    if apple:
        print("an Apple GPU has no double precision, which this stage needs: running on the CPU", file=sys.stderr)
        return torch.device("cpu")
    if gpus and together == 1:
        from vaebm.system.gpu_lease import reserve_gpus  # for Unix only

        global _waited
        began = time.monotonic()
        reserve_gpus(1)
        _waited = time.monotonic() - began
    found = torch.cuda.device_count() if gpus else 0
    if number >= found > 0:
        raise UserError(
            f"expected a GPU for each process, found {found} and a process {number} (from 0); start fewer with torchrun"
        )
    if together > 1:
        distributed.join("cpu:gloo,cuda:nccl" if found else "gloo")
    if distributed.rank() == 0 and gpus > (used := min(together, found)):
        print(f"{gpus} GPU(s) requested, {found} found: running on {used or 'the CPU'}", file=sys.stderr)
    if not found:
        return torch.device("cpu")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def device_name(device: torch.device) -> str:
    """Name of the GPU or of the CPU model."""
    if device.type == "mps":
        return f"{platform.processor()} GPU"
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):  # Linux only
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory() -> dict[str, float]:
    """Largest memory of this process since its start, in the unit of MLflow's system metrics."""
    import resource  # for Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = {"peak_memory_megabytes": round(peak / 1e6, 1)}
    if torch.cuda.is_initialized():
        found["gpu_peak_memory_megabytes"] = round(torch.cuda.max_memory_reserved() / 1e6, 1)
    return found


def to_device_channels_last(module: M, device: torch.device) -> M:
    """Move `module` to `device`, weights in the channels-last layout, which is fastest for convolutions."""
    return module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch declares it for tensors only


def freeze(module: M, device: torch.device | str) -> M:
    """Freeze `module` in eval mode on `device`, in the layout channels_last; a `UserError` if torch cannot use it."""
    try:
        torch.empty(0, device=device)
    except Exception as error:  # torch raises many classes
        expected = "expected a device that torch can use on this machine"
        raise UserError(f"device: {expected}, found {device} ({brief(error)}); choose cpu or another one") from None
    return to_device_channels_last(module.requires_grad_(False).eval(), torch.device(device))


@contextlib.contextmanager
def at_most_threads(count: int) -> Iterator[None]:
    """In this context torch's operations on the CPU use at most `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(count, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator within this context and restore it afterwards."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Within this context SIGTERM and SIGINT only add their numbers to the list, so that a loop can save its state."""
    received: list[int] = []
    before = {
        one: signal.signal(one, lambda number, frame: received.append(number))
        for one in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Progress:
    """Progress bar on a terminal, otherwise a line every 30 seconds, with the latest values and the remaining time.

    `start` of the `total` steps were done before. With several processes only the first shows it.
    """

    def __init__(self, name: str, total: int, start: int = 0, unit: str = "step"):
        self.name, self.total, self.unit = name, total, unit
        self.start = self.done = start
        self._began = self._printed = time.monotonic()
        self._bar = tqdm(
            total=total, initial=start, desc=name, unit=unit, disable=distributed.rank() > 0 or not sys.stderr.isatty()
        )

    def advance(self, figures: dict[str, float] | None = None, steps: int = 1) -> None:
        """Count `steps` and show the values `figures`."""
        figures = figures or {}
        self.done += steps
        self._bar.update(steps)
        now = time.monotonic()
        if figures:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in figures.items()}, refresh=False)
        if self._bar.disable and distributed.rank() == 0 and now - self._printed >= LINE_EVERY:
            self._printed = now
            left = (now - self._began) / max(self.done - self.start, 1) * (self.total - self.done)
            shown = "".join(f", {name} {value:.4g}" for name, value in figures.items())
            line = f"{self.name}: {self.unit} {self.done} of {self.total}{shown}, {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Close the bar."""
        self._bar.close()


def deadline(minutes: float | None) -> float:
    """Time to stop, by `time.monotonic`, for a limit in minutes from the start of this process or its torchrun.

    None: never. Waiting for a GPU in `setup_device` does not count, because it only happens without a scheduler.
    """
    if minutes is None:
        return float("inf")
    limit = 60.0 * minutes
    process = os.getppid() if torch.distributed.is_torchelastic_launched() else None
    return time.monotonic() - process_age(process) + _waited + limit - min(RESERVE, 0.1 * limit)
