"""A user's own arrays: how they are split, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from user_files import SIDE, noise

from vaebm.config import DataSettings
from vaebm.config.yaml_files import validate
from vaebm.data import open_images, prepare
from vaebm.system.errors import UserError


def settings(dataset: str, path: Path, **more: object) -> DataSettings:
    about = {"side": SIDE, "channels": 3, "heldout": 0.25} if dataset == "folder" else {"side": SIDE, "channels": 3}
    return validate(DataSettings, {"dataset": dataset, "path": str(path), **about, **more}, "data")


def arrays(path: Path, **named: np.ndarray) -> Path:
    np.savez_compressed(path, **named)
    return path


IMAGES = noise(7, 20, SIDE, SIDE, 3)


LABELS = np.arange(20) % 4


def test_arrays_are_split_by_their_bytes(tmp_path: Path) -> None:
    path = arrays(tmp_path / "mine.npz", images=IMAGES, labels=LABELS)
    prepare(settings("arrays", path, heldout=0.2, name="mine"), tmp_path / "out")
    images = open_images(tmp_path / "out" / "manifest.json")
    assert images.name == "mine" and images.users and images.splits == {"train": (0, 16), "heldout": (16, 20)}
    known = {image.tobytes(): label for image, label in zip(IMAGES, LABELS, strict=True)}
    assert {image.tobytes(): label for image, label in zip(images.images, images.labels, strict=True)} == known
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["source"] == {
        "user's files": {"sha256": digest}
    }


def test_arrays_with_images_of_their_own_to_hold_out(tmp_path: Path) -> None:
    path = arrays(
        tmp_path / "mine.npz",
        images=IMAGES[:15],
        labels=LABELS[:15],
        heldout_images=IMAGES[15:],
        heldout_labels=LABELS[15:],
    )
    prepare(settings("arrays", path), tmp_path / "out")
    images = open_images(tmp_path / "out" / "manifest.json")
    assert (
        np.array_equal(images.images, IMAGES)
        and np.array_equal(images.labels, LABELS)
        and images.splits["heldout"] == (15, 20)
    )
    with pytest.raises(
        UserError,
        match="has images of its own to hold out .heldout_images, heldout_labels.; leave the setting data.heldout out",
    ):
        prepare(settings("arrays", path, heldout=0.2), tmp_path / "out")


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (
            {"images": IMAGES.transpose(0, 3, 1, 2), "labels": LABELS},
            r"images: expected \(N, 8, 8, 3\) uint8 .*, found \(20, 3, 8, 8\) uint8",
        ),
        ({"images": IMAGES / 255, "labels": LABELS}, r"images: expected .*, found \(20, 8, 8, 3\) float64"),
        (
            {"images": IMAGES, "labels": LABELS[1:]},
            r"labels: expected \(20\) integers from 0 to 65,535, found \(19\) int64",
        ),
        ({"images": IMAGES, "labels": LABELS - 1}, r"labels: expected \(20\) integers from 0"),
        (
            {"images": IMAGES, "labels": np.full(20, 1 << 63, np.uint64)},
            r"labels: expected .* to 65,535, found \(20\) uint64 from 9223372036854775808",
        ),
        (
            {"images": IMAGES, "labels": LABELS + 65_533},
            r"labels: expected .* to 65,535, found \(20\) int64 from 65533 to 65536",
        ),
        ({"images": IMAGES}, "expected an array labels, found images"),
        ({"images": IMAGES, "labels": LABELS, "heldout_images": IMAGES}, "expected an array heldout_labels"),
        ({"images": IMAGES, "labels": LABELS}, "expected data.heldout, the fraction"),
        (
            {"images": np.array([None]), "labels": LABELS},
            "expected a file .npz with the arrays images and labels, found something unreadable",
        ),
    ],
)
def test_arrays_of_another_form_are_refused(named: dict[str, np.ndarray], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"mine.npz: .*{said}") as error:
        prepare(settings("arrays", arrays(tmp_path / "mine.npz", **named)), tmp_path / "out")
    assert "\n" not in str(error.value)


def test_a_damaged_file_of_arrays_is_refused(tmp_path: Path) -> None:
    path = arrays(tmp_path / "mine.npz", images=IMAGES, labels=LABELS)
    content = path.read_bytes()
    for damaged in (content[:1000], b"text", content[:300] + b"\0" * 50 + content[350:]):
        path.write_bytes(damaged)
        with pytest.raises(
            UserError,
            match="mine.npz: expected a file .npz with the arrays images and labels, found something unreadable",
        ):
            prepare(settings("arrays", path, heldout=0.2), tmp_path / "out")


def test_a_lone_array_is_no_file_of_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "lone.npy", IMAGES)
    path = (tmp_path / "lone.npy").rename(tmp_path / "lone.npz")
    with pytest.raises(UserError, match="lone.npz: expected a file .npz with the arrays images and labels"):
        prepare(settings("arrays", path, heldout=0.2), tmp_path / "out")


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    arrays(tmp_path / "mine.npz", images=IMAGES, labels=LABELS)
    prepare(settings("arrays", Path("~/mine.npz"), heldout=0.2), tmp_path / "out")
    assert open_images(tmp_path / "out" / "manifest.json").images.shape == (20, SIDE, SIDE, 3)
