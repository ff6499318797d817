"""Fréchet distance of two samples' features, computed by torch-fidelity."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import vaebm.torchvision_operators  # noqa: F401  before torch-fidelity, which imports torchvision

# isort: split
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric


class Statistics(NamedTuple):
    """Mean (D,) and covariance (D, D) of features."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def of(cls, features: NDArray[np.float64]) -> Statistics:
        """Those of features (N, D)."""
        found = fid_features_to_statistics(torch.from_numpy(features))
        return cls(found["mu"], found["sigma"])


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½) of the normal distributions with these statistics."""
    first, second = ({"mu": s.mean, "sigma": s.covariance} for s in (a, b))
    return float(fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID])
