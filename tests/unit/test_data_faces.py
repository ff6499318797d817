"""CelebA, LSUN and CelebA-HQ from small files in their true formats, and errors for damaged files."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image
from tfrecord.writer import TFRecordWriter

import vaebm.system.torchvision_shim  # noqa: F401  before torchvision
from vaebm.data.download import torchvision_datasets
from vaebm.system.errors import UserError

import torchvision.transforms.v2 as transforms  # isort: skip

from raw_files import facts, md5, noise, photo, prepared


@pytest.fixture
def celeba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CelebA's list, and seven faces in a folder; the list does not have them in the order of the splits."""
    raw, known = tmp_path / "raw", torchvision_datasets().CelebA
    (raw / "img_align_celeba").mkdir(parents=True)
    for index in range(1, 8):
        photo(178, 218).save(raw / "img_align_celeba" / f"{index:06}.jpg", quality=95)
    (raw / "list_eval_partition.txt").write_text(
        "".join(f"{index:06}.jpg {part}\n" for index, part in enumerate([0, 1, 0, 2, 1, 0, 0], start=1))
    )
    changed = [
        (drive, md5(raw / name) if name == "list_eval_partition.txt" else sum_, name)
        for drive, sum_, name in known.file_list
    ]
    monkeypatch.setattr(known, "file_list", changed)
    return raw


@pytest.mark.parametrize("packed", [True, False])
def test_celeba_is_cropped_and_made_smaller_as_published(
    celeba: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes as torchvision's own crop and antialiased resize, because both use Pillow."""
    names = ["000001", "000003", "000006", "000007", "000002", "000005"]
    shape = transforms.Resize(64, interpolation=transforms.InterpolationMode.BILINEAR)
    expected = []
    for name in names:
        picture = Image.open(celeba / "img_align_celeba" / f"{name}.jpg")
        expected.append(np.asarray(shape(transforms.functional.crop(picture, top=40, left=15, height=148, width=148))))
    if packed:
        known = torchvision_datasets().CelebA
        with zipfile.ZipFile(celeba / "img_align_celeba.zip", "w") as archive:
            for path in (celeba / "img_align_celeba").iterdir():
                archive.write(path, f"img_align_celeba/{path.name}")
        (celeba / "img_align_celeba").rename(celeba.parent / "elsewhere")
        changed = [
            (drive, md5(celeba / name) if name.endswith(".zip") else sum_, name)
            for drive, sum_, name in known.file_list
        ]
        monkeypatch.setattr(known, "file_list", changed)
    images = prepared("celeba64", celeba)
    assert images.splits == {"train": (0, 4), "heldout": (4, 6)}
    assert np.array_equal(images.images, expected)


def test_every_unsuitable_face_is_named(celeba: Path) -> None:
    """Cut off, missing, of another size: three of six."""
    faces = celeba / "img_align_celeba"
    (faces / "000003.jpg").write_bytes((faces / "000003.jpg").read_bytes()[:-900])
    (faces / "000006.jpg").unlink()
    photo(178, 178).save(faces / "000002.jpg")
    with pytest.raises(UserError) as error:
        prepared("celeba64", celeba)
    assert "\n" not in str(error.value)
    for part in (
        "000003.jpg: expected a whole picture",
        "000006.jpg: list_eval_partition.txt names it",
        "found 178×178",
        "of 6 pictures 3 cannot be used",
    ):
        assert part in str(error.value)
    assert not (celeba.parent / "prepared" / "manifest.json").exists()


def test_a_list_cannot_lead_out_of_the_folder(celeba: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, known = celeba / "list_eval_partition.txt", torchvision_datasets().CelebA
    path.write_text("../../secret.jpg 0\n")
    monkeypatch.setattr(
        known,
        "file_list",
        [(drive, md5(path) if name == path.name else sum_, name) for drive, sum_, name in known.file_list],
    )
    with pytest.raises(UserError, match=r"list_eval_partition.txt:1: expected the name of a file and 0, 1 or 2"):
        prepared("celeba64", celeba)


def write_lmdb(folder: Path, values: dict[bytes, bytes]) -> None:
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 22) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)


