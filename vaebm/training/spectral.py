"""The spectral regulariser of NVAE and energy network: largest singular values of convolutions (NVAE section 3.3).

The singular vectors of the power iteration are buffers: checkpoints contain them, and a resumed training is exact.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class _LargestSingularValues(torch.autograd.Function):
    """Σ over weights of u W vᵀ, with u and v of `SpectralPenalty.iterate`; the gradient of each weight is u vᵀ."""

    @staticmethod
    def forward(ctx: Any, penalty: "SpectralPenalty", *weights: Tensor) -> Tensor:
        ctx.shapes = [weight.shape for weight in weights]
        rows = (weight.permute(0, 2, 3, 1).flatten(1) for weight in weights)  # channels_last: without a copy
        matrices = [torch.stack([*islice(rows, len(group))]) for group in penalty.groups.values()]
        ctx.vectors = penalty.iterate(matrices)
        values = [(torch.bmm(u, matrix) * v).flatten() for (u, v), matrix in zip(ctx.vectors, matrices, strict=True)]
        return torch.cat(values).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        products = (product for u, v in ctx.vectors for product in torch.bmm(u.mT, v).mul_(gradients[0]).unbind())
        return None, *(
            product.view(out, *kernel, channels).permute(0, 3, 1, 2)
            for product, (out, channels, *kernel) in zip(products, ctx.shapes, strict=True)
        )


class SpectralPenalty(nn.Module):
    """Σ over convolutions of the largest singular value of the weight as a matrix (out, k · k · in).

    Weights of equal matrix shape are iterated together. No gradient passes through the singular vectors u and v, so the
    gradient of a singular value is u vᵀ.

    Args:
        weights: functions that return the present weight of each convolution, (out, in, k, k).
        seed: seed of the initial singular vectors.
    """

    groups: dict[tuple[int, int], list[Callable[[], Tensor]]]
    """Matrix shape → its weights; group k has the singular vectors u<k> (n, out) and v<k> (n, k · k · in)."""
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
        self._first = True  # `not started`, which a GPU's buffer would tell only after a synchronisation
        self.register_load_state_dict_post_hook(SpectralPenalty._loaded)  # type: ignore[no-untyped-call]

    def _loaded(self, _: object) -> None:
        self._first = not bool(self.started)

    def forward(self) -> Tensor:
        """Penalty of the present weights, a scalar, after a few power iterations."""
        weights = [weight() for group in self.groups.values() for weight in group]
        if not weights:
            return torch.zeros((), device=self.started.device)
        return _LargestSingularValues.apply(self, *weights)  # type: ignore[no-untyped-call]

    def iterate(self, matrices: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Move the singular vectors by four power iterations of the groups' matrices (n, out, size), first by 40.

        Returns:
            u (n, 1, out) and v (n, 1, size) of each group.
        """
        rounds, self._first = 10 if self._first else 1, False
        self.started.fill_(True)
        saved = [[self.get_buffer(f"{name}{number}")[:, None] for number in range(len(matrices))] for name in "uv"]
        us, turns = saved[0], [(matrix, matrix.mT) for matrix in matrices]
        for _ in range(rounds):  # norms within a round cancel, but for one against overflow
            us = [reduce(torch.bmm, 2 * turn, u) for u, turn in zip(us, turns, strict=True)]
            _divide_by_norms(us, order=torch.inf)
            vs = [reduce(torch.bmm, (*turn, turn[0]), u) for u, turn in zip(us, turns, strict=True)]
            _divide_by_norms(vs)
            us = [torch.bmm(v, transposed) for v, (_, transposed) in zip(vs, turns, strict=True)]
            _divide_by_norms(us, 1e-3)
        torch._foreach_copy_([*saved[0], *saved[1]], [*us, *vs])
        return list(zip(us, vs, strict=True))


def _divide_by_norms(rows: list[Tensor], least: float = 1e-20, order: float = 2.0) -> None:
    """Divide rows, each (n, 1, length), in place by their norms, at least `least`."""
    norms = [torch.linalg.vector_norm(each, order, dim=2, keepdim=True) for each in rows]
    torch._foreach_div_(rows, torch._foreach_clamp_min(norms, least))
