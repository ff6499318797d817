"""Metrics that torch-fidelity computes from features."""

import numpy as np
import torch
from numpy.typing import NDArray

from vaebm.measures.bootstrap import PAIRWISE_BATCH, Features, Logits, Values
from vaebm.measures.fidelity_backend import torch_fidelity
from vaebm.system.errors import UserError


def kid(a: Features, b: Features, subsets: int, size: int, seed: int) -> tuple[float, float]:
    """KID of features (N, D) and (M, D): mean and standard deviation over random subsets.

    Raises:
        UserError: a subset is larger than one of the two samples.
    """
    if size > min(len(a), len(b)):
        raise UserError(
            f"evaluation: kid_subset_size: expected at most {min(len(a), len(b))}, the images there are, found {size}"
        )
    random = np.random.default_rng(seed)
    drawn = [[random.permutation(len(features))[:size] for features in (a, b)] for _ in range(subsets)]
    rows, columns = np.array(drawn).swapaxes(0, 1)
    found = -2 * _subset_sums(a, b, rows, columns) / size**2
    for features, chosen in ((a, rows), (b, columns)):
        norms = np.einsum("nd,nd->n", features, features, dtype=np.float64) / features.shape[1]
        pairs = _subset_sums(features, features, chosen, chosen) - ((norms + 1) ** 3)[chosen].sum(axis=1)
        found += pairs / (size * (size - 1))
    return float(np.mean(found)), float(np.std(found))


def _subset_sums(a: Features, b: Features, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Values:
    """Sums (S,) of the kernel of a (N, D) and b (M, D) over S subsets of their images (S, size), in double precision.

    For few images, the kernel of all pairs takes less time than those of the subsets, which share pairs.
    """
    if len(a) * len(b) >= rows.size * columns.shape[1]:
        pairs = ((x := a[row], x if a is b else b[column]) for row, column in zip(rows, columns, strict=True))
        return np.array([_kernel(x, y).sum() for x, y in pairs])
    one, other = (np.zeros((len(rows), len(features))) for features in (a, b))
    np.put_along_axis(one, rows, 1, axis=1)
    np.put_along_axis(other, columns, 1, axis=1)
    parts = (slice(first, first + PAIRWISE_BATCH) for first in range(0, len(a), PAIRWISE_BATCH))
    return np.sum([((one[:, part] @ _kernel(a[part], b)) * other).sum(axis=1) for part in parts], axis=0)


def _kernel(a: Features, b: Features) -> Features:
    """(x · y / D + 1)³ of features (N, D) and (M, D), (N, M), in place and in double precision."""
    x = a.astype(np.float64)
    values = x @ (x if a is b else b.astype(np.float64)).T
    values /= a.shape[1]
    values += 1
    values *= values * values
    return values


def inception_score(logits: Logits, splits: int) -> tuple[float, float]:
    """exp E KL(p(y|x) ‖ p(y)) of logits (N, classes): mean and deviation over parts (Salimans et al., 2016)."""
    found = torch_fidelity.metric_isc.isc_features_to_metric(torch.from_numpy(logits), splits=splits, shuffle=False)
    return found[torch_fidelity.KEY_METRIC_ISC_MEAN], found[torch_fidelity.KEY_METRIC_ISC_STD]
