"""Telling the digits from other pictures by log p(x) − E(x) (VAEBM section 5.4): the other pictures, and the AUROC.

Every set is made from integers alone and ends at the digits' own 8×8 pixels and 17 levels: a difference in how pictures
were brought to size would tell them apart better than any model does.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from itertools import count

import numpy as np
from numpy.typing import NDArray

from vaebm.config import UserError
from vaebm.data.digits import reduce, to_counts, to_uint8
from vaebm.evaluation.bootstrap import Counts

Pictures = NDArray[np.uint8]

CROP = 32
"""Side of the patches that the digits' own reduction makes 8×8 of."""

CELLS = 64
"""Pixels of a digit."""


def interpolation(digits: Pictures) -> Pictures:
    """The mean of each digit and another one, a third of the set further on.

    Halves go up or down by a bit of a hash: any fixed rule would leave its mark, as more even levels than digits have.
    """
    counts = to_counts(digits)
    total = counts + np.roll(counts, -max(len(digits) // 3, 1), axis=0)
    bits = [np.unpackbits(np.frombuffer(sha256(f"interpolation/{index}".encode()).digest(), dtype=np.uint8))[:CELLS] for index in range(len(digits))]
    return to_uint8((total + np.stack(bits).reshape(total.shape)) // 2)


def turned(digits: Pictures) -> Pictures:
    """Each digit upside-down: turned by 180°."""
    return np.ascontiguousarray(digits[:, ::-1, ::-1])


def photographs(digits: Pictures) -> Pictures:
    """As many different patches of the photographs that scikit-learn ships, in grey, at places given by a hash."""
    from sklearn.datasets import load_sample_images

    photos = [photo.astype(np.int64) @ (299, 587, 114) // 1000 for photo in load_sample_images().images]
    found: dict[bytes, Pictures] = {}
    for index in count():
        if len(found) == len(digits):
            break
        photo = photos[index % len(photos)]
        words = np.frombuffer(sha256(f"photographs/{index}".encode()).digest(), dtype="<u4")
        top, left = (int(word) % (side - CROP + 1) for word, side in zip(words[:2], photo.shape, strict=True))
        patch = reduce(photo[None, top : top + CROP, left : left + CROP].astype(np.uint8))[0]
        found.setdefault(patch.tobytes(), patch)  # plain sky and shade would otherwise stand there again and again
    return np.stack(list(found.values()))


SETS: dict[str, Callable[[Pictures], Pictures]] = {"interpolation": interpolation, "turned": turned, "photographs": photographs}
"""Name of a set → what makes it from the held-out digits (n, 8, 8) uint8; as many pictures, of the same form."""


def make(name: str, held_out: Pictures) -> Pictures:
    """The pictures (n, 8, 8, 1) of set `name` for held-out digits of that form.

    Raises:
        UserError: the images are not the digits' size, or too few.
    """
    if held_out.shape[1:] != (8, 8, 1) or len(held_out) < 2:
        found = "×".join(map(str, held_out.shape))
        raise UserError(f"evaluation: ood: {name} is made from at least two digits of 8×8×1, found images of {found}; leave it out for this data set")
    return SETS[name](held_out[..., 0])[..., None]


def auroc(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    """Area under the ROC curve: how often an in-distribution image has the higher score (n,) than another one (m,)."""
    from sklearn.metrics import roc_auc_score

    labels = np.repeat([1, 0], [len(inside), len(outside)])
    return float(roc_auc_score(labels, np.concatenate([inside, outside])))


def auroc_replicates(inside: NDArray[np.float64], outside: NDArray[np.float64], inside_counts: Counts, outside_counts: Counts) -> NDArray[np.float64]:
    """`auroc` of resamples of both sets, drawn independently of each other: counts (R, n) and (R, m) → (R,)."""
    order = np.argsort(outside)
    below = np.pad(np.cumsum(outside_counts[:, order], axis=1), ((0, 0), (1, 0)))  # (R, m + 1): how many have one of the k lowest scores
    lower, upper = (np.searchsorted(outside[order], inside, side=side) for side in ("left", "right"))
    wins = (inside_counts * (below[:, lower] + below[:, upper])).sum(axis=1) / 2  # an equal score counts half
    replicates: NDArray[np.float64] = wins / (len(inside) * len(outside))
    return replicates
