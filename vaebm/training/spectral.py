"""The spectral regulariser of NVAE and energy network: largest singular values of convolutions (NVAE section 3.3).

The singular vectors of the power iteration are buffers: checkpoints contain them, and a resumed training is exact.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SpectralPenalty(nn.Module):
    """Σ over convolutions of the largest singular value of the weight as a matrix (out, in · k · k).

    Weights of equal matrix shape are iterated together. No gradient passes through the singular vectors u and v, so the
    gradient of a singular value is u vᵀ.

    Args:
        weights: functions that return the present weight of each convolution, (out, in, k, k).
        seed: seed of the initial singular vectors.
    """

    groups: dict[tuple[int, int], list[Callable[[], Tensor]]]
    """Matrix shape → its weights; group k has the singular vectors u<k> (n, out) and v<k> (n, in · k · k)."""
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
        rounds = 10 if self._first else 1
        self.started.fill_(True)
        self._first = False
        total = []
        for number, group in enumerate(self.groups.values()):
            matrices = torch.stack([weight().flatten(1) for weight in group])
            saved_u, saved_v = self.get_buffer(f"u{number}"), self.get_buffer(f"v{number}")
            u, fixed, transposed = saved_u[:, None], matrices.detach(), matrices.detach().transpose(1, 2)
            for _ in range(rounds):  # of four iterations; norms in between cancel
                for _ in range(2):
                    u = torch.bmm(torch.bmm(u, fixed), transposed)
                u = u.div_(_norms(u, order=torch.inf).log2_().round_().exp2_())  # a power of two, against overflow
                v = torch.bmm(torch.bmm(torch.bmm(u, fixed), transposed), fixed)
                v = v.div_(_norms(v))
                u = torch.bmm(v, transposed)
                u = u.div_(_norms(u, 1e-3))
            saved_u.copy_(u[:, 0])
            saved_v.copy_(v[:, 0])
            total.append((torch.bmm(u, matrices) * v).sum())
        return torch.stack(total).sum() if total else torch.zeros((), device=self.started.device)


def _norms(rows: Tensor, least: float = 1e-20, order: float = 2.0) -> Tensor:
    """Norms of rows (n, 1, length), at least `least`."""
    return torch.linalg.vector_norm(rows, order, dim=2, keepdim=True).clamp_min_(least)
