"""When a training of the energy counts as diverged, and which of its snapshots are good."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from vaebm.config import GuardSettings
from vaebm.ebm.divergence_guard import HISTORY, Guard
from vaebm.ebm.snapshots import BEGINNING, Snapshot, Snapshots
from vaebm.system.errors import UserError


def watched(norms: list[float], **settings: Any) -> Guard:
    """A guard that has seen iterations with these gradient norms, and nothing else that moves."""
    guard = Guard(GuardSettings.model_validate(settings))
    for norm in norms:
        guard.watch(1.0, 0.0, 1.0, norm)
    return guard


def test_it_waits_for_its_patience_and_forgives() -> None:
    guard = Guard(GuardSettings(gap_limit=10.0, patience=3))
    for gap in (-11.0, -11.0, -9.0, -11.0, -11.0):
        guard.watch(0.0, gap, 1.0, 1.0)
    assert not guard.diverged
    guard.watch(0.0, 11.0, 1.0, 1.0)
    assert guard.diverged and guard.reason == "energy gap 11 is beyond 10 times the spread 1"


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (1.0, math.inf)])
def test_it_sees_values_that_are_not_finite(loss: float, norm: float) -> None:
    guard = Guard(GuardSettings(patience=2))
    for _ in range(2):
        guard.watch(loss, 0.0, 1.0, norm)
    assert guard.diverged


def test_a_scale_of_the_energy_is_no_divergence() -> None:
    """Everything grows together by five per cent an iteration, to 10⁸ times what it was: the guard does not mind."""
    guard = Guard(GuardSettings(patience=1))
    for iteration in range(380):
        scale = 1.05**iteration
        guard.watch(-2 * scale, -2 * scale, scale, 300 * scale)
        assert not guard.reason
    assert scale > 1e8
    fresh = Guard(GuardSettings(patience=1))
    fresh.watch(-1e6, -1e6, 5e5, 1e6)
    assert not fresh.diverged


def test_a_gradient_that_outruns_its_history_is_one() -> None:
    """A norm that grows by 30 % per iteration: the median of the earlier values grows half as fast."""
    first = next(n for n in range(100) if 1.3**n > 1000 * (1.3 ** ((n - 1) // 2) + 1.3 ** (n // 2)) / 2)
    guard = watched([1.3**iteration for iteration in range(first)])
    assert first == 52 and guard.bad == 0
    guard.watch(1.0, 0.0, 1.0, 1.3**first)
    assert (
        guard.bad == 1
        and guard.reason.startswith("gradient norm ")
        and "beyond 1000 times its median before" in guard.reason
    )


def test_a_loss_that_outruns_its_history_is_one() -> None:
    """Its sign does not matter, and the gap, which a penalty on the energies' size leaves as it was, need not tell."""
    guard = watched([1.0])
    guard.watch(-1001.0, 0.0, 1.0, 1.0)
    assert guard.reason == "loss 1001 is beyond 1000 times its median before, 1"


def test_a_loss_near_zero_is_no_unit() -> None:
    """As it is by chance in the first iteration of all, with energies that vary by a tenth."""
    guard = Guard(GuardSettings())
    for loss in (1e-7, 9.0):
        guard.watch(loss, 0.0, 0.1, 1.0)
        assert guard.bad == 0


def test_bad_iterations_are_no_history() -> None:
    """A gradient that has exploded stays out of proportion, however long it lasts; one that is back is good again."""
    guard = watched([1.0] * 5 + [1001.0] * 3 * HISTORY, patience=3 * HISTORY)
    assert guard.diverged and len(guard.history) == 5
    guard.watch(1.0, 0.0, 1.0, 999.0)
    assert guard.bad == 0 and guard.history[-1] == (1.0, 999.0)


