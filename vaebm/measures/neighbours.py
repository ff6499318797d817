"""Nearest neighbours among features; each matrix of distances is computed once and serves all metrics of them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaebm.measures.bootstrap import Features
from vaebm.system.errors import UserError

DISTANCES = 10_000_000
"""Distances, and values of features in double precision, that are held at once."""


class Neighbours(NamedTuple):
    """Neighbours of S samples among N training images, of which the first R are the real images of the balls.

    The ball around an image reaches to its k-th nearest neighbour of its own kind.
    """

    inside: NDArray[np.int64]
    """(S,): number of real images' balls that contain the sample. Precision is the share above 0 (Kynkäänniemi et al.,
    2019), density the mean over k (Naeem et al., 2020)."""
    recalled: NDArray[np.bool_]
    """(R,): a sample's ball contains the real image; the share is recall."""
    covered: NDArray[np.bool_]
    """(R,): the real image's ball contains a sample; the share is coverage (Naeem et al., 2020)."""
    authentic: NDArray[np.bool_]
    """(S,): the nearest training image has a nearer neighbour in the training set than the sample (Alaa et al., 2022).
    """
    train: NDArray[np.float64]
    """(S,): distance to the nearest training image, mean over disjoint parts of the training set."""
    heldout: NDArray[np.float64]
    """(S,): distance to the nearest held-out image, over as many images as a part has."""


class TrainingImages:
    """Features (N, D) of the training images, in random order, of which the first R have a ball.

    Raises:
        UserError: not more balls than neighbours.
    """

    def __init__(self, features: Features, balls: int, k: int, device: torch.device | str = "cpu"):
        _check_neighbours(k, balls)
        self.features, self.k, self.device = features, k, device
        self.radii = torch.empty(balls, dtype=torch.float64, device=device)
        self._closest = torch.full((len(features),), torch.nan, dtype=torch.float64, device=device)
        for part, found in _distances(features[:balls], features, device, range(balls)):
            self.radii[part] = found[:, :balls].kthvalue(k).values
            self._closest[:balls][part] = found.amin(dim=1)

    def closest(self, which: Tensor) -> Tensor:
        """Distances (n,) of the images with these indices to their nearest other training images."""
        others = which.unique()
        others = others[self._closest[others].isnan()].cpu()
        for part, found in _distances(self.features[others.numpy()], self.features, self.device, others.tolist()):
            self._closest[others[part].to(self.device)] = found.amin(dim=1)
        return self._closest[which]


def find_neighbours(samples: Features, training: TrainingImages, heldout: Features) -> Neighbours:
    """Find the neighbours of samples (S, D) among training images and held-out images (M, D).

    Raises:
        UserError: not more samples than neighbours.
    """
    k, device, train, real = training.k, training.device, training.features, len(training.radii)
    _check_neighbours(k, len(samples))
    size = min(len(train), len(heldout))
    own = torch.cat(
        [found.kthvalue(k).values for _, found in _distances(samples, samples, device, range(len(samples)))]
    )
    covered, recalled = torch.zeros(2, real, dtype=torch.bool, device=device)
    each: list[tuple[Tensor, ...]] = []
    for part, found in _distances(samples, train, device):
        balls = found[:, :real] <= training.radii
        covered |= balls.any(dim=0)
        recalled |= (found[:, :real] <= own[part, None]).any(dim=0)
        each.append((balls.sum(dim=1), *found.min(dim=1), _nearest_of_parts(found, size)))
    inside, distance, nearest, apart = map(torch.cat, zip(*each, strict=True))
    fresh = torch.cat([_nearest_of_parts(found, size) for _, found in _distances(samples, heldout, device)])
    results = (inside, recalled, covered, distance > training.closest(nearest), apart, fresh)
    return Neighbours(*(one.cpu().numpy() for one in results))


def _check_neighbours(k: int, images: int) -> None:
    if k >= images:
        raise UserError(
            f"evaluation: precision_recall: neighbours: expected less than {images}, the images there are, found {k}"
        )


def _distances(
    rows: Features, among: Features, device: torch.device | str, places: Sequence[int] | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Distances of rows (N, D) to `among` (M, D), in parts: slice of the rows, (rows, M).

    The distance of a row to itself, at its index in `places` within `among`, is infinite.
    """
    known = torch.from_numpy(among).to(device)
    step, block = (max(DISTANCES // each, 1) for each in among.shape)
    for first in range(0, len(rows), step):
        part = slice(first, min(first + step, len(rows)))
        points = torch.from_numpy(rows[part]).to(device, torch.float64)
        # double precision: torch computes distances from products, which in single precision loses small distances
        blocks = [torch.cdist(points, each.double()) for each in known.split(block)]
        found = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
        if places is not None:
            found[range(len(points)), places[part]] = torch.inf
        yield part, found


def _nearest_of_parts(distances: Tensor, size: int) -> Tensor:
    """Distance to the nearest of `size` images, mean over the parts of that size: (N,) from (N, M)."""
    parts = distances.shape[1] // size
    return distances[:, : parts * size].unflatten(1, (parts, size)).amin(dim=2).mean(dim=1)
