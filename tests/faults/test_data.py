"""Pictures as file managers, downloads and disks leave them: the right images, or one line that names the mistake."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import signal
import sys
import time
import warnings
import zlib
from pathlib import Path

import lmdb
import numpy as np
import pytest
from commands import run
from PIL import Image
from preparation import refusal, settings
from raw_files import facts
from user_files import noise, saved

from vaebm.config import DataSettings
from vaebm.data import open_images, prepare
from vaebm.data.convert_large import LazyImages, write_lazy_images
from vaebm.data.lmdb_reader import Database
from vaebm.data.tfrecord import records
from vaebm.data.user_files import split_by_hash
from vaebm.system import child
from vaebm.system.errors import UserError

NOISE = np.random.RandomState(0).bytes(1 << 22)


# A crash of native code.
def crashing(folder: Path, how: str) -> LazyImages:
    """Pictures of which number 5 ends the process that reads it."""

    def read(name: str) -> tuple[np.ndarray, list[str]]:
        if name == "pictures/5.tif":
            time.sleep(0.2)
            os.kill(os.getpid(), getattr(signal, how))
            time.sleep(60)
        return np.zeros((8, 8, 1), np.uint8), []

    return LazyImages((8, 8, 1), {"train": [f"pictures/{number}.tif" for number in range(20)]}, {}, read)


@pytest.mark.parametrize("how", ["SIGSEGV", "SIGBUS", "SIGABRT", "SIGKILL"])
def test_crash_of_a_reader_is_one_line_that_names_the_file(how: str, tmp_path: Path, capfd: object) -> None:
    with pytest.raises(UserError, match=rf"pictures/5.tif: expected whole files, .* crashed \({how}") as error:
        child.contained(lambda: write_lazy_images(tmp_path, "mine", crashing(tmp_path, how), 1))
    assert "\n" not in str(error.value) and not (tmp_path / "manifest.json").exists()


def test_contained_work_has_its_output_its_errors_and_no_native_words(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", os.fdopen(os.dup(1), "w"))
    monkeypatch.setattr(sys, "stderr", os.fdopen(os.dup(2), "w"))

    def work() -> None:
        print("done")
        print("warned", file=sys.stderr)
        os.write(2, b"TIFFReadDirectory: no name\n")

    child.contained(work)
    assert capfd.readouterr() == ("done\n", "warned\n")

    def wrong() -> None:
        raise UserError("a: expected b")

    with pytest.raises(UserError, match="^a: expected b$"):
        child.contained(wrong)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        child.contained(lambda: print(1 // 0))


def test_child_ends_with_its_parent(tmp_path: Path) -> None:
    """Otherwise it would write the files of the next run."""
    program = "import os, signal, sys, time; from pathlib import Path; from vaebm.system.child import contained\n"
    program += "def work():\n    Path('child').write_text(str(os.getpid()))\n    time.sleep(60)\ncontained(work)"
    parent = os.spawnvpe(
        os.P_NOWAIT,
        sys.executable,
        [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r})\n{program}"],
        os.environ,
    )
    while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
        time.sleep(0.05)
    inner = int((tmp_path / "child").read_text())
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    for _ in range(100):
        if not Path(f"/proc/{inner}").exists() or ") Z " in Path(f"/proc/{inner}/stat").read_text():
            return
        time.sleep(0.05)
    raise AssertionError("the child lives on")


# LMDB files.
def picture(seed: int, width: int = 20, height: int = 16) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(seed, height, width, 3)).save(file, "PNG")
    return file.getvalue()


def church(raw: Path, images: int = 60) -> Path:
    for part, count in (("train", images), ("val", 3)):
        folder = raw / f"church_outdoor_{part}_lmdb"
        folder.mkdir(parents=True)
        with lmdb.open(str(folder), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
            for number in range(count):
                transaction.put(f"{number:040}".encode(), picture(number, 90, 70))
    return raw / "church_outdoor_train_lmdb" / "data.mdb"


@pytest.mark.parametrize("share", [0.95, 0.5, 0.1])
def test_lmdb_that_is_cut_off_is_one_line(share: float, tmp_path: Path) -> None:
    file = church(tmp_path / "raw")
    os.truncate(file, int(file.stat().st_size * share))
    with pytest.raises(UserError, match="train_lmdb/data.mdb: expected .* bytes, found .*: it is cut off") as error:
        Database(file.parent)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["zero half", "noise"])
def test_damaged_lmdb_is_one_line_whatever_it_does_to_its_reader(damage: str, tmp_path: Path) -> None:
    file = church(tmp_path / "raw" / "lsun_church64")
    content = bytearray(file.read_bytes())
    start = len(content) // 2 if damage == "zero half" else 8192
    content[start:] = bytes(len(content) - start) if damage == "zero half" else NOISE[: len(content) - start]
    file.write_bytes(content)
    program = "from vaebm import config; from vaebm.cli import main\n"
    program += (
        "config.DATASETS['lsun_church64'] = config.DATASETS['lsun_church64']._replace(train=60, heldout=3)\nmain()"
    )
    done = run("-c", program, "data", "lsun_church64", "--folder", "out", "--log", "log", folder=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "church_outdoor_train_lmdb" in done.stderr
    assert (tmp_path / "log").read_text() == done.stderr and not (tmp_path / "out" / "manifest.json").exists()


def test_what_is_no_lmdb_is_one_line(tmp_path: Path) -> None:
    file = church(tmp_path / "raw")
    whole = file.read_bytes()
    database = Database(file.parent)
    assert database.keys == [f"{number:040}".encode() for number in range(60)]
    assert database[database.keys[7]] == picture(7, 90, 70)
    for content in (b"", whole[:100], NOISE[:8192] + whole[8192:]):
        file.unlink()  # the file that is open stays as it is
        file.write_bytes(content)
        with pytest.raises(UserError, match="train_lmdb: expected an LMDB with its data.mdb"):
            Database(file.parent)
    file.unlink()
    with pytest.raises(UserError, match="train_lmdb: expected an LMDB with its data.mdb"):
        Database(file.parent)
    shutil.rmtree(file.parent)
    file.parent.write_bytes(whole)
    with pytest.raises(UserError, match="train_lmdb: expected an LMDB with its data.mdb"):
        Database(file.parent)


# CelebA-HQ.
def hq(raw: Path) -> None:
    for part, count in (("train", 2), ("validation", 1)):
        for number in range(count):
            saved(raw / part / f"{number:05}.png", Image.fromarray(noise(number, 256, 256, 3)))
            (raw / part / f"._{number:05}.png").write_bytes(b"\0\5\x16\7" * 32)
        (raw / part / ".DS_Store").touch()


def test_hidden_files_are_no_celebahq_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts(monkeypatch, "celebahq256", train=2, heldout=1)
    hq(tmp_path / "raw")
    prepare(DataSettings(dataset="celebahq256", path=str(tmp_path / "raw")), tmp_path / "out")
    images = open_images(tmp_path / "out" / "manifest.json")
    assert np.array_equal(images.images, [noise(number, 256, 256, 3) for number in (0, 1, 0)])


def test_mixed_layout_of_celebahq_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts(monkeypatch, "celebahq256", train=2, heldout=1)
    hq(tmp_path / "raw")
    data = DataSettings(dataset="celebahq256", path=str(tmp_path / "raw"))
    (tmp_path / "raw" / "validation").rename(tmp_path / "raw" / "validation.lmdb")
    assert "the folders train and validation" in refusal(data, tmp_path / "out")
    (tmp_path / "raw" / "train.lmdb").touch()  # both names of a layout, one of them a file
    (tmp_path / "raw" / "train").rename(tmp_path / "raw" / "elsewhere")
    assert f"{tmp_path / 'raw' / 'train'}: expected a folder" in refusal(data, tmp_path / "out")


def test_compressed_tfrecords_are_called_so(tmp_path: Path) -> None:
    path = tmp_path / "train-r08.tfrecords"
    for content in (gzip.compress(b"x" * 100), zlib.compress(b"x" * 100)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"train-r08.tfrecords: .* found compressed ones; unpack"):
            records(path)


# Folders of pictures.
@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight pictures in each of two classes."""
    for index in range(16):
        saved(tmp_path / "mine" / ("cat", "dog")[index % 2] / f"{index}.png", Image.fromarray(noise(index, 9, 9, 3)))
    return tmp_path / "mine"


