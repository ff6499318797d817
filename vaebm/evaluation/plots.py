"""Plots of a run: samples, chains, nearest training images, modes, out-of-distribution scores."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaebm import plots
from vaebm.config import SamplesSettings
from vaebm.evaluation.classifier import to_float
from vaebm.evaluation.detection import Scores, roc_points
from vaebm.evaluation.measurements import Measurements
from vaebm.measures.bootstrap import PAIRWISE_BATCH, Features, Values, generator
from vaebm.measures.modes import Law
from vaebm.model import VAEBM, sample_noise
from vaebm.records.metrics import DETECTION
from vaebm.records.results import AlongChain
from vaebm.samples import stretched

GRID, CHAINS = 160, 10
"""Images in a grid of samples; chains shown step by step."""

PAIRS, PLACES = 6, 6
"""Pairs of held-out images with a path between them; places on a path."""

QUERIES, NEIGHBOURS = 12, 4
"""Samples shown with their nearest training images; neighbours per sample, by pixels and by features."""


def ood(inside: Scores, outside: dict[str, Scores], figures: Measurements, folder: Path) -> None:
    """Write ood.png, histograms of the scores of held-out images and of each set, and roc.png, the ROC curves."""
    whole = "log p(x) − E(x)" if "energy" in inside else "log p(x)"
    names = {"": whole, "energy": "−E(x)", "likelihood": "log p(x)", "complexity": f"{whole} + PNG"}
    panels = {}
    curves: dict[str, dict[str, tuple[Values, Values]]] = {name: {} for name in outside}
    for name, found in outside.items():
        for kind in filter(inside.__contains__, names):
            label = f"{names[kind]}, AUROC {figures[DETECTION['AUROC', kind].named(name)].value:.3f}"
            curves[name][label] = roc_points(inside[kind], found[kind])
            if kind != "complexity":
                panels[f"{name}: {label}"] = {"held-out images": inside[kind], name: found[kind]}
    plots.histograms(panels, folder / "ood.png", "score")
    plots.roc(curves, folder / "roc.png")


def interpolations(model: VAEBM, images: Tensor, seed: int, path: Path) -> None:
    """Write pairs of images (N, C, H, W) uint8 at the ends of the path between them, whose ends are reconstructions.

    Below each path of a model with an energy is the same path after its test chain.
    """
    count = min(PAIRS, len(images) // 2)
    ends, steps = (images[:count], images[count : 2 * count]), (0, model.test_chain.steps)
    rows = steps if model.energy is not None else steps[:1]
    paths = [model.interpolate(*ends, PLACES, seed, steps=one).cpu() for one in rows]
    first, last = (to_float(end)[:, None] for end in ends)
    gap = torch.full_like(first, plots.BACKGROUND / 255)
    framed = [torch.cat([first, paths[0], last], dim=1), *(torch.cat([gap, one, gap], dim=1) for one in paths[1:])]
    plots.image_grid(torch.stack(framed, dim=1).flatten(0, 2), path, columns=PLACES + 2)


def chains(model: VAEBM, samples: Tensor, seed: int, sampling: SamplesSettings, folder: Path) -> None:
    """Write before.png and after.png, the starts of the first chains and their ends, and chain.png, some step by step.

    Their ends are `samples`, (N, C, H, W) uint8, which were drawn with this seed and these settings. Starts are
    stretched where they are; chain.png is not.
    """
    shown, chain = samples[:GRID], sampling.chain
    starts = model.sample_means(sample_noise(seed, range(len(shown))), chain.off)
    plots.image_grid(stretched(starts) if sampling.stretch else starts, folder / "before.png")
    plots.image_grid(to_float(shown), folder / "after.png")
    steps = [images.cpu() for images in model.chain(CHAINS, seed=seed, steps=chain.steps, step_size=chain.step_size)]
    plots.image_grid(torch.stack(steps, dim=1).flatten(0, 1), folder / "chain.png", columns=len(steps))


def steps(found: AlongChain, test_steps: int, path: Path) -> None:
    """Write the result of `quality_along_chain`: distance and energy, with a mark at the test chain."""
    panels = {f"{found.metric}, {found.samples:,} images": found.distances, "mean energy along the chain": found.energy}
    plots.against_counts(found.counts, panels, path, test_steps)


def nearest_images(queries: Tensor, among: Iterable[Tensor], total: int, count: int) -> Tensor:
    """Indices (N, count) of the images nearest to each of `queries` (N, D), nearest first.

    `among` yields the `total` images (M, D) in parts.
    """
    # one allocation: small ones between the parts would keep freed memory in use
    distances, first = queries.new_empty(len(queries), total), 0
    for part in among:
        found = torch.cdist(queries, part, compute_mode="donot_use_mm_for_euclid_dist")
        distances[:, first : first + len(part)] = found
        first += len(part)
    return distances.topk(count, dim=1, largest=False).indices


def neighbours(
    samples: Tensor, features: Features, train: NDArray[np.uint8], train_features: Features, path: Path
) -> None:
    """Write the first samples (N, C, H, W) uint8, one per row, and their nearest training images (M, H, W, C).

    Those by pixels come first, then those by features. Training images are read in parts: they may exceed memory.
    """

    def real(part: NDArray[np.uint8]) -> Tensor:
        return to_float(torch.from_numpy(np.array(part)).movedim(-1, -3))

    shown = to_float(samples[:QUERIES])
    parts = (real(train[first : first + PAIRWISE_BATCH]).flatten(1) for first in range(0, len(train), PAIRWISE_BATCH))
    by_pixels = nearest_images(shown.flatten(1), parts, len(train), NEIGHBOURS)
    known = torch.from_numpy(train_features)
    by_features = nearest_images(torch.from_numpy(features[:QUERIES]), [known], len(known), NEIGHBOURS)
    gap = torch.full_like(shown[:, None], plots.BACKGROUND / 255)
    parts_of_rows = [shown[:, None], gap, real(train[by_pixels.numpy()]), gap, real(train[by_features.numpy()])]
    rows = torch.cat(parts_of_rows, dim=1)
    plots.image_grid(rows.flatten(0, 1), path, columns=rows.shape[1])


def modes(counts: NDArray[np.int64], law: Law, seed: int, path: Path) -> None:
    """Write the number of samples per mode (modes,), most frequent first, next to draws from `law`."""
    drawn = generator(seed, "draws from the data's law").multinomial(counts.sum(), law)
    plots.sorted_counts({"samples": counts, "draws from the data's distribution": drawn}, path)
