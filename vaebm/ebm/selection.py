"""Selection of the model's snapshot by Fréchet distances in features of the NVAE, without another network."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaebm.config import EBMSettings
from vaebm.data import ImageSet
from vaebm.model import VAEBM
from vaebm.noise import NoiseSource, batches, derive
from vaebm.nvae.model import NVAE
from vaebm.records.training import Selection
from vaebm.training.loop import batch_indices


def select(
    vaebm: VAEBM,
    iterations: Iterable[int],
    weights: Callable[[int], dict[str, Tensor]],
    dataset: ImageSet,
    stage: EBMSettings,
    seed: int,
) -> Selection:
    """Compare the snapshots of `iterations`, in order, by decoder means after the same chain from the same noise.

    The reference is as many training images as images per snapshot. `weights` maps an iteration to the energy's
    weights; `vaebm` is left with those of the last. `seed` sets the noise and the choice of training images.
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
        sources = (NoiseSource(seed, "selection", part) for part in batches(range(count), batch))
        found = features(vaebm.nvae, (vaebm.sample_batch(noise, chain) for noise in sources))
        distance = frechet_distance(Statistics.of(found / unit), reference) if np.isfinite(found).all() else None
        candidates[iteration] = distance
    rule = (
        f"smallest Fréchet distance of {count} images to {len(chosen)} training images, "
        f"of the last {stage.selection.candidates} good snapshots; "
        f"images: decoder means after {chain.steps} steps of {chain.step_size:g}; "
        "features: top of the NVAE's encoder, mean over positions, in units of their deviation over the training images"
    )
    best = best_snapshot(candidates)
    return Selection(rule=rule, candidates=candidates, chosen=best, last=max(candidates))


def best_snapshot(candidates: dict[int, float | None]) -> int:
    """The iteration of the smallest distance, the later one of equals; None counts as infinite."""
    distances = {iteration: float("inf") if found is None else found for iteration, found in candidates.items()}
    return min(distances, key=lambda iteration: (distances[iteration], -iteration))


@torch.no_grad()
def features(nvae: NVAE, batches: Iterable[Tensor]) -> NDArray[np.float64]:
    """Features (N, D) of images (B, C, H, W) in [0, 1]: top of the NVAE's encoder, averaged over positions."""
    return torch.cat([nvae.encode(images)[0].double().mean(dim=(2, 3)) for images in batches]).cpu().numpy()
