"""Out-of-distribution detection (VAEBM section 5.4): scores of images, and how well they tell held-out images from every other set.

In-distribution images are the positives. Scores are higher for what looks in-distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaebm.evaluation.measurements import Figures
from vaebm.measures import bootstrap
from vaebm.measures.bootstrap import Counts, Values
from vaebm.model import Estimates
from vaebm.system.errors import UserError

Scores = dict[str, NDArray[np.float64]]
"""Name of a score, "" the whole one → of each image, (N,)."""

TYPICALITY = "typicality"
RATE = 95
"""Percent of the held-out images that the threshold of FPR95 lets pass, at the least."""

IN_THE_TABLE = {"AUROC": ("", "energy", "likelihood"), "AUPR": ("",), "FPR95": ("",)}
"""Metric → the scores whose figures are rows of the table; those of all scores stand in metrics.json."""


def scores(estimates: Estimates) -> Scores:
    """Scores of images, higher for what looks in-distribution.

    Args:
        estimates: of log p(x) and E(x) of the images, or of what the model has of them.

    Returns:
        "" → log p(x) − E(x), or log p(x) of a model without an energy, by the importance-weighted bound, and "elbo" → the same by the
        ELBO. With an energy also "energy" → −E(x), and with both "likelihood" → log p(x) and "likelihood-elbo" → its ELBO.

    Raises:
        UserError: an energy is not finite.
    """
    found: Scores = {}
    if estimates.energy is not None:
        if not (finite := estimates.energy.isfinite()).all():
            raise UserError(
                f"evaluation: expected finite energies, found {int((~finite).sum())} others: the training of the energy diverged"
            )
        found["energy"] = -estimates.energy.numpy()
    if estimates.importance is not None and estimates.elbo is not None:
        log_p, elbo = estimates.importance.numpy(), estimates.elbo.numpy()
        if not found:
            return {"": log_p, "elbo": elbo}
        found = {
            "": log_p + found["energy"],
            "elbo": elbo + found["energy"],
            **found,
            "likelihood": log_p,
            "likelihood-elbo": elbo,
        }
    return found


def with_typicality(found: Scores, training: Scores) -> Scores:
    """`found` and, where there is a whole score, "typicality" → −|score − its mean over training images|.

    The test for the typical set of Nalisnick et al. (2019) with a single image: what is far more likely than training images is as
    suspect as what is far less.
    """
    return {**found, TYPICALITY: -np.abs(found[""] - training[""].mean())} if "" in found else found


def auroc(inside: Values, outside: Values) -> float:
    """Area under the ROC curve: how often an in-distribution image has the higher score (n,) than another one (m,)."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(*_labelled(inside, outside)))


