"""Memory of the host: what large tensors free is kept for the next ones."""

from __future__ import annotations

import ctypes
import platform

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
"""Parameters of mallopt in glibc's <malloc.h>: bytes free at the end of the heap from which on they go back to the system; bytes by which a
heap grows beyond what is asked, and that are left to it; bytes of a block that is asked of the system, and given back, by itself."""


def keep_freed_memory() -> None:
    """Let the C library keep what was freed, where it is glibc's.

    By default it gives large blocks back, and a chain or a training asks for the same ones at every step: mapping and clearing
    their pages again takes about a tenth of a step. The process then stays as large as it was at its largest, but for blocks of
    threads beyond 64 MB.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        if not library.mallopt(MMAP_THRESHOLD, 2**30):
            library.mallopt(MMAP_THRESHOLD, 2**25)  # older versions take no more than this
        library.mallopt(TRIM_THRESHOLD, 2**31 - 1)
        # Threads have heaps of their own, in pieces of 64 MB, and keep a piece that is empty where more than that is to be left. In one heap for
        # all, blocks of threads that move chains mix, and chains are slower.
        library.mallopt(TOP_PAD, 2**27)
