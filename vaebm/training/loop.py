"""The training loop: resume, history, progress, time limit, signals."""

import functools
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vaebm.config import fingerprint
from vaebm.data import ImageSet
from vaebm.noise import derive
from vaebm.records.files import recording, write_record
from vaebm.records.training import TrainingRecord
from vaebm.system import distributed
from vaebm.system.checkpoint import Checkpoints
from vaebm.system.device import RESUME, Interrupted, Progress, deadline, peak_memory, stop_signals
from vaebm.system.errors import UserError
from vaebm.system.files import writing
from vaebm.system.provenance import commit

CONTINUE, SAVE = 0, 1
"""Votes of a process after each step; a larger vote: save, then exit with this status."""


def batch_indices(step: int, batch: int, images: int, seed: int) -> Tensor:
    """Indices of the images of a step, a function of seed, epoch and position; incomplete batches are dropped."""
    epoch, position = divmod(step, images // batch)
    return _order(seed, epoch, images)[position * batch : (position + 1) * batch]


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, images: int) -> Tensor:
    """Random order of the images in an epoch, (images,)."""
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=derive(seed, "order", epoch))).permutation(images))


def training_batch(images: Tensor, step: int, batch: int, seed: int, flip: bool) -> Tensor:
    """The global batch of a step, a function of seed and step.

    Args:
        images: all training images, (N, C, H, W).
        batch: number of images.
        flip: mirror each image horizontally with probability ½, as the published loaders do.
    """
    chosen = images[batch_indices(step, batch, len(images), seed)]
    if not flip:
        return chosen
    draws = np.random.Generator(np.random.Philox(key=derive(seed, "flip", step))).random(batch) < 0.5
    return torch.where(torch.from_numpy(draws).to(chosen.device)[:, None, None, None], chosen.flip(3), chosen)


def training_images(dataset: ImageSet, device: torch.device, batch: int, key: str) -> Tensor:
    """All training images (N, C, H, W) uint8, on the device.

    Raises:
        UserError: fewer images than `batch`, the value of the setting `key`.
    """
    images = dataset.split("train")[0].to(device)
    if batch > len(images):
        raise UserError(f"{key}: expected at most the {len(images)} training images, found {batch}")
    return images


def _finite(state: Any) -> bool:
    """Whether all tensors in nested dictionaries and lists are finite."""
    if isinstance(state, Tensor):
        return bool(torch.isfinite(state).all())
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return all(_finite(part) for part in parts)


class Stateful(Protocol):
    """An object with a state, such as a module or an optimiser."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Restore a saved state."""


@dataclass(frozen=True)
class Limits:
    """Limits of the machine, not part of the fingerprint."""

    minutes: float | None = None
    """Time limit of the job; the training saves and stops before it. None: no limit."""
    checkpoint_every: float = 60.0
    """Seconds between checkpoints."""


