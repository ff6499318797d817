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

from vaebm.frechet import Statistics, frechet_distance
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


def frechet_replicates(features: Features, counts: Counts, references: Sequence[Statistics]) -> Values:
    """Fréchet distances of resamples of features (N, D), `counts` (R, N), to each of the references; (R, references)."""
    replicates = []
    for row in counts:
        drawn = row > 0
        mean, covariance = np.average(features[drawn], axis=0, weights=row[drawn]), np.cov(features[drawn], rowvar=False, fweights=row[drawn])
        replicates.append([frechet_distance(Statistics(mean, covariance), reference) for reference in references])
    return np.array(replicates)


def kid_replicates(a: Features, b: Features, counts: Counts) -> Values:
    """Kernel distances of resamples of features a (N, D), `counts` (R, N), to the whole of b (M, D), up to a constant; (R,).

    Pairs of an image with itself are left out, as in the unbiased estimate, although a resample has some.
    """
    one, other, weights = a.astype(np.float32), b.astype(np.float32), counts.astype(np.float32)
    within, across = np.zeros(len(counts)), np.zeros(len(counts))
    for first in range(0, len(a), BLOCK):
        part = slice(first, first + BLOCK)
        kernel = _kernel(one[part], one)
        np.fill_diagonal(kernel[:, part], 0.0)
        within += ((weights @ kernel.T) * weights[:, part]).sum(axis=1, dtype=np.float64)
        across += weights[:, part] @ _kernel(one[part], other).mean(axis=1, dtype=np.float64)
    return within / (len(a) * (len(a) - 1)) - 2 * across / len(a)


def _kernel(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """KID's kernel (x · y / D + 1)³ of features (N, D) and (M, D), (N, M)."""
    linear = a @ b.T / np.float32(a.shape[1]) + np.float32(1)
    kernel: NDArray[np.float32] = linear * linear * linear
    return kernel


def inception_replicates(logits: Logits, splits: int, number: int, random: np.random.Generator) -> Values:
    """Inception scores of resamples of logits (N, classes), each of its parts drawn anew from that part's own images; (number,)."""
    log_p, scores = torch.from_numpy(logits).double().log_softmax(dim=1).numpy(), np.zeros(number)
    for part in range(splits):
        chunk = log_p[part * len(log_p) // splits : (part + 1) * len(log_p) // splits]
        p, weights = np.exp(chunk), resamples(len(chunk), number, random) / len(chunk)
        marginal = weights @ p
        scores += np.exp(weights @ (p * chunk).sum(axis=1) - xlogy(marginal, marginal).sum(axis=1)) / splits
    return scores
