"""MNIST: handwritten digits 28×28 in IDX files, padded with zeros to 32×32."""

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaebm.config import DataSettings
from vaebm.data.download import PublishedFile, torchvision_datasets, verified
from vaebm.data.prepared import Prepared
from vaebm.system.errors import UserError


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Array of bytes in a gzipped IDX file: two zero bytes, type 8, number of axes, their lengths, then the values.

    Raises:
        UserError: the file is damaged, or not of this format.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except Exception:  # gzip raises many classes for damaged files
        raise UserError(
            f"{path}: expected a gzipped IDX file, found a damaged file or one of another kind; get it anew"
        ) from None
    start = 4 + 4 * content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else len(content)
    shape = np.frombuffer(content[4:start], ">u4").tolist() if start % 4 == 0 and len(content) >= start > 4 else [-1]
    if len(content) - start != np.prod(shape):
        raise UserError(
            f"{path}: expected an IDX file of bytes, found {len(content)} bytes that do not fit their header; "
            "get it anew"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def prepare_mnist(data: DataSettings, threads: int) -> Prepared:
    """Images (70000, 32, 32, 1), labels, splits and source."""
    known = torchvision_datasets().MNIST
    files = [
        PublishedFile(name, md5, tuple(mirror + name for mirror in known.mirrors)) for name, md5 in known.resources
    ]
    folder, source = verified(data, *files)
    train, train_labels, heldout, heldout_labels = (read_idx(folder / file.name) for file in files)
    images = np.pad(np.concatenate([train, heldout]), ((0, 0), (2, 2), (2, 2)))[..., None]
    labels = np.concatenate([train_labels, heldout_labels]).astype(np.int64)
    splits = {"train": (0, len(train)), "heldout": (len(train), len(images))}
    return images, labels, splits, {**source, "padding": 2}
