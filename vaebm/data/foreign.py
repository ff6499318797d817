"""Images that another program drew, as they are: nothing is resized or converted but floating-point numbers."""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaebm.config.foreign import foreign_files
from vaebm.data.decode import Unsuitable, read_picture, to_array
from vaebm.data.download import shown, whole_checksum
from vaebm.records.results import ForeignImages
from vaebm.system.errors import UserError, brief, listed
from vaebm.system.files import checksum


def read_foreign(place: Path, shape: tuple[int, int, int]) -> tuple[Tensor, ForeignImages]:
    """Read images (N, C, H, W) uint8, and say where they come from.

    An array is (N, H, W, C), (N, C, H, W), or (N, H, W) of one channel, uint8 or in [0, 1]; it is `arr_0` of a .npz
    file, or the only one.

    Args:
        place: a folder of PNG files, or a file .npy or .npz.
        shape: expected (C, H, W).

    Raises:
        UserError: a file is missing or damaged, or its images have another form.
    """
    files = foreign_files(place)
    if files == [place]:
        images, digest = _read_array(place, shape), checksum(place)
    else:
        images, digest = _read_pictures(place, files, shape)
    origin = ForeignImages(path=str(place), images=len(images), sha256=digest)
    return torch.from_numpy(np.require(images, requirements=("C", "W"))), origin


def _read_pictures(folder: Path, files: list[Path], shape: tuple[int, int, int]) -> tuple[NDArray[np.uint8], str]:
    """Pictures (N, C, H, W) in the order of `files`, and the hash of their names and contents."""
    channels, *size = shape
    images = np.empty((len(files), *shape), np.uint8)

    def read(index: int) -> str:
        content = files[index].read_bytes()
        try:
            picture, conversions = read_picture(io.BytesIO(content), channels)
            if conversions or [picture.height, picture.width] != size:
                found = ", ".join([f"{picture.height}×{picture.width}", *conversions])
                raise Unsuitable(f"expected {size[0]}×{size[1]} pixels of {channels} channel(s), found {found}")
        except Unsuitable as reason:
            raise UserError(f"{shown(files[index])}: {reason}; write it as the data are") from None
        images[index] = to_array(picture).transpose(2, 0, 1)
        return hashlib.sha256(content).hexdigest()

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return images, whole_checksum(folder, files, list(pool.map(read, range(len(files)))))


def _read_array(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Images (N, C, H, W) of a file .npy or .npz."""
    try:
        content = np.load(path, mmap_mode="r", allow_pickle=False)
        names = [] if isinstance(content, np.ndarray) else content.files
        if name := "arr_0" if "arr_0" in names else names[0] if len(names) == 1 else "":
            content = content[name]
    except Exception as error:  # NumPy, zipfile and zlib raise many classes for damaged files
        raise UserError(
            f"{path}: expected a whole file .npy or .npz, found something unreadable ({brief(error)})"
        ) from None
    if not isinstance(content, np.ndarray):
        raise UserError(f"{path}: expected an array arr_0, or a single one, found {listed(names) or 'none'}")
    array, (channels, height, width) = content[:, None] if content.ndim == 3 else content, shape
    last = array.shape[1:] == (height, width, channels)
    array = array.transpose(0, 3, 1, 2) if last else array
    numbers = array.dtype.kind == "f" and array.size and array.min() >= 0 and array.max() <= 1  # false for NaN
    if array.shape[1:] != shape or not len(array) or not (array.dtype == np.uint8 or numbers):
        limits = f" from {content.min():g} to {content.max():g}" if content.dtype.kind == "f" and content.size else ""
        found = f"({', '.join(map(str, content.shape))}) {content.dtype}{limits}"
        expected = f"images (N, {height}, {width}, {channels}) uint8, or floating-point numbers from 0 to 1"
        raise UserError(f"{path}: expected {expected}, found {brief(found)}")
    return np.rint(array.astype(np.float32) * 255).astype(np.uint8) if numbers else array
