"""SVHN (cropped digits): house numbers 32×32 in colour, in MATLAB files."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaebm.config import DataSettings
from vaebm.data.download import PublishedFile, torchvision_datasets, verified
from vaebm.data.prepared import Prepared
from vaebm.system.errors import UserError, brief


def read_mat(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 32, 32, 3) and labels (N,) of a file with `X` (32, 32, 3, N) and `y`, in which zero has the label 10.

    Raises:
        UserError: the file is damaged, or not of this format.
    """
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=["X", "y"])
        images, labels = np.asarray(content["X"]), np.asarray(content["y"]).astype(np.int64).ravel()
        if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)):
            raise ValueError(f"X {images.shape} {images.dtype} and {len(labels)} labels")
    except Exception as error:  # scipy raises many classes for damaged files
        raise UserError(
            f"{path}: expected a MATLAB file with X (32, 32, 3, N) uint8 and y, found {brief(error)}; get it anew"
        ) from None
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels % 10


def prepare_svhn(data: DataSettings, threads: int) -> Prepared:
    """Images (99289, 32, 32, 3), labels, splits and source, without the additional images (`extra`)."""
    known = torchvision_datasets().SVHN
    parts = (known.split_list[part] for part in ("train", "test"))
    files = [PublishedFile(name, md5, (url,)) for url, name, md5 in parts]
    folder, source = verified(data, *files)
    (train, train_labels), (heldout, heldout_labels) = (read_mat(folder / file.name) for file in files)
    splits = {"train": (0, len(train)), "heldout": (len(train), len(train) + len(heldout))}
    return np.concatenate([train, heldout]), np.concatenate([train_labels, heldout_labels]), splits, {**source}
