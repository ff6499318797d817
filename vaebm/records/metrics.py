"""The metric registry: names, families, direction, uncertainty and format."""

from __future__ import annotations

import math
from itertools import groupby
from typing import Any, NamedTuple

from vaebm.config import BASELINE

MetricValue = dict[str, Any]
"""One metric of one variant over its seeds: value, spread, interval, samples, seeds, by_seed."""
Record = dict[str, Any]
"""One variant over its seeds: experiment, variant, metrics (name → `MetricValue`), origin."""

FLOOR = "-floor"
"""Suffix of the value that a perfect sampler has at the same number of samples."""

FAMILIES = {
    "Sample quality": ("FD-", "FID", "KID", "IS", "precision", "recall"),
    "Modes": ("modes", "KL"),
    "Out-of-distribution detection": ("AUROC", "AUPR", "FPR95"),
    "Likelihood": ("ELBO", "log-likelihood", "bits-per-dimension"),
    "Speed": ("seconds",),
}
"""Title → prefixes of its metrics, in the order of the tables."""
OTHERS = "Others"

LOWER_IS_BETTER = ("FD-", "FID", "KID", "KL", "FPR95", "bits-per-dimension", "seconds")


STANDARD = {"FD": "FID"}
"""Names with the standard Inception weights; with any other extractor a distance is never called FID."""


def metric_name(figure: str, extractor: str) -> str:
    """Name of a metric with its extractor: `FID` for `inception`, else `FD-resnet56`, `IS-classifier`."""
    return STANDARD.get(figure, figure) if extractor == "inception" else f"{figure}-{extractor}"


def distance_of(record: Record) -> str:
    """Name of the Fréchet distance to the training images in a record."""
    return metric_name("FD", record["extractor"]["kind"])


class Uncertainty(NamedTuple):
    """Uncertainty of a value."""

    kind: str
    """ "spread": standard deviation over the seeds; "interval": half the width of the 95 % interval of its one seed."""
    size: float


def family(metric: str) -> str:
    """Title of the metric's family in `FAMILIES`."""
    return next((title for title, begins in FAMILIES.items() if metric.startswith(begins)), OTHERS)


def _place(metric: str) -> tuple[int, int]:
    """Position of a metric in the tables: index of its family, then of its prefix."""
    for title, begins in enumerate(FAMILIES.values()):
        for place, begin in enumerate(begins):
            if metric.startswith(begin):
                return title, place
    return len(FAMILIES), 0


def lower_is_better(metric: str) -> bool:
    """True if smaller values are better."""
    return metric.startswith(LOWER_IS_BETTER)


def with_direction(metric: str) -> str:
    """A metric's name with the arrow of its better direction."""
    return f"{metric} {'↓' if lower_is_better(metric) else '↑'}"


def uses_extractor(metric: str) -> bool:
    """True if the metric depends on the extractor."""
    return family(metric) in ("Sample quality", "Modes")


def number(value: float, digits: int = 4) -> str:
    """Format a number to `digits` significant digits, without an exponent if at most 6 decimals suffice."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:.{decimals}f}" if decimals <= 6 else f"{value:.{digits - 1}e}"


def format_value(metric: str, value: float, digits: int = 4) -> str:
    """Format a value: modes to two decimals, others to `digits` significant digits."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if metric.startswith("modes") else number(value, digits)


def certainty(metric: str, figure: MetricValue) -> str:
    """`± spread` for several seeds, `[low, high]` for one; empty if neither is known."""
    if figure["spread"] is not None:
        return f"± {number(figure['spread'], 2)}"
    bounds = [format_value(metric, bound) for bound in figure["interval"] or ()]
    return f"[{', '.join(bounds)}]" if bounds else ""


def with_certainty(metric: str, figure: MetricValue) -> str:
    """Format a value with its `certainty`."""
    return f"{format_value(metric, figure['value'])} {certainty(metric, figure)}".rstrip()


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


def ratio(metric: str, before: float, after: float) -> float | None:
    """`after` / `before` for metrics with a natural zero and positive values, else None."""
    scaled = metric.startswith(("FD-", "FID", "KID", "IS", "KL", "seconds"))
    return after / before if scaled and before > 0 and after > 0 else None


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
    metrics = dict.fromkeys(
        metric for record in variants.values() for metric in record["metrics"] if not metric.endswith(FLOOR)
    )
    others = non_baseline(variants)
    rows = []
    for metric in sorted(metrics, key=_place):
        figures = {variant: record["metrics"].get(metric) for variant, record in variants.items()}
        floors = [record["metrics"].get(metric + FLOOR) for record in variants.values()]
        perfect = dict.fromkeys(format_value(metric, floor["value"]) for floor in floors if floor)
        times = None
        if others and (before := figures[BASELINE]) and (after := figures[others[0]]):
            times = ratio(metric, before["value"], after["value"])
        shown = "" if times is None else number(times, 3)
        rows.append(ComparisonRow(metric, list(figures.values()), shown, ", ".join(perfect)))
    return [(title, list(found)) for title, found in groupby(rows, key=lambda row: family(row.metric))]


def ratio_name(variants: dict[str, Record]) -> str | None:
    """Title of the ratio column; None without ratios."""
    if not any(row.ratio for _, rows in comparison_rows(variants) for row in rows):
        return None
    return f"{non_baseline(variants)[0]} / {BASELINE}"
