"""What the metrics are: which way is better, what they are measured with, how certain a figure is, and how it is written."""

from __future__ import annotations

import math
from itertools import groupby
from typing import Any, NamedTuple

from vaebm.config import BASELINE

Figure = dict[str, Any]
"""One metric of one model over its seeds: value, spread, interval, samples, seeds, by_seed (see `report.aggregate.over_seeds`)."""
Record = dict[str, Any]
"""What was measured of one variant over its seeds: experiment, variant, metrics (name → `Figure`), and where they come from."""

FLOOR = "-floor"
"""Ends the name of what a perfect sampler would give at the same number of samples; it stands beside its metric, in no row of its own."""

FAMILIES = {
    "Sample quality": ("FD-", "FID", "KID", "IS", "precision", "recall"),
    "Modes": ("modes", "KL"),
    "Out-of-distribution detection": ("AUROC", "AUPR", "FPR95"),
    "Likelihood": ("ELBO", "log-likelihood", "bits-per-dimension"),
    "Speed": ("seconds",),
}
"""Title → how the names of its metrics begin, in the order of the tables."""
OTHERS = "Others"

LOWER_IS_BETTER = ("FD-", "FID", "KID", "KL", "FPR95", "bits-per-dimension", "seconds")


STANDARD = {"FD": "FID"}
"""Figures that have a name of their own with the standard Inception weights; with any other extractor a distance is never called FID."""


def named(figure: str, extractor: str) -> str:
    """The name of a figure of sample quality measured with an extractor: `FID` with `inception`, `FD-resnet56`, `IS-classifier`."""
    return STANDARD.get(figure, figure) if extractor == "inception" else f"{figure}-{extractor}"


def distance_of(record: Record) -> str:
    """The name of the Fréchet distance to the training images in a record."""
    return named("FD", record["extractor"]["kind"])


class Uncertainty(NamedTuple):
    """How far a figure may be off."""

    kind: str
    """ "spread": standard deviation over the seeds; "interval": half the width of the 95 % interval of its one seed."""
    size: float


def family(metric: str) -> str:
    """Which of `FAMILIES` a metric belongs to."""
    return next((title for title, begins in FAMILIES.items() if metric.startswith(begins)), OTHERS)


def _place(metric: str) -> tuple[int, int]:
    """Where a metric stands in the tables: the place of its family, and of the beginning of its name there."""
    places = [
        (title, place)
        for title, begins in enumerate(FAMILIES.values())
        for place, begin in enumerate(begins)
        if metric.startswith(begin)
    ]
    return places[0] if places else (len(FAMILIES), 0)


def lower_is_better(metric: str) -> bool:
    """Whether a smaller figure is the better one."""
    return metric.startswith(LOWER_IS_BETTER)


def arrowed(metric: str) -> str:
    """A metric's name with the direction that is better."""
    return f"{metric} {'↓' if lower_is_better(metric) else '↑'}"


def uses_extractor(metric: str) -> bool:
    """Whether a metric is measured with the extractor: in its features or by its classes."""
    return family(metric) in ("Sample quality", "Modes")


def number(value: float, digits: int = 4) -> str:
    """A figure to `digits` digits, without an exponent where it can be read without one."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:.{decimals}f}" if decimals <= 6 else f"{value:.{digits - 1}e}"


def written(metric: str, value: float, digits: int = 4) -> str:
    """A metric's value: counted modes to the hundredth, all others to `digits` digits."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if metric.startswith("modes") else number(value, digits)


def certainty(metric: str, figure: Figure) -> str:
    """What stands after a figure: `± spread` of several seeds, `[low, high]` of one; empty where neither is known."""
    if figure["spread"] is not None:
        return f"± {number(figure['spread'], 2)}"
    return "[{}, {}]".format(*(written(metric, bound) for bound in figure["interval"])) if figure["interval"] else ""


def with_certainty(metric: str, figure: Figure) -> str:
    """A figure and what `certainty` says of it."""
    return f"{written(metric, figure['value'])} {certainty(metric, figure)}".rstrip()


def uncertainty(figure: Figure) -> Uncertainty | None:
    """How far a figure may be off, by what is known of it."""
    if figure["spread"] is not None:
        return Uncertainty("spread", figure["spread"])
    if figure["interval"]:
        low, high = figure["interval"]
        return Uncertainty("interval", (high - low) / 2)
    return None


def in_units(one: Figure, other: Figure) -> tuple[float, str] | None:
    """How many times its own uncertainty the difference `other` − `one` is, and the kind of uncertainty.

    The uncertainty of a difference of independent figures is √(a² + b²); of figures from the same noise it is an upper
    bound. None where one is not known, they are of different kinds, or both are zero.
    """
    first, second = uncertainty(one), uncertainty(other)
    if (
        first is None
        or second is None
        or first.kind != second.kind
        or not (together := math.hypot(first.size, second.size))
    ):
        return None
    return (other["value"] - one["value"]) / together, first.kind


def ratio(metric: str, before: float, after: float) -> float | None:
    """`after` / `before` for metrics that have a zero of their own; None for the others and for values that are not positive."""
    scaled = metric.startswith(("FD-", "FID", "KID", "IS", "KL", "seconds"))
    return after / before if scaled and before > 0 and after > 0 else None


class Compared(NamedTuple):
    """One metric of an experiment, across its variants."""

    metric: str
    figures: list[Figure | None]
    """Of each variant; None: it has none."""
    ratio: str
    """Of the experiment's first variant to the NVAE alone, where a ratio means something; else empty."""
    floor: str
    """What a perfect sampler would give at that many samples; empty where that is not known."""

    @property
    def samples(self) -> str:
        """Over how many images, one number for each that occurs."""
        return ", ".join(f"{count:,}" for count in sorted({figure["samples"] for figure in self.figures if figure}))


def beside_the_baseline(variants: dict[str, Record]) -> list[str]:
    """The variants that can be set beside the NVAE alone, in the order of the experiment file; `ratio`s are the first one's."""
    return [variant for variant in variants if variant != BASELINE] if BASELINE in variants else []


def compared(variants: dict[str, Record]) -> list[tuple[str, list[Compared]]]:
    """Every metric of an experiment's variants, family by family; floors stand with their metric."""
    metrics = dict.fromkeys(
        metric for record in variants.values() for metric in record["metrics"] if not metric.endswith(FLOOR)
    )
    others = beside_the_baseline(variants)
    rows = []
    for metric in sorted(metrics, key=_place):
        figures = {variant: record["metrics"].get(metric) for variant, record in variants.items()}
        floors = [record["metrics"].get(metric + FLOOR) for record in variants.values()]
        perfect = dict.fromkeys(written(metric, floor["value"]) for floor in floors if floor)
        times = None
        if others and (before := figures[BASELINE]) and (after := figures[others[0]]):
            times = ratio(metric, before["value"], after["value"])
        rows.append(
            Compared(metric, list(figures.values()), "" if times is None else number(times, 3), ", ".join(perfect))
        )
    return [(title, list(found)) for title, found in groupby(rows, key=lambda row: family(row.metric))]


def ratio_name(variants: dict[str, Record]) -> str | None:
    """What the column of the ratios is called; None where no metric has one."""
    if not any(row.ratio for _, rows in compared(variants) for row in rows):
        return None
    return f"{beside_the_baseline(variants)[0]} / {BASELINE}"
