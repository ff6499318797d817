"""MNIST: handwritten digits 28×28 in IDX files, with two rows and columns of zeros around them, so that they can be halved (32×32)."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaebm.config import DataSettings
from vaebm.data.download import Published, torchvision_datasets, verified
from vaebm.data.prepared import Prepared
from vaebm.data.stacked import stack
from vaebm.system.errors import UserError

PADDING = 2


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of bytes in a gzipped IDX file: two zero bytes, type 8, number of axes, the length of each, then the values.

    Raises:
        UserError: the file is damaged, or another kind of file.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error):
        raise UserError(
            f"{path}: expected a gzipped IDX file, found a damaged file or one of another kind; get it anew"
        ) from None
    start = 4 + 4 * content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else len(content)
    shape = np.frombuffer(content[4:start], ">u4").tolist() if start % 4 == 0 and len(content) >= start > 4 else [-1]
    if len(content) - start != np.prod(shape):
        raise UserError(
            f"{path}: expected an IDX file of bytes, found {len(content)} bytes that do not fit their header; get it anew"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def prepare_mnist(data: DataSettings) -> Prepared:
    """Images (70000, 32, 32, 1), labels, splits and source.

    Raises:
        UserError: the raw files are not there, not the published ones, or cannot be fetched.
    """
    known = torchvision_datasets().MNIST
    folder, source = verified(
        data, *(Published(name, md5, tuple(mirror + name for mirror in known.mirrors)) for name, md5 in known.resources)
    )
    train, train_labels, heldout, heldout_labels = (read_idx(folder / name) for name, _ in known.resources)
    around = (PADDING, PADDING)
    images = np.pad(np.concatenate([train, heldout]), ((0, 0), around, around))[..., None]
    labels = np.concatenate([train_labels, heldout_labels]).astype(np.int64)
    return (
        images,
        labels,
        {"train": (0, len(train)), "heldout": (len(train), len(images))},
        {**source, "padding": PADDING},
    )


def prepare_stacked_mnist(data: DataSettings) -> Prepared:
    """Stacks (70000, 32, 32, 3) of MNIST, one for each image."""
    return stack(prepare_mnist(data), repeats=1)
