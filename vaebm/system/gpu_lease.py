"""GPUs of one machine, each for one job at a time.

Left alone, all jobs on a machine would take its first GPU. So a job locks a file for every GPU that it takes, and names those in
CUDA_VISIBLE_DEVICES for itself and its children. The kernel drops the locks when the process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from vaebm.system.errors import UserError

FOLDER = Path(tempfile.gettempdir()) / f"vaebm-gpus-{os.getuid()}"
"""Of the locks, one file for each GPU. Every user has one: users do not see each other's leases."""

AGAIN = 1.0
"""Seconds between two attempts while too few GPUs are free."""

_LIST = "import torch; [print(torch.cuda.get_device_properties(number).uuid) for number in range(torch.cuda.device_count())]"

_held: list[int] = []
"""Descriptors of this process's locks; nobody closes them."""


def visible() -> list[str]:
    """UUIDs of the GPUs that a process started now may use, in CUDA's order.

    Such a process is asked, because CUDA reads CUDA_VISIBLE_DEVICES once, and in this one it shall not have started yet.
    """
    return subprocess.run([sys.executable, "-c", _LIST], stdout=subprocess.PIPE, text=True, check=True).stdout.split()


def choose(count: int, uuids: Callable[[], list[str]] = visible) -> None:
    """Leave to this process and its children `count` GPUs that no other job of this user holds, or all if there are fewer.

    If CUDA_VISIBLE_DEVICES names no more than `count`, a scheduler, a user or an earlier call has chosen: it stays as it is, and
    nothing is locked. If it names more, the choice is among those. To be called before CUDA starts.

    Args:
        uuids: gives the UUIDs of what is visible: another name or number of the same GPU must not be a second lease on it.

    Raises:
        UserError: there is no folder for the locks.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = None if given is None else given.split(",")
    if names is not None and len(names) <= count:
        return
    if devices := {uuid: str(number) if names is None else names[number] for number, uuid in enumerate(uuids())}:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(_lease(devices, min(count, len(devices))))


def _lease(devices: Mapping[str, str], count: int) -> list[str]:
    """Lock `count` of `devices` (UUID → name) until this process ends, and return their names; wait, and say so, until as many are free."""
    told = False
    while not (taken := _attempt(devices, count)):
        if not told:
            names = ", ".join(devices.values())
            print(
                f"waiting: fewer than {count} of the GPUs {names} are free of other jobs (locks in {FOLDER})",
                file=sys.stderr,
                flush=True,
            )
            told = True
        time.sleep(AGAIN)
    _held.extend(taken.values())
    return [devices[uuid] for uuid in taken]


def _attempt(devices: Mapping[str, str], count: int) -> dict[str, int]:
    """UUID → descriptor of `count` locks; none if fewer are free, so that two jobs never wait for each other."""
    taken: dict[str, int] = {}
    with ExitStack() as at_the_end:
        try:
            FOLDER.mkdir(mode=0o700, exist_ok=True)
            one_at_a_time = os.open(FOLDER, os.O_RDONLY)
            at_the_end.callback(os.close, one_at_a_time)
            fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
            for uuid in devices:
                # closed in every program that is started (PEP 446): a child that lives on keeps no lock
                lock = os.open(FOLDER / uuid, os.O_RDWR | os.O_CREAT, 0o600)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(lock)
                    continue
                taken[uuid] = lock
                if len(taken) == count:
                    return taken
        except OSError as error:
            raise UserError(
                f"{FOLDER}: expected a folder of this user for the locks of GPUs, found {error.strerror}; set TMPDIR to another"
            ) from None
    for lock in taken.values():
        os.close(lock)
    return {}
