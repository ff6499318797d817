"""A chain's step as one CUDA graph: the host launches it and the noise of each chain, not some thousand operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vaebm.chain.langevin import evaluate, propose
from vaebm.noise import NoiseSource
from vaebm.system.precision import rounding


class GraphedChain:
    """Langevin steps on chains of one number and shape, recorded once and then replayed.

    Args:
        potential: U(ε) of a list of noise tensors; without synchronisation or shapes that depend on data, and reading weights from where
            they are now: new ones have to be written there.
        eps: like the noise that will be moved, one tensor (B, …) each.
        step_size: η.
    """

    def __init__(self, potential: Callable[[Sequence[Tensor]], Tensor], eps: Sequence[Tensor], step_size: float):
        self.key = self.key_of(eps, step_size)
        self.shapes = [part.shape for part in eps]
        # All noise of a chain is one row, so that a step begins and ends with one operation each.
        self.eps = _rows(eps)
        self.omega = torch.zeros_like(self.eps)

        def step() -> None:
            self.eps.copy_(
                propose(evaluate(lambda rows: potential(self._parts(rows[0])), [self.eps]), step_size, [self.omega])[0]
            )

        side = torch.cuda.Stream(self.eps.device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(
            side
        ):  # once before it is recorded: libraries choose their kernels, and Triton compiles its own
            step()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the graph has memory of its own; what the step before it took is not needed any more
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=side):
            step()

    @staticmethod
    def key_of(eps: Sequence[Tensor], step_size: float) -> object:
        """What a recorded step serves; it goes on rounding as was allowed when it was recorded (`precision.set_tf32`)."""
        return step_size, rounding(), *(part.shape for part in eps)

    def move(self, eps: Sequence[Tensor], steps: int, noise: NoiseSource) -> list[Tensor]:
        """As `chain.langevin.langevin`, for noise that `key_of` says it serves."""
        self.eps.copy_(_rows(eps))
        for step in range(1, steps + 1):
            self.omega.copy_(noise.like([self.omega], step)[0])
            self.graph.replay()
        return [part.clone() for part in self._parts(self.eps)]

    def _parts(self, rows: Tensor) -> list[Tensor]:
        """Views of the rows (B, n) as noise of the latent groups and of the pixels."""
        sizes = [math.prod(shape[1:]) for shape in self.shapes]
        return [part.view(shape) for part, shape in zip(rows.split(sizes, dim=1), self.shapes, strict=True)]


def _rows(eps: Sequence[Tensor]) -> Tensor:
    """All noise of a chain as one row, (B, n)."""
    return torch.cat([part.detach().flatten(1) for part in eps], dim=1)
