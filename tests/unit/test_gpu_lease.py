"""Leases of GPUs among real processes, on GPUs that are only names: no CUDA is needed for the locks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vaebm.cli import commands
from vaebm.system import device, distributed, gpu_lease
from vaebm.system.errors import UserError
from vaebm.system.gpu_lease import reserve_gpus

UUIDS = ["a", "b", "c", "d"]
HOLDER = f"""
import subprocess, sys
from vaebm.system.gpu_lease import reserve_gpus
reserve_gpus(int(sys.argv[1]), lambda: {UUIDS})
program = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); import time; time.sleep(30)"
subprocess.run([sys.executable, "-c", program], close_fds=False)
"""
"""A job: takes GPUs and starts a program, with all that it may inherit, which prints those that it sees and goes on."""

Start = Callable[[int], "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts jobs with a number of GPUs each, in their own sessions; this process shares their locks and GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(gpu_lease, "FOLDER", tmp_path / gpu_lease.FOLDER.name)
    monkeypatch.setattr(gpu_lease, "_held", [])
    jobs = []

    def job(count: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLDER, str(count)]
        jobs.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        )
        return jobs[-1]

    yield job
    for process in jobs:
        os.killpg(process.pid, signal.SIGKILL)  # the programs that jobs started, too
        process.communicate()
    for descriptor in gpu_lease._held:
        os.close(descriptor)


def seen(job: subprocess.Popen[str]) -> str:
    """What the job's child sees, as soon as it has its GPUs."""
    assert job.stdout is not None
    return job.stdout.readline().strip()


def said(job: subprocess.Popen[str]) -> str:
    """The job's next message."""
    assert job.stderr is not None
    return job.stderr.readline()


def test_four_jobs_have_four_gpus_and_a_killed_one_frees_its_own(start: Start) -> None:
    """All at once; a fifth waits and says so, and gets the GPU of the one that is killed, whose child lives on."""
    jobs = [start(1) for _ in UUIDS]
    held = {seen(job): job for job in jobs}
    assert sorted(held) == ["0", "1", "2", "3"]
    fifth = start(1)
    assert said(fifth).startswith("waiting: fewer than 1 of the GPUs 0, 1, 2, 3 are free")
    held["2"].kill()
    held["2"].wait()
    assert seen(fifth) == "2"
    os.killpg(held["2"].pid, 0)  # raises where the child is gone: then it was its end that freed the GPU


def test_a_job_that_waits_for_two_holds_none(start: Start) -> None:
    """Three GPUs are held and two requested: the free one is not locked, so two such jobs cannot deadlock."""
    three = start(3)
    assert seen(three) == "0,1,2"
    both = start(2)
    assert said(both).startswith("waiting: fewer than 2")
    reserve_gpus(1, lambda: UUIDS)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    three.kill()
    assert seen(both) == "0,1"


def test_gpus_chosen_from_outside_stay(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as asked for, or fewer: nothing is looked up, nothing locked."""
    for given, count in (("5", 1), ("5", 2), ("3,GPU-1f", 2), ("", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        reserve_gpus(count, lambda: pytest.fail("looked up"))
        assert os.environ["CUDA_VISIBLE_DEVICES"] == given
    assert not gpu_lease.FOLDER.exists()


def test_more_gpus_from_outside_are_a_choice_among_them(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the names that they were given; what is lent is the GPU, whatever its name."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,GPU-b")
    reserve_gpus(1, lambda: ["h", "b"])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")  # another process might see the same GPU as its first
    reserve_gpus(1, lambda: ["h", "b", "c"])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def test_fewer_gpus_than_asked_for_are_all_taken(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve_gpus(8, lambda: UUIDS)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    reserve_gpus(1, list)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_without_a_folder_for_the_locks_one_line_says_so(start: Start) -> None:
    gpu_lease.FOLDER.write_text("")
    with pytest.raises(
        UserError, match="expected a folder of this user for the locks of GPUs, found File exists; set TMPDIR"
    ):
        reserve_gpus(1, lambda: UUIDS)


def test_jobs_choose_their_gpus(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of one process takes one GPU; a training takes its GPUs before it starts its processes."""
    monkeypatch.setattr(gpu_lease, "_LIST", "print('a b c')")
    device.setup_device(threads=1, gpus=1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(distributed, "launch", lambda count, command: f"{count} processes")
    with pytest.raises(SystemExit, match="2 processes"):
        commands._one_process_per_gpu(2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,2"

    monkeypatch.setattr(gpu_lease, "_LIST", "raise SystemExit(1)")
    monkeypatch.setenv("WORLD_SIZE", "2")
    commands._one_process_per_gpu(2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,2"


def test_no_gpu_asked_for_none_taken(start: Start) -> None:
    device.setup_device(threads=1, gpus=0)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ and not gpu_lease.FOLDER.exists()
