"""Metrics of nearest neighbours among features; each matrix of distances is computed once and serves all of them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaebm.measures.bootstrap import PAIRWISE_BATCH, Features
from vaebm.system.errors import UserError

DISTANCES = 10_000_000
"""Distances that are held at once."""


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


def find_neighbours(
    samples: Features, train: Features, heldout: Features, real: int, k: int, device: torch.device | str = "cpu"
) -> Neighbours:
    """Find the neighbours of samples (S, D) among training images (N, D), in random order, and held-out images (M, D).

    The first `real` training images have a ball, R in `Neighbours`.

    Raises:
        UserError: not more images than neighbours.
    """
    if k >= (least := min(len(samples), real)):
        raise UserError(
            f"evaluation: precision_recall: neighbours: expected less than {least}, the images there are, found {k}"
        )
    size = min(len(train), len(heldout))
    own = torch.cat(
        [found.kthvalue(k).values for _, found in _distances(samples, samples, device, range(len(samples)))]
    )
    closest = torch.full((len(train),), torch.nan, dtype=torch.float64, device=device)  # to its nearest training image
    radii = closest[:real].clone()
    for part, found in _distances(train[:real], train, device, range(real)):
        radii[part], closest[:real][part] = found[:, :real].kthvalue(k).values, found.amin(dim=1)
    covered, recalled = torch.zeros(2, real, dtype=torch.bool, device=device)
    each: list[tuple[Tensor, ...]] = []
    for part, found in _distances(samples, train, device):
        balls = found[:, :real] <= radii
        covered |= balls.any(dim=0)
        recalled |= (found[:, :real] <= own[part, None]).any(dim=0)
        each.append((balls.sum(dim=1), *found.min(dim=1), _nearest_of_parts(found, size)))
    inside, distance, nearest, apart = map(torch.cat, zip(*each, strict=True))
    others = nearest.unique()
    others = others[closest[others].isnan()].cpu()
    for part, found in _distances(train[others.numpy()], train, device, others.tolist()):
        closest[others[part].to(device)] = found.amin(dim=1)
    fresh = torch.cat([_nearest_of_parts(found, size) for _, found in _distances(samples, heldout, device)])
    results = (inside, recalled, covered, distance > closest[nearest], apart, fresh)
    return Neighbours(*(one.cpu().numpy() for one in results))


def _distances(
    rows: Features, among: Features, device: torch.device | str, places: Sequence[int] | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Distances of rows (N, D) to `among` (M, D), in parts: slice of the rows, (rows, M).

    The distance of a row to itself, at its index in `places` within `among`, is infinite.
    """
    known = torch.from_numpy(among).to(device)
    step = max(DISTANCES // len(among), 1)
    for first in range(0, len(rows), step):
        part = slice(first, min(first + step, len(rows)))
        points = torch.from_numpy(rows[part]).to(device, torch.float64)
        # double precision: torch computes distances from products, which in single precision loses small distances
        found = torch.cat([torch.cdist(points, block.double()) for block in known.split(PAIRWISE_BATCH)], dim=1)
        if places is not None:
            found[range(len(points)), places[part]] = torch.inf
        yield part, found


def _nearest_of_parts(distances: Tensor, size: int) -> Tensor:
    """Distance to the nearest of `size` images, mean over the parts of that size: (N,) from (N, M)."""
    parts = distances.shape[1] // size
    return distances[:, : parts * size].unflatten(1, (parts, size)).amin(dim=2).mean(dim=1)
