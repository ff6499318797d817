"""The metric registry: every name in a record of results, how tables, report and comparison treat it, what it means."""

import math
import re
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from vaebm.config.base import NAME
from vaebm.config.evaluation import EXTRACTORS, METRICS, MetricSettings
from vaebm.system.errors import UserError
from vaebm.system.plugins import Implementation

Shown = Literal["card", "row", "floor", "run"]


@dataclass(frozen=True)
class Metric:
    """One metric, for every extractor or out-of-distribution set that its name has a place for."""

    quantity: str
    """Metrics of one quantity are neighbours in the tables."""
    pattern: str
    """Name, with {extractor} or {set} for the part that varies."""
    family: str
    """Heading in the tables."""
    measured_with: Literal["extractor", "classifier of modes", "images", "model", "clock"]
    """Source of the value."""
    better: Literal["↑", "↓"]
    """Arrow of the better direction."""
    sentence: str
    """Meaning, unit and range."""
    has_ratio: bool = False
    """The metric has a natural zero, so a ratio has a meaning."""
    shown: Shown = "row"
    """card: on a card of the report and in the tables. row: in the tables. floor: in a column of the metric whose value
    for a perfect sampler it is. run: in metrics.json only, under `ood`."""
    standard: str = ""
    """Name with the extractor `inception`; a distance in other features is never called FID."""
    floor: str = ""
    """Name of the metric with the value of a perfect sampler."""
    counts: bool = False
    """Printed to two decimals instead of four digits."""
    measure: Implementation | None = None
    """Function of a plug-in: `evaluation.inputs.Inputs` and settings → a number, or a `Measurement`."""
    settings: type[MetricSettings] = MetricSettings
    """Class of a plug-in's settings."""

    def named(self, part: str) -> str:
        """Name for an extractor or for an out-of-distribution set."""
        return self.standard if part == "inception" and self.standard else self.pattern.format(extractor=part, set=part)

    @property
    def uses_extractor(self) -> bool:
        """True if the value depends on an extractor or on the classifier of modes."""
        return self.measured_with in ("extractor", "classifier of modes")


