"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_quickstart_runs(tiny_run):
    """The Python of the README, on the finished run of `tiny`; at most 15 lines."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(code.splitlines()) <= 15
    printed = tiny_run.run(sys.executable, "-c", code.replace("results/digits", "results/tiny"))
    assert re.fullmatch(r"torch\.Size\(\[64, 1, 8, 8\]\) -?\d+\.\d+ -?\d+\.\d+\n", printed)
