"""Out-of-distribution detection (VAEBM section 5.4).

In-distribution images are the positives; higher scores are more in-distribution.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaebm.evaluation.measurements import Measurements
from vaebm.measures import bootstrap
from vaebm.measures.bootstrap import Counts, Values
from vaebm.model import Estimates
from vaebm.records.metrics import DETECTION
from vaebm.records.results import Measurement
from vaebm.system.errors import UserError

Scores = dict[str, NDArray[np.float64]]
"""Name of a score ("": the full score) → its value for each image, (N,)."""

TYPICALITY = "typicality"
RATE = 95
"""Percentage of held-out images that pass the threshold of FPR95, at least."""


def scores(estimates: Estimates) -> Scores:
    """Compute scores, higher for in-distribution images.

    Returns:
        "": log p(x) − E(x), or log p(x) without an energy, by the importance-weighted bound. "elbo": the same by the
        ELBO. With an energy also "energy": −E(x). With both also "likelihood": log p(x) and "likelihood-elbo": its
        ELBO.

    Raises:
        UserError: an energy is not finite.
    """
    found: Scores = {}
    if estimates.energy is not None:
        if not (finite := estimates.energy.isfinite()).all():
            raise UserError(
                f"evaluation: expected finite energies, found {int((~finite).sum())} others: "
                "the training of the energy diverged"
            )
        found["energy"] = -estimates.energy.numpy()
    if estimates.importance is not None and estimates.elbo is not None:
        log_p, elbo = estimates.importance.numpy(), estimates.elbo.numpy()
        if not found:
            return {"": log_p, "elbo": elbo}
        whole = {"": log_p + found["energy"], "elbo": elbo + found["energy"]}
        found = {**whole, **found, "likelihood": log_p, "likelihood-elbo": elbo}
    return found


def with_typicality(found: Scores, training: Scores) -> Scores:
    """Add "typicality" → −|score − mean score of training images|, if there is a full score.

    The single-image typicality test of Nalisnick et al. (2019).
    """
    return {**found, TYPICALITY: -np.abs(found[""] - training[""].mean())} if "" in found else found


def auroc(inside: Values, outside: Values) -> float:
    """Area under the ROC curve: probability that an in-distribution image (n,) has a higher score than another (m,)."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(*_labelled(inside, outside)))


def aupr(inside: Values, outside: Values) -> float:
    """Average precision: Σ (R_k − R_{k−1}) P_k over falling thresholds."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(*_labelled(inside, outside)))


def fpr95(inside: Values, outside: Values) -> float:
    """Share of the set that passes the highest threshold passed by at least 95 % of the in-distribution images."""
    from sklearn.metrics import roc_curve

    passing, hits, _ = roc_curve(*_labelled(inside, outside), drop_intermediate=False)
    return float(passing[hits >= RATE / 100].min())


def _labelled(inside: Values, outside: Values) -> tuple[NDArray[np.int64], Values]:
    return np.repeat([1, 0], [len(inside), len(outside)]), np.concatenate([inside, outside])


def auroc_replicates(inside: Values, outside: Values, inside_counts: Counts, outside_counts: Counts) -> Values:
    """`auroc` of independent resamples of both sets: counts (R, n) and (R, m) → (R,)."""
    order = np.argsort(outside)
    below = _sums(outside_counts[:, order])  # (R, m + 1): images among the k lowest scores
    lower, upper = (np.searchsorted(outside[order], inside, side=side) for side in ("left", "right"))
    wins = (inside_counts * (below[:, lower] + below[:, upper])).sum(axis=1) / 2  # a tie counts half
    return wins / (len(inside) * len(outside))


def aupr_replicates(inside: Values, outside: Values, inside_counts: Counts, outside_counts: Counts) -> Values:
    """`aupr` of resamples, as `auroc_replicates`."""
    thresholds = np.unique(inside)[::-1]  # recall rises only at the scores of in-distribution images
    hits, others = _passing(inside, inside_counts, thresholds), _passing(outside, outside_counts, thresholds)
    rises = np.diff(hits, axis=1, prepend=0)
    return (rises * hits / np.maximum(hits + others, 1)).sum(axis=1) / len(inside)


def fpr95_replicates(inside: Values, outside: Values, inside_counts: Counts, outside_counts: Counts) -> Values:
    """`fpr95` of resamples, as `auroc_replicates`."""
    falling, order = np.argsort(inside)[::-1], np.argsort(outside)
    enough = inside_counts[:, falling].cumsum(axis=1) >= -(-RATE * len(inside) // 100)
    thresholds = inside[falling][enough.argmax(axis=1)]
    places = np.searchsorted(outside[order], thresholds)[:, None]
    below = np.take_along_axis(_sums(outside_counts[:, order]), places, axis=1)[:, 0]
    return 1 - below / len(outside)


def _passing(found: Values, counts: Counts, thresholds: Values) -> Counts:
    """Number of images per resample with a score of at least each threshold (T,): (R, T)."""
    order = np.argsort(found)
    return counts.sum(axis=1, keepdims=True) - _sums(counts[:, order])[:, np.searchsorted(found[order], thresholds)]


def _sums(counts: Counts) -> Counts:
    """Sums of the first 0, 1, …, N columns, (R, N + 1)."""
    return np.pad(np.cumsum(counts, axis=1), ((0, 0), (1, 0)))


class Separation(NamedTuple):
    """A measure of how well scores separate two sets."""

    of: Callable[[Values, Values], float]
    """In-distribution scores and scores of the set → value in [0, 1]."""
    replicates: Callable[[Values, Values, Counts, Counts], Values]
    """The same for resamples of both."""


SEPARATIONS = {
    "AUROC": Separation(auroc, auroc_replicates),
    "AUPR": Separation(aupr, aupr_replicates),
    "FPR95": Separation(fpr95, fpr95_replicates),
}


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
            for quantity, separation in SEPARATIONS.items():
                value = separation.of(own, found[score])
                interval = bootstrap.interval(value, separation.replicates(own, found[score], *counts), 0.0, 1.0)
                key = DETECTION[quantity, score].named(name)
                metrics[key] = Measurement(value=value, samples=len(own), interval=interval)
    return metrics


def in_the_table(figures: Measurements, sets: list[str]) -> Measurements:
    """The part of `measure_ood` that the table shows, metric by metric."""
    wanted = [
        metric.named(name)
        for quantity in SEPARATIONS
        for name in sets
        for metric in DETECTION.values()
        if metric.quantity == quantity and metric.shown != "run"
    ]
    return {name: figures[name] for name in wanted if name in figures}


def headline_names(sets: list[str]) -> list[str]:
    """Names of the metrics by the full score, which need log p(x)."""
    return [DETECTION[quantity, ""].named(name) for quantity in SEPARATIONS for name in sets]
