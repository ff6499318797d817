"""Registry of data sets: image shapes, split sizes, the functions that read them, and their raw files.

Snakemake asks it for absent raw files before anything starts. So functions are named by text, and no image is opened.
"""

import os.path
from pathlib import Path
from typing import Any, NamedTuple

from vaebm.system.files import found_at
from vaebm.system.plugins import Implementation, Registry


class RawFiles(NamedTuple):
    """The raw files that the owners of a data set offer."""

    alternatives: list[list[str]]
    """Sets of names, files or folders; every name of one set has to exist."""
    description: str
    """The same in words, for errors."""
    url: str
    """Page of the owners."""
    downloaded: bool = False
    """Whether torchvision downloads them into the default folder."""


class DatasetFacts(NamedTuple):
    """Properties of a data set that the settings of an experiment have to fit."""

    side: int
    """Height and width of the images, padding included."""
    channels: int
    """Channels of the images."""
    train: int | None
    """Training images; None: as many as the user's files contain."""
    heldout: int | None
    """Held-out images; None: as many as the user's files contain."""
    prepare: Implementation
    """Function that returns the images; its arguments are settings and threads, or none without either.

    It raises `UserError` if raw files are absent, damaged, other than published, or cannot be downloaded.
    """
    stacks: str | None = None
    """Greyscale set whose images are the channels of this one's."""
    raw: RawFiles | None = None
    """None: the set needs no files, or they are the user's."""
    settings: type[Any] | None = None
    """Subclass of `DataSettings`; None: the set has no settings of its own."""


_MNIST_FILES = ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz"]
_LAST_MNIST_FILE = "t10k-labels-idx1-ubyte.gz"
_MNIST = RawFiles(
    [[*_MNIST_FILES, _LAST_MNIST_FILE]],
    f"the four files {', '.join(_MNIST_FILES)} and {_LAST_MNIST_FILE}",
    "https://github.com/cvdfoundation/mnist",
    downloaded=True,
)
_SVHN = RawFiles(
    [["train_32x32.mat", "test_32x32.mat"]],
    "train_32x32.mat and test_32x32.mat",
    "http://ufldl.stanford.edu/housenumbers/",
    downloaded=True,
)
_CELEBA = RawFiles(
    [["img_align_celeba.zip", "list_eval_partition.txt"], ["img_align_celeba", "list_eval_partition.txt"]],
    "list_eval_partition.txt beside img_align_celeba.zip, or beside the folder img_align_celeba of its "
    "202,599 JPEG files (178×218)",
    "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    downloaded=True,
)
_LSUN = RawFiles(
    [["church_outdoor_train_lmdb", "church_outdoor_val_lmdb"]],
    "the folders church_outdoor_train_lmdb and church_outdoor_val_lmdb, each an LMDB with its data.mdb",
    "https://github.com/fyu/lsun",
)
_CELEBA_HQ = RawFiles(
    [["train.lmdb", "validation.lmdb"], ["train", "validation"]],
    "the folders train and validation of PNG or JPEG files or of *-r08-*.tfrecords (features shape and data), or "
    "train.lmdb and validation.lmdb (256×256×3 raw RGB bytes under the keys 0, 1, …); 27,000 and 3,000 images",
    "https://github.com/tkarras/progressive_growing_of_gans",
)


def _cifar(archive: str, folder: str) -> RawFiles:
    """Raw files of CIFAR-10 or CIFAR-100."""
    words = f"{archive}, or the folder {folder} that is in it"
    return RawFiles([[archive], [folder]], words, "https://www.cs.toronto.edu/~kriz/cifar.html", downloaded=True)


_CIFAR10 = _cifar("cifar-10-python.tar.gz", "cifar-10-batches-py")
_CIFAR100 = _cifar("cifar-100-python.tar.gz", "cifar-100-python")

_PUBLISHED = {  # side, channels, training and held-out images
    "digits": DatasetFacts(8, 1, 1500, 297, "vaebm.data.digits:prepare_digits"),
    "stacked_digits": DatasetFacts(8, 3, 15_000, 2970, "vaebm.data.stacked:prepare_stacked_digits", "digits"),
    "mnist": DatasetFacts(32, 1, 60_000, 10_000, "vaebm.data.mnist:prepare_mnist", raw=_MNIST),
    "stacked_mnist": DatasetFacts(32, 3, 60_000, 10_000, "vaebm.data.stacked:prepare_stacked_mnist", "mnist", _MNIST),
    "cifar10": DatasetFacts(32, 3, 50_000, 10_000, "vaebm.data.cifar:prepare_cifar", raw=_CIFAR10),
    "cifar100": DatasetFacts(32, 3, 50_000, 10_000, "vaebm.data.cifar:prepare_cifar", raw=_CIFAR100),
    "svhn": DatasetFacts(32, 3, 73_257, 26_032, "vaebm.data.svhn:prepare_svhn", raw=_SVHN),
    "celeba64": DatasetFacts(64, 3, 162_770, 19_867, "vaebm.data.celeba:prepare_celeba", raw=_CELEBA),
    "lsun_church64": DatasetFacts(64, 3, 126_227, 300, "vaebm.data.lsun:prepare_lsun", raw=_LSUN),
    "celebahq256": DatasetFacts(256, 3, 27_000, 3_000, "vaebm.data.celebahq:prepare_celebahq", raw=_CELEBA_HQ),
}
DATASETS = Registry("data set", _PUBLISHED)
"""Name → facts of each data set but the user's files."""

USER_SETS = {"folder": "vaebm.data.user_files:prepare_folder", "arrays": "vaebm.data.user_files:prepare_arrays"}
"""Data sets read from the user's files → `module:function` that reads them; their facts are settings."""


def raw_folder(dataset: str, path: str | None) -> Path:
    """Place of the raw files: `path`, or raw/<dataset> in the project; stacks use the files of their images."""
    stacks = DATASETS[dataset].stacks if dataset in DATASETS else None
    return Path(os.path.expanduser(path or f"raw/{stacks or dataset}"))


def missing_files(dataset: str, path: str | None, key: str = "data.path") -> str | None:
    """One line on the raw files that are missing; None: there are none, or they will be downloaded.

    Files are downloaded to the default folder only: a path that the user sets has to contain them.

    Args:
        key: key of the path in the experiment file.
    """
    where = raw_folder(dataset, path)
    found = found_at(where)
    if dataset == "folder" and found != "a folder":
        return f"{where}: expected a folder of pictures, found {found}; {key} names it"
    if dataset == "arrays" and found != "a file":
        return f"{where}: expected a file .npz, found {found}; {key} names it"
    raw = DATASETS[dataset].raw if dataset in DATASETS else None
    if raw is None or (raw.downloaded and path is None):
        return None
    inside = {name: found_at(where / name) for names in raw.alternatives for name in names}
    if any(all(inside[name] in ("a file", "a folder") for name in names) for names in raw.alternatives):
        return None
    closed = [f"{name}, {what}" for name, what in inside.items() if what not in ("a file", "a folder", "none")]
    found = closed[0] if closed else {"a folder": "other files", "none": "no such folder"}.get(found, found)
    offer = f"its owners offer it at {raw.url}, and {key} names another place"
    return f"{where}: expected {raw.description}; found {found}; {offer}"
