"""Two real processes (gloo) are as one: sums and gradients, and trainings that stop together, go on and end alike.

Run as a program, this file is what the processes do: `test_distributed.py FOLDER FUNCTION …`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vaebm.training.loop
from vaebm.config.ebm import ReplaySettings
from vaebm.ebm.replay_buffer import ReplayBuffer
from vaebm.system import distributed
from vaebm.system.device import Interrupted, setup_device
from vaebm.system.distributed import all_reduce_max, average_gradients, check_share, gather, local_shard, mean, rank
from vaebm.system.errors import UserError
from vaebm.training.loop import Limits, Training, batch_indices

STEPS = 30
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--log-dir")
LAUNCH = ("-c", "import sys; from vaebm.system.distributed import launch; sys.exit(launch(2, sys.argv[1:]))")


@contextlib.contextmanager
def python(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """This interpreter with these arguments, until the context ends."""
    command = [sys.executable, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()  # processes that wait for each other for ever would outlive a test that failed


def cubes(x: Tensor, weight: Tensor, average: Tensor | None = None) -> Tensor:
    """A loss with batch statistics: mean cube of the deviations from `average`, by default the mean row of `x`."""
    hidden = x * weight
    return (hidden - (hidden.mean(0) if average is None else average)).pow(3).mean()


def images() -> Tensor:
    """Twelve rows of three numbers."""
    return torch.randn(12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def sums(folder: Path) -> None:
    """Everything that processes exchange; what this one got goes to a file of its own."""
    x, weight = images(), torch.ones(3, dtype=torch.float64, requires_grad=True)
    own = x[list(local_shard(range(len(x))))]
    cubes(own, weight, gather((own * weight).mean(0)).mean(0)).backward()
    average_gradients([weight])

    row = torch.tensor([2.0, -1.0], requires_grad=True)
    (gather(row).square().sum() * (1 + rank())).backward()

    shapes = [(2, 3), (4,), (), (1, 2, 2, 2), (3,)]
    several = [
        torch.zeros(shape, dtype=torch.float32 if number % 2 else torch.float64) for number, shape in enumerate(shapes)
    ]
    for parameter in several:
        parameter.grad = torch.arange(parameter.numel(), dtype=parameter.dtype).reshape(parameter.shape) + 10 * rank()
    several[3].grad = several[3].grad.to(memory_format=torch.channels_last)  # type: ignore[union-attr]
    without = torch.zeros(2)
    average_gradients([*several, without])

    left = torch.tensor(1.0 + rank())
    refused = []
    for careless in (
        lambda: check_share(5, "nvae.yaml: nvae.training.batch"),
        lambda: local_shard(range(5)),
        lambda: setup_device(threads=1, gpus=0),
    ):
        try:
            careless()
        except ValueError as error:  # a UserError is one
            refused.append(f"{type(error).__name__}: {error}")
    found: dict[str, Any] = {
        "weight": weight.grad,
        "row": row.grad,
        "several": [parameter.grad for parameter in several],
        "without": without.grad,
        "mean": (mean(left), left),
        "share": list(local_shard(range(8, 14))),
        "agree": [all_reduce_max(0), all_reduce_max(3 * rank()), all_reduce_max(143 - 142 * rank())],
        "refused": refused,
    }
    torch.save(found, folder / f"{rank()}.pt")


def train(folder: Path, stop_at: int | None = None, pause: float = 0.0, **limits: float) -> int:
    """Thirty steps of a small regression, four rows each over all processes; the number of the last step.

    Args:
        stop_at: step at which process 1 gets SIGTERM.
        pause: seconds that each step takes.
    """
    torch.manual_seed(0)
    x, model = images(), torch.nn.Linear(3, 1).double()
    run = Training("test", folder, {"seed": 0}, STEPS, {"model": model}, Limits(**limits))
    try:
        for step in run.steps():
            if step == stop_at and rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(pause)
            loss = model(x[batch_indices(step, 4, len(x), seed=0)][list(local_shard(range(4)))]).square().mean()
            model.zero_grad()
            loss.backward()
            average_gradients(model.parameters())
            with torch.no_grad():  # by hand: the first optimiser of a process takes seconds to import
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
            run.record(loss=float(mean(loss)), weight=float(model.weight.detach().sum()))
    except Interrupted:
        return run.step
    run.finish(status="finished", model="m" * 64)
    return run.step


def trainings(folder: Path) -> None:
    """A training as it is, and one that stops twice for process 1's sake; that process cannot write a file."""
    if rank() == 1:
        vaebm.training.loop.writing = vaebm.training.loop.write_json = None  # type: ignore[assignment]
        vaebm.training.loop.Checkpoints.save = None  # type: ignore[assignment,method-assign]
    train(folder / "whole", checkpoint_every=60 * rank())  # the first process alone says when: after every step
    stops = [
        train(folder / "cut", stop_at=4),
        train(folder / "cut", minutes=1e9 if rank() == 0 else 1e-9),
        train(folder / "cut"),
    ]
    (folder / f"{rank()}.json").write_text(json.dumps(stops))


