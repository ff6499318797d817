"""Noise as a function of seed, purpose, step and global index of the sample, independent of rank, batch and shard."""

import hashlib
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from vaebm.system.errors import UserError, brief

Distribution = Literal["normal", "uniform"]
Shapes = Sequence[Sequence[int]]
Device = torch.device | str


def derive(seed: int, *purpose: str | int) -> int:
    """Derive a 63-bit seed for one purpose, independent of other purposes."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def batches(index: range, size: int) -> Iterator[range]:
    """Consecutive parts of `index`, each of `size` elements except the last."""
    return (index[first : first + size] for first in range(0, len(index), size))


@dataclass(frozen=True)
class NoiseSource:
    """Standard normal and uniform noise for a batch of samples.

    On the CPU a counter-based generator (Philox) is set to (step, index) for each sample. torch's CPU generator keeps
    only 32 bits of a seed, so samples of a large run could share noise. On a GPU each sample has its own generator,
    seeded by a hash. The two streams differ.

    Raises:
        UserError: a seed that is no integer.
    """

    seed: int
    """Seed of the run."""
    purpose: str
    """Purpose of the noise; different purposes have independent noise."""
    index: Sequence[int]
    """Global index of each sample of the batch."""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "seed", operator.index(self.seed))  # True and 1 are the same seed
        except TypeError:
            raise UserError(f"seed: expected an integer, found {brief(repr(self.seed))}") from None
        if not hasattr(self.index, "__len__"):
            found = brief(repr(self.index))
            raise UserError(f"index: expected the indices of samples, for instance range(8), found {found}")

    def at(self, index: Sequence[int]) -> Self:
        """The same source for other samples."""
        return replace(self, index=index)

    def derived(self, purpose: str) -> Self:
        """Independent noise of the same samples, for a part of this purpose."""
        return replace(self, purpose=f"{self.purpose}/{purpose}")

    def check(self, count: int) -> None:
        """Raise a `UserError` unless the source has `count` indices, one for each sample of a batch."""
        if len(self.index) != count:
            raise UserError(f"noise: expected an index for each of {count} samples, found {len(self.index)}")

    def normal(
        self, shapes: Shapes, *, step: int = 0, device: Device = "cpu", dtype: torch.dtype = torch.float32
    ) -> list[Tensor]:
        """Standard normal noise: one tensor (B, *shape) per shape.

        Values are drawn in single precision for any `dtype`, so that a run in double precision has the same noise.
        """
        return self._draw("normal", shapes, step, torch.device(device), dtype)

    def uniform(
        self, shapes: Shapes, *, step: int = 0, device: Device = "cpu", dtype: torch.dtype = torch.float32
    ) -> list[Tensor]:
        """Uniform noise in [0, 1), like `normal`; at the same step it depends on the normal noise."""
        return self._draw("uniform", shapes, step, torch.device(device), dtype)

    def like(self, tensors: Sequence[Tensor], step: int) -> list[Tensor]:
        """Normal noise with the shapes (B, …), device and type of `tensors`; errors are those of `check`."""
        self.check(len(tensors[0]))
        shapes = [tensor.shape[1:] for tensor in tensors]
        return self.normal(shapes, step=step, device=tensors[0].device, dtype=tensors[0].dtype)

    def _draw(
        self, distribution: Distribution, shapes: Shapes, step: int, device: torch.device, dtype: torch.dtype
    ) -> list[Tensor]:
        sizes = [math.prod(shape) for shape in shapes]
        draw = self._host if device.type == "cpu" else self._device
        parts = draw(distribution, step, sum(sizes), device).to(dtype).split(sizes, dim=1)
        return [part.reshape(len(self.index), *shape) for part, shape in zip(parts, shapes, strict=True)]

    def _host(self, distribution: Distribution, step: int, size: int, device: torch.device) -> Tensor:
        flat = np.empty((len(self.index), size), dtype=np.float32)
        bits = np.random.Philox(key=derive(self.seed, self.purpose))
        generator, state = np.random.Generator(bits), bits.state
        fill = generator.standard_normal if distribution == "normal" else generator.random
        state["buffer_pos"] = 4  # discard values buffered for the sample before
        counter = state["state"]["counter"]
        counter[:] = (0, 0, step, 0)
        for row, index in zip(flat, self.index, strict=True):
            counter[3] = index
            bits.state = state
            fill(out=row, dtype=np.float32)
        return torch.from_numpy(flat).to(device)

    def _device(self, distribution: Distribution, step: int, size: int, device: torch.device) -> Tensor:
        flat = torch.empty((len(self.index), size), device=device)
        generator = torch.Generator(device)
        for row, index in zip(flat, self.index, strict=True):
            generator.manual_seed(derive(self.seed, self.purpose, step, index))
            fill = row.normal_ if distribution == "normal" else row.uniform_
            fill(generator=generator)
        return flat


def check_source(noise: Any, count: int | None = None) -> None:
    """Raise a `UserError` unless `noise` is a NoiseSource, with `count` indices; None: any number of them."""
    if not isinstance(noise, NoiseSource):
        raise UserError(
            f"noise: expected a NoiseSource, found {brief(repr(noise))}; sample_noise(seed, range(B)) makes one"
        )
    if count is not None:
        noise.check(count)


def sample_noise(seed: int, index: Sequence[int]) -> NoiseSource:
    """Noise of the samples with these global indices, the same for every variant of a seed."""
    return NoiseSource(seed, "samples", index)
