"""Bootstrap intervals of metrics over images (Efron and Tibshirani, 1993).

A resample draws as many images as there are, with replacement, and is stored as the count of each image.
"""

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaebm.measures.frechet import COVARIANCE_BATCH, DistanceTo, Statistics
from vaebm.noise import derive

PERCENTILES = (2.5, 97.5)
"""Percentiles of a 95 % interval."""

Counts = NDArray[np.int64]
"""(R, N): count of each of N images in each of R resamples."""
Values = NDArray[np.float64]
Features = NDArray[np.floating[Any]]
"""(N, D), single precision; metrics are computed in double precision."""
Logits = NDArray[np.floating[Any]]
"""(N, classes), or (N, depth, classes) for stacks."""

PAIRWISE_BATCH = 1000
"""Images whose kernel values or distances to all others are held at once."""

TOGETHER = 1 << 24
"""Most values of the resamples' matrices of products that are held at once."""


def generator(seed: int, *purpose: str) -> np.random.Generator:
    """Random generator of a seed and a purpose."""
    return np.random.Generator(np.random.Philox(derive(seed, "bootstrap", *purpose)))


def resamples(images: int, number: int, random: np.random.Generator) -> Counts:
    """`number` resamples of `images` images, (number, images); each row adds up to `images`."""
    return random.multinomial(images, np.full(images, 1 / images), size=number)


def interval(value: float, replicates: Values, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """Percentile interval (95 %) of the resamples' values (R,), recentred on the estimate `value`, within [low, high].

    Resampling with replacement biases these statistics, which depend on the number of distinct images.
    """
    percentiles = np.percentile(replicates - replicates.mean(), PERCENTILES)
    return [float(bound) for bound in np.clip(value + percentiles, low, high)]


def proportion(value: float, images: int) -> list[float]:
    """Wilson's 95 % interval of a proportion of `images` images; it is not empty at 0 or 1."""
    z = NormalDist().inv_cdf(PERCENTILES[1] / 100)
    centre, width = value + z**2 / (2 * images), z * math.sqrt(value * (1 - value) / images + (z / (2 * images)) ** 2)
    return [float(np.clip((centre + side * width) / (1 + z**2 / images), 0, 1)) for side in (-1, 1)]


def entropy_terms(shares: Values) -> Values:
    """−p ln p of each share p, 0 at p = 0, any shape."""
    return torch.special.entr(torch.from_numpy(shares)).numpy()


def frechet_replicates(
    features: Features, counts: Counts, references: Sequence[Statistics], device: torch.device | str = "cpu"
) -> Values:
    """Fréchet distances of resamples `counts` (R, N) of features (N, D) to each reference: (R, references)."""
    distances = [DistanceTo(reference, device) for reference in references]
    shift = torch.from_numpy(features.mean(axis=0, dtype=np.float64)).to(device)
    values = torch.from_numpy(features).to(device, torch.float64) - shift  # centred: the products below lose no digits
    weights, number = torch.from_numpy(counts).to(device, torch.float64), len(features)
    replicates = []
    for mean, products in zip(weights @ values / number, _weighted_products(values, weights), strict=True):
        covariance = (products - number * torch.outer(mean, mean)) / (number - 1)
        replicates.append([distance(mean + shift, covariance) for distance in distances])
    return np.array(replicates)


def _weighted_products(values: Tensor, weights: Tensor) -> Iterator[Tensor]:
    """Σ_n w_n x_n x_nᵀ, (D, D), of values x (N, D), for each row w of weights (R, N)."""
    if len(weights) * (size := values.shape[1]) ** 2 <= TOGETHER:
        first, second = torch.triu_indices(size, size, device=values.device)
        pairs, products = values.new_zeros(len(weights), len(first)), values.new_empty(len(weights), size, size)
        for part, each in zip(values.T.split(100, dim=1), weights.split(100, dim=1), strict=True):  # fits the cache
            pairs.addmm_(each, (part[first] * part[second]).T)
        products[:, first, second] = products[:, second, first] = pairs
        yield from products
        return
    for row in weights:
        total = torch.zeros_like(values[:1].T @ values[:1])
        for part, each in zip(values.split(COVARIANCE_BATCH), row.split(COVARIANCE_BATCH), strict=True):
            total += (part * each[:, None]).T @ part
        yield total


def kid_replicates(a: Features, b: Features, counts: Counts, device: torch.device | str = "cpu") -> Values:
    """KID of resamples `counts` (R, N) of features a (N, D) to all of b (M, D), up to a constant: (R,).

    Pairs of an image with itself are excluded, as in the unbiased estimate.
    """
    one, other, weights = (torch.from_numpy(values).to(device, torch.float32) for values in (a, b, counts))
    across = kernel_sums(one, other, weights, weights.new_ones(1, len(b))) / len(b)
    return (kernel_sums(one, one, weights, weights) / (len(a) * (len(a) - 1)) - 2 * across / len(a)).cpu().numpy()


def kernel_sums(a: Tensor, b: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Sums of KID's kernel, Σ_ij p_i q_j (a_i · b_j / D + 1)³: (R,), for the rows p of `left` and q of `right`.

    Features are a (N, D) and b (M, D), weights `left` (R, N) and `right` (R, M) or (1, M). If b is a, `right` is
    `left`, and pairs of an image with itself are excluded.
    """
    total, symmetric = torch.zeros(len(left), dtype=torch.float64, device=a.device), b is a
    a = a / math.sqrt(a.shape[1])
    b = a if symmetric else b / math.sqrt(b.shape[1])
    for first in range(0, len(a), PAIRWISE_BATCH):
        part = slice(first, first + PAIRWISE_BATCH)
        rows, weights = b[first:] if symmetric else b, right
        kernel = _product(a[part], rows.T).add_(1).pow_(3)
        if symmetric:  # pairs of this part with later ones count twice
            kernel.fill_diagonal_(0.0)
            weights = torch.cat([right[:, part], 2 * right[:, part.stop :]], dim=1)
        total += (_product(weights, kernel.T) * left[:, part]).sum(dim=1, dtype=torch.float64)
    return total


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b; on some CPUs numpy takes half of torch's time."""
    return a @ b if a.is_cuda else torch.from_numpy(a.numpy() @ b.numpy())


def inception_replicates(logits: Logits, splits: int, number: int, random: np.random.Generator) -> Values:
    """Inception scores (number,) of logits (N, classes), each part resampled from its own images."""
    log_p, scores = torch.from_numpy(logits).double().log_softmax(dim=1).numpy(), np.zeros(number)
    for part in range(splits):
        chunk = log_p[part * len(log_p) // splits : (part + 1) * len(log_p) // splits]
        p, weights = np.exp(chunk), resamples(len(chunk), number, random) / len(chunk)
        marginal = weights @ p
        scores += np.exp(weights @ (p * chunk).sum(axis=1) + entropy_terms(marginal).sum(axis=1)) / splits
    return scores
