"""Every figure of a run, as it stands in metrics.json: value, number of images, and where images were drawn the 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaebm.config import EvaluationSettings, UserError
from vaebm.evaluation import bootstrap, fidelity, ood
from vaebm.evaluation.extractors import Judged
from vaebm.evaluation.likelihood import Likelihood
from vaebm.frechet import Statistics, frechet_distance
from vaebm.metrics import named
from vaebm.noise import derive
from vaebm.nvae.model import NVAE

Energy = Callable[[Tensor], Tensor]
"""Energies (B,) of images (B, C, H, W) uint8."""
Figures = dict[str, dict[str, Any]]
Scores = dict[str, NDArray[np.float64]]

BATCH = 500
"""Images whose energies are computed at once."""


def fidelity_figures(judged: Judged, reference: fidelity.Reference, settings: EvaluationSettings, seed: int) -> Figures:
    """How near the samples come to the real images: Fréchet distances, KID, precision and recall, and the inception score.

    Each is named after the extractor that judged; with the standard Inception weights the distance is the FID.

    Resampled are the samples; the training images, and the held-out ones, stay. Precision and recall are shares, the former of samples
    and the latter of training images, and have the interval of a share: a sample that comes twice would be its own neighbour. There is
    no inception score of stacks: a mean over a thousand modes takes more images than a part has, and `modes` and `KL` say it better.
    """
    features, number, images, extractor = judged.features, len(judged.features), settings.precision_recall.images, settings.extractor
    counts = bootstrap.resamples(number, settings.bootstrap, bootstrap.generator(seed, "samples"))
    statistics = Statistics.of(features)
    distances = bootstrap.frechet_replicates(features, counts, [reference.train, reference.heldout])
    figures: Figures = {}
    for beside, real, replicates in (("", reference.train, distances[:, 0]), ("-heldout", reference.heldout, distances[:, 1])):
        value = frechet_distance(statistics, real)
        figures[named("FD", extractor) + beside] = {"value": value, "samples": number, "interval": bootstrap.interval(value, replicates, 0.0)}

    value, spread = fidelity.kid(features, reference.train_features, settings.kid_subsets, settings.kid_subset_size, derive(seed, "kid"))
    figures[named("KID", extractor)] = {
        "value": value,
        "samples": number,
        "interval": bootstrap.interval(value, bootstrap.kid_replicates(features, reference.train_features, counts)),
        "subsets": settings.kid_subsets,
        "subset_size": settings.kid_subset_size,
        "spread_over_subsets": spread,
    }

    real_features = reference.train_features
    if images > (there := min(number, len(real_features))):
        raise UserError(f"evaluation: precision_recall.images: expected at most {there}, the images there are, found {images}")
    chosen = bootstrap.generator(seed, "training images").permutation(len(real_features))[:images]
    shares = fidelity.precision_recall(features[:images], real_features[chosen], settings.precision_recall.neighbours)
    for name, share in zip(("precision", "recall"), shares, strict=True):
        interval, neighbours = bootstrap.proportion(share, images), settings.precision_recall.neighbours
        figures[named(name, extractor)] = {"value": share, "samples": images, "interval": interval, "neighbours": neighbours}

    if judged.logits.shape[1] == 1:
        logits, splits = judged.logits[:, 0], settings.inception_splits
        value, spread = fidelity.inception_score(logits, splits)
        replicates = bootstrap.inception_replicates(logits, splits, settings.bootstrap, bootstrap.generator(seed, "inception score"))
        interval = bootstrap.interval(value, replicates, 1.0, logits.shape[1])
        figures[named("IS", extractor)] = {"value": value, "samples": number, "interval": interval, "splits": splits, "spread_over_splits": spread}
    return figures


@torch.no_grad()
def scores(likelihood: Likelihood | None, images: Tensor, energy: Energy | None) -> Scores:
    """Scores of images (N, C, H, W) uint8, higher for what looks in-distribution.

    Args:
        likelihood: log p(x) of the images; None for a model without.
        energy: E(x); None for a model without.

    Returns:
        "" → log p(x) − E(x), or log p(x) of a model without an energy; with an energy also "energy" → −E(x), and with both
        "likelihood" → log p(x).

    Raises:
        UserError: a score is not finite.
    """
    found: Scores = {}
    if energy is not None:
        energies = torch.cat([energy(batch) for batch in torch.split(images, BATCH)]).double().cpu().numpy()
        if not np.isfinite(energies).all():
            raise UserError(f"evaluation: expected finite energies, found {np.sum(~np.isfinite(energies))} others: the training of the energy diverged")
        found["energy"] = -energies
    if likelihood is not None:
        log_p = likelihood.importance.numpy()
        found = {"": log_p + found["energy"], **found, "likelihood": log_p} if found else {"": log_p}
    return found


def ood_figures(inside: Scores, outside: dict[str, Scores], resamples: int, seed: int) -> Figures:
    """AUROC of every score for held-out images against every set: AUROC-<set>, and -energy and -likelihood beside it.

    Resampled are the held-out images and the set, each by itself; all scores of a pair of sets see the same resamples.
    """
    figures: Figures = {}
    for name, found in outside.items():
        random = bootstrap.generator(seed, "AUROC", name)
        counts = [bootstrap.resamples(len(next(iter(scored.values()))), resamples, random) for scored in (inside, found)]
        for kind, own in inside.items():
            value = ood.auroc(own, found[kind])
            interval = bootstrap.interval(value, ood.auroc_replicates(own, found[kind], *counts), 0.0, 1.0)
            figures["-".join(filter(None, ("AUROC", name, kind)))] = {"value": value, "samples": len(own), "interval": interval}
    return figures


def likelihood_figures(network: NVAE, held_out: Likelihood, train: Likelihood, draws: int) -> Figures:
    """ELBO on held-out and training images (NVAE eq. 1) and the importance-weighted log-likelihood of held-out ones, per dimension.

    In nats: for a discrete decoder of a probability, and then also in bits, lower is better; for the Gaussian one of the
    density of y = 2x − 1, which makes no bits per dimension.
    """
    size, discrete = network.dimensions, network.settings.decoder != "normal"
    unit = "nats per dimension" if discrete else "nats per dimension, density on [-1, 1]"
    values = {"ELBO": held_out.elbo, "ELBO-train": train.elbo, "log-likelihood": held_out.importance}
    means = {name: float(each.mean()) / size for name, each in values.items()}
    figures: Figures = {name: {"value": means[name], "samples": len(each), "draws": draws, "unit": unit} for name, each in values.items()}
    if discrete:
        figures["bits-per-dimension"] = {**figures["log-likelihood"], "value": -means["log-likelihood"] / math.log(2), "unit": "bits per dimension"}
    return figures
