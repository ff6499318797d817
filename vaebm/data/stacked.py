"""Stacks: the images of a greyscale set, three at random, as the colour channels of one; its modes are the triples of labels."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from vaebm.data.prepared import Prepared

CHANNELS = 3


def _shuffled(count: int, name: str) -> NDArray[np.int64]:
    """The numbers below `count` in the order of their hashes: the same everywhere, whatever a library's generator does."""
    return np.array(sorted(range(count), key=lambda index: hashlib.sha256(f"{name}/{index}".encode()).digest()))


def stack(made: Prepared, repeats: int) -> Prepared:
    """Stacks (repeats · N, H, W, 3) of images (N, H, W, 1), labelled 100a + 10b + c by the labels a, b, c of their channels.

    Each split is stacked by itself, so that nothing held out is seen in training. In each channel every image comes
    `repeats` times: the labels' frequencies are the same in all channels, and in no channel do they depend on another.

    Args:
        made: greyscale images with labels 0 to 9.
        repeats: stacks per image.
    """
    images, labels, splits, source = made
    parts, numbers, bounds, first = [], [], {}, 0
    for split, (start, stop) in splits.items():
        channels = [
            np.concatenate(
                [
                    start + _shuffled(stop - start, f"stack/{split}/channel {channel}/round {turn}")
                    for turn in range(repeats)
                ]
            )
            for channel in range(CHANNELS)
        ]
        parts.append(np.concatenate([images[chosen] for chosen in channels], axis=-1))
        numbers.append(sum(10 ** (CHANNELS - 1 - channel) * labels[chosen] for channel, chosen in enumerate(channels)))
        bounds[split] = (first, first + len(channels[0]))
        first += len(channels[0])
    return np.concatenate(parts), np.concatenate(numbers), bounds, {**source, "stacked": CHANNELS, "repeats": repeats}
