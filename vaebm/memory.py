"""Memory of the host: what large tensors free is kept for the next ones."""

from __future__ import annotations

import ctypes
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""Parameters of mallopt in glibc's <malloc.h>: bytes free at the end of the heap, and in a block, from which on they go back to the
system; number of heaps, of which only the first follows these two."""


def keep_freed_memory() -> None:
    """Let the C library keep what was freed, where it is glibc's.

    By default it gives large blocks back, and a chain or a training asks for the same ones at every step: mapping and clearing
    their pages again takes about a tenth of a step. The process then stays as large as it was at its largest.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(MMAP_THRESHOLD, 2**30)
        library.mallopt(TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(ARENA_MAX, 1)
