"""The state of the energy's training at a stated pace, as files: what a restart goes back to and the selection chooses from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vaebm.system import distributed
from vaebm.system.checkpoint import load_plain
from vaebm.system.files import writing


class Snapshot(NamedTuple):
    """One snapshot: which iteration it stands after, and how often the training had been restarted then."""

    iteration: int
    restarts: int


BEGINNING = Snapshot(0, 0)
"""Before the first iteration: for restarts alone, never a model."""


class Snapshots:
    """The last few snapshots, each in a file of `folder`, and which of them are good.

    A snapshot becomes good when the training has gone on for the guard's patience without a bad iteration, so a good one is
    never from the slope that ended in a divergence.

    The names of the snapshots are in the checkpoint, their contents are not. A file is removed only when neither of the last
    two checkpoints names it, so that a training that goes on from one of them finds what it had.

    Args:
        patience: iterations without a bad one that make a snapshot good.
        kept: good snapshots that are kept, the last ones.
    """

    folder: Path
    """Of the files, beside the checkpoints; set when the training that these belong to knows it."""

    def __init__(self, patience: int, kept: int):
        self.patience, self.kept = patience, kept
        self.waiting: list[Snapshot] = []
        self.good: list[Snapshot] = []
        self._saved: list[Snapshot] = []

    def take(self, snapshot: Snapshot, state: Callable[[], dict[str, Any]]) -> None:
        """Write a snapshot, which waits to become good; of several processes the first writes."""
        self.write(snapshot, state)
        self.waiting.append(snapshot)

    def write(self, snapshot: Snapshot, state: Callable[[], dict[str, Any]]) -> None:
        """Write the file of a snapshot: tensors and plain values; of several processes the first does."""
        if distributed.rank() == 0:
            with writing(self._path(snapshot)) as stream:
                torch.save(state(), stream)

    def read(self, snapshot: Snapshot) -> dict[str, Any]:
        """The state in the file of a snapshot, on the CPU.

        Raises:
            UserError: it is gone.
        """
        state: dict[str, Any] = load_plain(self._path(snapshot), "a snapshot of the training")
        return state

    def confirm(self, iteration: int) -> None:
        """All is well after `iteration` updates: those that have waited for the patience are good."""
        while self.waiting and iteration - self.waiting[0].iteration >= self.patience:
            self.good = [*self.good, self.waiting.pop(0)][-self.kept :]

    def confirm_all(self) -> None:
        """The training has ended well: all that wait are good."""
        self.good = [*self.good, *self.waiting][-self.kept :]
        self.waiting = []

    def doubt(self) -> None:
        """A bad iteration: those that wait never become good."""
        self.waiting = []

    @property
    def usable(self) -> list[Snapshot]:
        """The good ones whose files are there.

        All of them, but for a training that was about to save a state that is not finite, which is then not saved, and that
        goes on from the checkpoint before in another way than it did, as it may on a GPU.
        """
        return [snapshot for snapshot in self.good if self._path(snapshot).is_file()]

    @property
    def last_good(self) -> Snapshot:
        """Where a restart begins: the last good snapshot, or the beginning."""
        return [BEGINNING, *self.usable][-1]

    def state_dict(self) -> dict[str, Any]:
        """The names of the snapshots. A checkpoint is about to be saved: files that it and the one before do not name are removed."""
        named = [*self.good, *self.waiting]
        kept = {self._path(snapshot) for snapshot in (BEGINNING, *named, *self._saved)}
        for path in self.folder.glob("*.pt"):
            if path not in kept:
                path.unlink()
        self._saved = named
        return {
            "good": [tuple(snapshot) for snapshot in self.good],
            "waiting": [tuple(snapshot) for snapshot in self.waiting],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with those that were named."""
        self.good, self.waiting = ([Snapshot(*snapshot) for snapshot in state[name]] for name in ("good", "waiting"))
        self._saved = [*self.good, *self.waiting]

    def _path(self, snapshot: Snapshot) -> Path:
        return self.folder / f"{snapshot.iteration}-{snapshot.restarts}.pt"
