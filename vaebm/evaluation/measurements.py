"""Every figure of a run, as it stands in metrics.json: value, number of images, and where images were drawn the 95 % interval."""

from __future__ import annotations

import math
from typing import Any

import torch

from vaebm.config import EvaluationSettings
from vaebm.evaluation.extractors import Judged
from vaebm.evaluation.reference import Reference
from vaebm.measures import bootstrap, fidelity
from vaebm.measures.frechet import Statistics, frechet_distance
from vaebm.model import Estimates
from vaebm.noise import derive
from vaebm.nvae.model import NVAE
from vaebm.records.metrics import named
from vaebm.system.errors import UserError

Figures = dict[str, dict[str, Any]]


def fidelity_figures(
    judged: Judged, reference: Reference, settings: EvaluationSettings, seed: int, device: torch.device | str = "cpu"
) -> Figures:
    """How near the samples come to the real images: Fréchet distances, KID, precision and recall, and the inception score.

    Each is named after the extractor that judged; with the standard Inception weights the distance is the FID.

    Resampled are the samples; the training images, and the held-out ones, stay. Precision and recall are shares, the former of samples
    and the latter of training images, and have the interval of a share: a sample that comes twice would be its own neighbour. There is
    no inception score of stacks: a mean over a thousand modes takes more images than a part has, and `modes` and `KL` say it better.
    """
    features, number, images, extractor = (
        judged.features,
        len(judged.features),
        settings.precision_recall.images,
        settings.extractor,
    )
    counts = bootstrap.resamples(number, settings.bootstrap, bootstrap.generator(seed, "samples"))
    statistics = Statistics.of(features)
    distances = bootstrap.frechet_replicates(features, counts, [reference.train, reference.heldout], device)
    figures: Figures = {}
    for beside, real, replicates in (
        ("", reference.train, distances[:, 0]),
        ("-heldout", reference.heldout, distances[:, 1]),
    ):
        value = frechet_distance(statistics, real)
        figures[named("FD", extractor) + beside] = {
            "value": value,
            "samples": number,
            "interval": bootstrap.interval(value, replicates, 0.0),
        }

    value, spread = fidelity.kid(
        features, reference.train_features, settings.kid_subsets, settings.kid_subset_size, derive(seed, "kid")
    )
    figures[named("KID", extractor)] = {
        "value": value,
        "samples": number,
        "interval": bootstrap.interval(
            value, bootstrap.kid_replicates(features, reference.train_features, counts, device)
        ),
        "subsets": settings.kid_subsets,
        "subset_size": settings.kid_subset_size,
        "spread_over_subsets": spread,
    }

    real_features = reference.train_features
    if images > (there := min(number, len(real_features))):
        raise UserError(
            f"evaluation: precision_recall.images: expected at most {there}, the images there are, found {images}"
        )
    chosen = bootstrap.generator(seed, "training images").permutation(len(real_features))[:images]
    shares = fidelity.precision_recall(features[:images], real_features[chosen], settings.precision_recall.neighbours)
    for name, share in zip(("precision", "recall"), shares, strict=True):
        interval, neighbours = bootstrap.proportion(share, images), settings.precision_recall.neighbours
        figures[named(name, extractor)] = {
            "value": share,
            "samples": images,
            "interval": interval,
            "neighbours": neighbours,
        }

    if judged.logits.shape[1] == 1:
        logits, splits = judged.logits[:, 0], settings.inception_splits
        value, spread = fidelity.inception_score(logits, splits)
        replicates = bootstrap.inception_replicates(
            logits, splits, settings.bootstrap, bootstrap.generator(seed, "inception score")
        )
        interval = bootstrap.interval(value, replicates, 1.0, logits.shape[1])
        figures[named("IS", extractor)] = {
            "value": value,
            "samples": number,
            "interval": interval,
            "splits": splits,
            "spread_over_splits": spread,
        }
    return figures


def likelihood_figures(network: NVAE, held_out: Estimates, train: Estimates, draws: int) -> Figures:
    """ELBO on held-out and training images (NVAE eq. 1) and the importance-weighted log-likelihood of held-out ones, per dimension.

    In nats: for a discrete decoder of a probability, and then also in bits, lower is better; for the Gaussian one of the
    density of y = 2x − 1, which makes no bits per dimension.
    """
    size, discrete = network.dimensions, network.settings.decoder != "normal"
    unit = "nats per dimension" if discrete else "nats per dimension, density on [-1, 1]"
    values = {"ELBO": held_out.elbo, "ELBO-train": train.elbo, "log-likelihood": held_out.importance}
    figures: Figures = {
        name: {"value": float(each.mean()) / size, "samples": len(each), "draws": draws, "unit": unit}
        for name, each in values.items()
        if each is not None
    }
    if discrete and "log-likelihood" in figures:
        nats = figures["log-likelihood"]
        figures["bits-per-dimension"] = {**nats, "value": -nats["value"] / math.log(2), "unit": "bits per dimension"}
    return figures
