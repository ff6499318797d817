"""What held-out images are told from: sets of their own form, without a mark of how they were made."""

from dataclasses import replace
from fractions import Fraction
from hashlib import sha256
from math import gcd

import numpy as np
import pytest

from vaebm.config import DataSettings
from vaebm.data import open_images, write_images
from vaebm.data.digits import counts_to_grey, grey_to_counts, prepare_digits, reduce_to_digits
from vaebm.data.prepared import ImageSet
from vaebm.evaluation import ood
from vaebm.evaluation.detection import separations
from vaebm.records.results import OODSource
from vaebm.system.errors import UserError

INK_LEVELS = set(counts_to_grey(np.arange(17)))


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def image_set(images, name="mine", train=0):
    """A data set as it is open."""
    splits = {"train": (0, train), "heldout": (train, len(images))}
    return ImageSet(name, images, np.zeros(len(images), np.int64), splits, "hash", False)


def prepared(folder, images, name, train=0):
    """The manifest of a prepared set of these images."""
    splits = {"train": (0, train), "heldout": (train, len(images))}
    write_images(folder / name, name, images, np.zeros(len(images), np.int64), splits, {})
    return folder / name / "manifest.json"


def own(name, side, channels=3):
    return DataSettings(dataset="arrays", name=name, side=side, channels=channels, heldout=0.5)


def pictures(made):
    """(N, H, W, C) of a set."""
    return made[0].permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def digits():
    images, labels, splits, _ = prepare_digits()
    return ImageSet("digits", images, labels, splits, "hash", False)


@pytest.mark.parametrize("name", sorted(ood.SETS))
def test_every_set_of_digits_has_their_count_form_and_levels(digits, name):
    made = ood.make_ood_set(name, None, digits, {})
    assert pictures(made).shape == digits.view("heldout").shape and made[0].is_contiguous()
    assert made[1] == OODSource(images=297)
    assert set(np.unique(made[0])) <= INK_LEVELS, "the same 17 levels, or the levels would tell them apart"
    again = ood.make_ood_set(name, None, digits, {})
    assert np.array_equal(made[0], again[0]), "a function of the digits alone"


