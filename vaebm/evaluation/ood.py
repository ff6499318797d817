"""Out-of-distribution sets (VAEBM section 5.4): what held-out images are told from by log p(x) − E(x).

Everything is made by integers alone, ends at the held-out images' own size and levels, and leaves no mark of how it got there:
a difference in how pictures were brought to size would tell them apart better than any model does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaebm.config import DataSettings
from vaebm.data import ImageSet, open_images
from vaebm.data.digits import LEVELS, reduce, to_counts, to_uint8
from vaebm.system.errors import UserError

Pictures = NDArray[np.uint8]
"""(N, H, W, C)."""

CROP = 32
"""Side of the patches of photographs that the digits' own reduction makes 8×8 of."""

FEW_LEVELS = ("digits", "stacked_digits")
"""Sets with the digits' 17 levels in place of 256."""

BLOCK = 1 << 22
"""Values of a set that are computed with at once."""


def bits(purpose: str, numbers: range, cells: int) -> NDArray[np.int64]:
    """One bit for each of the `cells` values of the images of these numbers, from hashes; (numbers, cells)."""
    ends = ["", *(f"/{block}" for block in range(1, -(-cells // 256)))]
    digests = b"".join(sha256(f"{purpose}/{index}{end}".encode()).digest() for index in numbers for end in ends)
    return np.unpackbits(np.frombuffer(digests, np.uint8).reshape(len(numbers), -1), axis=1)[:, :cells].astype(np.int64)


def rounded(totals: NDArray[np.int64], divisor: int, purpose: str, first: int = 0) -> NDArray[np.int64]:
    """totals / divisor (N, …) to the nearest integer; halves go up or down by a bit of a hash.

    Any fixed rule for them would leave its mark: brighter images, or more even levels than others have.

    Args:
        purpose: of the bits.
        first: number of the first image.
    """
    chances = (
        bits(purpose, range(first, first + len(totals)), totals[0].size).reshape(totals.shape)
        if divisor % 2 == 0
        else 0
    )
    return (totals + (divisor - 1) // 2 + chances) // divisor


def interpolation(images: Pictures, name: str) -> Pictures:
    """The mean of each held-out image of the set `name` and another one, a third of the set further on, to the nearest level."""
    few, partners = name in FEW_LEVELS, np.roll(np.arange(len(images)), -max(len(images) // 3, 1))
    made = np.empty_like(images)
    for part in _blocks(images):
        one, other = (
            to_counts(each) if few else each.astype(np.int64) for each in (images[part], images[partners[part]])
        )
        mean = rounded(one + other, 2, "interpolation", part.start)
        made[part] = to_uint8(mean) if few else mean
    return made


def turned(images: Pictures, name: str) -> Pictures:
    """Each held-out image upside-down: turned by 180°."""
    return np.ascontiguousarray(images[:, ::-1, ::-1])


def photographs(images: Pictures, name: str) -> Pictures:
    """As many different patches of the photographs that scikit-learn ships, in grey, at places given by a hash, as the digits they stand beside.

    Raises:
        UserError: the set is not that of the digits.
    """
    from sklearn.datasets import load_sample_images

    if name != "digits":
        raise UserError(f"evaluation.ood: photographs: it is made for digits alone, found {name}; leave it out")
    photos = [photo.astype(np.int64) @ (299, 587, 114) // 1000 for photo in load_sample_images().images]
    found: dict[bytes, Pictures] = {}
    for index in count():
        if len(found) == len(images):
            break
        photo = photos[index % len(photos)]
        words = np.frombuffer(sha256(f"photographs/{index}".encode()).digest(), dtype="<u4")
        top, left = (int(word) % (side - CROP + 1) for word, side in zip(words[:2], photo.shape, strict=True))
        patch = reduce(photo[None, top : top + CROP, left : left + CROP].astype(np.uint8))[0]
        found.setdefault(patch.tobytes(), patch)  # plain sky and shade would otherwise stand there again and again
    return np.stack(list(found.values()))[..., None]


SETS: dict[str, Callable[[Pictures, str], Pictures]] = {
    "interpolation": interpolation,
    "turned": turned,
    "photographs": photographs,
}
"""Name of a set → what makes it from the held-out images and the name of their set; as many pictures, of the same form."""


def fitted(images: Pictures, side: int, name: str) -> Pictures:
    """Images (N, T, T, C) as `side`×`side` ones: means over areas, to the nearest level that the set `name` has.

    An output pixel is the mean of the input under it, pixels cut by its border in proportion. Images that have the size stay as they
    are, and so does an image that comes enlarged by repeated pixels: it is the one rule that does the same to both kinds and leaves the
    held-out images, which the model was trained like, untouched.

    Args:
        side: at most T.
    """
    few, size = name in FEW_LEVELS, images.shape[1]
    if size == side and not few:
        return images
    common = gcd(size, side)
    edges = np.arange(side + 1)[:, None] * (size // common), np.arange(size + 1) * (side // common)
    overlaps = np.clip(
        np.minimum(edges[0][1:], edges[1][1:]) - np.maximum(edges[0][:-1], edges[1][:-1]), 0, None
    ).astype(np.float64)
    scale, divisor = (LEVELS, 255 * (size // common) ** 2) if few else (1, (size // common) ** 2)
    made = np.empty((len(images), side, side, images.shape[3]), np.uint8)
    for part in _blocks(images):
        pixels = (
            images[part].transpose(0, 3, 1, 2).astype(np.float64)
        )  # integers far below 2⁵³, exact in every order of addition
        totals = (overlaps @ pixels @ overlaps.T).transpose(0, 2, 3, 1).astype(np.int64)
        mean = rounded(totals * scale, divisor, "fitted", part.start)
        made[part] = to_uint8(mean) if few else mean
    return made


def _blocks(images: Pictures) -> list[slice]:
    """Parts of a set, each of at most BLOCK values."""
    step = max(BLOCK // images[0].size, 1)
    return [slice(first, min(first + step, len(images))) for first in range(0, len(images), step)]


def chosen(images: Pictures, most: int) -> Pictures:
    """At most `most` of the images, in their order: those whose bytes have the smallest SHA-256."""
    if len(images) <= most:
        return np.asarray(images)
    order = sorted(range(len(images)), key=lambda index: (sha256(images[index].tobytes()).digest(), index))
    return np.asarray(images[sorted(order[:most])])


@dataclass(frozen=True)
class OODSet:
    """What held-out images are told from.

    Attributes:
        images: (N, C, H, W) uint8, in the form of the held-out ones.
        source: where they come from, for the record: `data` (hash of the prepared set), `heldout` (how many it has), `side` and
            `users` (whether they are the user's files); empty for a set made of the held-out images.
    """

    images: Tensor
    source: dict[str, Any]


def make(name: str, data: DataSettings | None, own: ImageSet, manifests: Mapping[str, Path]) -> OODSet:
    """One of the sets that the held-out images of `own` are told from.

    Args:
        name: what figures call it.
        data: which prepared set; None: one of `SETS`.
        manifests: name of a prepared set → its manifest.

    Raises:
        UserError: there are too few held-out images, or the prepared set is not among the manifests, damaged or of another form.
    """
    held_out = own.view("heldout")
    if len(held_out) < 2:
        raise UserError(
            f"evaluation.ood: expected at least 2 held-out images, found {len(held_out)}; leave the sets out"
        )
    if data is None:
        return OODSet(_as_tensor(SETS[name](held_out, own.name)), {})
    if data.prepared not in manifests:
        raise UserError(
            f"evaluation.ood: {name}: expected --ood data/{data.prepared}/manifest.json, found {', '.join(map(str, manifests.values())) or 'none'}"
        )
    other = open_images(manifests[data.prepared])
    (channels, side, _), (colours, size, _), found = own.shape, other.shape, other.view("heldout")
    if colours != channels or size < side or len(found) < 2:
        form = f"{len(found)} of {size}×{size}×{colours}"
        raise UserError(
            f"{manifests[data.prepared]}: expected at least 2 held-out images of {side}×{side}×{channels} or larger ones, found {form}"
        )
    source = {"data": other.hash, "heldout": len(found), "side": size, "users": other.users}
    return OODSet(_as_tensor(fitted(chosen(found, len(held_out)), side, own.name)), source)


def _as_tensor(pictures: Pictures) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