def replays(folder: Path) -> None:
    """A replay buffer of 7 entries that 6 chains an iteration go through, saved and continued in the middle."""
    started, buffer = [], replay_buffer()
    for step in range(6):
        own = list(local_shard(range(6)))
        started.append(buffer.start([-images()[own]], step)[0])
        buffer.insert([images()[own] + step])
        if step == 3:
            state = buffer.state_dict()
            if rank() == 0:
                torch.save(state, folder / f"replay of {distributed.world_size()}.pt")
            all_reduce_max(0)  # the file is there
            buffer = replay_buffer()
            buffer.load_state_dict(torch.load(folder / f"replay of {distributed.world_size()}.pt"))
    torch.save(torch.stack(started), folder / f"started {rank()} of {distributed.world_size()}.pt")


def replay_buffer() -> ReplayBuffer:
    """A small one, of a capacity that two processes cannot share evenly."""
    settings = ReplaySettings(capacity=7, probability=0.8, anneal_iterations=2)
    return ReplayBuffer(settings, [(3,)], seed=0, dtype=torch.float64)


def slow(folder: Path) -> None:
    """The training, slow enough to be stopped from outside."""
    train(folder, pause=0.05, checkpoint_every=0.0)


def history(folder: Path) -> Tensor:
    """The numbers in history.jsonl, one row for each line; none where there is no file."""
    file = folder / "history.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return torch.tensor([list(json.loads(line).values()) for line in lines], dtype=torch.float64)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes under torchrun have left: their sums, and their trainings."""
    folder = tmp_path_factory.mktemp("pair")
    with python(*TORCHRUN, folder / "log", __file__, folder, "sums", "replays", "trainings") as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    return folder


def test_sums_and_gradients_of_two_processes_are_those_of_one(pair: Path) -> None:
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(cubes(images(), weight), weight)
    for number in range(2):
        found = torch.load(pair / f"{number}.pt")
        assert (found["weight"] - expected).abs().max() < 1e-14  # sums of 12 terms near 1, in another order
        assert found["row"].tolist() == [2 * 3 * 2.0, 2 * 3 * -1.0]  # (1 + 2) ∇ x²
        for gradient, kind in zip(found["several"], [torch.float64, torch.float32] * 3, strict=False):
            assert gradient.dtype == kind and torch.equal(
                gradient.flatten(), 5.0 + torch.arange(gradient.numel(), dtype=kind)
            )
        assert found["without"] is None
        assert found["mean"] == (1.5, 1.0 + number)
        assert found["share"] == [[8, 9, 10], [11, 12, 13]][number]
        assert found["agree"] == [0, 3, 143]
        assert found["refused"] == [
            "UserError: nvae.yaml: nvae.training.batch: expected a multiple of 2, the number of processes, found 5; "
            "change one of the two",
            "ValueError: 5 items for 2 processes",
            "UserError: expected one process for this stage, found 2 (WORLD_SIZE); run it without torchrun",
        ]


def test_a_replay_buffer_in_two_shares_is_the_whole_one(pair: Path, tmp_path: Path) -> None:
    """The same chains are replayed, and the same file is saved, which any number of processes can continue."""
    replays(tmp_path)
    saved = torch.load(pair / "replay of 2.pt"), torch.load(tmp_path / "replay of 1.pt")
    assert torch.equal(saved[0]["eps"][0], saved[1]["eps"][0]) and saved[0]["inserted"] == saved[1]["inserted"] == 24
    parts = [torch.load(pair / f"started {number} of 2.pt") for number in range(2)]
    whole = torch.load(tmp_path / "started 0 of 1.pt")
    assert torch.equal(torch.cat(parts, dim=1), whole)
    assert (whole[1:] > 0).any(dim=2).float().mean() > 0.2  # chains were replayed: what is fresh is −images


