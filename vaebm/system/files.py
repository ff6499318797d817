"""Atomic writing and locking of files, and what is at a path, without torch, which takes seconds to load."""

import base64
import contextlib
import errno
import hashlib
import io
import itertools
import json
import os
import re
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vaebm.system.errors import UserError

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""Errors of file systems without locks, such as Lustre mounted without them."""

ABANDONED = 7 * 24 * 3600.0
"""Age in seconds at which the temporary file of a process on another machine counts as left over."""

_numbers = itertools.count()
_host = re.sub(r"[^\w-]", "-", socket.gethostname())[:32]
_said_no_locks = False


class _Output(io.FileIO):
    """File that remembers why a write failed, which libraries may hide behind errors of their own."""

    problem: OSError | None = None

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.problem = error
            raise


MODEL, EARLIER_MODEL = "model.safetensors", "model.pt"
"""Name of the model in the folder of a training, now and in earlier versions."""


def model_of(folder: Path) -> Path:
    """Model file in the folder of a training, under its earlier name if there is no other."""
    earlier = folder / EARLIER_MODEL
    return earlier if earlier.is_file() and not (folder / MODEL).is_file() else folder / MODEL


def seed_folder(run: Path) -> Path:
    """The run results/<experiment>/<variant>/seed<k> itself, or the first finished one of a variant.

    Raises:
        UserError: the variant has no finished run.
    """
    if run.name.startswith("seed"):
        return run
    if not (seeds := [path for path in run.glob("seed*") if model_of(path).is_file()]):
        raise UserError(
            f"{run}: expected a run (results/EXPERIMENT/VARIANT), found no model of a seed in it; "
            "run the experiment, or start in the project's folder"
        )
    return min(seeds, key=lambda path: (len(path.name), path.name))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Binary stream whose content replaces `path` atomically: temporary name, sync, rename.

    Temporary names are unique, so that the last of several writers wins. Those of processes that ended are removed.

    Raises:
        UserError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{_host}.{os.getpid()}.{next(_numbers)}.tmp")
    raw: _Output | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(path)
        with _Output(temporary, "w") as raw, io.BufferedWriter(raw) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except Exception as error:
        problem = raw.problem if raw is not None and raw.problem is not None else error
        if not isinstance(problem, OSError):
            raise
        raise UserError(
            f"{path}: cannot be written: {problem.strerror or problem}; choose another place, or make room there"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _remove_left_over(path: Path) -> None:
    """Remove temporary files of `path` whose process has ended."""
    form = re.compile(re.escape(f".{path.name}.") + r"(?:(?P<host>[\w-]+)\.)?(?P<process>\d+)\.(?:\d+\.)?tmp")
    for name in os.listdir(path.parent):
        if found := form.fullmatch(name):
            left = path.with_name(name)
            with contextlib.suppress(OSError):
                if found["host"] in (None, _host):
                    ended = not _is_alive(int(found["process"]))
                else:
                    ended = time.time() - left.stat().st_mtime > ABANDONED
                if ended:
                    left.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    """Whether a process of this machine runs; signal 0 only asks."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    return True


def write_json(path: Path, value: Any) -> None:
    """Write plain values as indented JSON, atomically."""
    with writing(path) as stream:
        stream.write((json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def checksum(path: Path, kind: str = "sha256") -> str:
    """Checksum of a file; `kind` is a name in `hashlib`.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, kind).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, which is created; without one where the file system has no locks.

    Raises:
        OSError: the file cannot be written.
    """
    import fcntl  # not available on Windows

    with path.open("ab") as file:
        with lockless(path):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def lockless(path: Path) -> Iterator[None]:
    """Within this context the errors of a file system without locks are reported once, and ignored."""
    global _said_no_locks
    try:
        yield
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        if not _said_no_locks:
            reason = f"{error.strerror}; start one run at a time there"
            lacking = "continuing without a lock, which this file system does not have"
            print(f"{path}: {lacking} ({reason})", file=sys.stderr)
        _said_no_locks = True


def snakemake_record(kind: str, output: Path | str) -> Path:
    """Path of Snakemake's record of an output, `metadata` of a finished job or `incomplete`."""
    name = base64.urlsafe_b64encode(str(output).encode()).decode()
    parts = [name[start : start + 254] for start in range(0, len(name), 254)]  # file systems have names up to 255
    return Path(".snakemake", kind, *(f"@{part}" for part in parts[:-1]), parts[-1])


def warn_unverified(path: Path, advice: str) -> None:
    """Say that a file is used without a check, because an earlier version wrote it without a hash."""
    what = "used unverified, without a hash, as results of earlier versions have none"
    print(f"warning: {path}: {what}; {advice}", file=sys.stderr)


def found_at(path: Path) -> str:
    """What is at a path, in words for errors: `a file`, `a folder`, `none`, or why it cannot be looked at."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "none"
    except (OSError, ValueError) as error:
        return f"one that cannot be read ({getattr(error, 'strerror', None) or error})"
    return "a folder" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "no plain file"
