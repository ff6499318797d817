"""Stacks: three random images of a greyscale set as colour channels; the modes are the triples of labels."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from vaebm.config import DataSettings
from vaebm.data.digits import prepare_digits
from vaebm.data.mnist import prepare_mnist
from vaebm.data.prepared import Prepared

DEPTH = 3


def prepare_stacked_digits() -> Prepared:
    """Stacks (17970, 8, 8, 3) of digits, ten per image."""
    return stack(prepare_digits(), repeats=10)


def prepare_stacked_mnist(data: DataSettings, threads: int) -> Prepared:
    """Stacks (70000, 32, 32, 3) of MNIST, one per image."""
    return stack(prepare_mnist(data, threads), repeats=1)


def _shuffled(count: int, name: str) -> NDArray[np.int64]:
    """Numbers below `count` in the order of their hashes, independent of random generators."""
    return np.array(sorted(range(count), key=lambda index: hashlib.sha256(f"{name}/{index}".encode()).digest()))


def stack(made: Prepared, repeats: int) -> Prepared:
    """Stacks (repeats · N, H, W, 3) of images (N, H, W, 1), labelled 100a + 10b + c by their channels' labels a, b, c.

    Each split is stacked separately. In each channel every image occurs `repeats` times, so labels have the same
    frequencies in all channels, and the channels are independent.

    Args:
        made: greyscale images with labels 0 to 9.
        repeats: stacks per image.
    """
    images, labels, splits, source = made
    parts, numbers, bounds, first = [], [], {}, 0
    for split, (start, stop) in splits.items():
        count = stop - start
        channels = [
            start
            + np.concatenate(
                [_shuffled(count, f"stack/{split}/channel {channel}/round {turn}") for turn in range(repeats)]
            )
            for channel in range(DEPTH)
        ]
        parts.append(np.concatenate([images[chosen] for chosen in channels], axis=-1))
        numbers.append(sum(10 ** (DEPTH - 1 - channel) * labels[chosen] for channel, chosen in enumerate(channels)))
        bounds[split] = (first, first + len(channels[0]))
        first += len(channels[0])
    return np.concatenate(parts), np.concatenate(numbers), bounds, {**source, "stacked": DEPTH, "repeats": repeats}
