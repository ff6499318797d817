"""The spectral regulariser: the sum of the largest singular values of all convolutions (NVAE section 3.3).

One implementation for the NVAE and the energy network. The singular vectors of the power iteration are buffers, so that
they are in the checkpoint and a resumed training goes on exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FIRST_ITERATIONS = 40
ITERATIONS = 4


class SpectralPenalty(nn.Module):
    """Σ over convolutions of the largest singular value of the weight as a matrix (out, in · k · k).

    Weights of one matrix shape are iterated together. No gradient passes through the singular vectors, so the gradient of
    a singular value is u vᵀ, as it is at convergence.

    Args:
        weights: for each convolution a function that returns the weight that it uses now, (out, in, k, k).
        seed: of the first singular vectors.
    """

    groups: dict[tuple[int, int], list[Callable[[], Tensor]]]
    """Shape of a matrix → the weights of that shape; group k has the singular vectors u<k> (n, out) and v<k> (n, in · k · k)."""
    started: Tensor

    def __init__(self, weights: Sequence[Callable[[], Tensor]], seed: int):
        super().__init__()
        self.groups = {}
        for weight in weights:
            rows = weight()
            self.groups.setdefault((rows.shape[0], rows[0].numel()), []).append(weight)
        generator = torch.Generator().manual_seed(seed)
        for number, ((out, size), group) in enumerate(self.groups.items()):
            for name, length in (("u", out), ("v", size)):
                vectors = torch.randn(len(group), length, generator=generator)
                self.register_buffer(f"{name}{number}", F.normalize(vectors, dim=1))
        self.register_buffer("started", torch.tensor(False))

    def forward(self) -> Tensor:
        """The penalty for the present weights, a scalar; refines the singular vectors by a few power iterations."""
        iterations = ITERATIONS if self.started else FIRST_ITERATIONS
        self.started.fill_(True)
        total = []
        for number, group in enumerate(self.groups.values()):
            matrices = torch.stack([weight().flatten(1) for weight in group])
            u, v = self.get_buffer(f"u{number}"), self.get_buffer(f"v{number}")
            with torch.no_grad():
                for _ in range(iterations):
                    v = F.normalize(torch.bmm(u[:, None], matrices)[:, 0], dim=1, eps=1e-3)
                    u = F.normalize(torch.bmm(matrices, v[:, :, None])[:, :, 0], dim=1, eps=1e-3)
                self.get_buffer(f"u{number}").copy_(u)
                self.get_buffer(f"v{number}").copy_(v)
            total.append(torch.einsum("no,nok,nk->", u, matrices, v))
        return torch.stack(total).sum()
