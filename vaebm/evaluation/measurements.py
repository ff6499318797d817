"""All metrics of a run, as in metrics.json: value, number of images, and a 95 % interval where images are resampled."""

import math
from typing import Any

import torch

from vaebm.config import EvaluationSettings
from vaebm.evaluation.extractors import ExtractorOutput
from vaebm.evaluation.reference import Reference
from vaebm.measures import bootstrap, fidelity
from vaebm.measures.frechet import SAMPLES_PER_FEATURE, Statistics, extrapolated_distance, frechet_distance
from vaebm.measures.neighbours import TrainingImages, find_neighbours
from vaebm.model import Estimates
from vaebm.noise import derive
from vaebm.nvae.model import NVAE
from vaebm.records import metrics as registry
from vaebm.records.results import Measurement
from vaebm.system.errors import UserError

Measurements = dict[str, Measurement]

TINY = 1e-100
"""Added to distances, so that the ratio is 1 if all images are equal."""


def training_balls(
    reference: Reference, settings: EvaluationSettings, seed: int, device: torch.device | str = "cpu"
) -> TrainingImages:
    """The training images of `reference` with their balls, for `measure_fidelity` and `measure_held_out`.

    Raises:
        UserError: fewer images than `precision_recall.images`, or not more than neighbours.
    """
    features, chosen = reference.train_features, settings.precision_recall
    _check_images(chosen.images, len(features))
    order = bootstrap.generator(seed, "training images").permutation(len(features))
    return TrainingImages(features[order], chosen.images, chosen.neighbours, device)


def _check_images(images: int, there: int) -> None:
    if images > there:
        raise UserError(
            f"evaluation: precision_recall.images: expected at most {there}, the images there are, found {images}"
        )


def measure_fidelity(
    output: ExtractorOutput,
    reference: Reference,
    training: TrainingImages,
    settings: EvaluationSettings,
    seed: int,
    extractor: str = "",
) -> Measurements:
    """Compare the samples with real images: Fréchet distances, KID, nearest neighbours, inception score.

    Each name ends with the extractor's, by default that of the settings; with the standard Inception weights the
    Fréchet distance is the FID. Bootstrap intervals resample the samples and keep the real images. Shares of
    neighbours have Wilson intervals instead, because a repeated sample would be its own neighbour. Their ratio has
    none: its noise is of the held-out images. Stacks have no inception score: one part has too few images for a mean
    over a thousand modes.

    Raises:
        UserError: fewer images than `precision_recall.images` or `kid_subset_size`.
    """
    features, number, extractor = output.features, len(output.features), extractor or settings.extractor.name
    real_features, device = reference.train_features, training.device
    counts = bootstrap.resamples(number, settings.bootstrap, bootstrap.generator(seed, "samples"))
    statistics, references = Statistics.of(features), (reference.train, reference.heldout)
    distances = bootstrap.frechet_replicates(features, counts, references, device)
    metrics: Measurements = {}

    def add(metric: registry.Metric, value: float, interval: list[float], images: int = number, **facts: Any) -> None:
        metrics[metric.named(extractor)] = Measurement(value=value, samples=images, interval=interval, **facts)

    for metric, real, replicates in zip((registry.FD, registry.FD_HELDOUT), references, distances.T, strict=True):
        value = frechet_distance(statistics, real)
        add(metric, value, bootstrap.interval(value, replicates, 0.0))
    if number >= SAMPLES_PER_FEATURE * features.shape[1]:
        random = bootstrap.generator(seed, "extrapolation")
        value = extrapolated_distance(features, reference.train, random, device)
        # to first order all points of the fit have the same errors, which are those of the distance itself
        add(registry.FD_INFINITE, value, bootstrap.interval(value, distances[:, 0]))

    subsets, size = settings.kid_subsets, settings.kid_subset_size
    value, spread = fidelity.kid(features, real_features, subsets, size, derive(seed, "kid"), device)
    interval = bootstrap.interval(value, bootstrap.kid_replicates(features, real_features, counts, device))
    add(registry.KID, value, interval, subsets=subsets, subset_size=size, spread_over_subsets=spread)

    images, k = len(training.radii), training.k
    _check_images(images, number)
    found = find_neighbours(features[:images], training, reference.heldout_features)
    shares = {registry.PRECISION: found.inside > 0, registry.RECALL: found.recalled}
    for metric, each in (shares | {registry.COVERAGE: found.covered, registry.AUTHENTICITY: found.authentic}).items():
        share = float(each.mean())
        add(metric, share, bootstrap.proportion(share, images), images, neighbours=k)
    drawn = bootstrap.resamples(images, settings.bootstrap, bootstrap.generator(seed, "neighbours"))
    value, replicates = float(found.inside.mean() / k), drawn @ found.inside / (k * images)
    add(registry.DENSITY, value, bootstrap.interval(value, replicates, 0.0), images, neighbours=k)
    ratio = float((found.train + TINY).sum() / (found.heldout + TINY).sum())
    metrics[registry.NEIGHBOUR_RATIO.named(extractor)] = Measurement(value=ratio, samples=images)

    if output.logits.shape[1] == 1:
        logits, splits = output.logits[:, 0], settings.inception_splits
        value, spread = fidelity.inception_score(logits, splits)
        random = bootstrap.generator(seed, "inception score")
        replicates = bootstrap.inception_replicates(logits, splits, settings.bootstrap, random)
        interval = bootstrap.interval(value, replicates, 1.0, logits.shape[1])
        add(registry.IS, value, interval, splits=splits, spread_over_splits=spread)
    return metrics


def measure_held_out(reference: Reference, training: TrainingImages, extractor: str) -> Measurements:
    """Metrics of the held-out images in place of samples, those that do not depend on the number of samples."""
    every, k = reference.heldout_features, training.k
    metrics = {registry.FD.named(extractor): Measurement(value=reference.real, samples=len(every))}
    if len(held_out := every[: len(training.radii)]) > k:
        found = find_neighbours(held_out, training, held_out)
        each = {registry.PRECISION: found.inside > 0, registry.DENSITY: found.inside / k}
        for metric, values in (each | {registry.AUTHENTICITY: found.authentic}).items():
            value, name = float(values.mean()), metric.named(extractor)
            metrics[name] = Measurement(value=value, samples=len(values), neighbours=k)
    return metrics


def measure_likelihood(network: NVAE, held_out: Estimates, train: Estimates, draws: int) -> Measurements:
    """ELBO (NVAE eq. 1) and importance-weighted log-likelihood, in nats per dimension.

    A discrete decoder gives probabilities, and also bits per dimension. The Gaussian decoder gives the density of
    y = 2x − 1.
    """
    size, discrete = network.dimensions, network.settings.decoder != "normal"
    unit = "nats per dimension" if discrete else "nats per dimension, density on [-1, 1]"
    values = {registry.ELBO: held_out.elbo, registry.ELBO_TRAIN: train.elbo}
    values |= {registry.LOG_LIKELIHOOD: held_out.importance}
    metrics: Measurements = {
        metric.pattern: Measurement(value=float(each.mean()) / size, samples=len(each), draws=draws, unit=unit)
        for metric, each in values.items()
        if each is not None
    }
    if discrete and (nats := metrics.get(registry.LOG_LIKELIHOOD.pattern)):
        bits = {"value": -nats.value / math.log(2), "unit": "bits per dimension"}
        metrics[registry.BITS_PER_DIMENSION.pattern] = nats.model_copy(update=bits)
    return metrics
