"""Stacks: three random images of a greyscale set as colour channels; the modes are the triples of labels."""

import hashlib

import numpy as np

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


def _shuffled(first: int, last: int, name: str) -> list[int]:
    """Numbers from `first` to `last` - 1 in the order of hashes of their places, independent of random generators."""
    return sorted(range(first, last), key=lambda at: hashlib.sha256(f"{name}/{at - first}".encode()).digest())


def stack(made: Prepared, repeats: int) -> Prepared:
    """Stacks (repeats · N, H, W, 3) of images (N, H, W, 1), labelled 100a + 10b + c by their channels' labels a, b, c.

    Each split is stacked separately. In each channel every image occurs `repeats` times, so labels, 0 to 9, have the
    same frequencies in all channels, and the channels are independent.
    """
    images, labels, splits, source = made
    channels = [
        [
            image
            for split, (first, last) in splits.items()
            for turn in range(repeats)
            for image in _shuffled(first, last, f"stack/{split}/channel {channel}/round {turn}")
        ]
        for channel in range(DEPTH)
    ]
    stacks = np.concatenate([images[chosen] for chosen in channels], axis=-1)
    modes = 10 ** np.arange(DEPTH)[::-1] @ labels[np.array(channels)]
    bounds = {split: (repeats * first, repeats * last) for split, (first, last) in splits.items()}
    return stacks, modes, bounds, {**source, "stacked": DEPTH, "repeats": repeats}
