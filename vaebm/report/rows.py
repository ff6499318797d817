"""Rows that compare the variants of an experiment, and the uncertainty of their values."""

import math
from typing import NamedTuple

from vaebm.config import BASELINE
from vaebm.records.metrics import format_value, metric, number, order
from vaebm.records.results import MetricValue, SeedValue, VariantRecord


def certainty(name: str, figure: MetricValue | SeedValue) -> str:
    """`± spread` for several seeds, `[low, high]` for one; empty if neither is known."""
    if figure.spread is not None:
        return f"± {number(figure.spread, 2)}"
    bounds = [format_value(name, bound) for bound in figure.interval or ()]
    return f"[{', '.join(bounds)}]" if bounds else ""


def with_certainty(name: str, figure: MetricValue | SeedValue) -> str:
    """Format a value with its `certainty`."""
    return f"{format_value(name, figure.value)} {certainty(name, figure)}".rstrip()


def uncertainty(figure: MetricValue) -> tuple[str, float] | None:
    """Kind and size of a value's uncertainty; None if it is unknown.

    "spread": standard deviation over the seeds. "interval": half the width of the 95 % interval of the one seed.
    """
    if figure.spread is not None:
        return "spread", figure.spread
    return ("interval", (figure.interval[1] - figure.interval[0]) / 2) if figure.interval else None


def z_score(one: MetricValue, other: MetricValue) -> tuple[float, str] | None:
    """The difference `other` − `one` in units of its uncertainty √(a² + b²), and the kind of uncertainty.

    For values from the same noise this uncertainty is an upper bound. None if one is unknown, the kinds differ, or both
    are zero.
    """
    first, second = uncertainty(one), uncertainty(other)
    if first is None or second is None or first[0] != second[0]:
        return None
    together = math.hypot(first[1], second[1])
    return ((other.value - one.value) / together, first[0]) if together else None


def ratio(name: str, before: float, after: float) -> float | None:
    """`after` / `before` for metrics with a natural zero and positive values, else None."""
    return after / before if metric(name).has_ratio and before > 0 and after > 0 else None


class ComparisonRow(NamedTuple):
    """One metric of an experiment, across its variants."""

    metric: str
    figures: dict[str, MetricValue | None]
    """Variant → value; None: not measured."""
    ratio: str
    """First variant relative to the NVAE; empty if a ratio has no meaning."""
    floor: str
    """Value of a perfect sampler at that number of samples; empty if unknown."""

    @property
    def samples(self) -> str:
        """The distinct numbers of images."""
        return ", ".join(f"{count:,}" for count in sorted({one.samples for one in self.figures.values() if one}))


def non_baseline(variants: dict[str, VariantRecord]) -> list[str]:
    """The variants other than the NVAE, in order; none without the NVAE. Ratios use the first one."""
    return [variant for variant in variants if variant != BASELINE] if BASELINE in variants else []


def comparison_rows(variants: dict[str, VariantRecord]) -> list[ComparisonRow]:
    """All metrics of an experiment's variants, in the registry's order; floors join their metric."""
    names = dict.fromkeys(name for record in variants.values() for name in record.metrics)
    shown = [name for name in names if metric(name).shown != "floor"]
    others = non_baseline(variants)
    rows = []
    for name in sorted(shown, key=lambda name: order(metric(name))):
        figures = {variant: record.metrics.get(name) for variant, record in variants.items()}
        floor = metric(name).floor
        floors = [record.metrics[floor] for record in variants.values() if floor in record.metrics]
        perfect = dict.fromkeys(format_value(name, one.value) for one in floors)
        times = None
        if others and (before := figures[BASELINE]) and (after := figures[others[0]]):
            times = ratio(name, before.value, after.value)
        rows.append(ComparisonRow(name, figures, "" if times is None else number(times, 3), ", ".join(perfect)))
    return rows


def ratio_name(variants: dict[str, VariantRecord], shown: list[ComparisonRow]) -> str | None:
    """Title of the ratio column for these rows; None without ratios."""
    return f"{non_baseline(variants)[0]} / {BASELINE}" if any(row.ratio for row in shown) else None
