"""Which snapshot of the energy becomes the model: quick Fréchet distances in features of the NVAE, which need no other network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaebm.config import EBMSettings
from vaebm.data import ImageSet
from vaebm.model import VAEBM
from vaebm.noise import NoiseSource, derive
from vaebm.nvae.model import NVAE
from vaebm.training.loop import batch_indices


@dataclass(frozen=True)
class Selection:
    """The model's snapshot, and how it was found."""

    rule: str
    """In words."""
    candidates: dict[int, float | None]
    """Iteration → distance; None for one whose images are not finite."""
    chosen: int
    """Iteration of the model."""
    last: int
    """Iteration of the last candidate: the end of a training that ended well."""


def select(
    vaebm: VAEBM,
    iterations: Iterable[int],
    weights: Callable[[int], dict[str, Tensor]],
    dataset: ImageSet,
    stage: EBMSettings,
    seed: int,
) -> Selection:
    """Compare snapshots by their images, decoder means after the same chain from the same noise.

    Args:
        vaebm: its energy is left with the weights of the last snapshot.
        iterations: the snapshots, the last one last.
        weights: of the energy in each of them.
        dataset: its training images are the reference, as many as there are images of each snapshot.
        stage: settings of chain and selection.
        seed: of the images' noise and of the choice of the training images.
    """
    from vaebm.measures.frechet import Statistics, frechet_distance  # takes seconds to import

    assert vaebm.energy is not None
    count, batch, chain = stage.selection.images, stage.training.batch, stage.selection.chain or stage.chain
    train = dataset.split("train")[0]
    chosen = batch_indices(0, min(count, len(train)), len(train), derive(seed, "selection"))
    real = features(vaebm.nvae, (vaebm.nvae.as_input(train[part]) for part in chosen.split(batch)))
    unit = np.where(real.std(axis=0) > 0, real.std(axis=0), 1.0)
    reference = Statistics.of(real / unit)
    candidates: dict[int, float | None] = {}
    for iteration in iterations:
        vaebm.energy.load_state_dict(weights(iteration))
        parts = (range(first, min(first + batch, count)) for first in range(0, count, batch))
        sources = (NoiseSource(seed, "selection", part) for part in parts)
        found = features(
            vaebm.nvae, (vaebm.images(noise, steps=chain.steps, step_size=chain.step_size) for noise in sources)
        )
        candidates[iteration] = (
            frechet_distance(Statistics.of(found / unit), reference) if np.isfinite(found).all() else None
        )
    rule = (
        f"smallest Fréchet distance of {count} images to {len(chosen)} training images, of the last {stage.selection.candidates} good snapshots; "
        f"images: decoder means after {chain.steps} steps of {chain.step_size:g}; "
        "features: top of the NVAE's encoder, mean over positions, in units of their deviation over the training images"
    )
    return Selection(rule, candidates, nearest(candidates), max(candidates))


def nearest(candidates: dict[int, float | None]) -> int:
    """The iteration of the smallest distance; the later one of equals, and one without a distance only if none has one."""
    return min(
        candidates,
        key=lambda iteration: (float("inf") if (distance := candidates[iteration]) is None else distance, -iteration),
    )


@torch.no_grad()
def features(nvae: NVAE, batches: Iterable[Tensor]) -> NDArray[np.float64]:
    """Features (N, D) of batches of images (B, C, H, W) in [0, 1]: the top of the NVAE's encoder, averaged over positions."""
    return torch.cat([nvae.encode(images)[0].double().mean(dim=(2, 3)) for images in batches]).cpu().numpy()
