"""Runs work in a child process, so that a crash of native code in it ends in one line that names the file."""

import contextlib
import faulthandler
import mmap
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from vaebm.system.errors import UserError, listed
from vaebm.system.log_file import replace_terminal

SLOT, SLOTS = 512, 256
"""Bytes of a note, and threads that can leave one."""

REFUSED, FAILED, STOPPED = 1, 2, 130
"""Exit status of the child: a `UserError`, another error, Ctrl-C."""

_notes: mmap.mmap | None = None
_slots: dict[int, int] = {}


def reading(name: str) -> None:
    """Note the file that this thread reads, for the error of a crash; without `contained` nothing happens."""
    slot = _slots.setdefault(threading.get_ident(), len(_slots))
    if _notes is not None and slot < SLOTS:
        _notes[slot * SLOT : (slot + 1) * SLOT] = name.encode(errors="backslashreplace")[:SLOT].ljust(SLOT, b"\0")


def contained(work: Callable[[], None]) -> None:
    """Run `work` in a child process where there is fork; its output, its errors and Ctrl-C are as without one.

    The child ends with this process, also if that is killed, so that two runs never write the same files.

    Raises:
        UserError: `work` raised it, or the child crashed.
    """
    global _notes
    try:
        sys.stdout.fileno()  # otherwise a test or a notebook collects the output
        fork = os.fork
    except (AttributeError, OSError):
        return work()
    sys.stdout.flush()
    sys.stderr.flush()
    _notes = mmap.mmap(-1, SLOT * SLOTS)
    (answer, answering), (ended, alive) = os.pipe(), os.pipe()
    child = fork()
    if child == 0:
        os.close(answer)
        os.close(alive)
        _run(work, answering, ended)
    os.close(answering)
    with os.fdopen(answer, "rb") as file:
        message = file.read().decode(errors="replace")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(alive)
    os.close(ended)
    notes, _notes = bytes(_notes), None
    if status < 0:
        slots = [notes[start : start + SLOT].rstrip(b"\0") for start in range(0, len(notes), SLOT)]
        names = listed([name.decode(errors="replace") for name in slots if name]) or "the raw files"
        why = ", perhaps for want of memory" if -status == signal.SIGKILL else ""
        raise UserError(
            f"{names}: expected whole files, found one on which its reader crashed "
            f"({signal.Signals(-status).name}{why}); get it anew, or remove it"
        )
    if status == STOPPED:
        raise KeyboardInterrupt
    if status == REFUSED:
        raise UserError(message)
    if status:
        raise RuntimeError(message)


def _run(work: Callable[[], None], answering: int, ended: int) -> NoReturn:
    """The child: `work`, then the end of this process."""
    threading.Thread(target=_end_with_parent, args=(ended,), daemon=True).start()
    status = FAILED
    faulthandler.disable()  # the one line says it
    try:
        _silence_libraries()
        work()
        status = 0
    except UserError as error:
        status = REFUSED
        os.write(answering, str(error).encode(errors="backslashreplace"))
    except KeyboardInterrupt:
        status = STOPPED
    except BaseException:
        os.write(answering, traceback.format_exc()[-10_000:].encode(errors="backslashreplace"))
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _end_with_parent(ended: int) -> None:
    """Wait until the parent has closed its side of the pipe, as the kernel does for one that was killed."""
    os.read(ended, 1)
    os._exit(FAILED)


def _silence_libraries() -> None:
    """Let native code write to nowhere: libtiff prints warnings that name no file."""
    try:
        terminal = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    except OSError:
        return
    replace_terminal(terminal)
