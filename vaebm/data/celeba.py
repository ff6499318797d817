"""CelebA 64×64: aligned faces, cropped and resized as in the published experiments; training and validation split."""

import zipfile
from pathlib import Path, PurePosixPath

from PIL import Image

from vaebm.config import DataSettings
from vaebm.data.convert_large import LazyImages
from vaebm.data.decode import Decoded, Unsuitable, read_picture, to_array
from vaebm.data.download import PublishedFile, folder_of, torchvision_datasets, verified
from vaebm.system.errors import UserError, brief


def prepare_celeba(data: DataSettings, threads: int) -> LazyImages:
    """Training and validation images of CelebA, read from the archive, which is not extracted, or from its folder.

    Faces (178×218) are cropped to 148×148 and resized to 64×64 by Pillow's antialiased bilinear filter.
    """
    known = torchvision_datasets().CelebA
    published = {name: PublishedFile(name, md5, drive=drive) for drive, md5, name in known.file_list}
    archive, partition = published["img_align_celeba.zip"], published["list_eval_partition.txt"]
    faces: Path | zipfile.Path = folder_of(data) / "img_align_celeba"
    if faces.is_dir():
        folder, source = verified(data, partition)
    else:
        folder, source = verified(data, archive, partition)
        faces = zipfile.Path(folder / archive.name, "img_align_celeba/")

    def read(path: Path) -> Decoded:
        try:
            with (faces / path.name).open("rb") as file:
                image, done = read_picture(file, channels=3)
        except FileNotFoundError:
            raise Unsuitable("list_eval_partition.txt names it, found no such file") from None
        if image.size != (178, 218):
            raise Unsuitable(f"expected an aligned face of 178×218 pixels, found {image.size[0]}×{image.size[1]}")
        return to_array(image.crop((15, 40, 163, 188)).resize((64, 64), Image.Resampling.BILINEAR)), done

    return LazyImages((64, 64, 3), _partition(folder), source, read)


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