class Training:
    """One training in the folder of its model: iterate over `steps`, `record` values, then `finish`.

    The state is saved in checkpoints/<fingerprint>/ at intervals, on SIGTERM and SIGINT, and before the time limit. The
    same command resumes it and, on a CPU, ends in the same bits as an uninterrupted training.

    All processes read the checkpoint, and process 0 writes files. A stop applies to all after the same step.

    Args:
        depends_on: plain values that determine the result: settings, seed, hashes of data and models.
        state: named objects that hold the training's state.

    Raises:
        UserError: processes found different checkpoints.
    """

    def __init__(
        self,
        stage: str,
        folder: Path,
        depends_on: dict[str, Any],
        total: int,
        state: dict[str, Stateful],
        limits: Limits,
    ):
        self.stage, self.folder, self.total, self.state, self.limits = stage, folder, total, state, limits
        self.fingerprint = fingerprint({"stage": stage, **depends_on})
        self.depends_on = depends_on
        self.scratch = folder / "checkpoints" / self.fingerprint[:16]
        self.checkpoints = Checkpoints(self.scratch)
        self.history = folder / "history.jsonl"
        self._deadline = deadline(limits.minutes)
        self.step, self.seconds = 0, 0.0
        self.extra: dict[str, Any] = {}
        self._records: list[str] = []
        self._shown: dict[str, float] = {}
        if (saved := self.checkpoints.load()) is not None:
            for name, part in self.state.items():
                part.load_state_dict(saved["state"][name])
            self.step, self.seconds = saved["step"], saved["seconds"]
            self.extra, self._records = saved["extra"], saved["records"]
            print(f"{self.stage}: resuming at step {self.step} of {self.total}", flush=True)
        elif "VAEBM_STORAGE" in os.environ:
            print(f"{self.stage}: begins at step 0: checkpoints stay on this machine, for its jobs alone", flush=True)
        newest = distributed.all_reduce_max(self.step)
        if newest != self.step:
            raise UserError(
                f"{self.scratch}: expected the checkpoint of step {newest}, as another process, "
                f"found step {self.step}: all need the same folder"
            )

    def steps(self) -> Iterator[int]:
        """The remaining steps; the state may be saved between them.

        Raises:
            Interrupted: a signal or the time limit, in all processes after the same step, with the state saved.
        """
        saved = time.monotonic()
        began = saved - self.seconds
        progress = Progress(self.stage, self.total, self.step)
        with stop_signals() as signals:
            try:
                while self.step < self.total:
                    yield self.step
                    self.step += 1
                    progress.advance(self._shown)
                    now = time.monotonic()
                    self.seconds = now - began
                    decision = distributed.all_reduce_max(self._vote(signals, now, now - saved))
                    if decision:
                        kept = self.save()
                        saved = now
                    if decision > SAVE:
                        distributed.all_reduce_max(0)  # wait until process 0 has saved
                        reason = "by a signal"
                        if decision == RESUME:
                            reason = f"before its time limit of {self.limits.minutes:g} minutes"
                        raise Interrupted(f"{self.stage} stopped at step {self.step} {reason}", decision, kept)
                    if self.step == self.total and not decision:  # what follows can be interrupted too
                        self.save()
            finally:  # also after a `break` of the caller
                self.seconds = time.monotonic() - began
                progress.close()

    def _vote(self, signals: list[int], now: float, unsaved: float) -> int:
        """Vote of this process after a step; the largest vote of all processes decides."""
        if signals:
            return 128 + signals[-1]
        if now > self._deadline and self.step < self.total:
            return RESUME
        return SAVE if distributed.rank() == 0 and unsaved >= self.limits.checkpoint_every else CONTINUE

    def show(self, **values: float) -> None:
        """Show values of the present step next to the progress."""
        self._shown = values

    def record(self, **values: float) -> None:
        """Add a line with the present step and `values` to the history, and show the first three."""
        self._records.append(json.dumps({"step": self.step, **values}))
        self.show(**dict(list(values.items())[:3]))

    def save(self) -> bool:
        """Save state and history.jsonl, in process 0; False: the state is not finite, and nothing was saved."""
        # in all processes: some states are sharded
        state = {name: part.state_dict() for name, part in self.state.items()}
        if not _finite(state):
            return False
        if distributed.rank() > 0:
            return True
        content = {"step": self.step, "seconds": self.seconds, "extra": self.extra, "records": self._records}
        content |= {"fingerprint": self.fingerprint, "depends_on": json.dumps(self.depends_on), "state": state}
        self.checkpoints.save(self.step, content)
        self.write_history()
        return True

    def write_history(self) -> None:
        """Write history.jsonl, in process 0."""
        if distributed.rank() > 0:
            return
        with writing(self.history) as stream:
            stream.write("".join(f"{line}\n" for line in self._records).encode())

    def finish(self, **facts: Any) -> None:
        """Write the history and training.json with `facts`, the time taken and the commit, in process 0.

        The checkpoints are removed, so that the same command starts a new training.

        Raises:
            UserError: a fact is not finite.
        """
        if distributed.rank() > 0:
            return
        self.write_history()
        record = {"stage": self.stage, "steps": self.step, "seconds": round(self.seconds, 1)}
        record |= {"fingerprint": self.fingerprint, **self.depends_on, **facts, "system": peak_memory(), **commit()}
        with recording(path := self.folder / "training.json", "the training diverged: choose a smaller learning rate"):
            write_record(path, TrainingRecord.model_validate(record))
        shutil.rmtree(self.scratch, ignore_errors=True)
