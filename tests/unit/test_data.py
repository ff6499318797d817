"""Prepared data: the digits, the manifest, and what is said of damaged files."""

import json
from collections import Counter
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml

from vaebm import config
from vaebm.cli.pin import folder_hash
from vaebm.config.datasets import USER_SETS
from vaebm.data import open_images, prepare
from vaebm.data.digits import counts_to_grey, grey_to_counts, reduce_to_digits
from vaebm.data.stacked import stack
from vaebm.system.errors import UserError


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    prepare("digits", tmp_path)
    return tmp_path / "manifest.json"


def test_registered_functions_exist() -> None:
    registered = [facts.prepare for facts in config.DATASETS.values()] + [*USER_SETS.values()]
    for module, _, name in (one.partition(":") for one in registered):
        assert callable(getattr(import_module(module), name))


@pytest.mark.parametrize("name", [name for name, facts in config.DATASETS.items() if facts.raw is None])
def test_facts_known_without_torch_are_those_of_the_images(name: str, tmp_path: Path) -> None:
    prepare(name, tmp_path)
    images, facts = open_images(tmp_path / "manifest.json"), config.DATASETS[name]
    assert images.shape == (facts.channels, facts.side, facts.side)
    assert {name: last - first for name, (first, last) in images.splits.items()} == {
        "train": facts.train,
        "heldout": facts.heldout,
    }


def test_stacks_have_each_image_equally_often_in_each_channel_and_never_one_of_the_other_split(digits: Path) -> None:
    single = open_images(digits)
    images, labels, splits, _ = stack(
        (np.asarray(single.images), np.asarray(single.labels), single.splits, {}), repeats=2
    )
    known = {image.tobytes(): int(label) for image, label in zip(single.images, single.labels, strict=True)}
    assert len(known) == len(single.images)
    for split, (first, last) in splits.items():
        expected = Counter({single.images[index].tobytes(): 2 for index in range(*single.splits[split])})
        for channel in range(3):
            assert Counter(image[..., channel].tobytes() for image in images[first:last]) == expected
    assert all(
        label == sum(known[image[..., c].tobytes()] * 10 ** (2 - c) for c in range(3))
        for image, label in zip(images, labels, strict=True)
    )


def test_the_channels_of_stacks_are_independent(tmp_path: Path) -> None:
    prepare("stacked_digits", tmp_path)
    images = open_images(tmp_path / "manifest.json")
    labels = images.labels[slice(*images.splits["train"])]
    table = np.zeros((10, 10, 10))
    np.add.at(table, (labels // 100, labels // 10 % 10, labels % 10), 1)
    frequencies = table.sum((1, 2)) / len(labels)
    expected = len(labels) * np.einsum("i,j,k->ijk", frequencies, frequencies, frequencies)
    # independent channels with given frequencies: 1000 − 1 − 3·9 degrees of freedom, standard deviation √(2·972) = 44
    assert abs(((table - expected) ** 2 / expected).sum() - 972) < 4 * 44


def test_digits_are_split_once_and_complete(digits: Path) -> None:
    from sklearn.datasets import load_digits

    images = open_images(digits)
    assert images.shape == (1, 8, 8) and images.splits == {"train": (0, 1500), "heldout": (1500, 1797)}
    everything = sorted(
        (grey_to_counts(image[..., 0]).tobytes(), int(label))
        for image, label in zip(images.images, images.labels, strict=True)
    )
    raw = load_digits()
    assert everything == sorted(
        (image.astype(np.int64).tobytes(), int(label)) for image, label in zip(raw.images, raw.target, strict=True)
    )
    assert images.split("heldout")[0].shape == (297, 1, 8, 8)


def test_preparation_gives_the_same_bytes_again(digits: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in digits.parent.iterdir()}
    prepare("digits", tmp_path)
    assert {path.name: path.read_bytes() for path in digits.parent.iterdir()} == before


def test_the_bytes_are_those_that_are_pinned(tmp_path: Path) -> None:
    """A preparation on this machine has the hashes that data.dvc names."""
    pins = yaml.safe_load((Path(__file__).parents[2] / "data.dvc").read_text())["outs"]
    assert {out["path"] for out in pins} == {"data/digits", "data/stacked_digits"}
    for out in pins:
        folder = tmp_path / out["path"]
        prepare(folder.name, folder)
        assert folder_hash(folder) == out["md5"]


def test_grey_levels_and_counts_are_inverse() -> None:
    counts = np.arange(17)
    assert counts_to_grey(counts).tolist()[::16] == [0, 255]
    assert np.array_equal(grey_to_counts(counts_to_grey(counts)), counts)


def test_reduction_makes_digits_of_bitmaps() -> None:
    """A bitmap of zeros and ones counts its ink in 4×4 blocks, as the digits were made."""
    bitmap = np.random.RandomState(0).randint(0, 2, (3, 32, 32))
    expected = bitmap.reshape(3, 8, 4, 8, 4).sum((2, 4))
    assert np.array_equal(grey_to_counts(reduce_to_digits((bitmap * 255).astype(np.uint8))), expected)


def test_unknown_data_set(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="unknown data set 'digitz'; data sets that exist: arrays, celeba64, .*, digits"
    ):
        prepare("digitz", tmp_path)


def damage_bytes(folder: Path) -> str:
    path = folder / "images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return "expected the bytes that manifest.json names"


def cut(folder: Path) -> str:
    path = folder / "images.npy"
    path.write_bytes(path.read_bytes()[:1000])
    return r"images.npy: expected \(1797, 8, 8, 1\) uint8, found a file that is not a whole"


def other_form(folder: Path) -> str:
    np.save(folder / "images.npy", np.zeros((5, 8, 8)))
    return r"images.npy: expected \(1797, 8, 8, 1\) uint8, found \(5, 8, 8\) float64"


def missing(folder: Path) -> str:
    (folder / "labels.npy").unlink()
    return r"labels.npy: expected \(1797\) int64, found no file"


def broken_manifest(folder: Path) -> str:
    (folder / "manifest.json").write_text(json.dumps({"images": 3}))
    return "manifest.json: not a manifest"


def no_manifest(folder: Path) -> str:
    (folder / "manifest.json").unlink()
    return "manifest.json: expected the manifest of a prepared data set, found none"


@pytest.mark.parametrize("harm", [damage_bytes, cut, other_form, missing, broken_manifest, no_manifest])
def test_damage_is_named_in_one_line(digits: Path, harm) -> None:  # type: ignore[no-untyped-def]
    expected = harm(digits.parent)
    with pytest.raises(UserError, match=expected) as error:
        open_images(digits)
    assert "\n" not in str(error.value)
