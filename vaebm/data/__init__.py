"""Data sets: one prepared format, one registry.

A prepared data set is a folder with `images.npy` (N, H, W, C) uint8, `labels.npy` (N,) int64 (both uncompressed, read as
memory maps) and `manifest.json` (counts, shape, splits, checksums; no times, no paths).
"""

from vaebm.data.digits import prepare_digits
from vaebm.data.prepared import ImageSet, open_images, write_images

DATASETS = {"digits": prepare_digits}
"""Name of a data set → the function that makes its images, labels, splits and source."""

__all__ = ["DATASETS", "ImageSet", "open_images", "write_images"]
