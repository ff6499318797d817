"""Noise as a function of (seed, purpose, step, global index of the sample), never of rank, batch or shard."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Law = Literal["normal", "uniform"]


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, independent of those for others."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class NoiseSource:
    """Standard normal and uniform noise for a batch of samples.

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

    def normal(
        self,
        shapes: Sequence[Sequence[int]],
        *,
        step: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> list[Tensor]:
        """Standard normal noise for every sample: one tensor (B, *shape) per shape.

        Values are drawn in single precision whatever `dtype`, so that a run in double precision sees the same noise.
        """
        return self._draw("normal", shapes, step, torch.device(device), dtype)

    def uniform(
        self,
        shapes: Sequence[Sequence[int]],
        *,
        step: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> list[Tensor]:
        """As `normal`, uniform in [0, 1); a source that gives both at one step gives dependent values."""
        return self._draw("uniform", shapes, step, torch.device(device), dtype)

    def like(self, tensors: Sequence[Tensor], step: int) -> list[Tensor]:
        """Normal noise with the shapes (B, …), device and type of `tensors`."""
        return self.normal(
            [tensor.shape[1:] for tensor in tensors], step=step, device=tensors[0].device, dtype=tensors[0].dtype
        )

    def _draw(
        self, law: Law, shapes: Sequence[Sequence[int]], step: int, device: torch.device, dtype: torch.dtype
    ) -> list[Tensor]:
        sizes = [math.prod(shape) for shape in shapes]
        draw = self._host if device.type == "cpu" else self._device
        parts = draw(law, step, sum(sizes), device).to(dtype).split(sizes, dim=1)
        return [part.reshape(len(self.index), *shape) for part, shape in zip(parts, shapes, strict=True)]

    def _host(self, law: Law, step: int, size: int, device: torch.device) -> Tensor:
        flat = np.empty((len(self.index), size), dtype=np.float32)
        bits = np.random.Philox(key=derive(self.seed, self.purpose))
        generator, state = np.random.Generator(bits), bits.state
        fill = generator.standard_normal if law == "normal" else generator.random
        for row, index in zip(flat, self.index, strict=True):
            state["state"]["counter"][:] = (0, 0, step, index)
            state["buffer_pos"] = 4  # nothing is left over from the sample before
            bits.state = state
            fill(out=row, dtype=np.float32)
        return torch.from_numpy(flat).to(device)

    def _device(self, law: Law, step: int, size: int, device: torch.device) -> Tensor:
        flat = torch.empty((len(self.index), size), device=device)
        generator = torch.Generator(device)
        for row, index in zip(flat, self.index, strict=True):
            generator.manual_seed(derive(self.seed, self.purpose, step, index))
            if law == "normal":
                row.normal_(generator=generator)
            else:
                row.uniform_(generator=generator)
        return flat
