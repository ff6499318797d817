"""KID, and the inception score by torch-fidelity, from features."""

import math

import numpy as np
import torch

from vaebm.measures.bootstrap import Features, Logits, kernel_sums
from vaebm.measures.fidelity_backend import torch_fidelity
from vaebm.noise import Device
from vaebm.system.errors import UserError


def kid(a: Features, b: Features, subsets: int, size: int, seed: int, device: Device = "cpu") -> tuple[float, float]:
    """KID of features (N, D) and (M, D): mean and standard deviation over random subsets.

    Raises:
        UserError: a subset is larger than one of the two samples.
    """
    if size > min(len(a), len(b)):
        raise UserError(
            f"evaluation: kid_subset_size: expected at most {min(len(a), len(b))}, the images there are, found {size}"
        )
    random, found = np.random.default_rng(seed), []
    drawn = np.array([[random.permutation(len(each))[:size] for each in (a, b)] for _ in range(subsets)])
    # kernel values of all images, unless those of all subsets are fewer
    for group in np.split(drawn, 1 if max(len(a), len(b)) <= size * math.sqrt(subsets) else subsets):
        sides = []
        for features, chosen in zip((a, b), group.swapaxes(0, 1), strict=True):
            images, places = np.unique(chosen, return_inverse=True)
            weights = torch.zeros(len(chosen), len(images), dtype=torch.float64)
            weights.scatter_(1, torch.from_numpy(places.reshape(chosen.shape)), 1.0)
            sides.append((torch.from_numpy(features[images].astype(np.float64)).to(device), weights.to(device)))
        (x, of_x), (y, of_y) = sides
        within = kernel_sums(x, x, of_x, of_x) + kernel_sums(y, y, of_y, of_y)
        found.append(within / (size * (size - 1)) - 2 * kernel_sums(x, y, of_x, of_y) / size**2)
    values = torch.cat(found)
    return float(values.mean()), float(values.std(correction=0))


def inception_score(logits: Logits, splits: int) -> tuple[float, float]:
    """exp E KL(p(y|x) ‖ p(y)) of logits (N, classes): mean and deviation over parts (Salimans et al., 2016)."""
    found = torch_fidelity.metric_isc.isc_features_to_metric(torch.from_numpy(logits), splits=splits, shuffle=False)
    return found[torch_fidelity.KEY_METRIC_ISC_MEAN], found[torch_fidelity.KEY_METRIC_ISC_STD]
