"""Imports without the garbage collector, stages without torch, the last line of the log."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vaebm.system import startup
from vaebm.system.log_file import tee_output

TOOK = re.compile(r"took (\d+\.\d) s, of which (\d+\.\d) s to start")


def test_imports_run_without_the_collector_and_are_left_out_of_it() -> None:
    """Also where they fail: a program that goes on has its collector back."""
    with startup.imports():
        assert not gc.isenabled()
    assert gc.isenabled() and gc.get_freeze_count() > 0
    with pytest.raises(ImportError), startup.imports():
        raise ImportError
    assert gc.isenabled()
    gc.unfreeze()


COMPILER = """
import importlib.util
import sys
from vaebm.system.startup import imports
with imports():
    import torch
    import vaebm.measures.fidelity_backend
weight = torch.nn.Parameter(torch.ones(2))
for kind in (torch.optim.Adam, torch.optim.Adamax, torch.optim.AdamW):
    optimizer = kind([weight], lr=0.1)
    weight.grad = torch.ones(2)
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
assert not [name for name in sys.modules if name.startswith("torch._dynamo.") and name != "torch._dynamo.utils"]
assert importlib.util.find_spec("torch._dynamo") is sys.modules["torch._dynamo"].__spec__
"""


@pytest.mark.parametrize(
    "code",
    [
        "assert torch.compile(lambda x: 2 * x, backend='eager')(torch.ones(2)).tolist() == [2, 2]",
        "assert torch.compiler.disable(lambda x: 2 * x)._torchdynamo_disable",
        "import torch._dynamo.config",
        "assert sys.modules['torchvision.ops.roi_align'].is_compile_supported('cpu') is True",
    ],
)
def test_torchs_compiler_is_imported_only_where_something_asks_for_it(code: str) -> None:
    """It takes as long as torch. Optimisers and torchvision do without it; all else finds the module itself."""
    after = """
import torch._dynamo
import torch._dynamo.utils
assert torch._dynamo.__file__ and torch._dynamo.utils.__file__ and torch._dynamo.utils.is_compile_supported("cpu")
assert torch._dynamo is sys.modules["torch._dynamo"] and torch._dynamo.utils is sys.modules["torch._dynamo.utils"]
optimizer.step()
"""
    subprocess.run([sys.executable, "-c", COMPILER + code + after], check=True)


def test_start_is_the_age_at_the_first_imports_and_the_length_of_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 s until the first have ended, work until 10 s, 3 s of imports more, 20 s in all."""
    clock = iter([2.0, 10.0, 13.0, 20.0])
    monkeypatch.setattr(startup, "_starting", None)
    monkeypatch.setattr(startup, "process_age", lambda: next(clock))
    assert startup.time_taken() is None
    with startup.imports():
        pass
    with startup.imports():
        pass
    assert startup.time_taken() == "took 20.0 s, of which 5.0 s to start"
    gc.unfreeze()


def test_age_is_that_of_the_process() -> None:
    """A child that slept, seen from outside."""
    before = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        after = time.monotonic()
        time.sleep(0.2)
        tick = 0.02  # the system counts hundredths of a second
        assert time.monotonic() - after - tick <= startup.process_age(child.pid) <= time.monotonic() - before + tick
        assert startup.process_age() > startup.process_age(child.pid)
        child.communicate(b"\n")


@pytest.mark.parametrize(("status", "written"), [(0, True), (None, True), (1, False), ("a message", False)])
def test_log_of_a_command_that_succeeds_ends_with_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: object, written: bool
) -> None:
    """That of one that fails ends with its message; the terminal shows neither."""
    monkeypatch.setattr(startup, "_starting", 1.5)
    with pytest.raises(SystemExit), tee_output(tmp_path / "log"):
        print("the work")
        sys.exit(status)  # type: ignore[arg-type]
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "the work" and len(lines) == 1 + written
    assert not written or TOOK.fullmatch(lines[1])
    assert capsys.readouterr().out == "the work\n"


def test_log_of_a_real_command(tmp_path: Path) -> None:
    """From the outside: it started within the time that it took, and it took no longer than it was waited for."""
    pins = tmp_path / "data.dvc"
    pins.write_text("outs:\n- path: data/other\n  md5: 0.dir\n")
    began = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "vaebm",
        "pin",
        str(tmp_path / "data" / "mine"),
        "--pins",
        str(pins),
        "--log",
        str(tmp_path / "log"),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    waited = time.monotonic() - began
    match = TOOK.fullmatch((tmp_path / "log").read_text().splitlines()[-1])
    assert match is not None
    took, start = map(float, match.groups())
    assert 0.0 < start <= took <= waited + 0.1


@pytest.mark.parametrize(
    "module", ["vaebm.cli.pin", "vaebm.report.aggregate", "vaebm.report.compare", "vaebm.tracking", "vaebm.cli"]
)
def test_small_stages_do_without_torch(module: str) -> None:
    """It takes longer to load than they work."""
    found = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "False\n"
