"""CIFAR-10 and CIFAR-100: colour images 32×32 in Python 2 pickles, from which only arrays are unpickled."""

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaebm.config import DataSettings
from vaebm.data.download import PublishedFile, Source, folder_of, torchvision_datasets, verified
from vaebm.data.prepared import Prepared
from vaebm.system.errors import UserError, brief

LABELS = {"cifar10": b"labels", "cifar100": b"fine_labels"}


class _ArraysOnly(pickle.Unpickler):
    """Unpickles plain values and NumPy arrays only: objects of other classes could run any program."""

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
    """Images (N, 32, 32, 3) and labels (N,), under the key `labels`, of the pickled batch in the file `where`.

    Raises:
        UserError: the content is not such a batch, or has an object of another class.
    """
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        images, numbers = np.asarray(batch[b"data"]), np.array(batch[labels], dtype=np.int64)
        if images.dtype != np.uint8 or images.shape != (len(numbers), 3 * 32 * 32):
            raise ValueError(f"images {images.shape} {images.dtype} and {len(numbers)} labels")
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(
            f"{where}: expected a batch of CIFAR images and labels, found {brief(error)}; get the file anew"
        ) from None
    return np.ascontiguousarray(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), numbers


def prepare_cifar(data: DataSettings, threads: int) -> Prepared:
    """Images (60000, 32, 32, 3), labels, splits and source of CIFAR-10 or CIFAR-100 (100 fine labels)."""
    known = getattr(torchvision_datasets(), data.dataset.upper())
    contents, source = _batches(data, known)
    batches = [read_batch(content, LABELS[data.dataset], name) for name, content in contents.items()]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    train = sum(len(labels) for _, labels in batches[: len(known.train_list)])
    return images, labels, {"train": (0, train), "heldout": (train, len(labels))}, source


def _batches(data: DataSettings, known: Any) -> tuple[dict[str, bytes], Source]:
    """Content of each batch by name, from the archive, which is not extracted, or from its folder; and checksums."""
    names = [PublishedFile(f"{known.base_folder}/{name}", md5) for name, md5 in [*known.train_list, *known.test_list]]
    folder = folder_of(data)
    if (folder / known.base_folder).is_dir():
        _, source = verified(data, *names)
        return {Path(file.name).name: (folder / file.name).read_bytes() for file in names}, source
    folder, source = verified(data, PublishedFile(known.filename, known.tgz_md5, (known.url,)))
    with tarfile.open(folder / known.filename) as archive:
        members = {Path(file.name).name: archive.extractfile(file.name) for file in names}
        return {name: member.read() for name, member in members.items() if member is not None}, source
