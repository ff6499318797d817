"""Bootstrap intervals: how far a figure would move with other images from the same source (Efron and Tibshirani, 1993).

Images are drawn anew with replacement, as many as there are; each resample is kept as the numbers of times that they come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import xlogy
from scipy.stats import binomtest
from torch import Tensor

from vaebm.measures.frechet import DistanceTo, Statistics
from vaebm.noise import derive

LEVELS = (2.5, 97.5)
"""Percentiles of a 95 % interval."""

Counts = NDArray[np.int64]
"""(R, N): how often each of N images comes in each of R resamples."""
Values = NDArray[np.float64]
Features = NDArray[np.floating[Any]]
"""(N, D), in single precision, as extractors give them; what is computed of them is in double."""
Logits = NDArray[np.floating[Any]]
"""(N, classes), or (N, depth, classes) of stacks."""

BLOCK = 1000
"""Images whose relations to all others are held at once."""

LARGE = 8192
"""Images whose weighted features are held at once."""


def generator(seed: int, *purpose: str) -> np.random.Generator:
    """The random numbers of one purpose; another seed or purpose gives others."""
    return np.random.Generator(np.random.Philox(derive(seed, "bootstrap", *purpose)))


def resamples(images: int, number: int, random: np.random.Generator) -> Counts:
    """`number` resamples of `images` images, (number, images); each row adds up to `images`."""
    return random.multinomial(images, np.full(images, 1 / images), size=number)


def interval(value: float, replicates: Values, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """The 95 % interval of a figure: percentiles of its resamples, moved so that their mean is the figure.

    A Fréchet distance, a divergence or a number of modes depends on the number of images, and a resample, which has fewer
    different ones, is off by that once more: unmoved percentiles may leave out the figure itself. Figures are compared at equal
    numbers of images; so the interval is about the expectation at this number, and holds the spread alone.

    Args:
        value: the figure of the images themselves.
        replicates: that of each resample, (R,).
        low, high: what the figure cannot leave.
    """
    percentiles = np.percentile(replicates - replicates.mean(), LEVELS)
    return [float(bound) for bound in np.clip(value + percentiles, low, high)]


def proportion(value: float, images: int) -> list[float]:
    """Wilson's 95 % interval of a share of `images` images, which is not empty for none or all of them."""
    return [float(bound) for bound in binomtest(round(value * images), images).proportion_ci(method="wilson")]


def frechet_replicates(
    features: Features, counts: Counts, references: Sequence[Statistics], device: torch.device | str = "cpu"
) -> Values:
    """Fréchet distances of resamples of features (N, D), `counts` (R, N), to each of the references; (R, references)."""
    distances = [DistanceTo(reference, device) for reference in references]
    shift = features.mean(
        axis=0, dtype=np.float64
    )  # the weighted products below lose digits where the mean is far from zero
    values, centre = (
        torch.from_numpy(features).to(device, torch.float64) - torch.from_numpy(shift).to(device),
        torch.from_numpy(shift).to(device),
    )
    number, replicates = len(features), []
    for row in torch.from_numpy(counts).to(device, torch.float64):
        mean = row @ values / number
        products = torch.zeros_like(values[:1].T @ values[:1])
        for part, weights in zip(values.split(LARGE), row.split(LARGE), strict=True):
            products += (part * weights[:, None]).T @ part
        covariance = (products - number * torch.outer(mean, mean)) / (number - 1)
        replicates.append([distance(mean + centre, covariance) for distance in distances])
    return np.array(replicates)


def kid_replicates(a: Features, b: Features, counts: Counts, device: torch.device | str = "cpu") -> Values:
    """Kernel distances of resamples of features a (N, D), `counts` (R, N), to the whole of b (M, D), up to a constant; (R,).

    Pairs of an image with itself are left out, as in the unbiased estimate, although a resample has some.
    """
    one, other, weights = (torch.from_numpy(values).to(device, torch.float32) for values in (a, b, counts))
    within, across = torch.zeros(2, len(counts), dtype=torch.float64, device=device)
    for first in range(0, len(a), BLOCK):
        part = slice(first, first + BLOCK)
        kernel = _kernel(one[part], one)
        kernel[:, part].fill_diagonal_(0.0)
        within += ((weights @ kernel.T) * weights[:, part]).sum(dim=1, dtype=torch.float64)
        across += weights[:, part].double() @ _kernel(one[part], other).mean(dim=1, dtype=torch.float64)
    found: Values = (within / (len(a) * (len(a) - 1)) - 2 * across / len(a)).cpu().numpy()
    return found


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """KID's kernel (x · y / D + 1)³ of features (N, D) and (M, D), (N, M)."""
    return (a @ b.T / a.shape[1] + 1).pow_(3)


def inception_replicates(logits: Logits, splits: int, number: int, random: np.random.Generator) -> Values:
    """Inception scores of resamples of logits (N, classes), each of its parts drawn anew from that part's own images; (number,)."""
    log_p, scores = torch.from_numpy(logits).double().log_softmax(dim=1).numpy(), np.zeros(number)
    for part in range(splits):
        chunk = log_p[part * len(log_p) // splits : (part + 1) * len(log_p) // splits]
        p, weights = np.exp(chunk), resamples(len(chunk), number, random) / len(chunk)
        marginal = weights @ p
        scores += np.exp(weights @ (p * chunk).sum(axis=1) - xlogy(marginal, marginal).sum(axis=1)) / splits
    return scores
