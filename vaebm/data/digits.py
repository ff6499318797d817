"""Handwritten digits of scikit-learn: 1,797 scans, 8×8, greyscale.

Each pixel counts the ink of a 4×4 block of a 32×32 bitmap, 0 to 16. `reduce_to_digits` resizes pictures of OOD sets in
the same way.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from vaebm.data.prepared import Prepared

HELD_OUT = 297
INK_LEVELS = 16
"""Largest count of ink."""


def counts_to_grey(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Round counts of ink 0 to 16 to grey levels 0 to 255, in integer arithmetic."""
    return ((counts * 255 + INK_LEVELS // 2) // INK_LEVELS).astype(np.uint8)


def grey_to_counts(levels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Inverse of `counts_to_grey`; other grey levels are rounded to the nearest count."""
    return (levels.astype(np.int64) * INK_LEVELS + 127) // 255


def reduce_to_digits(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Average 4×4 blocks of pictures (N, 32, 32) and round to the nearest of 17 levels: (N, 8, 8)."""
    blocks = pictures.astype(np.int64).reshape(-1, 8, 4, 8, 4).sum(axis=(2, 4))
    return counts_to_grey((blocks * INK_LEVELS + 255 * 8) // (255 * 16))


def prepare_digits() -> Prepared:
    """Images (1797, 8, 8, 1), labels, splits and source.

    The held-out images are those with the smallest hashes: neighbours in the file have the same writer, and random
    streams depend on library versions.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = counts_to_grey(digits.images.astype(np.int64))[..., None]
    labels = digits.target.astype(np.int64)
    order = sorted(range(len(images)), key=lambda index: (hashlib.sha256(images[index].tobytes()).digest(), index))
    held_out, train = sorted(order[:HELD_OUT]), sorted(order[HELD_OUT:])
    chosen = np.array(train + held_out)
    splits = {"train": (0, len(train)), "heldout": (len(train), len(chosen))}
    return images[chosen], labels[chosen], splits, {"sklearn.datasets": "load_digits"}
