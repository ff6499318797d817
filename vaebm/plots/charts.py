"""Curves, histograms, a confusion matrix. Colours hold for colour-blind eyes (Okabe and Ito).

A picture is a function of what it shows: no times and no paths are written into the files.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from vaebm.system.files import writing

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A8F98"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9")

STYLE: Any = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#5b616b",
    "axes.labelcolor": "#30343b",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
    "xtick.color": "#5b616b",
    "ytick.color": "#5b616b",
    "legend.frameon": False,
}


@contextmanager
def _figure(path: Path, panels: int, columns: int = 3, width: float = 3.6, height: float = 2.7) -> Iterator[list[Axes]]:
    """Axes of `panels` panels, written to `path` as PNG when the block ends without an error."""
    with matplotlib.rc_context(STYLE):
        columns = min(columns, panels)
        rows = -(-panels // columns)
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        FigureCanvasAgg(figure)
        axes = [figure.add_subplot(rows, columns, index + 1) for index in range(panels)]
        yield axes
        with writing(path) as stream:
            figure.savefig(stream, format="png", dpi=130, metadata={"Software": None})


def read_history(history: Path) -> list[dict[str, float]]:
    """The records of a history.jsonl: one JSON object a line. A last line cut off by a crash is left out."""
    records = []
    for line in history.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred moving mean over about a fiftieth of the curve; the ends have a shorter window. Gaps are left out."""
    half = len(values) // 100
    sums, counts = np.cumsum([0.0, *np.nan_to_num(values)]), np.cumsum([0, *np.isfinite(values)])
    first, last = (
        np.maximum(np.arange(len(values)) - half, 0),
        np.minimum(np.arange(len(values)) + half + 1, len(values)),
    )
    seen = counts[last] - counts[first]
    means: NDArray[np.float64] = np.divide(
        sums[last] - sums[first], seen, out=np.full(len(values), np.nan), where=seen > 0
    )
    return means


def training_curves(history: Path, path: Path, panels: dict[str, list[str]]) -> None:
    """Write the curves of a training as PNG: the values, faint, and their moving mean.

    Args:
        history: history.jsonl, one JSON object a line with "step" and numbers; a key may be missing in some lines.
        path: picture to write.
        panels: title of a panel → the keys that it shows, in one scale; "kl_" stands for all keys that begin so.
    """
    records = read_history(history)
    known = list(dict.fromkeys(key for record in records for key in record))
    with _figure(path, len(panels), columns=4 if len(panels) == 4 else 3) as axes:
        for axis, (title, wanted) in zip(axes, panels.items(), strict=True):
            keys = [
                key
                for name in wanted
                for key in ([k for k in known if k.startswith(name)] if name.endswith("_") else [name])
            ]
            shown = [np.empty(0)]
            for key, colour in zip(keys, itertools.cycle(COLOURS)):
                points = [
                    (record["step"], record[key]) for record in records if isinstance(record.get(key), int | float)
                ]
                if not points:
                    continue
                steps, values = np.array(points, dtype=np.float64).T
                values[~np.isfinite(values)] = np.nan
                smooth = _smooth(values)
                if len(points) >= 200:
                    axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.6)
                axis.plot(
                    steps,
                    smooth,
                    color=colour,
                    linewidth=1.5,
                    label=key.replace("_", " "),
                    marker="o" if len(points) == 1 else "",
                )
                shown.append(smooth)
            axis.set_ylim(_limits(np.concatenate(shown)))
            axis.set_title(title)
            axis.set_xlabel("step")
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if len(keys) > 1 and axis.lines:
                axis.legend(fontsize=8)


