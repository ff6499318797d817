"""Arrays, prepared sets and paths as disks leave them: the right images, or one line that names what is wrong."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from commands import refused
from preparation import refusal, settings
from user_files import SIDE, noise

from vaebm.config.datasets import missing_files
from vaebm.data import open_images, prepare
from vaebm.evaluation import classifier
from vaebm.system.errors import UserError

DATA = Path(__file__).parent / "data"


# Arrays.
IMAGES, LABELS = noise(1, 20, SIDE, SIDE, 3), np.arange(20) % 4


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(path: Path, method: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


WHOLE = npy(IMAGES)


def with_header(old: bytes, new: bytes) -> bytes:
    """The images with another header of the same length."""
    assert old in WHOLE[:128]
    return WHOLE[:10] + WHOLE[10:128].replace(old, new)[:118] + WHOLE[128:]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no zip",
        WHOLE,
        WHOLE[:200],
        b"hello",
        with_header(b"(20, 8, 8, 3), }            ", b"(20000000000000, 8, 8, 3), }"),
        with_header(b"(20, 8, 8, 3), } ", b"(20, 8, 8, -3), }"),
        with_header(b"(20, 8, 8, 3)", b"(20, 8, 8, 3]"),
        with_header(b"'|u1', 'f", b"'''|u1 'f"),
        with_header(b"'|u1'", b"'|O' "),
        npy(np.zeros(20, [(f"field{number}", "u1") for number in range(2000)])),
    ],
    ids=range(11),
)
def test_any_damage_of_arrays_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    path.write_bytes(content)
    assert refusal(settings("arrays", path), tmp_path / "out").startswith(f"{path}: ")
    if content != WHOLE:
        npz(path, images=content, labels=npy(LABELS))
        assert refusal(settings("arrays", path), tmp_path / "out").startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["bad_header4", "encrypted_like", "raw_member", "text_member"])
def test_recorded_arrays_are_refused(name: str, tmp_path: Path) -> None:
    refusal(settings("arrays", DATA / f"{name}.npz"), tmp_path / "out")


def test_other_members_and_compressions_are_no_matter(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        path = npz(tmp_path / "mine.npz", method, images=WHOLE, labels=npy(LABELS), more=b"no array")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("README.txt", "mine")
        prepare(settings("arrays", path), tmp_path / "out")
        images = open_images(tmp_path / "out" / "manifest.json")
        assert sorted(image.tobytes() for image in images.images) == sorted(image.tobytes() for image in IMAGES)


def test_arrays_without_names_are_told_in_a_short_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", *[np.zeros((SIDE, SIDE, 3), np.uint8)] * 3000)
    line = refusal(settings("arrays", tmp_path / "mine.npz"), tmp_path / "out")
    assert "expected an array images, found arr_0, arr_1, arr_10 and 2,997 more" in line


def test_labels_with_gaps_make_no_large_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    np.savez(tmp_path / "mine.npz", images=noise(1, 60, SIDE, SIDE, 3), labels=np.array([0, 1, 2, 60000] * 15))
    prepare(settings("arrays", tmp_path / "mine.npz"), folder)
    chosen = "seed: 0\nclassifier: {channels: 2, epochs: 1, batch: 20, learning_rate: 1e-3}\n"
    (tmp_path / "classifier.yaml").write_text(chosen)
    drawn: list[tuple[np.ndarray, Path, np.ndarray]] = []
    monkeypatch.setattr(classifier.plots, "confusion", lambda *arguments: drawn.append(arguments))
    classifier.run(tmp_path / "classifier.yaml", folder / "manifest.json", tmp_path / "model.pt")
    ((counts, _, classes),) = drawn
    labels = open_images(folder / "manifest.json").split("heldout")[1].numpy()
    assert {0, 1, 2, 60000} <= set(classes.tolist()) and len(counts) == len(classes) < 20
    assert counts.sum(1).tolist() == [(labels == one).sum() for one in classes]
    monkeypatch.setattr(classifier, "MOST_IN_CONFUSION", 3)
    classifier.run(tmp_path / "classifier.yaml", folder / "manifest.json", tmp_path / "model.pt")
    assert len(drawn) == 1


# Prepared sets and paths.
@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A prepared set of arrays."""
    np.savez(tmp_path / "mine.npz", images=IMAGES, labels=LABELS)
    prepare(settings("arrays", tmp_path / "mine.npz"), tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("key", ["dataset", "images", "shape", "splits", "source", "sha256"])
def test_manifest_without_a_key_is_one_line(key: str, made: Path) -> None:
    manifest = made / "manifest.json"
    content = json.loads(manifest.read_text())
    others = [None, 3, "a" * 10_000, [], {}] if key not in ("dataset", "source") else [None]
    for other in others:
        changed = {name: value for name, value in content.items() if name != key}
        manifest.write_text(json.dumps(changed if other is None else changed | {key: other}))
        with pytest.raises(UserError, match=r"manifest.json: |images.npy: ") as error:
            open_images(manifest)
        assert "\n" not in str(error.value) and len(str(error.value)) <= 1000


@pytest.mark.parametrize("content", [b"", b"no array", WHOLE[:50], b"\x93NUMPY\1\0v\0" + b"'" * 118, WHOLE[:-9]])
def test_damaged_images_are_one_line(content: bytes, made: Path) -> None:
    (made / "images.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"images.npy: expected \(20, 8, 8, 3\) uint8, found a file"):
        open_images(made / "manifest.json")
    shutil.copy(made.parent / "mine.npz", made / "images.npy")
    with pytest.raises(UserError, match=r"images.npy: expected \(20, 8, 8, 3\) uint8, found a file"):
        open_images(made / "manifest.json")


@pytest.mark.parametrize("dataset", ["folder", "arrays", "mnist", "celeba64", "lsun_church64", "celebahq256"])
def test_paths_that_cannot_be_entered_are_one_line(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions do not stop the administrator, who may run the tests."""
    for path in ("a" * 300, str(tmp_path / "nowhere"), "/dev/null", "a\0b", "~nobody-here/x"):
        line = missing_files(dataset, path)
        assert line is not None and "\n" not in line and len(line) < 1500, path
    (tmp_path / "closed").mkdir()
    stat = Path.stat

    def refused(path: Path, **options: bool) -> os.stat_result:
        if "closed" in path.parts[:-1]:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refused)
    assert "Permission denied" in str(missing_files(dataset, str(tmp_path / "closed" / "inner")))
    if dataset not in ("folder", "arrays"):
        assert "Permission denied" in str(missing_files(dataset, str(tmp_path / "closed")))


def test_preparation_in_an_impossible_place_is_one_line(tmp_path: Path) -> None:
    for folder in ("a" * 300, "/dev/null/x"):
        assert "cannot be " in refused("data", "digits", "--folder", folder, folder=tmp_path)
    assert "unknown data set" in refused("data", "x" * 5000, "--folder", "out", folder=tmp_path)
