"""Runs work in a child process, so that a crash of native code in it ends in one line that names the file."""

import faulthandler
import mmap
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

from vaebm.system.errors import UserError, listed
from vaebm.system.log_file import replace_terminal

SLOT, SLOTS = 512, 256
"""Bytes of a note, and threads that can leave one."""

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
        context = multiprocessing.get_context("fork")
    except (ValueError, OSError):
        return work()
    _notes = mmap.mmap(-1, SLOT * SLOTS)
    answer, answering = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(work, answering))
    child.start()
    answering.close()
    try:
        error: BaseException | None = answer.recv()
    except EOFError:
        error = None
    child.join()
    notes, _notes = bytes(_notes), None
    if error is not None:
        raise error
    if (status := child.exitcode or 0) < 0:
        slots = [notes[start : start + SLOT].rstrip(b"\0") for start in range(0, len(notes), SLOT)]
        names = listed([name.decode(errors="replace") for name in slots if name]) or "the raw files"
        why = ", perhaps for want of memory" if status == -signal.SIGKILL else ""
        raise UserError(
            f"{names}: expected whole files, found one on which its reader crashed "
            f"({signal.Signals(-status).name}{why}); get it anew, or remove it"
        )


def _run(work: Callable[[], None], answering: Connection) -> None:
    """The child: `work`, and what it raised, to the parent."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    faulthandler.disable()  # the one line says it
    try:
        _silence_libraries()
        work()
        answering.send(None)
    except (UserError, ModuleNotFoundError, KeyboardInterrupt) as error:
        answering.send(error)
    except BaseException:
        answering.send(RuntimeError(traceback.format_exc()[-10_000:]))


def _end_with_parent() -> None:
    """Wait until the parent has ended, also if it was killed."""
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _silence_libraries() -> None:
    """Let native code write to nowhere: libtiff prints warnings that name no file."""
    try:
        terminal = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    except OSError:
        return
    replace_terminal(terminal)