FD = Metric(
    "FD", "FD-{extractor}", "Sample quality", "extractor", "↓", has_ratio=True, shown="card", standard="FID",
    sentence="Fréchet distance between the features of samples and training images, in squared feature units; from 0.",
)  # fmt: skip
FD_HELDOUT = replace(
    FD, pattern="FD-{extractor}-heldout", standard="FID-heldout", shown="row",
    sentence="The same distance to the held-out images; from 0.",
)  # fmt: skip
FD_STRETCHED = replace(
    FD, pattern="FD-{extractor}-stretched", standard="FID-stretched", shown="row",
    sentence="The same distance after each sample is stretched to the range [0, 1], as published; from 0.",
)  # fmt: skip
FD_INFINITE = replace(
    FD, pattern="FD-{extractor}-infinity", standard="FID-infinity", shown="row", has_ratio=False,
    sentence="FD to training images, extrapolated to infinitely many samples, linear in 1/N (Chong and Forsyth, 2020), "
    "for at least 20 samples per feature.",
)  # fmt: skip
KID = Metric(
    "KID", "KID-{extractor}", "Sample quality", "extractor", "↓", has_ratio=True, standard="KID",
    sentence="Kernel inception distance, unbiased, mean over subsets; 0 for equal distributions, can be negative.",
)  # fmt: skip
IS = Metric(
    "IS", "IS-{extractor}", "Sample quality", "extractor", "↑", has_ratio=True, shown="card", standard="IS",
    sentence="exp of the mean KL divergence of predicted classes from their average; from 1 to the number of classes.",
)  # fmt: skip
PRECISION = Metric(
    "precision", "precision-{extractor}", "Sample quality", "extractor", "↑", shown="card", standard="precision",
    sentence="Share of samples within the k-th neighbour distance of a training image; from 0 to 1.",
)  # fmt: skip
RECALL = Metric(
    "recall", "recall-{extractor}", "Sample quality", "extractor", "↑", shown="card", standard="recall",
    sentence="Share of training images within the k-th neighbour distance of a sample; from 0 to 1.",
)  # fmt: skip
DENSITY = replace(
    PRECISION, quantity="density", pattern="density-{extractor}", standard="density", shown="row",
    sentence="Number of training images within whose k-th neighbour distance a sample is, divided by k, mean over "
    "samples; from 0, can exceed 1 (Naeem et al., 2020, and dgm-eval use k = 5; the default here is 3).",
)  # fmt: skip
COVERAGE = replace(
    DENSITY, quantity="coverage", pattern="coverage-{extractor}", standard="coverage",
    sentence="Share of training images with a sample within their k-th neighbour distance; from 0 to 1 (Naeem et al., "
    "2020, and dgm-eval use k = 5; the default here is 3).",
)  # fmt: skip
AUTHENTICITY = replace(
    DENSITY, quantity="authenticity", pattern="authenticity-{extractor}", standard="authenticity",
    sentence="Share of samples that are no copies: their nearest training image is nearer to another training image "
    "than to the sample; from 0 to 1 (Alaa et al., 2022).",
)  # fmt: skip
NEIGHBOUR_RATIO = replace(
    DENSITY, quantity="neighbour-ratio", pattern="neighbour-ratio-{extractor}", standard="neighbour-ratio",
    sentence="Distance from samples to the nearest training image over that to the nearest of as many held-out images, "
    "after Meehan et al. (2020); 1 without memorisation, 1 − c · (held-out / training images) with a share c of "
    "copies. By chance it deviates from 1, with a standard deviation of 0.0045 for 1,500 samples, 1,500 training and "
    "297 held-out images in 16 dimensions.",
)  # fmt: skip
MODES = Metric(
    "modes", "modes", "Modes", "classifier of modes", "↑", shown="card", floor="modes-floor", counts=True,
    sentence="Number of modes (the channels' labels together) among samples of stacks, the mean over the classifier's "
    "networks; from 1 to all, 1000 for three.",
)  # fmt: skip
MODES_FLOOR = replace(
    MODES, pattern="modes-floor", shown="floor", floor="",
    sentence="Expected number of modes among as many draws from the data's distribution.",
)  # fmt: skip
KL = Metric(
    "KL", "KL", "Modes", "classifier of modes", "↓", has_ratio=True, shown="card", floor="KL-floor",
    sentence="KL divergence of the samples' modes from the data's distribution, the mean over the classifier's "
    "networks, in nats; from 0.",
)  # fmt: skip
KL_FLOOR = replace(
    KL, pattern="KL-floor", shown="floor", floor="",
    sentence="Expected KL divergence of as many draws from the data's distribution, in nats; from 0.",
)  # fmt: skip
ELBO = Metric(
    "ELBO", "ELBO", "Likelihood", "model", "↑",
    sentence="Evidence lower bound of held-out images, in nats per dimension; at most 0, but any number for a density.",
)  # fmt: skip
ELBO_TRAIN = replace(ELBO, pattern="ELBO-train", sentence="The same bound for the first training images.")
LOG_LIKELIHOOD = replace(
    ELBO, quantity="log-likelihood", pattern="log-likelihood",
    sentence="Importance-weighted log p(x) of held-out images, in nats per dimension; range as of the ELBO.",
)  # fmt: skip
LOG_LIKELIHOOD_ENERGY = replace(
    LOG_LIKELIHOOD, pattern="log-likelihood-energy",
    sentence="log p(x) − E(x) − log Z of held-out images, E(x) without pixel noise, log Z by importance sampling, "
    "whose bias raises the value (Burda et al., 2016), in nats per dimension; range as of the ELBO.",
)  # fmt: skip
LOG_LIKELIHOOD_ANNEALED = replace(
    LOG_LIKELIHOOD, pattern="log-likelihood-annealed",
    sentence="The same with log Z by annealed importance sampling, whose bias raises the value too (Neal, 2001), in "
    "nats per dimension; range as of the ELBO.",
)  # fmt: skip
BITS_PER_DIMENSION = replace(
    ELBO, quantity="bits-per-dimension", pattern="bits-per-dimension", better="↓",
    sentence="Negative log-likelihood of held-out images by a discrete decoder, in bits per dimension; from 0.",
)  # fmt: skip
SECONDS_PER_50 = Metric(
    "seconds", "seconds-per-50", "Speed", "clock", "↓", has_ratio=True,
    sentence="Time to sample 50 images (noise and chain, models loaded), in seconds; from 0.",
)  # fmt: skip
IMAGES_TIMED = 50
"""Number of images of that metric, the one of the published times."""

