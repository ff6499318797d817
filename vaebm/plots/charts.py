"""Curves, histograms, confusion matrix, in the style and colours of charts.mplstyle.

The files contain no times and no paths: equal data give equal bytes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from vaebm.system.files import writing

GREY = "#8A8F98"

CostPoint = tuple[float | None, float | None, float, float]
"""Seconds per image, gradient evaluations, distance, its uncertainty."""


@contextmanager
def _figure(path: Path, panels: int, columns: int = 3, width: float = 3.6, height: float = 2.7) -> Iterator[list[Axes]]:
    """Axes of `panels` panels; writes `path` as PNG if the block raises no error."""
    with matplotlib.style.context(Path(__file__).with_suffix(".mplstyle")):
        columns = min(columns, panels)
        rows = -(-panels // columns)
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=130)
        axes = [figure.add_subplot(rows, columns, index + 1) for index in range(panels)]
        yield axes
        with writing(path) as stream:
            # `savefig` would draw the figure twice
            FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})  # type: ignore[no-untyped-call]


def read_history(history: Path) -> list[dict[str, float]]:
    """Read the records of a history.jsonl, without a truncated last line."""
    records = []
    with suppress(ValueError):
        for line in history.read_text(encoding="utf-8").splitlines():
            records.append(json.loads(line))
    return records


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred moving mean over about 1/50 of the curve, shorter at the ends; NaN is ignored."""
    known, window = ~np.isnan(values), np.ones(2 * (len(values) // 100) + 1)
    sums, counts = (np.convolve(each, window, "same") for each in (np.where(known, values, 0.0), known))
    return sums / np.where(counts > 0, counts, np.nan)


def training_curves(history: Path, path: Path, panels: dict[str, list[str]]) -> None:
    """Write training curves as PNG: values (faint) and moving mean.

    Args:
        history: history.jsonl, one JSON object per line with "step" and numbers; keys may be missing in some lines.
        panels: title → keys of the panel; "kl_" selects all keys with this prefix.
    """
    records = read_history(history)
    known = list(dict.fromkeys(key for record in records for key in record))
    with _figure(path, len(panels), columns=4 if len(panels) == 4 else 3) as axes:
        for axis, (title, wanted) in zip(axes, panels.items(), strict=True):
            keys = [key for name in wanted for key in (known if name.endswith("_") else [name]) if key.startswith(name)]
            shown = [np.empty(0)]
            for number, key in enumerate(keys):
                chosen = [record for record in records if isinstance(record.get(key), int | float)]
                points = [(record["step"], record[key]) for record in chosen]
                if not points:
                    continue
                steps, values = np.array(points, dtype=np.float64).T
                values[~np.isfinite(values)] = np.nan
                smooth = _smooth(values)
                if len(points) >= 200:
                    axis.plot(steps, values, color=f"C{number}", alpha=0.25, linewidth=0.6)
                marker, label = "o" if len(points) == 1 else "", key.replace("_", " ")
                axis.plot(steps, smooth, color=f"C{number}", label=label, marker=marker)
                shown.append(smooth)
            axis.set_ylim(_limits(np.concatenate(shown)))
            _label(axis, title, "step")
            if len(keys) > 1 and axis.lines:
                axis.legend(fontsize=8)


def _label(axis: Axes, title: str, steps: str) -> None:
    """Set the title, and the name and integer ticks of an axis of steps."""
    axis.set(title=title, xlabel=steps)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _limits(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Vertical limits for `values`, for long curves without the extreme hundredths."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    low, high = np.percentile(finite, (1, 99)) if len(finite) >= 200 else (finite.min(), finite.max())
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 0.05
    return float(low - margin), float(high + margin)


def step_curves(panels: dict[str, dict[str, Sequence[float]]], path: Path) -> None:
    """Write values per chain step as PNG: title → curve name ("" for a single curve) → values up to the last step."""
    last = max(len(values) for curves in panels.values() for values in curves.values()) - 1
    with _figure(path, len(panels)) as axes:
        for axis, (title, curves) in zip(axes, panels.items(), strict=True):
            for name, values in curves.items():
                axis.plot(range(last + 1 - len(values), last + 1), values, marker="o", markersize=3, label=name)
            axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
            _label(axis, title, "step")
            if len(curves) > 1:
                axis.legend(fontsize=8)


def against_counts(counts: Sequence[int], panels: Mapping[str, Sequence[float | None]], path: Path, mark: int) -> None:
    """Write values against rising numbers of steps of a chain as PNG: title → value after each; None leaves a gap.

    A vertical line marks the number `mark`.
    """
    with _figure(path, len(panels)) as axes:
        for axis, (title, values) in zip(axes, panels.items(), strict=True):
            axis.axvline(mark, color=GREY, linestyle="--", linewidth=1)
            axis.plot(counts, np.array(values, dtype=np.float64), marker="o", markersize=4)
            _label(axis, title, "steps of the chain")


def over_grid(points: Sequence[tuple[dict[str, Any], float, float]], label: str, path: Path) -> None:
    """Write a metric over a grid as PNG: along its first setting, with a line for each combination of the others.

    A point has the settings with their values, the metric, and its uncertainty.
    """
    along = next(iter(points[0][0]))
    lines: dict[str, list[tuple[Any, float, float]]] = {}
    for values, value, error in points:
        others = ", ".join(f"{key} = {one}" for key, one in values.items() if key != along)
        lines.setdefault(others, []).append((values[along], value, error))
    numeric = all(type(place) in (int, float) for line in lines.values() for place, *_ in line)
    with _figure(path, 1, width=6.4, height=4) as (axis,):
        for others, line in lines.items():
            places, metric, errors = zip(*(sorted(line) if numeric else line), strict=True)
            shown = places if numeric else [str(place) for place in places]
            axis.errorbar(shown, metric, yerr=errors, marker="o", capsize=3, label=others)
        axis.set(title=label, xlabel=along)
        if len(lines) > 1:
            axis.legend()


def against_cost(curves: Mapping[str, tuple[int, Sequence[CostPoint]]], label: str, path: Path) -> None:
    """Write a distance against seconds per image and against gradient evaluations as PNG, with one legend.

    A curve has the number of its colour, below 0 for grey, and its points; a single point is a diamond.
    """
    every = [point for _, points in curves.values() for point in points]
    shown = [place for place in (0, 1) if any(point[place] is not None for point in every)]
    with _figure(path, len(shown), width=5.2, height=4.2) as axes:
        for place, axis in zip(shown, axes, strict=True):
            for name, (number, points) in curves.items():
                known = [(one[place], *one[2:]) for one in points if one[place] is not None]
                costs, values, errors = zip(*known, strict=True) if known else ((), (), ())
                style: dict[str, Any] = {"marker": "o", "markersize": 4, "capsize": 2, "label": name}
                style["color"] = f"C{number}" if number >= 0 else GREY
                if len(points) == 1:
                    style |= {"marker": "D", "markersize": 7, "linestyle": "none", "markeredgecolor": "white"}
                axis.errorbar(costs, values, yerr=errors if any(errors) else None, **style)
            axis.set(xlabel=("seconds per image", "gradient evaluations")[place], ylabel=label)
            if all(point[2] > 0 for point in every):
                axis.set_yscale("log")
                _set_log_ticks(axis.yaxis, [point[2] for point in every])
            if place == 0:
                axis.set_xscale("log")
                _set_log_ticks(axis.xaxis, [point[0] for point in every if point[0] is not None])
            else:
                axis.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True))
        axes[-1].legend(fontsize=8)


def _set_log_ticks(axis: Axis, values: Sequence[float]) -> None:
    """Set ticks of a logarithmic axis that do not overlap, whatever the range of the positive `values`."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if max(values) > 5 * min(values) else MaxNLocator(5))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def sorted_counts(samples: dict[str, NDArray[np.int64]], path: Path) -> None:
    """Write counts as PNG, most frequent mode first: name of a sample → images of each mode, (modes,), in any order."""
    with _figure(path, 1, width=5.4, height=3.2) as (axis,):
        for name, counts in samples.items():
            found = f"{name}: {np.count_nonzero(counts):,} of {len(counts):,} modes"
            places, falling = range(1, len(counts) + 1), np.sort(counts)[::-1]
            axis.step(places, falling, where="mid", label=found)
        axis.set_yscale("symlog", linthresh=1)  # a collapsed model has most images in one mode
        axis.set(xlabel="modes, the most frequent first", ylabel="images", ylim=(0, None))
        axis.legend(fontsize=8)


def histograms(panels: dict[str, dict[str, NDArray[np.float64]]], path: Path, label: str) -> None:
    """Write overlaid histograms as PNG: title → name of a sample → values (n,); `label` is that of the values.

    All samples of a panel share bins, chosen from the first sample.
    """
    with _figure(path, len(panels)) as axes:
        for axis, (title, samples) in zip(axes, panels.items(), strict=True):
            together, first = np.concatenate(list(samples.values())), next(iter(samples.values()))
            low, high = np.percentile(first, (0.5, 99.5))
            width = high - low
            # the outermost bins count all values beyond, so a long tail does not widen the bins
            low, high = max(low - 2 * width, together.min()), min(high + 2 * width, together.max())
            edges = np.linspace(low, high if high > low else low + 1, 41).tolist()
            for number, (name, values) in enumerate(samples.items()):
                shares = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / len(values)
                colour = f"C{number}"
                axis.stairs(shares, edges, fill=True, fc=(colour, 0.3), ec=colour, linewidth=1.2, label=name)
            axis.set(title=title, xlabel=label, ylabel="part of the images")
            axis.xaxis.set_major_locator(MaxNLocator(5))
            axis.legend(fontsize=8)


def roc(panels: Mapping[str, Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]], path: Path) -> None:
    """Write ROC curves as PNG: title → name of a curve → false and true positive rates, rising."""
    with _figure(path, len(panels), width=3.7, height=5.0) as axes:
        for axis, (title, curves) in zip(axes, panels.items(), strict=True):
            axis.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
            for name, rates in curves.items():
                axis.plot(*rates, label=name)
            axis.set(
                title=title, xlabel="share of the set above", ylabel="share of held-out images above", aspect="equal"
            )
            axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15))


def confusion(counts: NDArray[np.int64], path: Path, classes: NDArray[np.int64]) -> None:
    """Write a confusion matrix (labels, predictions) of these classes as PNG, its counts written in the cells."""
    with _figure(path, 1, width=4.2, height=3.9) as (axis,):
        axis.imshow(counts, cmap="Blues", vmin=0)
        for row, column in zip(*counts.nonzero(), strict=True):
            value = counts[row, column]
            shade = "white" if 2 * value > counts.max() else "#30343b"
            axis.text(column, row, str(value), ha="center", va="center", fontsize=8, color=shade)
        ticks = range(len(counts))
        axis.set(title="Held-out images", xlabel="predicted", ylabel="label", xticks=ticks, yticks=ticks)
        axis.set(xticklabels=classes, yticklabels=classes)
        axis.grid(False)
