"""Reservation of the GPUs of one machine, each for one job at a time.

By default all jobs would use the first GPU. So a job locks a file per GPU, and sets CUDA_VISIBLE_DEVICES for itself and
its children. The kernel releases the locks when the process ends.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from vaebm.system.errors import UserError
from vaebm.system.files import locked, lockless

FOLDER = Path(tempfile.gettempdir()) / f"vaebm-gpus-{os.getuid()}"
"""Folder of the locks, one file per GPU and one folder per user; other users' locks have no effect."""

RETRY_AFTER = 1.0
"""Seconds between attempts while too few GPUs are free."""

_LIST = """
import torch
for number in range(torch.cuda.device_count()):
    print(torch.cuda.get_device_properties(number).uuid)
"""

_held: list[int] = []
"""Descriptors of this process's locks, open until it ends."""


def visible_uuids() -> list[str]:
    """UUIDs of the visible GPUs, in CUDA's order.

    A child process lists them, because CUDA reads CUDA_VISIBLE_DEVICES once and must not start in this process yet.
    """
    return subprocess.run([sys.executable, "-c", _LIST], stdout=subprocess.PIPE, text=True, check=True).stdout.split()


def reserve_gpus(count: int, uuids: Callable[[], list[str]] = visible_uuids) -> None:
    """Reserve `count` visible GPUs, or all if there are fewer, for this process and its children, before CUDA starts.

    If CUDA_VISIBLE_DEVICES names no more than `count`, a scheduler, a user or an earlier call has chosen: nothing is
    locked.

    Args:
        uuids: returns the UUIDs of the visible GPUs, which identify a GPU under any name or number.

    Raises:
        UserError: the folder of the locks cannot be used.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = None if given is None else given.split(",")
    if names is not None and len(names) <= count:
        return
    devices = {uuid: str(number) if names is None else names[number] for number, uuid in enumerate(uuids())}
    if not devices:
        return
    count, waiting = min(count, len(devices)), False
    while not (taken := _attempt(devices, count)):
        if not waiting:
            lacking = f"fewer than {count} of the GPUs {', '.join(devices.values())} are free of other jobs"
            print(f"waiting: {lacking} (locks in {FOLDER})", file=sys.stderr, flush=True)
            waiting = True
        time.sleep(RETRY_AFTER)
    _held.extend(taken.values())
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices[uuid] for uuid in taken)


def _attempt(uuids: Iterable[str], count: int) -> dict[str, int]:
    """UUID → descriptor of `count` locks; empty if fewer are free, so that two jobs never wait for each other."""
    import fcntl  # not available on Windows

    taken: dict[str, int] = {}
    try:
        FOLDER.mkdir(mode=0o700, exist_ok=True)
        with locked(FOLDER / ".lock"):  # one process at a time
            for uuid in uuids:
                # not inherited by children (PEP 446), which may outlive this process
                lock = os.open(FOLDER / uuid, os.O_RDWR | os.O_CREAT, 0o600)
                try:
                    with lockless(FOLDER):
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(lock)
                    continue
                taken[uuid] = lock
                if len(taken) == count:
                    return taken
    except OSError as error:
        raise UserError(
            f"{FOLDER}: expected a folder of this user for the locks of GPUs, found {error.strerror}; "
            "set TMPDIR to another"
        ) from None
    for lock in taken.values():
        os.close(lock)
    return {}
