"""The pictures of a run: samples, chains, their nearest training images, the modes, the sets that held-out images are told from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaebm import plots
from vaebm.config import ChainSettings
from vaebm.evaluation.classifier import to_float
from vaebm.evaluation.detection import IN_THE_TABLE, Scores, named
from vaebm.evaluation.measurements import Figures
from vaebm.measures.bootstrap import BLOCK, Features, generator
from vaebm.measures.modes import Law
from vaebm.model import VAEBM

GRID, CHAINS = 160, 10
"""Images of a grid of samples; chains that are shown step by step."""

QUERIES, NEIGHBOURS = 12, 4
"""Samples that are shown with their nearest training images; how many of these each has by pixels, and again by features."""


def ood(inside: Scores, outside: dict[str, Scores], figures: Figures, path: Path) -> None:
    """Write the histograms of the scores of held-out images and of every set beside them, each with its AUROC."""
    whole = "log p(x) − E(x)" if "energy" in inside else "log p(x)"
    names = {"": whole, "energy": "−E(x)", "likelihood": "log p(x)"}
    panels = {}
    for name, found in outside.items():
        for kind in filter(inside.__contains__, IN_THE_TABLE["AUROC"]):
            area = figures[named("AUROC", name, kind)]["value"]
            panels[f"{name}: {names[kind]}, AUROC {area:.3f}"] = {"held-out images": inside[kind], name: found[kind]}
    plots.histograms(panels, path, "score")


def chains(model: VAEBM, seed: int, chain: ChainSettings, folder: Path) -> None:
    """Write before.png and after.png, the first samples at the start of their chains and at the end, and chain.png, some step by step."""
    steps = [images.cpu() for images in model.chain(GRID, seed=seed, steps=chain.steps, step_size=chain.step_size)]
    plots.image_grid(steps[0], folder / "before.png")
    plots.image_grid(steps[-1], folder / "after.png")
    plots.chain_strip([images[:CHAINS] for images in steps], folder / "chain.png")


def steps(found: dict[str, Any], name: str, test_steps: int, path: Path) -> None:
    """Write the distance called `name` and the energy against the number of steps, as `against_steps` found them; the test chain's is marked."""
    panels = {f"{name}, {found['samples']:,} images": found[name], "mean energy along the chain": found["energy"]}
    plots.against_counts(found["counts"], panels, path, label="steps of the chain", mark=test_steps)


def nearest(queries: Tensor, among: Iterable[Tensor], total: int, count: int) -> Tensor:
    """Numbers of the `count` images nearest to each of `queries` (N, D), the nearest first; (N, count).

    Args:
        among: the images (M, D), in parts.
        total: M.
    """
    distances, first = (
        queries.new_empty(len(queries), total),
        0,
    )  # in one piece: small ones between the parts would keep freed memory from use
    for part in among:
        distances[:, first : first + len(part)] = torch.cdist(
            queries, part, compute_mode="donot_use_mm_for_euclid_dist"
        )
        first += len(part)
    return distances.topk(count, dim=1, largest=False).indices


def neighbours(
    samples: Tensor, features: Features, train: NDArray[np.uint8], train_features: Features, path: Path
) -> None:
    """Write the first samples, one a row: the sample, its nearest training images by pixels, then those by features.

    Args:
        samples: (N, C, H, W) uint8, `features` (N, D) theirs.
        train: (M, H, W, C), read in parts: they may be more than fit into memory; `train_features` (M, D) theirs.
    """

    def real(part: NDArray[np.uint8]) -> Tensor:
        return to_float(torch.from_numpy(np.array(part)).movedim(-1, -3))

    shown = to_float(samples[:QUERIES])
    parts = (real(train[first : first + BLOCK]).flatten(1) for first in range(0, len(train), BLOCK))
    by_pixels = nearest(shown.flatten(1), parts, len(train), NEIGHBOURS)
    by_features = nearest(
        torch.from_numpy(features[:QUERIES]), [torch.from_numpy(train_features)], len(train_features), NEIGHBOURS
    )
    gap = torch.full_like(shown[:, None], plots.BACKGROUND / 255)
    rows = torch.cat(
        [shown[:, None], gap, real(train[by_pixels.numpy()]), gap, real(train[by_features.numpy()])], dim=1
    )
    plots.image_grid(rows.flatten(0, 1), path, columns=rows.shape[1])


def modes(counts: NDArray[np.int64], law: Law, seed: int, path: Path) -> None:
    """Write how many samples each mode has, the most frequent first, beside as many draws from the data's law.

    Args:
        counts: of the samples, (modes,).
        seed: of the draws.
    """
    drawn = generator(seed, "draws from the data's law").multinomial(counts.sum(), law)
    plots.sorted_counts({"samples": counts, "draws from the data's law": drawn}, path, items="modes", unit="images")
