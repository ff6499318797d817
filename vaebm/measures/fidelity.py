"""Metrics that torch-fidelity computes from features."""

import numpy as np
import torch

from vaebm.measures.bootstrap import Features, Logits, kid_kernel
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
    random, found = np.random.default_rng(seed), []
    for _ in range(subsets):
        # torch-fidelity sums in the kernel's precision; all features in double would take gigabytes
        x, y = (features[random.permutation(len(features))[:size]].astype(np.float64) for features in (a, b))
        products = [x @ x.T, x @ y.T, y @ y.T]  # numpy computes x xᵀ in half the time
        kernels = (kid_kernel(torch.from_numpy(each), x.shape[1]).numpy() for each in products)
        found.append(float(torch_fidelity.metric_kid.mmd2(*kernels)))
    return float(np.mean(found)), float(np.std(found))


def inception_score(logits: Logits, splits: int) -> tuple[float, float]:
    """exp E KL(p(y|x) ‖ p(y)) of logits (N, classes): mean and deviation over parts (Salimans et al., 2016)."""
    found = torch_fidelity.metric_isc.isc_features_to_metric(torch.from_numpy(logits), splits=splits, shuffle=False)
    return found[torch_fidelity.KEY_METRIC_ISC_MEAN], found[torch_fidelity.KEY_METRIC_ISC_STD]