def source(folder: Path) -> dict[str, object]:
    return json.loads((folder / "manifest.json").read_text())["source"]["user's files"]


def test_folders_of_systems_are_no_classes(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("@eaDir", "lost+found", "__MACOSX", "cat/@eaDir/0.png", "$RECYCLE.BIN/S-1", ".ipynb_checkpoints"):
        saved(pictures / folder / "x.png", Image.fromarray(noise(50, 9, 9, 3)))
    for name in (".DS_Store", "cat/.DS_Store", "cat/._0.png", "dog/Thumbs.db"):
        (pictures / name).touch()
    prepare(settings("folder", pictures), tmp_path / "out")
    found = source(tmp_path / "out")
    assert (found["pictures"], found["other files"], found["classes"]) == (16, 9, ["cat", "dog"])
    assert capsys.readouterr().out.endswith("; 2 classes: cat, dog\n")


def test_classes_of_any_suffix_that_is_read_are_there(pictures: Path, tmp_path: Path) -> None:
    kinds = {"jpe": "JPEG", "JPE": "JPEG", "pnm": "PPM", "apng": "PNG", "dib": "BMP", "pbm": "PPM"}
    for number, (suffix, kind) in enumerate(kinds.items()):
        image = Image.fromarray(noise(60 + number, 9, 9, 3))
        saved(pictures / suffix / f"0.{suffix}", image.convert("1") if suffix == "pbm" else image, format=kind)
    prepare(settings("folder", pictures), tmp_path / "out")
    assert source(tmp_path / "out")["classes"] == ["JPE", "apng", "cat", "dib", "dog", "jpe", "pbm", "pnm"]


def test_class_without_pictures_is_named(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "bird").mkdir()
    (pictures / "bird" / "a.xyz").touch()
    prepare(settings("folder", pictures), tmp_path / "out")
    assert "no pictures are in bird" in capsys.readouterr().out
    for suffix in ("heics", "hif", "j2k", "avifs", "tga"):
        (pictures / "bird" / f"a.{suffix}").write_bytes(b"x")
    assert "bird/a.avifs: expected a picture" in refusal(settings("folder", pictures), tmp_path / "again")


def test_parts_of_a_split_set_are_no_classes(pictures: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    for part in ("train", "Val"):
        shutil.copytree(pictures, whole / part)
    assert "is split already (Val, train)" in refusal(settings("folder", whole), tmp_path / "out")
    shutil.copytree(pictures, whole / "plane")  # a class called train
    prepare(settings("folder", whole), tmp_path / "out")
    assert source(tmp_path / "out")["classes"] == ["Val", "plane", "train"]


def test_warnings_of_pillow_are_not_shown(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """They do not say which file they are about; what matters is refused, or counted."""

    def read(number: int) -> tuple[np.ndarray, list[str]]:
        warnings.warn("Corrupt EXIF data", stacklevel=2)
        return np.zeros((8, 8, 1), np.uint8), []

    data = LazyImages((8, 8, 1), {"train": range(3)}, {}, read)
    write_lazy_images(tmp_path / "out", "mine", data, 2)
    assert not [warning for warning in recwarn if "EXIF" in str(warning.message)]


# What is held out.
def test_copies_of_one_image_are_not_the_held_out_part() -> None:
    hashes = ["00placeholder"] * 300 + [f"{number:05}" for number in range(700)]
    train, held = split_by_hash(hashes, 0.1, "mine")
    assert len(held) == 100 and len({hashes[number] for number in held}) == 100
    assert sorted(train + held) == [*range(1000)]
    assert not {hashes[number] for number in train} & {hashes[number] for number in held}
    hashes = ["00placeholder"] * 90 + [f"{number:05}" for number in range(910)]  # would fit, but be most of it
    assert len({hashes[number] for number in split_by_hash(hashes, 0.1, "mine")[1]}) == 100


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.25, 0.5, 0.9, 0.99])
def test_held_out_part_is_the_fraction_with_groups_of_any_size(fraction: float) -> None:
    random = np.random.RandomState(0)
    for most in (1, 2, 10):
        for _ in range(100):
            groups = [f"{one:08x}" for one in random.randint(0, 1 << 31, random.randint(2, 40))]
            hashes = [one for one in groups for _ in range(random.randint(1, most + 1))]
            try:
                train, held = split_by_hash(hashes, fraction, "mine")
            except UserError as error:
                assert most > 1 and "remove copies" in str(error)
                continue
            assert sorted(train + held) == [*range(len(hashes))] and train
            assert 1 <= len(held) <= max(round(fraction * len(hashes)), 1)
            assert not {hashes[number] for number in train} & {hashes[number] for number in held}
            if most == 1:  # no copies: as ever the smallest hashes
                count = min(max(round(fraction * len(hashes)), 1), len(hashes) - 1)
                assert sorted(hashes[number] for number in held) == sorted(hashes)[:count]


def test_nothing_but_large_groups_is_refused() -> None:
    with pytest.raises(UserError, match=r"mine: expected images of which at most 2 are equal .* at least 10 times"):
        split_by_hash(["a"] * 10 + ["b"] * 10, 0.1, "mine")
