"""Data sets: one prepared format, one registry (`vaebm.config.datasets`).

A prepared data set is a folder with `images.npy` (N, H, W, C) uint8, `labels.npy` (N,) int64 (both uncompressed, read
as memory maps) and `manifest.json` (counts, shape, splits, checksums; no times, no paths).
"""

from pathlib import Path

from vaebm.config import DATASETS, DataSettings
from vaebm.config.datasets import USER_SETS
from vaebm.config.yaml_files import validate
from vaebm.data.convert_large import LazyImages, write_lazy_images
from vaebm.data.prepared import ImageSet, Prepared, open_images, write_images
from vaebm.system.errors import UserError
from vaebm.system.plugins import imported


def prepare(data: str | DataSettings, folder: Path, threads: int = 1) -> None:
    """Prepare a data set in `folder`.

    Args:
        data: settings of the data set, or its name.
        threads: pictures converted at once.

    Raises:
        UserError: the data set does not exist, or its raw files are absent or cannot be used.
    """
    if isinstance(data, str):
        if data not in (known := sorted([*DATASETS, *USER_SETS])):
            raise UserError(f"unknown data set {data!r}; data sets that exist: {', '.join(known)}")
        data = validate(DataSettings, {"dataset": data}, f"data {data}")
    function = imported(data.facts.prepare)
    images: Prepared | LazyImages = function(data, threads) if data.needs_files else function()
    if isinstance(images, LazyImages):
        write_lazy_images(folder, data.prepared, images, threads)
    else:
        write_images(folder, data.prepared, *images)


__all__ = ["ImageSet", "open_images", "prepare", "write_images"]
