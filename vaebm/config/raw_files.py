"""The raw files of each data set: which they are, where they stand, and where the data's owners offer them.

Nothing here opens a picture: Snakemake asks it before anything starts whether the files are there.
"""

from __future__ import annotations

import os.path
from pathlib import Path
from typing import NamedTuple


class Layout(NamedTuple):
    """What a folder of raw files has to hold."""

    files: tuple[tuple[str, ...], ...]
    """Alternatives; of one of them every name has to be there, a file or a folder."""
    words: str
    """The same for the reader of an error."""
    offered: str
    """Where the data's owners offer them."""
    fetched: bool = False
    """Whether torchvision's downloader gets them into the default place."""


_MNIST = Layout(
    (
        (
            "train-images-idx3-ubyte.gz",
            "train-labels-idx1-ubyte.gz",
            "t10k-images-idx3-ubyte.gz",
            "t10k-labels-idx1-ubyte.gz",
        ),
    ),
    "the four files train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz",
    "http://yann.lecun.com/exdb/mnist/",
    fetched=True,
)

LAYOUTS = {
    "mnist": _MNIST,
    "stacked_mnist": _MNIST,
    "cifar10": Layout(
        (("cifar-10-python.tar.gz",), ("cifar-10-batches-py",)),
        "cifar-10-python.tar.gz, or the folder cifar-10-batches-py that is in it",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        fetched=True,
    ),
    "cifar100": Layout(
        (("cifar-100-python.tar.gz",), ("cifar-100-python",)),
        "cifar-100-python.tar.gz, or the folder cifar-100-python that is in it",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        fetched=True,
    ),
    "svhn": Layout(
        (("train_32x32.mat", "test_32x32.mat"),),
        "train_32x32.mat and test_32x32.mat",
        "http://ufldl.stanford.edu/housenumbers/",
        fetched=True,
    ),
    "celeba64": Layout(
        (("img_align_celeba.zip", "list_eval_partition.txt"), ("img_align_celeba", "list_eval_partition.txt")),
        "list_eval_partition.txt beside img_align_celeba.zip, or beside the folder img_align_celeba of its 202,599 JPEG files (178×218)",
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
        fetched=True,
    ),
    "lsun_church64": Layout(
        (("church_outdoor_train_lmdb", "church_outdoor_val_lmdb"),),
        "the folders church_outdoor_train_lmdb and church_outdoor_val_lmdb, each an LMDB with its data.mdb",
        "https://github.com/fyu/lsun",
    ),
    "celebahq256": Layout(
        (("train.lmdb", "validation.lmdb"), ("train", "validation")),
        "the folders train and validation of PNG or JPEG files or of *-r08-*.tfrecords (features shape and data), or train.lmdb and "
        "validation.lmdb (256×256×3 raw RGB bytes under the keys 0, 1, …); 27,000 and 3,000 images",
        "https://github.com/tkarras/progressive_growing_of_gans",
    ),
}
"""Data sets that are read from files of their owners."""

USER_SETS = ("folder", "arrays")
"""Data sets that are read from files of the user's."""


SAME_FILES = {"stacked_mnist": "mnist"}
"""Data sets made of another one's raw files."""


def place(dataset: str, path: str | None) -> Path:
    """Where the raw files of a data set stand: `path`, or raw/<dataset> of the project; stacks are made of the files of their images."""
    return Path(os.path.expanduser(path or f"raw/{SAME_FILES.get(dataset, dataset)}"))


def absent(dataset: str, path: str | None, key: str = "data.path") -> str | None:
    """In one line what of a data set's raw files is not there; None: nothing is missing, or it will be fetched.

    What is fetched goes to the default place only: a path that the user gives has to hold the files.

    Args:
        key: what names the place in the experiment file.
    """
    where = place(dataset, path)
    if dataset == "folder":
        return (
            None
            if where.is_dir()
            else f"{where}: expected a folder of pictures, found {'a file' if where.exists() else 'none'}; {key} names it"
        )
    if dataset == "arrays":
        return (
            None
            if where.is_file()
            else f"{where}: expected a file .npz, found {'a folder' if where.exists() else 'none'}; {key} names it"
        )
    layout = LAYOUTS.get(dataset)
    if (
        layout is None
        or (layout.fetched and path is None)
        or any(all((where / name).exists() for name in names) for names in layout.files)
    ):
        return None
    found = "other files" if where.is_dir() else "no such folder"
    return f"{where}: expected {layout.words}; found {found}; its owners offer it at {layout.offered}, and {key} names another place"
