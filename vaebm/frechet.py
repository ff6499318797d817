"""Fréchet distance of two samples' features, computed by torch-fidelity."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import vaebm.torchvision_operators  # noqa: F401  before torch-fidelity, which imports torchvision

# isort: split
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

BLOCK = 8192
"""Images whose features are held in double precision at once."""


class Statistics(NamedTuple):
    """Mean (D,) and covariance (D, D) of features."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def of(cls, features: NDArray[np.floating[Any]]) -> Statistics:
        """Those of features (N, D), in double precision whatever theirs is; block by block, since a copy of all of them may take gigabytes."""
        mean = features.mean(axis=0, dtype=np.float64)
        products = np.zeros((features.shape[1],) * 2)
        for first in range(0, len(features), BLOCK):
            centred = features[first : first + BLOCK] - mean
            products += centred.T @ centred
        return cls(mean, products / (len(features) - 1))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½) of the normal distributions with these statistics."""
    first, second = ({"mu": s.mean, "sigma": s.covariance} for s in (a, b))
    return float(fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID])
