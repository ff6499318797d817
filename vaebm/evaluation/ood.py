"""Out-of-distribution sets for held-out images (VAEBM section 5.4).

All sets are computed in integer arithmetic at the size and grey levels of the held-out images. They carry no resizing
artefacts, which would be easier to detect than the content.
"""

from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import distribution
from itertools import count
from math import gcd
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vaebm.config import DataSettings
from vaebm.data import ImageSet, open_images
from vaebm.data.digits import INK_LEVELS, counts_to_grey, grey_to_counts, reduce_to_digits
from vaebm.records.results import OODSource
from vaebm.system.errors import UserError

UInt8Images = NDArray[np.uint8]
"""(N, H, W, C)."""

CROP = 32
"""Side of the photograph patches that are reduced to 8×8."""

FEW_LEVELS = ("digits", "stacked_digits")
"""Sets with 17 grey levels instead of 256."""

VALUES_PER_BLOCK = 1 << 22
"""Maximum number of values per block of a computation."""


def bits(purpose: str, numbers: range, cells: int) -> NDArray[np.int64]:
    """Hash bits for the `cells` values of each of the images with these numbers: (numbers, cells)."""
    ends = ["", *(f"/{block}" for block in range(1, -(-cells // 256)))]
    digests = b"".join(sha256(f"{purpose}/{index}{end}".encode()).digest() for index in numbers for end in ends)
    return np.unpackbits(np.frombuffer(digests, np.uint8).reshape(len(numbers), -1), axis=1)[:, :cells].astype(np.int64)


def rounded(totals: NDArray[np.int64], divisor: int, purpose: str, first: int = 0) -> NDArray[np.int64]:
    """Round totals / divisor (N, …) to the nearest integer, halves up or down by a hash bit of each image's number.

    A fixed rule for halves would leave a mark, for instance brighter images.
    """
    chances: NDArray[np.int64] | int = 0
    if divisor % 2 == 0:
        chances = bits(purpose, range(first, first + len(totals)), totals[0].size).reshape(totals.shape)
    return (totals + (divisor - 1) // 2 + chances) // divisor


def interpolation(images: UInt8Images, name: str) -> UInt8Images:
    """Average each held-out image with the one a third of the set later, to the nearest level."""
    few, partners = name in FEW_LEVELS, np.roll(np.arange(len(images)), -max(len(images) // 3, 1))
    made = np.empty_like(images)
    for part in _blocks(images):
        pair = (images[part], images[partners[part]])
        one, other = (grey_to_counts(each) if few else each.astype(np.int64) for each in pair)
        mean = rounded(one + other, 2, "interpolation", part.start)
        made[part] = counts_to_grey(mean) if few else mean
    return made


def turned(images: UInt8Images, name: str) -> UInt8Images:
    """Rotate each held-out image by 180°."""
    return np.ascontiguousarray(images[:, ::-1, ::-1])


def photographs(images: UInt8Images, name: str) -> UInt8Images:
    """Distinct grey patches of scikit-learn's photographs at hashed positions, as many as `images`.

    Raises:
        UserError: the set is not that of the digits.
    """
    if name != "digits":
        raise UserError(f"evaluation.ood: photographs: it is made for digits alone, found {name}; leave it out")
    # without the import of scikit-learn, which takes a second
    folder = Path(str(distribution("scikit-learn").locate_file("sklearn/datasets/images")))
    colours = (np.asarray(Image.open(folder / photo), dtype=np.int64) for photo in ("china.jpg", "flower.jpg"))
    photos = [each @ (299, 587, 114) // 1000 for each in colours]
    found: dict[bytes, UInt8Images] = {}
    for index in count():
        if len(found) == len(images):
            break
        photo = photos[index % len(photos)]
        words = np.frombuffer(sha256(f"photographs/{index}".encode()).digest(), dtype="<u4")
        top, left = (int(word) % (side - CROP + 1) for word, side in zip(words[:2], photo.shape, strict=True))
        patch = reduce_to_digits(photo[None, top : top + CROP, left : left + CROP].astype(np.uint8))[0]
        found.setdefault(patch.tobytes(), patch)  # uniform patches (sky, shade) would repeat
    return np.stack(list(found.values()))[..., None]


SETS = {made.__name__: made for made in (interpolation, turned, photographs)}
"""Name → function from the held-out images and their set's name to as many images of the same form."""


def area_resample(images: UInt8Images, side: int, name: str) -> UInt8Images:
    """Resize images (N, T, T, C) to `side`×`side`, at most T×T, by area means, to the nearest level of the set `name`.

    An output pixel is the mean of the input under it; pixels cut by its border count in proportion. Images of that
    side and these levels are returned unchanged. Images enlarged by repeated pixels become the original ones.
    """
    few, size = name in FEW_LEVELS, images.shape[1]
    if size == side and not few:
        return images
    common = gcd(size, side)
    edges = np.arange(side + 1)[:, None] * (size // common), np.arange(size + 1) * (side // common)
    overlaps = np.minimum(edges[0][1:], edges[1][1:]) - np.maximum(edges[0][:-1], edges[1][:-1])
    overlaps = np.clip(overlaps, 0, None).astype(np.float64)
    scale, divisor = (INK_LEVELS, 255 * (size // common) ** 2) if few else (1, (size // common) ** 2)
    made = np.empty((len(images), side, side, images.shape[3]), np.uint8)
    for part in _blocks(images):
        # integers far below 2⁵³: exact in every order of addition
        pixels = images[part].transpose(0, 3, 1, 2).astype(np.float64)
        totals = (overlaps @ pixels @ overlaps.T).transpose(0, 2, 3, 1).astype(np.int64)
        mean = rounded(totals * scale, divisor, "fitted", part.start)
        made[part] = counts_to_grey(mean) if few else mean
    return made


def _blocks(images: UInt8Images) -> list[slice]:
    """Slices of at most VALUES_PER_BLOCK values each."""
    step = max(VALUES_PER_BLOCK // images[0].size, 1)
    return [slice(first, min(first + step, len(images))) for first in range(0, len(images), step)]


def chosen(images: UInt8Images, most: int) -> UInt8Images:
    """The `most` images whose bytes have the smallest SHA-256, in their order."""
    if len(images) <= most:
        return np.asarray(images)
    order = sorted(range(len(images)), key=lambda index: (sha256(images[index].tobytes()).digest(), index))
    return np.asarray(images[sorted(order[:most])])


def make_ood_set(
    name: str, data: DataSettings | None, own: ImageSet, manifests: Mapping[str, Path]
) -> tuple[Tensor, OODSource]:
    """Make a set for the held-out images of `own`: images (N, C, H, W) uint8 in their form, and number and origin.

    Args:
        name: name in the metrics.
        data: a prepared set; None: one of `SETS`.
        manifests: name of a prepared set → its manifest.

    Raises:
        UserError: too few held-out images, or the prepared set is missing, damaged or of another form.
    """
    held_out = own.view("heldout")
    if len(held_out) < 2:
        raise UserError(
            f"evaluation.ood: expected at least 2 held-out images, found {len(held_out)}; leave the sets out"
        )
    if data is None:
        images, source = SETS[name](held_out, own.name), OODSource(images=len(held_out))
    elif data.prepared not in manifests:
        raise UserError(
            f"evaluation.ood: {name}: expected --ood data/{data.prepared}/manifest.json, "
            f"found {', '.join(map(str, manifests.values())) or 'none'}"
        )
    else:
        other = open_images(manifests[data.prepared])
        (channels, side, _), (colours, size, _), found = own.shape, other.shape, other.view("heldout")
        if colours != channels or size < side or len(found) < 2:
            raise UserError(
                f"{manifests[data.prepared]}: expected at least 2 held-out images of {side}×{side}×{channels} "
                f"or larger ones, found {len(found)} of {size}×{size}×{colours}"
            )
        images = area_resample(chosen(found, len(held_out)), side, own.name)
        source = OODSource(images=len(images), data=other.hash, heldout=len(found), side=size, users=other.users)
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))), source
