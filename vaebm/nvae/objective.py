"""The NVAE's loss: negative ELBO with KL warm-up and balancing, and regularisers (NVAE sections 2.2, 3.3, app. A)."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vaebm.nvae.layers import BatchNorm
from vaebm.nvae.model import NVAEOutput
from vaebm.system import distributed


class NegativeELBO(NamedTuple):
    """Parts of the loss, means over the batch, in nats per image."""

    loss: Tensor
    """reconstruction + β Σ γ_j KL_j, a scalar with gradient."""
    reconstruction: Tensor
    """−log p(x|z), a scalar."""
    kl: Tensor
    """KL of each group, (groups,)."""


def kl_coefficient(step: int, total: int, warmup: float, smallest: float) -> float:
    """KL coefficient β: `smallest` for that fraction of the training, then linear to 1 over the fraction `warmup`."""
    if warmup == 0:
        return 1.0
    return max(min((step - smallest * total) / (warmup * total), 1.0), smallest)


def norm_weight(beta: float, initial: float | None, final: float) -> float:
    """Weight λ of the regularisers: `final`, or initial^(1−β) · final^β (NVAE appendix A)."""
    return final if initial is None else math.exp((1.0 - beta) * math.log(initial) + beta * math.log(final))


def group_sizes(groups: Sequence[int]) -> list[float]:
    """α_j of the KL balancing, in decoding order, for the number of `groups` of each scale, finest scale first.

    It is 4^i / (groups of the scale), i from the coarsest scale, divided by the smallest.
    """
    sizes = [4.0**i / count for i, count in enumerate(reversed(groups)) for _ in range(count)]
    return [size / min(sizes) for size in sizes]


def kl_balance(kl: Tensor, sizes: Tensor) -> Tensor:
    """γ_j of the KL balancing, without gradient: (mean |KL_j| + 0.01) / α_j over its mean (NVAE appendix A).

    The mean of `kl` (B, groups), in nats, includes the batches of all processes; `sizes` are the α, (groups,).
    """
    strength = (distributed.mean(kl.detach().abs().mean(0)) + 0.01) / sizes
    return strength / strength.mean()


def nelbo(output: NVAEOutput, x: Tensor, beta: float = 1.0, sizes: Tensor | None = None) -> NegativeELBO:
    """Negative ELBO −log p(x|z) + β Σ γ_j KL_j of images `x` (B, C, H, W) in [0, 1] (NVAE eq. 1).

    Args:
        beta: KL coefficient.
        sizes: α of the KL balancing, used while β < 1; None: no balancing.
    """
    reconstruction = -output.pixels.log_likelihood(x).mean()
    kl = output.kl
    weighted = kl if sizes is None or beta >= 1.0 else kl * kl_balance(kl, sizes)
    loss = reconstruction + beta * weighted.sum(1).mean()
    return NegativeELBO(loss, reconstruction.detach(), kl.detach().mean(0))


def batch_norm_penalty(norms: Iterable[BatchNorm]) -> Tensor | float:
    """Σ over batch norms of max |γ|; 0 without batch norms."""
    widths: dict[int, list[Tensor]] = {}
    for layer in norms:
        widths.setdefault(len(layer.weight), []).append(layer.weight)
    largest = [torch.stack(weights).abs().amax(1) for weights in widths.values()]
    return torch.cat(largest).sum() if largest else 0.0