def test_one_process_is_its_own_sum() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    x.grad = torch.ones(2, 3)
    average_gradients([x])
    check_share(5, "batch")
    assert torch.equal(gather(x), x[None]) and torch.equal(mean(x), x) and not mean(x).requires_grad
    assert torch.equal(x.grad, torch.ones(2, 3)) and local_shard(range(3, 8)) == range(3, 8) and all_reduce_max(7) == 7


def test_what_stops_one_process_stops_both_at_the_same_step(pair: Path, tmp_path: Path) -> None:
    """By a signal, then by its time; both go on from the file that the first wrote, and end in the same bits."""
    for number in range(2):
        assert json.loads((pair / f"{number}.json").read_text()) == [5, 6, STEPS]
    assert (pair / "cut" / "history.jsonl").read_bytes() == (pair / "whole" / "history.jsonl").read_bytes()
    assert not list(pair.glob("*/checkpoints/*"))
    train(tmp_path)
    both, alone = history(pair / "whole"), history(tmp_path)
    assert (both - alone).abs().max() < 1e-12  # the means of a batch in two parts, thirty steps on


def test_a_launched_training_survives_what_happens_to_its_launcher(tmp_path: Path) -> None:
    """SIGTERM reaches the processes; they stop when the launcher is killed; one process then ends their training."""
    for end, status in ((signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)):
        before = len(history(tmp_path))
        with python(*LAUNCH, __file__, tmp_path, "slow") as process:
            while len(history(tmp_path)) < before + 3:
                assert process.poll() is None, process.communicate()
                time.sleep(0.01)
            process.send_signal(end)
            assert process.communicate(timeout=60)[1] == ""  # its pipes are closed when the last process has ended
            assert process.returncode == status
    assert len(history(tmp_path)) < STEPS
    assert train(tmp_path) == STEPS
    train(tmp_path / "alone")
    assert (history(tmp_path) - history(tmp_path / "alone")).abs().max() < 1e-12


def test_launched_processes_end_with_the_status_of_the_first_that_failed() -> None:
    """The other, which would go on for a minute, is ended; one that was killed is the cause whatever the other says."""
    program = "import os, sys, time; first = os.environ['RANK'] == '0'; "
    each = ("0", "sys.exit(75) if first else time.sleep(60)", "sys.exit(1) if first else os.kill(os.getpid(), 9)")
    statuses = [f"print(launch(2, ['-c', {program + one!r}]))" for one in each]
    with python("-c", f"from vaebm.system.distributed import launch; {'; '.join(statuses)}") as process:
        out, err = process.communicate(timeout=60)
    assert out.split() == ["0", "75", "137"]
    assert err == "process 1 of 2 was ended by signal SIGKILL; repeat the command to resume\n"


def test_a_mistake_is_told_once_on_the_screen_and_in_the_log(tmp_path: Path) -> None:
    """A command for two GPUs where two seem to exist starts two processes, which find none and use the CPU."""
    settings, log = tmp_path / "nvae.yaml", tmp_path / "nvae.log"
    program = "import torch; torch.cuda.device_count = lambda: 2; from vaebm.cli import main; main()"
    arguments = ["--data", tmp_path / "manifest.json", "--model", tmp_path / "model.pt", "--gpus", "2", "--log", log]
    with python("-c", program, "nvae", settings, *arguments) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and out == ""
    one, other = sorted(
        err.splitlines(), key=lambda line: str(settings) in line
    )  # two processes print: which one is first is open
    assert one == "2 GPU(s) requested, 0 found: running on the CPU" and str(settings) in other
    assert sorted(log.read_text().splitlines()) == sorted(err.splitlines())


def test_a_stage_for_one_process_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="expected one process for this stage, found 2"):
        setup_device(threads=1, gpus=0)


def test_variables_that_a_finished_torchrun_left_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    left = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in (left | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="expected the other processes of torchrun .*; unset RANK and WORLD_SIZE"):
        distributed.join("gloo")


if __name__ == "__main__":
    setup_device(threads=1, gpus=0, join=True)
    for name in sys.argv[2:]:
        {"sums": sums, "replays": replays, "trainings": trainings, "slow": slow}[name](Path(sys.argv[1]))
