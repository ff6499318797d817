"""The measures of samples that torch-fidelity computes from an extractor's features."""

from __future__ import annotations

import numpy as np
import torch

from vaebm.measures.bootstrap import BLOCK, Features, Logits
from vaebm.measures.fidelity_backend import (
    KEY_METRIC_ISC_MEAN,
    KEY_METRIC_ISC_STD,
    KEY_METRIC_KID_MEAN,
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    isc_features_to_metric,
    kid_features_to_metric,
    prc_features_to_metric,
)
from vaebm.system.errors import UserError


def kid(a: Features, b: Features, subsets: int, size: int, seed: int) -> tuple[float, float]:
    """Kernel distance of features (N, D) and (M, D): mean and standard deviation over random subsets.

    Raises:
        UserError: a subset is larger than one of the two samples.
    """
    if size > min(len(a), len(b)):
        raise UserError(
            f"evaluation: kid_subset_size: expected at most {min(len(a), len(b))}, the images there are, found {size}"
        )
    random, found = np.random.default_rng(seed), []
    for _ in range(subsets):
        # each as a whole set of its own, since torch-fidelity sums in the features' precision and all of them in double take gigabytes
        drawn = [
            torch.from_numpy(features[random.permutation(len(features))[:size]].astype(np.float64))
            for features in (a, b)
        ]
        found.append(
            kid_features_to_metric(*drawn, kid_subsets=1, kid_subset_size=size, verbose=False)[KEY_METRIC_KID_MEAN]
        )
    return float(np.mean(found)), float(np.std(found))


def inception_score(logits: Logits, splits: int) -> tuple[float, float]:
    """exp E KL(p(y|x) ‖ p(y)) for logits (N, classes): mean and standard deviation over consecutive parts (Salimans et al., 2016)."""
    found = isc_features_to_metric(torch.from_numpy(logits), splits=splits, shuffle=False)
    return found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD]


def precision_recall(samples: Features, real: Features, neighbours: int) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al., 2019, eq. 1 and 2) of features (N, D) and (M, D).

    Precision is the share of samples in a ball around some real image that reaches to that image's k-th nearest real neighbour;
    recall is the share of real images in such a ball around some sample.

    Raises:
        UserError: not more images than neighbours.
    """
    if neighbours >= min(len(samples), len(real)):
        raise UserError(
            f"evaluation: precision_recall: neighbours: expected less than {min(len(samples), len(real))}, the images there are, found {neighbours}"
        )
    # in double precision: torch takes distances of many features from their products, which in single precision loses the small ones
    pair = (torch.from_numpy(features.astype(np.float64)) for features in (samples, real))
    found = prc_features_to_metric(
        *pair, prc_neighborhood=neighbours, prc_batch_size=BLOCK, save_cpu_ram=True, verbose=False
    )
    # torch-fidelity takes the means in single precision
    return round(found[KEY_METRIC_PRECISION] * len(samples)) / len(samples), round(
        found[KEY_METRIC_RECALL] * len(real)
    ) / len(real)
