"""Regular snapshots of the training as files, for restarts and for the selection of the model."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vaebm.system import distributed
from vaebm.system.checkpoint import load_plain
from vaebm.system.errors import UserError
from vaebm.system.files import checksum, writing


class Snapshot(NamedTuple):
    """A snapshot: number of iterations before it, and number of restarts."""

    iteration: int
    restarts: int


BEGINNING = Snapshot(0, 0)
"""Before the first iteration; used only for restarts, never as a model."""


class Snapshots:
    """The last snapshots, one file each in `folder`, their hashes, and which of them are good.

    A snapshot becomes good after `patience` iterations without a bad one. The last `kept` good ones are kept.

    Checkpoints hold names and hashes of the snapshots, not their contents. A file is removed when neither of the last
    two checkpoints names it, so a training can resume from either.
    """

    folder: Path
    """Set once the training knows its checkpoint folder."""

    def __init__(self, patience: int, kept: int):
        self.patience, self.kept = patience, kept
        self.waiting: list[Snapshot] = []
        self.good: list[Snapshot] = []
        self._saved: list[Snapshot] = []
        self._hashes: dict[str, str] = {}
        """Name of a file → SHA-256 of its bytes; files of earlier versions have none."""

    def take(self, snapshot: Snapshot, state: Callable[[], dict[str, Any]]) -> None:
        """Write a snapshot, which then waits to become good."""
        self.write(snapshot, state)
        self.waiting.append(snapshot)

    def write(self, snapshot: Snapshot, state: Callable[[], dict[str, Any]]) -> None:
        """Write the file of a snapshot, on rank 0."""
        if distributed.rank() == 0:
            torch.save(state(), content := io.BytesIO())
            self._hashes[self._path(snapshot).name] = hashlib.sha256(content.getbuffer()).hexdigest()
            with writing(self._path(snapshot)) as stream:
                stream.write(content.getbuffer())

    def read(self, snapshot: Snapshot) -> dict[str, Any]:
        """Read the state of a snapshot, on the CPU.

        Raises:
            UserError: the file is missing or damaged.
        """
        path = self._path(snapshot)
        advice = f"remove it to go without it, or remove {self.folder.parent} to train again from the beginning"
        expected = self._hashes.get(path.name)
        if expected and path.is_file() and (found := checksum(path, "sha256")) != expected:
            wanted = f"expected a snapshot with the hash {expected[:12]}"
            raise UserError(f"{path}: {wanted}, found {found[:12]}: damaged; {advice}")
        try:
            return load_plain(path, "a snapshot of the training")
        except UserError as error:
            raise UserError(f"{error}; {advice}") from None

    def confirm(self, iteration: float) -> None:
        """Mark as good all snapshots that have waited for the patience, after `iteration` good updates; ∞: all."""
        while self.waiting and iteration - self.waiting[0].iteration >= self.patience:
            self.good = [*self.good, self.waiting.pop(0)][-self.kept :]

    def doubt(self) -> None:
        """Drop all waiting snapshots, after a bad iteration."""
        self.waiting = []

    @property
    def usable(self) -> list[Snapshot]:
        """The good snapshots whose files exist.

        A file may be missing when a state that is not finite was not saved, and the resumed training, on a GPU, took
        another course.

        Raises:
            UserError: a file is damaged; without it another snapshot might become the model.
        """
        there = [snapshot for snapshot in self.good if self._path(snapshot).is_file()]
        for snapshot in there:
            self.read(snapshot)
        return there

    @property
    def last_good(self) -> Snapshot:
        """The snapshot for a restart: the last good one, or the beginning."""
        return [BEGINNING, *self.usable][-1]

    def state_dict(self) -> dict[str, Any]:
        """Names and hashes, for a checkpoint; removes files that it and the previous one do not name."""
        named = [*self.good, *self.waiting]
        kept = {self._path(snapshot) for snapshot in (BEGINNING, *named, *self._saved)}
        for path in self.folder.glob("*.pt"):
            if path not in kept:
                path.unlink()
        self._saved = named
        self._hashes = {path.name: self._hashes[path.name] for path in kept if path.name in self._hashes}
        names = {name: [tuple(snapshot) for snapshot in getattr(self, name)] for name in ("good", "waiting")}
        return {**names, "hashes": self._hashes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore names and hashes."""
        self.good, self.waiting = ([Snapshot(*snapshot) for snapshot in state[name]] for name in ("good", "waiting"))
        self._saved, self._hashes = [*self.good, *self.waiting], state.get("hashes", {})

    def _path(self, snapshot: Snapshot) -> Path:
        return self.folder / f"{snapshot.iteration}-{snapshot.restarts}.pt"