SCORES = {
    "": "log p(x) − E(x)",
    "energy": "−E(x)",
    "likelihood": "log p(x)",
    "elbo": "ELBO − E(x)",
    "likelihood-elbo": "the ELBO",
    "typicality": "minus the distance of log p(x) − E(x) to its mean over training images (Nalisnick et al., 2019)",
    "complexity": "log p(x) − E(x) + the length of the image as PNG, in nats (Serrà et al., 2020)",
}
"""Score of out-of-distribution detection ("": the full score) → its formula; without an energy E(x) is 0."""

MEANINGS = {
    "AUROC": "Probability that a held-out image scores higher than an image of the set",
    "AUPR": "Average precision, with held-out images as positives and the set as negatives",
    "AUPR-out": "Average precision, with the set as positives and held-out images as negatives",
    "FPR95": "Share of the set that passes the threshold which 95 % of the held-out images pass",
}
"""Measure of how well a score separates held-out images from a set → its meaning."""


def _detection(quantity: str, score: str) -> Metric:
    """The metric of one measure and one score."""
    name = "-".join(filter(None, (quantity, "{set}", score)))
    better: Literal["↑", "↓"] = "↓" if quantity == "FPR95" else "↑"
    tables = {"AUROC": ("", "energy", "likelihood")}.get(quantity, ("",))
    shown: Shown = "run" if score not in tables else "card" if name == "AUROC-{set}" else "row"
    sentence = f"{MEANINGS[quantity]}, by {SCORES[score]}; from 0 to 1."
    return Metric(quantity, name, "Out-of-distribution detection", "model", better, sentence, shown=shown)


DETECTION = {(quantity, score): _detection(quantity, score) for quantity in MEANINGS for score in SCORES}
"""(measure, score) → the metric."""

STANDARD_METRICS = (
    FD, FD_HELDOUT, FD_STRETCHED, FD_INFINITE, KID, IS, PRECISION, RECALL, DENSITY, COVERAGE, AUTHENTICITY,
    NEIGHBOUR_RATIO, MODES, MODES_FLOOR, KL, KL_FLOOR, *DETECTION.values(),
    ELBO, ELBO_TRAIN, LOG_LIKELIHOOD, LOG_LIKELIHOOD_ENERGY, LOG_LIKELIHOOD_ANNEALED, BITS_PER_DIMENSION,
    SECONDS_PER_50,
)  # fmt: skip
"""All metrics but those of plug-ins, in the order of the tables."""


def order(one: Metric) -> int:
    """Place of a metric's quantity in the tables."""
    return list(dict.fromkeys(each.quantity for each in (*STANDARD_METRICS, *METRICS.values()))).index(one.quantity)


def other_extractors() -> list[str]:
    """Extractors that give their name to a metric; with standard Inception weights it has its `standard` name."""
    return [name for name in EXTRACTORS if name != "inception"]


@cache
def metric(name: str) -> Metric:
    """The registered metric of this name; a plug-in cannot take a standard one.

    Raises:
        UserError: there is none.
    """
    parts = {"{extractor}": f"({'|'.join(other_extractors())})", "{set}": NAME}
    for one in sorted(STANDARD_METRICS, key=lambda one: -len(one.pattern)):  # a set's name may have hyphens too
        expression = re.sub(r"{\w+}", lambda part: parts[part[0]], one.pattern)
        if name and (name == one.standard or re.fullmatch(expression, name)):
            return one
    if name in METRICS:
        return METRICS[name]
    raise UserError(
        f"expected a metric of docs/reference/metrics.md, found {name!r}; register it in vaebm/records/metrics.py"
    )


def with_direction(name: str) -> str:
    """A metric's name with the arrow of its better direction."""
    return f"{name} {metric(name).better}"


def number(value: float, digits: int = 4) -> str:
    """Format a number to `digits` significant digits, without an exponent if at most 6 decimals suffice."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:.{decimals}f}" if decimals <= 6 else f"{value:.{digits - 1}e}"


def format_value(name: str, value: float, digits: int = 4) -> str:
    """Format a value: counts to two decimals, others to `digits` significant digits."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if metric(name).counts else number(value, digits)
