"""CelebA 64×64: aligned faces, cropped and resized as in the published experiments; training and validation split."""

import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from PIL import Image

from vaebm.config import DataSettings
from vaebm.data.convert_large import LazyImages
from vaebm.data.decode import Decoded, Unsuitable, read_picture, to_array
from vaebm.data.download import PublishedFile, Source, folder_of, torchvision_datasets, verified
from vaebm.system.errors import UserError, brief

ALIGNED = (178, 218)
BOX = (15, 40, 163, 188)
SIDE = 64
PARTITIONS = {"train": 0, "heldout": 1}
"""Split → number in list_eval_partition.txt; 2, the test images, is omitted, as in the published experiments."""


def crop_face(image: Image.Image) -> Decoded:
    """Crop an aligned face (178×218) to 148×148 and resize it to 64×64 by Pillow's antialiased bilinear filter.

    Raises:
        Unsuitable: the image has another size.
    """
    if image.size != ALIGNED:
        raise Unsuitable(f"expected an aligned face of 178×218 pixels, found {image.size[0]}×{image.size[1]}")
    return to_array(image.crop(BOX).resize((SIDE, SIDE), Image.Resampling.BILINEAR)), []


def prepare_celeba(data: DataSettings, threads: int) -> LazyImages:
    """Training and validation images of CelebA, read from the archive, which is not extracted, or from its folder."""
    folder, opener, source = _faces(data)
    names = _partition(folder / "list_eval_partition.txt")
    every = [name for split in PARTITIONS for name in names[split]]
    train = len(names["train"])

    def read(number: int) -> Decoded:
        try:
            with opener(every[number]) as file:
                image, done = read_picture(file, channels=3)
        except (FileNotFoundError, KeyError):
            raise Unsuitable("list_eval_partition.txt names it, found no such file") from None
        cropped, more = crop_face(image)
        return cropped, done + more

    splits = {"train": (0, train), "heldout": (train, len(every))}
    return LazyImages(
        (SIDE, SIDE, 3),
        np.zeros(len(every), np.int64),
        splits,
        source,
        read,
        lambda number: str(folder / "img_align_celeba" / every[number]),
    )


def _faces(data: DataSettings) -> tuple[Path, Callable[[str], AbstractContextManager[IO[bytes]]], Source]:
    """Folder of the raw files, function that opens a picture by name, and checksums."""
    known = torchvision_datasets().CelebA
    published = {name: PublishedFile(name, md5, drive=drive) for drive, md5, name in known.file_list}
    pictures, partition = published["img_align_celeba.zip"], published["list_eval_partition.txt"]
    if (faces := folder_of(data) / "img_align_celeba").is_dir():
        folder, source = verified(data, partition)
        return folder, lambda name: (faces / name).open("rb"), source
    folder, source = verified(data, pictures, partition)
    archive = zipfile.ZipFile(folder / pictures.name)
    return folder, lambda name: archive.open(f"img_align_celeba/{name}"), source


def _partition(path: Path) -> dict[str, list[str]]:
    """Names of the files of each split, in list order."""
    names: dict[str, list[str]] = {split: [] for split in PARTITIONS}
    of_number = {str(number): split for split, number in PARTITIONS.items()}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        name, _, part = line.partition(" ")
        if PurePosixPath(name).name != name or part.strip() not in ("0", "1", "2"):
            expected = "expected the name of a file and 0, 1 or 2, as '000001.jpg 0'"
            raise UserError(f"{path}:{number}: {expected}, found {brief(repr(line))}; get the file anew")
        if split := of_number.get(part.strip()):
            names[split].append(name)
    return names
