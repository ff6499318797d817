"""Quality against cost: the Fréchet distance against seconds per image and against gradient evaluations."""

from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from vaebm.config import KERNELS
from vaebm.records.metrics import FD, IMAGES_TIMED, SECONDS_PER_50, with_direction
from vaebm.records.results import VariantRecord
from vaebm.report.paper import Paper


class Point(NamedTuple):
    """Distance and cost of an image after some steps of a chain, means over the seeds."""

    steps: int
    distance: float
    spread: float | None
    """Standard deviation over the seeds; None for one seed."""
    gradients: float | None
    """Evaluations of the potential's gradient per image."""
    seconds: float | None
    """Seconds per image."""


class Curve(NamedTuple):
    """Points of a variant, all of the same number of images."""

    variant: str
    metric: str
    samples: int
    points: list[Point]


def curves(variants: dict[str, VariantRecord]) -> list[Curve]:
    """For each variant the distances along its chains, and its distance in the table at its place.

    Empty unless a variant has distances along its chains.
    """
    found: list[Curve] = []
    for variant, record in variants.items():
        name = FD.named(record.extractor.kind)
        along = [run.steps for run in record.runs if run.steps and run.steps.metric == name]
        langevin, points = record.chain.kernel == "langevin", list[Point]()
        for index, steps in enumerate(along[0].counts if along else []):
            values = [one.distances[index] for one in along]
            finite = [value for value in values if value is not None]
            if len(finite) == len(values):
                counts = [one.gradients[index] for one in along if one.gradients] or ([steps] if langevin else [])
                seconds = [one.seconds[index] for one in along if one.seconds]
                spread = stdev(finite) if len(finite) > 1 else None
                costs = (mean(each) if each else None for each in (counts, seconds))
                points.append(Point(steps, mean(finite), spread, *costs))
        if points:
            found.append(Curve(variant, name, along[0].samples, points))
        if (one := record.metrics.get(name)) and not record.foreign:
            time, steps = record.metrics.get(SECONDS_PER_50.pattern), record.chain.steps
            known = record.chain.kernel in KERNELS.own or not steps  # a plug-in's may compute any number
            gradients = record.chain.gradient_evaluations if known else None
            place = gradients, (time.value / IMAGES_TIMED if time else None)
            found.append(Curve(variant, name, one.samples, [Point(steps, one.value, one.spread, *place)]))
    return found if any(len(curve.points) > 1 for curve in found) else []


def plot_cost(variants: dict[str, VariantRecord], paper: Paper, experiment: str, path: Path) -> bool:
    """Write `curves`, and the paper's points whose time is known, as PNG; False: there is nothing to show."""
    from vaebm.plots.charts import CostPoint, against_cost

    if not (shown := curves(variants)):
        return False
    numbers, name, time = list(variants), shown[0].metric, SECONDS_PER_50.pattern
    drawn: dict[str, tuple[int, list[CostPoint]]] = {}
    for curve in shown:
        points = [(one.seconds, one.gradients, one.distance, one.spread or 0.0) for one in curve.points]
        drawn[f"{curve.variant}, {curve.samples:,} images"] = numbers.index(curve.variant), points
    for table in paper.tables:
        own = any(row.answer and row.answer.experiment == experiment for row in table.rows)
        for row in table.rows if own else []:
            if {name, time} <= row.figures.keys():
                point = row.figures[time].value / IMAGES_TIMED, None, row.figures[name].value, 0.0
                drawn[f"{row.model}, published, another device"] = -1, [point]
    against_cost(drawn, with_direction(name), path)
    return True