def encoded(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def test_lsun_is_the_centre_of_the_picture_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against torchvision's Resize and CenterCrop: the same bytes. The files are as they were, their locks too."""
    raw, sizes = tmp_path / "raw", [(90, 70), (64, 100), (71, 256), (64, 64)]
    pictures = [photo(*size) for size in sizes]
    write_lmdb(
        raw / "church_outdoor_train_lmdb",
        {f"{index:040x}".encode(): encoded(picture, "webp") for index, picture in enumerate(pictures[:3])},
    )
    write_lmdb(raw / "church_outdoor_val_lmdb", {b"a": encoded(pictures[3], "png")})
    before = {path: path.read_bytes() for path in raw.rglob("*.mdb")}
    facts(monkeypatch, "lsun_church64", train=3, heldout=1)
    images = prepared("lsun_church64", raw)
    decoded = [Image.open(io.BytesIO(encoded(picture, "webp"))).convert("RGB") for picture in pictures[:3]] + [
        pictures[3]
    ]
    shape = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(64)])
    assert np.array_equal(images.images, [np.asarray(shape(picture)) for picture in decoded])
    assert images.split("heldout")[0].shape == (1, 3, 64, 64)
    assert {path: path.read_bytes() for path in raw.rglob("*.mdb")} == before


def test_an_incomplete_database_is_refused(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_lmdb(tmp_path / "raw" / f"church_outdoor_{part}_lmdb", {b"a": b"b"})
    with pytest.raises(
        UserError, match=r"church_outdoor_train_lmdb: expected 126,227 pictures \(train\), found 1; get it anew"
    ):
        prepared("lsun_church64", tmp_path / "raw")


HQ = noise(4, 256, 256, 3)


def hq_files(raw: Path) -> None:
    for index, image in enumerate(HQ):
        path = raw / ("train" if index < 3 else "validation") / f"{index:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, compress_level=0)


def hq_lmdb(raw: Path) -> None:
    """The order is that of the numbers, not that of the text, in which 10 and 100 come before 9."""
    write_lmdb(raw / "train.lmdb", {b"9": HQ[0].tobytes(), b"10": HQ[1].tobytes(), b"100": HQ[2].tobytes()})
    write_lmdb(raw / "validation.lmdb", {b"0": HQ[3].tobytes()})


def hq_records(raw: Path) -> None:
    """Both orders of the axes, two files for one split; other resolutions stand beside."""
    for split, files in {"train": [HQ[:2], HQ[2:3]], "validation": [HQ[3:]]}.items():
        (raw / split).mkdir(parents=True)
        (raw / split / f"{split}-r07-s-0000-of-0001.tfrecords").write_bytes(b"another resolution")
        for number, images in enumerate(files):
            writer = TFRecordWriter(str(raw / split / f"{split}-r08-s-{number:04}-of-{len(files):04}.tfrecords"))
            for image in [images[0], *(image.transpose(2, 0, 1) for image in images[1:])]:
                writer.write({"shape": (image.shape, "int"), "data": (image.tobytes(), "byte"), "label": (0, "int")})
            writer.close()


@pytest.mark.parametrize("write", [hq_files, hq_lmdb, hq_records])
def test_celebahq_in_each_of_its_layouts(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts(monkeypatch, "celebahq256", train=3, heldout=1)
    write(tmp_path / "raw")
    images = prepared("celebahq256", tmp_path / "raw")
    assert np.array_equal(images.images, HQ) and images.splits == {"train": (0, 3), "heldout": (3, 4)}
    assert np.array_equal(images.split("heldout")[0][0].numpy(), HQ[3].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("at", "said"),
    [
        (5, "expected whole TFRecords, found damage at byte 0"),
        (100_000, "record at byte 0: expected a whole record, found another checksum"),
    ],
)
def test_a_damaged_record_is_refused(at: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts(monkeypatch, "celebahq256", train=3, heldout=1)
    hq_records(tmp_path / "raw")
    path = tmp_path / "raw" / "train" / "train-r08-s-0000-of-0002.tfrecords"
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        prepared("celebahq256", tmp_path / "raw")