def aupr(inside: Values, outside: Values) -> float:
    """Area under the precision-recall curve as average precision: Σ (R_k − R_{k−1}) P_k over falling thresholds."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(*_labelled(inside, outside)))


def fpr95(inside: Values, outside: Values) -> float:
    """Share of the set that passes the highest threshold that at least 95 % of the in-distribution images pass."""
    from sklearn.metrics import roc_curve

    passing, hits, _ = roc_curve(*_labelled(inside, outside), drop_intermediate=False)
    return float(passing[hits >= RATE / 100].min())


def _labelled(inside: Values, outside: Values) -> tuple[NDArray[np.int64], Values]:
    return np.repeat([1, 0], [len(inside), len(outside)]), np.concatenate([inside, outside])


def auroc_replicates(inside: Values, outside: Values, inside_counts: Counts, outside_counts: Counts) -> Values:
    """`auroc` of resamples of both sets, drawn independently of each other: counts (R, n) and (R, m) → (R,)."""
    order = np.argsort(outside)
    below = _sums(outside_counts[:, order])  # (R, m + 1): how many have one of the k lowest scores
    lower, upper = (np.searchsorted(outside[order], inside, side=side) for side in ("left", "right"))
    wins = (inside_counts * (below[:, lower] + below[:, upper])).sum(axis=1) / 2  # an equal score counts half
    replicates: Values = wins / (len(inside) * len(outside))
    return replicates


def aupr_replicates(inside: Values, outside: Values, inside_counts: Counts, outside_counts: Counts) -> Values:
    """`aupr` of resamples, as `auroc_replicates`."""
    thresholds = np.unique(inside)[
        ::-1
    ]  # precision counts where recall rises, at the scores of in-distribution images alone
    hits, others = _passing(inside, inside_counts, thresholds), _passing(outside, outside_counts, thresholds)
    rises = np.diff(hits, axis=1, prepend=0)
    replicates: Values = (rises * hits / np.maximum(hits + others, 1)).sum(axis=1) / len(inside)
    return replicates


def fpr95_replicates(inside: Values, outside: Values, inside_counts: Counts, outside_counts: Counts) -> Values:
    """`fpr95` of resamples, as `auroc_replicates`."""
    falling, order = np.argsort(inside)[::-1], np.argsort(outside)
    enough = inside_counts[:, falling].cumsum(axis=1) >= -(-RATE * len(inside) // 100)
    thresholds = inside[falling][enough.argmax(axis=1)]
    below = np.take_along_axis(
        _sums(outside_counts[:, order]), np.searchsorted(outside[order], thresholds)[:, None], axis=1
    )[:, 0]
    replicates: Values = 1 - below / len(outside)
    return replicates


def _passing(found: Values, counts: Counts, thresholds: Values) -> Counts:
    """How many images of each resample have at least each of the thresholds (T,): (R, T)."""
    order = np.argsort(found)
    return counts.sum(axis=1, keepdims=True) - _sums(counts[:, order])[:, np.searchsorted(found[order], thresholds)]


def _sums(counts: Counts) -> Counts:
    """Sums of the first 0, 1, …, N columns, (R, N + 1)."""
    return np.pad(np.cumsum(counts, axis=1), ((0, 0), (1, 0)))


class Metric(NamedTuple):
    """A measure of how well scores tell two sets apart."""

    of: Callable[[Values, Values], float]
    """Scores of in-distribution images and of the set → the figure, from 0 to 1."""
    replicates: Callable[[Values, Values, Counts, Counts], Values]
    """The same of resamples of both."""


METRICS = {
    "AUROC": Metric(auroc, auroc_replicates),
    "AUPR": Metric(aupr, aupr_replicates),
    "FPR95": Metric(fpr95, fpr95_replicates),
}


def named(metric: str, name: str, score: str) -> str:
    """What the figure of a set by one of the scores is called."""
    return "-".join(filter(None, (metric, name, score)))


def ood_figures(inside: Scores, outside: dict[str, Scores], resamples: int, seed: int) -> Figures:
    """<metric>-<set>-<score> of `METRICS` for held-out images against every set by every score; the whole score adds no name.

    Resampled are the held-out images and the set, each by itself; all figures of a pair of sets see the same resamples.
    """
    figures: Figures = {}
    for name, found in outside.items():
        random = bootstrap.generator(seed, "AUROC", name)
        counts = [
            bootstrap.resamples(len(next(iter(scored.values()))), resamples, random) for scored in (inside, found)
        ]
        for score, own in inside.items():
            for title, metric in METRICS.items():
                value = metric.of(own, found[score])
                interval = bootstrap.interval(value, metric.replicates(own, found[score], *counts), 0.0, 1.0)
                figures[named(title, name, score)] = {"value": value, "samples": len(own), "interval": interval}
    return figures


def in_the_table(figures: Figures, sets: list[str]) -> Figures:
    """Those of `ood_figures` that are rows of the table, metric by metric."""
    wanted = [named(metric, name, score) for metric, kinds in IN_THE_TABLE.items() for name in sets for score in kinds]
    return {name: figures[name] for name in wanted if name in figures}


def lacking(sets: list[str]) -> list[str]:
    """The figures by the whole score, which a model without log p(x) has not."""
    return [named(metric, name, "") for metric in IN_THE_TABLE for name in sets]