@pytest.mark.parametrize("name", ["digits", "mine"])
def test_interpolations_are_unbiased_means_of_two_different_images(digits, name):
    """Digits in 17 levels, other images (1,000 of 5×5 in colour) in 256; bounds: 4 standard errors of a fair coin."""
    images = digits.view("heldout") if name == "digits" else noise(0, 1000, 5, 5, 3)
    to_levels = grey_to_counts if name == "digits" else lambda found: found.astype(np.int64)
    made = ood.make_ood_set("interpolation", None, image_set(images, name), {})
    mixed, levels = to_levels(pictures(made)), to_levels(images)
    partners = (np.arange(len(images)) + len(images) // 3) % len(images)
    assert len({frozenset(pair) for pair in enumerate(partners.tolist())}) == len(images)
    exact = (levels + levels[partners]) / 2
    assert np.abs(mixed - exact).max() == 0.5, "to the nearest level"
    odd = exact % 1 == 0.5
    error = 4 * 0.5 / np.sqrt(odd.sum())
    assert abs((mixed - exact)[odd].mean()) < error, "the mean brightness stays"
    assert abs((mixed[odd] % 2 == 0).mean() - 0.5) < error, "and so does the share of even levels"
    ups = (mixed - exact)[odd]
    assert abs((ups[1:] == ups[:-1]).mean() - 0.5) < error, "one bit a value: neighbours do not share it"


def test_memory_is_bounded_without_changing_anything(digits, monkeypatch):
    images, large = image_set(noise(1, 30, 6, 6, 3)), noise(2, 30, 9, 9, 3)
    whole = [pictures(ood.make_ood_set("interpolation", None, images, {})), ood.area_resample(large, 6, "mine")]
    monkeypatch.setattr(ood, "VALUES_PER_BLOCK", 4 * 108)
    again = [pictures(ood.make_ood_set("interpolation", None, images, {})), ood.area_resample(large, 6, "mine")]
    assert all(np.array_equal(one, other) for one, other in zip(whole, again, strict=True))


def test_turned_images_are_turned_by_180_degrees(digits):
    for images in (digits, image_set(noise(0, 5, 6, 6, 3))):
        found = pictures(ood.make_ood_set("turned", None, images, {}))
        assert np.array_equal(np.rot90(found, 2, axes=(1, 2)), images.view("heldout"))
        assert not np.array_equal(found, images.view("heldout"))


def test_photographs_are_different_patches_brought_to_size_like_the_digits(digits):
    """Every patch is found again: 4×4 block means of a 32×32 crop of one of the two photographs."""
    found = pictures(ood.make_ood_set("photographs", None, digits, {}))
    assert len({picture.tobytes() for picture in found}) == len(found)
    from sklearn.datasets import load_sample_images

    grey = [np.asarray(photo, dtype=np.float64) @ (0.299, 0.587, 0.114) for photo in load_sample_images().images]
    for picture in found[[0, 1, 200]]:
        distances = []
        for photo in grey:
            sums = np.pad(photo.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
            means = (sums[4:, 4:] - sums[4:, :-4] - sums[:-4, 4:] + sums[:-4, :-4]) / 16 / 255 * 16
            rows, columns = photo.shape[0] - 31, photo.shape[1] - 31
            blocks = np.stack(
                [means[4 * r : 4 * r + rows, 4 * c : 4 * c + columns] for r in range(8) for c in range(8)]
            )
            distances.append(np.abs(blocks - grey_to_counts(picture[..., 0]).reshape(64, 1, 1)).max(axis=0).min())
        assert min(distances) <= 0.5 + 16 / 255, "nearest level, and at most one grey level lost by integer grey"
    with pytest.raises(UserError, match="made for digits alone, found mine"):
        ood.make_ood_set("photographs", None, replace(digits, name="mine"), {})


def area_mean(image, side):
    """The mean of the image (T, T) over each of side×side equal areas, in fractions, pixel by pixel."""
    size = len(image)

    def share(cell, pixel):
        return (
            max(
                Fraction(0),
                min(Fraction(cell + 1, side), Fraction(pixel + 1, size))
                - max(Fraction(cell, side), Fraction(pixel, size)),
            )
            * side
        )

    weights = [[share(cell, pixel) for pixel in range(size)] for cell in range(side)]
    return [
        [
            sum(weights[row][i] * weights[column][j] * int(image[i, j]) for i in range(size) for j in range(size))
            for column in range(side)
        ]
        for row in range(side)
    ]


@pytest.mark.parametrize(("size", "side"), [(8, 4), (9, 3), (6, 4), (7, 5), (10, 4)])
def test_larger_images_become_means_over_areas(size, side):
    images = noise(3, 6, size, size, 3)
    made = ood.area_resample(images, side, "mine")
    exact = np.array([[area_mean(image[..., channel], side) for channel in range(3)] for image in images]).transpose(
        0, 2, 3, 1
    )
    distance = np.abs(made.astype(int) - exact)
    assert made.dtype == np.uint8 and distance.max() <= Fraction(1, 2)
    ties = distance == Fraction(1, 2)
    assert size // gcd(size, side) % 2 == 1 or 0 < (made[ties] > exact[ties]).sum() < ties.sum(), "halves go up or down"


def test_digits_are_told_from_images_of_their_own_levels():
    """Made smaller as scans of digits were, but for halves, which their reduction always rounds up."""
    large = noise(4, 50, 32, 32, 1)
    made, scanned = ood.area_resample(large, 8, "digits"), reduce_to_digits(large[..., 0])[..., None]
    assert set(np.unique(made)) <= INK_LEVELS
    halves = (large.astype(int).reshape(50, 8, 4, 8, 4, 1).sum(axis=(2, 4)) * 32) % (2 * 255 * 16) == 255 * 16
    assert np.array_equal(made[~halves], scanned[~halves])
    small = noise(5, 50, 8, 8, 1)
    resampled = ood.area_resample(small, 8, "digits")
    assert np.array_equal(resampled, counts_to_grey(grey_to_counts(small))), "also at the same size"


def sharpness(images):
    """Minus the mean squared difference of neighbouring pixels, which detects resizing."""
    floats = images.astype(np.float64)
    return -(
        np.square(np.diff(floats, axis=1)).mean(axis=(1, 2, 3))
        + np.square(np.diff(floats, axis=2)).mean(axis=(1, 2, 3))
    )


def test_size_alone_does_not_tell_images_apart(tmp_path):
    """Two halves of the same images, one at twice the size, by a score that sees only detail.

    Enlargement by repeated pixels is undone exactly. Photographed at twice the size, the AUROC of 400 against 400 is
    0.5 within four standard errors (√((2n+1)/12n²) = 0.0204). A softening enlargement (Pillow's bilinear filter) stays
    visible.
    """
    from PIL import Image

    scenes = noise(6, 800, 32, 32, 3)
    photos = scenes.astype(np.float64).cumsum(1).cumsum(2)  # detail at every scale
    photos = (
        255 * (photos - photos.min((1, 2), keepdims=True)) / np.ptp(photos, axis=(1, 2), keepdims=True) * 0.5
        + scenes * 0.5
    ).astype(np.uint8)
    small = ood.area_resample(photos, 16, "mine")
    inside, other = image_set(small[:400], "inside"), small[400:]
    enlarged = {
        "repeated": other.repeat(2, axis=1).repeat(2, axis=2),
        "photographed": photos[400:],
        "softened": np.stack(
            [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in other]
        ),
    }
    manifests = {name: prepared(tmp_path, images, name) for name, images in enlarged.items()}
    made = {name: pictures(ood.make_ood_set(name, own(name, 32), inside, manifests)) for name in enlarged}
    assert np.array_equal(made["repeated"], other)
    areas = {name: separations(sharpness(small[:400]), sharpness(found))["AUROC"] for name, found in made.items()}
    assert abs(areas["repeated"] - 0.5) < 4 * 0.0204 and abs(areas["photographed"] - 0.5) < 4 * 0.0204
    assert areas["softened"] < 0.05


def test_a_prepared_set_is_its_held_out_images_chosen_by_hash(tmp_path):
    """At most as many as held-out images of the experiment, in their order; training images are not used."""
    images = noise(7, 50, 4, 4, 3)
    manifest = prepared(tmp_path, images, "other", train=10)
    inside = image_set(noise(8, 30, 4, 4, 3), train=10)
    made = ood.make_ood_set("other", own("other", 4), inside, {"other": manifest})
    smallest = sorted(range(10, 50), key=lambda index: sha256(images[index].tobytes()).digest())[:20]
    assert np.array_equal(pictures(made), images[sorted(smallest)])
    assert made[1] == OODSource(images=len(made[0]), data=open_images(manifest).hash, heldout=40, side=4, users=False)
    fewer = ood.make_ood_set("other", own("other", 4), image_set(noise(8, 90, 4, 4, 3)), {"other": manifest})
    assert np.array_equal(pictures(fewer), images[10:])


@pytest.mark.parametrize("shape", [(20, 4, 4, 1), (20, 3, 3, 3), (1, 4, 4, 3)])
def test_sets_of_another_form_are_refused(tmp_path, shape):
    """Grey beside colour, images that would have to be enlarged, and a lone image."""
    manifest = prepared(tmp_path, noise(9, *shape), "other")
    with pytest.raises(
        UserError, match="expected at least 2 held-out images of 4×4×3 or larger ones, found .* of .×.×."
    ):
        ood.make_ood_set("other", own("other", 4), image_set(noise(8, 30, 4, 4, 3)), {"other": manifest})


def test_what_is_lacking_is_named(tmp_path):
    with pytest.raises(UserError, match="ood: other: expected --ood data/other/manifest.json, found none"):
        ood.make_ood_set("other", own("other", 4), image_set(noise(8, 30, 4, 4, 3)), {})
    with pytest.raises(UserError, match="expected at least 2 held-out images, found 1"):
        ood.make_ood_set("turned", None, image_set(noise(8, 1, 4, 4, 3)), {})
