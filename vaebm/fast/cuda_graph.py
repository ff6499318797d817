"""A Langevin step as one CUDA graph: a step launches the graph and each chain's noise, not a thousand operations."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vaebm.chain.langevin import evaluate, propose
from vaebm.energy.noise_energy import one_vector
from vaebm.noise import NoiseSource
from vaebm.system.precision import float32_precision


class GraphedChain:
    """Langevin steps on chains of the number and shapes of `eps`, recorded once and then replayed.

    The potential may not synchronise or have shapes that depend on data. The graph reads its weights where they are
    now, so new weights have to be written there.
    """

    def __init__(self, potential: Callable[[Sequence[Tensor]], Tensor], eps: Sequence[Tensor], step_size: float):
        self.key = self.key_of(eps, step_size)
        self.shapes = [part.shape for part in eps]
        # All noise of a chain is one row, so that a step begins and ends with one operation each.
        self.eps = one_vector(eps).detach()
        self.omega = torch.zeros_like(self.eps)

        def step() -> None:
            state = evaluate(lambda rows: potential(self._parts(rows[0])), [self.eps])
            self.eps.copy_(propose(state, step_size, [self.omega])[0])

        side = torch.cuda.Stream(self.eps.device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # warm-up: libraries choose their kernels, and Triton compiles its own
            step()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the graph has its own memory; the warm-up's is free again
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=side):
            step()

    @staticmethod
    def key_of(eps: Sequence[Tensor], step_size: float) -> object:
        """What a recorded step is valid for, including the rounding at the time of recording (`precision.set_tf32`)."""
        return step_size, float32_precision(), *(part.shape for part in eps)

    def run(self, eps: Sequence[Tensor], steps: int, noise: NoiseSource) -> list[Tensor]:
        """Run `chain.langevin.langevin` from noise with this graph's `key_of`."""
        self.eps.copy_(one_vector(eps).detach())
        for step in range(1, steps + 1):
            self.omega.copy_(noise.like([self.omega], step)[0])
            self.graph.replay()
        return [part.clone() for part in self._parts(self.eps)]

    def _parts(self, rows: Tensor) -> list[Tensor]:
        """Views of the rows (B, n) as noise of the latent groups and of the pixels."""
        sizes = [math.prod(shape[1:]) for shape in self.shapes]
        return [part.view(shape) for part, shape in zip(rows.split(sizes, dim=1), self.shapes, strict=True)]
