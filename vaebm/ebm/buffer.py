"""The replay buffer: where the chains of earlier iterations ended, for later ones to start from (VAEBM with persistent chains)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaebm import distributed
from vaebm.config import UserError
from vaebm.noise import derive


class ReplayBuffer:
    """The last noise ε_z of chains, one tensor per latent group in the memory of the host, written in place and around (as in JEM).

    The pixels' noise is not kept: it starts anew with every chain. Entries are counted from the oldest, which is 0; they
    stay when they are replayed, and the oldest make room for new ones.

    All of several processes hold the same buffer and make the same draws; each takes those of its own part of the batch, and
    all see where the chains of all have ended. So a training is the same on any number of them, and the first process's
    buffer in the checkpoint is everybody's, at the price of the whole buffer's memory in each of them.

    Args:
        shapes: (latents, h, w) of each latent group.
        capacity: entries.
        seed: of the draws.
        probability: that a chain is replayed, after the first `anneal_steps` iterations.
        anneal_steps: iterations over which the probability grows linearly from zero.
        dtype: of the noise.
    """

    def __init__(self, shapes: Sequence[Sequence[int]], capacity: int, *, seed: int, probability: float, anneal_steps: int, dtype: torch.dtype = torch.float32):
        self.capacity, self.seed, self.probability, self.anneal_steps = capacity, seed, probability, anneal_steps
        self.eps = [torch.zeros(capacity, *shape, dtype=dtype) for shape in shapes]
        self.inserted = 0

    def __len__(self) -> int:
        """Entries that there are."""
        return min(self.inserted, self.capacity)

    def draw(self, step: int, batch: int) -> Tensor:
        """Entries from which chains of iteration `step` start: a function of the seed, the step and the buffer's length.

        Each of `batch` chains is replayed with probability min(p, p · step / anneal_steps); the entries are distinct and
        equally likely.
        """
        generator = np.random.Generator(np.random.Philox(key=derive(self.seed, "replay", step)))
        probability = self.probability * min(1.0, step / self.anneal_steps)
        replayed = min(int((generator.random(batch) < probability).sum()), len(self))
        return torch.from_numpy(generator.choice(len(self), replayed, replace=False))

    def start(self, fresh: Sequence[Tensor], step: int) -> list[Tensor]:
        """Where the chains of iteration `step` start: replayed ones first, then fresh ones in the places that they have in `fresh`.

        Args:
            fresh: fresh noise for this process's part of the batch, one (B, latents, h, w) per group.

        Raises:
            UserError: the buffer cannot hold a batch.
        """
        batch = len(fresh[0]) * distributed.processes()
        if batch > self.capacity:
            raise UserError(
                f"replay buffer: expected a capacity of at least the {batch} chains of an iteration, found {self.capacity}; choose a larger capacity"
            )
        share = distributed.share(range(batch))
        entries = self.draw(step, batch)[share.start : share.stop]
        rows = (self.inserted - len(self) + entries) % self.capacity
        return [torch.cat([kept[rows].to(new), new[len(rows) :]]) for kept, new in zip(self.eps, fresh, strict=True)]

    @torch.no_grad()
    def insert(self, eps: Sequence[Tensor]) -> None:
        """Add where all chains of an iteration ended; the first chain is the oldest of them.

        Args:
            eps: of this process's part of the batch, one (B, latents, h, w) per group.
        """
        whole = [distributed.gather(part).flatten(0, 1) for part in eps]
        rows = (self.inserted + torch.arange(len(whole[0]))) % self.capacity
        for kept, new in zip(self.eps, whole, strict=True):
            kept[rows] = new.to(kept)
        self.inserted += len(rows)

    def state_dict(self) -> dict[str, Any]:
        """Entries, and how many there have ever been, which says where the oldest stands."""
        return {"eps": self.eps, "inserted": self.inserted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with saved entries."""
        self.inserted = state["inserted"]
        for kept, saved in zip(self.eps, state["eps"], strict=True):
            kept.copy_(saved)
