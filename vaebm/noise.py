"""Noise as a function of (seed, purpose, step, global index of the sample), never of rank, batch or shard."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, independent of those for others."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class NoiseSource:
    """Standard normal noise for a batch of samples.

    On the CPU a counter-based generator (Philox) is set to (step, index) for each sample: torch's own keeps only 32 bits
    of a seed there, so that some of the samples of a large run would share their noise. On a GPU each sample gets a
    generator of its own, seeded by a hash. The two streams differ.

    Attributes:
        seed: of the run.
        purpose: what the noise is for; two purposes never share noise.
        index: global index of each sample of the batch.
    """

    seed: int
    purpose: str
    index: Sequence[int]

    def at(self, index: Sequence[int]) -> NoiseSource:
        """The same source for other samples."""
        return replace(self, index=index)

    def normal(self, shapes: Sequence[Sequence[int]], *, step: int = 0, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Noise for every sample: one tensor (B, *shape) per shape.

        Values are drawn in single precision whatever `dtype`, so that a run in double precision sees the same noise.
        """
        device = torch.device(device)
        sizes = [math.prod(shape) for shape in shapes]
        flat = self._host(step, sum(sizes)).to(device) if device.type == "cpu" else self._device(step, sum(sizes), device)
        parts = flat.to(dtype).split(sizes, dim=1)
        return [part.reshape(len(self.index), *shape) for part, shape in zip(parts, shapes, strict=True)]

    def like(self, tensors: Sequence[Tensor], step: int) -> list[Tensor]:
        """Noise with the shapes (B, …), device and type of `tensors`."""
        return self.normal([tensor.shape[1:] for tensor in tensors], step=step, device=tensors[0].device, dtype=tensors[0].dtype)

    def _host(self, step: int, size: int) -> Tensor:
        flat = np.empty((len(self.index), size), dtype=np.float32)
        bits = np.random.Philox(key=derive(self.seed, self.purpose))
        generator, state = np.random.Generator(bits), bits.state
        for row, index in zip(flat, self.index, strict=True):
            state["state"]["counter"][:] = (0, 0, step, index)
            state["buffer_pos"] = 4  # nothing is left over from the sample before
            bits.state = state
            generator.standard_normal(out=row, dtype=np.float32)
        return torch.from_numpy(flat)

    def _device(self, step: int, size: int, device: torch.device) -> Tensor:
        flat = torch.empty((len(self.index), size), device=device)
        generator = torch.Generator(device)
        for row, index in zip(flat, self.index, strict=True):
            generator.manual_seed(derive(self.seed, self.purpose, step, index))
            row.normal_(generator=generator)
        return flat
