"""Metrics that torch-fidelity computes from features."""

from typing import Any

import numpy as np
import torch

from vaebm.measures.bootstrap import Features, Logits
from vaebm.measures.fidelity_backend import torch_fidelity
from vaebm.system.errors import UserError


class _Cube:
    """The exponent 3 of an array: two products, faster than numpy's general power."""

    __array_ufunc__ = None  # numpy leaves `array ** cube` to this class

    def __rpow__(self, array: Any) -> Any:
        cube = array * array
        cube *= array
        return cube


def kid(a: Features, b: Features, subsets: int, size: int, seed: int) -> tuple[float, float]:
    """KID of features (N, D) and (M, D): mean and standard deviation over random subsets.

    Raises:
        UserError: a subset is larger than one of the two samples.
    """
    if size > min(len(a), len(b)):
        raise UserError(
            f"evaluation: kid_subset_size: expected at most {min(len(a), len(b))}, the images there are, found {size}"
        )
    random, found = np.random.default_rng(seed), []
    for _ in range(subsets):
        # one subset per call: torch-fidelity sums in the features' precision, and all features in double take gigabytes
        drawn = (features[random.permutation(len(features))[:size]].astype(np.float64) for features in (a, b))
        pair = map(torch.from_numpy, drawn)
        score = torch_fidelity.metric_kid.kid_features_to_metric(
            *pair, kid_subsets=1, kid_subset_size=size, kid_kernel_poly_degree=_Cube(), verbose=False
        )
        found.append(score[torch_fidelity.KEY_METRIC_KID_MEAN])
    return float(np.mean(found)), float(np.std(found))


def inception_score(logits: Logits, splits: int) -> tuple[float, float]:
    """exp E KL(p(y|x) ‖ p(y)) of logits (N, classes): mean and deviation over parts (Salimans et al., 2016)."""
    found = torch_fidelity.metric_isc.isc_features_to_metric(torch.from_numpy(logits), splits=splits, shuffle=False)
    return found[torch_fidelity.KEY_METRIC_ISC_MEAN], found[torch_fidelity.KEY_METRIC_ISC_STD]