def test_a_guard_goes_on_from_its_state_and_forgets_when_told(tmp_path: Path) -> None:
    guard = watched([1.0] * (HISTORY + 7) + [2000.0] * 2)
    torch.save(guard.state_dict(), tmp_path / "guard.pt")
    again = Guard(guard.settings)
    again.load_state_dict(torch.load(tmp_path / "guard.pt", weights_only=True))
    assert again == guard and again.bad == 2 and len(again.history) == HISTORY
    again.forget()
    assert again == Guard(guard.settings)


# ------------------------------------------------------------------------------------------------------------ snapshots
def snapshots(folder: Path, patience: int = 4, kept: int = 2) -> Snapshots:
    made = Snapshots(patience, kept)
    made.folder = folder
    return made


def taken(into: Snapshots, iteration: int, restarts: int = 0) -> None:
    into.take(Snapshot(iteration, restarts), lambda: {"iteration": iteration})


def iterations(of: list[Snapshot]) -> list[int]:
    return [snapshot.iteration for snapshot in of]


def test_snapshots_become_good_only_after_the_patience(tmp_path: Path) -> None:
    made = snapshots(tmp_path)
    for iteration in range(1, 24):
        if iteration % 10 == 0:
            taken(made, iteration)
        made.confirm(iteration)
    assert iterations(made.good) == [10] and iterations(made.waiting) == [20] and made.last_good == Snapshot(10, 0)
    made.doubt()  # the snapshot of iteration 20 stood before trouble
    made.confirm(40)
    assert iterations(made.good) == [10] and not made.waiting


def test_the_last_good_ones_are_kept_and_a_good_end_makes_all_good(tmp_path: Path) -> None:
    made = snapshots(tmp_path)
    assert made.last_good == BEGINNING
    for iteration in (10, 20, 30):
        taken(made, iteration)
        made.confirm(iteration + 4)
    assert iterations(made.good) == [20, 30]
    taken(made, 31)
    made.confirm(math.inf)
    assert iterations(made.good) == [30, 31] and not made.waiting
    assert made.read(made.good[-1]) == {"iteration": 31}
    (tmp_path / "31-0.pt").unlink()
    assert iterations(made.usable) == [30] and made.last_good == Snapshot(30, 0)


def test_files_stay_while_one_of_two_checkpoints_names_them(tmp_path: Path) -> None:
    """A training that resumes from the last but one checkpoint finds the snapshots of that time; others are gone."""
    made = snapshots(tmp_path)
    made.write(BEGINNING, dict)
    states: list[dict[str, Any]] = []
    for iteration in range(1, 200):
        if iteration % 3 == 0:
            taken(made, iteration)
        made.confirm(iteration)
        if iteration % 7 == 0:
            states.append(made.state_dict())
            files = {path.name for path in tmp_path.glob("*.pt")}
            for state in states[-2:]:
                torch.save(state, tmp_path / "checkpoint")
                again = snapshots(tmp_path)
                again.load_state_dict(torch.load(tmp_path / "checkpoint", weights_only=True))
                for snapshot in (*again.good, *again.waiting):
                    assert again.read(snapshot) == {"iteration": snapshot.iteration}
            named = {
                f"{pair[0]}-{pair[1]}.pt"
                for state in states[-2:]
                for name in ("good", "waiting")
                for pair in state[name]
            }
            assert files == named | {"0-0.pt"}


def test_damaged_snapshot_is_refused_until_it_is_removed(tmp_path: Path) -> None:
    """Without it another snapshot might become the model, which the user has to decide."""
    made = snapshots(tmp_path)
    for iteration in (10, 20):
        taken(made, iteration)
    made.confirm(math.inf)
    (tmp_path / "20-0.pt").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"20-0.pt: expected a snapshot with the hash \w+, found .*; remove it to go without"
    ):
        _ = made.usable
    (tmp_path / "20-0.pt").unlink()
    assert iterations(made.usable) == [10] and made.last_good == Snapshot(10, 0)


def test_a_snapshot_that_is_gone_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="7-1.pt: expected a snapshot of the training, found no file"):
        snapshots(tmp_path).read(Snapshot(7, 1))
