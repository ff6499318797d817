"""Data sets: one prepared format, one registry.

A prepared data set is a folder with `images.npy` (N, H, W, C) uint8, `labels.npy` (N,) int64 (both uncompressed, read as
memory maps) and `manifest.json` (counts, shape, splits, checksums; no times, no paths).
"""

from collections.abc import Callable
from pathlib import Path

from vaebm.config import DataSettings
from vaebm.config.yaml_files import validate
from vaebm.data.celeba import prepare_celeba
from vaebm.data.celebahq import prepare_celebahq
from vaebm.data.cifar import prepare_cifar
from vaebm.data.convert_large import Pictures, write_pictures
from vaebm.data.digits import prepare_digits
from vaebm.data.lsun import prepare_lsun
from vaebm.data.mnist import prepare_mnist, prepare_stacked_mnist
from vaebm.data.prepared import ImageSet, Prepared, open_images, write_images
from vaebm.data.stacked import stack
from vaebm.data.svhn import prepare_svhn
from vaebm.data.user_files import prepare_arrays, prepare_folder
from vaebm.system.errors import UserError

DATASETS: dict[str, Callable[[], Prepared]] = {
    "digits": prepare_digits,
    "stacked_digits": lambda: stack(prepare_digits(), repeats=10),
}
"""Data sets that need no files: name → the function that makes its images, labels, splits and source."""

FROM_FILES: dict[str, Callable[[DataSettings, int], Prepared | Pictures]] = {
    "mnist": lambda data, threads: prepare_mnist(data),
    "stacked_mnist": lambda data, threads: prepare_stacked_mnist(data),
    "cifar10": lambda data, threads: prepare_cifar(data),
    "cifar100": lambda data, threads: prepare_cifar(data),
    "svhn": lambda data, threads: prepare_svhn(data),
    "celeba64": lambda data, threads: prepare_celeba(data),
    "lsun_church64": lambda data, threads: prepare_lsun(data),
    "celebahq256": prepare_celebahq,
    "folder": prepare_folder,
    "arrays": lambda data, threads: prepare_arrays(data),
}
"""Data sets that are made of raw files: name → the function of settings and threads that reads them, at once or picture by picture."""


def prepare(data: str | DataSettings, folder: Path, threads: int = 1) -> None:
    """Prepare a data set in `folder`.

    Args:
        data: its settings; or its name alone.
        threads: pictures that are converted at once.

    Raises:
        UserError: there is no data set of that name, its raw files are not there, or something in them cannot be used.
    """
    dataset = data if isinstance(data, str) else data.dataset
    if dataset in DATASETS:
        made: Prepared | Pictures = DATASETS[dataset]()
    elif dataset in FROM_FILES:
        made = FROM_FILES[dataset](
            validate(DataSettings, {"dataset": data}, f"data {data}") if isinstance(data, str) else data, threads
        )
    else:
        raise UserError(
            f"unknown data set {dataset!r}; data sets that exist: {', '.join(sorted([*DATASETS, *FROM_FILES]))}"
        )
    name = dataset if isinstance(data, str) else data.prepared
    if isinstance(made, Pictures):
        write_pictures(folder, name, made, threads)
    else:
        write_images(folder, name, *made)


__all__ = ["DATASETS", "FROM_FILES", "ImageSet", "open_images", "prepare", "write_images"]
