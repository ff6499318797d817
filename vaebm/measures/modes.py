"""Modes of stacks (VAEBM table 5; Metz et al., 2017).

A stack's mode is the number made of its channels' labels, the first channel's digit first. Channels of the data are
independent, so the law of the modes is the product of the channels' label frequencies. The histogram of the training
stacks would add their sampling noise to that law.
"""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaebm.measures import bootstrap
from vaebm.records.metrics import KL, KL_FLOOR, MODES, MODES_FLOOR
from vaebm.records.results import Measurement
from vaebm.system.errors import UserError

Law = NDArray[np.float64]
"""Probability of each mode, (modes,)."""
Labels = NDArray[np.int64]
"""Labels of channels, from 0."""
Modes = NDArray[np.int64]
"""Numbers of modes, from 0."""


def modes_of(labels: Labels, classes: int) -> Modes:
    """Modes (N, networks) from the channels' labels (N, depth, networks), 0 to `classes` − 1."""
    return np.ravel_multi_index(tuple(np.moveaxis(labels, 1, 0)), (classes,) * labels.shape[1])


def law_of(labels: NDArray[np.int64], depth: int, classes: int) -> Law:
    """The data's law of modes: product of the label frequencies of the `depth` channels; `labels` (N,) are modes."""
    places = np.unravel_index(labels, (classes,) * depth)
    frequencies = (np.bincount(place, minlength=classes) / len(labels) for place in places)
    return functools.reduce(np.multiply.outer, frequencies).reshape(-1)


def histogram(modes: Modes, law: Law) -> NDArray[np.int64]:
    """Number of images of each mode, (modes,), from the modes (N,) that one network finds.

    Raises:
        UserError: an image has a mode of probability zero, which makes the divergence infinite.
    """
    counts = np.bincount(modes, minlength=len(law))
    if (foreign := np.flatnonzero((counts > 0) & (law == 0))).size:
        raise UserError(
            f"evaluation: modes: expected labels of the data alone, found samples taken for mode {foreign[0]}, "
            "which no training image can have"
        )
    return counts


def divergence(counts: NDArray[np.number[Any]], law: Law) -> NDArray[np.float64]:
    """KL divergence of histograms of modes (…, modes) from the law, in nats, (…,)."""
    seen = law > 0
    shares = (counts / counts.sum(axis=-1, keepdims=True))[..., seen]
    return -(bootstrap.entropy_terms(shares) + shares * np.log(law[seen])).sum(axis=-1)


def expected_modes(law: Law, images: int) -> float:
    """Expected number of modes in that many draws from the law: Σ 1 − (1 − p)^n."""
    return float(-np.expm1(images * np.log1p(-law)).sum())


def expected_divergence(law: Law, images: int) -> float:
    """Expected `divergence` of that many draws from the law: a sum over the binomial law of each mode's count.

    This is the floor of a perfect sampler, near (modes − 1) / 2n.
    """
    from scipy.stats import binom  # half a second, for stacks alone

    counts, (values, modes) = np.arange(images + 1), np.unique(law[law > 0], return_counts=True)
    shares = counts / images
    terms = [binom.pmf(counts, images, p) @ (bootstrap.entropy_terms(shares) + shares * np.log(p)) for p in values]
    return -float(modes @ np.array(terms))


def measure_modes(found: Modes, law: Law, resamples: int, seed: int) -> dict[str, Measurement]:
    """Number of modes seen, KL divergence from the law, and the expectation of both for draws from the law.

    `found` (N, networks) are the samples' modes by each network of the classifier. Number of modes and divergence are
    means over the networks, because networks that agree on data can differ on ambiguous samples. The interval resamples
    the images, the same for all networks. The number of modes has none, because resamples add no modes.

    Raises:
        UserError: an image has a mode of probability zero.
    """
    images, networks = found.shape
    counts = np.stack([histogram(each, law) for each in found.T])
    apart, seen = divergence(counts, law), (counts > 0).sum(axis=1)
    drawn = bootstrap.resamples(images, resamples, bootstrap.generator(seed, "modes"))
    resampled = ([np.bincount(each, row, len(law)) for row in drawn] for each in found.T)
    replicates = np.mean([divergence(np.array(each), law) for each in resampled], axis=0)

    def mean(values: NDArray[np.number[Any]], **facts: Any) -> Measurement:
        if networks > 1:
            facts["spread_over_networks"] = float(values.std(ddof=1))
        return Measurement(value=float(values.mean()), samples=images, **facts)

    return {
        MODES.pattern: mean(seen, of=len(law)),
        MODES_FLOOR.pattern: Measurement(value=expected_modes(law, images), samples=images),
        KL.pattern: mean(apart, interval=bootstrap.interval(float(apart.mean()), replicates, 0.0)),
        KL_FLOOR.pattern: Measurement(value=expected_divergence(law, images), samples=images),
    }