def _limits(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Vertical limits for `values`; of a long curve its extreme hundredths are left out, so that no spike flattens the rest."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    low, high = np.percentile(finite, (1, 99)) if len(finite) >= 200 else (finite.min(), finite.max())
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 0.05
    return float(low - margin), float(high + margin)


def step_curves(panels: dict[str, dict[str, Sequence[float]]], path: Path) -> None:
    """Write what chains do step by step as PNG.

    Args:
        panels: title → name of a curve, empty where it is the only one → its values, which end together: at the last step.
        path: picture to write.
    """
    last = max(len(values) for curves in panels.values() for values in curves.values()) - 1
    with _figure(path, len(panels)) as axes:
        for axis, (title, curves) in zip(axes, panels.items(), strict=True):
            for (name, values), colour in zip(curves.items(), COLOURS, strict=False):
                axis.plot(
                    range(last + 1 - len(values), last + 1),
                    values,
                    color=colour,
                    linewidth=1.5,
                    marker="o",
                    markersize=3,
                    label=name,
                )
            axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
            axis.set_title(title)
            axis.set_xlabel("step")
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if len(curves) > 1:
                axis.legend(fontsize=8)


def against_counts(
    counts: Sequence[int], panels: dict[str, Sequence[float | None]], path: Path, label: str, mark: int
) -> None:
    """Write figures against a number of steps as PNG, each in a panel of its own.

    Args:
        counts: numbers of steps, rising.
        panels: title → the figure after each of them; None where there is none, which leaves a gap.
        label: of the horizontal axes.
        mark: number of steps at which a vertical line stands.
    """
    with _figure(path, len(panels)) as axes:
        for axis, (title, values) in zip(axes, panels.items(), strict=True):
            axis.axvline(mark, color=GREY, linestyle="--", linewidth=1)
            axis.plot(counts, np.array(values, dtype=np.float64), color=BLUE, linewidth=1.5, marker="o", markersize=4)
            axis.set_title(title)
            axis.set_xlabel(label)
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def sorted_counts(samples: dict[str, NDArray[np.int64]], path: Path, items: str, unit: str) -> None:
    """Write how often each item comes, the most frequent first, as PNG.

    Args:
        samples: name of a sample → how often each item comes in it, (n,), in any order.
        path: picture to write.
        items: what comes, for the horizontal axis; `unit`: what it comes in, for the vertical one.
    """
    with _figure(path, 1, width=5.4, height=3.2) as (axis,):
        for (name, counts), colour in zip(samples.items(), COLOURS, strict=False):
            found = f"{name}: {np.count_nonzero(counts):,} of {len(counts):,} {items}"
            axis.step(
                range(1, len(counts) + 1), np.sort(counts)[::-1], where="mid", color=colour, linewidth=1.5, label=found
            )
        axis.set_yscale("symlog", linthresh=1)  # a collapsed model has nearly all in one
        axis.set(xlabel=f"{items}, the most frequent first", ylabel=unit, ylim=(0, None))
        axis.legend(fontsize=8)


def histograms(panels: dict[str, dict[str, NDArray[np.float64]]], path: Path, label: str, columns: int = 3) -> None:
    """Write overlaid histograms as PNG, all curves of a panel in the same bins, which follow its first sample.

    Args:
        panels: title → name of a sample → its values (n,). The first sample is drawn first, in blue.
        path: picture to write.
        label: of the horizontal axes.
        columns: panels in a row.
    """
    with _figure(path, len(panels), columns) as axes:
        for axis, (title, samples) in zip(axes, panels.items(), strict=True):
            together, first = np.concatenate(list(samples.values())), next(iter(samples.values()))
            low, high = np.percentile(first, (0.5, 99.5))
            width = high - low
            # a long tail would leave the rest in one bin: what lies beyond is counted in the outermost bins
            low, high = max(low - 2 * width, together.min()), min(high + 2 * width, together.max())
            edges = np.linspace(low, high if high > low else low + 1, 41).tolist()
            for (name, values), colour in zip(samples.items(), COLOURS, strict=False):
                weights = np.full(len(values), 1 / len(values))
                axis.hist(
                    np.clip(values, edges[0], edges[-1]),
                    edges,
                    weights=weights,
                    histtype="stepfilled",
                    color=colour,
                    alpha=0.3,
                )
                axis.hist(
                    np.clip(values, edges[0], edges[-1]),
                    edges,
                    weights=weights,
                    histtype="step",
                    color=colour,
                    linewidth=1.2,
                    label=name,
                )
            axis.set_title(title)
            axis.set_xlabel(label)
            axis.set_ylabel("part of the images")
            axis.xaxis.set_major_locator(MaxNLocator(5))
            axis.legend(fontsize=8)


def confusion(counts: NDArray[np.int64], path: Path) -> None:
    """Write a confusion matrix (labels, predictions) as PNG, its counts written in the cells."""
    with _figure(path, 1, width=4.2, height=3.9) as (axis,):
        axis.imshow(counts, cmap="Blues", vmin=0)
        for row, column in zip(*counts.nonzero(), strict=True):
            value = counts[row, column]
            axis.text(
                column,
                row,
                str(value),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if 2 * value > counts.max() else "#30343b",
            )
        axis.set(
            title="Held-out images",
            xlabel="predicted",
            ylabel="label",
            xticks=range(len(counts)),
            yticks=range(len(counts)),
        )
        axis.grid(False)
