"""CelebA 64×64: aligned faces, cropped and resized as in the published experiments; training and validation split."""

import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import IO

from PIL import Image

from vaebm.config import DataSettings
from vaebm.data.convert_large import LazyImages
from vaebm.data.decode import Decoded, Unsuitable, read_picture, to_array
from vaebm.data.download import PublishedFile, Source, folder_of, torchvision_datasets, verified
from vaebm.system.errors import UserError, brief


def prepare_celeba(data: DataSettings, threads: int) -> LazyImages:
    """Training and validation images of CelebA, read from the archive, which is not extracted, or from its folder.

    Faces (178×218) are cropped to 148×148 and resized to 64×64 by Pillow's antialiased bilinear filter.
    """
    folder, opener, source = _faces(data)

    def read(path: Path) -> Decoded:
        try:
            with opener(path.name) as file:
                image, done = read_picture(file, channels=3)
        except (FileNotFoundError, KeyError):
            raise Unsuitable("list_eval_partition.txt names it, found no such file") from None
        if image.size != (178, 218):
            raise Unsuitable(f"expected an aligned face of 178×218 pixels, found {image.size[0]}×{image.size[1]}")
        return to_array(image.crop((15, 40, 163, 188)).resize((64, 64), Image.Resampling.BILINEAR)), done

    return LazyImages((64, 64, 3), _partition(folder), source, read)


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


def _partition(folder: Path) -> dict[str, list[Path]]:
    """Files of each split, in list order; 2, the test images, is omitted, as in the published experiments."""
    path, parts = folder / "list_eval_partition.txt", dict[str, list[Path]]({"0": [], "1": [], "2": []})
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        name, _, part = line.partition(" ")
        if PurePosixPath(name).name != name or part.strip() not in parts:
            expected = "expected the name of a file and 0, 1 or 2, as '000001.jpg 0'"
            raise UserError(f"{path}:{number}: {expected}, found {brief(repr(line))}; get the file anew")
        parts[part.strip()].append(folder / "img_align_celeba" / name)
    return {"train": parts["0"], "heldout": parts["1"]}
