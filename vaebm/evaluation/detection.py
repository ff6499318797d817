"""Out-of-distribution detection (VAEBM section 5.4).

In-distribution images are the positives; higher scores are more in-distribution.
"""

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vaebm.evaluation.measurements import Measurements
from vaebm.measures import bootstrap
from vaebm.measures.bootstrap import Counts, Values
from vaebm.model import Estimates
from vaebm.records.metrics import DETECTION, MEANINGS, metric, order
from vaebm.records.results import Measurement

Scores = dict[str, NDArray[np.float64]]
"""Name of a score ("": the full score) → its value for each image, (N,)."""

RATE = 95
"""Percentage of held-out images that pass the threshold of FPR95, at least."""


def scores(estimates: Estimates) -> Scores:
    """Compute scores, higher for in-distribution images.

    Returns:
        "": log p(x) − E(x), or log p(x) without an energy, by the importance-weighted bound. "elbo": the same by the
        ELBO. With an energy also "energy": −E(x). With both also "likelihood": log p(x) and "likelihood-elbo": its
        ELBO.
    """
    found: Scores = {}
    if estimates.energy is not None:
        found["energy"] = -estimates.energy.numpy()
    if estimates.importance is not None and estimates.elbo is not None:
        log_p, elbo = estimates.importance.numpy(), estimates.elbo.numpy()
        if not found:
            return {"": log_p, "elbo": elbo}
        whole = {"": log_p + found["energy"], "elbo": elbo + found["energy"]}
        return {**whole, **found, "likelihood": log_p, "likelihood-elbo": elbo}
    return found


def with_typicality(found: Scores, training: Scores) -> Scores:
    """Add "typicality" → −|score − mean score of training images|, if there is a full score.

    The single-image typicality test of Nalisnick et al. (2019).
    """
    return {**found, "typicality": -np.abs(found[""] - training[""].mean())} if "" in found else found


def with_complexity(found: Scores, images: Tensor) -> Scores:
    """Add "complexity" → full score + length of each PNG in nats, if there is a full score.

    The likelihood ratio of the model and a general compressor (Serrà et al., 2020), for images (N, C, H, W) uint8.
    Images of neither one channel nor three are compressed with their channels one below the other.
    """
    if "" not in found:
        return found
    lengths = []
    for image in images.permute(0, 2, 3, 1).numpy():
        pixels = image if image.shape[2] == 3 else image.transpose(2, 0, 1).reshape(-1, image.shape[1])
        Image.fromarray(pixels).save(stream := io.BytesIO(), format="png", optimize=True)
        lengths.append(8 * math.log(2) * stream.tell())
    return {**found, "complexity": found[""] + lengths}


def roc_points(inside: Values, outside: Values) -> tuple[Values, Values]:
    """Share of the set and share of in-distribution images above falling thresholds, without collinear points."""
    thresholds = _thresholds(inside, outside)
    passing = np.concatenate([_passing(found, _once(found), thresholds) for found in (outside, inside)])
    passing = np.pad(passing, ((0, 0), (1, 0)))
    turns = np.pad(np.diff(passing, 2).any(axis=0), 1, constant_values=True)
    others, hits = passing[:, turns]
    return others / len(outside), hits / len(inside)


def separations(inside: Values, outside: Values) -> dict[str, float]:
    """Values in [0, 1] of the measures, for in-distribution scores (n,) and scores of the set (m,).

    AUROC: probability that an in-distribution image has the higher score. AUPR: Σ (R_k − R_{k−1}) P_k over falling
    thresholds. AUPR-out: the same over rising thresholds, with the set as positives. FPR95: share of the set at the
    highest threshold passed by at least 95 % of the in-distribution images.
    """
    found = replicates(inside, outside, _once(inside), _once(outside))
    return {name: float(values[0]) for name, values in found.items()}


def replicates(inside: Values, outside: Values, inside_counts: Counts, outside_counts: Counts) -> dict[str, Values]:
    """`separations` (R,) of independent resamples of both sets, given as counts (R, n) and (R, m)."""
    thresholds = _thresholds(inside, outside)
    hits, others = _passing(inside, inside_counts, thresholds), _passing(outside, outside_counts, thresholds)
    rises, passed = np.diff(hits, prepend=0), np.diff(others, prepend=0)
    below = len(outside) - others
    enough = (100 * hits >= RATE * len(inside)).argmax(axis=1)[:, None]
    # ties count half
    areas = (rises * (2 * below + passed)).sum(axis=1) / (2 * len(inside) * len(outside))
    shares = 1 - np.take_along_axis(below, enough, axis=1)[:, 0] / len(outside)
    precisions = _precision(hits, others), _precision(_failing(others), _failing(hits))
    return dict(zip(MEANINGS, (areas, *precisions, shares), strict=True))


def _once(found: Values) -> Counts:
    """Counts (1, N) of the images themselves, each once."""
    return np.ones((1, len(found)), np.int64)


def _thresholds(inside: Values, outside: Values) -> Values:
    """All scores, falling, (T,)."""
    return np.unique(np.concatenate([inside, outside]))[::-1]


def _precision(hits: Counts, others: Counts) -> Values:
    """Average precision (R,) from the positives and the negatives that pass each threshold, (R, T) each."""
    rises = np.diff(hits, prepend=0)
    return (rises * hits / np.maximum(hits + others, 1)).sum(axis=1) / hits[:, -1]


def _failing(passing: Counts) -> Counts:
    """Number of images per resample with a score of at most each threshold, rising, from `_passing`: (R, T)."""
    return passing[:, -1:] - np.pad(passing, ((0, 0), (1, 0)))[:, -2::-1]


def _passing(found: Values, counts: Counts, thresholds: Values) -> Counts:
    """Number of images per resample with a score of at least each threshold (T,): (R, T)."""
    order = np.argsort(-found)
    sums = np.cumsum(np.pad(counts[:, order], ((0, 0), (1, 0))), axis=1)
    return sums[:, np.searchsorted(-found[order], -thresholds, side="right")]


def measure_ood(inside: Scores, outside: dict[str, Scores], resamples: int, seed: int) -> Measurements:
    """Compute <metric>-<set>-<score> for held-out images against every set; the full score adds no suffix.

    Both sets are resampled independently; all metrics of a pair of sets use the same resamples.
    """
    metrics: Measurements = {}
    for name, found in outside.items():
        random = bootstrap.generator(seed, "AUROC", name)
        sizes = (len(next(iter(scored.values()))) for scored in (inside, found))
        counts = [bootstrap.resamples(size, resamples, random) for size in sizes]
        for score, own in inside.items():
            resampled = replicates(own, found[score], *counts)
            for quantity, value in separations(own, found[score]).items():
                interval = bootstrap.interval(value, resampled[quantity], 0.0, 1.0)
                key = DETECTION[quantity, score].named(name)
                metrics[key] = Measurement(value=value, samples=len(own), interval=interval)
    return metrics


def in_the_table(figures: Measurements) -> Measurements:
    """The part of `measure_ood` that the table shows, metric by metric."""
    shown = {name: figure for name, figure in figures.items() if metric(name).shown != "run"}
    return dict(sorted(shown.items(), key=lambda item: order(metric(item[0]))))
