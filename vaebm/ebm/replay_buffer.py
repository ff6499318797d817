"""Replay buffer of chain ends for later iterations to start from (VAEBM with persistent chains)."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaebm.config.ebm import ReplaySettings
from vaebm.noise import derive
from vaebm.system import distributed
from vaebm.system.errors import UserError


class ReplayBuffer:
    """Ring buffer of the final noise ε_z of chains, one tensor per latent group (latents, h, w) in host memory (JEM).

    Pixel noise is not kept. Entry 0 is the oldest; replayed entries stay, new entries replace the oldest.

    Entries are distributed over the processes. All processes make the same draws and exchange the drawn entries, so
    training and checkpoints do not depend on the number of processes.
    """

    def __init__(self, settings: ReplaySettings, shapes: Sequence[Sequence[int]], seed: int, dtype: torch.dtype):
        self.settings, self.capacity, self.seed = settings, settings.capacity, seed
        rows = math.ceil(self.capacity / distributed.world_size())
        self.eps = [torch.zeros(rows, *shape, dtype=dtype) for shape in shapes]
        self.inserted = 0

    def __len__(self) -> int:
        """Number of entries."""
        return min(self.inserted, self.capacity)

    def draw(self, step: int, batch: int) -> Tensor:
        """Draw the entries that chains of iteration `step` start from: a function of seed, step and length.

        Each of `batch` chains is replayed with probability min(p, p · step / anneal_iterations). Entries are drawn
        without replacement, with equal probability.
        """
        generator = np.random.Generator(np.random.Philox(key=derive(self.seed, "replay", step)))
        probability = self.settings.probability * min(1.0, step / self.settings.anneal_iterations)
        replayed = min(int((generator.random(batch) < probability).sum()), len(self))
        return torch.from_numpy(generator.choice(len(self), replayed, replace=False))

    def start(self, fresh: Sequence[Tensor], step: int) -> list[Tensor]:
        """Start noise of iteration `step` for this process's part of the batch, one (B, latents, h, w) per group.

        Replayed entries come first, then `fresh` noise in its own places.

        Raises:
            UserError: the buffer cannot hold a batch.
        """
        batch = len(fresh[0]) * distributed.world_size()
        if batch > self.capacity:
            raise UserError(
                f"replay buffer: expected a capacity of at least the {batch} chains of an iteration, "
                f"found {self.capacity}; choose a larger capacity"
            )
        share = distributed.local_shard(range(batch))
        rows = (self.inserted - len(self) + self.draw(step, batch)) % self.capacity
        own, places = self._own(rows)
        started = []
        for kept, new in zip(self.eps, fresh, strict=True):
            drawn = kept.new_zeros(len(rows), *kept.shape[1:])
            drawn[own] = kept[places]
            replayed = distributed.all_reduce_sum(drawn)[share.start : share.stop]
            started.append(torch.cat([replayed.to(new), new[len(replayed) :]]))
        return started

    def _own(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mask of the rows that this process keeps (round-robin), and their local indices."""
        own = rows % distributed.world_size() == distributed.rank()
        return own, rows[own] // distributed.world_size()

    @torch.no_grad()
    def insert(self, eps: Sequence[Tensor]) -> None:
        """Add the ends of an iteration's chains, the first as the oldest; `eps` is this process's part of them."""
        rows = (self.inserted + torch.arange(len(eps[0]) * distributed.world_size())) % self.capacity
        own, places = self._own(rows)
        for kept, part in zip(self.eps, eps, strict=True):
            kept[places] = distributed.gather(part).flatten(0, 1)[own.to(part.device)].to(kept)
        self.inserted += len(rows)

    def state_dict(self) -> dict[str, Any]:
        """All entries, on rank 0, and the total number of insertions, which locates the oldest entry."""
        eps = []
        for kept in self.eps:
            shares = distributed.gather_to_rank0(kept)
            eps.append(None if shares is None else shares.transpose(0, 1).flatten(0, 1)[: self.capacity])
        return {"eps": eps, "inserted": self.inserted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore saved entries."""
        self.inserted = state["inserted"]
        for kept, saved in zip(self.eps, state["eps"], strict=True):
            own = saved[distributed.rank() :: distributed.world_size()]
            kept[: len(own)] = own
