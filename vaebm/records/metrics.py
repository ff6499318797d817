"""The metric registry: every name in a record of results, how tables, report and comparison treat it, what it means.

To regenerate its reference page: python -m vaebm.records.metrics > docs/metrics.md
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from typing import Any, Literal, NamedTuple, get_args

from vaebm.config import BASELINE
from vaebm.config.evaluation import ExtractorName
from vaebm.system.errors import UserError

MetricValue = dict[str, Any]
"""One metric of one variant over its seeds: value, spread, interval, samples, seeds, by_seed."""
Record = dict[str, Any]
"""One variant over its seeds: experiment, variant, metrics (name → `MetricValue`), origin."""

OTHER_EXTRACTORS = [name for name in get_args(ExtractorName) if name != "inception"]
"""Extractors that give their name to a metric; with the standard Inception weights a metric has its `standard` name."""


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
KID = Metric(
    "KID", "KID-{extractor}", "Sample quality", "extractor", "↓", has_ratio=True, standard="KID",
    sentence="Kernel inception distance, unbiased, mean over subsets, without unit; 0 for equal laws, at times below.",
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
MODES = Metric(
    "modes", "modes", "Modes", "classifier of modes", "↑", shown="card", floor="modes-floor", counts=True,
    sentence="Number of modes (the channels' labels together) among samples of stacks; from 1 to all, 1000 for three.",
)  # fmt: skip
MODES_FLOOR = replace(
    MODES, pattern="modes-floor", shown="floor", floor="",
    sentence="Expected number of modes among as many draws from the data's law.",
)  # fmt: skip
KL = Metric(
    "KL", "KL", "Modes", "classifier of modes", "↓", has_ratio=True, shown="card", floor="KL-floor",
    sentence="KL divergence of the samples' modes from the data's law, in nats; from 0.",
)  # fmt: skip
KL_FLOOR = replace(
    KL, pattern="KL-floor", shown="floor", floor="",
    sentence="Expected KL divergence of as many draws from the data's law, in nats; from 0.",
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
BITS_PER_DIMENSION = replace(
    ELBO, quantity="bits-per-dimension", pattern="bits-per-dimension", better="↓",
    sentence="Negative log-likelihood of held-out images by a discrete decoder, in bits per dimension; from 0.",
)  # fmt: skip
SECONDS_PER_50 = Metric(
    "seconds", "seconds-per-50", "Speed", "clock", "↓", has_ratio=True,
    sentence="Time to sample 50 images (noise and chain, models loaded), in seconds; from 0.",
)  # fmt: skip

SCORES = {
    "": "log p(x) − E(x)",
    "energy": "−E(x)",
    "likelihood": "log p(x)",
    "elbo": "ELBO − E(x)",
    "likelihood-elbo": "the ELBO",
    "typicality": "the typicality of log p(x) − E(x)",
}
"""Score of out-of-distribution detection ("": the full score) → its formula; without an energy E(x) is 0."""

MEANINGS = {
    "AUROC": "Probability that a held-out image scores higher than an image of the set",
    "AUPR": "Average precision, with held-out images as positives and the set as negatives",
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

METRICS = (
    FD, FD_HELDOUT, FD_STRETCHED, KID, IS, PRECISION, RECALL, MODES, MODES_FLOOR, KL, KL_FLOOR, *DETECTION.values(),
    ELBO, ELBO_TRAIN, LOG_LIKELIHOOD, BITS_PER_DIMENSION, SECONDS_PER_50,
)  # fmt: skip
"""All metrics, in the order of the tables."""
QUANTITIES = list(dict.fromkeys(one.quantity for one in METRICS))


@cache
def metric(name: str) -> Metric:
    """The registered metric of this name.

    Raises:
        UserError: there is none.
    """
    parts = {"{extractor}": f"({'|'.join(OTHER_EXTRACTORS)})", "{set}": r"\w+"}
    for one in METRICS:
        expression = re.sub(r"{\w+}", lambda part: parts[part[0]], one.pattern)
        if name and (name == one.standard or re.fullmatch(expression, name)):
            return one
    raise UserError(f"expected a metric of docs/metrics.md, found {name!r}; register it in vaebm/records/metrics.py")


def with_direction(name: str) -> str:
    """A metric's name with the arrow of its better direction."""
    return f"{name} {metric(name).better}"


class Uncertainty(NamedTuple):
    """Uncertainty of a value."""

    kind: str
    """ "spread": standard deviation over the seeds; "interval": half the width of the 95 % interval of its one seed."""
    size: float


def number(value: float, digits: int = 4) -> str:
    """Format a number to `digits` significant digits, without an exponent if at most 6 decimals suffice."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:.{decimals}f}" if decimals <= 6 else f"{value:.{digits - 1}e}"


def format_value(name: str, value: float, digits: int = 4) -> str:
    """Format a value: counts to two decimals, others to `digits` significant digits."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if metric(name).counts else number(value, digits)


