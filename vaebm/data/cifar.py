"""CIFAR-10 and CIFAR-100: colour images 32×32 in Python 2 pickles, of which nothing but arrays is unpickled."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaebm.config import DataSettings
from vaebm.data.download import Published, Source, folder_of, torchvision_datasets, verified
from vaebm.data.prepared import Prepared
from vaebm.system.errors import UserError

LABELS = {"cifar10": b"labels", "cifar100": b"fine_labels"}


class _ArraysOnly(pickle.Unpickler):
    """Plain values and NumPy arrays; every other class is refused, for making an object may run any program."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"an object of {module}.{name}, which is not read: it could run any program")
        return self.ALLOWED[module, name]


def read_batch(content: bytes, labels: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 32, 32, 3) and labels (N,) of one pickled batch.

    Args:
        labels: key of the labels.
        where: the file, for errors.

    Raises:
        UserError: the file is no batch, or holds an object of a class that is not read.
    """
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        images, numbers = np.asarray(batch[b"data"]), np.array(batch[labels], dtype=np.int64)
        if images.dtype != np.uint8 or images.shape != (len(numbers), 3 * 32 * 32):
            raise ValueError(f"images {images.shape} {images.dtype} and {len(numbers)} labels")
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(
            f"{where}: expected a batch of CIFAR images and labels, found {error}; get the file anew"
        ) from None
    return np.ascontiguousarray(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), numbers


def prepare_cifar(data: DataSettings) -> Prepared:
    """Images (60000, 32, 32, 3), labels, splits and source of CIFAR-10 or CIFAR-100 (its 100 fine labels).

    Raises:
        UserError: the raw files are not there, not the published ones, or cannot be fetched.
    """
    known = getattr(torchvision_datasets(), {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}[data.dataset])
    parts = {"train": known.train_list, "heldout": known.test_list}
    contents, source = _batches(data, known)
    made = {
        split: [read_batch(contents[name], LABELS[data.dataset], name) for name, _ in files]
        for split, files in parts.items()
    }
    both = [part for split in parts for part in made[split]]
    train, every = (sum(len(labels) for _, labels in some) for some in (made["train"], both))
    images, labels = (np.concatenate([part[index] for part in both]) for index in (0, 1))
    return images, labels, {"train": (0, train), "heldout": (train, every)}, source


def _batches(data: DataSettings, known: Any) -> tuple[dict[str, bytes], Source]:
    """Content of each batch by its name, from the archive (nothing of it is written anywhere) or from the folder that was in it."""
    names = [Published(f"{known.base_folder}/{name}", md5) for name, md5 in [*known.train_list, *known.test_list]]
    folder = folder_of(data)
    if (folder / known.base_folder).is_dir():
        _, source = verified(data, *names)
        return {Path(file.name).name: (folder / file.name).read_bytes() for file in names}, source
    folder, source = verified(data, Published(known.filename, known.tgz_md5, (known.url,)))
    with tarfile.open(folder / known.filename) as archive:
        members = {Path(file.name).name: archive.extractfile(file.name) for file in names}
        return {name: member.read() for name, member in members.items() if member is not None}, source
