"""The replay buffer: where the chains of earlier iterations ended, for later ones to start from (VAEBM with persistent chains)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaebm.noise import derive
from vaebm.system import distributed
from vaebm.system.errors import UserError


class ReplayBuffer:
    """The last noise ε_z of chains, one tensor per latent group in the memory of the host, written in place and around (as in JEM).

    The pixels' noise is not kept: it starts anew with every chain. Entries are counted from the oldest, which is 0; they
    stay when they are replayed, and the oldest make room for new ones.

    Each of several processes keeps its share of the entries, all make the same draws, and they exchange what was drawn. So a
    training is the same on any number of them, and a checkpoint can be continued by another number.

    Args:
        shapes: (latents, h, w) of each latent group.
        capacity: entries.
        seed: of the draws.
        probability: that a chain is replayed, after the first `anneal_steps` iterations.
        anneal_steps: iterations over which the probability grows linearly from zero.
        dtype: of the noise.
    """

    def __init__(
        self,
        shapes: Sequence[Sequence[int]],
        capacity: int,
        *,
        seed: int,
        probability: float,
        anneal_steps: int,
        dtype: torch.dtype = torch.float32,
    ):
        self.capacity, self.seed, self.probability, self.anneal_steps = capacity, seed, probability, anneal_steps
        self.eps = [torch.zeros(-(-capacity // distributed.processes()), *shape, dtype=dtype) for shape in shapes]
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
        rows = (self.inserted - len(self) + self.draw(step, batch)) % self.capacity
        own, places = self._own(rows)
        started = []
        for kept, new in zip(self.eps, fresh, strict=True):
            drawn = kept.new_zeros(len(rows), *kept.shape[1:])
            drawn[own] = kept[places]
            replayed = distributed.total(drawn)[share.start : share.stop]
            started.append(torch.cat([replayed.to(new), new[len(replayed) :]]))
        return started

    def _own(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Which of these rows of the whole buffer this process keeps, and where: the rows are dealt out like cards."""
        own = rows % distributed.processes() == distributed.rank()
        return own, rows[own] // distributed.processes()

    @torch.no_grad()
    def insert(self, eps: Sequence[Tensor]) -> None:
        """Add where all chains of an iteration ended; the first chain is the oldest of them.

        Args:
            eps: of this process's part of the batch, one (B, latents, h, w) per group.
        """
        rows = (self.inserted + torch.arange(len(eps[0]) * distributed.processes())) % self.capacity
        own, places = self._own(rows)
        for kept, part in zip(self.eps, eps, strict=True):
            kept[places] = distributed.gather(part).flatten(0, 1)[own.to(part.device)].to(kept)
        self.inserted += len(rows)

    def state_dict(self) -> dict[str, Any]:
        """Entries of all processes, in the first one's, and how many there have ever been, which says where the oldest stands."""
        shares = [distributed.collect(kept) for kept in self.eps]
        return {
            "eps": [
                None if share is None else share.transpose(0, 1).flatten(0, 1)[: self.capacity] for share in shares
            ],
            "inserted": self.inserted,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with saved entries."""
        self.inserted = state["inserted"]
        for kept, saved in zip(self.eps, state["eps"], strict=True):
            own = saved[distributed.rank() :: distributed.processes()]
            kept[: len(own)] = own
