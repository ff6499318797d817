"""Host memory: keep freed memory for the next large tensors, or return it."""

import ctypes
import platform

MXFAST, TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = 1, -1, -2, -3
"""Parameters of mallopt (glibc's <malloc.h>), in bytes: size up to which freed blocks stay unmerged; free space at the
end of the heap above which it is returned to the system, -1: never; extra space by which the heap grows and that it
keeps; size from which a block has a mapping of its own."""


def keep_freed_memory() -> None:
    """Make glibc keep freed memory; no effect with other C libraries.

    By default glibc returns large blocks to the system. Chains and trainings allocate the same blocks in every step,
    and mapping and clearing their pages takes about a tenth of a step. The process keeps its peak size, except for
    blocks of threads beyond 64 MB.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        if not library.mallopt(MMAP_THRESHOLD, 2**30):
            library.mallopt(MMAP_THRESHOLD, 2**25)  # limit of older versions
        library.mallopt(TRIM_THRESHOLD, -1)
        library.mallopt(MXFAST, 0)  # else each free of 64 KB and more searches all small blocks for neighbours to merge
        # Threads have separate heaps in pieces of 64 MB, and keep an empty piece if TOP_PAD is larger. One heap for all
        # threads mixes their blocks, and chains are slower.
        library.mallopt(TOP_PAD, 2**27)


def return_freed_memory() -> None:
    """Make glibc return freed memory to the system, also between blocks in use; no effect with other C libraries."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
