"""The handwritten digits that scikit-learn ships: 1,797 scans, 8×8, greyscale.

Each pixel counts the ink of a 4×4 block of a 32×32 bitmap, 0 to 16. `reduce` does the same to other pictures, so that
what is told apart from the digits was brought to size in the same way.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from vaebm.data.prepared import Prepared

HELD_OUT = 297
LEVELS = 16


def to_uint8(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Counts of ink 0 to 16 as grey levels 0 to 255, to the nearest, by integers alone."""
    return ((counts * 255 + LEVELS // 2) // LEVELS).astype(np.uint8)


def to_counts(levels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The inverse of `to_uint8`; other grey levels go to the nearest count."""
    return (levels.astype(np.int64) * LEVELS + 127) // 255


def reduce(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures (N, 32, 32) as the digits were made: means of 4×4 blocks, to the nearest of 17 levels; (N, 8, 8)."""
    blocks = pictures.astype(np.int64).reshape(-1, 8, 4, 8, 4).sum(axis=(2, 4))
    return to_uint8((blocks * LEVELS + 255 * 8) // (255 * 16))


def prepare_digits() -> Prepared:
    """Images (1797, 8, 8, 1), labels, splits and source.

    The held-out images are those whose bytes have the smallest hashes: neighbours in the file are by one writer, and a
    random generator's stream may change with its version.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = to_uint8(digits.images.astype(np.int64))[..., None]
    labels = digits.target.astype(np.int64)
    order = sorted(range(len(images)), key=lambda index: (hashlib.sha256(images[index].tobytes()).digest(), index))
    held_out, train = sorted(order[:HELD_OUT]), sorted(order[HELD_OUT:])
    chosen = np.array(train + held_out)
    splits = {"train": (0, len(train)), "heldout": (len(train), len(chosen))}
    return images[chosen], labels[chosen], splits, {"sklearn.datasets": "load_digits"}