def certainty(name: str, figure: MetricValue) -> str:
    """`± spread` for several seeds, `[low, high]` for one; empty if neither is known."""
    if figure["spread"] is not None:
        return f"± {number(figure['spread'], 2)}"
    bounds = [format_value(name, bound) for bound in figure["interval"] or ()]
    return f"[{', '.join(bounds)}]" if bounds else ""


def with_certainty(name: str, figure: MetricValue) -> str:
    """Format a value with its `certainty`."""
    return f"{format_value(name, figure['value'])} {certainty(name, figure)}".rstrip()


def uncertainty(figure: MetricValue) -> Uncertainty | None:
    """Uncertainty of a value, if known."""
    if figure["spread"] is not None:
        return Uncertainty("spread", figure["spread"])
    if figure["interval"]:
        low, high = figure["interval"]
        return Uncertainty("interval", (high - low) / 2)
    return None


def z_score(one: MetricValue, other: MetricValue) -> tuple[float, str] | None:
    """The difference `other` − `one` in units of its uncertainty √(a² + b²), and the kind of uncertainty.

    For values from the same noise this uncertainty is an upper bound. None if one is unknown, the kinds differ, or both
    are zero.
    """
    first, second = uncertainty(one), uncertainty(other)
    if first is None or second is None or first.kind != second.kind:
        return None
    if not (together := math.hypot(first.size, second.size)):
        return None
    return (other["value"] - one["value"]) / together, first.kind


def ratio(name: str, before: float, after: float) -> float | None:
    """`after` / `before` for metrics with a natural zero and positive values, else None."""
    return after / before if metric(name).has_ratio and before > 0 and after > 0 else None


class ComparisonRow(NamedTuple):
    """One metric of an experiment, across its variants."""

    metric: str
    figures: list[MetricValue | None]
    """One per variant; None: not measured."""
    ratio: str
    """First variant relative to the NVAE; empty if a ratio has no meaning."""
    floor: str
    """Value of a perfect sampler at that number of samples; empty if unknown."""

    @property
    def samples(self) -> str:
        """The distinct numbers of images."""
        return ", ".join(f"{count:,}" for count in sorted({figure["samples"] for figure in self.figures if figure}))


def non_baseline(variants: dict[str, Record]) -> list[str]:
    """The variants other than the NVAE, in order; none without the NVAE. Ratios use the first one."""
    return [variant for variant in variants if variant != BASELINE] if BASELINE in variants else []


def comparison_rows(variants: dict[str, Record]) -> list[tuple[str, list[ComparisonRow]]]:
    """All metrics of an experiment's variants, by family; floors join their metric."""
    names = dict.fromkeys(name for record in variants.values() for name in record["metrics"])
    shown = [name for name in names if metric(name).shown != "floor"]
    others = non_baseline(variants)
    rows = []
    for name in sorted(shown, key=lambda name: QUANTITIES.index(metric(name).quantity)):
        figures = {variant: record["metrics"].get(name) for variant, record in variants.items()}
        floor = metric(name).floor
        floors = [record["metrics"][floor] for record in variants.values() if floor in record["metrics"]]
        perfect = dict.fromkeys(format_value(name, one["value"]) for one in floors)
        times = None
        if others and (before := figures[BASELINE]) and (after := figures[others[0]]):
            times = ratio(name, before["value"], after["value"])
        text = "" if times is None else number(times, 3)
        rows.append(ComparisonRow(name, list(figures.values()), text, ", ".join(perfect)))
    return [(title, list(found)) for title, found in groupby(rows, key=lambda row: metric(row.metric).family)]


def ratio_name(variants: dict[str, Record]) -> str | None:
    """Title of the ratio column; None without ratios."""
    if not any(row.ratio for _, rows in comparison_rows(variants) for row in rows):
        return None
    return f"{non_baseline(variants)[0]} / {BASELINE}"


def reference_page() -> str:
    """The content of docs/metrics.md."""
    text = [
        "# Metrics",
        "",
        "Generated from [vaebm/records/metrics.py](../vaebm/records/metrics.py) by `python -m vaebm.records.metrics`.",
        "",
        "Names contain the extractor, except that of the standard Inception weights, with which the Fréchet",
        "distance is called FID. `SET` is an out-of-distribution set: `turned`, `svhn`, or the name of your own",
        "files. The arrow shows the better direction. The files with the values are described in",
        "[results/README.md](../results/README.md).",
    ]
    for title, found in groupby(METRICS, key=lambda one: one.family):
        text += ["", f"## {title}", "", "| name | better | measured with | meaning, unit, range |", "|---|---|---|---|"]
        for one in found:
            parts = ["inception", *OTHER_EXTRACTORS] if one.standard else ["SET"]
            names = ", ".join(f"`{one.named(part)}`" for part in parts)
            text.append(f"| {names} | {one.better} | {one.measured_with} | {one.sentence} |")
    return "\n".join([*text, ""])


if __name__ == "__main__":
    print(reference_page(), end="")
