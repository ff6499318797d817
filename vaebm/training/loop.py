"""What every training needs beside its equations: resume, history, snapshots, progress, time limit, signals."""

from __future__ import annotations

import json
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
from vaebm.noise import derive
from vaebm.system import distributed
from vaebm.system.checkpoint import Checkpoints
from vaebm.system.device import RESUME, Interrupted, Progress, StopSignals, deadline
from vaebm.system.errors import UserError
from vaebm.system.files import write_json, writing
from vaebm.system.provenance import commit

SAVE = 1
"""What a process wants after a step, beside 0, to go on, and an exit status, to stop with: that the state is saved."""


def batch_indices(step: int, batch: int, images: int, seed: int) -> Tensor:
    """Which images step `step` takes: a function of (seed, epoch, position); the last, incomplete batch is dropped."""
    epoch, position = divmod(step, images // batch)
    order = np.random.Generator(np.random.Philox(key=derive(seed, "order", epoch))).permutation(images)
    return torch.from_numpy(order[position * batch : (position + 1) * batch])


def training_batch(images: Tensor, step: int, batch: int, seed: int, flip: bool) -> Tensor:
    """The global batch of step `step`, a function of (seed, epoch, position).

    Args:
        images: all training images, (N, C, H, W).
        batch: images in it.
        flip: turn each image left to right with probability one half, as the published loaders do.
    """
    chosen = images[batch_indices(step, batch, len(images), seed)]
    if not flip:
        return chosen
    draws = np.random.Generator(np.random.Philox(key=derive(seed, "flip", step))).random(batch) < 0.5
    return torch.where(torch.from_numpy(draws).to(chosen.device)[:, None, None, None], chosen.flip(3), chosen)


def _finite(state: Any) -> bool:
    """Whether every number in the tensors of nested dictionaries and lists is finite."""
    if isinstance(state, Tensor):
        return bool(torch.isfinite(state).all())
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return all(_finite(part) for part in parts)


class Stateful(Protocol):
    """A module, an optimiser, or whatever else has a state."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Go on from a saved state."""


@dataclass(frozen=True)
class Limits:
    """Machine facts of a training, outside its fingerprint.

    Attributes:
        minutes: the job's time limit; the training saves and stops before it. None: no limit.
        checkpoint_every: seconds between two checkpoints.
    """

    minutes: float | None = None
    checkpoint_every: float = 60.0


class Training:
    """One training run in the folder of its model: iterate over `steps`, `record` figures, `finish`.

    "To resume, run the same command again": the state is saved in checkpoints/<fingerprint>/ at intervals, on SIGTERM and
    SIGINT, and before the time limit. What is saved at step k and continued ends in the same bits as what was never cut.

    Several processes go through the same steps: all read the checkpoint, the first alone writes files, and what makes one of
    them stop, a signal or its time, stops them all after the same step.

    Args:
        stage: name of the stage.
        folder: where the model will stand.
        depends_on: plain values that the result depends on: settings, seed, data hash, hashes of models.
        total: steps in all.
        state: named objects whose state makes up the training's.
        limits: machine facts.

    Raises:
        UserError: processes that see different checkpoints.
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
        self.step = 0
        self.seconds = 0.0
        self.extra: dict[str, Any] = {}
        self._records: list[str] = []
        self._shown: dict[str, float] = {}
        self._resume()

    def _resume(self) -> None:
        saved = self.checkpoints.load()
        if saved is not None:
            for name, part in self.state.items():
                part.load_state_dict(saved["state"][name])
            self.step, self.seconds, self.extra, self._records = (
                saved["step"],
                saved["seconds"],
                saved["extra"],
                saved["records"],
            )
            print(f"{self.stage}: going on at step {self.step} of {self.total}", flush=True)
        newest = distributed.agree(self.step)
        if newest != self.step:
            raise UserError(
                f"{self.scratch}: expected the checkpoint of step {newest}, as another process, found step {self.step}: all need the same folder"
            )

    def steps(self) -> Iterator[int]:
        """The steps that are left; between two of them the state may be saved.

        Raises:
            Interrupted: on a signal or before the time limit, after the state was saved; in all processes after the same step.
        """
        began = saved = time.monotonic()
        before = self.seconds
        self._progress = Progress(self.stage, self.total, self.step)
        with StopSignals() as signals:
            while self.step < self.total:
                yield self.step
                self.step += 1
                self._progress.advance(self._shown)
                now = time.monotonic()
                self.seconds = before + now - began
                decision = distributed.agree(self._wish(signals.received, now, now - saved))
                if decision:
                    self.save()
                    saved = now
                if decision > SAVE:
                    distributed.agree(0)  # that the first process has saved: the first to end takes the others with it
                    reason = (
                        f"before its time limit of {self.limits.minutes:g} minutes"
                        if decision == RESUME
                        else "by a signal"
                    )
                    raise Interrupted(f"{self.stage} stopped at step {self.step} {reason}", decision)
        self._progress.close()

    def _wish(self, signal: int | None, now: float, unsaved: float) -> int:
        """What this process wants after a step; the largest of all processes' wishes is done."""
        if signal is not None:
            return 128 + signal
        if now > self._deadline and self.step < self.total:
            return RESUME
        return SAVE if distributed.rank() == 0 and unsaved >= self.limits.checkpoint_every else 0

    def show(self, **figures: float) -> None:
        """Show `figures` of the present step beside the progress."""
        self._shown = figures

    def record(self, **figures: float) -> None:
        """Add one line to the history, the present step and `figures`, and show the first three."""
        self._records.append(json.dumps({"step": self.step, **figures}))
        self.show(**{name: figures[name] for name in list(figures)[:3]})

    def save(self) -> None:
        """Save the whole state, and bring history.jsonl up to it; the first process does. What is not finite is not saved: the last good state stays."""
        state = {
            name: part.state_dict() for name, part in self.state.items()
        }  # in every process: some is kept in shares
        if distributed.rank() > 0 or not _finite(state):
            return
        self.checkpoints.save(
            self.step,
            {
                "step": self.step,
                "seconds": self.seconds,
                "extra": self.extra,
                "records": self._records,
                "fingerprint": self.fingerprint,
                "depends_on": json.dumps(self.depends_on),
                "state": state,
            },
        )
        self.write_history()

    def write_history(self) -> None:
        """Write history.jsonl as it stands now; the first process does."""
        if distributed.rank() > 0:
            return
        with writing(self.history) as stream:
            stream.write("".join(f"{line}\n" for line in self._records).encode())

    def finish(self, **facts: Any) -> None:
        """Write the whole history and training.json with `facts`, the time taken and where it all came from; the first process does.

        The checkpoints are removed: run again, a finished training is a new one, of the program as it is then.
        """
        if distributed.rank() > 0:
            return
        self.write_history()
        write_json(
            self.folder / "training.json",
            {
                "stage": self.stage,
                "steps": self.step,
                "seconds": round(self.seconds, 1),
                "fingerprint": self.fingerprint,
                **self.depends_on,
                **facts,
                **commit(),
            },
        )
        shutil.rmtree(self.scratch, ignore_errors=True)
