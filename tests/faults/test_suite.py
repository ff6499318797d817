"""A small share of the fault suite; `run.py` says how to run all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_share_of_the_fault_suite() -> None:
    share = ["--pictures", "2000", "--configurations", "20", "--damage", "5", "--kills", "2"]
    command = [sys.executable, str(Path(__file__).with_name("run.py")), *share]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:5]] == [
        [name, count] for name, count in zip((part[2:] for part in share[::2]), share[1::2], strict=True)
    ]
