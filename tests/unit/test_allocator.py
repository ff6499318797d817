"""What the stages set of the C library's memory."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, threading, time
import torch
from vaebm.system.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
torch.set_num_threads(1)

def work():
    for _ in range(4):
        blocks = [torch.ones(10 * 2**20) for _ in range(4)]  # of 40 MB: a heap of a thread has room for one
        del blocks

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def chains():
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(0.1)  # Python sees a thread end before it has handed its heap back

for moved in (work, chains):
    moved()  # whatever memory it needs is there
    found = []
    for _ in range(3):
        before = faults()
        moved()
        found.append(faults() - before)
    print(min(found))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such settings")
def test_memory_that_was_freed_is_not_asked_of_the_system_again() -> None:
    """By the main thread, and by threads that are new for each chain: pages that are mapped anew."""

    def pages(setting: str) -> list[int]:
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "THP_MEM_"))
        }
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, setting], capture_output=True, text=True, check=True, env=environment
        )
        return [int(line) for line in done.stdout.split()]

    # tens of thousands where memory is returned in blocks of 4 kB, some hundred with larger blocks
    for few, many in zip(pages("kept"), pages("returned"), strict=True):
        assert 10 * few < many
