"""Data sets: one prepared format, one registry.

A prepared data set is a folder with `images.npy` (N, H, W, C) uint8, `labels.npy` (N,) int64 (both uncompressed, read as
memory maps) and `manifest.json` (counts, shape, splits, checksums; no times, no paths).
"""

from collections.abc import Callable
from pathlib import Path

from vaebm.config import UserError
from vaebm.data.digits import prepare_digits
from vaebm.data.prepared import ImageSet, Prepared, open_images, write_images
from vaebm.data.stacked import stack

DATASETS: dict[str, Callable[[], Prepared]] = {
    "digits": prepare_digits,
    "stacked_digits": lambda: stack(prepare_digits(), repeats=10),
}
"""Name of a data set → the function that makes its images, labels, splits and source."""


def prepare(dataset: str, folder: Path) -> None:
    """Prepare the data set of that name in `folder`.

    Raises:
        UserError: there is no data set of that name.
    """
    if dataset not in DATASETS:
        raise UserError(f"unknown data set {dataset!r}; data sets that exist: {', '.join(sorted(DATASETS))}")
    images, labels, splits, source = DATASETS[dataset]()
    write_images(folder, dataset, images, labels, splits, source)


__all__ = ["DATASETS", "ImageSet", "open_images", "prepare", "write_images"]
