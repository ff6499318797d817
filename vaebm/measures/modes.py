"""Modes of stacks: which triples of digits samples show, and how evenly (VAEBM table 5; Metz et al., 2017).

A stack's mode is the number that its channels' labels make, the first channel's digit first. Channels of the data are drawn
independently, so the data's law of modes is the product of their labels' frequencies: a histogram of the training stacks themselves
is that law and the chance of their drawing, and would count against a model what it rightly did not learn by heart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy
from scipy.stats import binom

from vaebm.measures.bootstrap import Logits, generator, interval
from vaebm.system.errors import UserError

Law = NDArray[np.float64]
"""Probability of each mode, (modes,)."""


def modes_of(logits: Logits) -> NDArray[np.int64]:
    """Predicted modes (N,) for the logits (N, depth, classes) of each image's channels."""
    _, depth, classes = logits.shape
    modes: NDArray[np.int64] = logits.argmax(axis=2) @ classes ** np.arange(depth - 1, -1, -1)
    return modes


def law_of(labels: NDArray[np.int64], depth: int, classes: int) -> Law:
    """The data's law of modes: the product over the `depth` channels of their labels' frequencies in `labels` (N,), which are modes."""
    law = np.ones(1)
    for place in range(depth - 1, -1, -1):
        frequency = np.bincount(labels // classes**place % classes, minlength=classes) / len(labels)
        law = np.multiply.outer(law, frequency).reshape(-1)
    return law


def histogram(modes: NDArray[np.int64], law: Law) -> NDArray[np.int64]:
    """How many images are of each mode, (modes,).

    Raises:
        UserError: an image is of a mode that the data never show, so that no divergence from them is finite.
    """
    counts = np.bincount(modes, minlength=len(law))
    if (foreign := np.flatnonzero((counts > 0) & (law == 0))).size:
        raise UserError(
            f"evaluation: modes: expected labels of the data alone, found samples taken for mode {foreign[0]}, which no training image can have"
        )
    return counts


def divergence(counts: NDArray[np.int64], law: Law) -> NDArray[np.float64]:
    """KL divergence of histograms of modes (…, modes) from the data's law, in nats, (…,)."""
    shares = counts / counts.sum(axis=-1, keepdims=True)
    seen = law > 0
    found: NDArray[np.float64] = (
        xlogy(shares[..., seen], shares[..., seen]) - shares[..., seen] * np.log(law[seen])
    ).sum(axis=-1)
    return found


def expected_modes(law: Law, images: int) -> float:
    """How many modes that many draws from the data's law show in expectation: Σ 1 − (1 − p)^n."""
    return float(-np.expm1(images * np.log1p(-law)).sum())


def expected_divergence(law: Law, images: int) -> float:
    """What `divergence` is in expectation for that many draws from the data's law: a sum over the binomial law of each mode's count.

    No sampler that does not know the training images can be expected to stay below; it is near (modes − 1) / 2n.
    """
    counts, total = np.arange(images + 1), 0.0
    shares = counts / images
    for probability, modes in zip(*np.unique(law[law > 0], return_counts=True), strict=True):
        terms = xlogy(shares, shares) - shares * np.log(probability)
        total += float(modes * (binom.pmf(counts, images, probability) @ terms))
    return total


def figures(counts: NDArray[np.int64], law: Law, resamples: int, seed: int) -> dict[str, dict[str, object]]:
    """Modes seen at least once, KL divergence from the data's law, and what draws from that law have in expectation.

    Args:
        counts: `histogram` of the samples.
        resamples: for the interval of the divergence. Resamples know nothing of the modes that were not seen: their number has none.
        seed: of the resamples.
    """
    images, seen = int(counts.sum()), int((counts > 0).sum())
    drawn = generator(seed, "modes").multinomial(images, counts / images, size=resamples)
    apart = float(divergence(counts, law))
    return {
        "modes": {"value": float(seen), "samples": images, "of": len(law)},
        "modes-floor": {"value": expected_modes(law, images), "samples": images},
        "KL": {"value": apart, "samples": images, "interval": interval(apart, divergence(drawn, law), 0.0)},
        "KL-floor": {"value": expected_divergence(law, images), "samples": images},
    }
